"""What does a best match cost, and what does it cost those who look at every stored model?

``python benchmarks/bench_metadata.py --json FILE [--quick]`` grows families by mutation (aging
evolution without scores, `transfer_nas.population.draw_lineage`), registers all members, and asks
with new children of members drawn at random. It prints a table and writes flat keys to FILE. The
peers, in the same run and with the same answers: a breadth-first scan of all stored graphs in C++
(``benchmarks/native/prefix_scan.cpp``, built here; left out where that cannot be) and networkx.

Each query is timed as the best of three calls from Python, as anything else on the machine only
ever makes it slower; percentiles are over queries. Rates are calls per second of processor time,
which nothing else on the machine can use up, medians over blocks of 10,000 calls.
``--quick`` stops at 60,000 models and asks less; the keys of a million are then missing.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import figures
import numpy as np
import numpy.typing as npt

import cpp_store
from cpp_store import LayerTable, PrefixIndex, Store
from tests.graph_meta import reference
from transfer_nas import spaces
from transfer_nas.population import default_space, draw_genomes, draw_lineage
from transfer_nas.spaces import GeneSpace

ROOT = Path(__file__).resolve().parent.parent
FOUNDERS = 1_000
BLOCK = 10_000
QUESTION = figures.Question(
    compares="the prefix index with breadth-first scans in C++ and in networkx, in process and "
    "over libfabric",
    seconds=1200,
    quick_seconds=18,
    plots={
        "microseconds a query against stored models": r"(?P<series>best_match_p50_us|"
        r"best_match_p99_us|scan_us|count_common_layers_us)_(?P<x>\d+)",
    },
)
TARGETS: figures.Targets = {
    "best_match_p50_us_60000": ("at most", 20),
    "best_match_p50_1000000_over_10000": ("at most", 2),
    "best_match_p99_us_1000000": ("at most", 200),
    "scan_over_index_60000": ("at least", 1000),
    "rpc_best_match_p50_us_60000": ("at most", 100),
    "register_per_s": ("at least", 100_000),
    "retire_per_s": ("at least", 100_000),
    "bytes_per_model_1000000": ("at most", 1000),
    "wrong_answers": ("at most", 0),
}

Genomes = npt.NDArray[np.int32]


def main() -> int:
    parser = figures.parser(__doc__.splitlines()[0], "no more than 60,000 models")
    given = parser.parse_args()
    sizes = [1_000, 10_000, 60_000] if given.quick else [1_000, 10_000, 60_000, 1_000_000]
    queries = 100 if given.quick else 1_000
    results: dict[str, float] = {"wrong_answers": 0}
    dense_skip(sizes, queries, results)
    for name in spaces.REGISTRY:
        other_space(name, 2_000 if given.quick else 10_000, results)
    results["networkx_s_per_query_1000"] = networkx_seconds(1 if given.quick else 5, results)
    worst_cases(10_000 if given.quick else 1_000_000, results)
    over_rpc(6_000 if given.quick else 60_000, results)
    figures.finish("metadata", results, TARGETS, given)
    return 0


def dense_skip(sizes: Sequence[int], queries: int, results: dict[str, float]) -> None:
    """Grow one family to each of the sizes; ask, scan and compare at each."""
    space = default_space("dense_skip")
    members = family(space, sizes[-1])
    index, stored = PrefixIndex(), PrefixScan.make()
    scores = np.random.default_rng(0).random(len(members))
    registering: list[float] = []
    done = 0
    for size in sizes:
        for tables in blocks(space, members[done:size]):
            registering.append(register(index, tables, done, scores) / len(tables))
            for offset, table in enumerate(tables if stored else ()):
                stored.add(table.encode(), scores[done + offset])
            done += len(tables)
        questions = children(space, members[:size], queries)
        times, answers = ask(index, questions)
        results[f"best_match_p50_us_{size}"] = percentile(times, 50)
        results[f"best_match_p99_us_{size}"] = percentile(times, 99)
        results[f"best_match_max_us_{size}"] = max(times)
        by_bytes, _ = ask(index, questions, weight="bytes")
        results[f"best_match_by_bytes_p50_us_{size}"] = percentile(by_bytes, 50)
        results[f"best_match_by_bytes_p99_us_{size}"] = percentile(by_bytes, 99)
        if stored:
            scan(stored, questions, answers, size, results)
    largest = sizes[-1]
    results[f"best_match_p50_{largest}_over_10000"] = (
        results[f"best_match_p50_us_{largest}"] / results["best_match_p50_us_10000"]
    )
    results["layers_per_query_that_transfer"] = share(answers, questions)
    results["register_per_s"] = 1 / statistics.median(registering)
    results[f"bytes_per_model_{largest}"] = index.stats()["bytes"] / largest
    results[f"distinct_layers_per_model_{largest}"] = index.stats()["layers"] / largest
    results["retire_per_s"] = retire(index, largest)
    del stored
    before = resident_bytes()
    del index
    results[f"resident_bytes_per_model_{largest}"] = (before - resident_bytes()) / largest


def family(space: GeneSpace, members: int) -> Genomes:
    """Return the genomes of founders and their descendants."""
    founders = draw_genomes(space, 0, 0, FOUNDERS)
    lineage = draw_lineage(space, 0, np.arange(FOUNDERS), founders, members - FOUNDERS)
    return lineage.genome


def children(space: GeneSpace, members: Genomes, count: int) -> list[LayerTable]:
    """Return tables of new children of any members."""
    rng = np.random.default_rng(2)
    parents = members[rng.integers(len(members), size=count)]
    return [space.graph(space.mutate(parent, rng)).table for parent in parents.tolist()]


def blocks(space: GeneSpace, genomes: Genomes) -> Iterator[list[LayerTable]]:
    for first in range(0, len(genomes), BLOCK):
        yield [space.graph(genome).table for genome in genomes[first : first + BLOCK].tolist()]


def register(
    index: PrefixIndex, tables: Sequence[LayerTable], first: int, scores: npt.NDArray[np.float64]
) -> float:
    """Register models named after their position; return the seconds."""
    models = [(str(first + i), table, float(scores[first + i])) for i, table in enumerate(tables)]
    begin = time.process_time()
    for model, table, score in models:
        index.add(model, table, score=score)
    return time.process_time() - begin


def ask(
    index: PrefixIndex | Store, questions: Sequence[LayerTable], **options: Any
) -> tuple[list[float], list[tuple[int, int]]]:
    """Return microseconds and (position of the model, layers) of each best match."""
    times = [float("inf")] * len(questions)
    answers: list[tuple[int, int]] = []
    for _ in range(3):
        answers.clear()
        for i, question in enumerate(questions):
            begin = time.perf_counter_ns()
            match = index.best_match(question, **options)
            times[i] = min(times[i], (time.perf_counter_ns() - begin) / 1000)
            answers.append((int(match.model), match.layers) if match else (-1, 0))
    return times, answers


def compare(
    peer: Callable[[bytes], tuple[int, int]],
    question: bytes,
    answer: tuple[int, int],
    results: dict[str, float],
) -> float:
    """Ask a peer the same; return its microseconds, the best of three as for the index."""
    times = []
    for _ in range(3):
        begin = time.perf_counter_ns()
        expected = peer(question)
        times.append((time.perf_counter_ns() - begin) / 1000)
    results["wrong_answers"] += expected != answer
    return min(times)


def retire(index: PrefixIndex, models: int) -> float:
    """Retire a tenth of the models, in random order; return how many a second."""
    chosen = np.random.default_rng(1).permutation(models)[: max(models // 10, BLOCK)].tolist()
    seconds = []
    for first in range(0, len(chosen), BLOCK):
        block = [str(number) for number in chosen[first : first + BLOCK]]
        begin = time.process_time()
        for model in block:
            index.remove(model)
        seconds.append((time.process_time() - begin) / len(block))
    return 1 / statistics.median(seconds)


def scan(
    stored: PrefixScan,
    questions: Sequence[LayerTable],
    answers: Sequence[tuple[int, int]],
    size: int,
    results: dict[str, float],
) -> None:
    """Let the scan answer the questions, too, and compare every answer.

    At a million models the breadth-first scan, at about a second a query, answers every 20th, and
    all are answered by counting common layers.
    """
    encoded = [question.encode() for question in questions]
    every = 20 if size > 60_000 else 1
    scanning = [
        compare(stored.best_match, encoded[i], answers[i], results)
        for i in range(0, len(encoded), every)
    ]
    counting = [
        compare(partial(stored.best_match, by_sets=True), table, answer, results)
        for table, answer in zip(encoded, answers, strict=True)
    ]
    results[f"scan_us_{size}"] = statistics.median(scanning)
    results[f"scan_over_index_{size}"] = (
        statistics.median(scanning) / results[f"best_match_p50_us_{size}"]
    )
    results[f"count_common_layers_us_{size}"] = statistics.median(counting)


def resident_bytes() -> int:
    """Return what the process takes once it has given back what is free."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def other_space(name: str, models: int, results: dict[str, float]) -> None:
    """Ask about a family of another space, by layers, and compare every answer."""
    space = default_space(name)
    members = family(space, models)
    index, stored = PrefixIndex(), PrefixScan.make()
    scores = np.random.default_rng(0).random(models)
    done = 0
    for tables in blocks(space, members):
        register(index, tables, done, scores)
        for offset, table in enumerate(tables if stored else ()):
            stored.add(table.encode(), scores[done + offset])
        done += len(tables)
    questions = children(space, members, 200)
    times, answers = ask(index, questions)
    for question, answer in zip(questions, answers, strict=True) if stored else ():
        compare(stored.best_match, question.encode(), answer, results)
    results[f"best_match_p50_us_{name}_{models}"] = percentile(times, 50)
    results[f"best_match_p99_us_{name}_{models}"] = percentile(times, 99)


def networkx_seconds(queries: int, results: dict[str, float]) -> float:
    """Scan 1,000 stored graphs with networkx; compare the answers."""
    space = default_space("dense_skip")
    members = family(space, 1_000)
    graphs = {str(i): space.graph(genome) for i, genome in enumerate(members.tolist())}
    stored = {
        model: reference.Stored(graph, 0.0, i) for i, (model, graph) in enumerate(graphs.items())
    }
    index = PrefixIndex()
    for i, (model, graph) in enumerate(graphs.items()):
        index.add(model, graph.table, sequence=i + 1)
    seconds = []
    rng = np.random.default_rng(2)
    for parent in members[rng.integers(len(members), size=queries)].tolist():
        question = space.graph(space.mutate(parent, rng))
        begin = time.perf_counter()
        found = reference.best_matches(question, stored)
        seconds.append(time.perf_counter() - begin)
        match = index.best_match(question.table)
        expected = (found[0].model, found[0].layers) if found else None
        results["wrong_answers"] += (match and (match.model, match.layers)) != expected
    return statistics.median(seconds)


def worst_cases(models: int, results: dict[str, float]) -> None:
    """Cost of what no search does: microseconds to register, ask and retire, and bytes."""

    def chain(layers: int, name: str = "layer") -> LayerTable:
        names = [f"{name}_{i}" for i in range(layers)]
        return LayerTable(names, [[i - 1] if i else [] for i in range(layers)])

    wide = LayerTable(
        [f"input_{i}" for i in range(1000)] + ["sum"], [[] for _ in range(1000)] + [[*range(1000)]]
    )
    same = chain(20)
    cases: dict[str, tuple[int, Callable[[int], LayerTable], LayerTable]] = {
        f"{models}_identical": (models, lambda i: same, same),
        f"{models}_nothing_shared": (
            models,
            lambda i: chain(20, f"model_{i}"),
            chain(20, "model_7"),
        ),
        "10000_layers": (10, lambda i: chain(10_000), chain(9_999)),
        "1000_requirements": (100, lambda i: wide, wide),
    }
    for name, (count, table_of, question) in cases.items():
        index = PrefixIndex()
        registering = retiring = 0.0
        for i in range(count):
            table = table_of(i)
            begin = time.process_time_ns()
            index.add(str(i), table)
            registering += time.process_time_ns() - begin
        times, _ = ask(index, [question] * 20)
        size = index.stats()["bytes"]
        for i in reversed(range(count)):  # newest first: the best one goes each time
            begin = time.process_time_ns()
            index.remove(str(i))
            retiring += time.process_time_ns() - begin
        results[f"worst_{name}_register_us"] = registering / count / 1000
        results[f"worst_{name}_best_match_us"] = statistics.median(times)
        results[f"worst_{name}_retire_us"] = retiring / count / 1000
        results[f"worst_{name}_bytes_per_model"] = size / count


def over_rpc(models: int, results: dict[str, float]) -> None:
    """Ask a server of another process of this host, and compare with an index of our own.

    The models have no tensors: a best match looks at none.
    """
    space = default_space("dense_skip")
    members = family(space, models)
    index = PrefixIndex()
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        with cpp_store.connect(server.stdout.readline().split()) as store:
            done = 0
            for tables in blocks(space, members):
                for i, table in enumerate(map(without_bytes, tables), start=done):
                    store.put(str(i), {}, table=table)
                    index.add(str(i), table)
                done += len(tables)
            questions = [without_bytes(table) for table in children(space, members, 200)]
            times, answers = ask(store, questions)
            for question, answer in zip(questions, answers, strict=True):
                match = index.best_match(question)
                expected = (int(match.model), match.layers) if match else (-1, 0)
                results["wrong_answers"] += expected != answer
            results[f"rpc_best_match_p50_us_{models}"] = percentile(times, 50)
            results[f"rpc_best_match_p99_us_{models}"] = percentile(times, 99)
        server.stdin.close()


# Serves until its standard input ends.
_SERVER = """
import sys, cpp_store
with cpp_store.serve() as server:
    print(server.address, flush=True)
    sys.stdin.read()
"""


def without_bytes(table: LayerTable) -> LayerTable:
    return LayerTable(table.names, table.requires)


def percentile(values: Sequence[float], rank: float) -> float:
    return float(np.percentile(values, rank))


def share(answers: Sequence[tuple[int, int]], questions: Sequence[LayerTable]) -> float:
    """Return which part of a question's layers its best match has, on average."""
    return statistics.fmean(
        layers / len(question) for (_, layers), question in zip(answers, questions, strict=True)
    )


class PrefixScan:
    """The scan in C++, built optimised if it is not there yet. Later models are newer."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._scan = ctypes.c_void_p(self._library.prefix_scan_new())
        self._layers = ctypes.c_uint32()

    def __del__(self) -> None:
        self._library.prefix_scan_free(self._scan)

    @classmethod
    def make(cls) -> PrefixScan | None:
        """Return an empty one, or say in a line why there is none."""
        try:
            return cls(cls._load())
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            reasons = [line.strip() for line in said.splitlines() if "rror" in line]
            figures.lacks(
                "the scan in C++",
                "apt-get install g++ cmake ninja-build libfabric-dev libxxhash-dev libsodium-dev "
                f"libcli11-dev libsqlite3-dev ({(reasons or [str(error)])[0]})",
            )
            return None

    def add(self, table: bytes, score: float) -> None:
        """Store a model of this `LayerTable.encode`."""
        self._library.prefix_scan_add(self._scan, table, len(table), score)

    def best_match(self, table: bytes, *, by_sets: bool = False) -> tuple[int, int]:
        """Return the best model's position (-1: none) and its layers, by looking at all models.

        Breadth first over the graphs; or, `by_sets`, by counting layers that query and model both
        have, which is cheaper and right only because a name stands for all that is above a layer.
        """
        model = self._library.prefix_scan_best_match(
            self._scan, table, len(table), by_sets, ctypes.byref(self._layers)
        )
        return model, self._layers.value

    @staticmethod
    @cache
    def _load() -> ctypes.CDLL:
        build = ROOT / "build" / "benchmarks"
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        for command in (
            ["cmake", "--preset", "benchmarks"],
            ["cmake", "--build", str(build), "--target", "prefix_scan"],
        ):
            subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | {"PATH": programs},
                check=True,
                capture_output=True,
                text=True,
            )
        library = ctypes.CDLL(str(build / "benchmarks" / "native" / "libprefix_scan.so"))
        library.prefix_scan_new.restype = ctypes.c_void_p
        library.prefix_scan_best_match.restype = ctypes.c_int64
        library.prefix_scan_add.argtypes = [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_double,
        ]
        library.prefix_scan_best_match.argtypes = [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_bool,
            ctypes.POINTER(ctypes.c_uint32),
        ]
        return library


if __name__ == "__main__":
    sys.exit(main())
