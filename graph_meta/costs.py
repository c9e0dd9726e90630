"""What a network costs: floating-point operations, from its layer graph alone.

What a layer costs follows from its configuration, its weights and the shapes of its inputs, so no
model is built. Layers keep what was found for a shape, as the graphs of a space share them.

A multiplication and the addition that goes with it count as two operations. Whatever else is done
once for each number counts as one: an offset, an activation whichever it is, a comparison of
pooling. What only moves numbers, or does nothing outside of training, is free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from graph_meta.naming import GraphError

if TYPE_CHECKING:
    from graph_meta.graph import Layer, LayerSpec, Shape

Sizes = tuple[int, ...]  # a shape without unknown axes
#: Of one call: operations for one row, and the shapes of its outputs.
Cost = tuple[int, tuple["Shape", ...]]
#: The same from the shapes of its inputs; all layers that have a rule have one output.
Rule = Callable[["LayerSpec", Sequence[Sizes]], tuple[int, Sizes]]

_KEPT = 4096  # costs of one layer, one a shape


def flops(layers: Sequence[Layer]) -> int:
    """Return the operations of one row's forward pass; see `LayerGraph.flops`."""
    total = 0
    shapes: list[list[tuple[Shape, ...]]] = []  # of the outputs of each call of each layer
    for spec, calls in layers:
        outputs = []
        for inputs, _ in calls:
            if len(inputs) == 1:  # as nearly everywhere: a search asks this of every candidate
                layer, of, tensor = inputs[0]
                given: tuple[Shape, ...] = (shapes[layer][of][tensor],)
            else:
                given = tuple([shapes[layer][of][tensor] for layer, of, tensor in inputs])
            operations, made = spec.costs.get(given) or _cost(spec, given)
            total += operations
            outputs.append(made)
        shapes.append(outputs)
    return total


def _cost(spec: LayerSpec, shapes: tuple[Shape, ...]) -> Cost:
    rule = _RULES.get(spec.class_name)
    if rule is None:
        raise GraphError(f"FLOPs of layers of class {spec.class_name} are not known")
    sizes = [tuple(size for size in shape if size is not None) for shape in shapes]
    if any(len(known) != len(shape) for known, shape in zip(sizes, shapes, strict=True)):
        raise GraphError(
            f"FLOPs of layer class {spec.class_name}: expected inputs of known sizes, found "
            f"{', '.join(map(str, shapes))}"
        )
    operations, output = rule(spec, sizes)
    if len(spec.costs) >= _KEPT:
        spec.costs.clear()
    spec.costs[shapes] = operations, (output,)
    return spec.costs[shapes]


def _input(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    return 0, tuple(spec.config["batch_shape"][1:])


def _moved(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    return 0, shapes[0]


def _elementwise(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    return math.prod(shapes[0]), shapes[0]


def _activation(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    return _activated(spec, shapes[0]), shapes[0]


def _activated(spec: LayerSpec, output: Sizes) -> int:
    return 0 if spec.config.get("activation", "linear") == "linear" else math.prod(output)


def _finished(spec: LayerSpec, output: Sizes) -> int:
    """Return what a layer does to its output at last: its offset and its activation."""
    return math.prod(output) * bool(spec.config.get("use_bias")) + _activated(spec, output)


def _dense(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    output = (*shapes[0][:-1], int(spec.config["units"]))
    return 2 * math.prod(shapes[0]) * output[-1] + _finished(spec, output), output


def _convolution(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    """Use every weight of the kernels at every place."""
    kernels = spec.weights[: len(spec.weights) - bool(spec.config["use_bias"])]
    channels = (
        shapes[0][-1] * int(spec.config["depth_multiplier"])
        if spec.class_name.startswith("Depthwise")
        else int(spec.config["filters"])
    )
    output = (*_places(spec, shapes[0], "kernel_size"), channels)
    weights = sum(kernel.size for kernel in kernels)
    return 2 * math.prod(output[:-1]) * weights + _finished(spec, output), output


def _pooling(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    output = (*_places(spec, shapes[0], "pool_size"), _channels(spec, shapes[0]))
    return math.prod(output) * math.prod(spec.config["pool_size"]), output


def _places(spec: LayerSpec, shape: Sizes, key: str) -> Sizes:
    """Return how many places a layer's window takes along each axis but the channels."""
    _channels(spec, shape)
    config = spec.config
    dilations = config.get("dilation_rate", [1] * len(config[key]))
    covered = [
        (width - 1) * dilation + 1 for width, dilation in zip(config[key], dilations, strict=True)
    ]
    name, strides, padding = spec.class_name, config["strides"], config["padding"]
    places = windows(name, shape[:-1], covered, strides, padding)
    return tuple(size for size in places if size is not None)  # all are known


def windows(
    class_name: str,
    sizes: Shape,
    window: Sequence[int],
    strides: Sequence[int],
    padding: str,
) -> Shape:
    """Return how many places a window takes along each axis.

    Parameters
    ----------
    class_name
        Of the layer, for messages.
    sizes, window, strides
        Along each axis; None: not known.
    padding
        As Keras calls it.

    Raises
    ------
    GraphError
        The window does not fit.
    """
    places: list[int | None] = []
    for size, width, stride in zip(sizes, window, strides, strict=True):
        if size is None:
            places.append(None)
        elif padding == "valid":
            if size < width:
                raise GraphError(
                    f"{class_name}: a window of {tuple(window)} does not fit into {sizes}"
                )
            places.append((size - width) // stride + 1)
        else:
            places.append(-(-size // stride))
    return tuple(places)


def _channels(spec: LayerSpec, shape: Sizes) -> int:
    if spec.config.get("data_format", "channels_last") != "channels_last":
        raise GraphError(f"FLOPs of layer class {spec.class_name} are known of channels_last only")
    return shape[-1]


def _global_pooling(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    channels = _channels(spec, shapes[0])
    kept = (1,) * (len(shapes[0]) - 1) if spec.config.get("keepdims") else ()
    return math.prod(shapes[0]), (*kept, channels)


def _batch_normalization(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    """Count a factor and an offset for each number: the rest is a matter of each channel."""
    return 2 * math.prod(shapes[0]), shapes[0]


def _layer_normalization(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    """Count mean, difference, square, its mean and quotient; then factor and offset, if any."""
    own = bool(spec.config.get("scale")) + bool(spec.config.get("center"))
    return (5 + own) * math.prod(shapes[0]), shapes[0]


def _merge(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    rank = max(map(len, shapes))
    aligned = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    output = tuple(map(max, zip(*aligned, strict=True)))
    steps = len(shapes) - 1 + (spec.class_name == "Average")
    return steps * math.prod(output), output


def _concatenate(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    axis = int(spec.config["axis"])
    axis = axis - 1 if axis > 0 else axis + len(shapes[0])
    joined = sum(shape[axis] for shape in shapes)
    return 0, (*shapes[0][:axis], joined, *shapes[0][axis + 1 :])


def _reshape(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    elements = math.prod(shapes[0])
    target = tuple(spec.config.get("target_shape", (-1,)))
    known = math.prod(size for size in target if size != -1)
    return 0, tuple(elements // known if size == -1 else size for size in target)


def _zero_padding(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    padded = [
        before + size + after
        for size, (before, after) in zip(shapes[0], spec.config["padding"], strict=False)
    ]
    return 0, (*padded, _channels(spec, shapes[0]))


def _embedding(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    return 0, (*shapes[0], int(spec.config["output_dim"]))


def _attention(spec: LayerSpec, shapes: Sequence[Sizes]) -> tuple[int, Sizes]:
    """Count projections, scores, their softmax, the sums that they weigh, the last projection."""
    config = spec.config
    (queries, width), (values, depth) = shapes[:2]
    keys = shapes[2][-1] if len(shapes) > 2 else depth
    heads, key, value = (int(config[name]) for name in ("num_heads", "key_dim", "value_dim"))
    products = heads * (
        queries * width * key + values * keys * key + values * depth * value
        + queries * values * (key + value) + queries * value * width
    )  # fmt: skip
    offsets = heads * (queries * key + values * (key + value)) + queries * width
    scores = heads * (queries * key + queries * values)  # scaled queries, softmax
    return 2 * products + offsets * bool(config["use_bias"]) + scores, (queries, width)


_RULES: dict[str, Rule] = {
    "InputLayer": _input,
    "Dense": _dense,
    "Activation": _activation,
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "Concatenate": _concatenate,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "ZeroPadding1D": _zero_padding,
    "ZeroPadding2D": _zero_padding,
    "Embedding": _embedding,
    "MultiHeadAttention": _attention,
    **dict.fromkeys(("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract"), _merge),
    **dict.fromkeys(("Dropout", "GaussianDropout", "GaussianNoise", "Identity"), _moved),
    **dict.fromkeys(("ELU", "LeakyReLU", "ReLU", "Softmax"), _elementwise),
    **{f"{kind}Conv{n}D": _convolution for kind in ("", "Depthwise", "Separable") for n in (1, 2)},
    **{f"{kind}Pooling{n}D": _pooling for kind in ("Average", "Max") for n in (1, 2)},
    **{f"Global{kind}Pooling{n}D": _global_pooling for kind in ("Average", "Max") for n in (1, 2)},
}
