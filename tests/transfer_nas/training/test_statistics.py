"""Networks with normalizations are judged, and stored, by the statistics of their weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_meta import GraphBuilder, LayerGraph, layers
from tests.transfer_nas.test_trainer import APPLICATION, SPACE
from transfer_nas.applications import Data
from transfer_nas.training import Candidate, statistics
from transfer_nas.training.arrays.engine import ArrayEngine
from transfer_nas.training.keras_engine import KerasEngine

ROWS, BATCH = 600, 50
ENGINES = {
    "numpy": lambda task: ArrayEngine(task, BATCH, 2),
    "keras": lambda t: KerasEngine(t, BATCH),
}


def clusters() -> Data:
    """Three clouds, far from zero and from each other, sorted by class."""
    rng = np.random.default_rng(7)
    labels = np.sort(rng.integers(3, size=2 * ROWS)).astype(np.int32)
    points = 30 + 10 * rng.normal(size=(3, 6))[labels] + rng.normal(size=(2 * ROWS, 6))
    points = points.astype(np.float32)
    return Data(points[::2], labels[::2], points[1::2], labels[1::2])


TASK = dataclasses.replace(APPLICATION, load=clusters, learning_rate=1e-3)


def network(widths: Sequence[int], momentum: float, dropout: float = 0.0) -> LayerGraph:
    builder = GraphBuilder()
    edge = builder.input((6,))
    for width in widths:
        edge = builder.add(layers.dense(width, activation="relu"), edge)
        if dropout:
            edge = builder.add(layers.dropout(dropout), edge)
        edge = builder.add(layers.batch_normalization(momentum=momentum), edge)
    return builder.build(builder.add(layers.dense(3, activation="softmax"), edge))


def trained(engine: str, graph: LayerGraph, epochs: int = 1, frozen: Sequence[str] = ()) -> Any:
    candidate = ENGINES[engine](TASK).candidate(graph, seed=3)
    training = candidate.training(frozen, epochs=epochs)
    assert training is not None
    rng = np.random.default_rng(1)
    for _ in range(epochs):
        training.epoch(rng.permutation(ROWS), 0.01)
    return candidate


def normalizations(candidate: Candidate) -> dict[str, list[np.ndarray]]:
    names = [name for name in candidate.graph.names if name.startswith("BatchNormalization")]
    return {n: [np.array(a) for a in ts] for n, ts in candidate.tensors(names).items()}


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=8, deadline=None)
@given(
    widths=st.lists(st.integers(4, 24), min_size=1, max_size=3),
    momentum=st.sampled_from([0.5, 0.99, 0.999]),
    epochs=st.integers(1, 2),
)
def test_training_rows_are_judged_as_they_are_trained_on(
    engine: str, widths: list[int], momentum: float, epochs: int
) -> None:
    """Of training rows the network says, judging, what it says in a training step."""
    graph = network(widths, momentum)
    candidate = trained(engine, graph, epochs)
    candidate.renew_statistics()
    judging = candidate.predict(TASK.data.x_train)

    import keras

    from graph_meta import keras_io

    model = keras_io.to_keras(graph)
    keras_io.set_weights(model, candidate.tensors(graph.names))
    training = keras.ops.convert_to_numpy(model(TASK.data.x_train, training=True))

    np.testing.assert_allclose(judging, training, atol=0.02)
    y = TASK.data.y_train
    assert abs((judging.argmax(1) == y).mean() - (training.argmax(1) == y).mean()) < 0.01


@pytest.mark.parametrize("engine", ENGINES)
def test_a_short_training_is_not_judged_by_where_its_averages_have_come(engine: str) -> None:
    candidate = trained(engine, network([16, 16], momentum=0.99))
    rows = TASK.data
    before = (candidate.predict(rows.x_valid).argmax(1) == rows.y_valid).mean()

    (metric,) = (value for name, value in candidate.validate().items() if name != "loss")

    assert before < 0.7  # 12 steps: the averages are a tenth of the way from where they began
    assert metric > 0.95


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_statistics_stay(engine: str) -> None:
    graph = network([8, 8], momentum=0.9, dropout=0.3)
    frozen = [name for name in graph.names if name.startswith("BatchNormalization")][:1]
    candidate = trained(engine, graph, frozen=frozen)
    before = normalizations(candidate)

    candidate.validate()

    after = normalizations(candidate)
    for name, arrays in before.items():
        same = [np.array_equal(a, b) for a, b in zip(arrays, after[name], strict=True)]
        assert same == [True, True, name in frozen, name in frozen]


@pytest.mark.parametrize("engine", ENGINES)
def test_validating_between_epochs_changes_no_training(engine: str) -> None:
    ends = []
    for validates in (False, True):
        candidate = ENGINES[engine](TASK).candidate(network([8], 0.9, dropout=0.3), seed=3)
        training = candidate.training((), epochs=2)
        assert training is not None
        rng = np.random.default_rng(1)
        for _ in range(2):
            training.epoch(rng.permutation(ROWS), 0.01)
            if validates:
                candidate.validate()
        candidate.validate()
        ends.append(candidate.tensors(candidate.graph.names))
    for name, arrays in ends[0].items():
        for a, b in zip(arrays, ends[1][name], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_dropout_is_off_while_statistics_are_computed() -> None:
    graph = network([8], momentum=0.9, dropout=0.5)
    candidate = trained("numpy", graph)
    candidate.renew_statistics()
    ((gamma, beta, mean, variance),) = normalizations(candidate).values()
    (dense,) = candidate.tensors([graph.names[1]]).values()

    outputs = np.maximum(TASK.data.x_train @ dense[0] + dense[1], 0)

    assert gamma.shape == beta.shape == (8,)
    np.testing.assert_allclose(mean, outputs.mean(0), rtol=1e-4)
    np.testing.assert_allclose(variance, outputs.var(0), rtol=1e-2, atol=1e-3)


def test_the_rows_are_spread_over_all() -> None:
    for rows in (1, 7, 600, 10_000):
        chosen = statistics.batches(rows, 256)
        numbers = np.concatenate(chosen)
        assert len(set(numbers.tolist())) == len(numbers) == min(rows, 2048)
        assert numbers.min() == 0 and numbers.max() >= rows - 1 - rows // 2048
        sizes = [len(batch) for batch in chosen]
        assert max(sizes) - min(sizes) <= 1 and max(sizes) <= 2 * 256


def test_a_layer_of_ones_own_that_learns_a_statistic_is_shown_the_rows() -> None:
    import keras

    class Largest(keras.layers.Layer):  # no `momentum`: what it does is its own affair
        def build(self, shape: Any) -> None:
            self.largest = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x: Any, training: bool = False) -> Any:
            if training:
                self.largest.assign(keras.ops.maximum(self.largest, keras.ops.max(x)))
            return x / (self.largest + 1.0)

    x = TASK.data.x_train
    model = keras.Sequential(
        [keras.Input((6,)), Largest(), keras.layers.BatchNormalization(), keras.layers.Dense(3)]
    )
    call, momentum = model.layers[1].call, model.layers[1].momentum

    statistics.renew(model, [x], 100)

    assert float(model.layers[0].largest) == x.max()
    assert (model.layers[1].call, model.layers[1].momentum) == (call, momentum)
    inputs = keras.ops.convert_to_numpy(model.layers[0](x))
    mean, _ = model.layers[1].non_trainable_weights
    # The first batches went through with a smaller maximum than the last.
    np.testing.assert_allclose(keras.ops.convert_to_numpy(mean), inputs.mean(0), rtol=0.05)
    model.layers[1].trainable = False
    assert not any(statistics._keeps_statistics(layer) for layer in model.layers[1:])


def test_a_fit_of_ones_own_may_renew_them() -> None:
    from transfer_nas.job import Job
    from transfer_nas.trainer import TransferTrainer
    from transfer_nas.transfer import NoTransfer

    seen: list[float] = []

    def fit(model: Any, data: Data, context: Any) -> dict[str, float]:
        model.fit(data.x_train, data.y_train, epochs=1, batch_size=200, verbose=0)
        seen.append(model.evaluate(data.x_valid, data.y_valid, verbose=0, return_dict=True)["loss"])
        context.renew_statistics()
        found = model.evaluate(data.x_valid, data.y_valid, verbose=0, return_dict=True)
        seen.append(found["loss"])
        return found

    task = dataclasses.replace(TASK, fit=fit)
    found = TransferTrainer(task, SPACE, NoTransfer()).evaluate(Job(0, (0, 0), None, seed=1))

    assert found.status == "DONE"
    assert seen[1] < seen[0]
