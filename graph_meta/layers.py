"""The Keras layers that search spaces use, as layer specs, without importing Keras.

Each function returns a cached `LayerTemplate`; `GraphBuilder.add` applies it to its inputs. What a
template yields equals what `keras_io.from_keras` finds in the same layer built by Keras: the same
configuration, weight shapes and output shapes (a test builds each of them both ways).

Shapes are without the batch axis; None is an axis of unknown size. Weights are float32, data
channels-last, defaults those of Keras.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal

from graph_meta.costs import windows
from graph_meta.graph import Layer, LayerGraph, LayerSpec, Shape, WeightSpec
from graph_meta.naming import GraphError, canonical_json

Padding = Literal["valid", "same", "causal"]
Shapes = tuple[Shape, ...]
#: From the shapes of a layer's inputs: its weights, and the shapes of its outputs.
Inference = Callable[[Shapes], tuple[tuple[WeightSpec, ...], Shapes]]

_CACHE = 4096  # templates of one kind; a search space has at most a few hundred

INITIALIZERS: Mapping[str, str] = {
    "glorot_normal": "GlorotNormal",
    "glorot_uniform": "GlorotUniform",
    "he_normal": "HeNormal",
    "he_uniform": "HeUniform",
    "lecun_normal": "LecunNormal",
    "lecun_uniform": "LecunUniform",
}
"""Keras' initializers of kernels that need no more than their names: name -> class."""

_KERNELS = ("kernel", "depthwise", "pointwise")


def with_kernels(graph: LayerGraph, initializer: str | None = None, l2: float = 0.0) -> LayerGraph:
    """Return a graph whose kernels start from another initializer, or cost their squares.

    Parameters
    ----------
    graph
        Its layers with a kernel are changed where they have Keras' default.
    initializer
        One of `INITIALIZERS`; None: the default.
    l2
        What the sum of a kernel's squares is multiplied by in the loss; 0: nothing.
    """
    made = [
        Layer(_with_kernels(layer.spec, initializer, l2), layer.calls) for layer in graph.layers
    ]
    return LayerGraph(made, graph.inputs, graph.outputs)


@lru_cache(_CACHE)
def _with_kernels(spec: LayerSpec, initializer: str | None, l2: float) -> LayerSpec:
    config = dict(spec.config)
    for kernel in _KERNELS:
        if config.get(f"{kernel}_initializer") != "GlorotUniform":
            continue
        if initializer is not None:
            config[f"{kernel}_initializer"] = INITIALIZERS[initializer]
        if l2:
            regularizer = {"class_name": "L2", "config": {"l2": l2}, "module": "keras.regularizers"}
            config.setdefault(f"{kernel}_regularizer", regularizer)
    return (
        spec
        if config == spec.config
        else LayerSpec(spec.class_name, config, spec.weights, spec.state)
    )


class LayerTemplate:
    """A layer that has not met its inputs yet.

    Parameters
    ----------
    class_name
        The Keras class.
    config
        Its configuration, without ``name``, ``trainable`` and ``dtype``.
    infer
        Weights and output shapes from input shapes; raises `GraphError` where Keras would refuse.
    inputs
        How many tensors it is called with; None for any number from 1.
    arguments
        See `graph_meta.graph.Call`.
    """

    __slots__ = ("arguments", "class_name", "config", "infer", "inputs", "known")

    def __init__(
        self,
        class_name: str,
        config: Mapping[str, Any],
        infer: Inference,
        *,
        inputs: int | None = 1,
        arguments: str | None = None,
    ) -> None:
        self.class_name = class_name
        self.config = {"dtype": "float32", **config}
        self.infer = infer
        self.inputs = inputs
        self.arguments = arguments
        self.known: dict[Shapes, tuple[LayerSpec, Shapes]] = {}  # what `at` returned before

    def at(self, shapes: Shapes) -> tuple[LayerSpec, Shapes]:
        """Return the spec and the output shapes for inputs of these shapes.

        Raises
        ------
        GraphError
            If the layer cannot be called on such tensors.
        """
        known = self.known.get(shapes)
        if known is None:
            if self.inputs is not None and len(shapes) != self.inputs:
                raise GraphError(
                    f"{self.class_name} takes {self.inputs} tensor(s), found {len(shapes)}"
                )
            weights, outputs = self.infer(shapes)
            known = LayerSpec(self.class_name, self.config, weights), outputs
            self.known[shapes] = known
        return known

    def __repr__(self) -> str:
        return f"LayerTemplate({self.class_name!r}, {self.config!r})"


def _same_shape(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
    return (), shapes[:1]


def _rank(class_name: str, shape: Shape, rank: int) -> Shape:
    if len(shape) != rank:
        raise GraphError(f"{class_name} takes a tensor of {rank} axes (+ batch), found {shape}")
    return shape


def _known(class_name: str, shape: Shape, axis: int = -1) -> int:
    if not shape or shape[axis] is None:
        raise GraphError(f"{class_name} needs to know the size of axis {axis} of {shape}")
    size = shape[axis]
    assert size is not None
    return size


@lru_cache(_CACHE)
def input_layer(shape: Shape, dtype: str = "float32") -> LayerTemplate:
    """Input of the model: a tensor of `shape`, which excludes the batch axis."""

    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        return (), (shape,)

    config = {
        "batch_shape": [None, *shape],
        "dtype": dtype,
        "sparse": False,
    }
    return LayerTemplate("InputLayer", config, infer, inputs=0)


@lru_cache(_CACHE)
def dense(units: int, *, activation: str = "linear", use_bias: bool = True) -> LayerTemplate:
    """Fully connected: the last axis of its input becomes `units`."""

    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        kernel = WeightSpec((_known("Dense", shapes[0]), units))
        return _with_bias((kernel,), units, use_bias), ((*shapes[0][:-1], units),)

    config = {
        "units": units,
        "activation": _function(activation),
        "use_bias": use_bias,
        "kernel_initializer": "GlorotUniform",
        "bias_initializer": "Zeros",
    }
    return LayerTemplate("Dense", config, infer)


def _with_bias(
    kernels: tuple[WeightSpec, ...], units: int, use_bias: bool
) -> tuple[WeightSpec, ...]:
    return (*kernels, WeightSpec((units,))) if use_bias else kernels


@lru_cache(_CACHE)
def activation(function: str) -> LayerTemplate:
    """Activation function by its Keras name, on its own."""
    return LayerTemplate("Activation", {"activation": _function(function)}, _same_shape)


def _function(name: str) -> str:
    """Return an activation function's first name, which Keras writes down for its second."""
    return {"swish": "silu", "hard_swish": "hard_silu"}.get(name, name)


@lru_cache(_CACHE)
def dropout(rate: float) -> LayerTemplate:
    """Zeroes a share `rate` of its input while training."""
    return LayerTemplate("Dropout", {"rate": rate}, _same_shape)


@lru_cache(_CACHE)
def identity() -> LayerTemplate:
    """Output that equals the input."""
    return LayerTemplate("Identity", {}, _same_shape)


@lru_cache(_CACHE)
def batch_normalization(*, momentum: float = 0.99, epsilon: float = 0.001) -> LayerTemplate:
    """Normalises each channel over the batch; keeps two statistics that are not trained."""

    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        channels = (_known("BatchNormalization", shapes[0]),)
        trained = WeightSpec(channels)
        statistic = WeightSpec(channels, trainable=False)
        return (trained, trained, statistic, statistic), shapes

    config = {
        "axis": -1,
        "momentum": momentum,
        "epsilon": epsilon,
        "center": True,
        "scale": True,
        "beta_initializer": "Zeros",
        "gamma_initializer": "Ones",
        "moving_mean_initializer": "Zeros",
        "moving_variance_initializer": "Ones",
        "synchronized": False,
    }
    return LayerTemplate("BatchNormalization", config, infer)


@lru_cache(_CACHE)
def layer_normalization(*, epsilon: float = 0.001) -> LayerTemplate:
    """Normalises each sample over its last axis."""

    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        weight = WeightSpec((_known("LayerNormalization", shapes[0]),))
        return (weight, weight), shapes

    config = {
        "axis": [-1],
        "epsilon": epsilon,
        "center": True,
        "scale": True,
        "rms_scaling": False,
        "beta_initializer": "Zeros",
        "gamma_initializer": "Ones",
    }
    return LayerTemplate("LayerNormalization", config, infer)


@lru_cache(_CACHE)
def add() -> LayerTemplate:
    """Sum of its inputs, elementwise."""
    return LayerTemplate("Add", {}, _merge("Add"), inputs=None)


@lru_cache(_CACHE)
def multiply() -> LayerTemplate:
    """Product of its inputs, elementwise."""
    return LayerTemplate("Multiply", {}, _merge("Multiply"), inputs=None)


@lru_cache(_CACHE)
def average() -> LayerTemplate:
    """Mean of its inputs, elementwise."""
    return LayerTemplate("Average", {}, _merge("Average"), inputs=None)


def _merge(class_name: str) -> Inference:
    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        if len(shapes) < 2:
            raise GraphError(f"{class_name} takes at least 2 tensors, found {len(shapes)}")
        if any(shape != shapes[0] for shape in shapes):
            raise GraphError(f"{class_name} takes tensors of one shape, found {list(shapes)}")
        return (), shapes[:1]

    return infer


@lru_cache(_CACHE)
def concatenate() -> LayerTemplate:
    """Join of its inputs along the last axis."""

    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        if len(shapes) < 2:
            raise GraphError(f"Concatenate takes at least 2 tensors, found {len(shapes)}")
        if any(shape[:-1] != shapes[0][:-1] for shape in shapes):
            raise GraphError(
                f"Concatenate takes tensors that differ in their last axis only, found "
                f"{list(shapes)}"
            )
        width = sum(_known("Concatenate", shape) for shape in shapes)
        return (), ((*shapes[0][:-1], width),)

    return LayerTemplate("Concatenate", {"axis": -1}, infer, inputs=None)


@lru_cache(_CACHE)
def flatten() -> LayerTemplate:
    """All axes but the batch become one."""

    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        return (), ((_product(shapes[0]),),)

    return LayerTemplate("Flatten", {"data_format": "channels_last"}, infer)


def _product(shape: Shape) -> int | None:
    product = 1
    for size in shape:
        if size is None:
            return None
        product *= size
    return product


@lru_cache(_CACHE)
def reshape(target: tuple[int, ...]) -> LayerTemplate:
    """Change the shape, keep the elements; one axis may be -1."""

    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        elements = _product(shapes[0])
        if elements is None:
            raise GraphError(f"Reshape needs to know all axes, found {shapes[0]}")
        known = 1
        for size in target:
            known *= size if size != -1 else 1
        fits = known == elements if -1 not in target else known and elements % known == 0
        if not fits:
            raise GraphError(f"Reshape: {shapes[0]} cannot become {target}")
        return (), (tuple(elements // known if size == -1 else size for size in target),)

    # Keras writes the shape as it was given, with -1.
    return LayerTemplate("Reshape", {"target_shape": list(target)}, infer)


@lru_cache(_CACHE)
def conv1d(
    filters: int,
    kernel_size: int,
    *,
    strides: int = 1,
    padding: Padding = "valid",
    activation: str = "linear",
    use_bias: bool = True,
) -> LayerTemplate:
    """Convolution over (steps, channels)."""
    return _conv("Conv1D", 1, filters, (kernel_size,), (strides,), padding, activation, use_bias)


@lru_cache(_CACHE)
def conv2d(
    filters: int,
    kernel_size: int | tuple[int, int],
    *,
    strides: int | tuple[int, int] = 1,
    padding: Padding = "valid",
    activation: str = "linear",
    use_bias: bool = True,
) -> LayerTemplate:
    """Convolution over (rows, columns, channels)."""
    return _conv(
        "Conv2D",
        2,
        filters,
        _pair(kernel_size),
        _pair(strides),
        padding,
        activation,
        use_bias,
    )


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _conv(
    class_name: str,
    rank: int,
    filters: int,
    kernel_size: tuple[int, ...],
    strides: tuple[int, ...],
    padding: Padding,
    activation: str,
    use_bias: bool,
) -> LayerTemplate:
    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        channels = _known(class_name, _rank(class_name, shapes[0], rank + 1))
        kernel = WeightSpec((*kernel_size, channels, filters))
        window = windows(class_name, shapes[0][:-1], kernel_size, strides, padding)
        return _with_bias((kernel,), filters, use_bias), ((*window, filters),)

    config = {
        "filters": filters,
        "kernel_size": list(kernel_size),
        "strides": list(strides),
        "padding": padding,
        "data_format": "channels_last",
        "dilation_rate": [1] * rank,
        "groups": 1,
        "activation": _function(activation),
        "use_bias": use_bias,
        "kernel_initializer": "GlorotUniform",
        "bias_initializer": "Zeros",
    }
    return LayerTemplate(class_name, config, infer)


@lru_cache(_CACHE)
def depthwise_conv2d(
    kernel_size: int | tuple[int, int],
    *,
    strides: int | tuple[int, int] = 1,
    padding: Padding = "valid",
    activation: str = "linear",
    use_bias: bool = True,
) -> LayerTemplate:
    """Convolution of each channel by itself."""
    kernel, steps = _pair(kernel_size), _pair(strides)

    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        channels = _known("DepthwiseConv2D", _rank("DepthwiseConv2D", shapes[0], 3))
        window = windows("DepthwiseConv2D", shapes[0][:-1], kernel, steps, padding)
        depthwise = WeightSpec((*kernel, channels, 1))
        return _with_bias((depthwise,), channels, use_bias), ((*window, channels),)

    config = {
        "depth_multiplier": 1,
        "kernel_size": list(kernel),
        "strides": list(steps),
        "padding": padding,
        "data_format": "channels_last",
        "dilation_rate": [1, 1],
        "activation": _function(activation),
        "use_bias": use_bias,
        "depthwise_initializer": "GlorotUniform",
        "bias_initializer": "Zeros",
    }
    return LayerTemplate("DepthwiseConv2D", config, infer)


@lru_cache(_CACHE)
def separable_conv2d(
    filters: int,
    kernel_size: int | tuple[int, int],
    *,
    strides: int | tuple[int, int] = 1,
    padding: Padding = "valid",
    activation: str = "linear",
    use_bias: bool = True,
) -> LayerTemplate:
    """Depthwise convolution, then one of 1x1 over all channels."""
    kernel, steps = _pair(kernel_size), _pair(strides)

    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        channels = _known("SeparableConv2D", _rank("SeparableConv2D", shapes[0], 3))
        window = windows("SeparableConv2D", shapes[0][:-1], kernel, steps, padding)
        kernels = (WeightSpec((*kernel, channels, 1)), WeightSpec((1, 1, channels, filters)))
        return _with_bias(kernels, filters, use_bias), ((*window, filters),)

    config = {
        "depth_multiplier": 1,
        "filters": filters,
        "kernel_size": list(kernel),
        "strides": list(steps),
        "padding": padding,
        "data_format": "channels_last",
        "dilation_rate": [1, 1],
        "activation": _function(activation),
        "use_bias": use_bias,
        "depthwise_initializer": "GlorotUniform",
        "pointwise_initializer": "GlorotUniform",
        "bias_initializer": "Zeros",
    }
    return LayerTemplate("SeparableConv2D", config, infer)


@lru_cache(_CACHE)
def max_pooling1d(
    pool_size: int = 2, *, strides: int | None = None, padding: Padding = "valid"
) -> LayerTemplate:
    """Largest value of each window of (steps, channels)."""
    return _pooling("MaxPooling1D", (pool_size,), (strides or pool_size,), padding)


@lru_cache(_CACHE)
def average_pooling1d(
    pool_size: int = 2, *, strides: int | None = None, padding: Padding = "valid"
) -> LayerTemplate:
    """Mean of each window of (steps, channels)."""
    return _pooling("AveragePooling1D", (pool_size,), (strides or pool_size,), padding)


@lru_cache(_CACHE)
def max_pooling2d(
    pool_size: int | tuple[int, int] = 2,
    *,
    strides: int | tuple[int, int] | None = None,
    padding: Padding = "valid",
) -> LayerTemplate:
    """Largest value of each window of (rows, columns, channels)."""
    return _pooling("MaxPooling2D", _pair(pool_size), _pair(strides or pool_size), padding)


@lru_cache(_CACHE)
def average_pooling2d(
    pool_size: int | tuple[int, int] = 2,
    *,
    strides: int | tuple[int, int] | None = None,
    padding: Padding = "valid",
) -> LayerTemplate:
    """Mean of each window of (rows, columns, channels)."""
    return _pooling("AveragePooling2D", _pair(pool_size), _pair(strides or pool_size), padding)


def _pooling(
    class_name: str, window: tuple[int, ...], strides: tuple[int, ...], padding: Padding
) -> LayerTemplate:
    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        shape = _rank(class_name, shapes[0], len(window) + 1)
        places = windows(class_name, shape[:-1], window, strides, padding)
        return (), ((*places, shape[-1]),)

    config = {
        "pool_size": list(window),
        "padding": padding,
        "strides": list(strides),
        "data_format": "channels_last",
    }
    return LayerTemplate(class_name, config, infer)


@lru_cache(_CACHE)
def global_average_pooling1d() -> LayerTemplate:
    """Mean over all steps of (steps, channels)."""
    return _global_pooling("GlobalAveragePooling1D", 2)


@lru_cache(_CACHE)
def global_average_pooling2d() -> LayerTemplate:
    """Mean over all places of (rows, columns, channels)."""
    return _global_pooling("GlobalAveragePooling2D", 3)


@lru_cache(_CACHE)
def global_max_pooling1d() -> LayerTemplate:
    """Largest value over all steps of (steps, channels)."""
    return _global_pooling("GlobalMaxPooling1D", 2)


@lru_cache(_CACHE)
def global_max_pooling2d() -> LayerTemplate:
    """Largest value over all places of (rows, columns, channels)."""
    return _global_pooling("GlobalMaxPooling2D", 3)


def _global_pooling(class_name: str, rank: int) -> LayerTemplate:
    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        return (), ((_rank(class_name, shapes[0], rank)[-1],),)

    config = {"data_format": "channels_last", "keepdims": False}
    return LayerTemplate(class_name, config, infer)


@lru_cache(_CACHE)
def zero_padding2d(padding: tuple[tuple[int, int], tuple[int, int]]) -> LayerTemplate:
    """Zeroes around (rows, columns): ((above, below), (left, right))."""

    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        rows, columns, channels = _rank("ZeroPadding2D", shapes[0], 3)
        padded = [
            None if size is None else before + size + after
            for size, (before, after) in zip((rows, columns), padding, strict=True)
        ]
        return (), ((*padded, channels),)

    config = {"padding": [list(pair) for pair in padding], "data_format": "channels_last"}
    return LayerTemplate("ZeroPadding2D", config, infer)


@lru_cache(_CACHE)
def embedding(input_dim: int, output_dim: int) -> LayerTemplate:
    """Vector for each integer from 0 to `input_dim` - 1."""

    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        return (WeightSpec((input_dim, output_dim)),), ((*shapes[0], output_dim),)

    config = {
        "input_dim": input_dim,
        "output_dim": output_dim,
        "embeddings_initializer": {
            "module": "keras.initializers",
            "class_name": "RandomUniform",
            "config": {"minval": -0.05, "maxval": 0.05},
        },
        "mask_zero": False,
    }
    return LayerTemplate("Embedding", config, infer)


@lru_cache(_CACHE)
def multi_head_attention(num_heads: int, key_dim: int, *, dropout: float = 0.0) -> LayerTemplate:
    """Attention of a query over (query, value): two tensors of (steps, features).

    Called as ``layer(query, value)``; add it with the same tensor twice for self-attention.
    """

    def infer(shapes: Shapes) -> tuple[tuple[WeightSpec, ...], Shapes]:
        query, value = (_rank("MultiHeadAttention", shape, 2) for shape in shapes)
        weights = []
        for features in (query, value, value):  # query, key, value
            weights.append(WeightSpec((_known("MultiHeadAttention", features), num_heads, key_dim)))
            weights.append(WeightSpec((num_heads, key_dim)))
        width = _known("MultiHeadAttention", query)
        weights.append(WeightSpec((num_heads, key_dim, width)))
        weights.append(WeightSpec((width,)))
        return tuple(weights), (query,)

    config = {
        "num_heads": num_heads,
        "key_dim": key_dim,
        "value_dim": key_dim,
        "dropout": dropout,
        "use_bias": True,
        "attention_axes": [1],
        "kernel_initializer": "GlorotUniform",
        "bias_initializer": "Zeros",
    }
    arguments = canonical_json({"args": [{"tensor": 0}, {"tensor": 1}], "kwargs": {}})
    return LayerTemplate("MultiHeadAttention", config, infer, inputs=2, arguments=arguments)
