"""Searches whose store servers are killed, hang for a while, or are full: they go on and say so."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cpp_store

ROOT = Path(__file__).parents[2]
SEARCH = [
    *("-m", "transfer_nas.evolve", "--application", "digits", "--space", "feed_forward"),
    *("--epochs", "2", "--population_size", "4", "--sample_size", "2", "--max_evals", "14"),
    *("--seed", "1", "--json"),
]


@contextmanager
def servers(count: int, memory: str) -> Iterator[dict[str, "subprocess.Popen[str]"]]:
    """Run servers; yield them by their addresses."""
    found = [ROOT / "build" / "dev" / "cpp_store" / "cpp-store-server"]
    found += [Path(sys.executable).with_name("cpp-store-server")]
    program = next(path for path in found if path.exists())
    command = [program, "ofi+tcp://127.0.0.1:0", "--memory", memory, "--log-level", "error"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        by_address = {}
        for process in processes:
            assert process.stdout is not None
            match = re.search(r"ofi\+tcp://[\d.]+:\d+", process.stdout.readline())
            assert match is not None
            by_address[match[0]] = process
        yield by_address
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "results.csv").open() as file:
        return list(csv.DictReader(file))


def begin(path: Path, addresses: list[str], replicas: int) -> "subprocess.Popen[str]":
    launcher = Path(sys.executable).with_name("mpiexec")
    return subprocess.Popen(
        [launcher, "-n", "2", sys.executable, *SEARCH, "--replicas", str(replicas), "--output_dir",
         path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"MODEL_SERVERS": " ".join(addresses)},
    )  # fmt: skip


def wait_for_rows(process: "subprocess.Popen[str]", path: Path, count: int) -> None:
    while not (path / "results.csv").exists() or len(rows(path)) < count:
        assert process.poll() is None
        time.sleep(0.02)


def finish(process: "subprocess.Popen[str]") -> dict[str, object]:
    try:
        out, err = process.communicate(timeout=150)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, err
    assert "Traceback" not in err
    result = json.loads(out.splitlines()[-1])
    assert isinstance(result, dict)
    return result


def logged(path: Path) -> str:
    return "".join(log.read_text() for log in (path / "logs").glob("rank-*.log"))


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("fault", ["killed", "stopped for a while"])
def test_a_server_that_goes_in_the_middle_of_a_search(
    tmp_path: Path, replicas: int, fault: str
) -> None:
    path = tmp_path / "run"
    with servers(2, "256MiB") as group:
        process = begin(path, list(group), replicas)
        wait_for_rows(process, path, 4)
        address, server = next(iter(group.items()))
        if fault == "killed":
            server.kill()
        else:
            server.send_signal(signal.SIGSTOP)
            wait_for_rows(process, path, 8)
            server.send_signal(signal.SIGCONT)
        result = finish(process)
        assert result["evaluations"] == 14 and result["failures"] == 0
        found = rows(path)
        assert sorted(int(row["job_id"]) for row in found) == list(range(14))
        text = logged(path)
        assert "the search goes on without transfer" not in text
        if fault == "killed":
            lines = re.findall(rf"store server {re.escape(address)} is gone: (.*)", text)
            assert 1 <= len(lines) <= 2  # one a rank
            means = "are lost to this search" if replicas == 1 else "with the other replicas"
            assert all(means in line for line in lines)
        # Somebody still inherits, from whom it may.
        assert any(int(row["m:layers_transferred"] or 0) > 0 for row in found[6:])
        if replicas == 2:
            with cpp_store.connect(list(group), replicas=2) as store:
                assert len(store.list()) == 4  # the population, none of it lost
                assert all(store.read(model) for model in store.list())
                assert store.verify() == []


def test_a_store_that_is_full_costs_only_ancestors(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with servers(2, "20KiB") as group:
        result = finish(begin(path, list(group), 2))
        assert result["evaluations"] == 14 and result["failures"] == 0
        errors = [row["m:transfer_error"] for row in rows(path) if row["m:transfer_error"]]
        assert errors and all("limit" in error for error in errors)
        with cpp_store.connect(list(group), replicas=2) as store:
            assert store.verify() == []
            assert all(store.read(model) for model in store.list())  # what is stored is whole
