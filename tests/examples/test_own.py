"""Tasks of one's own, from a file each: on several ranks, killed and resumed."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parents[2] / "examples"


def search(example: str, run: Path, *options: str) -> list[str]:
    task = ["--application", str(EXAMPLES / example), "--output_dir", str(run)]
    return ["-m", "transfer_nas.evolve", *task, *options]


def rows(run: Path) -> list[dict[str, str]]:
    if not (run / "results.csv").exists():
        return []
    with (run / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_training_loop_of_ones_own_is_killed_and_resumed(tmp_path: Path, mpiexec: Any) -> None:
    run = tmp_path / "run"
    options = ["--max_evals", "6", "--population_size", "2", "--epochs", "5", "--seed", "1"]
    options += ["--space", "feed_forward"]  # small ones
    launcher = [str(Path(sys.executable).with_name("mpiexec")), "-n", "3", sys.executable]
    process = subprocess.Popen(
        [*launcher, *search("own_training.py", run, *options)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        # In the middle of trainings that have saved something.
        while not list(run.glob("evaluations/*/fit-0/progress.npy")) or len(rows(run)) < 1:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
    before = rows(run)
    assert 1 <= len(before) < 6

    done = mpiexec(3, *search("own_training.py", run, "--resume"), timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Keras trains, as the application has a fit of its own" in done.stderr
    after = rows(run)
    assert after[: len(before)] == before
    assert sorted(int(row["job_id"]) for row in after) == list(range(6))
    assert {row["job_status"] for row in after} == {"DONE"}
    assert {row["m:engine"] for row in after} == {"keras"}
    assert all(1 <= int(row["m:epochs"]) <= 5 for row in after)
    assert max(float(row["objective"]) for row in after) > 0.8
    assert any(row["m:layers_transferred"] not in ("", "0") for row in after)
    assert (run / "best.keras").exists()
    assert not list((run / "evaluations").glob("*"))  # what is finished leaves nothing


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_measure_of_ones_own_is_the_objective(tmp_path: Path, mpiexec: Any, ranks: int) -> None:
    run = tmp_path / "run"
    options = ["--max_evals", "8", "--population_size", "3", "--epochs", "1", "--seed", "1"]
    if ranks > 1:
        options.append("--isolate")
    done = mpiexec(ranks, *search("own_measure.py", run, *options), timeout=120)
    assert done.returncode == 0, done.stderr
    assert "the objective is predict_ms: lower is better" in done.stderr
    found = rows(run)
    assert len(found) == 8 and {row["job_status"] for row in found} == {"DONE"}
    for row in found:
        assert float(row["m:predict_ms"]) == -float(row["objective"]) > 0
        assert 0 <= int(row["m:confident"]) <= 143 and float(row["m:accuracy"]) > 0
    lowest = min(float(row["m:predict_ms"]) for row in found)
    assert f"lowest predict_ms {lowest:.4f}" in done.stdout

    text = (EXAMPLES / "own_measure.py").read_text()
    for before, now, says in (
        (
            'objective="predict_ms"',
            'objective="confident"',
            "was started with objective predict_ms",
        ),
        ('"ms", "min"', '"s", "min"', "was started with declared other values of the names"),
    ):
        assert before in text
        (tmp_path / "task.py").write_text(text.replace(before, now))
        task = ["--application", str(tmp_path / "task.py")]
        (run / "run.json").write_text(
            (run / "run.json").read_text().replace(str(EXAMPLES / "own_measure.py"), task[1])
        )
        refused = mpiexec(1, *search("own_measure.py", run, "--resume", *task), timeout=60)
        assert refused.returncode == 2 and says in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_plain_torch_loop_of_ones_own(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    options = ["--max_evals", "4", "--population_size", "2", "--epochs", "3", "--seed", "1"]
    done = subprocess.run(
        [sys.executable, *search("own_torch_training.py", tmp_path / "run", *options)],
        env=os.environ | {"KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "run")
    assert {row["job_status"] for row in found} == {"DONE"}
    assert max(float(row["objective"]) for row in found) > 0.8
    assert any(int(row["m:layers_transferred"]) for row in found)
