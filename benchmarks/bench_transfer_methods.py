"""What does a transfer cost by each method: best match, loading the prefix, putting the child?

``python benchmarks/bench_transfer_methods.py [--json FILE] [--quick]`` prints a table and writes
flat keys to FILE. Each child shares the first three quarters of its layers with a stored model.
Loading includes the copy into arrays of the caller, as weights are copied into a model; a put is
that of the child's own quarter (hdf5 writes whole copies all the same). No Keras: training is not
in here.

Methods take turns, child by child, in one process; figures are medians. Keys are
``SIZE_METHOD_STEP_ms`` and ``SIZE_METHOD_bytes_per_child``, of sizes ``digits`` (0.2 MB in 25
layers) and ``64mb``, methods ``noop``, ``hdf5`` (files under --directory), ``store`` (in process)
and ``served`` (a server in another process, over libfabric).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import figures
import numpy as np

import cpp_store
from graph_meta import GraphBuilder, LayerGraph, layers
from transfer_nas import transfer
from transfer_nas.transfer import Tensors, TransferMethod

CHILDREN = {"digits": 200, "64mb": 24}
STEPS = ("match", "load", "put", "retire")

SERVER = """
import cpp_store, sys
with cpp_store.serve("ofi+tcp://127.0.0.1:0", memory="1GiB") as server:
    print(server.address, flush=True)
    sys.stdin.read()
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="a tenth of the children")
    parser.add_argument("--directory", metavar="DIR", help="where hdf5 keeps its files")
    given = parser.parse_args()
    results: dict[str, float] = {}
    for size, children in CHILDREN.items():
        with tempfile.TemporaryDirectory(prefix="bench-", dir=given.directory) as directory:
            results |= measure(size, max(3, children // 10 if given.quick else children), directory)
        show(size, results)
    if given.json:
        figures.write(given.json, "transfer_methods", results, quick=given.quick)
    return 0


def measure(size: str, children: int, directory: str) -> dict[str, float]:
    """Let each child be matched, loaded, put and retired by each method."""
    seconds: dict[tuple[str, str], list[float]] = {}
    added: dict[str, list[int]] = {}
    with opened(directory) as methods:
        for method in methods.values():
            for family in range(4):
                parent = model(size, family)
                method.put(f"parent-{family}", parent, tensors_of(parent), score=0)
        for number in range(children + 1):
            child = model(size, number % 4, member=number + 1)
            weights = tensors_of(child)
            names = list(methods)
            first = number % len(names)
            for name in names[first:] + names[:first]:
                times, nbytes = transferred(methods[name], f"child-{number}", child, weights)
                if number:  # the first child is warm-up
                    for step, spent in times.items():
                        seconds.setdefault((name, step), []).append(spent)
                    added.setdefault(name, []).append(nbytes)
    results = {
        f"{size}_{name}_{step}_ms": 1e3 * statistics.median(times)
        for (name, step), times in seconds.items()
    }
    return results | {
        f"{size}_{name}_bytes_per_child": statistics.median(counts)
        for name, counts in added.items()
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


def model(size: str, family: int, member: int = 0) -> LayerGraph:
    """Return a chain of dense layers; members of a family differ in the last quarter."""
    width, blocks = {"digits": (64, 12), "64mb": (1_000, 16)}[size]
    builder = GraphBuilder()
    edge = builder.input((width,))
    for block in range(blocks):
        own = member / 10_000 if block >= blocks * 3 // 4 else 0.0
        edge = builder.add(layers.dropout(0.1 * (family + 1) + own), edge)
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
def opened(directory: str) -> Iterator[dict[str, TransferMethod]]:
    """Open each method on an empty place."""
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(cpp_store.embedded(memory="1GiB"))
        served = stack.enter_context(cpp_store.connect(stack.enter_context(server())))
        methods = {
            "noop": transfer.get("noop", "bench"),
            "hdf5": transfer.get("hdf5", "bench", directory=Path(directory)),
            "store": transfer.get("store", "bench", store=store),
            "served": transfer.get("store", "bench", store=served),
        }
        for method in methods.values():
            stack.callback(method.close)
        yield methods


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run a server in a process of its own; yield its address."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(timeout=30)


def show(size: str, results: dict[str, float]) -> None:
    names = [key.split("_")[1] for key in results if key.startswith(f"{size}_")]
    print(f"\n{size:<8}" + "".join(f"{step + ' ms':>12}" for step in STEPS) + f"{'bytes':>14}")
    for name in dict.fromkeys(names):
        row = "".join(f"{results[f'{size}_{name}_{step}_ms']:>12.3f}" for step in STEPS)
        print(f"{name:<8}{row}{results[f'{size}_{name}_bytes_per_child']:>14,.0f}")


if __name__ == "__main__":
    sys.exit(main())
