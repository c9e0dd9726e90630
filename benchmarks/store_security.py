"""What a key costs a call, and what encryption costs bulk: figures of ``bench_durability``.

``python -m benchmarks.store_security [--json FILE] [--quick]`` measures them alone. Three servers
over loopback tcp, without a key, with one, and encrypting, are asked in turn.
"""

from __future__ import annotations

import contextlib
import secrets
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import figures
import numpy as np
import store_servers
from store_servers import MIB

import cpp_store
from cpp_store import _core

TARGETS: figures.Targets = {"auth_rtt_overhead_us": ("at most", 5)}
TIMEOUT = 30.0

Timed = Mapping[str, Callable[[], float]]


def measure(*, quick: bool) -> dict[str, float]:
    """Return the figures: `auth_rtt_overhead_us`, `encrypt_throughput_ratio` and what they are of.

    Overheads are medians of differences within a round, ratios of the medians of rates.
    """
    key = secrets.token_hex(32)
    rounds, calls, mib = (5, 300, 16) if quick else (21, 2_000, 64)
    with contextlib.ExitStack() as stack:

        def connect(name: str, *flags: str) -> _core.RemoteStore:
            address = stack.enter_context(
                store_servers.server(512 * MIB, key="" if name == "open" else key, flags=flags)
            ).address
            return _core.RemoteStore(
                [address], TIMEOUT, "" if name == "open" else key, False, False, 1
            )

        stores = {
            "open": connect("open"),
            "key": connect("key"),
            "encrypted": connect("encrypted", "--encrypt"),
        }
        calls_us = _interleaved(
            {name: _empty_call(store, calls) for name, store in stores.items()}, rounds
        )
        bulk = {name: _Bulk(store, mib * MIB) for name, store in stores.items()}
        put_s = _interleaved({name: each.put for name, each in bulk.items()}, max(3, rounds // 2))
        get_s = _interleaved({name: each.get for name, each in bulk.items()}, max(3, rounds // 2))
    moved = {name: _rate(mib, put_s[name], get_s[name]) for name in stores}
    return {
        "auth_rtt_overhead_us": _difference(calls_us["key"], calls_us["open"]),
        "encrypt_rtt_overhead_us": _difference(calls_us["encrypted"], calls_us["open"]),
        "empty_call_open_us": statistics.median(calls_us["open"]),
        "empty_call_key_us": statistics.median(calls_us["key"]),
        "key_throughput_ratio": moved["key"] / moved["open"],
        "encrypt_throughput_ratio": moved["encrypted"] / moved["open"],
        "encrypt_gb_per_s": moved["encrypted"],
    }


def _interleaved(timed: Timed, rounds: int) -> dict[str, list[float]]:
    """Time everything in turn, as often; the first round warms and does not count."""
    times: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, once in timed.items():
            took = once()
            if number > 0:
                times[name].append(took)
    return times


def _empty_call(store: _core.RemoteStore, calls: int) -> Callable[[], float]:
    """Return what gives the median of so many empty calls, in microseconds."""

    def once() -> float:
        times = []
        for _ in range(calls):
            begin = time.perf_counter()
            store.ping(0)
            times.append(time.perf_counter() - begin)
        return statistics.median(times) * 1e6

    return once


class _Bulk:
    """Puts and reads of one large tensor, in seconds."""

    def __init__(self, store: _core.RemoteStore, nbytes: int) -> None:
        self._store = store
        self._tensor = np.random.default_rng(1).integers(0, 256, nbytes, dtype=np.uint8)
        self._buffer = np.zeros_like(self._tensor)
        self._table = cpp_store.LayerTable(["layer"], [[]], [nbytes])
        self._count = 0

    def put(self) -> float:
        if self._count:
            self._store.retire(f"m{self._count}")
        self._count += 1
        begin = time.perf_counter()
        self._put(f"m{self._count}")
        return time.perf_counter() - begin

    def get(self) -> float:
        begin = time.perf_counter()
        self._store.read_into(f"m{self._count}", {"layer": [self._buffer]})
        took = time.perf_counter() - begin
        assert np.array_equal(self._buffer, self._tensor)
        self._buffer[:] = 0
        return took

    def _put(self, model: str) -> None:
        arguments: dict[str, Any] = {
            "table": self._table,
            "inherited": [],
            "namespace": "",
            "score": 0.0,
            "parent": "",
            "graph": "",
            "metadata": "",
        }
        self._store.put(model, {"layer": [self._tensor]}, **arguments)


def _difference(one: list[float], other: list[float]) -> float:
    return statistics.median(a - b for a, b in zip(one, other, strict=True))


def _rate(mib: int, put_s: list[float], get_s: list[float]) -> float:
    """GB/s of a put and a read after each other."""
    return 2 * mib * MIB / (statistics.median(put_s) + statistics.median(get_s)) / 1e9


if __name__ == "__main__":
    given = figures.parser(__doc__, quick="fewer rounds, 16 MiB").parse_args()
    figures.finish("store_security", measure(quick=given.quick), TARGETS, given)
