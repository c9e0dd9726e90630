"""Losses, metrics, optimizers and weights in all the forms that they may be given in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from transfer_nas.applications import Application, Data
from transfer_nas.errors import ApplicationError
from transfer_nas.job import Evaluation, Job
from transfer_nas.trainer import TransferTrainer
from transfer_nas.training.keras_engine import KerasEngine
from transfer_nas.transfer import NoTransfer

from .test_resumption import APPLICATION, Small

SPACE = Small([(6,)], 3, "softmax")


def clusters() -> Data:
    """Three clouds, of which one is rare."""
    rng = np.random.default_rng(7)
    labels = rng.choice(3, p=(0.6, 0.32, 0.08), size=160).astype(np.int32)
    points = (rng.normal(size=(3, 6))[labels] + rng.normal(size=(160, 6))).astype(np.float32)
    return Data(points[:110], labels[:110], points[110:], labels[110:])


TASK = dataclasses.replace(APPLICATION, load=clusters, epochs=2)


def evaluated(task: Application, engine: str = "keras") -> Evaluation:
    trainer = TransferTrainer(task, SPACE, NoTransfer(), engine=engine)
    found = trainer.evaluate(Job(0, (0, 0), None, seed=1))
    assert found.done, found.measures
    return found


def changed(**fields: Any) -> Application:
    return dataclasses.replace(TASK, **fields)


def both_from_equal_weights(task: Application) -> list[Mapping[str, float]]:
    """Return how NumPy and Keras judge a network of the same weights."""
    from transfer_nas.training.arrays.engine import ArrayEngine

    assert ArrayEngine.misfit(task) is None
    graph = SPACE.graph((0, 0))
    results = []
    start = None
    for engine in (ArrayEngine(task, 16, 2), KerasEngine(task, 16)):
        candidate = engine.candidate(graph, 3)
        if start is None:
            start = {n: [a.copy() for a in t] for n, t in candidate.tensors(graph.names).items()}
        candidate.load(start)
        assert candidate.training((), epochs=1) is not None  # statistics are those of all layers
        results.append(candidate.validate())
    return results


def test_all_metrics_are_measured_alike_by_both_engines() -> None:
    task = changed(metric="accuracy", metrics=("AUC", "auc_pr", "F1", "MCC"))
    numpy, keras = both_from_equal_weights(task)
    assert list(numpy) == list(keras) == ["loss", "accuracy", "auc", "auc_pr", "f1", "mcc"]
    assert numpy == pytest.approx(keras, rel=1e-4)
    assert [value.name for value in task.declared] == ["accuracy", "auc", "auc_pr", "f1", "mcc"]
    assert {value.direction for value in task.declared} == {"max"}


@pytest.mark.parametrize("engine", ["auto", "keras"])
def test_the_objective_is_any_metric_the_loss_or_a_function_of_all(engine: str) -> None:
    metrics: dict[str, Any] = {"metric": "accuracy", "metrics": ("auc_pr", "f1")}
    by_metric = evaluated(changed(**metrics, objective="AUC-PR"), engine)
    assert by_metric.objective == by_metric.measures["auc_pr"] != by_metric.measures["f1"]
    by_loss = evaluated(changed(**metrics, objective="loss"), engine)
    assert by_loss.objective < 0 and by_loss.measures["auc_pr"] == by_metric.measures["auc_pr"]

    def both(found: Mapping[str, float]) -> float:
        return found["f1"] - found["loss"]

    task = changed(**metrics, objective=both, mode="max")
    by_both = evaluated(task, engine)
    assert task.objective_name == "both" and task.direction == "max"
    assert by_both.objective == pytest.approx(by_loss.objective + by_both.measures["f1"])


def test_objects_and_functions_do_what_names_do() -> None:
    import keras

    expected = evaluated(changed(optimizer="sgd", learning_rate=0.05)).objective
    loss = keras.losses.SparseCategoricalCrossentropy

    def mean_loss(true: Any, predicted: Any) -> Any:
        return keras.losses.sparse_categorical_crossentropy(true, predicted)

    optimizer = keras.optimizers.SGD(0.05)
    accuracy = keras.metrics.SparseCategoricalAccuracy
    for fields in (
        {"optimizer": optimizer, "loss": loss(), "metric": accuracy()},
        {"optimizer": lambda: keras.optimizers.SGD(0.05), "loss": loss, "metric": accuracy},
        {"optimizer": keras.optimizers.SGD, "learning_rate": 0.05, "loss": mean_loss},
        {"optimizer": {"class_name": "SGD", "config": {"learning_rate": 0.05}}},
    ):
        task = changed(**{"learning_rate": None, **fields})
        assert task.direction == "max" and task.initial_rate == pytest.approx(0.05)
        for _ in range(2):  # a second candidate has an optimizer and metrics of its own
            assert evaluated(task).objective == pytest.approx(expected)
    assert not optimizer.built


def test_decay_and_clipping_of_an_optimizer_count() -> None:
    import keras

    results = {
        evaluated(changed(optimizer=optimizer, objective="loss")).objective
        for optimizer in (
            keras.optimizers.Adam(),
            keras.optimizers.Adam(weight_decay=0.5),
            keras.optimizers.Adam(clipnorm=1e-3),
        )
    }
    assert len(results) == 3


def test_schedules_of_keras_and_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    planned = []

    def schedule(steps: int) -> Any:
        planned.append(steps)
        return keras.optimizers.schedules.PiecewiseConstantDecay([6], [0.02, 0.0])

    # 7 steps an epoch: nothing changes in the second.
    one = evaluated(changed(epochs=1, objective="loss"))
    two = evaluated(changed(learning_rate=schedule, objective="loss"))
    assert two.objective == pytest.approx(one.objective, rel=1e-3) and planned[-1] == 14
    fixed = keras.optimizers.schedules.PiecewiseConstantDecay([6], [0.02, 0.0])
    given = evaluated(changed(learning_rate=fixed, objective="loss"))
    assert given.objective == two.objective
    in_optimizer = changed(optimizer=lambda: keras.optimizers.Adam(fixed), learning_rate=None)
    assert in_optimizer.initial_rate is None
    assert evaluated(dataclasses.replace(in_optimizer, objective="loss")).objective == two.objective

    rates = []
    from transfer_nas.training.arrays.program import ArrayTraining

    epoch = ArrayTraining.epoch

    def noted(training: ArrayTraining, order: Any, rate: Any) -> float:
        rates.append(rate)
        return epoch(training, order, rate)

    monkeypatch.setattr(ArrayTraining, "epoch", noted)
    evaluated(changed(epochs=4, warmup_epochs=3), "auto")
    assert rates == pytest.approx([0.005, 0.01, 0.015, 0.02])


def test_the_rate_scales_with_the_batch() -> None:
    from transfer_nas.searching import worker
    from transfer_nas.settings import Settings

    for batch, rate in ((64, 0.08), (None, 0.02)):
        given = {"application": "mine", "scale_learning_rate": True, "batch_size": batch}
        settings = Settings.of({k: v for k, v in given.items() if v is not None})
        scaled, _ = worker.resolve(settings, TASK, Small)
        assert scaled.initial_rate == pytest.approx(rate) and scaled.batch_size == 16
    with pytest.raises(ApplicationError, match="scales a number, not a schedule"):
        worker.resolve(settings, changed(learning_rate=lambda steps: None), Small)


def test_mixed_precision_trains_with_weights_of_float32() -> None:
    task = changed(precision="mixed_bfloat16", objective="loss")
    mixed, full = evaluated(task), evaluated(changed(objective="loss"))
    assert mixed.measures["engine"] == "keras"
    assert mixed.objective != full.objective
    assert mixed.objective == pytest.approx(full.objective, rel=0.1)


WEIGHTS = {0: 1.0, 1: 0.5, 2: 4.0}


def test_classes_and_rows_weigh_as_in_keras() -> None:
    """Against Keras' own fit, with class_weight and sample_weight."""
    from graph_meta import keras_io
    from transfer_nas.training.keras_engine import compile_model

    rows = np.linspace(0.5, 2, 110).astype(np.float32)
    data = dataclasses.replace(clusters(), w_train=rows)
    labels = np.asarray(data.y_train)
    balanced = 110 / (3 * np.bincount(labels))
    for given, by_label in (
        (WEIGHTS, WEIGHTS),
        ("balanced", dict(enumerate(balanced))),
        (None, {0: 1.0, 1: 1.0, 2: 1.0}),
    ):
        task = changed(load=lambda: data, class_weight=given, epochs=1)
        np.testing.assert_allclose(
            task.data.w_train, rows * [by_label[int(label)] for label in labels], rtol=1e-6
        )
    task = changed(class_weight=WEIGHTS, optimizer="sgd", learning_rate=0.1)
    from transfer_nas.spaces import FeedForward
    from transfer_nas.training.arrays.engine import ArrayEngine

    space = FeedForward([(6,)], 3, "softmax")
    graph = space.graph(tuple(1 if i % 2 == 0 else 0 for i in range(len(space.genes))))
    order = np.random.default_rng(0).permutation(110)
    found, start = [], None
    for engine in (ArrayEngine(task, 16, 1), KerasEngine(task, 16)):
        assert engine.obstacle(graph) is None
        candidate = engine.candidate(graph, 3)
        start = start or {
            name: [np.array(a) for a in arrays]
            for name, arrays in candidate.tensors(graph.names).items()
        }
        candidate.load(start)
        training = candidate.training((), epochs=1)
        assert training is not None
        losses = [training.epoch(order, 0.1) for _ in range(2)]
        tensors = candidate.tensors(graph.names)
        found.append((losses, [np.array(a) for name in graph.names for a in tensors.get(name, ())]))
    model = keras_io.to_keras(graph)
    keras_io.set_weights(model, start)
    compile_model(model, task)
    history = model.fit(
        data.x_train[order],
        labels[order],
        class_weight=WEIGHTS,
        batch_size=16,
        epochs=2,
        shuffle=False,
        verbose=0,
    )
    for losses, weights in found:
        assert losses == pytest.approx(found[0][0], rel=1e-4)
        for array, other in zip(weights, found[0][1], strict=True):
            np.testing.assert_allclose(array, other, rtol=1e-3, atol=1e-5)
    by_name = {layer.name: layer.get_weights() for layer in model.layers}
    kept = [array for name in graph.names for array in by_name[name]]
    for array, other in zip(found[0][1], kept, strict=True):
        np.testing.assert_allclose(array, other, rtol=1e-3, atol=1e-5)
    assert found[0][0] == pytest.approx(history.history["loss"], rel=1e-4)


def test_rows_of_weight_0_teach_nothing() -> None:
    data = clusters()
    weights = (np.asarray(data.y_train) < 2).astype(np.float32)
    for engine in ("auto", "keras"):
        by_row = evaluated(
            changed(load=lambda: dataclasses.replace(data, w_train=weights), objective="loss"),
            engine,
        )
        by_class = evaluated(changed(class_weight={0: 1, 1: 1, 2: 0}, objective="loss"), engine)
        assert by_row.objective == by_class.objective
        assert by_row.objective != evaluated(changed(objective="loss"), engine).objective


def test_a_fit_may_ask_for_all_metrics() -> None:
    def fit(model: Any, data: Data, context: Any) -> Mapping[str, float]:
        model.fit(data.x_train, data.y_train, epochs=context.epochs, verbose=0)
        judged = context.validate()
        context.report(context.epochs, judged)
        return {name: value for name, value in judged.items() if name != left_out}

    left_out = ""
    task = changed(metric="accuracy", metrics=("auc", "mcc"), objective="mcc", fit=fit)
    found = evaluated(task)
    assert found.objective == found.measures["mcc"] and found.measures["auc"] > 0.5
    for left_out in ("mcc", "auc"):
        trainer = TransferTrainer(task, SPACE, NoTransfer())
        failed = trainer.evaluate(Job(0, (0, 0), None, seed=1))
        assert failed.status == "F_ValuesError" and left_out in str(failed.measures["error"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "acuracy", "metric": "accuracy"}, "'acuracy' is neither a metric.*accuracy"),
        ({"objective": lambda found: 1.0}, r"objective\(\): is more of it better, or less"),
        ({"metrics": ("mcc", "MCC")}, "metric mcc is asked for twice"),
        ({"metrics": "mcc"}, "metrics: expected a list, found 'mcc'"),
        ({"mode": "upwards"}, "mode must be 'max' .* not 'upwards'"),
        ({"learning_rate": -0.1}, "learning_rate must be a number of at least 0"),
        ({"precision": "bfloat16"}, "unknown precision 'bfloat16'; did you mean 'mixed_bfloat16'"),
        ({"warmup_epochs": -1}, "warmup_epochs must be a whole number"),
        ({"loss": None}, "expected a loss, found none"),
    ],
)
def test_says_what_makes_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ApplicationError, match=f"application clusters: .*{message}") as raised:
        _ = changed(**fields).data
        _ = changed(**fields).initial_rate
    assert "\n" not in str(raised.value)


def test_probabilities_are_not_those_of_a_linear_layer() -> None:
    task = changed(output_activation=None, loss="hinge", output_units=1, metric="auc", load=signs)
    with pytest.raises(ApplicationError, match=r"metric auc takes probabilities.*'softmax'"):
        task.space("feed_forward")


def signs() -> Data:
    data = clusters()
    y_train, y_valid = (np.where(np.asarray(y) > 0, 1, -1) for y in (data.y_train, data.y_valid))
    return Data(data.x_train, y_train, data.x_valid, y_valid)
