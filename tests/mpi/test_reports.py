"""Epochs are told to algorithms that want to know, and jobs stop when those say so."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "programs" / "stopping.py"
EPOCHS = 12


def search(mpiexec: Any, ranks: int, path: Path, **options: Any) -> dict[str, Any]:
    options = {"max_evals": 40, "epochs": EPOCHS, "seconds": 0.005, **options}
    done = mpiexec(ranks, PROGRAM, path, json.dumps(options))
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("options", [{}, {"isolate": True}, {"synchronous": True}])
def test_what_is_worse_than_the_median_stops(
    mpiexec: Any, tmp_path: Path, ranks: int, options: dict[str, Any]
) -> None:
    told = search(mpiexec, ranks, tmp_path, **options)
    found = rows(tmp_path)
    assert sorted(int(row["job_id"]) for row in found) == list(range(40))
    assert {row["job_status"] for row in found} == {"DONE"}
    epochs = {int(row["job_id"]): int(row["m:epochs"]) for row in found}
    early = {job for job, count in epochs.items() if count < EPOCHS}
    assert len(early) >= 8
    # Nothing stops unless it was told to; a stop that comes with the last epoch changes nothing.
    assert early <= set(told["stopped"])
    assert len(set(told["stopped"]) - early) <= 4
    full = [row for row in found if int(row["m:epochs"]) == EPOCHS]
    best = max(found, key=lambda row: float(row["objective"]))
    assert best in full and int(best["job_id"]) == told["best"]
    for row in found:  # what is recorded is what it was after its epochs
        left = 1 - 0.5 ** int(row["m:epochs"])
        assert (float(row["objective"]) / left) == pytest.approx(
            round(float(row["objective"]) / left)
        )
    assert told["threads"] == (["MainThread"] if ranks == 1 else ["manager"])
    if ranks == 1 and not options.get("isolate"):
        assert told["heard"] == sum(epochs.values())  # and the answer came at once


@pytest.mark.parametrize("ranks", [1, 3])
def test_nobody_is_told_who_does_not_want_to_know(mpiexec: Any, tmp_path: Path, ranks: int) -> None:
    for isolate in (False, True):
        path = tmp_path / str(isolate)
        told = search(mpiexec, ranks, path, silent=True, isolate=isolate, max_evals=12, seconds=0)
        assert told["heard"] == 0
        # 0: it was called without a report.
        assert {(row["m:epochs"], row["m:layers"]) for row in rows(path)} == {(str(EPOCHS), "0")}


def test_a_worker_does_not_wait_for_the_manager(mpiexec: Any, tmp_path: Path) -> None:
    # Epochs are far shorter than the time between two looks of the manager for messages.
    told = search(mpiexec, 3, tmp_path, epochs=2000, seconds=0, max_evals=12, synchronous=True)
    found = rows(tmp_path)
    assert len(found) == 12 and told["heard"] > 0


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_search_that_was_cut_off_goes_on(mpiexec: Any, tmp_path: Path, ranks: int) -> None:
    search(mpiexec, ranks, tmp_path, timeout=3.0, seconds=0.02, max_evals=100_000)
    before = rows(tmp_path)
    total = len(before) + 40
    assert 0 < len(before) < 100_000
    told = search(mpiexec, ranks, tmp_path, resume=True, max_evals=total)
    after = rows(tmp_path)
    assert after[: len(before)] == before
    assert sorted(int(row["job_id"]) for row in after) == list(range(total))
    assert told["stopped"]
