"""Every layer that spaces use is the layer that Keras builds: name, weights, output shape."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from graph_meta import GraphBuilder, GraphError, LayerSpec, layers
from graph_meta.keras_io import from_keras, to_keras
from graph_meta.layers import LayerTemplate

keras = pytest.importorskip("keras")

Pair = tuple[LayerTemplate, Callable[[], Any], tuple[tuple[int, ...], ...]]
IMAGE, STEPS, VECTOR = (9, 8, 4), (7, 4), (6,)

PAIRS: dict[str, Pair] = {
    "dense": (layers.dense(4), lambda: keras.layers.Dense(4), (VECTOR,)),
    "dense on steps": (
        layers.dense(4, activation="relu", use_bias=False),
        lambda: keras.layers.Dense(4, activation="relu", use_bias=False),
        (STEPS,),
    ),
    "activation": (layers.activation("swish"), lambda: keras.layers.Activation("swish"), (VECTOR,)),
    "dropout": (layers.dropout(0.25), lambda: keras.layers.Dropout(0.25), (VECTOR,)),
    "identity": (layers.identity(), lambda: keras.layers.Identity(), (VECTOR,)),
    "batch_normalization": (
        layers.batch_normalization(momentum=0.9),
        lambda: keras.layers.BatchNormalization(momentum=0.9),
        (IMAGE,),
    ),
    "layer_normalization": (
        layers.layer_normalization(epsilon=1e-6),
        lambda: keras.layers.LayerNormalization(epsilon=1e-6),
        (STEPS,),
    ),
    "add": (layers.add(), lambda: keras.layers.Add(), (VECTOR, VECTOR, VECTOR)),
    "multiply": (layers.multiply(), lambda: keras.layers.Multiply(), (IMAGE, IMAGE)),
    "average": (layers.average(), lambda: keras.layers.Average(), (STEPS, STEPS)),
    "concatenate": (
        layers.concatenate(),
        lambda: keras.layers.Concatenate(),
        ((3, 2), (3, 5)),
    ),
    "flatten": (layers.flatten(), lambda: keras.layers.Flatten(), (IMAGE,)),
    "reshape": (layers.reshape((12, -1)), lambda: keras.layers.Reshape((12, -1)), (IMAGE,)),
    "conv1d": (layers.conv1d(3, 3), lambda: keras.layers.Conv1D(3, 3), (STEPS,)),
    "conv1d causal": (
        layers.conv1d(3, 2, strides=2, padding="causal", activation="relu"),
        lambda: keras.layers.Conv1D(3, 2, strides=2, padding="causal", activation="relu"),
        (STEPS,),
    ),
    "conv2d": (layers.conv2d(3, (3, 2)), lambda: keras.layers.Conv2D(3, (3, 2)), (IMAGE,)),
    "conv2d same": (
        layers.conv2d(3, 3, strides=2, padding="same", use_bias=False),
        lambda: keras.layers.Conv2D(3, 3, strides=2, padding="same", use_bias=False),
        (IMAGE,),
    ),
    "depthwise_conv2d": (
        layers.depthwise_conv2d(3, strides=2),
        lambda: keras.layers.DepthwiseConv2D(3, strides=2),
        (IMAGE,),
    ),
    "separable_conv2d": (
        layers.separable_conv2d(5, 3, padding="same", activation="relu"),
        lambda: keras.layers.SeparableConv2D(5, 3, padding="same", activation="relu"),
        (IMAGE,),
    ),
    "max_pooling1d": (layers.max_pooling1d(2), lambda: keras.layers.MaxPooling1D(2), (STEPS,)),
    "average_pooling1d": (
        layers.average_pooling1d(3, strides=1, padding="same"),
        lambda: keras.layers.AveragePooling1D(3, strides=1, padding="same"),
        (STEPS,),
    ),
    "max_pooling2d": (
        layers.max_pooling2d(3, strides=2, padding="same"),
        lambda: keras.layers.MaxPooling2D(3, strides=2, padding="same"),
        (IMAGE,),
    ),
    "average_pooling2d": (
        layers.average_pooling2d((2, 1)),
        lambda: keras.layers.AveragePooling2D((2, 1)),
        (IMAGE,),
    ),
    "global_average_pooling1d": (
        layers.global_average_pooling1d(),
        lambda: keras.layers.GlobalAveragePooling1D(),
        (STEPS,),
    ),
    "global_average_pooling2d": (
        layers.global_average_pooling2d(),
        lambda: keras.layers.GlobalAveragePooling2D(),
        (IMAGE,),
    ),
    "global_max_pooling1d": (
        layers.global_max_pooling1d(),
        lambda: keras.layers.GlobalMaxPooling1D(),
        (STEPS,),
    ),
    "global_max_pooling2d": (
        layers.global_max_pooling2d(),
        lambda: keras.layers.GlobalMaxPooling2D(),
        (IMAGE,),
    ),
    "zero_padding2d": (
        layers.zero_padding2d(((1, 2), (0, 3))),
        lambda: keras.layers.ZeroPadding2D(((1, 2), (0, 3))),
        (IMAGE,),
    ),
    "embedding": (layers.embedding(10, 3), lambda: keras.layers.Embedding(10, 3), (VECTOR,)),
    "multi_head_attention": (
        layers.multi_head_attention(2, 3, dropout=0.1),
        lambda: keras.layers.MultiHeadAttention(2, 3, dropout=0.1),
        (STEPS, (5, 6)),
    ),
}


def test_every_layer_of_the_module_is_compared() -> None:
    functions = {
        name
        for name, value in vars(layers).items()
        if hasattr(value, "cache_info") and not name.startswith("_")
    }
    assert {name.split()[0] for name in PAIRS} | {"input_layer"} == functions


#: Operations for one row, by hand.
FLOPS = {
    "dense": 2 * 6 * 4 + 4,
    "dense on steps": 7 * (2 * 4 * 4 + 4),
    "activation": 6,
    "dropout": 0,
    "identity": 0,
    "batch_normalization": 2 * 9 * 8 * 4,
    "layer_normalization": 7 * 7 * 4,
    "add": 2 * 6,
    "multiply": 9 * 8 * 4,
    "average": 2 * 7 * 4,
    "concatenate": 0,
    "flatten": 0,
    "reshape": 0,
    "conv1d": 5 * 3 * (2 * 3 * 4 + 1),
    "conv1d causal": 4 * 3 * (2 * 2 * 4 + 1 + 1),
    "conv2d": 7 * 7 * 3 * (2 * 3 * 2 * 4 + 1),
    "conv2d same": 5 * 4 * 3 * (2 * 3 * 3 * 4),
    "depthwise_conv2d": 4 * 3 * 4 * (2 * 3 * 3 + 1),
    "separable_conv2d": 9 * 8 * (4 * 2 * 3 * 3 + 5 * (2 * 4 + 1 + 1)),
    "max_pooling1d": 3 * 4 * 2,
    "average_pooling1d": 7 * 4 * 3,
    "max_pooling2d": 5 * 4 * 4 * 9,
    "average_pooling2d": 4 * 8 * 4 * 2,
    "global_average_pooling1d": 7 * 4,
    "global_average_pooling2d": 9 * 8 * 4,
    "global_max_pooling1d": 7 * 4,
    "global_max_pooling2d": 9 * 8 * 4,
    "zero_padding2d": 0,
    "embedding": 0,
    # 2 heads of 3; 7 queries of 4 numbers, 5 values of 6
    "multi_head_attention": 2 * 2 * (7 * 4 * 3 + 2 * 5 * 6 * 3 + 7 * 5 * 6 + 7 * 3 * 4)
    + (2 * (7 * 3 + 5 * 6) + 7 * 4)
    + 2 * (7 * 3 + 7 * 5),
}


@pytest.mark.parametrize("name", PAIRS)
def test_flops_are_those_counted_by_hand_and_parameters_those_of_keras(name: str) -> None:
    template, make, shapes = PAIRS[name]
    builder = GraphBuilder()
    edges = [builder.input(shape) for shape in shapes]
    result = builder.add(template, *edges)
    # What comes behind a layer costs what its output's shape says: one operation a number.
    behind = builder.build(builder.add(layers.activation("relu"), result))
    assert behind.flops == FLOPS[name] + math.prod(int(n or 0) for n in builder.shape(result))

    layer = make()
    inputs = [keras.Input(shape) for shape in shapes]
    layer(*inputs) if template.arguments is not None else layer(inputs if inputs[1:] else inputs[0])
    assert behind.parameters == layer.count_params()


PROFILED = ("dense", "conv2d", "conv2d same", "depthwise_conv2d", "add", "multiply",
            "max_pooling2d", "average_pooling2d")  # fmt: skip


@pytest.mark.parametrize("name", PROFILED)
def test_flops_are_those_of_tensorflows_profiler(name: str) -> None:
    tf = pytest.importorskip("tensorflow")
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2 as constants,
    )

    if keras.backend.backend() != "tensorflow":
        pytest.skip("traces a model of TensorFlow's")
    template, make, shapes = PAIRS[name]
    builder = GraphBuilder()
    graph = builder.build(builder.add(template, *(builder.input(shape) for shape in shapes)))
    layer = make()
    inputs = [keras.Input(shape) for shape in shapes]
    model = keras.Model(inputs, layer(inputs if len(inputs) > 1 else inputs[0]))
    traced = tf.function(lambda *x: model(list(x) if len(x) > 1 else x[0])).get_concrete_function(
        *(tf.TensorSpec((1, *shape), "float32") for shape in shapes)
    )
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation())
    counted = profiler.profile(
        constants(traced).graph, options=options.with_empty_output().build()
    ).total_float_ops
    assert graph.flops == counted


def test_flops_of_shared_layers_count_each_call_and_unknown_ones_are_named() -> None:
    builder = GraphBuilder()
    a, b = builder.input((4,)), builder.input((4,))
    shared = layers.dense(4, use_bias=False)
    first = builder.add(shared, a)
    second = builder.call(first, shared, b)
    graph = builder.build(builder.add(layers.add(), first, second))
    assert (graph.flops, graph.parameters) == (2 * 2 * 16 + 4, 16)

    builder = GraphBuilder()
    own = LayerSpec("package>Own", {})
    graph = builder.build(builder.add(own, builder.input((4,))))
    with pytest.raises(GraphError, match="FLOPs of layers of class package>Own are not known"):
        _ = graph.flops
    builder = GraphBuilder()
    graph = builder.build(builder.add(layers.conv1d(2, 1), builder.input((None, 4))))
    with pytest.raises(
        GraphError, match=r"Conv1D: expected inputs of known sizes, found \(None, 4"
    ):
        _ = graph.flops


@pytest.mark.parametrize("name", PAIRS)
def test_a_template_is_the_layer_that_keras_builds(name: str) -> None:
    template, make, shapes = PAIRS[name]
    dtype = "int32" if name == "embedding" else "float32"
    builder = GraphBuilder()
    edges = [builder.input(shape, dtype) for shape in shapes]
    result = builder.add(template, *edges)
    graph = builder.build(result)

    inputs = [keras.Input(shape, dtype=dtype) for shape in shapes]
    if template.arguments is not None:
        output = make()(*inputs)
    else:
        output = make()(inputs if len(inputs) > 1 else inputs[0])
    theirs = from_keras(keras.Model(inputs, output))

    assert graph.layers[-1].spec.config == theirs.layers[-1].spec.config
    assert graph.layers[-1].spec.weights == theirs.layers[-1].spec.weights
    assert graph.layers[-1].calls == theirs.layers[-1].calls
    assert graph.names == theirs.names
    assert builder.shape(result) == tuple(output.shape[1:])
    assert from_keras(to_keras(graph)).names == graph.names
