"""Keras models to layer graphs and back, on models of every make."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graph_meta import GraphBuilder, GraphError, LayerGraph, layers, prefix
from graph_meta.keras_io import from_keras, get_weights, layers_by_name, set_weights, to_keras

keras = pytest.importorskip("keras")
K = keras.layers


@keras.saving.register_keras_serializable(package="tests")
class Gate(K.Layer):  # type: ignore[misc]
    """Scales by a weight; takes an initializer, as custom layers do."""

    def __init__(self, start: Any = "ones", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start = keras.initializers.get(start)

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.gate = self.add_weight(shape=(shape[-1],), initializer=self.start)

    def call(self, inputs: Any) -> Any:
        return inputs * self.gate

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "start": keras.initializers.serialize(self.start)}


@keras.saving.register_keras_serializable(package="tests")
def half(x: Any) -> Any:
    return x / 2


@keras.saving.register_keras_serializable(package="tests")
class Split(K.Layer):  # type: ignore[misc]
    """Has two outputs."""

    def call(self, inputs: Any) -> Any:
        return inputs[:, :2], inputs[:, 2:]


@keras.saving.register_keras_serializable(package="tests")
class _Hidden(K.Layer):  # type: ignore[misc]
    def call(self, inputs: Any) -> Any:
        return -inputs


def tower(width: int = 3) -> Any:
    x = keras.Input((4,))
    return keras.Model(x, K.Dense(2)(K.Dropout(0.1)(K.Dense(width, activation="relu")(x))))


def functional() -> Any:
    x = keras.Input((6, 6, 1))
    y = K.BatchNormalization()(K.Conv2D(3, 3, kernel_regularizer=keras.regularizers.L2(0.1))(x))
    return keras.Model(x, K.Dense(2, activation="softmax")(K.Flatten()(K.ReLU()(y))))


def sequential() -> Any:
    return keras.Sequential([keras.Input((4,)), K.Dense(3), K.Activation(half), K.Dense(2)])


def several_inputs_and_outputs() -> Any:
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    joined = K.Concatenate()([K.Dense(3)(a), K.Dense(5)(b)])
    return keras.Model({"a": a, "b": b}, {"x": K.Dense(1)(joined), "y": K.Dense(2)(joined)})


def shared_layer() -> Any:
    a, b = keras.Input((4,)), keras.Input((4,))
    shared = K.Dense(3)
    return keras.Model([a, b], K.Subtract()([shared(a), shared(b)]))


def nested_model() -> Any:
    x = keras.Input((4,))
    return keras.Model(x, K.Dense(1)(tower()(x, training=False)))


def nested_model_called_twice() -> Any:
    a, b = keras.Input((4,)), keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), K.Dense(3), tower_on(3)])
    return keras.Model([a, b], K.Add()([inner(a), inner(b)]))


def tower_on(width: int) -> Any:
    x = keras.Input((width,))
    return keras.Model(x, K.Dense(2)(x) + 1.0)


def nested_with_several_inputs() -> Any:
    a, b = keras.Input((2,)), keras.Input((2,))
    inner = keras.Model({"p": a, "q": b}, K.Subtract()([a, b]))
    x = keras.Input((2,))
    return keras.Model(x, inner({"q": K.Dense(2)(x), "p": x}))


def attention_with_keywords() -> Any:
    x, y = keras.Input((5, 4)), keras.Input((3, 4))
    attended = K.MultiHeadAttention(2, 3)(x, y, key=y)
    return keras.Model([x, y], K.LayerNormalization()(attended + x))


def operations() -> Any:
    x = keras.Input((6,))
    y = K.Dense(6)(x)
    z = keras.ops.mean((x * 2.0 + y)[:, 1:4], axis=1, keepdims=True)
    return keras.Model(x, keras.ops.concatenate([z, keras.ops.relu(y)], axis=-1))


def custom_layers() -> Any:
    x = keras.Input((4,))
    left, right = Split()(Gate(start=keras.initializers.Constant(2.0))(x))
    return keras.Model(x, _Hidden()(Gate()(right) - left))


def wrapped_layers() -> Any:
    x = keras.Input((5, 4))
    y = K.TimeDistributed(K.Dense(3, activation="tanh"))(x)
    return keras.Model(x, K.Bidirectional(K.LSTM(2))(y))


def states_as_tensors() -> Any:
    x = keras.Input((5, 4))
    y, h, c = K.LSTM(3, return_state=True, return_sequences=True)(x)
    return keras.Model(x, K.LSTM(3)(y, initial_state=[h, c]))


def masked_sequence() -> Any:
    x = keras.Input((6,), dtype="int32")
    y = K.LSTM(3, return_sequences=True)(K.Embedding(9, 4, mask_zero=True)(x))
    return keras.Model(x, K.GlobalAveragePooling1D()(K.Dropout(0.5)(y)))


def twins() -> Any:
    x = keras.Input((4,))
    a, b = K.Dense(3)(x), K.Dense(3)(x)
    return keras.Model(x, K.Subtract()([K.Dense(2)(b), K.Dense(2, activation="relu")(a)]))


def mixed_precision() -> Any:
    x = keras.Input((4,))
    return keras.Model(x, K.Dense(2, dtype="bfloat16")(K.Dense(3, dtype="mixed_bfloat16")(x)))


ZOO: list[Callable[[], Any]] = [
    functional,
    sequential,
    several_inputs_and_outputs,
    shared_layer,
    nested_model,
    nested_model_called_twice,
    nested_with_several_inputs,
    attention_with_keywords,
    operations,
    custom_layers,
    wrapped_layers,
    states_as_tensors,
    masked_sequence,
    twins,
    mixed_precision,
]


def sample_inputs(model: Any) -> Any:
    rng = np.random.default_rng(3)
    arrays = []
    for tensor in model.inputs:
        shape = (2, *tensor.shape[1:])
        integers = "int" in tensor.dtype
        array = rng.integers(0, 9, shape) if integers else rng.normal(size=shape)
        arrays.append(array.astype(tensor.dtype))
    return arrays


def call(model: Any, inputs: Any) -> list[np.ndarray[Any, Any]]:
    if not isinstance(model, keras.Sequential) and isinstance(model.input, dict):
        inputs = dict(zip(sorted(model.input), inputs, strict=True))
    elif len(inputs) == 1:
        inputs = inputs[0]
    outputs = keras.tree.flatten(model(inputs, training=False))
    return [np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(o, "float32"))) for o in outputs]


@pytest.mark.parametrize("make", ZOO, ids=lambda make: make.__name__)
def test_there_and_back(make: Callable[[], Any]) -> None:
    model = make()
    graph = from_keras(model)
    again = to_keras(graph)

    back = from_keras(again)
    assert sorted(back.names) == sorted(graph.names)
    assert sorted(back.digests) == sorted(graph.digests)
    assert {layer.name for layer in again.layers} <= set(graph.names)
    assert sorted(from_keras(make()).names) == sorted(graph.names)
    assert LayerGraph.from_json(graph.to_json()) == graph

    inputs = sample_inputs(model)
    weights = get_weights(model)
    assert sum(a.nbytes for arrays in weights.values() for a in arrays) == graph.nbytes
    assert graph.parameters == model.count_params()
    set_weights(again, weights)
    for ours, theirs in zip(call(again, inputs), call(model, inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_model_of_a_graph_survives_its_file(tmp_path: Any) -> None:
    model = to_keras(from_keras(custom_layers()), name="again")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert from_keras(loaded).names == from_keras(model).names
    inputs = sample_inputs(model)
    np.testing.assert_array_equal(call(loaded, inputs)[0], call(model, inputs)[0])


def test_nested_models_are_part_of_the_one_graph() -> None:
    x = keras.Input((4,))
    flat = K.Dense(2)(K.Dropout(0.1)(K.Dense(3, activation="relu")(x)))
    flat_graph = from_keras(keras.Model(x, K.Dense(1)(flat)))
    assert from_keras(nested_model()).names == flat_graph.names
    assert prefix(flat_graph, from_keras(tower())) == list(flat_graph.names[:4])


def test_a_shared_layer_is_one_layer_with_several_calls() -> None:
    graph = from_keras(nested_model_called_twice())
    assert sorted(len(layer.calls) for layer in graph.layers) == [1, 1, 1, 2, 2, 2]
    assert graph.parameters == 4 * 3 + 3 + 3 * 2 + 2


def test_names_and_trainable_change_nothing() -> None:
    model = functional()
    before = from_keras(model)
    for layer in model.layers:
        layer.trainable = False
    assert from_keras(model).names == before.names


def test_a_deep_model_does_not_exhaust_the_stack() -> None:
    x = y = keras.Input((1,))
    for _ in range(600):
        y = K.Identity()(y)
    graph = from_keras(keras.Model(x, y))
    assert len(graph) == 601


class Unregistered(K.Layer):  # type: ignore[misc]
    def call(self, inputs: Any) -> Any:
        return inputs


@keras.saving.register_keras_serializable(package="tests")
class Opaque(K.Layer):  # type: ignore[misc]
    """Keeps an object that has no stable form."""

    def __init__(self, thing: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.thing = thing

    def call(self, inputs: Any) -> Any:
        return inputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "thing": self.thing}


class Subclassed(keras.Model):  # type: ignore[misc]
    def call(self, inputs: Any) -> Any:
        return inputs


def one_layer(layer: Any) -> Any:
    x = keras.Input((4,))
    return keras.Model(x, layer(x))


def feeding_itself() -> Any:
    x = keras.Input((4,))
    dense = K.Dense(4, name="loop")
    return keras.Model(x, dense(K.ReLU()(dense(x))))


def sharing_a_weight() -> Any:
    x = keras.Input((5, 4))
    inner = K.Dense(4, name="inner")
    return keras.Model(x, K.TimeDistributed(inner, name="outer")(inner(x)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: one_layer(K.Lambda(lambda x: x, name="fn")), r"layer fn \(Lambda\).*register"),
        (lambda: one_layer(Unregistered(name="mine")), r"layer mine .*Unregistered is not regist"),
        (
            lambda: one_layer(K.Activation(lambda x: x, name="act")),
            r"layer act \(Activation\).*lambda.*register",
        ),
        (
            lambda: one_layer(K.Dense(3, activation=call, name="act")),
            r"layer act \(Dense\)\.activation: the function call is not registered",
        ),
        (lambda: one_layer(Opaque(object(), name="odd")), r"layer odd \(Opaque\).*register"),
        (
            lambda: one_layer(Opaque(repr(object()), name="odd")),
            r"layer odd \(Opaque\).*address of an object",
        ),
        (feeding_itself, r"layer (loop|re_lu\w*) .*called on its own output"),
        (sharing_a_weight, r"layer (inner and layer outer|outer and layer inner) share the weight"),
        (Subclassed, r"has no layer graph.*keras\.Model\(inputs, outputs\)"),
        (lambda: keras.Sequential([K.Dense(1)]), "is not built"),
    ],
)
def test_what_cannot_be_named_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        from_keras(make())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"class":"Dense"', '"class":"Desne"'), r"layer Desne_.*no class 'Desne'"),
        (('"class":"Dense"', '"class":"os>system"'), r"layer system_.*no class 'os>system'"),
        (('"class":"Dense"', '"class":"ops.nowhere>A"'), r"no class 'ops.nowhere>A'"),
        (('"units":2', '"unitz":2'), r"layer Dense_.*Keras refuses its configuration"),
        (("[[3,2],", "[[3,4],"), r"layer Dense_.*the graph says its weights are"),
        (('"batch_shape":[null,4]', '"batch_shape":[null]'), r"layer Dense_.*cannot call it"),
        (
            ('"outputs":[[3,0,0]]', '"outputs":[[3,0,9]]'),
            r"layer Dense_.*its output 9, but it has 1",
        ),
        (
            ('"inputs":[[0,0,0]]}', '"inputs":[[0,0,0]],"arguments":{"args":[{"tensor":4}]}}'),
            r"layer Dense_.*cannot call it",
        ),
    ],
)
def test_a_graph_that_keras_cannot_build_is_refused(change: tuple[str, str], message: str) -> None:
    text = from_keras(tower()).to_json()
    assert change[0] in text
    with pytest.raises(GraphError, match=message):
        to_keras(LayerGraph.from_json(text.replace(*change)))


@pytest.mark.parametrize("changed", [0, 1, 2, 3])
def test_with_the_weights_of_the_prefix_it_computes_the_same(changed: int) -> None:
    """Though projections of one anchor are twins, none is mistaken for another."""

    def skips(*widths: int) -> LayerGraph:
        builder = GraphBuilder()
        anchor = x = builder.input((4,))
        for width in widths:
            x = builder.add(layers.dense(width, activation="tanh"), x)
            x = builder.add(layers.add(), x, builder.add(layers.dense(width), anchor))
        return builder.build(x)

    parent_graph = skips(5, 5, 5, 5)
    child_graph = skips(*(5 + (i == changed) for i in range(4)))
    shared = prefix(child_graph, parent_graph)
    assert len(shared) >= 1 + 3 * changed
    parent, child = to_keras(parent_graph), to_keras(child_graph)
    weights = get_weights(parent)
    set_weights(child, {name: weights[name] for name in shared if name in weights})
    inputs = sample_inputs(parent)
    for name in shared:
        theirs, ours = (
            call(keras.Model(model.inputs, model.get_layer(name).output), inputs)[0]
            for model in (parent, child)
        )
        np.testing.assert_array_equal(ours, theirs)


def test_weights_are_set_all_or_none() -> None:
    model = to_keras(from_keras(tower()))
    before = get_weights(model)
    name, other = list(before)
    good = [np.zeros_like(array) for array in before[name]]
    with pytest.raises(GraphError, match="layer Dense_0 is not in model"):
        set_weights(model, {name: good, "Dense_0": []})
    with pytest.raises(GraphError, match=rf"layer {other} has weights of shapes"):
        set_weights(model, {name: good, other: good})
    for key, arrays in get_weights(model).items():
        for ours, theirs in zip(arrays, before[key], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert list(layers_by_name(model)) == list(from_keras(model).names)
