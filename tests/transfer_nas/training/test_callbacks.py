"""What looks at a training after each epoch, against Keras' own callbacks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_nas.applications import Application, EarlyStopping, ReduceLROnPlateau
from transfer_nas.applications._callbacks import Running, found
from transfer_nas.errors import ApplicationError
from transfer_nas.job import Evaluation, Job
from transfer_nas.trainer import TransferTrainer
from transfer_nas.training.policy import Policy
from transfer_nas.transfer import NoTransfer

from . import test_resumption
from .test_resumption import APPLICATION, Process, Small, same

SPACE = Small([(6,)], 3, "softmax")
JOB = Job(0, (0, 0), None, seed=1)


class Told(Running):
    """A training of which only its epochs' values are known; its weight is the epoch."""

    def __init__(self) -> None:
        self.epoch = -1
        self.restored: int | None = None

    def weights(self) -> list[np.ndarray]:
        return [np.array(self.epoch)]

    def restore(self, weights: list[np.ndarray]) -> None:
        self.restored = int(weights[0])

    @property
    def model(self) -> Any:
        raise AssertionError("no engine is known")


class Model:
    """The same, for Keras."""

    def __init__(self, told: Told, rate: float) -> None:
        self.told, self.stop_training, self.metrics = told, False, []
        self.optimizer = type("Optimizer", (), {"learning_rate": np.float32(rate)})()

    def get_weights(self) -> list[np.ndarray]:
        return self.told.weights()

    def set_weights(self, weights: list[np.ndarray]) -> None:
        self.told.restore(weights)


def watched(callback: Any, values: Sequence[float], killed_at: int) -> tuple[Any, ...]:
    """Return what ours does, its process killed and the state taken up once."""
    told, watch = Told(), callback.watch(lambda _: "min")
    told.rate = 0.5
    rates = []
    watch.begin(told)
    for epoch, value in enumerate(values):
        if epoch == killed_at:
            state = watch.state()
            watch = callback.watch(lambda _: "min")
            watch.set_state(*state)
        told.epoch, told.rate = epoch, 0.5 * told.scale
        watch.before(epoch, told)
        watch.after(epoch, {"val_loss": value}, told)
        rates.append(told.rate)
        if told.stopped:
            break
    watch.end(told)
    return rates, told.restored


def watched_by_keras(callback: Any, values: Sequence[float]) -> tuple[Any, ...]:
    told = Told()
    model = Model(told, 0.5)
    rates = []
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, value in enumerate(values):
        told.epoch = epoch
        callback.on_epoch_begin(epoch)
        callback.on_epoch_end(epoch, {"val_loss": value})
        rates.append(float(model.optimizer.learning_rate))
        if model.stop_training:
            break
    callback.on_train_end()
    return rates, told.restored


VALUES = st.lists(st.sampled_from([0.0, 0.05, 0.5, 1.0, 1.5]), min_size=1, max_size=16)


@settings(max_examples=150, deadline=None)
@given(
    VALUES,
    st.sampled_from(["min", "max"]),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([None, 0.7]),
    st.booleans(),
    st.integers(0, 2),
    st.integers(0, 15),
)
def test_stopping_is_that_of_keras(
    values: list[float],
    mode: Any,
    patience: int,
    min_delta: float,
    baseline: float | None,
    restore: bool,
    start: int,
    killed_at: int,
) -> None:
    import keras

    options: dict[str, Any] = {
        "mode": mode,
        "patience": patience,
        "min_delta": min_delta,
        "baseline": baseline,
        "restore_best_weights": restore,
        "start_from_epoch": start,
    }
    theirs = keras.callbacks.EarlyStopping(**options)
    ours = EarlyStopping(**options)
    assert found([theirs]) == (ours,)
    assert watched(ours, values, killed_at) == watched_by_keras(theirs, values)


@settings(max_examples=150, deadline=None)
@given(
    VALUES,
    st.sampled_from(["min", "max"]),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.1]),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.1]),
    st.integers(0, 15),
)
def test_plateaus_are_those_of_keras(
    values: list[float],
    mode: Any,
    patience: int,
    min_delta: float,
    cooldown: int,
    min_lr: float,
    killed_at: int,
) -> None:
    import keras

    options: dict[str, Any] = {
        "mode": mode,
        "patience": patience,
        "min_delta": min_delta,
        "cooldown": cooldown,
        "min_lr": min_lr,
        "factor": 0.5,
    }
    theirs = keras.callbacks.ReduceLROnPlateau(**options)
    ours = ReduceLROnPlateau(**options)
    assert found([lambda: theirs]) == (ours,)
    rates, _ = watched(ours, values, killed_at)
    expected, _ = watched_by_keras(theirs, values)
    assert rates == pytest.approx(expected, rel=1e-6)


def changed(**fields: Any) -> Application:
    return dataclasses.replace(APPLICATION, **fields)


def evaluated(task: Application, engine: str, **options: Any) -> tuple[TransferTrainer, Evaluation]:
    trainer = TransferTrainer(task, SPACE, NoTransfer(), engine=engine, **options)
    evaluation = trainer.evaluate(JOB)
    assert evaluation.done, evaluation.measures
    return trainer, evaluation


@pytest.mark.parametrize("engine", ["auto", "keras"])
def test_a_training_ends_when_it_gets_no_better(engine: str) -> None:
    # No epoch is a hundred better than the one before.
    stop = EarlyStopping(min_delta=100.0, patience=2, restore_best_weights=True)
    trainer, stopped = evaluated(changed(epochs=9, callbacks=[stop]), engine)
    assert stopped.measures["epochs"] == 3
    assert stopped.measures["engine"] == ("numpy" if engine == "auto" else "keras")
    first, after_one = evaluated(changed(epochs=1), engine)
    assert stopped.objective == after_one.objective  # the first epoch was the best
    a, b = (each._last for each in (trainer, first))
    assert a is not None and b is not None
    assert same(a.tensors(a.graph.names), b.tensors(b.graph.names))


@pytest.mark.parametrize("engine", ["auto", "keras"])
def test_each_phase_is_stopped_by_itself(engine: str) -> None:
    import cpp_store
    from transfer_nas.transfer import StoreTransfer

    stop = EarlyStopping(min_delta=100.0, patience=1)
    with cpp_store.embedded(memory="64MiB") as store:
        trainer = TransferTrainer(
            changed(epochs=8, callbacks=[stop]),
            SPACE,
            StoreTransfer("clusters", store),
            engine=engine,
            policy=Policy("freeze_then_finetune", child_epochs=8),
        )
        assert trainer.evaluate(test_resumption.PARENT).measures["epochs"] == 2
        assert trainer.evaluate(test_resumption.CHILD).measures["epochs"] == 4


@pytest.mark.parametrize("engine", ["auto", "keras"])
def test_a_plateau_lowers_the_rate(engine: str) -> None:
    plateau = ReduceLROnPlateau(min_delta=100.0, patience=1, factor=1e-9, monitor="loss")
    task = changed(objective="loss")
    _, two = evaluated(dataclasses.replace(task, epochs=2), engine)
    _, stuck = evaluated(dataclasses.replace(task, epochs=5, callbacks=[plateau]), engine)
    assert stuck.measures["epochs"] == 5
    assert stuck.objective == pytest.approx(two.objective, rel=1e-3)


def test_killed_it_remembers_what_was_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = EarlyStopping(min_delta=100.0, patience=3, restore_best_weights=True)
    plateau = ReduceLROnPlateau(min_delta=100.0, patience=1, factor=0.1)
    for engine in ("auto", "keras"):
        task = changed(epochs=9, callbacks=[stop, plateau], objective="loss")
        monkeypatch.setattr(test_resumption, "APPLICATION", task)
        whole = Process(tmp_path / f"whole-{engine}", monkeypatch, engine=engine)
        expected = whole.evaluate(JOB)
        assert expected is not None and expected.measures["epochs"] == 4
        path = tmp_path / engine
        for kill in (1, 1, 1):
            process = Process(path, monkeypatch, engine=engine)
            assert process.evaluate(JOB, kill_before=kill) is None
        process = Process(path, monkeypatch, engine=engine)
        resumed = process.evaluate(JOB)
        assert resumed is not None and process.epochs == 1
        assert resumed.objective == expected.objective and resumed.measures["epochs"] == 4
        assert same(process.weights(), whole.weights())


def test_any_callback_of_keras_is_told_of_epochs_and_steps() -> None:
    import keras

    told: list[Any] = []

    class Own(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            told.append("begin")

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.model.optimizer.learning_rate = 0.25 / (1 + epoch)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            told.append((epoch, sorted(logs), float(self.model.optimizer.learning_rate)))
            self.model.stop_training = epoch == 1

        def on_train_end(self, logs: Any = None) -> None:
            told.append("end")

    class Steps(Own):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            told.append(batch)

    task = changed(epochs=5, optimizer="sgd", callbacks=[Own], objective="loss")
    _, first = evaluated(task, "auto")
    assert first.measures["engine"] == "keras" and first.measures["epochs"] == 2
    names = ["loss", "val_loss", "val_sparse_categorical_accuracy"]
    assert told == ["begin", (0, names, 0.25), (1, names, 0.125), "end"]

    told.clear()
    # Keras' own loop then, with the same result.
    _, second = evaluated(dataclasses.replace(task, callbacks=lambda: [Steps()]), "auto")
    assert [each for each in told if isinstance(each, int)] == [*range(5), *range(5)]
    assert second.measures["epochs"] == 2
    assert second.objective == pytest.approx(first.objective, rel=0.2)
    assert math.isfinite(second.objective)


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([EarlyStopping(monitor="val_acuracy")], "nothing is called 'val_acuracy'; did you mean"),
        ([3], "expected EarlyStopping, ReduceLROnPlateau, or a function .* found 3"),
        ("stop", "callbacks: expected a list, found 'stop'"),
    ],
)
def test_says_what_is_no_callback(callbacks: Any, message: str) -> None:
    with pytest.raises(ApplicationError, match=f"application clusters: .*{message}"):
        _ = changed(callbacks=callbacks).data


def test_says_what_goes_with_no_callback() -> None:
    import keras

    with pytest.raises(ApplicationError, match="serves one training only: give a function"):
        _ = changed(callbacks=[keras.callbacks.TerminateOnNaN()]).data
    rate = keras.optimizers.schedules.CosineDecay(0.1, 10)
    with pytest.raises(ApplicationError, match="ReduceLROnPlateau changes the learning rate"):
        _ = changed(callbacks=[ReduceLROnPlateau()], learning_rate=rate).data
    with pytest.raises(ApplicationError, match="callbacks have no meaning with a fit"):
        _ = changed(callbacks=[EarlyStopping()], fit=lambda *_: {}).data
    with pytest.raises(ApplicationError, match="factor must be between 0 and 1, not 2"):
        ReduceLROnPlateau(factor=2)
