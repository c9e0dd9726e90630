"""How long a small read over the network waits while another client moves 1 GB.

``python benchmarks/store_fairness.py [--json FILE] [--quick]``; `bench_store.py` takes the figures
from :func:`measure`. One process reads or puts 1 GB again and again; another one reads a model of
4 KB every millisecond. The server and both clients are processes of this host, so on two cores the
three compete for processors too: ``fairness_alone_4kb_read_p99_ms`` says what the small read takes
without the other client.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from multiprocessing.synchronize import Event

import figures
import numpy as np

import cpp_store

MIB = 1 << 20
QUESTION = figures.Question(
    compares="4 KB reads alone with such reads while another client reads, then puts, 1 GB",
    seconds=30,
    quick_seconds=12,
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
    context = multiprocessing.get_context("spawn")
    results = _percentiles("alone_", _small_reads(store, seconds))
    for what in ("read", "put"):
        started, stop = context.Event(), context.Event()
        other = context.Process(target=_move_bulk, args=(address, what, bulk_bytes, started, stop))
        other.start()
        if not started.wait(120):
            raise RuntimeError("the other client has not begun within two minutes")
        results |= _percentiles(f"beside_{what}_", _small_reads(store, seconds))
        stop.set()
        other.join()
        if other.exitcode != 0:
            raise RuntimeError(f"the other client ended with {other.exitcode}")
    store.retire("small")
    results["fairness_4kb_read_p99_ms"] = max(
        results[f"fairness_beside_{what}_4kb_read_p99_ms"] for what in ("read", "put")
    )
    return results


def network_only() -> dict[str, bool]:
    """Arguments of `connect` that keep a client on this host from the shared-memory path."""
    known = cpp_store.connect.__kwdefaults__ or {}
    return {"same_host": False} if "same_host" in known else {}


def _small_reads(store: cpp_store.Store, seconds: float) -> list[float]:
    """Durations in seconds, ascending."""
    durations = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        store.read("small")
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


def main() -> None:
    parser = figures.parser(__doc__.splitlines()[0], "for a second each")
    arguments = parser.parse_args()
    program = figures.program("cpp-store-server", "pip install .") or sys.exit(2)
    server = subprocess.Popen(
        [program, "--memory", "4GiB", "--log-level", "error"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        if not address:
            sys.exit(f"cpp-store-server ended with {server.wait()}")
        results = measure(address, seconds=1.0 if arguments.quick else 5.0)
    finally:
        server.terminate()
        server.wait()
    figures.finish("store_fairness", results, TARGETS, arguments)


if __name__ == "__main__":
    main()
