"""Searches that run out of disk: their own, or that of the store's servers."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

import cpp_store

from ..conftest import SmallDisk
from ..cpp_store import servers

pytestmark = pytest.mark.long

SEARCH = [
    *("-m", "transfer_nas.evolve", "--application", "digits", "--space", "feed_forward"),
    *("--epochs", "2", "--population_size", "4", "--sample_size", "2", "--seed", "1", "--json"),
]
STORE_BYTES = 64 << 20


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("how", [[], ["--isolate"]], ids=["in the ranks", "in children"])
def test_a_search_without_room_ends_with_a_line_and_goes_on_when_there_is_some(
    mpiexec: Any, small_disk: SmallDisk, how: list[str]
) -> None:
    small_disk.resize("160k")
    path = small_disk.path / "run"
    search = [*SEARCH, *how, "--max_evals", "60", "--output_dir", path]
    done = mpiexec(2, *search, timeout=200, env={"MODEL_SERVERS": ""})
    assert done.returncode in (75, 9)  # 9: of a rank that the launcher killed
    lines = [line for line in done.stderr.splitlines() if line.startswith("evolve: error: ")]
    assert 1 <= len(lines) <= 2  # the other rank may find the same at the same moment
    assert all("No space left on device" in line and "--resume" in line for line in lines)
    assert "Traceback" not in done.stderr
    before = rows(path)
    assert all(row["job_status"] == "DONE" for row in before)

    small_disk.resize("64m")
    done = mpiexec(2, *SEARCH, "--resume", "--output_dir", path, timeout=200)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["evaluations"] == 60 and result["failures"] == 0
    after = rows(path)
    assert after[: len(before)] == before
    assert sorted(int(row["job_id"]) for row in after) == list(range(60))
    assert (path / "best.keras").exists()


def test_a_run_that_cannot_even_begin_is_a_line(mpiexec: Any, small_disk: SmallDisk) -> None:
    small_disk.resize("4k")
    (small_disk.path / "full").write_bytes(bytes(4096))
    done = mpiexec(2, *SEARCH, "--output_dir", small_disk.path / "run", timeout=100)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("evolve: error: cannot write to") and "No space left" in line


def test_servers_without_room_cost_only_ancestors(
    mpiexec: Any, small_disk: SmallDisk, tmp_path: Path
) -> None:
    """A server leaves 16 MiB of its disk free; what is there above that is soon used up."""
    filler = small_disk.path / "other"
    filler.write_bytes(bytes(STORE_BYTES - (16 << 20) - (200 << 10)))
    arguments = ("--memory", "256MiB", "--log-level", "error", "--data_dir")
    with servers.doomed(1, *arguments, str(small_disk.path / "data")) as [address]:
        search = [*SEARCH, "--max_evals", "24", "--output_dir", tmp_path / "run"]
        done = mpiexec(2, *search, timeout=200, env=os.environ | {"MODEL_SERVERS": address})
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        assert result["evaluations"] == 24 and result["failures"] == 0
        errors = [row["m:transfer_error"] for row in rows(tmp_path / "run")]
        assert any("disk is full" in error for error in errors)
        with cpp_store.connect(address) as store:
            assert store.verify() == []
            assert all(store.read(model) for model in store.list())  # what is stored is whole
