"""The time to read on after a server was killed: measured, and of a read that is right."""

import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import cpp_store

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import store_failover


def test_a_server_is_killed_and_the_other_one_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    kill = store_failover.os.kill

    def note_and_kill(pid: int, number: int) -> None:
        if number == signal.SIGKILL:
            killed.append(pid)
        kill(pid, number)

    monkeypatch.setattr(store_failover.os, "kill", note_and_kill)

    results = store_failover.measure(repetitions=1)

    assert len(killed) == 2  # one for each way
    assert results.keys() == {"failover_s", "failover_tcp_s", "failover_shm_s"}
    assert results["failover_s"] == max(results["failover_tcp_s"], results["failover_shm_s"])
    assert 0 < results["failover_s"] < 20
    assert store_failover.TARGETS.keys() <= results.keys()


def test_a_read_of_wrong_bytes_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    read = cpp_store.Store.read

    def change(store: cpp_store.Store, model: str) -> dict[str, list[np.ndarray]]:
        return {name: [array + 1 for array in each] for name, each in read(store, model).items()}

    monkeypatch.setattr(cpp_store.Store, "read", change)
    with pytest.raises(RuntimeError, match="m0 has wrong bytes"):
        store_failover.measure(repetitions=1)
