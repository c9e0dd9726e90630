"""The best models stay until the search is over; then they train on."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

from transfer_nas.job import DONE, Evaluation, Job
from transfer_nas.searching.finalists import Finalists


def evaluation(id: int, objective: float) -> Evaluation:
    return Evaluation(Job(id, (0,), None, 0), DONE, objective)


def test_the_best_are_retired_when_better_ones_take_their_place() -> None:
    retired: list[int] = []
    finalists = Finalists(2, retired.extend, [evaluation(0, 0.5)])
    for id, objective in [(1, 0.9), (2, 0.3), (3, 0.5)]:
        finalists.observe(evaluation(id, objective))
    finalists.observe(Evaluation.failure(Job(4, (0,), None, 0), "nan"))
    # Of equals the one told first, as best.keras.
    assert [found.job.id for found in finalists.best] == [1, 0]

    finalists.retire([0, 1, 3])
    assert retired == [3]
    finalists.observe(evaluation(5, 0.7))
    assert retired == [3, 0]
    assert [found.job.id for found in finalists.best] == [1, 5]


def test_without_finalists_all_are_retired() -> None:
    retired: list[int] = []
    finalists = Finalists(0, retired.extend)
    finalists.observe(evaluation(0, 0.5))
    finalists.retire([0])
    assert retired == [0] and finalists.best == []


def test_a_search_retrains_its_best(tmp_path: Path) -> None:
    path = tmp_path / "run"
    arguments = (
        *("--application", "digits", "--population_size", "3", "--sample_size", "2"),
        *("--max_evals", "9", "--epochs", "2", "--seed", "1", "--retrain", "2"),
        *("--output_dir", str(path)),
    )
    done = subprocess.run(
        [sys.executable, "-m", "transfer_nas.evolve", *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with (path / "results.csv").open() as file:
        found = {int(row["job_id"]): float(row["objective"]) for row in csv.DictReader(file)}
    retrained = json.loads((path / "retrained.json").read_text())
    assert [each["objective_in_search"] for each in retrained] == sorted(found.values())[:-3:-1]
    for each in retrained:
        assert each["objective_in_search"] == found[each["job"]]
        assert each["status"] == "DONE" and each["epochs"] == 10  # the application's
        assert each["objective"] > each["objective_in_search"] - 0.01
        assert (path / each["model"]).stat().st_size > 1_000
