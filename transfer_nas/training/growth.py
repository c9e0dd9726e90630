"""Starts a candidate from the function of another network, also behind the prefix that they share.

After Net2Net (Chen, Goodfellow and Shlens, *Net2Net: accelerating learning via knowledge transfer*,
ICLR'16): a layer that grew wider repeats units of the ancestor's, and whoever takes its output
splits the weights among the repetitions, so that the network computes what the ancestor computes.
The split is uneven, at random: equal halves would get equal gradients and stay one unit for ever.
A new layer in the chain starts as the identity, a new branch into a sum as zero.

That preserves the function if a layer became wider, if an input was added to a sum through a layer
of its own, and if a linear layer (or relu after relu) was put in. In all other cases - a layer
narrower, gone, or with another activation - what is left of the ancestor's weights is a start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from graph_meta import LayerGraph
from graph_meta.graph import Edge, Layer, LayerSpec
from transfer_nas.training.roles import NEUTRAL, axes, roles
from transfer_nas.transfer import Tensors

Kernel = npt.NDArray[Any]

_MIXING = ("Dense", "Conv1D", "Conv2D")
"""Layers whose kernel's last axes are inputs and outputs."""

_NORMALIZING = (
    "BatchNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "RMSNormalization",
)
"""Layers whose weights lie along an axis of what they take."""

_SUMS = ("Add", "Average", "Multiply")
_AS_IDENTITY = ("linear", "relu")
"""Activations of a new layer that leave what went through a relu before as it is."""


class _Channels(NamedTuple):
    """Which of the ancestor's channels the channels of a tensor are.

    Attributes
    ----------
    source
        For each channel, the number of the ancestor's, or -1: it has none.
    number
        How many channels the ancestor has there.
    """

    source: npt.NDArray[np.intp]
    number: int

    @classmethod
    def same(cls, number: int) -> _Channels:
        """Return those of a layer that the ancestor has."""
        return cls(np.arange(number), number)

    @classmethod
    def resized(cls, number: int, before: int) -> _Channels:
        """Return those of a layer of another width: the same everywhere, so that sums agree."""
        return cls(np.arange(number) % before, before)


def grow(
    child: LayerGraph, ancestor: LayerGraph, tensors: Tensors, rng: np.random.Generator
) -> Tensors:
    """Return weights for layers of a child that its ancestor does not have as they are.

    Parameters
    ----------
    child, ancestor
        The networks.
    tensors
        The ancestor's, all of them.
    rng
        Splits the weights of repeated units.

    Returns
    -------
    Tensors
        By stable name of the child's layer. Layers for which nothing can be had are left out: they
        start anew.
    """
    return _Growth(child, ancestor, tensors, rng).grown()


class _Growth:
    def __init__(
        self, child: LayerGraph, ancestor: LayerGraph, tensors: Tensors, rng: np.random.Generator
    ) -> None:
        self._child = child
        self._tensors = tensors
        self._rng = rng
        self._partners = _partners(child, ancestor)
        self._known = set(ancestor.names)
        self._specs = {
            name: layer.spec for name, layer in zip(ancestor.names, ancestor.layers, strict=True)
        }
        self._channels: dict[Edge, _Channels | None] = {}
        self._into_sums = {
            edge.layer
            for layer in child.layers
            if layer.spec.class_name in _SUMS
            for edge in layer.calls[0].inputs
        }

    def grown(self) -> Tensors:
        found: dict[str, list[Kernel]] = {}
        for position, layer in enumerate(self._child.layers):
            name = self._child.names[position]
            inputs = [self._channels.get(edge) for edge in layer.calls[0].inputs]
            if name in self._known:
                channels = self._unchanged(layer)
            elif layer.spec.given:  # it starts from what it was given
                theirs = self._specs.get(self._partners.get(position, ""))
                alike = theirs is not None and theirs.key == layer.spec.key
                channels = self._unchanged(layer) if alike else None
            elif layer.spec.weights:
                arrays, channels = self._weights(position, layer, inputs)
                if arrays is not None:
                    found[name] = arrays
            else:
                channels = _passed(layer, inputs)
            for number in range(len(layer.calls)):
                self._channels[Edge(position, number)] = channels
        return found

    def _unchanged(self, layer: Layer) -> _Channels | None:
        """Return the channels of a layer that the ancestor has: those are known by their width."""
        if layer.spec.class_name in _MIXING:
            return _Channels.same(layer.spec.weights[0].shape[-1])
        if layer.spec.class_name == "InputLayer":
            return _Channels.same(layer.spec.config["batch_shape"][-1] or 0)
        inputs = [self._channels.get(edge) for edge in layer.calls[0].inputs]
        return _passed(layer, inputs)

    def _weights(
        self, position: int, layer: Layer, inputs: Sequence[_Channels | None]
    ) -> tuple[list[Kernel] | None, _Channels | None]:
        """Return the weights of a layer, None to start anew, and the channels that come out."""
        spec = layer.spec
        partner = self._partners.get(position)
        before = None if partner is None else self._tensors.get(partner)
        if partner is None or before is None:
            if spec.class_name in _MIXING:
                return self._inserted(position, layer, inputs[0])
            return None, inputs[0]
        theirs = self._specs[partner]
        parts = spec.frozen_parts
        if (spec.frozen and not theirs.frozen) or (parts and parts != theirs.frozen_parts):
            return None, None  # it keeps what its initializers give it
        if spec.key == theirs.key and spec.class_name not in (*_MIXING, *_NORMALIZING):
            return list(before), inputs[0]
        known = _by_role(theirs, before)
        if known is None or roles(spec) is None:
            return None, None
        if spec.class_name in _MIXING and "kernel" in known:
            return self._mixed(spec, inputs[0], known)
        if spec.class_name in _NORMALIZING:
            return _normalizing(spec, theirs, inputs[0], known), inputs[0]
        arrays = _matched(spec, known)
        return arrays, None if arrays is None else inputs[0]

    def _mixed(
        self, spec: LayerSpec, given: _Channels | None, known: Mapping[str, Kernel]
    ) -> tuple[list[Kernel] | None, _Channels | None]:
        kernel = known["kernel"]
        shape = spec.weights[0].shape
        if kernel.shape[:-2] != shape[:-2] or "kernel" not in (roles(spec) or ()):
            return None, None
        if given is None or given.number != kernel.shape[-2] or len(given.source) != shape[-2]:
            # Not what the ancestor's layer took. Position by position is better than nothing.
            source = np.arange(shape[-2])
            given = _Channels(np.where(source < kernel.shape[-2], source, -1), kernel.shape[-2])
        out = _Channels.resized(shape[-1], kernel.shape[-1])
        rows = kernel[..., given.source, :] * self._shares(given)[:, None]
        wider = {role: array[out.source] for role, array in known.items() if role != "kernel"}
        wider["kernel"] = np.ascontiguousarray(rows[..., out.source], kernel.dtype)
        return _matched(spec, wider), out

    def _shares(self, channels: _Channels) -> Kernel:
        """Return for each channel its share of the source's weights; 0 without a source."""
        parts = self._rng.uniform(0.5, 1.5, len(channels.source)) * (channels.source >= 0)
        sums = np.bincount(np.maximum(channels.source, 0), parts, minlength=channels.number)
        shares: Kernel = parts / np.where(sums > 0, sums, 1)[channels.source]
        return shares.astype(np.float32)

    def _inserted(
        self, position: int, layer: Layer, given: _Channels | None
    ) -> tuple[list[Kernel] | None, _Channels | None]:
        """Start a layer that the ancestor has not at zero, in a sum, or else as the identity."""
        spec = layer.spec
        zeros = [np.zeros(weight.shape, np.float32) for weight in spec.weights]
        if spec.class_name != "Dense" or any(w.dtype != "float32" for w in spec.weights):
            return None, None
        if position in self._into_sums:
            return zeros, None
        if given is None or spec.config.get("activation") not in _AS_IDENTITY:
            return None, None
        inputs, outputs = spec.weights[0].shape
        zeros[0][np.arange(min(inputs, outputs)), np.arange(min(inputs, outputs))] = 1
        source = np.full(outputs, -1)
        source[: min(inputs, outputs)] = given.source[:outputs]
        if outputs > inputs:  # zeros there would never train, as nothing comes of them
            limit = math.sqrt(6 / (inputs + outputs))
            extra = self._rng.uniform(-limit, limit, (inputs, outputs - inputs))
            zeros[0][:, inputs:] = extra
        return zeros, _Channels(source, given.number)


def _by_role(spec: LayerSpec, arrays: Sequence[Kernel]) -> dict[str, Kernel] | None:
    found = roles(spec)
    return None if found is None else dict(zip(found, arrays, strict=True))


def _matched(spec: LayerSpec, known: Mapping[str, Kernel]) -> list[Kernel] | None:
    """Return the weights of a layer by their roles; None if one cannot be had.

    What the other layer has not is such that it changes nothing.
    """
    arrays = []
    for role, weight in zip(roles(spec) or (), spec.weights, strict=True):
        array = known.get(role)
        if array is None and role in NEUTRAL:
            like = next(iter(known.values()))
            array = np.full(weight.shape, NEUTRAL[role], like.dtype)
        if array is None or array.shape != weight.shape or array.dtype.name != weight.dtype:
            return None
        arrays.append(array)
    return arrays


def _normalizing(
    spec: LayerSpec, theirs: LayerSpec, channels: _Channels | None, known: Mapping[str, Kernel]
) -> list[Kernel] | None:
    """Return the weights of a normalization, those of its channels if they lie along these."""
    if axes(spec) != axes(theirs):
        return None
    if axes(spec) != (-1,):
        return _matched(spec, known)
    size = spec.weights[0].shape[0]
    moved = {}
    for role, array in known.items():
        if channels is None or channels.number != len(array) or len(channels.source) != size:
            return None
        there = channels.source >= 0
        moved[role] = np.where(there, array[channels.source], NEUTRAL[role]).astype(array.dtype)
    return _matched(spec, moved) if moved else None


def _passed(layer: Layer, inputs: Sequence[_Channels | None]) -> _Channels | None:
    """Return the channels behind a layer that does not mix any."""
    if layer.spec.class_name == "Concatenate":
        known = [channels for channels in inputs if channels is not None]
        if len(known) < len(inputs):
            return None
        offsets = np.cumsum([0, *(channels.number for channels in known)])
        sources = [
            np.where(channels.source < 0, -1, channels.source + offset)
            for channels, offset in zip(known, offsets[:-1], strict=True)
        ]
        return _Channels(np.concatenate(sources), int(offsets[-1]))
    if layer.spec.class_name in ("Flatten", "Reshape"):
        return None  # of several axes; by position, if the sizes are the same
    return next((channels for channels in inputs if channels is not None), None)


def _partners(child: LayerGraph, ancestor: LayerGraph) -> Mapping[int, str]:
    """Pair layers with weights that only one of the two has: position in the child -> name.

    In order, as many and as similar ones as can be (Needleman and Wunsch's alignment).
    """
    ours = _others(child, ancestor)
    theirs = _others(ancestor, child)
    best = np.zeros((len(ours) + 1, len(theirs) + 1), int)
    for i, (_, a) in enumerate(reversed(ours), start=1):
        for j, (_, b) in enumerate(reversed(theirs), start=1):
            best[i, j] = max(best[i - 1, j], best[i, j - 1], best[i - 1, j - 1] + _likeness(a, b))
    pairs = {}
    i, j = len(ours), len(theirs)
    while i and j:
        (place, a), (other, b) = ours[-i], theirs[-j]
        likeness = _likeness(a, b)
        if likeness and best[i, j] == best[i - 1, j - 1] + likeness:
            pairs[place] = ancestor.names[other]
            i, j = i - 1, j - 1
        elif best[i, j] == best[i - 1, j]:
            i -= 1
        else:
            j -= 1
    return pairs


def _others(graph: LayerGraph, than: LayerGraph) -> list[tuple[int, Layer]]:
    known = set(than.names)
    layers = zip(graph.names, graph.layers, strict=True)
    return [
        (position, layer)
        for position, (name, layer) in enumerate(layers)
        if layer.spec.weights and name not in known
    ]


def _likeness(a: Layer, b: Layer) -> int:
    """Return how well two layers go together, 0 for not at all."""
    if a.spec.class_name != b.spec.class_name:
        return 0
    same_function = a.spec.config.get("activation") == b.spec.config.get("activation")
    same_width = a.spec.weights[0].shape[-1:] == b.spec.weights[0].shape[-1:]
    return 2 + same_function + 2 * same_width
