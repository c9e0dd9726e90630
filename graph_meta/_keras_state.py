"""What Keras layers compute with: their weights in a fixed order, and the state beside them.

State is what a layer learnt, or was given, that is neither in its configuration nor in its weights:
the vocabulary of a lookup, what ``save_own_variables`` and ``save_assets`` write besides weights.
Nothing trains it, and it decides what the layer computes: so it is a part of what the layer is.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from graph_meta._keras_config import REFUSALS, one_line
from graph_meta.graph import START
from graph_meta.naming import JSON, GraphError, plain

_START = "_transfer_start"  # attribute of layers that have one

# Where Keras writes weights, in forms of its own (merged, packed), and nothing else.
_WEIGHTS_ONLY = ("keras.src.layers.layer", "keras.src.layers.core.", "keras.src.layers.convolution")


def weights_of(operation: Any) -> list[Any]:
    """Return the weights of a layer, in an order that is the same however it came to be.

    That is the order of Keras, except for quantized layers: it depends on whether they were
    quantized before or after they were built.
    """
    weights = list(getattr(operation, "weights", ()))
    inside = _layers(operation)
    if not any(getattr(layer, "quantization_mode", None) for layer in inside):
        return weights
    place: dict[int, tuple[int, str]] = {}
    for number, layer in enumerate(inside):
        for weight in _own_weights(layer):
            place.setdefault(id(weight), (number, weight.name))
    return sorted(weights, key=lambda weight: place.get(id(weight), (len(inside), weight.name)))


def state_of(operation: Any, where: str) -> dict[str, JSON]:
    """Return the state of a layer and of the layers inside it, by their numbers; mostly empty.

    Raises
    ------
    GraphError
        What a layer saves cannot be told from its weights, or has no stable form.
    """
    state: dict[str, JSON] = {}
    for number, layer in enumerate(_layers(operation)):
        try:
            found = _vocabulary(layer) if _is_lookup(layer) else _saved(layer, where)
            mode = getattr(layer, "quantization_mode", None)
            if number and mode:
                found["quantization"] = mode  # which not all layers write of those inside them
            alpha = getattr(layer, "lora_alpha", None)
            if getattr(layer, "lora_enabled", False) and alpha not in (None, layer.lora_rank):
                found["lora_alpha"] = alpha  # which Keras writes, and does not read
        except GraphError:
            raise
        except (OSError, *REFUSALS) as error:
            raise GraphError(f"{where}: its state cannot be read: {one_line(error)}") from error
        if found:
            state[str(number)] = plain(found, f"{where}, state")
    start = getattr(operation, _START, None)
    if start is not None:
        state[START] = json.loads(start)
    return state


def set_state(operation: Any, state: Mapping[str, Any], where: str) -> None:
    """Give a built layer the state that `state_of` found."""
    inside = _layers(operation)
    for number, entry in state.items():
        try:
            if number == START:  # so that the layer has the same name when it is read again
                setattr(operation, _START, json.dumps(entry))
                _freeze(operation, entry.get("frozen", {}))
            else:
                _set(inside[int(number)], entry)
        except (OSError, *REFUSALS) as error:
            raise GraphError(f"{where}: Keras refuses its state: {one_line(error)}") from error


def frozen_of(operation: Any, where: str) -> bool | dict[str, list[int]]:
    """Return what of a layer never trains though it could: True for all of it.

    Else the numbers of the ``layers`` inside it, as `state_of` counts them, and of its ``weights``.

    Raises
    ------
    GraphError
        A part trains inside what does not: Keras goes by the weight, and by the layer elsewhere.
    """
    inside = _layers(operation)
    for layer in inside:
        if not layer.trainable and any(weight.trainable for weight in layer.weights):
            part = "it" if layer is operation else f"the layer {layer.name} inside it"
            raise GraphError(
                f"{where}: {part} is frozen and some of its weights are not; leave it trainable, "
                "and set trainable = False of the parts that shall not train"
            )
    if not operation.trainable:
        return bool(operation.weights)
    could = {id(weight) for layer in inside for weight in layer._trainable_variables}
    found = {
        "layers": [n for n, layer in enumerate(inside) if layer.weights and not layer.trainable],
        "weights": [
            n
            for n, weight in enumerate(weights_of(operation))
            if id(weight) in could and not weight.trainable
        ],
    }
    return {key: numbers for key, numbers in found.items() if numbers}


def _freeze(operation: Any, frozen: bool | Mapping[str, list[int]]) -> None:
    """Undo `frozen_of`. What the configuration has frozen inside the layer stays so."""
    if isinstance(frozen, Mapping):
        inside, weights = _layers(operation), weights_of(operation)
        parts = [inside[n] for n in frozen.get("layers", ())]
        parts += [weights[n] for n in frozen.get("weights", ())]
    else:
        parts = [operation] if frozen else []
    for part in parts:
        part.trainable = False


def derive(operation: Any) -> None:
    """Let a layer compute anew what it derives from its weights when they are loaded."""
    for layer in _layers(operation):
        if layer.built and _loads_more_than_weights(layer):
            layer.load_own_variables(_as_arrays(_written(layer)))


@contextmanager
def in_configuration_only(operation: Any) -> Iterator[None]:
    """Within, configurations repeat no state, and hold no seeds that nobody gave."""
    hidden: list[tuple[dict[str, Any], str, Any]] = []
    for layer in _layers(operation):
        own = vars(layer)
        if _is_lookup(layer) and _vocabulary(layer):
            hidden += [(own, key, own[key]) for key in ("input_vocabulary", "input_idf_weights")]
        if isinstance(own.get("seed"), int) and _drew_its_seed(layer):
            hidden.append((own, "seed", own["seed"]))
    try:
        for own, key, _ in hidden:
            own[key] = None
        yield
    finally:
        for own, key, value in hidden:
            own[key] = value


def _layers(operation: Any) -> list[Any]:
    """Return a layer and the layers inside it, in the order in which it came by them."""
    import keras

    return operation._flatten_layers() if isinstance(operation, keras.layers.Layer) else []


def _own_weights(layer: Any) -> list[Any]:
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def _is_lookup(layer: Any) -> bool:
    import keras

    return isinstance(layer, (keras.layers.StringLookup, keras.layers.IntegerLookup))


def _drew_its_seed(layer: Any) -> bool:
    import keras

    return any(
        isinstance(value, keras.random.SeedGenerator) and value._initial_seed is None
        for value in vars(layer).values()
    )


def _vocabulary(lookup: Any) -> dict[str, Any]:
    """Return the words of a lookup, wherever it has them from; empty if it has none yet."""
    has_idf = lookup.output_mode == "tf_idf"
    words = lookup.get_vocabulary(include_special_tokens=has_idf)
    if len(words) == 0 or lookup.lookup_table.size() == 0:
        return {}
    if not has_idf:
        return {"vocabulary": words}
    idf = lookup.idf_weights_const.numpy()[: len(words)]
    return {"vocabulary": words, "idf_weights": idf.tolist()}


def _saved(layer: Any, where: str) -> dict[str, Any]:
    """Return what a layer saves besides its weights."""
    found: dict[str, Any] = {}
    if _saves_more_than_weights(layer) and layer.built:
        variables = _without_weights(_written(layer), _own_weights(layer), where)
        if variables:
            found["variables"] = {key: _encoded(array) for key, array in variables.items()}
    if hasattr(layer, "save_assets") and not _hands_on(layer):
        with tempfile.TemporaryDirectory() as directory:
            layer.save_assets(directory)
            root = Path(directory)
            assets = {
                path.relative_to(root).as_posix(): base64.b64encode(path.read_bytes()).decode()
                for path in sorted(root.rglob("*"))
                if path.is_file()
            }
        if assets:
            found["assets"] = assets
    return found


def _hands_on(layer: Any) -> bool:
    """Whether a layer saves what one inside it would save anyway."""
    import keras

    return isinstance(layer, keras.layers.TextVectorization)


def _saves_more_than_weights(layer: Any) -> bool:
    method = type(layer).save_own_variables
    return not (method.__module__.startswith(_WEIGHTS_ONLY) or _hands_on(layer))


def _loads_more_than_weights(layer: Any) -> bool:
    if _is_lookup(layer) or _hands_on(layer):
        return False
    if getattr(layer, "quantization_mode", None) in ("gptq", "awq"):
        return True  # it is calibrated from then on
    loads = type(layer).load_own_variables.__module__
    return not loads.startswith(_WEIGHTS_ONLY) or _saves_more_than_weights(layer)


def _written(layer: Any) -> dict[str, Any]:
    store: dict[str, Any] = {}
    layer.save_own_variables(store)
    return store


def _as_arrays(store: Mapping[str, Any]) -> dict[str, Any]:
    import keras

    return {
        key: np.array(keras.ops.convert_to_numpy(value))
        if isinstance(value, keras.Variable) or keras.ops.is_tensor(value)
        else value
        for key, value in store.items()
    }


def _without_weights(
    store: Mapping[str, Any], weights: list[Any], where: str
) -> dict[str, np.ndarray[Any, Any]]:
    """Return what is no weight of what a layer saved.

    Weights are known by themselves, or by their bytes where the layer made arrays of them. Each of
    them once: what is left when all of them are found is state, whatever its value.
    """
    left = {id(weight): weight for weight in weights}
    rest = {key: value for key, value in store.items() if left.pop(id(value), None) is None}
    arrays = {key: np.asarray(value) for key, value in _as_arrays(rest).items()}
    for key in list(arrays):
        for weight in left.values():
            array = _as_arrays({"": weight})[""]
            same = arrays[key].shape == array.shape and arrays[key].dtype == array.dtype
            if same and arrays[key].tobytes() == array.tobytes():
                del left[id(weight)], arrays[key]
                break
    if arrays and left:
        unsaved = next(iter(left.values()))
        raise GraphError(
            f"{where}: save_own_variables() writes {next(iter(arrays))!r} and does not write the "
            f"weight {unsaved.path} as it is: state cannot be told from weights; let it write all "
            "weights"
        )
    return arrays


def _encoded(array: np.ndarray[Any, Any]) -> dict[str, JSON]:
    if array.dtype.kind not in "biufcSU" and not array.dtype.isbuiltin == 2:
        raise TypeError(f"an array of dtype {array.dtype} has no stable form")
    little = array.astype(array.dtype.newbyteorder("<"))
    return {
        "dtype": little.dtype.str if array.dtype.isbuiltin != 2 else array.dtype.name,
        "shape": list(array.shape),
        "bytes": base64.b64encode(little.tobytes()).decode(),
    }


def _decoded(entry: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    import ml_dtypes  # noqa: F401 - makes NumPy know bfloat16 and float8 by name

    array = np.frombuffer(base64.b64decode(entry["bytes"]), np.dtype(entry["dtype"]))
    return array.reshape(entry["shape"]).copy()


def _set(layer: Any, entry: Mapping[str, Any]) -> None:
    if "vocabulary" in entry:
        layer.set_vocabulary(entry["vocabulary"], entry.get("idf_weights"))
    if "lora_alpha" in entry:
        layer.lora_alpha = entry["lora_alpha"]
    mode = entry.get("quantization")
    if mode is not None and layer.quantization_mode != mode:
        layer.quantize(mode)
    if "variables" in entry:
        variables = {key: _decoded(value) for key, value in entry["variables"].items()}
        layer.load_own_variables({**_as_arrays(_written(layer)), **variables})
    if "assets" in entry:
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory).resolve()
            for name, content in entry["assets"].items():
                path = (root / name).resolve()
                if root not in path.parents:
                    raise ValueError(f"the asset {name!r} is outside of the layer's directory")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(content))
            layer.load_assets(directory)
