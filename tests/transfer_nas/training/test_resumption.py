"""A training whose process was killed goes on at its epoch, to the same end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpp_store
from graph_meta import layers
from graph_meta.graph import GraphBuilder, LayerGraph
from transfer_nas.applications import Application, Data
from transfer_nas.checkpoint import Checkpoint
from transfer_nas.job import Evaluation, Job
from transfer_nas.spaces import Gene, Space
from transfer_nas.trainer import POLICIES, TransferTrainer
from transfer_nas.training.policy import Policy
from transfer_nas.training.program import Epochs, Outcome
from transfer_nas.transfer import NoTransfer, StoreTransfer, Tensors, TransferMethod

EPOCHS = 6
PARENT, CHILD = Job(0, (0, 0), None, seed=1), Job(1, (0, 1), 0, seed=2)


class Small(Space):
    """Two dense layers with statistics and something random between them."""

    name = "small"
    genes = (Gene("first", (9, 12)), Gene("second", (8, 10)))

    def graph(self, genome: tuple[int, ...]) -> LayerGraph:
        values = self.values(genome)
        builder = GraphBuilder()
        edge = builder.add(layers.dense(values["first"]), self._features(builder))
        edge = builder.add(layers.batch_normalization(momentum=0.5), edge)
        edge = builder.add(layers.dropout(0.2), edge)
        edge = builder.add(layers.dense(values["second"], activation="relu"), edge)
        return self._head(builder, edge)


def clusters() -> Data:
    rng = np.random.default_rng(7)
    labels = rng.integers(3, size=100).astype(np.int32)
    points = (rng.normal(size=(3, 6))[labels] + rng.normal(size=(100, 6))).astype(np.float32)
    return Data(points[:70], labels[:70], points[70:], labels[70:])


APPLICATION = Application(
    name="clusters",
    load=clusters,
    input_shapes=[(6,)],
    output_units=3,
    output_activation="softmax",
    loss="sparse_categorical_crossentropy",
    metric="sparse_categorical_accuracy",
    learning_rate=0.02,
    epochs=EPOCHS,
    batch_size=16,
)


class Killed(BaseException):
    """As far as the trainer can tell, the process is gone."""


class Process:
    """A trainer that counts its epochs and can be killed before one of them."""

    def __init__(
        self,
        path: Path,
        patch: pytest.MonkeyPatch,
        transfer: TransferMethod | None = None,
        **options: Any,
    ) -> None:
        self.warnings: list[str] = []
        self.epochs = 0
        self.kill_before = -1
        self.trainer = TransferTrainer(
            APPLICATION,
            Small([(6,)], 3, "softmax"),
            transfer or NoTransfer(),
            checkpoint=Checkpoint(path, self.warnings.append),
            **{"save_every": 0.0, "policy": Policy(child_epochs=EPOCHS), **options},
        )
        self._patch = patch

    def evaluate(self, job: Job, kill_before: int = -1) -> Evaluation | None:
        """Return None if it was killed."""
        self.epochs = 0
        run = Epochs.run
        process = self

        def observed(program: Epochs, candidate: Any, *arguments: Any) -> Outcome:
            begin = candidate.training

            def training(*given: Any, **named: Any) -> Any:
                running = begin(*given, **named)
                epoch = running.epoch

                def counted(*given: Any) -> float:
                    if process.epochs == kill_before:
                        raise Killed
                    process.epochs += 1
                    return float(epoch(*given))

                running.epoch = counted
                return running

            candidate.training = training
            return run(program, candidate, *arguments)

        with self._patch.context() as patch:
            patch.setattr(Epochs, "run", observed)
            try:
                return self.trainer.evaluate(job)
            except Killed:
                return None

    def weights(self) -> Tensors:
        candidate = self.trainer._last
        assert candidate is not None
        tensors = candidate.tensors(candidate.graph.names)
        return {name: [np.array(array) for array in arrays] for name, arrays in tensors.items()}


def same(a: Tensors, b: Tensors) -> bool:
    assert a.keys() == b.keys()
    return all(
        x.tobytes() == y.tobytes() for name in a for x, y in zip(a[name], b[name], strict=True)
    )


@pytest.mark.parametrize(
    ("engine", "policy"),
    [*(("auto", policy) for policy in POLICIES), ("keras", "freeze_then_finetune")],
)
def test_killed_twice_it_ends_as_if_it_had_not_been(
    engine: str, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = "16MiB"
    with cpp_store.embedded(memory=memory) as store, cpp_store.embedded(memory=memory) as other:
        options = {"engine": engine, "policy": Policy(policy, child_epochs=EPOCHS)}
        straight = Process(tmp_path / "a", monkeypatch, StoreTransfer("clusters", store), **options)
        straight.evaluate(PARENT)
        expected = straight.evaluate(CHILD)
        assert expected is not None and straight.epochs == EPOCHS

        transfer = StoreTransfer("clusters", other)
        Process(tmp_path / "b", monkeypatch, transfer, **options).evaluate(PARENT)
        first = Process(tmp_path / "b", monkeypatch, transfer, **options)
        assert first.evaluate(CHILD, kill_before=2) is None
        second = Process(tmp_path / "b", monkeypatch, transfer, **options)
        assert second.evaluate(CHILD, kill_before=3) is None
        third = Process(tmp_path / "b", monkeypatch, transfer, **options)
        found = third.evaluate(CHILD)

        assert third.epochs == 1  # two, three, and the last one
        assert found is not None and found.objective == expected.objective
        assert same(third.weights(), straight.weights())
        for name in ("ancestor", "layers_transferred", "bytes_transferred", "bytes_stored"):
            assert found.measures[name] == expected.measures[name]
        assert found.measures["layers_transferred"] and first.warnings == third.warnings == []


def test_the_ancestor_may_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with cpp_store.embedded(memory="16MiB") as store:
        transfer = StoreTransfer("clusters", store)
        first = Process(tmp_path, monkeypatch, transfer)
        first.evaluate(PARENT)
        expected = first.evaluate(CHILD)
        weights = first.weights()
        transfer.retire(["1"])
        first.trainer._checkpoint.section("1").clear()  # type: ignore[union-attr]
        assert first.evaluate(CHILD, kill_before=4) is None
        transfer.retire(["0"])

        second = Process(tmp_path, monkeypatch, transfer)
        found = second.evaluate(CHILD)
        assert expected is not None and found is not None
        assert second.epochs == 2 and found.objective == expected.objective
        assert same(second.weights(), weights)
        # With nobody to share with, all of it is its own.
        assert found.measures["bytes_stored"] == found.measures["bytes_whole_copy"]
        match = transfer.best_match(second.trainer.space.graph(CHILD.architecture))
        assert match is not None and match.ancestor == "1"
        with match:
            assert same(match.read(), weights)


def test_what_was_saved_for_something_else_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Process(tmp_path, monkeypatch).evaluate(PARENT, kill_before=4)
    other_genome = Job(0, (1, 1), None, seed=1)
    process = Process(tmp_path, monkeypatch)
    assert process.evaluate(other_genome, kill_before=EPOCHS) is not None
    assert process.epochs == EPOCHS


def test_a_damaged_checkpoint_costs_an_epoch_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = Process(tmp_path / "a", monkeypatch)
    straight.evaluate(PARENT)
    Process(tmp_path / "b", monkeypatch).evaluate(PARENT, kill_before=4)
    (tmp_path / "b" / "0" / "epochs").write_bytes(b"not what it was")
    process = Process(tmp_path / "b", monkeypatch)
    process.evaluate(PARENT)
    assert process.epochs == EPOCHS - 3
    assert same(process.weights(), straight.weights())
    assert "epochs is damaged" in process.warnings[0]


def test_a_short_training_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Process(tmp_path, monkeypatch, save_every=60.0).evaluate(PARENT)
    assert not list(tmp_path.iterdir())
