"""Weights that a function has loaded into the model that it builds, and layers that it has frozen.

That is how people use pretrained parts. What a layer starts from is a part of what it is (of its
digest): a layer that was loaded, one of the same configuration with random weights, one that was
loaded with others and one that never trains have different stable names, so that none inherits
from another by mistake. The weights themselves are kept nowhere: who trains a candidate has the
function run again. So a space with a large pretrained part needs no memory for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graph_meta.graph import Layer, LayerGraph
from transfer_nas.errors import SpaceError

if TYPE_CHECKING:
    import keras

Array = npt.NDArray[Any]


def marked(model: keras.Model, again: Callable[[], keras.Model]) -> LayerGraph:
    """Return the layer graph of a model, with what its layers start from.

    A weight was loaded if the function gives it the same value each time, and that is not what its
    initializer makes of it. Most functions load none, which their initializers show; else the model
    is built once more.

    Parameters
    ----------
    model
        What the function built.
    again
        Builds the same model once more, with other random weights.
    """
    from graph_meta import keras_io

    graph, layers = keras_io.read(model)
    suspects = [name for name, layer in layers.items() if layer.weights and not _is_fresh(layer)]
    others = keras_io.read(again())[1] if suspects else {}
    given = {name: _given(layers[name], others[name]) for name in suspects if name in others}
    found = []
    for name, layer in zip(graph.names, graph.layers, strict=True):
        frozen = name in layers and keras_io.frozen_of(layers[name])
        spec = layer.spec
        if frozen or any(given.get(name, ())):
            spec = spec.with_start(given.get(name, ()), frozen)
        found.append(Layer(spec, layer.calls))
    return LayerGraph(found, graph.inputs, graph.outputs)


def weights(model: keras.Model, graph: LayerGraph) -> dict[str, list[Array | None]]:
    """Return what layers start from, by stable name; None for weights of their initializers.

    Parameters
    ----------
    model
        What the function built once more.
    graph
        What `marked` made of it before.

    Raises
    ------
    SpaceError
        The function has loaded other weights than before.
    """
    from graph_meta import keras_io

    plain, layers = keras_io.read(model)
    found: dict[str, list[Array | None]] = {}
    for own, name, layer in zip(plain.names, graph.names, graph.layers, strict=True):
        given = layer.spec.given
        if not given:
            continue
        arrays = keras_io.layer_weights(layers[own])
        now = tuple(d and _digest(array) for d, array in zip(given, arrays, strict=True))
        if now != given:
            raise SpaceError(
                f"the function loads other weights into layer {layers[own].name} than it did before"
            )
        pairs = zip(given, arrays, strict=True)
        found[name] = [array if digest else None for digest, array in pairs]
    return found


def _given(layer: Any, other: Any) -> list[str | None]:
    """Return the digests of the weights that were loaded, None for others."""
    from graph_meta import keras_io

    arrays, others = keras_io.layer_weights(layer), keras_io.layer_weights(other)
    same = [_is_same(array, twin) for array, twin in zip(arrays, others, strict=True)]
    if not any(same):
        return []
    made = _made_anew(layer)
    return [
        _digest(array) if is_same and (made is None or not _is_same(array, made[i])) else None
        for i, (array, is_same) in enumerate(zip(arrays, same, strict=True))
    ]


def _made_anew(layer: Any) -> list[Array] | None:
    """Return the weights of a new layer of the same configuration; None if it needs more."""
    from graph_meta import keras_io

    try:
        new = type(layer).from_config(layer.get_config())
        new.build_from_config(layer.get_build_config())
    except Exception:  # classes of users may need anything
        return None
    made = keras_io.layer_weights(new)
    return made if [a.shape for a in made] == [w.shape for w in layer.weights] else None


def _is_fresh(layer: Any) -> bool:
    """Tell whether all weights are what the layer's initializers made; they remember their seeds.

    False where that cannot be told.
    """
    import keras

    for weight in layer.weights:
        initializer = _initializer(layer, weight.name)
        if not isinstance(getattr(initializer, "seed", None), int | None):
            return False  # a generator's next number
        if not callable(initializer):
            return False
        made = initializer(tuple(weight.shape), dtype=weight.dtype)
        if not _is_same(*(np.asarray(keras.ops.convert_to_numpy(w)) for w in (made, weight))):
            return False
    return True


def _initializer(layer: Any, weight: str) -> Any:
    names = (f"{weight}_initializer", f"{weight.removesuffix('_kernel')}_initializer")
    return next((found for name in names if (found := getattr(layer, name, None))), None)


def _is_same(array: Array, other: Array) -> bool:
    return array.shape == other.shape and array.tobytes() == other.tobytes()


def _digest(array: Array) -> str:
    digest = hashlib.blake2b(f"{array.dtype.name} {array.shape}".encode(), digest_size=16)
    content: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    digest.update(content)
    return digest.hexdigest()
