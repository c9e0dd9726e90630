"""How long does it take to save and to load whole models, and how large do they get?

``mpiexec -n N python -m benchmarks.save_bench [--directory DIR] [--json FILE] [--quick]``: models
with the layers of CANDLE's NT3 network (for a tenth of its input) and of the residual networks with
50 and 152 layers (``--quick``: 50 only), whose tensors are many and mostly small. Keras is not
needed. Every rank saves its model, synced as ``bench_writes_2`` does, and loads it into arrays of
its own.

Keys: ``MODEL_METHOD_save_ms``, ``MODEL_METHOD_load_ms``, ``MODEL_METHOD_bytes``; medians over
repetitions, methods taking turns, each as long as its slowest rank.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import figures
from methods import (
    Method,
    Tensors,
    available,
    empty_like,
    in_shared_memory,
    of_shapes,
    opened_places,
    total,
)
from mpi4py import MPI

QUESTION = figures.Question(
    compares="the store (in memory), Redis, HDF5, safetensors, .npz and raw files",
    seconds=120,
    quick_seconds=25,
    ranks=2,
    plots={
        "milliseconds to save": r"(?P<series>.+)_save_ms",
        "milliseconds to load": r"(?P<series>.+)_load_ms",
        "bytes": r"(?P<series>.+)_bytes",
    },
)
TARGETS: figures.Targets = {
    "resnet50_hdf5_save_over_store": ("at least", 2),
    "resnet50_redis_save_over_store": ("at least", 2),
}
Shapes = Mapping[str, Sequence[tuple[int, ...]]]


def main() -> int:
    parser = figures.parser(__doc__, "resnet50 only, fewer times")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()),
                        metavar="DIR", help="of the files (default: %(default)s)")  # fmt: skip
    given = parser.parse_args()
    world = MPI.COMM_WORLD
    models: dict[str, Shapes] = {"resnet50": resnet([3, 4, 6, 3])}
    if not given.quick:
        models |= {"candle": candle(6048), "resnet152": resnet([3, 8, 36, 3])}
    weights = {name: of_shapes(shapes, world.rank) for name, shapes in models.items()}
    memory = 2 * world.size * max(map(total, weights.values()))
    redis = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
    results: dict[str, float] = {"ranks": world.size}
    with opened_places(world, given.directory, redis_flags=redis, memory=memory) as places:
        methods = [method(places, sync=True) for method in available(places)]
        results["store_in_shared_memory"] = in_shared_memory(places)
        for name, tensors in weights.items():
            results |= alternate(name, tensors, methods, 1 if given.quick else 5, world)
        for method in methods:
            method.close()
    if world.rank == 0:
        figures.finish("save", results, TARGETS, given)
    return 0


def alternate(
    name: str, tensors: Tensors, methods: Sequence[Method], repetitions: int, world: MPI.Comm
) -> dict[str, float]:
    """Let methods save and load in turn; return the figures of a model."""
    taken: dict[str, list[float]] = {}
    nbytes = {}
    buffers, model = empty_like(tensors), f"rank{world.rank}"
    for repetition in range(repetitions + 1):
        for method in figures.in_turn(methods, repetition):
            world.Barrier()
            begin = time.perf_counter()
            method.write(model, tensors)
            saved = time.perf_counter()
            method.read_into(model, buffers)
            seconds = {"save": saved - begin, "load": time.perf_counter() - saved}
            nbytes[method.name] = method.nbytes(model)
            method.remove(model)
            for step, value in seconds.items():
                slowest = world.allreduce(value, MPI.MAX)
                if repetition:  # the first one warms up
                    taken.setdefault(f"{name}_{method.name}_{step}", []).append(slowest)
    medians = {key: statistics.median(values) for key, values in taken.items()}
    results = {f"{key}_ms": 1e3 * value for key, value in medians.items()}
    results |= {f"{name}_{method}_bytes": float(count) for method, count in nbytes.items()}
    for method in nbytes.keys() - {"store"}:
        for step in ("save", "load"):
            key = f"{name}_{method}_{step}"
            results[f"{key}_over_store"] = medians[key] / medians[f"{name}_store_{step}"]
    return results


def candle(length: int) -> Shapes:
    """Return the weights of NT3's convolutions and dense layers; its input is 60,483 long."""
    flat = (length - 19 - 9) // 10 * 128
    return {
        "conv1d": [(20, 1, 128), (128,)],
        "conv1d_1": [(10, 128, 128), (128,)],
        "dense": [(flat, 200), (200,)],
        "dense_1": [(200, 20), (20,)],
        "dense_2": [(20, 2), (2,)],
    }


def resnet(blocks: Sequence[int], classes: int = 200) -> Shapes:
    """Return the weights of a residual network with bottleneck blocks (He et al. 2016, table 1)."""
    shapes: dict[str, Sequence[tuple[int, ...]]] = {}

    def convolution(name: str, kernel: int, channels: int, filters: int) -> None:
        shapes[name] = [(kernel, kernel, channels, filters), (filters,)]
        shapes[f"{name}_bn"] = [(filters,)] * 4

    convolution("conv1", 7, 3, 64)
    channels = 64
    for stage, count in enumerate(blocks):
        filters = 64 << stage
        for block in range(count):
            name = f"stage{stage}_block{block}"
            if block == 0:
                convolution(f"{name}_0", 1, channels, 4 * filters)
            convolution(f"{name}_1", 1, channels, filters)
            convolution(f"{name}_2", 3, filters, filters)
            convolution(f"{name}_3", 1, filters, 4 * filters)
            channels = 4 * filters
    shapes["predictions"] = [(channels, classes), (classes,)]
    return shapes


if __name__ == "__main__":
    sys.exit(main())
