"""How many best matches a second do N clients get at once, beside Redis?

``python benchmarks/bench_matches.py [--json FILE] [--quick]``: a server holds a family of models of
space `dense_skip` without tensors, grown by mutation; 1 to 16 client processes ask it at the same
time for the best matches of new children, of which none, half or all share layers with any model.
`store` is ``cpp-store-server`` through shared memory, `store_tcp` the same over libfabric.

`redis` is what Redis's own commands do exactly: a sorted set of models for each layer, the union of
a question's sets, counted, and the first of it, in one round trip through a Unix socket. It sees
none of the models that share nothing, and walks over all that share anything.

Keys: ``WAY_per_s_MODELSm_SHAREpct_CLIENTSc``, answers a second of all clients together, medians
over turns; ``WAY_us_…``, the median time of one answer; ``store_over_redis_…``. Every answer is
compared with an index in this process: ``wrong_answers``.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import figures
import numpy as np
import store_matches
from client_processes import Clients, reached_by_memory, redis_socket, soon
from methods import MIB
from store_servers import server

from cpp_store import LayerTable, PrefixIndex
from transfer_nas.population import default_space, draw_genomes, draw_lineage
from transfer_nas.spaces import DenseSkip, GeneSpace

QUESTION = figures.Question(
    compares="the store, through shared memory and over libfabric, with sorted sets in Redis",
    seconds=240,
    quick_seconds=5,
    plots={
        "answers a second against clients, 60,000 models, all match": r"(?P<series>.+)_per_s_"
        r"60000m_100pct_(?P<x>\d+)c",
        "answers a second of four clients against models, all match": r"(?P<series>.+)_per_s_"
        r"(?P<x>\d+)m_100pct_4c",
    },
)
TARGETS: figures.Targets = {
    "store_over_redis_1000m_100pct_4c": ("at least", 2),
    "store_over_redis_60000m_100pct_4c": ("at least", 10),
    "wrong_answers": ("at most", 0),
}
FOUNDERS = 1_000
QUESTIONS = 200


def main() -> int:
    given = figures.parser(__doc__, "fewer models, clients and turns").parse_args()
    sizes = (1_000,) if given.quick else (1_000, 10_000, 60_000)
    clients = (1, 4) if given.quick else (1, 2, 4, 8, 16)
    shares = (0, 100) if given.quick else (0, 50, 100)
    turns, span = (1, 0.3) if given.quick else (3, 0.5)
    tables = family(default_space("dense_skip"), sizes[-1] + QUESTIONS)
    stored, children = tables[: sizes[-1]], tables[sizes[-1] :]
    strangers = family(DenseSkip([(9, 9)], 7, "softmax"), QUESTIONS)
    results: dict[str, float] = {"wrong_answers": 0}
    index = PrefixIndex()
    with ExitStack() as stack:
        ways = stack.enter_context(opened(max(clients)))
        done = 0
        for size in sizes:
            for number, table in enumerate(stored[done:size], done):
                index.add(str(number), table, sequence=number + 1)
            for way in ways:
                way.store(stored[done:size], done)
            done = size
            for share in shares:
                asked = mixed(children, strangers, share)
                expected = [answer_of(index, table) for table in asked]
                for way in ways:
                    way.ask_about(asked)
                    results["wrong_answers"] += way.wrong(expected)
                compare(ways, f"{size}m_{share}pct", clients, turns, span, results)
    figures.finish("matches", results, TARGETS, given)
    return 0


def family(space: GeneSpace, members: int) -> list[LayerTable]:
    """Return the layers of founders and their descendants, without bytes."""
    founders = draw_genomes(space, 0, 0, min(FOUNDERS, members))
    parents = np.arange(len(founders))
    lineage = draw_lineage(space, 0, parents, founders, members - len(founders))
    tables = (space.graph(genome).table for genome in lineage.genome.tolist())
    return [LayerTable(table.names, table.requires) for table in tables]


def mixed(
    children: Sequence[LayerTable], strangers: Sequence[LayerTable], share: int
) -> list[LayerTable]:
    """Return as many questions, of which `share` per cent match something, in random order."""
    of_family = np.random.default_rng(3).permutation(len(children)) < len(children) * share / 100
    return [
        child if is_of_family else stranger
        for child, stranger, is_of_family in zip(children, strangers, of_family, strict=True)
    ]


def answer_of(index: PrefixIndex, table: LayerTable) -> tuple[int, int]:
    match = index.best_match(table)
    return (int(match.model), match.layers) if match else (-1, 0)


class Way:
    """Clients, each a process, that ask one server in one way."""

    def __init__(self, name: str, where: str, count: int, stack: ExitStack) -> None:
        self.name, self._where = name, where
        self._file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "questions"
        self._clients = Clients(store_matches.__file__, [name, where], count, stack)

    def store(self, tables: Sequence[LayerTable], first: int) -> None:
        """Keep models named after their position."""
        with store_matches.opened(self.name, self._where) as asker:
            asker.store(tables, first)

    def ask_about(self, tables: Sequence[LayerTable]) -> None:
        """Let all clients know what will be asked."""
        self._file.write_text(json.dumps([table.encode().hex() for table in tables]))
        self._clients.tell(f"questions {self._file}")

    def wrong(self, expected: Sequence[tuple[int, int]]) -> int:
        """Return how many answers are not what they should be."""
        [answers] = self._clients.tell("answers", together=1)
        found = json.loads(answers)
        return sum(tuple(each) != right for each, right in zip(found, expected, strict=True))

    def turn(self, together: int, span: float) -> tuple[float, float]:
        """Return answers a second of so many clients, and the median seconds of one answer."""
        said = self._clients.tell(f"ask {soon()} {span}", together)
        answers = [json.loads(line) for line in said]
        return sum(rate for rate, _ in answers), statistics.median(each for _, each in answers)


@contextmanager
def opened(count: int) -> Iterator[list[Way]]:
    """Yield the ways that can be had here, each with so many clients."""
    with ExitStack() as stack:
        started = stack.enter_context(server(512 * MIB))
        names = ["store"] * reached_by_memory(started.address) + ["store_tcp"]
        ways = [Way(name, started.address, count, stack) for name in names]
        if socket := stack.enter_context(redis_socket()):
            ways.append(Way("redis", socket, count, stack))
        yield ways


def compare(
    ways: Sequence[Way],
    what: str,
    clients: Sequence[int],
    turns: int,
    span: float,
    results: dict[str, float],
) -> None:
    """Let the ways take turns, for each number of clients."""
    for together in clients:
        rates: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
        for repetition in range(turns):
            for way in figures.in_turn(ways, repetition):
                rates[way.name].append(way.turn(together, span))
        key = f"{what}_{together}c"
        for name, measured in rates.items():
            results[f"{name}_per_s_{key}"] = statistics.median(rate for rate, _ in measured)
            results[f"{name}_us_{key}"] = 1e6 * statistics.median(each for _, each in measured)
        for name in ("store", "store_tcp"):
            if name in rates and "redis" in rates:
                of_redis = results[f"redis_per_s_{key}"]
                results[f"{name}_over_redis_{key}"] = results[f"{name}_per_s_{key}"] / of_redis


if __name__ == "__main__":
    sys.exit(main())
