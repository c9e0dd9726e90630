"""Searches whose store servers are killed, hang, cannot be reached, or are full: they go on."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cpp_store

from ..cpp_store import servers
from .proxy import Proxy

pytestmark = pytest.mark.long

SEARCH = [
    *("-m", "transfer_nas.evolve", "--application", "digits", "--space", "feed_forward"),
    *("--epochs", "2", "--population_size", "4", "--sample_size", "2", "--max_evals", "14"),
    *("--seed", "1", "--json"),
]


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "results.csv").open() as file:
        return list(csv.DictReader(file))


def begin(path: Path, addresses: list[str], replicas: int, *flags: str) -> "subprocess.Popen[str]":
    launcher = Path(sys.executable).with_name("mpiexec")
    return subprocess.Popen(
        [launcher, "-n", "2", sys.executable, *SEARCH, "--replicas", str(replicas), "--output_dir",
         path, *flags],
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
    with servers.doomed(2, "--memory", "256MiB", "--log-level", "error") as group:
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


@pytest.mark.parametrize("stall", ["for a while", "for good"])
def test_a_network_that_stalls_in_the_middle_of_a_search(tmp_path: Path, stall: str) -> None:
    path = tmp_path / "run"
    with servers.doomed(2, "--memory", "256MiB", "--log-level", "error") as group:
        behind, direct = group
        with Proxy(behind) as proxy:
            process = begin(path, [proxy.address, direct], 1, "--max_evals", "8")
            wait_for_rows(process, path, 3)
            assert min(proxy.forwarded) > 0  # both ways lead through it
            proxy.stall()
            before = list(proxy.forwarded)
            wait_for_rows(process, path, 5)  # the search does not wait for it
            assert proxy.forwarded == before
            if stall == "for a while":
                proxy.go_on()
            result = finish(process)
            proxy.go_on()
            with cpp_store.connect([proxy.address, direct], same_host=False) as store:
                assert store.verify() == []
                assert all(store.read(model) for model in store.list())  # nothing half done
        assert result["evaluations"] == 8 and result["failures"] == 0
        assert sorted(int(row["job_id"]) for row in rows(path)) == list(range(8))
        text = logged(path)
        assert "the search goes on without transfer" not in text  # the other server is there
        lines = re.findall(rf"store server {re.escape(proxy.address)} is gone: (.*)", text)
        assert len(lines) <= 2 and all("are lost to this search" in line for line in lines)
        assert lines or stall == "for a while"


def test_a_store_that_is_full_costs_only_ancestors(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with servers.doomed(2, "--memory", "20KiB", "--log-level", "error") as group:
        result = finish(begin(path, list(group), 2))
        assert result["evaluations"] == 14 and result["failures"] == 0
        errors = [row["m:transfer_error"] for row in rows(path) if row["m:transfer_error"]]
        assert errors and all("limit" in error for error in errors)
        with cpp_store.connect(list(group), replicas=2) as store:
            assert store.verify() == []
            assert all(store.read(model) for model in store.list())  # what is stored is whole
