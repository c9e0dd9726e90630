"""How long does it take to read some of the layers of a stored model?

``mpiexec -n N python -m benchmarks.load_single [--directory DIR] [--json FILE] [--quick]``: a model
of 50 layers is kept by each method; every rank reads 1, 5, 25 or all of its layers, drawn anew each
time, into arrays of its own. ``store_view`` is the store's read without a copy, when it is on the
same host. Files are warm, in the operating system's cache.

Keys: ``METHOD_ms_of_COUNT`` and ``METHOD_over_store_of_COUNT``; medians over repetitions, methods
taking turns.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import figures
import numpy as np
from methods import (
    MIB,
    Method,
    Tensors,
    available,
    chain,
    empty_like,
    in_shared_memory,
    opened_places,
    store_views,
)
from mpi4py import MPI

from cpp_store import ranges

QUESTION = figures.Question(
    compares="the store, Redis, HDF5, safetensors, .npz and raw files",
    seconds=30,
    quick_seconds=4,
    ranks=2,
    plots={"milliseconds, against the layers read of 50": r"(?P<series>.+)_ms_of_(?P<x>\d+)"},
)
TARGETS: figures.Targets = {
    "redis_over_store_of_5": ("at least", 2),
    "hdf5_over_store_of_5": ("at least", 2),
}
LAYERS = 50
COUNTS = (1, 5, 25, 50)


def main() -> int:
    parser = figures.parser(__doc__, "a smaller model, fewer reads")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()),
                        metavar="DIR", help="of the files (default: %(default)s)")  # fmt: skip
    parser.add_argument("--megabytes", type=ranges.COUNT, help="of the model (default: 64)")
    given = parser.parse_args()
    world = MPI.COMM_WORLD
    size = (given.megabytes or (16 if given.quick else 64)) * MIB
    repetitions = 9 if given.quick else 31
    redis = ["--save", "", "--appendonly", "no"]
    results: dict[str, float] = {"ranks": world.size, "model_bytes": size}
    with opened_places(
        world, given.directory, redis_flags=redis, memory=2 * world.size * size
    ) as places:
        methods = [method(places) for method in available(places)]
        results["store_in_shared_memory"] = in_shared_memory(places)
        tensors = chain(size, LAYERS, world.rank)
        for method in methods:
            method.write(f"rank{world.rank}", tensors)
        for count in COUNTS:
            taken = alternate(methods, tensors, count, repetitions, world)
            for name, seconds in taken.items():
                results[f"{name}_ms_of_{count}"] = 1e3 * seconds
                if not name.startswith("store"):
                    results[f"{name}_over_store_of_{count}"] = seconds / taken["store"]
        for method in methods:
            method.close()
    if world.rank == 0:
        figures.finish("load_single", results, TARGETS, given)
    return 0


def alternate(
    methods: list[Method], tensors: Tensors, count: int, repetitions: int, world: MPI.Comm
) -> dict[str, float]:
    """Let methods take turns; return the median seconds of the slowest rank."""
    taken: dict[str, list[float]] = {}
    rng = np.random.default_rng(world.rank)
    model = f"rank{world.rank}"
    for repetition in range(repetitions + 1):
        drawn = rng.choice(LAYERS, count, replace=False)
        layers = {f"layer_{number}": tensors[f"layer_{number}"] for number in sorted(drawn)}
        for method in figures.in_turn(methods, repetition):
            buffers = empty_like(layers)
            world.Barrier()
            begin = time.perf_counter()
            method.read_into(model, buffers)
            seconds = {method.name: time.perf_counter() - begin}
            for layer, arrays in buffers.items():
                assert np.array_equal(arrays[0], layers[layer][0]), f"{method.name} read wrong"
            if method.name == "store":
                begin = time.perf_counter()
                store_views(method, model, list(layers))
                seconds["store_view"] = time.perf_counter() - begin
            for name, value in seconds.items():
                slowest = world.allreduce(value, MPI.MAX)
                if repetition:  # the first one warms up
                    taken.setdefault(name, []).append(slowest)
    return {name: statistics.median(values) for name, values in taken.items()}


if __name__ == "__main__":
    sys.exit(main())
