"""What changes as a server fills: nothing ought to. And what it costs when nobody asks."""

from __future__ import annotations

import statistics
import time

import numpy as np
from store_servers import (
    MIB,
    ServerProcess,
    connect,
    seconds,
    server,
    tensors_of,
    wait_until,
)

import cpp_store


def growth(models: int, transport: str) -> dict[str, float]:
    """Put models of 100 KB, and retire them all.

    Returns
    -------
    dict[str, float]
        ``put_over_empty``: speed of some hundred puts beside all models, against that of as many
        with no others, both into memory that was just used. (``put_per_s_100kb``, of all puts, is
        that of memory never touched before.)
        ``memory_after_retire_over_start``: memory that the server's process occupies.
    """
    tensors = {"layer": [np.zeros(25_000, np.float32)]}
    batch = max(1, models // 50)
    with server(models * 110_000 + 512 * MIB, touched=128 * MIB) as process:
        store = connect(process.address, transport)
        assert store is not None
        empty = [_put_and_retire(store, tensors, 200) for _ in range(8)][1:]
        start = _settled(process)
        rates = []
        for first in range(0, models, batch):
            ids = [f"model{i}" for i in range(first, first + batch)]
            rates.append(
                batch / seconds(lambda ids=ids: [store.put(each, tensors) for each in ids])
            )
        full = process.resident_bytes()
        beside = [_put_and_retire(store, tensors, 200) for _ in range(8)][1:]
        retired = seconds(lambda: [store.retire(each) for each in store.list()])
        # It gives memory back when that has been free for some seconds.
        wait_until(lambda: process.resident_bytes() <= 1.05 * start, seconds=40)
        end = _settled(process)
        used = store.stats()["memory_used"]
    return {
        "put_over_empty": statistics.median(empty) / statistics.median(beside),
        "put_per_s_100kb": statistics.median(rates),
        "retire_per_s": models / retired,
        "memory_full_gb": full / 1e9,
        "memory_after_retire_over_start": end / start,
        "bytes_used_after_retiring_all": used,
    }


def _settled(process: ServerProcess) -> int:
    """Return what it occupies when it has stopped touching pages ahead and giving them back."""
    seen = [process.resident_bytes()]

    def settles() -> bool:
        time.sleep(0.5)
        seen.append(process.resident_bytes())
        return abs(seen[-1] - seen[-2]) < MIB

    wait_until(settles)
    return seen[-1]


def small_puts(store: cpp_store.Store, repetitions: int, puts: int) -> float:
    """Return how many models of one 4 KB tensor are put in a second, by one thread."""
    tensors = {"layer": [np.zeros(1024, np.float32)]}
    return statistics.median(
        puts / _put_and_retire(store, tensors, puts) for _ in range(repetitions + 1)
    )


def _put_and_retire(
    store: cpp_store.Store, tensors: dict[str, list[np.ndarray]], puts: int
) -> float:
    ids = [f"small{i}" for i in range(puts)]
    taken = seconds(lambda: [store.put(each, tensors) for each in ids])
    for each in ids:
        store.retire(each)
    return taken


def first_put_over_warm(transport: str, repetitions: int) -> float:
    """Return the speed of the first 64 MB after start against that of a later one."""
    source = tensors_of(64 * MIB, 50)
    first, warm = [], []
    for _ in range(repetitions):
        # A server has touched that much of its pool before its first client comes.
        with server(2048 * MIB, touched=128 * MIB) as process:
            store = connect(process.address, transport)
            assert store is not None
            first.append(seconds(lambda store=store: store.put("first", source)))
            store.retire("first")
            later = []
            for _ in range(3):
                later.append(seconds(lambda store=store: store.put("warm", source)))
                store.retire("warm")
            warm.append(later[-1])
            store.close()
    return statistics.median(warm) / statistics.median(first)


def round_trips(stores: dict[str, cpp_store.Store], calls: int) -> dict[str, list[float]]:
    """Return the sorted times of an empty call (is there such a model?), by store, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in stores}
    for _ in range(10):
        for name, store in stores.items():
            for _ in range(20):
                "nobody" in store  # noqa: B015
            for _ in range(calls // 10):
                start = time.perf_counter()
                "nobody" in store  # noqa: B015
                times[name].append(time.perf_counter() - start)
    return {name: sorted(each) for name, each in times.items()}


def idle_cpu_percent(process: ServerProcess, span: float) -> float:
    """Return what share of a core a server with clients uses while they ask nothing."""
    time.sleep(0.5)  # until it has noticed
    before, start = process.cpu_seconds(), time.monotonic()
    time.sleep(span)
    return 100 * (process.cpu_seconds() - before) / (time.monotonic() - start)
