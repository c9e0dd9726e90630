"""The manager and the serial host: what is kept, retired, counted, and how a failure looks."""

import io
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from graph_meta import LayerGraph, layers
from graph_meta.graph import GraphBuilder
from transfer_nas import runs
from transfer_nas.algorithms.evolution import AgingEvolution
from transfer_nas.algorithms.halving import SuccessiveHalving
from transfer_nas.algorithms.random_search import RandomSearch
from transfer_nas.job import DONE, Evaluation, Job
from transfer_nas.searching import serial
from transfer_nas.searching.evaluation import InProcess, checkpoints_path
from transfer_nas.searching.finalists import Finalists
from transfer_nas.searching.interruption import Interrupted, Interruption
from transfer_nas.searching.manager import Manager, Status
from transfer_nas.searching.progress import Goal, PlainProgress, describe, patience, seconds_left
from transfer_nas.searching.run_directory import RunDirectory
from transfer_nas.spaces import Choices, FeedForward, from_function

SPACE = FeedForward([(4,)], 2, max_depth=2)


class Evaluator:
    """Does what a function says; a saved model is the job's number."""

    def __init__(self, function: Callable[[Job], Evaluation]) -> None:
        self.function = function
        self.last = -1
        self.saved: list[int] = []

    def evaluate(self, job: Job) -> Evaluation:
        self.last = job.id
        return self.function(job)

    def save_model(self, path: Path) -> None:
        self.saved.append(self.last)
        path.write_text(str(self.last))


class Search:
    """A manager with everything that it reports to."""

    def __init__(
        self, path: Path, max_evals: int, *, resume: bool = False, give_up_after: int | None = None
    ) -> None:
        begin = RunDirectory.resume if resume else RunDirectory.create
        self.directory = begin(path, SPACE, {}, {})
        self.retired: list[int] = []
        self.reports: list[Status] = []
        self.warnings: list[str] = []
        self.log: list[str] = []
        self.manager = Manager(
            AgingEvolution(SPACE, 4, 2, seed=1),
            self.directory,
            max_evals=max_evals,
            retire=self._retire,
            report=self.reports.append,
            warn=self.warnings.append,
            give_up_after=give_up_after,
        )

    def _retire(self, jobs: Sequence[int]) -> None:
        self.retired.extend(jobs)

    def run(self, function: Callable[[Job], Evaluation]) -> Evaluator:
        evaluator = Evaluator(function)
        with self.directory, Interruption() as interruption:
            evaluate = InProcess(evaluator, self.directory.path, self.log.append)
            serial.run(self.manager, evaluate, interruption)
        return evaluator


def wavy(job: Job) -> Evaluation:
    """Best at job 5."""
    whole = SPACE.graph(job.architecture).nbytes
    measures = {
        "layers": 5,
        "layers_transferred": 2,
        "bytes_stored": 7,
        "bytes_whole_copy": whole,
    }
    return Evaluation(job, DONE, -abs(job.id - 5.0), measures)


def test_keeps_the_best_model_and_counts(tmp_path: Path) -> None:
    search = Search(tmp_path, 12)
    evaluator = search.run(wavy)
    assert (tmp_path / "best.safetensors").read_text() == "5"
    assert evaluator.saved == [0, 1, 2, 3, 4, 5]  # only what was better than all before
    assert not list(tmp_path.glob("candidate-*"))
    status = search.reports[-1]
    assert len(search.reports) == status.evaluations == status.fresh == 12
    assert status.best is not None and status.best.job.id == 5
    assert status.layers == 5 * 8 and status.layers_transferred == 2 * 8  # of the children
    assert status.share_transferred == 0.4
    assert status.bytes_stored == 7 * 12
    assert status.bytes_whole_copies == sum(
        SPACE.graph(job.architecture).nbytes for job in read_jobs(tmp_path)
    )
    assert search.retired == list(range(8))


def read_jobs(path: Path) -> list[Job]:
    return [
        Job.from_dict(json.loads(line), SPACE.from_json) for line in (path / "checkpoint").open()
    ]


def test_failures_are_rows_and_the_search_goes_on(tmp_path: Path) -> None:
    def unlucky(job: Job) -> Evaluation:
        if job.id % 3 == 0:
            raise ValueError("shape (3,) does not fit")
        measures = {"layers": 5, "bytes_whole_copy": 10}
        return Evaluation(job, DONE, math.nan if job.id % 3 == 1 else 1.0, measures)

    search = Search(tmp_path, 9)
    search.run(unlucky)
    statuses = [row.split(",")[6] for row in (tmp_path / "results.csv").read_text().splitlines()]
    assert statuses == ["job_status", *["F_ValueError", "F_nan", "DONE"] * 3]
    assert search.reports[-1].failures == 6
    assert search.reports[-1].bytes_whole_copies == 3 * 10
    assert any("shape (3,) does not fit" in text and "Traceback" in text for text in search.log)


def test_every_candidate_failing_leaves_no_best(tmp_path: Path) -> None:
    search = Search(tmp_path, 6)
    search.run(lambda job: Evaluation.failure(job, "oom"))
    assert search.manager.status.best is None
    assert search.manager.status.failures == search.manager.status.evaluations == 6
    assert not (tmp_path / "best.safetensors").exists()


def test_takes_up_a_search_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    Search(tmp_path / "straight", 30).run(wavy)
    Search(tmp_path / "halting", 7).run(wavy)
    second = Search(tmp_path / "halting", 30, resume=True)
    second.run(wavy)
    assert read_jobs(tmp_path / "halting") == read_jobs(tmp_path / "straight")
    assert second.reports[0].evaluations == 8 and second.reports[0].fresh == 1
    assert second.reports[-1].layers == 5 * 26
    assert (tmp_path / "halting" / "best.safetensors").read_text() == "5"


def test_what_died_is_retired_though_a_kill_came_between(tmp_path: Path) -> None:
    first = Search(tmp_path, 9)
    first.run(lambda job: Evaluation.failure(job, "lost") if job.id == 2 else wavy(job))
    assert first.retired == [2, 0, 1, 3, 4]
    second = Search(tmp_path, 9, resume=True)  # the first may have been killed before it did so
    with second.directory:
        assert sorted(second.retired) == sorted(first.retired)


def test_an_interrupted_evaluation_is_the_first_of_the_resumed_search(tmp_path: Path) -> None:
    def interrupt(job: Job) -> Evaluation:
        if job.id == 3:
            raise Interrupted
        return wavy(job)

    search = Search(tmp_path, 10)
    search.run(interrupt)
    assert search.manager.status.evaluations == 3
    resumed = Search(tmp_path, 4, resume=True)
    evaluator = resumed.run(wavy)
    assert evaluator.last == 3 and resumed.manager.status.evaluations == 4
    assert len(read_jobs(tmp_path)) == 4


def test_a_resumed_search_has_one_figure_for_each_thing(tmp_path: Path) -> None:
    """Terminal and summary (the status) and reports (what is read) agree, without the pause."""
    Search(tmp_path, 7).run(wavy)
    description = json.loads((tmp_path / "run.json").read_text())
    description["started"] -= 1000.0  # the first process ended a good while ago
    (tmp_path / "run.json").write_text(json.dumps(description))
    second = Search(tmp_path, 30, resume=True)
    second.run(wavy)
    status, found = second.manager.status, runs.read(tmp_path)
    assert 0 < status.seconds < 100
    assert found.seconds.max() == pytest.approx(status.seconds, abs=1e-5)  # as it is written
    assert found.numbers("m:timestamp_gather").max() > 1000
    figures = found.figures
    for name, value in {
        "evaluations": 30,
        "failures": 0,
        "seconds": status.seconds,
        "evaluations_per_second": status.evaluations_per_second,
        "share_transferred": status.share_transferred,
        "bytes_stored": status.bytes_stored,
        "bytes_whole_copies": status.bytes_whole_copies,
    }.items():
        assert figures[name] == pytest.approx(value, rel=1e-3), name
    assert status.best is not None and found.best is not None
    assert found.job[found.best] == status.best.job.id == 5


def test_of_equals_the_first_one_told_is_the_best_everywhere(tmp_path: Path) -> None:
    search = Search(tmp_path, 8)
    search.run(lambda job: Evaluation(job, DONE, float(job.id in (2, 5)), {"parameters": -job.id}))
    finalists = Finalists(2, lambda jobs: None, search.directory.evaluations)
    for evaluation in Search(tmp_path, 8, resume=True).directory.evaluations:
        finalists.observe(evaluation)
    found = runs.read(tmp_path)
    assert (tmp_path / "best.safetensors").read_text() == "2"
    assert [evaluation.job.id for evaluation in finalists.best] == [2, 5]
    assert found.job[found.ranking][:2].tolist() == [2, 5] and found.best == found.ranking[0]


def constant(choices: Choices) -> LayerGraph:
    builder = GraphBuilder()
    width = choices.choose("width", [8])
    return builder.build(builder.add(layers.dense(width), builder.input((4,))))


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_a_space_of_one_genome_ends_in_order(tmp_path: Path, beta: float) -> None:
    space = from_function(constant)([(4,)], 8)
    algorithm = AgingEvolution(space, 4, 2, seed=1, beta=beta)
    warnings: list[str] = []
    with RunDirectory.create(tmp_path, space, {}, {}) as directory, Interruption() as interruption:
        manager = Manager(
            algorithm,
            directory,
            max_evals=12,
            retire=lambda jobs: None,
            report=lambda status: None,
            warn=warnings.append,
        )
        evaluate = InProcess(
            Evaluator(lambda job: Evaluation(job, DONE, 0.5)), tmp_path, lambda line: None
        )
        serial.run(manager, evaluate, interruption)
    assert manager.exhausted and manager.status.evaluations == 1
    assert warnings == ["space constant holds one architecture: the search ends with it"]
    assert (tmp_path / "best.safetensors").exists()


def test_algorithms_agree_on_a_space_of_one_genome() -> None:
    space = from_function(constant)([(4,)], 8)
    assert len(RandomSearch(space, 4, seed=1).ask(5)) == 1
    assert len(SuccessiveHalving(space, 9, seed=1).ask(5)) == 5  # for more and more epochs


def test_models_that_a_killed_process_left_undecided(tmp_path: Path) -> None:
    search = Search(tmp_path, 6)
    search.run(wavy)
    (tmp_path / "best.safetensors").unlink()
    (tmp_path / "candidate-5.safetensors").write_text("5")  # written, told, not renamed
    (tmp_path / "candidate-6.safetensors").write_text("6")  # written, never told
    with Search(tmp_path, 6, resume=True).directory:
        assert (tmp_path / "best.safetensors").read_text() == "5"
        assert not list(tmp_path.glob("candidate-*"))


def test_what_an_evaluation_saved_goes_when_it_is_finished(tmp_path: Path) -> None:
    saved = checkpoints_path(tmp_path)

    def interrupt(job: Job) -> Evaluation:
        (saved / str(job.id)).mkdir(parents=True)
        if job.id == 3:
            raise Interrupted
        return wavy(job)

    Search(tmp_path, 10).run(interrupt)
    assert [path.name for path in saved.iterdir()] == ["3"]  # to be gone on with
    (saved / "2").mkdir()  # a process was killed before it could remove it
    with Search(tmp_path, 10, resume=True).directory:
        assert [path.name for path in saved.iterdir()] == ["3"]
    Search(tmp_path, 10, resume=True).run(wavy)
    assert not list(saved.iterdir())


def test_says_once_that_transfer_failed(tmp_path: Path) -> None:
    search = Search(tmp_path, 6)
    search.run(lambda job: Evaluation(job, DONE, 1.0, {"transfer_error": "no answer from host"}))
    assert len(search.warnings) == 1 and "no answer from host" in search.warnings[0]


def status(**changed: float | None) -> Status:
    values = {
        "evaluations": 10,
        "failures": 0,
        "max_evals": 40,
        "layers_transferred": 1,
        "layers": 4,
        "bytes_transferred": 0,
        "bytes_stored": 0,
        "bytes_whole_copies": 0,
        "seconds": 50.0,
        "here": 20.0,
        "fresh": 5,
        "best": Evaluation(Job(3, ()), DONE, 0.9639),
    }
    return Status(**(values | changed))  # type: ignore[arg-type]


def test_the_progress_line() -> None:
    assert describe(status(), None) == (
        "10/40 evaluations · best 0.9639 (job 3) · 25% of layers transferred · 2:00 left"
    )
    assert "2 failed" in describe(status(failures=2), None)
    assert seconds_left(status(), 100.0) == 80.0
    assert seconds_left(status(max_evals=None), None) is None
    assert seconds_left(status(evaluations=0, fresh=0), None) is None


def test_plain_progress_always_shows_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    with PlainProgress(sys.stdout, None) as progress:
        progress.update(status(evaluations=39))
        progress.update(status(evaluations=40))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["40/40"]


def test_the_reason_of_a_failure_is_one_short_line() -> None:
    job = Job(0, (0,))
    cause = ValueError("labels 1..3,\n  expected\t0..2")
    assert Evaluation.failure(job, "x", error=cause).measures == {
        "error": "ValueError: labels 1..3, expected 0..2"
    }
    assert Evaluation.failure(job, "x", error=KeyError()).measures == {"error": "KeyError"}
    (long,) = Evaluation.failure(job, "x", error="word " * 999).measures.values()
    assert isinstance(long, str) and len(long) == 300 and long.endswith("…")
    assert Evaluation.failure(job, "x").measures == {}


def failing(status: str, why: str) -> Callable[[Job], Evaluation]:
    return lambda job: Evaluation.failure(job, status, error=why.format(job.id))


def test_a_search_ends_when_nothing_works_for_one_reason(tmp_path: Path) -> None:
    search = Search(tmp_path, 100, give_up_after=5)
    search.run(failing("ValueError", "ValueError: expected 10 labels, found {}"))
    status = search.manager.status
    assert status.evaluations == status.failures == 5 and search.manager.hopeless
    assert search.warnings == ["job 0 failed: ValueError: expected 10 labels, found 0"]
    assert status.first_failure is not None and status.first_failure.job.id == 0

    # Resumed, it tries once more, as what was wrong may have been put right.
    again = Search(tmp_path, 100, resume=True, give_up_after=5)
    again.run(failing("ValueError", "ValueError: expected 10 labels, found {}"))
    assert again.manager.status.evaluations == 6 and again.manager.hopeless


@pytest.mark.parametrize("which", ["one works", "other reasons", "other exceptions"])
def test_a_search_goes_on_while_there_is_hope(tmp_path: Path, which: str) -> None:
    def function(job: Job) -> Evaluation:
        if job.id == 3 and which == "one works":
            return Evaluation(job, DONE, 1.0)
        reason = "abcdefghij"[job.id % 10] if which == "other reasons" else "a"
        kind = "OSError" if which == "other exceptions" and job.id == 2 else "ValueError"
        return failing(kind, reason)(job)

    search = Search(tmp_path, 12, give_up_after=5)
    search.run(function)
    assert search.manager.status.evaluations == 12 and not search.manager.hopeless


def test_people_read_the_metric_and_which_way_is_better() -> None:
    found = status(best=Evaluation(Job(3, ()), DONE, -0.2925))  # type: ignore[arg-type]
    assert "lowest mae 0.2925 (job 3)" in describe(found, None, Goal("mae", minimized=True))
    assert Goal("mae", minimized=True).value(0.0) == 0.0
    assert "-" not in str(Goal("mae", minimized=True).value(0.0))


def test_progress_comes_before_the_first_evaluation_ends() -> None:
    said = threading.Event()

    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            said.set()
            return super().write(text)

    with patience(Terminal(), "loading", silent=0.01):
        assert said.wait(60)
    quick = io.StringIO()
    with patience(quick, "loading", silent=3600):
        pass
    assert quick.getvalue() == ""


def test_what_was_not_declared_fails_and_its_model_goes(tmp_path: Path) -> None:
    search = Search(tmp_path, 4)
    search.run(
        lambda job: Evaluation(job, DONE, 1.0, {"layers": 3, "mine": 2} if job.id == 1 else {})
    )
    failed = search.manager.status.first_failure
    assert failed is not None and failed.status == "F_undeclared" and failed.job.id == 1
    assert failed.measures[
        "error"
    ] == "measured and not declared: mine; an application declares " + ("its `values`")
    assert failed.measures["layers"] == 3 and search.retired[0] == 1


def test_a_decision_that_is_none_is_said(tmp_path: Path) -> None:
    class Undecided(AgingEvolution):
        def report(self, job: Job, step: int, values: Mapping[str, float]) -> Any:
            return "maybe"

    directory = RunDirectory.create(tmp_path, SPACE, {}, {})
    algorithm = Undecided(SPACE, 4, 2, seed=1)
    manager = Manager(algorithm, directory, max_evals=2, retire=print, report=print, warn=print)
    (job,) = manager.next_jobs(1)
    assert not manager.report(99, 1, {})  # of a job that nobody waits for
    with pytest.raises(ValueError, match=r"Undecided.report: expected continue or stop, found 'ma"):
        manager.report(job.id, 1, {})
