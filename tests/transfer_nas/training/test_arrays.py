"""Networks trained in NumPy become what Keras makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_meta import GraphBuilder, LayerGraph, layers
from graph_meta.graph import Edge
from transfer_nas.applications import Application, Data
from transfer_nas.training.arrays import program
from transfer_nas.training.arrays.engine import ArrayEngine
from transfer_nas.training.arrays.layers import ACTIVATIONS
from transfer_nas.training.arrays.losses import METRICS
from transfer_nas.training.arrays.optimizers import OPTIMIZERS
from transfer_nas.training.arrays.program import ArrayTraining
from transfer_nas.training.keras_engine import KerasEngine

ROWS, BATCH = 50, 16  # a last step of two rows


def load(targets: Callable[[np.ndarray], np.ndarray]) -> Callable[[], Data]:
    def loaded() -> Data:
        rng = np.random.default_rng(3)
        x = rng.normal(size=(ROWS + 30, 2, 3)).astype(np.float32)
        y = targets(x.reshape(len(x), -1) @ rng.normal(size=(6, 3)))
        return Data(x[:ROWS], y[:ROWS], x[ROWS:], y[ROWS:])

    return loaded


TARGETS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, int]] = {
    # By loss: targets, activation and width of the last layer.
    "sparse_categorical_crossentropy": (lambda z: z.argmax(1).astype(np.int32), "softmax", 3),
    "categorical_crossentropy": (
        lambda z: np.eye(3, dtype=np.float32)[z.argmax(1)],
        "softmax",
        3,
    ),
    "binary_crossentropy": (lambda z: (z[:, :1] > 0).astype(np.float32), "sigmoid", 1),
    "mean_squared_error": (lambda z: z.astype(np.float32), "linear", 3),
    "mean_absolute_error": (lambda z: z[:, 0].astype(np.float32), "tanh", 1),
}


def application(
    loss: str = "sparse_categorical_crossentropy", metric: str | None = None, **options: object
) -> Application:
    targets, activation, units = TARGETS[loss]
    return Application(
        name="test",
        load=load(targets),
        input_shapes=[(2, 3)],
        output_units=units,
        output_activation=activation,
        loss=loss,
        metric=metric or loss,
        **options,
    )


def network(task: Application, body: Callable[[GraphBuilder, Edge], Edge]) -> LayerGraph:
    builder = GraphBuilder()
    edge = body(builder, builder.add(layers.flatten(), builder.input((2, 3))))
    head = layers.dense(task.output_units, activation=task.output_activation or "linear")
    return builder.build(builder.add(head, edge))


def dense(builder: GraphBuilder, edge: Edge) -> Edge:
    return builder.add(layers.dense(5, activation="tanh"), edge)


def both_train(
    task: Application, graph: LayerGraph, frozen: frozenset[str] = frozenset(), epochs: int = 2
) -> None:
    """Train with both engines from the same weights in the same order; compare all that is left."""
    ours, theirs = ArrayEngine(task, BATCH, epochs), KerasEngine(task, BATCH)
    assert ours.obstacle(graph) is None
    candidates = [engine.candidate(graph, seed=5) for engine in (ours, theirs)]
    start = {n: [np.array(a) for a in ts] for n, ts in candidates[0].tensors(graph.names).items()}
    candidates[1].load(start)
    found = []
    for candidate in candidates:
        training = candidate.training(frozen, epochs=epochs)
        assert training is not None
        rng = np.random.default_rng(1)
        losses = [training.epoch(rng.permutation(ROWS), 0.01) for _ in range(epochs)]
        found.append((losses, candidate.validate(), candidate.tensors(graph.names)))
    (losses, judged, weights), (keras_losses, keras_judged, keras_weights) = found
    assert losses == pytest.approx(keras_losses, rel=1e-4)
    assert judged == pytest.approx(keras_judged, rel=1e-4, abs=1e-6)
    assert weights.keys() == keras_weights.keys() == start.keys()
    for name, arrays in keras_weights.items():
        for a, b, before in zip(weights[name], arrays, start[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5, err_msg=name)
            assert np.array_equal(a, before) == (name in frozen), name


SEVERAL = [*((loss, "adam") for loss in TARGETS), *(("mean_squared_error", o) for o in OPTIMIZERS)]


@pytest.mark.parametrize(("loss", "optimizer"), SEVERAL)
def test_losses_and_optimizers(loss: str, optimizer: str) -> None:
    task = application(loss, optimizer=optimizer)
    both_train(task, network(task, dense))


@pytest.mark.parametrize("metric", METRICS)
def test_metrics(metric: str) -> None:
    loss = metric if metric in TARGETS else "mean_squared_error"
    if "categorical" in metric:
        loss = "sparse_" * metric.startswith("sparse") + "categorical_crossentropy"
    if metric == "binary_accuracy":
        loss = "binary_crossentropy"
    task = application(loss, metric)
    graph = network(task, dense)
    ours, theirs = (
        engine.candidate(graph, seed=2)
        for engine in (ArrayEngine(task, BATCH, 1), KerasEngine(task, BATCH))
    )
    theirs.load(ours.tensors(graph.names))
    assert ours.validate() == pytest.approx(theirs.validate(), rel=1e-5)


ONE = [layers.dense(6, activation=name) for name in ACTIVATIONS]
ONE += [layers.activation(name) for name in ACTIVATIONS]
ONE += [layers.batch_normalization(momentum=0.5), layers.identity(), layers.dropout(0.0)]
TWO = [layers.add(), layers.multiply(), layers.average(), layers.concatenate()]


@st.composite
def networks(draw: st.DrawFn) -> tuple[Application, LayerGraph, frozenset[str]]:
    """Any graph of the layers that are known, and any of its layers frozen."""
    task = application(draw(st.sampled_from(sorted(TARGETS))))

    def body(builder: GraphBuilder, edge: Edge) -> Edge:
        shared, other = layers.dense(6, activation="tanh"), builder.add(ONE[1], edge)
        first = builder.add(shared, edge)
        edges = [other, first, builder.call(first, shared, other)]
        for _ in range(draw(st.integers(1, 4))):
            same = [e for e in edges if builder.shape(e) == (6,)]
            if draw(st.booleans()):
                pair = [draw(st.sampled_from(same)), draw(st.sampled_from(same))]
                edges.append(builder.add(draw(st.sampled_from(TWO)), *pair))
            else:
                edges.append(builder.add(draw(st.sampled_from(ONE)), draw(st.sampled_from(edges))))
        edge = builder.add(layers.concatenate(), *edges)  # whatever was added counts
        return builder.add(layers.flatten(), builder.add(layers.reshape((2, -1)), edge))

    graph = network(task, body)
    weighted = [n for n, layer in zip(graph.names, graph.layers, strict=True) if layer.spec.weights]
    return task, graph, draw(st.frozensets(st.sampled_from(weighted[:-1])))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(networks())
def test_networks(drawn: tuple[Application, LayerGraph, frozenset[str]]) -> None:
    both_train(*drawn)


def test_what_is_not_known_is_left_to_keras() -> None:
    task = application()
    graph = network(task, dense)
    assert ArrayEngine(task, BATCH, 5).obstacle(graph) is None
    others = [
        layers.layer_normalization(),
        layers.dense(5, activation="gelu"),
        layers.activation("selu"),
    ]
    for template in others:
        strange = network(task, lambda builder, edge, t=template: builder.add(t, edge))
        assert ArrayEngine(task, BATCH, 5).obstacle(strange)
    assert ArrayEngine(task, BATCH, 10**12).obstacle(graph)  # not small
    from_logits = dataclasses.replace(task, output_activation="linear")
    assert ArrayEngine(from_logits, BATCH, 5).obstacle(network(from_logits, dense))
    assert ArrayEngine.misfit(task) is None
    for change in (
        {"optimizer": "lion"},
        {"metric": "sparse_top_k_categorical_accuracy"},
        {"loss": len},
    ):
        assert ArrayEngine.misfit(dataclasses.replace(task, **change))


def deep(builder: GraphBuilder, edge: Edge) -> Edge:
    """Two layers to freeze, the second after dropout, and one to train."""
    edge = builder.add(layers.batch_normalization(), builder.add(layers.dense(7), edge))
    edge = builder.add(layers.dense(6, activation="tanh"), edge)
    return dense(builder, builder.add(layers.dropout(0.3), edge))


class TestFrozenPrefix:
    """What is computed once gives what is computed each time."""

    @staticmethod
    def trained(
        epochs_planned: int,
    ) -> tuple[ArrayTraining, list[float], dict[str, list[np.ndarray]]]:
        task = application()
        graph = network(task, deep)
        candidate = ArrayEngine(task, BATCH, 5).candidate(graph, seed=1)
        frozen = [name for name in graph.names if name.startswith("Dense")][:2]
        frozen += [name for name in graph.names if name.startswith("Batch")]
        training = candidate.training(frozen, epochs=epochs_planned)
        assert training is not None
        rng = np.random.default_rng(0)
        losses = [training.epoch(rng.permutation(ROWS), 0.01) for _ in range(4)]
        return training, losses, dict(candidate.tensors(graph.names))

    def test_the_results_are_the_same(self) -> None:
        once, losses, weights = self.trained(epochs_planned=4)
        always, expected_losses, expected = self.trained(epochs_planned=1)  # does not pay
        assert len(once.steps) < len(always.steps)
        assert losses == pytest.approx(expected_losses, rel=1e-6)
        for name, arrays in expected.items():
            for a, b in zip(weights[name], arrays, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)

    def test_dropout_and_what_follows_it_is_computed_each_time(self) -> None:
        once, _, _ = self.trained(epochs_planned=4)
        assert [step.kind.__name__ for step in once.steps] == ["Dropout", "Dense", "Dense"]

    def test_memory_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(program, "CACHE_BYTES", 1_000)
        training, _, _ = self.trained(epochs_planned=4)
        assert len(training.steps) == 6  # all but Flatten, which costs nothing


def test_an_epoch_can_be_done_again() -> None:
    task = application()
    candidate = ArrayEngine(task, BATCH, 5).candidate(network(task, deep), seed=1)
    training = candidate.training(epochs=3)
    assert training is not None
    order = np.arange(ROWS)
    training.epoch(order, 0.01)
    before = training.state()
    losses = [training.epoch(order, 0.01) for _ in range(2)]

    training.restore(before)

    assert [training.epoch(order, 0.01) for _ in range(2)] == losses
    assert losses[0] != losses[1]


def test_initial_weights_are_drawn_as_keras_draws_them() -> None:
    """Not the same numbers: the same range, mean and variance."""
    task = application()
    graph = network(task, lambda builder, edge: builder.add(layers.dense(400), edge))
    ours, theirs = (
        engine.candidate(graph, seed=1).tensors(graph.names)
        for engine in (ArrayEngine(task, BATCH, 1), KerasEngine(task, BATCH))
    )
    for name, arrays in theirs.items():
        for a, b in zip(ours[name], arrays, strict=True):
            assert np.abs(a).max() == pytest.approx(np.abs(b).max(), rel=0.02)
            assert a.std() == pytest.approx(b.std(), rel=0.05)
            assert abs(a.mean()) < 0.05 * (a.std() + 1e-9)
