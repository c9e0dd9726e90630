"""What does a transfer cost by each method: best match, loading the prefix, putting the child?

``mpiexec -n N python -m benchmarks.bench_transfer [--directory DIR] [--json FILE] [--quick]``: each
rank takes children of its own family through every method, at models of several sizes in 24 layers
with weights, of which a share is the stored parent's. Loading includes the copy into arrays of the
caller, as weights are copied into a model; a put is that of the child's own layers (hdf5 writes
whole copies all the same). No Keras: training is not in here.

Methods take turns, child by child; figures are medians over all children and ranks. Keys are
``METHOD_STEP_ms_SIZEmb_PERCENTpct`` and ``METHOD_bytes_per_child_SIZEmb_PERCENTpct``, of the steps
match, load, put, retire and total. ``store`` is a server in another process, ``embedded`` the store
in each rank's own.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import figures
import numpy as np
from methods import MIB, Places, in_shared_memory, opened_places
from mpi4py import MPI

import cpp_store
from cpp_store import ranges
from graph_meta import GraphBuilder, LayerGraph, layers
from transfer_nas import transfer
from transfer_nas.errors import InputError
from transfer_nas.transfer import Tensors, TransferMethod

QUESTION = figures.Question(
    compares="every TransferMethod: the store on a server and in process, files, nothing",
    seconds=120,
    quick_seconds=5,
    ranks=2,
    plots={
        "milliseconds a child, half of it shared, against its size in MB": r"(?P<series>.+)"
        r"_total_ms_(?P<x>\d+)mb_50pct",
        "milliseconds a child of 16 MB, against the percentage shared": r"(?P<series>.+)"
        r"_total_ms_16mb_(?P<x>\d+)pct",
    },
)
# Selective transfer is to cost less than files that hold whole copies.
TARGETS: figures.Targets = {
    "hdf5_over_store_16mb_75pct": ("at least", 2),
    "hdf5_bytes_over_store_16mb_75pct": ("at least", 3),
}
STEPS = ("match", "load", "put", "retire")
BLOCKS = 24
SHARES = (25, 50, 75, 95)  # per cent of the layers


def main() -> int:
    parser = figures.parser(__doc__, "smaller models, fewer children")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()),
                        metavar="DIR", help="where hdf5 keeps its files")  # fmt: skip
    parser.add_argument("--children", type=ranges.COUNT, help="of each rank (default: 12)")
    given = parser.parse_args()
    world = MPI.COMM_WORLD
    sizes = (1, 16) if given.quick else (1, 16, 64)
    children = given.children or (4 if given.quick else 12)
    results: dict[str, float] = {"ranks": world.size, "children_per_rank": children}
    memory = 4 * world.size * max(sizes) * MIB
    with opened_places(world, given.directory, redis_flags=["--save", ""], memory=memory) as places:
        results["store_in_shared_memory"] = in_shared_memory(places)
        for size in sizes:
            for share in SHARES:
                results |= measure(size, share, children, places, world)
    if world.rank == 0:
        figures.finish("transfer", results, TARGETS, given)
    return 0


def measure(
    size: int, share: int, children: int, places: Places, world: MPI.Comm
) -> dict[str, float]:
    """Let each child be matched, loaded, put and retired by each method."""
    seconds: dict[str, list[float]] = {}
    added: dict[str, list[int]] = {}
    family = f"{size}-{share}-{world.rank}"
    parent = model(size, share, world.rank)
    with opened(places, f"bench-{family}") as methods:
        for method in methods.values():
            method.put(f"parent-{family}", parent, tensors_of(parent), score=0)
        world.Barrier()
        for number in range(children + 1):
            child = model(size, share, world.rank, member=number + 1)
            weights = tensors_of(child)
            names = list(methods)
            for name in figures.in_turn(names, number):
                times, nbytes = transferred(methods[name], f"{family}-{number}", child, weights)
                if number:  # the first child is warm-up
                    for step, spent in {**times, "total": sum(times.values())}.items():
                        seconds.setdefault(f"{name}_{step}", []).append(spent)
                    added.setdefault(name, []).append(nbytes)
        for method in methods.values():
            method.retire([f"parent-{family}"])
    at = f"{size}mb_{share}pct"
    times = gathered(seconds, world)
    nbytes = gathered(added, world)
    results = {f"{key}_ms_{at}": 1e3 * value for key, value in times.items()}
    results |= {f"{name}_bytes_per_child_{at}": value for name, value in nbytes.items()}
    for name in nbytes.keys() - {"store", "embedded", "noop"}:
        results[f"{name}_over_store_{at}"] = times[f"{name}_total"] / times["store_total"]
        results[f"{name}_bytes_over_store_{at}"] = nbytes[name] / nbytes["store"]
    return results


def gathered(values: dict[str, list[float]] | dict[str, list[int]], world: MPI.Comm) -> dict:
    """Return the medians over all ranks."""
    parts = world.allgather(values)
    return {
        key: statistics.median([each for part in parts for each in part[key]]) for key in values
    }


def transferred(
    method: TransferMethod, model: str, child: LayerGraph, weights: Tensors
) -> tuple[dict[str, float], int]:
    """Take a child through a transfer; return the seconds of each step and the bytes it added."""
    clock = [time.perf_counter()]
    inheritance = method.best_match(child)
    clock.append(time.perf_counter())
    inherited: set[str] = set()
    if inheritance is not None:
        for layer, tensors in inheritance.read().items():
            inherited.add(layer)
            for weight, tensor in zip(weights[layer], tensors, strict=True):
                np.copyto(weight, tensor)
    clock.append(time.perf_counter())
    own = {layer: tensors for layer, tensors in weights.items() if layer not in inherited}
    added = method.put(model, child, own, score=-1, inheritance=inheritance, inherited=inherited)
    if inheritance is not None:
        inheritance.close()
    clock.append(time.perf_counter())
    method.retire([model])
    clock.append(time.perf_counter())
    return dict(zip(STEPS, np.diff(clock).tolist(), strict=True)), added


def model(size: int, share: int, family: int, member: int = 0) -> LayerGraph:
    """Return a chain of dense layers; members of a family differ in those that are not shared."""
    width = max(8, round((size * MIB / 4 / BLOCKS) ** 0.5))
    builder = GraphBuilder()
    edge = builder.input((width,))
    for block in range(BLOCKS):
        own = member / 10_000 if block >= BLOCKS * share / 100 else 0.0
        edge = builder.add(layers.dropout(0.1 + 0.001 * family + own), edge)
        edge = builder.add(layers.dense(width, activation="relu"), edge)
    return builder.build(edge)


def tensors_of(graph: LayerGraph) -> Tensors:
    rng = np.random.default_rng(0)
    return {
        name: [rng.random(weight.shape, np.float32) for weight in layer.spec.weights]
        for name, layer in zip(graph.names, graph.layers, strict=True)
        if layer.spec.weights
    }


@contextlib.contextmanager
def opened(places: Places, namespace: str) -> Iterator[dict[str, TransferMethod]]:
    """Open each registered method, the store twice; say what another would need."""
    with contextlib.ExitStack() as stack:
        embedded = stack.enter_context(cpp_store.embedded(memory="1GiB"))
        served = stack.enter_context(cpp_store.connect(places.store))
        methods = {"embedded": transfer.get("store", namespace, store=embedded)}
        for name in transfer.TRANSFERS:
            try:
                methods[name] = transfer.get(
                    name, namespace, directory=places.directory / namespace, store=served
                )
            except InputError as error:
                figures.lacks(name, str(error))
        for method in methods.values():
            stack.callback(method.close)
        yield methods


if __name__ == "__main__":
    sys.exit(main())
