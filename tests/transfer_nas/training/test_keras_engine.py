"""Our loop on TensorFlow against Keras' own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from graph_meta import keras_io
from transfer_nas.applications import Application, Data
from transfer_nas.training import growth
from transfer_nas.training.frozen_prefix import FrozenPrefixes
from transfer_nas.training.keras_engine import FitLoop, KerasLoop

ROWS = 200
OPTIMIZERS = (
    ("Adam", {}),  # small weights as one vector
    ("SGD", {"momentum": 0.9, "clipvalue": 0.1}),
    ("AdamW", {"weight_decay": 0.1, "clipnorm": 1.0}),  # each weight by itself
    ("Lamb", {}),
)


def tensorflow_loop(data: Data, batch_size: int) -> KerasLoop:
    import keras

    if keras.backend.backend() != "tensorflow":
        pytest.skip("a loop for TensorFlow")
    from transfer_nas.training.tensorflow_loop import TensorFlowLoop

    return TensorFlowLoop(task(data), batch_size, FrozenPrefixes(data, batch_size))


def fit_loop(data: Data, batch_size: int) -> KerasLoop:
    return FitLoop(task(data), batch_size, FrozenPrefixes(data, batch_size))


def task(data: Data) -> Application:
    return Application(
        name="clusters",
        load=lambda: data,
        input_shapes=6,
        output_units=3,
        output_activation="softmax",
        loss="sparse_categorical_crossentropy",
        metric="accuracy",
        metrics=("auc",),
    )


def clusters() -> Data:
    """Three clouds of points that a straight line does not quite tell apart."""
    rng = np.random.default_rng(7)
    labels = rng.integers(3, size=260).astype(np.int32)
    centres = rng.normal(size=(3, 6))
    points = (centres[labels] + 0.6 * rng.normal(size=(260, 6))).astype(np.float32)
    return Data(points[:ROWS], labels[:ROWS], points[ROWS:], labels[ROWS:])


def make_model(seed: int, optimizer: str = "Adam", **options: object) -> Any:
    import keras

    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.layers.Input((6,)),
            keras.layers.Dense(8, "tanh", kernel_regularizer=keras.regularizers.L2(0.01)),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(9_000, "relu"),  # a large weight
            keras.layers.Dense(3, "softmax", kernel_constraint=keras.constraints.UnitNorm()),
        ]
    )
    model.compile(
        getattr(keras.optimizers, optimizer)(0.01, **options),
        loss="sparse_categorical_crossentropy",
        metrics=["sparse_categorical_accuracy"],
    )
    return model


def train(loop: KerasLoop, model: Any, epochs: int) -> list[float]:
    from graph_meta import keras_io

    training = loop.training(model, keras_io.from_keras(model))
    rng = np.random.default_rng(0)
    return [training.epoch(rng.permutation(ROWS), 0.01) for _ in range(epochs)]


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS)
def test_both_train_and_judge_alike(optimizer: str, options: dict[str, object]) -> None:
    data = clusters()
    results = []
    for loop in (tensorflow_loop(data, 48), fit_loop(data, 48)):
        model = make_model(3, optimizer, **options)
        start = model.get_weights()
        losses = train(loop, model, 2)
        results.append((model.get_weights(), losses, loop.validate(model)))
    (weights, losses, judged), (expected_weights, expected_losses, expected) = results
    for a, b, before in zip(weights, expected_weights, start, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
        assert not np.array_equal(a, before)
    assert losses == pytest.approx(expected_losses, rel=1e-3)
    assert judged == pytest.approx(expected, rel=1e-3)


def test_each_row_counts_once_an_epoch() -> None:
    """200 rows in steps of 48: a last step of 8 rows is not dropped and not padded."""
    import keras

    from graph_meta import keras_io

    data = clusters()
    loop = tensorflow_loop(data, 48)
    seen = []

    @keras.saving.register_keras_serializable("test")
    class Watch(keras.layers.Layer):
        def call(self, inputs):  # type: ignore[no-untyped-def]
            import tensorflow as tf

            tf.py_function(lambda x: seen.append(x.numpy()), [inputs], [])
            return inputs

    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(3)(Watch()(inputs)))
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    training = loop.training(model, keras_io.from_keras(model))
    order = np.random.default_rng(0).permutation(ROWS)
    training.epoch(order, 0.01)
    seen = [rows for rows in seen if len(rows)]
    assert [len(rows) for rows in seen] == [48, 48, 48, 48, 8]
    np.testing.assert_array_equal(np.concatenate(seen), data.x_train[order])


@pytest.mark.parametrize("make_loop", [tensorflow_loop, fit_loop])
def test_an_epoch_can_be_done_again(make_loop: Any) -> None:
    from graph_meta import keras_io

    model = make_model(3)
    training = make_loop(clusters(), 48).training(model, keras_io.from_keras(model))
    order = np.arange(ROWS)
    training.epoch(order, 0.01)
    before = training.state()
    losses = [training.epoch(order, 0.01) for _ in range(2)]

    training.restore(before)

    assert [training.epoch(order, 0.01) for _ in range(2)] == pytest.approx(losses, rel=1e-5)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


VECTOR, SEQUENCE, IMAGE, VOLUME = (4,), (4, 4), (4, 4, 4), (4, 4, 4, 4)
NORMALIZED = {"scale": (True, False), "center": (True, False), "axis": (-1, 1)}
BIASED = {"use_bias": (True, False)}
# Shapes are such that arrays of other meanings fit.
OPTIONS: dict[str, tuple[tuple[int, ...], dict[str, Any], dict[str, tuple[Any, ...]]]] = {
    "Dense": (VECTOR, {"units": 4}, BIASED | {"activation": ("relu", "tanh")}),
    "Conv1D": (SEQUENCE, {"filters": 4, "kernel_size": 4}, BIASED | {"groups": (1, 2, 4)}),
    "Conv2D": (IMAGE, {"filters": 4, "kernel_size": 4}, BIASED | {"groups": (1, 2)}),
    "Conv3D": (VOLUME, {"filters": 4, "kernel_size": 2}, BIASED),
    "Conv2DTranspose": (IMAGE, {"filters": 4, "kernel_size": 4}, BIASED),
    "DepthwiseConv2D": (IMAGE, {"kernel_size": 4}, BIASED | {"depth_multiplier": (1, 4)}),
    "SeparableConv2D": (IMAGE, {"filters": 4, "kernel_size": 1}, BIASED),
    "SimpleRNN": (SEQUENCE, {"units": 4}, BIASED | {"activation": ("relu", "tanh")}),
    "LSTM": (SEQUENCE, {"units": 4}, BIASED | {"go_backwards": (False, True)}),
    "GRU": (SEQUENCE, {"units": 4}, BIASED | {"reset_after": (True, False)}),
    "BatchNormalization": (IMAGE, {}, NORMALIZED),
    "LayerNormalization": (IMAGE, {}, NORMALIZED | {"axis": (-1, 1, [1, 2])}),
    "GroupNormalization": (IMAGE, {"groups": 2}, NORMALIZED),
    "RMSNormalization": (IMAGE, {}, {"axis": (-1, 1), "epsilon": (1e-3, 1e-6)}),
    "PReLU": (SEQUENCE, {}, {"shared_axes": (None, [1], [2])}),
    "EinsumDense": (VECTOR, {"output_shape": 4}, {"equation": ("ab,bc->ac", "ab,cb->ac")}),
    "Attention": (SEQUENCE, {}, {"use_scale": (True, False)}),
}
OTHER_MEANING = ("axis", "groups", "reset_after", "equation", "depth_multiplier")


def values(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for chosen in itertools.product(*config.values()):
        yield dict(zip(config, chosen, strict=True))


@pytest.mark.parametrize("name", OPTIONS)
def test_weights_grow_from_those_that_mean_the_same(name: str) -> None:
    """Whatever options the two layers have; what each weight is, Keras' name for it says."""
    import keras

    shape, fixed, options = OPTIONS[name]
    made = []
    for chosen in values(options):
        given = keras.Input(shape)
        layer = getattr(keras.layers, name)(**fixed, **chosen)
        output = layer([given, given] if name == "Attention" else given)
        graph = keras_io.from_keras(keras.Model(given, output))
        made.append((chosen, graph, [weight.name for weight in layer.weights]))
    grown_ones = 0
    for (before, ancestor, named), (after, child, wanted) in itertools.permutations(made, 2):
        mark = {weight: number + 3.0 for number, weight in enumerate(named)}
        weights = zip(named, ancestor.layers[-1].spec.weights, strict=True)
        tensors = {ancestor.names[-1]: [np.full(w.shape, mark[n], np.float32) for n, w in weights]}
        grown = growth.grow(child, ancestor, tensors, np.random.default_rng(0))
        if any(before.get(option) != after.get(option) for option in OTHER_MEANING):
            assert not grown, (before, after)
        for array, weight in zip(grown.get(child.names[-1], ()), wanted, strict=bool(grown)):
            expected = mark.get(weight, float(weight in ("gamma", "moving_variance")))
            np.testing.assert_allclose(array, expected, rtol=1e-6, err_msg=f"{before} {after}")
        grown_ones += bool(grown)
    assert grown_ones or name in ("PReLU", "EinsumDense", "Attention")
