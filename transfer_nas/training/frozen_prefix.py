"""Computes the frozen prefixes of Keras models once for all rows, and keeps what came out.

With policy ``freeze`` the inherited layers neither train nor change: each epoch would compute the
same activations again, and tracing a step would trace them again. Heirs of one ancestor, and of its
heirs, compute the same ones too.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cpp_store import _core
from graph_meta import LayerGraph
from graph_meta.graph import Edge, LayerSpec
from transfer_nas.applications import Data, as_tuple

if TYPE_CHECKING:
    import keras

CACHE_BYTES = 2**28
"""Most bytes of activations that are kept for a data set, all models together."""


class Rest(NamedTuple):
    """What is left to compute of a model whose frozen prefix has been computed.

    Attributes
    ----------
    model
        From the activations to the model's outputs; it shares the layers with the model.
    activations
        Of all training rows, as the backend's tensors: what `model` takes.
    """

    model: keras.Model
    activations: Any


class FrozenPrefixes:
    """The activations of frozen prefixes for the training rows of one data set.

    They are kept by the layers that they come from and by their weights, the least recently used
    ones are dropped first. Whether a prefix is computed ahead depends on its model and the rows
    alone, not on what is kept already, so that equal jobs have equal results. Those may differ in
    the last digits from what training computes batch by batch, since matrix products of other sizes
    add up in another order.

    Parameters
    ----------
    data
        The rows.
    chunk
        Rows to compute at a time.
    most_bytes
        Of activations that are kept. A prefix that gives more is not computed ahead.
    """

    def __init__(self, data: Data, chunk: int, most_bytes: int = CACHE_BYTES) -> None:
        self._x = as_tuple(data.x_train)
        self._rows = len(self._x[0])
        self._chunk = chunk
        self._most_bytes = most_bytes
        self._kept: OrderedDict[bytes, Any] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of the activations that are kept."""
        return sum(_nbytes(tensor.shape, tensor.dtype) for tensor in self._kept.values())

    def rest(self, model: keras.Model, graph: LayerGraph) -> Rest | None:
        """Part a model whose layers are trainable or not as they will be in training.

        Parameters
        ----------
        model
            As `graph_meta.keras_io.to_keras` builds it.
        graph
            What it was built from.

        Returns
        -------
        Rest or None
            None if no layer with weights can be computed ahead, or too much would have to be kept.
        """
        import keras

        if all(layer.trainable for layer in model.layers):
            return None
        operations = {operation.name: operation for operation in model.operations}
        settled = _settled(graph, operations)
        cut = _cut(graph, settled)
        if cut is None:
            return None
        tensors = [
            operations[graph.names[layer]]._inbound_nodes[call].output_tensors[tensor]
            for layer, call, tensor in cut
        ]
        shapes = [(self._rows, *tensor.shape[1:]) for tensor in tensors]
        if any(size is None for shape in shapes for size in shape):
            return None
        sizes = [
            _nbytes(shape, tensor.dtype) for shape, tensor in zip(shapes, tensors, strict=True)
        ]
        if sum(sizes) > self._most_bytes:
            return None
        keys = _keys(graph, operations, settled, cut)
        self._compute(model, tensors, keys, sum(sizes))
        activations = [self._kept[key] for key in keys]
        outputs = model.outputs if len(model.outputs) > 1 else model.outputs[0]
        if len(tensors) == 1:
            return Rest(keras.Model(tensors[0], outputs), activations[0])
        return Rest(keras.Model(tensors, outputs), activations)

    def _compute(
        self, model: keras.Model, tensors: list[Any], keys: list[bytes], nbytes: int
    ) -> None:
        """Compute what is missing of some tensors of a model, and keep all of them."""
        import keras

        wanted = dict(zip(keys, tensors, strict=True))
        here = {key: self._kept.pop(key) for key in keys if key in self._kept}
        while self._kept and self.nbytes + nbytes > self._most_bytes:
            self._kept.popitem(last=False)
        self._kept |= here
        missing = {key: tensor for key, tensor in wanted.items() if key not in here}
        if not missing:
            return
        prefix = keras.Model(model.inputs, list(missing.values()))
        parts: list[list[Any]] = []
        for begin in range(0, self._rows, self._chunk):
            x = [keras.ops.convert_to_tensor(rows[begin : begin + self._chunk]) for rows in self._x]
            outputs = keras.tree.flatten(prefix(x, training=False))
            parts.append([keras.ops.stop_gradient(output) for output in outputs])
        for key, chunks in zip(missing, zip(*parts, strict=True), strict=True):
            self._kept[key] = keras.ops.concatenate(chunks) if len(chunks) > 1 else chunks[0]


def _settled(graph: LayerGraph, operations: Mapping[str, Any]) -> set[int]:
    """Return the positions of layers whose outputs are the same at every step of a training."""
    settled: set[int] = set()
    for position, layer in enumerate(graph.layers):
        given = {edge.layer for call in layer.calls for edge in call.inputs}
        if given <= settled and _is_settled(operations[graph.names[position]], layer.spec):
            settled.add(position)
    return settled


def _is_settled(operation: Any, spec: LayerSpec) -> bool:
    """Whether equal inputs always give equal outputs, and nothing else comes of them.

    Of custom layers nobody knows; neither of Keras' layers that have them inside.
    """
    import keras

    if not isinstance(operation, keras.layers.Layer):
        return _is_of_keras(operation)
    # A frozen BatchNormalization leaves its statistics alone. No other layer promises that.
    has_statistics = not all(weight.trainable for weight in spec.weights)
    if has_statistics and spec.class_name != "BatchNormalization":
        return False
    return not any(
        not _is_of_keras(layer)
        or (layer.weights and layer.trainable)
        or layer._seed_generators
        or layer.activity_regularizer is not None
        # A mask goes from layer to layer beside the tensors.
        or isinstance(layer, keras.layers.Masking)
        or getattr(layer, "mask_zero", False)
        for layer in operation._flatten_layers()
    )


def _is_of_keras(operation: Any) -> bool:
    return type(operation).__module__.startswith("keras.")


def _cut(graph: LayerGraph, settled: Collection[int]) -> list[Edge] | None:
    """Return what the rest takes of the settled layers' outputs; None if that is no gain."""
    if not any(graph.layers[position].spec.weights for position in settled):
        return None
    if any(edge.layer in settled for edge in graph.outputs):
        return None
    taken = {
        edge
        for position, layer in enumerate(graph.layers)
        if position not in settled
        for call in layer.calls
        for edge in call.inputs
        if edge.layer in settled
    }
    return sorted(taken)


def _keys(
    graph: LayerGraph,
    operations: Mapping[str, Any],
    settled: Collection[int],
    cut: Collection[Edge],
) -> list[bytes]:
    """Return keys of tensors, equal only where all layers before them and their weights are."""
    inputs = {edge.layer: number for number, edge in enumerate(graph.inputs)}
    found: dict[int, bytes] = {}
    for position, layer in enumerate(graph.layers):
        if position not in settled:
            continue
        weights = getattr(operations[graph.names[position]], "weights", ())
        before = {edge.layer for call in layer.calls for edge in call.inputs}
        parts = [
            f"{graph.names[position]} {inputs.get(position)}".encode(),
            *(_core.xxh3_128(_bytes(weight)) for weight in weights),
            *(found[other] for other in sorted(before)),
        ]
        found[position] = _core.xxh3_128(b"\0".join(parts))
    return [found[edge.layer] + f"/{edge.call}/{edge.tensor}".encode() for edge in cut]


def _bytes(weight: Any) -> bytes:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(weight)).tobytes()


def _nbytes(shape: Sequence[int], dtype: Any) -> int:
    import keras

    return math.prod(shape) * int(np.dtype(keras.backend.standardize_dtype(dtype)).itemsize)
