"""What does it cost to keep models on disk, and how soon are they back?

``python -m benchmarks.bench_durability [--directory DIR] [--json FILE] [--quick]``

A model of 64 MB is put into a store in memory, a lazy and a sync one, in turn, and compared with
writing a file of that size and syncing it. Eight clients put models of 4 KB into a sync store; one
client puts rows of 4 KB into SQLite (WAL, synchronous=FULL), one a transaction. Directories of
10,000 and 100,000 models (16 layers, 14 of them inherited) are
opened. A model that has left the memory is read, and compared with reading a file of its size
through a memory map, both with the files in the kernel's cache, and both with a cold one. Then
servers die: the crash tests' faults are counted.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import figures
import numpy as np
import store_failover
import store_security
from store_servers import server

import cpp_store

QUESTION = figures.Question(
    compares="stores with a data directory with one in memory, plain files and SQLite",
    seconds=240,
    quick_seconds=8,
    plots={
        "puts over their peers": r"(?P<series>.+)_over_.+",
        "seconds to open a directory": r"(?P<series>recovery)_s_(?P<x>\d+)_models",
    },
)
TARGETS: figures.Targets = {
    "lazy_put_over_memory_put": ("at least", 0.9),
    "sync_put_over_raw": ("at least", 0.7),
    "sync_small_puts_per_s": ("at least", 5_000),
    "recovery_s_10000_models": ("at most", 1),
    "recovery_s_100000_models": ("at most", 10),
    "cold_read_over_mmap_file": ("at least", 0.8),
    "auth_rtt_overhead_us": ("at most", 5),
    "failover_s": ("at most", 2),
    "faults_injected": ("at least", 200),
    "acknowledged_lost": ("at most", 0),
    "wrong_bytes": ("at most", 0),
}
MB = 1_000_000
BIG = 64 * MB
SMALL = 4_096
CLIENTS = 8


def main() -> None:
    """Measure, and write the figures."""
    parser = figures.parser(
        __doc__, quick="few repetitions, files in the cache, no 100,000 models, no faults"
    )
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench_durability_", dir=given.directory) as made:
        scratch = Path(made)
        parts: list[Callable[[Path, bool], dict[str, float]]] = [
            big_puts,
            small_puts,
            cold_reads,
            recovery,
            crashes,
            security,
            failover,
        ]
        for part in parts:
            print(f"{part.__name__} ...", file=sys.stderr, flush=True)
            results |= part(scratch, given.quick)
    figures.finish("durability", results, TARGETS, given)


# ---------------------------------------------------------------------------------- big puts


def big_puts(scratch: Path, quick: bool) -> dict[str, float]:
    """Milliseconds of a put of 64 MB, warm, and of a file of that size."""
    weights = {"w": [np.random.default_rng(0).random(BIG // 8)]}
    stores = {
        "memory": cpp_store.embedded(memory="512MiB"),
        "lazy": cpp_store.embedded(memory="512MiB", data_dir=scratch / "lazy"),
        "sync": cpp_store.embedded(memory="512MiB", data_dir=scratch / "sync", durability="sync"),
    }
    times: dict[str, list[float]] = {name: [] for name in (*stores, "raw")}
    repetitions = 3 if quick else 21
    for repetition in range(-2, repetitions):
        for name in figures.in_turn(list(times), repetition % len(times)):
            seconds = (
                _raw_write(scratch / "raw", weights["w"][0])
                if name == "raw"
                else _put_and_forget(stores[name], weights)
            )
            if repetition >= 0:
                times[name].append(seconds)
    for store in stores.values():
        store.close()
    middle = {name: statistics.median(each) for name, each in times.items()}
    return {f"{name}_put_64mb_ms": 1e3 * seconds for name, seconds in middle.items()} | {
        "lazy_put_over_memory_put": middle["memory"] / middle["lazy"],
        "sync_put_over_raw": middle["raw"] / middle["sync"],
    }


def _put_and_forget(store: cpp_store.Store, weights: dict[str, list[np.ndarray]]) -> float:
    start = time.perf_counter()
    store.put("m", weights)
    seconds = time.perf_counter() - start
    store.retire("m")
    _flush(store)  # nothing of it shall be left for the next one to wait for
    return seconds


def _flush(store: cpp_store.Store) -> None:
    store._open_handle().flush()  # type: ignore[attr-defined]  # of a store in process only


def _raw_write(path: Path, array: np.ndarray) -> float:
    start = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    left = memoryview(array).cast("B")
    while left:
        left = left[os.write(descriptor, left) :]
    os.fsync(descriptor)
    os.close(descriptor)
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


# ---------------------------------------------------------------------------------- small puts


def small_puts(scratch: Path, quick: bool) -> dict[str, float]:
    """Models of 4 KB a second that eight clients put, and rows a second of SQLite, in turn."""
    rates: dict[str, list[float]] = {"threads": [], "processes": [], "sqlite": []}
    count = 60 if quick else 500
    flags = ["--data_dir", str(scratch / "served"), "--durability", "sync"]
    with (
        server(1 << 30, flags=flags) as served,
        ProcessPoolExecutor(CLIENTS) as processes,
    ):
        address = served.address
        list(
            processes.map(_put_small_as_client, [(address, f"warm{i}", 2) for i in range(CLIENTS)])
        )
        with cpp_store.embedded(data_dir=scratch / "small", durability="sync") as store:
            for repetition in range(2 if quick else 5):
                rates["sqlite"].append(_sqlite_rows(scratch / f"{repetition}.sqlite", count))
                start = time.perf_counter()
                with ThreadPoolExecutor(CLIENTS) as threads:
                    list(
                        threads.map(
                            lambda i, r=repetition: _put_small(store, f"{r}.{i}", count),
                            range(CLIENTS),
                        )
                    )
                rates["threads"].append(CLIENTS * count / (time.perf_counter() - start))
                work = [(address, f"{repetition}.{i}", count) for i in range(CLIENTS)]
                start = time.perf_counter()
                list(processes.map(_put_small_as_client, work))
                rates["processes"].append(CLIENTS * count / (time.perf_counter() - start))
    middle = {name: statistics.median(each) for name, each in rates.items()}
    return {
        "sync_small_puts_per_s": middle["processes"],
        "sync_small_puts_per_s_threads": middle["threads"],
        "sqlite_rows_per_s": middle["sqlite"],
    }


def _put_small(store: cpp_store.Store, name: str, count: int) -> None:
    weights = {"w": [np.zeros(SMALL, "uint8")]}
    for number in range(count):
        store.put(f"{name}.{number}", weights)


_connections: dict[str, cpp_store.Store] = {}  # of a client process


def _put_small_as_client(work: tuple[str, str, int]) -> None:
    address, name, count = work
    if address not in _connections:
        _connections[address] = cpp_store.connect(address)
    _put_small(_connections[address], name, count)


def _sqlite_rows(path: Path, count: int) -> float:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE models(id TEXT PRIMARY KEY, tensors BLOB)")
    row = bytes(SMALL)
    start = time.perf_counter()
    for number in range(count):
        database.execute("INSERT INTO models VALUES(?, ?)", (f"m{number}", row))
    seconds = time.perf_counter() - start
    database.close()
    return count / seconds


# ---------------------------------------------------------------------------------- cold reads


def cold_reads(scratch: Path, quick: bool) -> dict[str, float]:
    """Milliseconds to read 64 MB that left the memory, and as much through a memory map."""
    values = np.random.default_rng(1).random(BIG // 8)
    plain = scratch / "plain"
    values.tofile(plain)
    directory = scratch / "cold"
    times: dict[str, list[float]] = {}
    with cpp_store.embedded(memory=int(1.5 * BIG), data_dir=directory) as store:
        store.put("cold", {"w": [values]})
        store.put("other", {"w": [values + 1]})
        _flush(store)
        files = (plain, *sorted((directory / "segments").iterdir()))
        into = np.empty_like(values)
        # One after the other: what one of them drops from the cache, the other would have to read.
        for where in ("",) if quick else ("", "_disk"):
            kinds = [f"store{where}", f"mmap{where}"]
            times |= {kind: [] for kind in kinds}
            for repetition in range(-1, 5 if quick else 15):
                for name in figures.in_turn(kinds, repetition % 2):
                    store.read("other")  # the other one leaves
                    if where:
                        for path in files:
                            _drop_from_cache(path)
                    start = time.perf_counter()
                    if name.startswith("store"):
                        found = store.read("cold")["w"][0]  # whole, and its checksum compared
                    else:
                        found = _read_mapped(plain, into)
                    if repetition >= 0:
                        times[name].append(time.perf_counter() - start)
                    assert found[-1] == values[-1]
                    del found
    middle = {name: statistics.median(each) for name, each in times.items()}
    return {f"cold_read_{name}_64mb_ms": 1e3 * seconds for name, seconds in middle.items()} | {
        # The worse of both: where the disk is slow, the disk is all that is measured.
        "cold_read_over_mmap_file": min(
            middle[f"mmap{where}"] / middle[f"store{where}"]
            for where in ("", "_disk")
            if f"mmap{where}" in middle
        ),
    }


def _drop_from_cache(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fdatasync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _read_mapped(path: Path, into: np.ndarray) -> np.ndarray:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        view = np.frombuffer(mapped, into.dtype)
        into[:] = view
        del view
    return into


# ---------------------------------------------------------------------------------- recovery


def recovery(scratch: Path, quick: bool) -> dict[str, float]:
    """Seconds to open a directory of so many models, ready for matches."""
    results = {}
    for count in (10_000,) if quick else (10_000, 100_000):
        directory = scratch / f"recovery{count}"
        _fill(directory, count)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            with (
                cpp_store.embedded(data_dir=directory) as store,
                store.best_match(_table(count - 1)) as match,
            ):
                seconds.append(time.perf_counter() - start)
                assert match.layers == LAYERS
        shutil.rmtree(directory)
        results[f"recovery_s_{count}_models"] = statistics.median(seconds)
    return results


LAYERS = 16
_OWN = 2  # layers that a model does not share with its parent


def _names(number: int) -> list[str]:
    """Layers of a model: those of its parent but for the last ones."""
    shared = [f"layer_{number % 97}_{i:032x}" for i in range(LAYERS - _OWN)]
    return shared + [f"own_{number}_{i:032x}" for i in range(_OWN)]


def _table(number: int) -> cpp_store.LayerTable:
    return cpp_store.LayerTable(_names(number), [[i - 1] if i else [] for i in range(LAYERS)])


def _fill(directory: Path, count: int) -> None:
    weight = [np.ones(1, "float32")]
    with cpp_store.embedded(data_dir=directory) as store:
        for number in range(count):
            table = _table(number)
            names = table.names
            if number < 97:
                store.put(f"m{number}", dict.fromkeys(names, weight), table=table)
                continue
            with store.best_match(table) as match:
                store.put(
                    f"m{number}",
                    dict.fromkeys(names[-_OWN:], weight),
                    table=table,
                    inherited=dict.fromkeys(names[:-_OWN], match),
                )


# ---------------------------------------------------------------------------------- crashes


def crashes(scratch: Path, quick: bool) -> dict[str, float]:
    """Count what the crash tests find; they are in a checkout only."""
    if quick:
        return {}
    root = Path(__file__).resolve().parent.parent
    if not (root / "tests" / "cpp_store" / "crashes.py").exists():
        figures.lacks("crash tests", "run this from a checkout")
        return {}
    arguments = [sys.executable, "-m", "tests.cpp_store.crashes", "--faults", "200"]
    ended = subprocess.run(arguments, cwd=root, stdout=subprocess.PIPE, text=True)
    found = json.loads(ended.stdout)
    return {
        key: found[key] for key in ("faults_injected", "acknowledged_lost", "wrong_bytes", "leaks")
    }


# ------------------------------------------------------------------------- keys and replicas


def security(_: Path, quick: bool) -> dict[str, float]:
    """Measure what a key and encryption cost."""
    return store_security.measure(quick=quick)


def failover(_: Path, quick: bool) -> dict[str, float]:
    """Seconds until a model is read whose server was killed."""
    return store_failover.measure(1 if quick else 3)


if __name__ == "__main__":
    main()
