"""A training loop of a user's own: what it gets, what it may return, and how it is taken up."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpp_store
from transfer_nas import training
from transfer_nas.applications import Application, Data
from transfer_nas.checkpoint import Checkpoint
from transfer_nas.errors import InputError
from transfer_nas.job import DONE, Evaluation, Job
from transfer_nas.searching.finalists import retrain
from transfer_nas.trainer import TransferTrainer
from transfer_nas.training.keras_engine import KerasEngine
from transfer_nas.training.policy import Policy
from transfer_nas.training.program import FitContext
from transfer_nas.transfer import NoTransfer, StoreTransfer, TransferMethod

from .test_resumption import APPLICATION, CHILD, PARENT, Small

SPACE = Small([(6,)], 3, "softmax")


class Fit:
    """Pretends to train: moves all weights that are trainable, and remembers what it was given."""

    def __init__(self, touch_all: bool = False) -> None:
        self.touch_all = touch_all
        self.calls: list[FitContext] = []
        self.trainable: list[set[str]] = []
        self.starts: list[dict[str, list[np.ndarray]]] = []
        self.ends: list[dict[str, list[np.ndarray]]] = []
        self.answers: list[bool] = []
        self.wanted: Mapping[str, Any] | None = None
        self.reports = 0

    def __call__(self, model: Any, data: Data, context: FitContext) -> Any:
        self.calls.append(context)
        self.starts.append({layer.name: layer.get_weights() for layer in model.layers})
        self.trainable.append({layer.name for layer in model.layers if layer.trainable_variables})
        for epoch in range(1, self.reports + 1):
            self.answers.append(context.report(epoch, {context_metric(): 0.1 * epoch}))
            if self.answers[-1]:
                break
        for layer in model.layers:
            if layer.trainable_variables or self.touch_all:
                layer.set_weights([array + 0.5 for array in layer.get_weights()])
        self.ends.append({layer.name: layer.get_weights() for layer in model.layers})
        predicted = np.asarray(model(data.x_valid)).argmax(axis=1)
        accuracy = np.mean(predicted == data.y_valid)
        return {context_metric(): accuracy, "more": 7} if self.wanted is None else self.wanted


def context_metric() -> str:
    return APPLICATION.metric


def trainer(fit: Any, transfer: TransferMethod, **options: Any) -> TransferTrainer:
    application = dataclasses.replace(APPLICATION, fit=fit, batch_size=16)
    return TransferTrainer(
        application, SPACE, transfer, **{"policy": Policy(child_epochs=6), **options}
    )


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return [x.tobytes() for x in a] == [x.tobytes() for x in b]


@pytest.mark.parametrize("policy", ["freeze", "finetune", "freeze_then_finetune"])
@pytest.mark.parametrize("touch_all", [False, True])
def test_it_inherits_and_leaves_as_the_usual_loop_does(policy: str, touch_all: bool) -> None:
    fit = Fit(touch_all)
    with cpp_store.embedded(memory="64MiB") as store:
        transfer = StoreTransfer("clusters", store)
        trains = trainer(fit, transfer, policy=Policy(policy, child_epochs=6, grow=False))
        assert "a fit of its own" in trains.describe()
        parent, child = trains.evaluate(PARENT), trains.evaluate(CHILD)
        assert parent.status == child.status == DONE, child.measures
        assert parent.measures["engine"] == "keras" and parent.measures["epochs"] == 6
        own, *phases = fit.calls
        assert (own.phase, own.epochs, own.seed, own.batch_size) == (0, 6, 1, 16)
        assert own.learning_rate == APPLICATION.learning_rate
        # The child starts from what the parent's loop left.
        shared = fit.ends[0].keys() & fit.starts[1].keys()
        inherited = {name for name in shared if fit.ends[0][name]}
        assert child.measures["layers_transferred"] == len(shared) and len(inherited) == 2
        assert all(same(fit.ends[0][name], fit.starts[1][name]) for name in inherited)
        halves = policy == "freeze_then_finetune"
        assert [call.epochs for call in phases] == ([3, 3] if halves else [6])
        assert [call.phase for call in phases] == ([0, 1] if halves else [0])
        frozen = policy != "finetune"
        assert (fit.trainable[1] & inherited == set()) == frozen
        if halves:
            assert inherited <= fit.trainable[2]
            assert all(same(fit.ends[1][n], fit.starts[2][n]) for n in fit.ends[1])
        # What it changed is the child's own, though it was frozen.
        kept = policy == "freeze" and not touch_all
        stored, whole = child.measures["bytes_stored"], child.measures["bytes_whole_copy"]
        assert (stored < whole) == kept
        whole_child = transfer.whole("1")
        assert whole_child is not None
        for name, arrays in whole_child[1].items():
            assert same(list(arrays), fit.ends[-1][name])


@pytest.mark.parametrize(
    ("wanted", "status", "says"),
    [
        ({}, "F_ValuesError", "fit(): expected the metric sparse_categorical_accuracy among what"),
        ({"acc": 1.0}, "F_ValuesError", "found acc"),
        (3, "F_ValuesError", "fit(): expected a dict of metrics, found 3"),
        ({context_metric(): "x"}, "F_ValuesError", "expected a number as sparse_cat"),
        ({context_metric(): float("nan")}, "F_nan", "not a finite number"),
    ],
)
def test_what_it_returns_must_be_the_metrics(wanted: Any, status: str, says: str) -> None:
    fit = Fit()
    fit.wanted = wanted
    found = trainer(fit, NoTransfer()).evaluate(PARENT)
    assert found.status == status and says in str(found.measures["error"])
    assert "\n" not in str(found.measures["error"])


def test_a_stop_ends_all_phases_and_epochs_are_those_that_were_run() -> None:
    fit = Fit()
    fit.reports = 2
    with cpp_store.embedded(memory="64MiB") as store:
        policy = Policy("freeze_then_finetune", child_epochs=6)
        trains = trainer(fit, StoreTransfer("clusters", store), policy=policy)
        told: list[tuple[int, Mapping[str, float]]] = []

        def report(step: int, values: Mapping[str, float]) -> bool:
            told.append((step, values))
            return step == 4

        assert trains.evaluate(PARENT, report).measures["epochs"] == 2  # of its own accord
        child = trains.evaluate(CHILD, report)
        assert child.done and child.measures["epochs"] == 4  # two in each phase
        stopped = trains.evaluate(dataclasses.replace(CHILD, id=2), lambda *_: True)
        assert stopped.done and stopped.measures["epochs"] == 1
        assert [call.stopped for call in fit.calls] == [False, False, True, True]
    assert [step for step, _ in told] == [1, 2, 1, 2, 3, 4]
    assert told[1][1]["objective"] == told[1][1][context_metric()] == pytest.approx(0.2)


class Killed(BaseException):
    """As far as the trainer can tell, the process is gone."""


@pytest.mark.parametrize("kill_in", [0, 1])
def test_killed_it_finds_its_files_and_starts_from_the_same(tmp_path: Path, kill_in: int) -> None:
    starts: list[tuple[int, dict[str, list[np.ndarray]], list[str]]] = []
    kill = [False]

    def fit(model: Any, data: Data, context: FitContext) -> dict[str, float]:
        layers = {layer.name: layer.get_weights() for layer in model.layers}
        starts.append((context.phase, layers, sorted(p.name for p in context.directory.iterdir())))
        (context.directory / f"epoch-{len(starts)}").write_text("how far")
        for layer in model.layers:
            layer.set_weights([array + 1 for array in layer.get_weights()])
        if kill[0] and context.phase == kill_in:
            raise Killed
        return {APPLICATION.metric: 0.5}

    with cpp_store.embedded(memory="64MiB") as store:
        transfer = StoreTransfer("clusters", store)
        policy = Policy("freeze_then_finetune", child_epochs=6)
        options = {"policy": policy, "checkpoint": Checkpoint(tmp_path, print)}
        assert trainer(fit, transfer, **options).evaluate(PARENT).done
        starts.clear()
        kill[0] = True
        with pytest.raises(Killed):
            trainer(fit, transfer, **options).evaluate(CHILD)
        kill[0] = False
        transfer.retire(["0"])  # the ancestor is gone meanwhile
        found = trainer(fit, transfer, **options).evaluate(CHILD)
    assert found.done and found.measures["ancestor"] == "0" and found.measures["epochs"] == 6
    *_, cut = [start for start in starts if start[0] == kill_in][:1]
    again = [start for start in starts if start[0] == kill_in][1]
    assert cut[1].keys() == again[1].keys()
    assert all(same(cut[1][name], again[1][name]) for name in cut[1])
    assert (cut[2], len(again[2])) == ([], 1)
    # Phases that were over are not run again; those behind begin with an empty directory.
    phases = [phase for phase, _, _ in starts]
    assert phases == ([0, 0, 1] if kill_in == 0 else [0, 1, 1])


def test_without_a_run_directory_its_files_go_with_the_call() -> None:
    seen: list[Path] = []

    def fit(model: Any, data: Data, context: FitContext) -> dict[str, float]:
        seen.append(context.directory)
        assert context.directory.is_dir() and context.directory == seen[-1]
        return {APPLICATION.metric: 0.5}

    assert trainer(fit, NoTransfer()).evaluate(PARENT).done
    assert not seen[0].exists()


def test_the_finalists_are_trained_by_it_too(tmp_path: Path) -> None:
    fit = Fit()
    with cpp_store.embedded(memory="64MiB") as store:
        trains = trainer(fit, StoreTransfer("clusters", store), epochs=2)
        found = trains.evaluate(PARENT)
        (result,) = retrain([found], trains, tmp_path, print, 4)
    assert result["status"] == DONE and result["epochs"] == APPLICATION.epochs
    assert fit.calls[1].epochs == APPLICATION.epochs
    name = next(name for name, arrays in fit.ends[0].items() if arrays)
    assert same(fit.ends[0][name], fit.starts[1][name])


class OwnEngine(KerasEngine):
    name = "own"


def make(application: Application, batch_size: int) -> OwnEngine:
    return OwnEngine(application, batch_size)


def test_engines_come_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint, EntryPoints

    found = EntryPoints([EntryPoint("own", f"{__name__}:make", "transfer_nas.engines")])
    monkeypatch.setattr(training, "entry_points", lambda **wanted: found.select(**wanted))
    monkeypatch.setattr(EntryPoint, "load", lambda self: make)
    trains = TransferTrainer(APPLICATION, SPACE, NoTransfer(), engine="own", epochs=1)
    assert trains.describe().startswith("own trains, as was asked for")
    evaluation: Evaluation = trains.evaluate(Job(0, (0, 0)))
    assert evaluation.measures["engine"] == "own"
    with pytest.raises(InputError, match="unknown engine 'onw'; did you mean 'own'"):
        TransferTrainer(APPLICATION, SPACE, NoTransfer(), engine="onw")


@pytest.mark.parametrize("engine", training.ENGINES)
def test_the_usual_loop_reports_and_stops(engine: str, tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, float]]] = []

    def report(step: int, values: Mapping[str, float]) -> bool:
        told.append((step, dict(values)))
        return step == 4

    policy = Policy("freeze_then_finetune", child_epochs=6)
    with cpp_store.embedded(memory="64MiB") as store:
        transfer = StoreTransfer("clusters", store)
        trains = TransferTrainer(APPLICATION, SPACE, transfer, policy=policy, engine=engine)
        whole = trains.evaluate(PARENT)
        child = trains.evaluate(CHILD, report)  # stopped in its second phase
        assert child.done and child.measures["epochs"] == 4 and whole.measures["epochs"] == 6
        assert [step for step, _ in told] == [1, 2, 3, 4]
        for _, values in told:
            assert values.keys() == {"loss", "val_loss", APPLICATION.metric, "objective"}
            assert values["objective"] == values[APPLICATION.metric]
        # Judged and stored as what it was then.
        assert child.objective == told[-1][1]["objective"]
        found = transfer.whole("1")
        assert found is not None and child.measures["layers_transferred"] > 0
        # Whoever only listens changes nothing.
        again = dataclasses.replace(PARENT, id=2)
        with cpp_store.embedded(memory="64MiB") as other:
            alone = TransferTrainer(
                APPLICATION, SPACE, StoreTransfer("clusters", other), policy=policy, engine=engine
            )
            assert alone.evaluate(again, lambda *_: False).objective == whole.objective


def test_an_error_is_reported_as_what_is_maximised() -> None:
    told: list[Mapping[str, float]] = []
    application = dataclasses.replace(APPLICATION, metric="sparse_categorical_crossentropy")
    trains = TransferTrainer(application, SPACE, NoTransfer(), epochs=1)
    found = trains.evaluate(PARENT, lambda step, values: bool(told.append(values)))
    assert found.objective == told[0]["objective"] == -told[0][application.metric] < 0
