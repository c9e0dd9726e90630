"""How long a small read over the network waits while another client moves 1 GB.

``python benchmarks/store_fairness.py [--json FILE] [--quick]``; `bench_store.py` takes the figures
from :func:`measure`. One process reads or puts 1 GB again and again; another one reads a model of
4 KB every millisecond. The server and both clients are processes of this host, so on two cores the
three compete for processors too: ``fairness_alone_4kb_read_p99_ms`` says what the small read takes
without the other client. Redis, over a Unix socket, is asked the same (``redis_fairness_…``); the
other client has its model in 16 values.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import figures
import numpy as np
from store_servers import server

import cpp_store

MIB = 1 << 20
QUESTION = figures.Question(
    compares="4 KB reads alone with such reads while another client reads, then puts, 1 GB; "
    "the store with Redis",
    seconds=60,
    quick_seconds=5,
)
TARGETS: figures.Targets = {"fairness_4kb_read_p99_ms": ("at most", 2)}


def measure(
    address: str, *, bulk_bytes: int = 1024 * MIB, seconds: float = 5.0
) -> dict[str, float]:
    """Measure small reads beside bulk on a server that has room for three times the bulk.

    Parameters
    ----------
    address
        Of the server, such as ``"ofi+tcp://127.0.0.1:4711"``.
    bulk_bytes
        Bytes of the other client's model, in 16 tensors.
    seconds
        How long to read, for each of: alone, beside reads, beside puts.

    Returns
    -------
    dict
        ``fairness_4kb_read_p99_ms``: the worse of the 99th percentiles beside reads and beside
        puts, in milliseconds; both of them, and the medians, under their own keys.
    """
    store = cpp_store.connect(address, **network_only())
    store.put("small", {"layer": [np.ones(4096, np.uint8)]}, table=cpp_store.LayerTable(["layer"]))
    results = _beside(lambda: store.read("small"), _move_bulk, address, bulk_bytes, seconds)
    store.retire("small")
    store.close()
    return results


def measure_redis(
    socket: str, *, bulk_bytes: int = 1024 * MIB, seconds: float = 5.0
) -> dict[str, float]:
    """Measure the same on a Redis server; keys begin with ``redis_``."""
    import redis

    client = redis.Redis(unix_socket_path=socket)
    client.set("small", bytes(4096))
    results = _beside(lambda: client.get("small"), _move_redis, socket, bulk_bytes, seconds)
    client.close()
    return {f"redis_{key}": value for key, value in results.items()}


def _beside(
    read: Callable[[], object],
    move: Callable[[str, str, int, Event, Event], None],
    address: str,
    bulk_bytes: int,
    seconds: float,
) -> dict[str, float]:
    """Read alone, and while another process moves bulk."""
    context = multiprocessing.get_context("spawn")
    results = _percentiles("alone_", _small_reads(read, seconds))
    for what in ("read", "put"):
        started, stop = context.Event(), context.Event()
        other = context.Process(target=move, args=(address, what, bulk_bytes, started, stop))
        other.start()
        if not started.wait(120):
            raise RuntimeError("the other client has not begun within two minutes")
        results |= _percentiles(f"beside_{what}_", _small_reads(read, seconds))
        stop.set()
        other.join()
        if other.exitcode != 0:
            raise RuntimeError(f"the other client ended with {other.exitcode}")
    results["fairness_4kb_read_p99_ms"] = max(
        results[f"fairness_beside_{what}_4kb_read_p99_ms"] for what in ("read", "put")
    )
    return results


def network_only() -> dict[str, bool]:
    """Arguments of `connect` that keep a client on this host from the shared-memory path."""
    known = cpp_store.connect.__kwdefaults__ or {}
    return {"same_host": False} if "same_host" in known else {}


def _small_reads(read: Callable[[], object], seconds: float) -> list[float]:
    """Durations in seconds, ascending."""
    durations = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        read()
        durations.append(time.perf_counter() - start)
        time.sleep(0.001)
    return sorted(durations)


def _percentiles(name: str, durations: list[float]) -> dict[str, float]:
    return {
        f"fairness_{name}4kb_read_p{percent}_ms": durations[len(durations) * percent // 100] * 1e3
        for percent in (50, 99)
    }


def _move_bulk(address: str, what: str, nbytes: int, started: Event, stop: Event) -> None:
    """Be the other client, in a process of its own."""
    store = cpp_store.connect(address, **network_only())
    tensors = {f"layer{i}": [np.ones(nbytes // 16, np.uint8)] for i in range(16)}
    table = cpp_store.LayerTable(list(tensors))
    store.put("bulk", tensors, table=table)
    started.set()
    while not stop.is_set():
        if what == "read":
            store.read_into("bulk", tensors)
        else:
            store.put("another", tensors, table=table)
            store.retire("another")
    store.retire("bulk")


def _move_redis(socket: str, what: str, nbytes: int, started: Event, stop: Event) -> None:
    """Be the other client of Redis, in a process of its own."""
    import redis

    client = redis.Redis(unix_socket_path=socket)
    block = bytes(nbytes // 16)
    names = [f"layer{i}" for i in range(16)]

    def put() -> None:
        pipeline = client.pipeline(transaction=False)
        for name in names:
            pipeline.set(name, block)
        pipeline.execute()

    put()
    started.set()
    while not stop.is_set():
        if what == "read":
            client.mget(names)
        else:
            put()
    client.delete(*names)


def main() -> None:
    parser = figures.parser(__doc__, "for a second each, beside 256 MB")
    given = parser.parse_args()
    sizes: dict[str, Any] = {
        "bulk_bytes": (256 if given.quick else 1024) * MIB,
        "seconds": 0.5 if given.quick else 5.0,
    }
    with server(4096 * MIB) as process:
        results = measure(process.address, **sizes)
    results |= _of_redis(sizes)
    figures.finish("store_fairness", results, TARGETS, given)


def _of_redis(sizes: dict[str, Any]) -> dict[str, float]:
    """Measure Redis, if it is here."""
    from methods import redis_server  # which starts MPI; bench_store needs this module without it

    with tempfile.TemporaryDirectory() as directory:
        flags = ["--save", "", "--appendonly", "no"]
        with redis_server(Path(directory), flags) as socket:
            return measure_redis(socket, **sizes) if socket else {}


if __name__ == "__main__":
    main()
