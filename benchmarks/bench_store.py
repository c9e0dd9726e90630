"""How fast is the store, beside the memory that it stands on?

``python benchmarks/bench_store.py [--json FILE] [--quick]`` prints a table and writes flat keys.
So far the store in process. All contenders move the same bytes, interleaved, on warm memory; each
figure is a ratio or a time of medians over the repetitions. ``memcpy`` is NumPy's copy, tensor by
tensor, into arrays that were written before.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import figures
import numpy as np

import cpp_store

MIB = 1 << 20
QUESTION = figures.Question(
    compares="puts and reads in process with NumPy's copy of the same bytes",
    seconds=120,
    quick_seconds=5,
)
TARGETS: figures.Targets = {
    "embedded_write_over_memcpy": ("at least", 0.7),
    "embedded_copy_read_over_memcpy": ("at least", 0.7),
    "embedded_view_us": ("at most", 150),
    "small_put_per_s": ("at least", 20_000),
    "first_put_over_warm": ("at least", 0.8),
    "put_at_100k_over_empty": ("at least", 0.9),
}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def tensors_of(total: int, count: int, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """`count` layers of one float32 tensor each, `total` bytes together."""
    rng = np.random.default_rng(seed)
    elements = max(1, total // count // 4)
    return {f"layer{i}": [rng.random(elements, dtype=np.float32)] for i in range(count)}


def bandwidths(
    store: cpp_store.Store, total: int, count: int, repetitions: int
) -> dict[str, float]:
    """Medians in seconds of one copy of all bytes, each way."""
    source = tensors_of(total, count)
    target = {name: [np.zeros_like(arrays[0])] for name, arrays in source.items()}
    table = cpp_store.LayerTable(list(source))

    def memcpy() -> None:
        for name, arrays in source.items():
            np.copyto(target[name][0], arrays[0])

    contenders: dict[str, Callable[[], object]] = {
        "memcpy": memcpy,
        "write": lambda: store.put("model", source, table=table),
        "copy_read": lambda: store.read_into("model", target),
        "view": lambda: store.read("model"),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(repetitions + 1):  # the first one warms up
        for name, work in contenders.items():
            taken = seconds(work)
            if repetition:
                times[name].append(taken)
        store.retire("model")
    return {name: statistics.median(values) for name, values in times.items()}


def first_put_over_warm(repetitions: int) -> float:
    """Speed of the first 64 MB after start against that of a later one."""
    source = tensors_of(64 * MIB, 50)
    first, warm = [], []
    for _ in range(repetitions):
        with cpp_store.embedded(memory="2GiB") as store:
            # A server, too, has the time until its first client comes.
            while store.stats()["memory_touched"] < 100 * MIB:
                time.sleep(0.01)
            first.append(seconds(lambda: store.put("first", source)))
            store.retire("first")
            warm.append(seconds(lambda: store.put("warm", source)))
    return statistics.median(warm) / statistics.median(first)


def small_puts(models: int, batch: int) -> dict[str, float]:
    """Put one 4 KB tensor a model, more and more of them; see what is left when all retire."""
    tensors = {"layer": [np.zeros(1024, np.float32)]}
    rates: list[float] = []
    with cpp_store.embedded(memory="4GiB") as store:
        for start in range(0, models, batch):
            ids = [f"model{i}" for i in range(start, start + batch)]
            taken = seconds(lambda: [store.put(each, tensors) for each in ids])  # noqa: B023
            rates.append(batch / taken)
        start_of_retirement = time.perf_counter()
        for each in store.list():
            store.retire(each)
        retired = time.perf_counter() - start_of_retirement
        used = store.stats()["memory_used"]
    ends = max(1, len(rates) // 5)
    return {
        "small_put_per_s": statistics.median(rates),
        f"put_at_{models // 1000}k_over_empty": statistics.median(rates[-ends:])
        / statistics.median(rates[:ends]),
        "retire_per_s": models / retired,
        "bytes_used_after_retiring_all": used,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repetitions")
    given = parser.parse_args()
    repetitions = 5 if given.quick else 11
    sizes = {"4KB": 4096, "64KB": 65_536, "1MB": MIB, "16MB": 16 * MIB, "64MB": 64 * MIB}
    if not given.quick:
        sizes |= {"256MB": 256 * MIB, "1GB": 1024 * MIB}

    results: dict[str, float] = {}
    print(f"{'':>14} {'memcpy':>8} {'write':>8} {'copy read':>10} {'views':>9}")
    with cpp_store.embedded(memory="8GiB") as store:
        for name, total in sizes.items():
            for count in (1, 50, 1000):
                if total // count < 64:
                    continue
                taken = bandwidths(store, total, count, repetitions)
                write = taken["memcpy"] / taken["write"]
                read = taken["memcpy"] / taken["copy_read"]
                print(
                    f"{name:>8} x{count:<4} {total / taken['memcpy'] / 1e9:6.1f} GB/s "
                    f"{write:7.2f} {read:9.2f} {taken['view'] * 1e6:8.1f} us"
                )
                key = "" if (name, count) == ("64MB", 50) else f"_{name}_{count}"
                results[f"embedded_write_over_memcpy{key}"] = write
                results[f"embedded_copy_read_over_memcpy{key}"] = read
                results[f"embedded_view_us{key}"] = taken["view"] * 1e6
    results["first_put_over_warm"] = first_put_over_warm(repetitions)
    results |= small_puts(models=20_000 if given.quick else 100_000, batch=1_000)

    print()
    figures.show({key: results[key] for key in TARGETS if key in results}, TARGETS)
    if given.json:
        figures.write(given.json, "store", results, quick=given.quick)


if __name__ == "__main__":
    main()
