"""Every layer that spaces use is the layer that Keras builds: name, weights, output shape."""

from collections.abc import Callable
from typing import Any

import pytest

from graph_meta import GraphBuilder, layers
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
