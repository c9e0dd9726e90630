"""Candidates start from stored weights, train by the policy, and leave theirs to others."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cpp_store
from graph_meta import LayerGraph, keras_io, layers, prefix
from graph_meta.graph import GraphBuilder
from transfer_nas import logs, trained_model
from transfer_nas.applications import Application, Data
from transfer_nas.errors import InputError, TransferError, TransferUnavailable
from transfer_nas.job import Evaluation, Job
from transfer_nas.logs import Log
from transfer_nas.spaces import Gene, Space
from transfer_nas.trainer import POLICIES, TransferTrainer
from transfer_nas.training import ENGINES
from transfer_nas.training.keras_engine import KerasEngine
from transfer_nas.training.policy import Phase, Policy
from transfer_nas.transfer import (
    HDF5Transfer,
    Inheritance,
    NoTransfer,
    StoreTransfer,
    TransferMethod,
)


class Normalized(Space):
    """Two dense layers; what can be shared has batch normalization and dropout in it."""

    name = "normalized"
    genes = (Gene("first", (16, 12)), Gene("second", (8, 10, 12)))

    def graph(self, genome: tuple[int, ...]) -> LayerGraph:
        values = self.values(genome)
        builder = GraphBuilder()
        edge = self._features(builder)
        edge = builder.add(layers.dense(values["first"]), edge)
        edge = builder.add(layers.batch_normalization(momentum=0.5), edge)
        edge = builder.add(layers.activation("relu"), edge)
        edge = builder.add(layers.dropout(0.1), edge)
        edge = builder.add(layers.dense(values["second"], activation="relu"), edge)
        return self._head(builder, edge)


def clusters() -> Data:
    """Three clouds of points that a straight line does not quite tell apart."""
    rng = np.random.default_rng(7)
    labels = rng.integers(3, size=260).astype(np.int32)
    centres = rng.normal(size=(3, 6))
    points = (centres[labels] + 0.6 * rng.normal(size=(260, 6))).astype(np.float32)
    return Data(points[:200], labels[:200], points[200:], labels[200:])


APPLICATION = Application(
    name="clusters",
    load=clusters,
    input_shapes=[(6,)],
    output_units=3,
    output_activation="softmax",
    loss="sparse_categorical_crossentropy",
    metric="sparse_categorical_accuracy",
    learning_rate=0.02,
    epochs=4,
    batch_size=32,
)
SPACE = Normalized([(6,)], 3, "softmax")
PARENT, CHILD = (0, 0), (0, 1)  # share everything before the second dense layer
SHARED = prefix(SPACE.graph(PARENT), SPACE.graph(CHILD))


@pytest.fixture
def store() -> Iterator[cpp_store.Store]:
    with cpp_store.embedded(memory="64MiB") as store:
        yield store


@pytest.fixture(params=["hdf5", "store"])
def transfer(request: pytest.FixtureRequest, tmp_path: Path) -> TransferMethod:
    if request.param == "hdf5":
        return HDF5Transfer("clusters", tmp_path / "models")
    return StoreTransfer("clusters", request.getfixturevalue("store"))


def trainer(transfer: TransferMethod | None = None, **options: object) -> TransferTrainer:
    application = dataclasses.replace(
        APPLICATION, **{k: options.pop(k) for k in list(options) if hasattr(APPLICATION, k)}
    )
    return TransferTrainer(application, SPACE, transfer or NoTransfer(), **options)


def stored(transfer: TransferMethod, genome: tuple[int, ...]) -> dict[str, list[np.ndarray]]:
    """Return the tensors of the stored model that is just that genome's."""
    match = transfer.best_match(SPACE.graph(genome))
    assert match is not None and len(match.layers) == len(SPACE.graph(genome))
    with match:
        return {name: [np.array(t) for t in ts] for name, ts in match.read().items()}


def saved(trainer: TransferTrainer, path: Path) -> dict[str, list[np.ndarray]]:
    """Return the weights that the last model has after training, as plain Keras reads them."""
    import keras

    trainer.save_model(path)
    return keras_io.get_weights(keras.models.load_model(path))


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return [x.tobytes() for x in a] == [x.tobytes() for x in b]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_child_starts_from_its_ancestor_and_says_so(
    engine: str, transfer: TransferMethod
) -> None:
    trains = trainer(transfer, run="r", engine=engine)
    graph = SPACE.graph(CHILD)

    first = trains.evaluate(Job(0, PARENT, None, seed=1))
    second = trains.evaluate(Job(1, CHILD, parent=0, seed=2))

    assert first.status == second.status == "DONE"
    assert min(first.objective, second.objective) > 0.6
    parent_bytes = SPACE.graph(PARENT).nbytes
    assert (
        first.measures.items()
        >= {
            "layers": len(graph),
            "layers_transferred": 0,
            "parameters": SPACE.graph(PARENT).parameters,
            "bytes_transferred": 0,
            "bytes_stored": parent_bytes,
        }.items()
    )
    assert not {"ancestor", "transfer_error", "load_seconds"} & first.measures.keys()
    shared_bytes = sum(
        layer.spec.nbytes
        for name, layer in zip(graph.names, graph.layers, strict=True)
        if name in SHARED
    )
    whole_copies = isinstance(transfer, HDF5Transfer)
    assert (
        second.measures.items()
        >= {
            "ancestor": "r/0",
            "layers": len(graph),
            "layers_transferred": len(SHARED),
            "parameters": graph.parameters,
            "bytes_transferred": shared_bytes,
            "bytes_stored": graph.nbytes if whole_copies else graph.nbytes - shared_bytes,
        }.items()
    )
    assert second.measures["engine"] == {"auto": "numpy", "keras": "keras"}[engine]
    for name in ("match", "build", "load", "train", "store"):
        assert 0 < second.measures[f"{name}_seconds"] < 60


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("policy", POLICIES)
def test_inherited_tensors_stay_what_they_were(
    policy: str, engine: str, transfer: TransferMethod, tmp_path: Path
) -> None:
    trains = trainer(transfer, policy=policy, engine=engine)
    assert trains.evaluate(Job(0, PARENT, None, seed=1)).done
    before = stored(transfer, PARENT)

    child = trains.evaluate(Job(1, CHILD, parent=0, seed=2))

    assert child.measures["layers_transferred"] == len(SHARED)
    assert all(same(ts, before[name]) for name, ts in stored(transfer, PARENT).items())
    trained = saved(trains, tmp_path / "child.keras")
    inherits = [name for name in SHARED if name in before]
    assert len(inherits) == 2  # dense and batch normalization
    for name in inherits:
        assert same(trained[name], before[name]) == (policy == "freeze"), name
    # What is stored is what was trained, whoever owns it.
    child_stored = stored(transfer, CHILD)
    assert child_stored.keys() == {name for name, ts in trained.items() if ts}
    assert all(same(trained[name], ts) for name, ts in child_stored.items())


def test_a_layer_that_keeps_statistics_though_frozen_is_the_childs_own(
    store: cpp_store.Store,
) -> None:
    """Keras leaves frozen statistics alone; a custom layer may not."""
    import keras

    transfer = StoreTransfer("clusters", store)
    trains = trainer(transfer, engine="keras")
    trains.evaluate(Job(0, PARENT, None, seed=1))
    before = stored(transfer, PARENT)
    stubborn = keras.layers.BatchNormalization.call

    def call(self, inputs, training=None, mask=None):  # type: ignore[no-untyped-def]
        self.moving_mean.assign(self.moving_mean + 1.0)
        return stubborn(self, inputs, training=training, mask=mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.layers.BatchNormalization, "call", call)
        trains.evaluate(Job(1, CHILD, parent=0, seed=2))

    assert all(same(ts, before[name]) for name, ts in stored(transfer, PARENT).items())
    (normalization,) = (name for name in SHARED if name.startswith("BatchNormalization"))
    assert not same(stored(transfer, CHILD)[normalization], before[normalization])


def test_a_genome_that_is_stored_already_trains_its_last_layer(
    transfer: TransferMethod,
) -> None:
    trains = trainer(transfer)
    trains.evaluate(Job(0, PARENT, None, seed=1))
    before = stored(transfer, PARENT)
    again = trains.evaluate(Job(1, PARENT, parent=0, seed=2))
    assert again.measures["layers_transferred"] == again.measures["layers"]
    after = stored(transfer, PARENT)  # the newer of the two, or the better one
    *others, last = [name for name, ts in before.items() if ts]
    assert all(same(after[name], before[name]) for name in others)
    assert transfer.name != "store" or again.measures["bytes_stored"] == sum(
        tensor.nbytes for tensor in before[last]
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_the_top_trains_again(engine: str, store: cpp_store.Store, tmp_path: Path) -> None:
    transfer = StoreTransfer("clusters", store)
    trains = trainer(transfer, policy=Policy("freeze", unfreeze_top=1), engine=engine)
    trains.evaluate(Job(0, PARENT, None, seed=1))
    before = stored(transfer, PARENT)

    assert trains.evaluate(Job(1, CHILD, parent=0, seed=2)).done

    trained = saved(trains, tmp_path / "child.keras")
    dense, normalization = (name for name in SHARED if before.get(name))
    assert same(trained[dense], before[dense])
    assert not same(trained[normalization], before[normalization])


def test_a_child_grows_from_its_parent(transfer: TransferMethod) -> None:
    """Also behind the prefix; untrained, it judges as its parent does."""
    trains = trainer(transfer, policy=Policy("finetune", grow=True, child_epochs=1), epochs=8)
    parent = trains.evaluate(Job(0, PARENT, None, seed=1))
    wider = trains.evaluate(Job(1, CHILD, parent=0, seed=2))
    assert wider.measures["layers_grown"] == 4 and wider.measures["epochs"] == 1
    assert wider.objective > parent.objective - 0.1
    # Whose parent is gone grows from nothing.
    trains.retire([0])
    orphan = trains.evaluate(Job(2, CHILD, parent=0, seed=2))
    assert "layers_grown" not in orphan.measures and orphan.measures["layers_transferred"]


@pytest.mark.parametrize("policy", ["freeze", "finetune"])
def test_only_what_trains_is_shrunk_and_perturbed(policy: str, store: cpp_store.Store) -> None:
    transfer = StoreTransfer("clusters", store)
    trains = trainer(transfer, policy=Policy(policy, shrink_perturb=0.5), epochs=1)
    trains.evaluate(Job(0, PARENT, None, seed=1))
    before = stored(transfer, PARENT)
    hardly = trainer(transfer, policy=Policy(policy, shrink_perturb=0.5), learning_rate=1e-9)
    hardly.evaluate(Job(1, CHILD, parent=0, seed=2))
    after = stored(transfer, CHILD)
    (dense,) = (name for name in SHARED if name.startswith("Dense"))
    kernel, bias = before[dense]
    if policy == "freeze":
        assert same(after[dense], before[dense])
    else:
        np.testing.assert_allclose(after[dense][1], bias, atol=1e-5)
        assert np.corrcoef(after[dense][0].reshape(-1), kernel.reshape(-1))[0, 1] < 0.99
        assert np.abs(after[dense][0]).mean() < np.abs(kernel).mean()


def test_heirs_train_for_less_the_more_they_inherit(store: cpp_store.Store) -> None:
    trains = trainer(
        StoreTransfer("clusters", store), epochs=9, policy=Policy(child_epochs=1, grow=False)
    )
    assert trains.evaluate(Job(0, PARENT, None, seed=1)).measures["epochs"] == 9
    child = trains.evaluate(Job(1, CHILD, parent=0, seed=2)).measures
    share = child["bytes_transferred"] / child["bytes_whole_copy"]
    assert child["epochs"] == round(9 - 8 * share)
    assert 1 < child["epochs"] < 9
    assert trains.evaluate(Job(2, PARENT, parent=0, seed=3)).measures["epochs"] == 1


def test_the_learning_rate_follows_its_schedule() -> None:
    policy = Policy(schedule="cosine")
    rates = [policy.learning_rate(2.0, epoch, 10) for epoch in range(10)]
    assert rates[0] == 2.0
    assert rates == sorted(rates, reverse=True)
    assert 0.2 < rates[-1] < 0.3
    assert Policy().learning_rate(2.0, 9, 10) == 2.0


@pytest.mark.parametrize("policy", POLICIES)
def test_a_promoted_job_trains_the_epochs_that_are_left(
    policy: str, transfer: TransferMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases: list[Phase] = []
    known = TransferTrainer._phases

    def observed(self: TransferTrainer, *given: object) -> list[Phase]:
        found = list(known(self, *given))
        phases.extend(found)
        return found

    monkeypatch.setattr(TransferTrainer, "_phases", observed)
    first = Job(0, PARENT, None, seed=1, epochs=2)
    promoted = Job(1, PARENT, 0, seed=2, epochs=6, trained=2)

    trains = trainer(transfer, policy=policy)
    assert trains.evaluate(first).done
    before = stored(transfer, PARENT)
    assert trains.evaluate(promoted).done
    after = stored(transfer, PARENT)
    assert not any(same(before[name], after[name]) for name in before)
    # Without the parent's weights there is everything to train.
    assert trainer(policy=policy).evaluate(promoted).done
    # Whatever the policy, nothing is frozen.
    assert phases == [Phase(frozenset(), epochs) for epochs in (2, 4, 6)]


@pytest.mark.parametrize("engine", ENGINES)
def test_equal_jobs_have_equal_results_whatever_came_before(engine: str, tmp_path: Path) -> None:
    job = Job(5, CHILD, None, seed=11)
    results = []
    for earlier in ([], [Job(0, PARENT, None, seed=1), Job(1, PARENT, None, seed=2)]):
        trains = trainer(engine=engine)
        for other in earlier:
            trains.evaluate(other)
        results.append((trains.evaluate(job).objective, saved(trains, tmp_path / "m.keras")))
    (objective, weights), (again, weights_again) = results
    assert objective == again
    assert all(same(weights[name], weights_again[name]) for name in weights)

    trains.evaluate(dataclasses.replace(job, seed=12))
    other_weights = saved(trains, tmp_path / "m.keras")
    assert not all(same(weights[name], other_weights[name]) for name in weights)


def test_what_plain_keras_opens_is_the_model(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    import keras

    trains = trainer()
    with pytest.raises(ValueError, match="no model"):
        trains.save_model(tmp_path / "none.keras")
    evaluation = trains.evaluate(Job(0, PARENT, None, seed=1))
    # As a search does it: a quick file at once, Keras' own when all is over.
    trains.save_model(trained_model.best_path(tmp_path))
    assert trained_model.finish(tmp_path, APPLICATION) == tmp_path / "best.keras"
    assert not trained_model.best_path(tmp_path).exists()
    recwarn.clear()

    model = keras.models.load_model(tmp_path / "best.keras")

    assert not recwarn.list
    assert all(layer.trainable for layer in model.layers)
    graph, names = SPACE.graph(PARENT), [layer.name for layer in model.layers]
    assert names[:2] == ["input_layer", "dense"] and "dense_1" in names
    assert keras_io.from_keras(model).names == graph.names
    with zipfile.ZipFile(tmp_path / "best.keras") as file:
        metadata = json.loads(file.read("metadata.json"))
    assert metadata["keras_version"] == keras.__version__  # what Keras wrote is still there
    assert sorted(metadata["transfer_nas"]["stable_names"]) == sorted(names)
    assert sorted(metadata["transfer_nas"]["stable_names"].values()) == sorted(graph.names)
    assert not [path for path in tmp_path.iterdir() if path.suffix not in (".keras", ".json")]
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]
    data = APPLICATION.data
    _, accuracy = model.evaluate(data.x_valid, data.y_valid, verbose=0)
    assert accuracy == pytest.approx(evaluation.objective, abs=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_less_of_an_error_is_better(engine: str) -> None:
    trains = trainer(metric="sparse_categorical_crossentropy", engine=engine)
    objective = trains.evaluate(Job(0, PARENT, None, seed=1)).objective
    assert objective < 0 < trains.application.natural(objective)


LABELS = {
    "float": lambda y: y.astype(np.float32),
    "a column": lambda y: y.reshape(-1, 1),
    "a list": lambda y: y.tolist(),
    "objects": lambda y: y.astype(object),
    "a series": lambda y: pd.Series(y, index=range(7, 7 + len(y))),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_labels_of_any_dtype_mean_the_same_to_all_engines(engine: str) -> None:
    def load(relabelled: Callable[[Any], Any]) -> Data:
        data = clusters()
        frame = pd.DataFrame(data.x_train.astype(np.float64))
        return Data(frame, relabelled(data.y_train), data.x_valid, relabelled(data.y_valid))

    job = Job(0, PARENT, None, seed=1)
    expected = trainer(engine=engine, epochs=1).evaluate(job)
    for name, relabelled in LABELS.items():
        load_them = functools.partial(load, relabelled)
        for metric in ("accuracy", "acc"):
            found = trainer(engine=engine, epochs=1, load=load_them, metric=metric).evaluate(job)
            assert found.objective == pytest.approx(expected.objective), (name, metric)
            assert found.measures["engine"] == expected.measures["engine"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "NumPy trains, which is faster"),
        ({"engine": "keras"}, "Keras trains, as was asked for"),
        ({"optimizer": "Lion"}, "Keras trains, as the NumPy engine does not know the optimizer"),
        ({"metric": "accuracy", "optimizer": "SGD"}, "NumPy trains"),
        ({"epochs": 10**9}, "Keras trains, as a network of this space takes longer in NumPy"),
    ],
)
def test_says_which_engine_trains_and_why(options: dict[str, Any], said: str) -> None:
    line = trainer(**options).describe()
    assert line.startswith(said) and "\n" not in line


def test_several_inputs(tmp_path: Path) -> None:
    def load() -> Data:
        data = clusters()
        x, v = data.x_train, data.x_valid
        return Data((x[:, :2], x[:, 2:]), data.y_train, (v[:, :2], v[:, 2:]), data.y_valid)

    application = dataclasses.replace(APPLICATION, load=load, input_shapes=[(2,), (4,)])
    space = Normalized([(2,), (4,)], 3, "softmax")
    evaluation = TransferTrainer(application, space, NoTransfer()).evaluate(Job(0, PARENT, seed=1))
    assert evaluation.status == "DONE"
    assert evaluation.objective > 0.6


def raising(error: type[BaseException]):  # type: ignore[no-untyped-def]
    def loss(y_true: object, y_pred: object) -> object:
        raise error("on purpose")

    return loss


def test_what_goes_wrong_is_recorded_and_leaves_nothing(
    transfer: TransferMethod, caplog: pytest.LogCaptureFixture
) -> None:
    raises = trainer(transfer, loss=raising(ZeroDivisionError))
    diverges = trainer(transfer, learning_rate=1e30)
    reasons = {
        "F_ZeroDivisionError": "ZeroDivisionError: on purpose",
        "F_nan": "loss or objective is not a finite number",
    }
    for trains, status in zip((raises, diverges), reasons, strict=True):
        evaluation = trains.evaluate(Job(3, PARENT, None, seed=1))
        assert (evaluation.status, evaluation.measures["error"]) == (status, reasons[status])
        assert np.isnan(evaluation.objective)
        assert evaluation.measures["bytes_stored"] == 0
        assert transfer.best_match(SPACE.graph(PARENT)) is None
    assert "on purpose" in caplog.text
    wrong_genome = trainer().evaluate(Job(0, (9, 9), None, seed=1))
    assert wrong_genome.status == "F_SpaceError"


def test_an_interruption_passes(transfer: TransferMethod) -> None:
    trains = trainer(transfer, loss=raising(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trains.evaluate(Job(0, PARENT, None, seed=1))
    assert transfer.best_match(SPACE.graph(PARENT)) is None


class Failing(NoTransfer):
    """Fails at one of its calls."""

    def __init__(self, call: str, error: TransferError) -> None:
        self.calls: list[str] = []
        self._call, self._error = call, error

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if call == self._call:
            raise self._error

    def best_match(self, graph: LayerGraph, only: str = "") -> Inheritance | None:
        self._called("best_match")
        return _Unreadable(self) if self._call == "read" else None

    def put(self, *arguments: object, **options: object) -> int:
        self._called("put")
        return 8

    def retire(self, models: object) -> None:
        self._called("retire")


class _Unreadable(Inheritance):
    ancestor, score, layers, nbytes = "7", 1.0, ("Dense",), 4

    def __init__(self, method: Failing) -> None:
        self._method = method

    def read(self) -> dict[str, list[np.ndarray]]:
        self._method._called("read")
        return {}

    def close(self) -> None:
        self._method._called("close")


@pytest.mark.parametrize("call", ["best_match", "read", "put", "retire"])
@pytest.mark.parametrize("error", [TransferUnavailable("server gone"), TransferError("full")])
def test_a_search_goes_on_without_transfer_and_says_so_once(
    call: str, error: TransferError, caplog: pytest.LogCaptureFixture
) -> None:
    method = Failing(call, error)
    trains = trainer(method, epochs=1)
    evaluations = []
    for number in range(2):
        trains.retire([number])
        evaluations.append(trains.evaluate(Job(number, PARENT, None, seed=number)))

    gone = isinstance(error, TransferUnavailable)
    assert [e.status for e in evaluations] == ["DONE", "DONE"]
    assert method.calls.count(call) == (1 if gone else 2)
    assert method.calls.count("close") == method.calls.count("read")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(error) in caplog.text
    recorded = [e.measures.get("transfer_error", "") for e in evaluations]
    assert str(error) in recorded[0]
    assert (str(error) in recorded[1]) == (not gone)
    assert all(e.measures["layers_transferred"] == 0 for e in evaluations)


def test_weights_are_fetched_while_a_keras_model_is_built(
    store: cpp_store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer = StoreTransfer("clusters", store)
    trains = trainer(transfer, engine="keras", epochs=1)
    trains.evaluate(Job(0, PARENT, None, seed=1))
    building, overlapped = threading.Event(), []
    build, match = KerasEngine.candidate, transfer.best_match

    def building_now(self: KerasEngine, graph: LayerGraph, seed: int) -> object:
        building.set()
        return build(self, graph, seed)

    def matched(graph: LayerGraph, only: str = "") -> object:
        overlapped.append(building.wait(60))
        return match(graph, only)

    monkeypatch.setattr(KerasEngine, "candidate", building_now)
    monkeypatch.setattr(transfer, "best_match", matched)
    child = trains.evaluate(Job(1, CHILD, parent=0, seed=2))
    assert child.done and child.measures["layers_transferred"] == len(SHARED)
    assert overlapped == [True]


def test_a_lease_ends_though_the_model_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*given: object) -> None:
        raise MemoryError("on purpose")

    method = Failing("read", TransferError("unreadable"))
    monkeypatch.setattr(KerasEngine, "candidate", refused)
    failed = trainer(method, engine="keras").evaluate(Job(1, CHILD, parent=0, seed=2))
    assert failed.status == "F_MemoryError"
    assert Counter(method.calls) == {"best_match": 2, "read": 1, "close": 2}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"name": "frieze"}, r"'frieze'.*did you mean 'freeze'"),
        ({"schedule": "cosin"}, r"'cosin'.*did you mean 'cosine'"),
        ({"unfreeze_top": -1}, "unfreeze_top must not be negative: -1"),
        ({"child_epochs": 0}, "child_epochs must be at least 1, not 0"),
        ({"shrink_perturb": 1.0}, r"shrink_perturb must be in \[0, 1\), not 1.0"),
    ],
)
def test_a_wrong_policy_is_named(option: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Policy(**option)


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(InputError, match=r"'kears'.*did you mean 'keras'"):
        trainer(engine="kears")


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_does_not_grow_from_candidate_to_candidate(
    engine: str, store: cpp_store.Store
) -> None:
    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    trains = trainer(StoreTransfer("clusters", store), epochs=1, engine=engine)
    after = []
    for number in range(24):
        genome = (number % 2, number % 3)
        assert trains.evaluate(Job(number, genome, None, seed=number)).done
        trains.retire([number - 1])
        after.append(resident())
    # Keras' own fit leaves 13 MB behind for each model, which would be 200 MB here.
    assert after[-1] - after[11] < 24, after


OTHER_PROCESS = """
import json, sys
import test_trainer
from transfer_nas.transfer import HDF5Transfer
from pathlib import Path
trains = test_trainer.trainer(HDF5Transfer("clusters", Path(sys.argv[1])), engine=sys.argv[2])
jobs = [test_trainer.Job(0, (0, 0), None, 1), test_trainer.Job(1, (0, 1), 0, 2)]
evaluations = [trains.evaluate(job).to_dict() for job in jobs]
if sys.argv[2] == "keras":
    trains.save_model(Path(sys.argv[1]) / "last.keras")
print(json.dumps(evaluations))
"""


def in_another_process(directory: Path, backend: str, engine: str) -> list[Evaluation]:
    process = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(directory), engine],
        cwd=Path(__file__).parent,
        env=os.environ | {"KERAS_BACKEND": backend, "PYTHONHASHSEED": "3"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return [Evaluation.from_dict(fields) for fields in json.loads(process.stdout)]


@pytest.mark.parametrize("engine", ENGINES)
def test_another_process_gets_the_same_objectives(engine: str, tmp_path: Path) -> None:
    trains = trainer(HDF5Transfer("clusters", tmp_path / "here"), engine=engine)
    here = [
        trains.evaluate(Job(0, PARENT, None, seed=1)),
        trains.evaluate(Job(1, CHILD, parent=0, seed=2)),
    ]
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    there = in_another_process(tmp_path / "there", backend, engine)
    assert [e.objective for e in there] == [e.objective for e in here]


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_train_and_transfer(backend: str, tmp_path: Path) -> None:
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    parent, child = in_another_process(tmp_path, backend, "keras")
    assert (parent.status, child.status) == ("DONE", "DONE")
    assert min(parent.objective, child.objective) > 0.6
    assert child.measures["layers_transferred"] == len(SHARED)


def test_a_candidate_that_is_out_of_memory_fails_and_leaves_none_of_it_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import weakref

    tf = pytest.importorskip("tensorflow")
    from transfer_nas.training.keras_engine import KerasCandidate

    models: list[weakref.ref[object]] = []
    begin = KerasCandidate.training

    def training(self: KerasCandidate, *given: object, **named: object) -> object:
        models.append(weakref.ref(self._model))
        if len(models) == 1:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return begin(self, *given, **named)

    monkeypatch.setattr(KerasCandidate, "training", training)
    trains = trainer(engine="keras")
    with caplog.at_level(logging.CRITICAL):  # pytest would keep the traceback with all it refers to
        failed = trains.evaluate(Job(0, PARENT, None, seed=1))
    assert failed.status == "F_ResourceExhaustedError"
    assert trains.evaluate(Job(1, CHILD, None, seed=2)).done
    assert models[0]() is None and models[1]() is not None


def test_epochs_and_evaluations_are_logged(tmp_path: Path) -> None:
    with Log(tmp_path / "rank-0.jsonl") as log:
        logging_trainer = trainer(epochs=3, log=log, log_validation=True)
        evaluation = logging_trainer.evaluate(Job(7, PARENT, seed=1))
    found = logs.read(tmp_path / "rank-0.jsonl")["evaluation"]["7"]
    assert list(found["epoch"]) == ["1", "2", "3"]
    assert all({"loss", "val_loss", "learning_rate"} <= set(e) for e in found["epoch"].values())
    assert found["objective"] == evaluation.objective and found["status"] == "DONE"
    assert found["epochs"] == 3
    assert found["objective"] == found["epoch"]["3"]["val_accuracy"]
