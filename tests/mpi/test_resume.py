"""Killed at any moment, a search goes on as if nothing had happened.

The evaluations cost nothing; `end_to_end` resumes real ones.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FAKE = Path(__file__).with_name("fake_search.py")
LAUNCHER = Path(sys.executable).with_name("mpiexec")
OPTIONS = {"max_evals": 1200, "seconds": 0.002, "spread": 0.9, "fail_every": 7, "resume": True}


def start(path: Path, ranks: int) -> "subprocess.Popen[bytes]":
    """Begin the search, or take it up."""
    launcher = [LAUNCHER, "-n", str(ranks)] if ranks > 1 else []
    options = json.dumps({**OPTIONS, "pids": str(path.parent)})
    return subprocess.Popen(
        [*launcher, sys.executable, FAKE, path, options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def finished(path: Path) -> list[dict[str, str]]:
    """Return the rows that are whole, without what differs from run to run."""
    if not (path / "results.csv").exists():
        return []
    text = (path / "results.csv").read_text()
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    return [{k: v for k, v in row.items() if "timestamp" not in k} for row in rows]


def kill_at_a_random_moment(
    rng: random.Random, path: Path, process: "subprocess.Popen[bytes]", ranks: int
) -> None:
    """Let the search do something, then end it, or one of its ranks, without a warning."""
    more = rng.choice([0, 0, 1, 5, 12])
    wanted = len(finished(path)) + more
    while len(finished(path)) < wanted and process.poll() is None:
        time.sleep(0.001)
    time.sleep(rng.random() * (0.02 if more else 0.4))  # in the middle of something, or at a start
    pids = [path.parent / str(rank) for rank in range(ranks)]
    if ranks > 1 and rng.random() < 0.7 and all(file.exists() for file in pids):
        try:
            os.kill(int(rng.choice(pids).read_text()), signal.SIGKILL)  # mpiexec ends the others
        except (ProcessLookupError, ValueError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)
    for file in pids:
        file.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert start(path, 1).wait(60) == 0
    return finished(path)


@pytest.mark.parametrize(("ranks", "kills"), [(1, 30), (2, 20)])
def test_killed_again_and_again(
    tmp_path: Path, uninterrupted: list[dict[str, str]], ranks: int, kills: int
) -> None:
    rng = random.Random(6)
    path = tmp_path / "run"
    before: list[dict[str, str]] = []
    for _ in range(kills):
        kill_at_a_random_moment(rng, path, start(path, ranks), ranks)
        after = finished(path)
        assert after[: len(before)] == before  # nothing is lost
        before = after
    assert 0 < len(before) < 1200
    assert start(path, ranks).wait(60) == 0
    rows = finished(path)

    assert rows[: len(before)] == before
    jobs = [int(row["job_id"]) for row in rows]
    assert sorted(jobs) == list(range(1200))  # nothing is repeated, and nothing left out
    if ranks == 1:
        assert rows == uninterrupted
    else:
        # What was asked depends on what was told before, but for the first, random ones.
        genes = [name for name in rows[0] if name.startswith("p:")]
        first = {row["job_id"]: [row[g] for g in genes] for row in rows if int(row["job_id"]) < 8}
        for row in uninterrupted[:8]:
            assert first[row["job_id"]] == [row[gene] for gene in genes]
