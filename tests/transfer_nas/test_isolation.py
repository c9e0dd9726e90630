"""Evaluations in a child process: what it says, and what becomes of it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from transfer_nas.errors import InputError, Unwritable
from transfer_nas.job import DONE, Job
from transfer_nas.searching.interruption import Interrupted, Interruption
from transfer_nas.searching.isolation import InChild

SPACE: Any = SimpleNamespace(to_json=list)

PROGRAM = """
import errno, math, os, sys, time
from transfer_nas.errors import InputError
from transfer_nas.job import DONE, Evaluation
from types import SimpleNamespace

class Evaluator:
    space = SimpleNamespace(from_json=tuple)

    def __init__(self, broken=None):
        if broken == "input":
            raise InputError("no such data")
        if broken == "exit":
            sys.exit(3)
        self.count = 0

    def evaluate(self, job):
        self.count += 1
        if job.id == 1:
            raise ValueError("does not fit")
        if job.id == 2:
            os.abort()
        if job.id == 3:
            time.sleep(3600)
        if job.id == 18:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        if job.id == 19:
            raise FileNotFoundError(errno.ENOENT, "no such data")
        objective = math.nan if job.id == 4 else 0.1 + 0.2
        measures = {"layers": self.count, "ancestor": "m-1", "parameters": os.getpid()}
        return Evaluation(job, DONE, objective, measures)

    def save_model(self, path):
        path.write_text("model")
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., InChild]:
    """Return a function that prepares an `InChild`; what it logs is in its `said`."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def prepare(timeout: float | None = None, **arguments: str) -> InChild:
        said: list[str] = []
        factory = f"{tmp_path}/program.py:Evaluator"
        child = InChild(factory, arguments, tmp_path, space=SPACE, timeout=timeout, log=said.append)
        child.said = said  # type: ignore[attr-defined]
        return child

    return prepare


def test_an_evaluation_comes_back_whole(start: Callable[..., InChild], tmp_path: Path) -> None:
    job = Job(7, (1, 2), 3, 99, epochs=4, trained=2)
    with start() as evaluate:
        before = time.time()
        first = evaluate(job, -float("inf"))
        assert (tmp_path / "candidate-7.safetensors").read_text() == "model"
        second = evaluate(Job(8, (1, 2)), 0.9)
        assert not (tmp_path / "candidate-8.safetensors").exists()
    assert first.job == job and (first.status, first.objective) == (DONE, 0.1 + 0.2)
    assert (first.measures["layers"], second.measures["layers"]) == (1, 2)  # one child for both
    assert first.measures["ancestor"] == "m-1"
    assert before <= first.measures["timestamp_start"] <= first.measures["timestamp_end"]


def test_failures_of_the_candidate_keep_the_child(start: Callable[..., InChild]) -> None:
    with start() as evaluate:
        raised, diverged = evaluate(Job(1, ()), 0.0), evaluate(Job(4, ()), 0.0)
        assert (raised.status, diverged.status) == ("F_ValueError", "F_nan")
        assert raised.measures["error"] == "ValueError: does not fit"
        assert diverged.measures["error"] == "the objective is nan, not a finite number"
        assert evaluate(Job(5, ()), 0.0).measures["layers"] == 3


def test_a_full_disk_is_no_failure_of_the_candidate(start: Callable[..., InChild]) -> None:
    with start() as evaluate:
        assert evaluate(Job(19, ()), 0.0).status == "F_FileNotFoundError"
        with pytest.raises(Unwritable, match=r"^job 18 .*quota exceeded; .* --resume$"):
            evaluate(Job(18, ()), 0.0)
        assert evaluate(Job(5, ()), 0.0).done


def test_a_model_that_cannot_be_kept_is_no_failure_either(
    start: Callable[..., InChild], tmp_path: Path
) -> None:
    with start() as evaluate:
        (tmp_path / "candidate-5.safetensors").mkdir()
        with pytest.raises(Unwritable, match=f"^cannot write to {tmp_path}"):
            evaluate(Job(5, ()), 0.0)


def test_a_crash_costs_the_child_and_the_next_job_gets_a_new_one(
    start: Callable[..., InChild],
) -> None:
    with start() as evaluate:
        crashed = evaluate(Job(2, ()), 0.0)
        assert crashed.status == "F_lost"
        assert crashed.measures["error"] == "the evaluation ended its process: killed by SIGABRT"
        assert evaluate.said == ["job 2 ended its process: killed by SIGABRT"]
        assert evaluate(Job(5, ()), 0.0).measures["layers"] == 1


def test_a_child_that_takes_too_long_is_ended(start: Callable[..., InChild]) -> None:
    with start(timeout=1.0) as evaluate:
        pid = evaluate(Job(0, ()), 0.0).measures["parameters"]
        begin = time.monotonic()
        late = evaluate(Job(3, ()), 0.0)
        assert late.status == "F_timeout"
        assert late.measures["error"] == "the evaluation took more than 1 seconds"
        assert time.monotonic() - begin >= 1.0
        assert not Path(f"/proc/{pid}").exists()
        assert evaluate(Job(5, ()), 0.0).done


def test_an_interruption_ends_the_child(start: Callable[..., InChild]) -> None:
    with start() as evaluate, Interruption(1.5) as interruption:
        pid = evaluate(Job(0, ()), 0.0).measures["parameters"]
        with pytest.raises(Interrupted), interruption.evaluating():
            evaluate(Job(3, ()), 0.0)
        assert not Path(f"/proc/{pid}").exists()


def test_what_is_wrong_at_the_start_is_said(start: Callable[..., InChild]) -> None:
    with pytest.raises(InputError, match="no such data"), start(broken="input"):
        pass
    with pytest.raises(RuntimeError, match="at its start: exit code 3"), start(broken="exit"):
        pass


def test_the_child_goes_with_the_rank_however_that_ends(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    code = f"""
from pathlib import Path
from transfer_nas.job import Job
from transfer_nas.searching.isolation import InChild
from types import SimpleNamespace
path, space = Path("{tmp_path}"), SimpleNamespace(to_json=list)
factory = f"{{path}}/program.py:Evaluator"
with InChild(factory, {{}}, path, space=space, timeout=None, log=print) as evaluate:
    print(evaluate(Job(0, ()), 0.0).measures["parameters"], flush=True)
    evaluate(Job(3, ()), 0.0)
"""
    rank = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert rank.stdout is not None
    child = int(rank.stdout.readline())
    os.kill(child, 0)  # it is there
    rank.send_signal(signal.SIGKILL)
    rank.wait(10)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}/exe").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}/exe").exists()
