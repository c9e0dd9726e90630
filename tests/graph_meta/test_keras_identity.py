"""Equal digests mean equal functions: what is inside layers, and what they have beside weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph_meta import GraphError, LayerGraph
from graph_meta.graph import LayerSpec, WeightSpec
from graph_meta.keras_io import (
    derive_state,
    from_keras,
    frozen_of,
    get_weights,
    set_weights,
    to_keras,
)

keras = pytest.importorskip("keras")
K = keras.layers
register = keras.saving.register_keras_serializable(package="tests.identity")
serialize, deserialize = (
    keras.saving.serialize_keras_object,
    keras.saving.deserialize_keras_object,
)


@register
class Residual(K.Layer):  # type: ignore[misc]
    """Adds what a block of layers, a model of its own, makes of the input."""

    def __init__(self, block: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block = block

    def build(self, shape: Any) -> None:
        self.block.build(shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return inputs + self.block(inputs, training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "block": serialize(self.block)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Residual:
        return cls(deserialize(config.pop("block")), **config)


@register
class Kernel:
    """Has a name that means something, and no from_config."""

    def __init__(self, name: str, trainable: bool = True, scale: float | None = 2.0) -> None:
        self.name, self.trainable, self.scale = name, trainable, scale

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "trainable": self.trainable, "scale": self.scale}


@register
class Feature(K.Layer):  # type: ignore[misc]
    """Applies a kernel; its from_config reads every option."""

    def __init__(self, kernel: Any, power: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel, self.power = kernel, power

    def call(self, inputs: Any, shift: float | None = 1.0) -> Any:
        scaled = inputs * (1.0 if self.kernel.scale is None else self.kernel.scale)
        scaled = -scaled if self.kernel.trainable else scaled
        shifted = scaled if shift is None else scaled + shift
        return keras.ops.exp(-(shifted**2)) if self.kernel.name == "rbf" else shifted

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kernel": serialize(self.kernel), "power": self.power}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Feature:
        return cls(deserialize(config.pop("kernel")), config.pop("power"), **config)


@register
class Codebook(K.Layer):  # type: ignore[misc]
    """Has an array and a file beside its weight, and a value that it derives from that."""

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight(shape=(), initializer="ones", name="gain")
        self.table, self.word, self.derived = np.zeros((), "float32"), "", 1.0

    def learn(self, value: float, word: str) -> Codebook:
        self.table, self.word = np.asarray(value, "float32"), word
        return self

    def call(self, inputs: Any) -> Any:
        return inputs * self.gain * self.derived + self.table + float(len(self.word))

    def compute_output_shape(self, shape: Any) -> Any:
        return shape

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        store["table"] = self.table

    def load_own_variables(self, store: Any) -> None:
        self.gain.assign(store["0"])
        self.table = np.array(store["table"])
        self.derived = 1.0 + float(keras.ops.convert_to_numpy(self.gain))

    def save_assets(self, directory: str) -> None:
        (Path(directory) / "word.txt").write_text(self.word)

    def load_assets(self, directory: str) -> None:
        self.word = (Path(directory) / "word.txt").read_text()


@register
class Secretive(K.Layer):  # type: ignore[misc]
    """Saves its weight in another form."""

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight(shape=(), initializer="ones", name="gain")

    def call(self, inputs: Any) -> Any:
        return inputs * self.gain

    def save_own_variables(self, store: Any) -> None:
        store["half"] = keras.ops.convert_to_numpy(self.gain) / 2


def after(layer: Any, shape: tuple[int, ...] = (4,), dtype: str = "float32") -> Any:
    x = keras.Input(shape, dtype=dtype)
    return keras.Model(x, layer(x))


def block(wiring: str = "deep", names: bool = False, dropout: bool = False) -> Any:
    def named(name: str) -> dict[str, str]:
        return {"name": name} if names else {}

    x = keras.Input((4,), **named("i"))
    a = K.Dense(4, activation="relu", **named("a"))
    b = K.Dense(4, activation="relu", **named("b"))
    y = b(a(x)) if wiring == "deep" else b(x)
    y = K.Add(**named("c"))([y, a(x) if wiring == "wide" else x])
    y = K.Dropout(0.5)(y) if dropout else y
    return keras.Model(x, y * 2.0, **named("inner"))


def residual(**kwargs: Any) -> Any:
    return after(Residual(block(**kwargs)))


def residual_of_residuals() -> Any:
    return after(Residual(keras.Sequential([Residual(block("wide")), K.Dense(4)])))


def over_time(inner: Any) -> Any:
    return after(K.TimeDistributed(inner), (5, 4))


def sequence_over_time(*sizes: int) -> Any:
    return over_time(keras.Sequential([keras.Input((4,)), *map(K.Dense, sizes)]))


def sequence_without_input() -> Any:
    return over_time(keras.Sequential([K.Dense(3), K.Dense(2)]))


def model_of_two_inputs() -> Any:
    a, b = keras.Input((4,)), keras.Input((4,))
    inner = keras.Model([a, b], K.Subtract()([K.Dense(3)(a), K.Dense(3)(b)]))
    return Residual2(inner)


@register
class Residual2(K.Layer):  # type: ignore[misc]
    """Calls a model of two inputs, twice."""

    def __init__(self, inner: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, inputs: Any) -> Any:
        return self.inner([inputs, 2 * inputs]) + self.inner([inputs, inputs])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "inner": serialize(self.inner)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Residual2:
        return cls(deserialize(config.pop("inner")), **config)


def frozen_inside() -> Any:
    inner = block(dropout=True)
    inner.layers[1].trainable = False
    return after(Residual(inner))


def feature(kernel: Kernel, **arguments: Any) -> Any:
    x = keras.Input((4,))
    return keras.Model(x, K.Dense(2)(Feature(kernel)(x, **arguments)))


def words(*vocabulary: str, **arguments: Any) -> Any:
    lookup = K.StringLookup(**arguments)
    lookup.adapt(np.array(vocabulary))
    x = keras.Input((1,), dtype="string")
    return keras.Model(x, K.Dense(2)(K.Flatten()(K.Embedding(5, 3)(lookup(x)))))


def counted_words(*vocabulary: str) -> Any:
    lookup = K.TextVectorization(output_mode="tf_idf")
    lookup.adapt(np.array(vocabulary))
    return after(lookup, (1,), "string")


def numbers(*values: int, mode: str = "multi_hot") -> Any:
    lookup = K.IntegerLookup(output_mode=mode)
    lookup.adapt(np.array(values))
    return after(lookup, (3,), "int32")


def vocabulary_set_again(*vocabulary: str) -> Any:
    lookup = K.StringLookup(vocabulary=["a", "b"])
    lookup.set_vocabulary(list(vocabulary))
    return after(lookup, (1,), "string")


def bins(edge: float) -> Any:
    layer = K.Discretization(num_bins=3)
    layer.adapt(np.array([0.0, 0.1, edge, 2 * edge]))
    return after(layer)


def standardized() -> Any:
    layer = K.Normalization()
    layer.adapt(np.random.default_rng(1).normal(5, 3, (50, 4)).astype("float32"))
    return after(K.TimeDistributed(layer), (3, 4))


def codebook(value: float, word: str = "word", inside: bool = False) -> Any:
    layer = Codebook()
    model = over_time(layer) if inside else after(layer)
    layer.learn(value, word)
    return model


def quantized(mode: str, make: Callable[[], Any] = residual) -> Any:
    model = make()
    model.quantize(mode)
    return model


def plain_layers() -> Any:
    x = keras.Input((6,), dtype="int32")
    y = K.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d")(K.Embedding(9, 4)(x))
    y = K.MultiHeadAttention(2, 3)(y, y)
    return keras.Model(x, K.Dense(3, activation="relu")(y))


def adapters() -> Any:
    model = after(K.TimeDistributed(K.Dense(3)), (5, 4))
    model.layers[1].layer.enable_lora(2, lora_alpha=6)
    return model


def remembering() -> Any:
    x = keras.Input(batch_shape=(2, 5, 4))
    return keras.Model(x, K.LSTM(3, stateful=True)(x))


def parts_of_keras() -> Any:
    from keras.src.applications.convnext import LayerScale
    from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

    x = keras.Input((4, 4, 3))
    return keras.Model(x, CustomScaleLayer(0.2)([LayerScale(1e-2, 3)(x), K.Dense(3)(x)]))


MODELS: dict[str, Callable[[], Any]] = {
    **{f"residual {wiring}": lambda w=wiring: residual(wiring=w) for wiring in ("deep", "wide")},
    "residual with dropout": lambda: residual(dropout=True),
    "residual of residuals": residual_of_residuals,
    "residual, frozen inside": frozen_inside,
    "two inputs": lambda: after(model_of_two_inputs()),
    **{f"over time {w}": lambda w=w: over_time(block(w)) for w in ("deep", "wide", "flat")},
    "sequence over time": lambda: sequence_over_time(4, 3),
    "other sequence over time": lambda: sequence_over_time(3, 3),
    "sequence without input": sequence_without_input,
    "rbf": lambda: feature(Kernel("rbf")),
    "linear": lambda: feature(Kernel("linear")),
    "not trained": lambda: feature(Kernel("linear", trainable=False)),
    "no scale": lambda: feature(Kernel("linear", scale=None)),
    "no shift": lambda: feature(Kernel("linear"), shift=None),
    "other shift": lambda: feature(Kernel("linear"), shift=0.5),
    "cat, dog": lambda: words("cat", "dog"),
    "red, blue": lambda: words("red", "blue"),
    "blue, a line": lambda: words("blue\nred", ""),
    "counted words": lambda: counted_words("a b", "b c"),
    "otherwise counted": lambda: counted_words("a b", "a c", "b c"),
    "numbers": lambda: numbers(7, 8, 9),
    "other numbers": lambda: numbers(7, 8, 1),
    "numbers as integers": lambda: numbers(7, 8, 9, mode="int"),
    "set again": lambda: vocabulary_set_again("a", "c"),
    "set to another": lambda: vocabulary_set_again("c", "a"),
    "bins": lambda: bins(1.0),
    "other bins": lambda: bins(1.5),
    "standardized": standardized,
    "codebook": lambda: codebook(0.0),
    "another table": lambda: codebook(2.0),
    "another word": lambda: codebook(0.0, "words"),
    "codebook inside": lambda: codebook(2.0, inside=True),
    "int8": lambda: quantized("int8", plain_layers),
    "int4": lambda: quantized("int4", plain_layers),
    "float8": lambda: quantized("float8", plain_layers),
    "int8 inside": lambda: quantized("int8"),
    "adapters": adapters,
    "remembering": remembering,
    "parts of Keras": parts_of_keras,
}


def sample(model: Any) -> Any:
    (tensor,) = model.inputs
    shape, rng = (2, *tensor.shape[1:]), np.random.default_rng(3)
    if tensor.dtype == "string":
        chosen = rng.choice(["a", "b c", "cat", "red", "blue\nred"], shape)
        return keras.ops.convert_to_tensor(chosen)
    if "int" in tensor.dtype:
        return rng.integers(0, 9, shape).astype(tensor.dtype)
    return rng.normal(size=shape).astype(tensor.dtype)


def computed(model: Any, inputs: Any) -> np.ndarray[Any, Any]:
    return np.asarray(keras.ops.convert_to_numpy(model(inputs, training=False)))


@pytest.fixture(scope="module")
def graphs() -> dict[str, LayerGraph]:
    return {name: from_keras(make()) for name, make in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name: str, graphs: dict[str, LayerGraph]) -> None:
    model = MODELS[name]()
    rng = np.random.default_rng(7)
    for weight in model.weights:
        if weight.dtype == "float32":
            weight.assign(rng.uniform(0.1, 1, weight.shape))
    derive_state(model)
    graph = from_keras(model)
    assert graph.names == graphs[name].names  # whatever the weights, and whatever was built before
    text = graph.to_json()
    assert LayerGraph.from_json(text).to_json() == text
    again = to_keras(LayerGraph.from_json(text))
    assert sorted(from_keras(again).names) == sorted(graph.names)
    set_weights(again, get_weights(model))
    inputs = sample(model)
    np.testing.assert_allclose(computed(again, inputs), computed(model, inputs), 1e-5, 1e-5)


def test_other_functions_have_other_digests(graphs: dict[str, LayerGraph]) -> None:
    by_digest: dict[frozenset[bytes], str] = {}
    for name, graph in graphs.items():
        assert by_digest.setdefault(frozenset(graph.digests), name) == name


def test_names_inside_a_model_mean_nothing(graphs: dict[str, LayerGraph]) -> None:
    assert from_keras(residual(names=True)).names == graphs["residual deep"].names
    assert from_keras(over_time(block("wide", True))).names == graphs["over time wide"].names


def test_to_freeze_a_layer_changes_nothing_and_to_freeze_a_part_of_it_does() -> None:
    model = residual(dropout=True)
    before = from_keras(model)
    model.layers[1].trainable = False
    assert from_keras(model).names == before.names
    model.layers[1].trainable = True
    model.layers[1].block.layers[1].trainable = False
    part = from_keras(model)
    assert part.names != before.names
    again = to_keras(part).layers[1]
    assert [layer.trainable for layer in again.block.layers[:3]] == [True, False, True]


def test_words_are_the_same_wherever_they_come_from() -> None:
    adapted, given = K.StringLookup(), K.StringLookup(vocabulary=["dog", "cat"])
    adapted.adapt(np.array(["cat", "dog"]))
    assert adapted.get_vocabulary() == given.get_vocabulary()
    models = [after(lookup, (1,), "string") for lookup in (adapted, given)]
    assert from_keras(models[0]).digests == from_keras(models[1]).digests
    assert given.get_config()["vocabulary"] == ["dog", "cat"]  # the user's layer is as it was


def test_a_vocabulary_in_a_file_is_what_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("dog\ncat")
    there = from_keras(after(K.StringLookup(vocabulary=str(tmp_path / "words")), (1,), "string"))
    here = from_keras(after(K.StringLookup(vocabulary=["dog", "cat"]), (1,), "string"))
    assert there.digests == here.digests


def test_a_seed_is_part_of_a_layer_if_somebody_gave_it() -> None:
    def cropped(seed: int | None) -> tuple[str, ...]:
        return from_keras(after(K.RandomCrop(6, 6, seed=seed), (8, 8, 1))).names

    assert cropped(None) == cropped(None)
    assert len({cropped(None), cropped(1), cropped(2)}) == 3


def test_seeds_and_their_states_are_no_weights() -> None:
    model = after(K.Dropout(0.5))
    before = from_keras(model)
    model(np.ones((2, 4)), training=True)
    assert from_keras(model).names == before.names
    assert get_weights(model) == {}


def test_state_that_cannot_be_told_from_weights_is_refused() -> None:
    with pytest.raises(GraphError, match=r"layer odd \(Secretive\): save_own_variables\(\) writes"):
        from_keras(after(Secretive(name="odd")))


@pytest.mark.parametrize(
    "state",
    [
        {"9": {"vocabulary": ["a"]}},
        {"x": {}},
        {"0": 3},
        {"0": {"vocabulary": ["a", "a"]}},
        {"0": {"assets": {"../../outside": ""}}},
        {"0": {"variables": {"a": {"dtype": "O", "shape": [1], "bytes": ""}}}},
        {"0": {"variables": {"a": {"dtype": "<f4", "shape": [3], "bytes": "AAAA"}}}},
    ],
)
def test_state_that_is_none_of_the_layer_is_refused(state: dict[str, Any]) -> None:
    graph = from_keras(after(K.StringLookup(vocabulary=["a"]), (1,), "string"))
    layer = graph.layers[-1]
    spec = LayerSpec(layer.spec.class_name, layer.spec.config, layer.spec.weights, state)
    changed = LayerGraph(
        [*graph.layers[:-1], layer._replace(spec=spec)], graph.inputs, graph.outputs
    )
    with pytest.raises(
        GraphError, match=r"layer StringLookup_.*: Keras refuses its state"
    ) as caught:
        to_keras(changed)
    assert "\n" not in str(caught.value)


def test_layers_that_are_called_as_if_they_were_named_are_not_believed() -> None:
    named = to_keras(from_keras(after(K.Dense(4))))
    dense = named.layers[-1]
    x = keras.Input((4,))
    other = keras.Model(x, dense(K.ReLU(name="ReLU_" + 32 * "0")(x)))
    weights = get_weights(other)
    assert list(weights) == [from_keras(other).names[-1]] != [dense.name]
    with pytest.raises(GraphError, match="is not in model"):
        set_weights(other, {dense.name: weights[from_keras(other).names[-1]]})


@register
class Shrink(K.Resizing):  # type: ignore[misc]
    """A class of the user's own on top of Keras's."""


def test_options_that_came_later_are_left_out_at_their_default() -> None:
    for kind in (K.Resizing, Shrink):
        plain, smooth = (
            from_keras(after(kind(4, 4, antialias=flag), (8, 8, 1))).layers[-1].spec
            for flag in (False, True)
        )
        assert "antialias" not in plain.config
        assert smooth.config["antialias"] is True


def test_what_is_left_out_at_its_default_is_built_so_under_other_settings() -> None:
    if keras.backend.backend() != "tensorflow":
        pytest.skip("one backend is enough")
    graph = from_keras(after(K.RandomBrightness(0.1, data_format="channels_last"), (8, 8, 3)))
    keras.config.set_image_data_format("channels_first")
    try:
        assert to_keras(graph).layers[-1].data_format == "channels_last"
    finally:
        keras.config.set_image_data_format("channels_last")


def test_what_is_trained_is_a_part_of_a_spec_and_not_of_its_name() -> None:
    specs = [LayerSpec("Custom", {}, [WeightSpec((2,), "float32", flag)]) for flag in (True, False)]
    assert specs[0] != specs[1]
    assert specs[0].key == specs[1].key
    x = keras.Input((4,))
    first, second = K.Dense(4), K.Dense(4)
    model = keras.Model(x, second(first(x)))
    first.trainable = False
    graph = from_keras(model)
    again = LayerGraph.from_json(graph.to_json())
    assert [layer.spec.weights for layer in again.layers] == [
        layer.spec.weights for layer in graph.layers
    ]
    assert again == graph


def told(layer: Any, training: bool | None, shape: tuple[int, ...] = (4,)) -> Any:
    x = keras.Input(shape)
    return keras.Model(x, layer(x, training=training))


def is_random(model: Any, training: bool | None) -> bool:
    """Whether a model gives something else each time."""
    x = np.random.default_rng(3).uniform(0.1, 1, (64, *model.inputs[0].shape[1:]))
    first, second = (keras.ops.convert_to_numpy(model(x, training=training)) for _ in range(2))
    return not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("make", "shape", "same", "other"),
    [
        (lambda: K.Dropout(0.5), (4,), [None, False], True),
        (lambda: K.BatchNormalization(), (4,), [None, False], True),
        (lambda: K.RandomFlip(), (4, 4, 1), [True], False),  # Keras's default there
    ],
)
def test_what_a_call_says_of_training_counts_where_it_changes_something(
    make: Callable[[], Any], shape: tuple[int, ...], same: list[bool | None], other: Any
) -> None:
    plain = from_keras(after(make(), shape))
    for training in same:
        assert from_keras(told(make(), training, shape)).names == plain.names
    graph = from_keras(told(make(), other, shape))
    assert graph.names[-1] != plain.names[-1]
    assert from_keras(to_keras(LayerGraph.from_json(graph.to_json()))) == graph


def noisy(inner: bool | None, outer: bool | None) -> Any:
    """A model in a model, with dropout; either call may say whether it trains."""
    given = keras.Input((4,))
    network = keras.Model(given, K.Dropout(0.5)(given, training=inner))
    return told(keras.Sequential([keras.Input((4,)), network]), outer)


@pytest.mark.parametrize("inner", [None, False, True])
@pytest.mark.parametrize("outer", [None, False, True])
def test_models_pass_on_what_a_call_says_of_training(inner: Any, outer: Any) -> None:
    model = noisy(inner, outer)
    graph = from_keras(model)
    always = inner if outer is None else outer
    direct = from_keras(told(K.Dropout(0.5), always))
    assert graph.names == direct.names
    again = to_keras(graph)
    # Keras's own fit, evaluate and predict say it for all layers, whatever a call said.
    for training in (None, True, False):
        expected = bool(always) if training is None else training
        assert is_random(model, training) is is_random(again, training) is expected


def test_training_that_is_neither_true_nor_false_is_refused() -> None:
    model = told(K.Dropout(0.5), True)
    model.layers[-1]._inbound_nodes[0].arguments.kwargs["training"] = "sometimes"
    with pytest.raises(GraphError, match="expected True, False or None as training, found str"):
        from_keras(model)


def halves() -> tuple[Any, Any]:
    """A model, and a layer of it with two layers inside that its configuration knows nothing of."""
    layer = K.MultiHeadAttention(2, 3)
    x = keras.Input((3, 4))
    return keras.Model(x, layer(x, x)), layer


def test_what_never_trains_of_a_layer_is_told_and_set() -> None:
    model, layer = halves()
    assert frozen_of(layer) == {}
    layer._query_dense.trainable = False
    layer._output_dense.bias.trainable = False
    found = frozen_of(layer)
    graph = from_keras(model)
    marked = graph.layers[-1].spec.with_start((), found)
    assert marked.key != graph.layers[-1].spec.key
    assert marked.frozen_parts == found and not marked.frozen
    layers = [*graph.layers[:-1], graph.layers[-1]._replace(spec=marked)]
    text = LayerGraph(layers, graph.inputs, graph.outputs).to_json()
    again = to_keras(LayerGraph.from_json(text))
    assert frozen_of(again.layers[-1]) == found
    assert [w.trainable for w in again.layers[-1].weights] == [w.trainable for w in layer.weights]
    assert from_keras(again).to_json() == text
    layer.trainable = False
    assert frozen_of(layer) is True


def test_a_frozen_layer_with_a_part_that_trains_is_refused() -> None:
    _, layer = halves()
    layer.trainable = False
    layer._query_dense.trainable = True
    with pytest.raises(GraphError, match=r"MultiHeadAttention\): it is frozen and some of its wei"):
        frozen_of(layer)


@pytest.mark.parametrize("frozen", [{"layers": [99]}, {"weights": [99]}, {"layers": ["a"]}])
def test_parts_that_a_layer_has_not_are_refused(frozen: dict[str, Any]) -> None:
    graph = from_keras(after(K.Dense(2)))
    spec = graph.layers[-1].spec.with_start((), frozen)
    layers = [*graph.layers[:-1], graph.layers[-1]._replace(spec=spec)]
    with pytest.raises(GraphError, match=r"layer Dense_.*: Keras refuses its state"):
        to_keras(LayerGraph(layers, graph.inputs, graph.outputs))
