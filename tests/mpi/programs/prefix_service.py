"""Cases of `tests/mpi/test_service.py`, run on every rank: ``prefix_service.py CASE``.

Every rank draws the same random models from one seed, so each knows what the answers must be.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from mpi4py import MPI

import cpp_store
from cpp_store import LayerTable, Match, PrefixIndex
from graph_meta import service as service_module
from graph_meta.service import PrefixService

WORLD = MPI.COMM_WORLD
RANK, SIZE = WORLD.Get_rank(), WORLD.Get_size()


@dataclass(frozen=True)
class Model:
    id: str
    choices: tuple[int, ...]
    score: float
    sequence: int

    @property
    def table(self) -> LayerTable:
        """A chain in which a layer's name says everything before it; widths differ by choice."""
        names = ["/".join(map(str, self.choices[: i + 1])) for i in range(len(self.choices))]
        requires = [[i - 1] if i else [] for i in range(len(names))]
        return LayerTable(names, requires, [10 ** (choice % 3) for choice in self.choices])


def models(count: int, seed: int = 1) -> list[Model]:
    """Models that share a lot, with many equal scores and some that are not a number."""
    rng = np.random.default_rng(seed)
    scores = [0.25, 0.5, 0.75, float("nan")]
    return [
        Model(
            f"model-{i}",
            tuple(rng.integers(0, 3, size=rng.integers(1, 9)).tolist()),
            scores[rng.integers(len(scores))],
            i + 1,
        )
        for i in range(count)
    ]


def block(items: list) -> list:
    """This rank's part of a list that is handed out in contiguous blocks."""
    return items[len(items) * RANK // SIZE : len(items) * (RANK + 1) // SIZE]


def index_of(registered: list[Model]) -> PrefixIndex:
    index = PrefixIndex()
    for model in registered:
        index.add(model.id, model.table, score=model.score, sequence=model.sequence)
    return index


def same(found: Match | None, expected: Match | None) -> None:
    # A NaN score is equal to itself here.
    assert repr(found) == repr(expected), f"found {found}, expected {expected}"
    if found is not None and expected is not None:
        assert found.positions == expected.positions


def sequence_numbers() -> None:
    """Without numbers of their own, later registrations are newer, whatever came before."""
    with PrefixService(WORLD) as service:
        table = models(1)[0].table
        names = [f"bulk-{i}" for i in range(10)]
        service.register(block(names), [table] * len(block(names)))
        (found,) = service.best_matches([table])
        assert found is not None and (found.model, found.sequence) == ("bulk-9", 10)
        service.advance(
            ["step"] if RANK == 0 else [],
            [table] if RANK == 0 else [],
            sequences=[1000] if RANK == 0 else [],
        )
        service.register(["last"] if RANK == 0 else [], [table] if RANK == 0 else [])
        (found,) = service.best_matches([table])
        assert found is not None and (found.model, found.sequence) == ("last", 1001)


def bulk() -> None:
    service_module._ROUND = 512  # so that the ranks need different numbers of rounds
    with PrefixService(WORLD) as service:
        population, questions = models(5000), models(500, seed=4)
        mine = block(population)
        service.register(
            [m.id for m in mine],
            [m.table for m in mine],
            scores=[m.score for m in mine],
            sequences=[m.sequence for m in mine],
        )
        index = index_of(population)
        for weight in ("layers", "bytes"):
            asked = block(questions)
            excluded = [[f"model-{i}" for i in range(j, j + 3)] for j in range(len(asked))]
            answers = service.best_matches(
                [q.table for q in asked], weight=weight, min_layers=2, exclude=excluded
            )
            for question, found, out in zip(asked, answers, excluded, strict=True):
                right = index.best_match(question.table, weight=weight, min_layers=2, exclude=out)
                same(found, right)
        gone = [model.id for model in population[::2]]
        unknown = [f"nobody-{RANK}"]
        assert service.retire(block(gone) + unknown) == [True] * len(block(gone)) + [False]
        for model in gone:
            index.remove(model)
        asked = block(questions)
        answers = service.best_matches([q.table for q in asked])
        for question, found in zip(asked, answers, strict=True):
            same(found, index.best_match(question.table))


def serial_evolution() -> None:
    """advance sees what one process that takes the steps one after the other sees."""
    with PrefixService(WORLD) as service:
        population, children = models(200), models(700, seed=5)
        children = [
            replace(child, id=f"child-{i}", sequence=1000 + i) for i, child in enumerate(children)
        ]
        mine = block(population)
        service.register(
            [m.id for m in mine],
            [m.table for m in mine],
            scores=[m.score for m in mine],
            sequences=[m.sequence for m in mine],
        )
        order = [m.id for m in population + children]
        index = index_of(population)
        for begin in range(0, len(children), 100):
            steps = list(enumerate(children))[begin : begin + 100]
            asked = steps[RANK::SIZE]  # not in blocks: only the numbers decide
            answers = service.advance(
                [child.id for _, child in asked],
                [child.table for _, child in asked],
                scores=[child.score for _, child in asked],
                sequences=[child.sequence for _, child in asked],
                retire=[order[i] for i, _ in asked],
            )
            found = dict(zip((i for i, _ in asked), answers, strict=True))
            for i, child in steps:
                expected = index.best_match(child.table)
                if i in found:
                    same(found[i], expected)
                index.add(child.id, child.table, score=child.score, sequence=child.sequence)
                index.remove(order[i])
        assert sum(WORLD.allgather(service.stats()["models"])) == 200


def errors() -> None:
    with PrefixService(WORLD) as service:
        table = models(1)[0].table
        service.register(["twice"] if RANK == 0 else [], [table] if RANK == 0 else [])

        def refused(call: Callable[[], object], error: type[Exception], text: str) -> None:
            try:
                call()
            except error as caught:
                assert text in str(caught), str(caught)
            else:
                raise AssertionError(f"expected {error.__name__}")

        # One rank's mistake is told to all, and the service goes on.
        mine = ["twice"] if RANK == SIZE - 1 else [f"fine-{RANK}"]
        refused(lambda: service.register(mine, [table]), cpp_store.AlreadyExists, "twice")
        uneven = [table] * 2 if RANK == SIZE - 1 else [table]
        refused(lambda: service.register([f"uneven-{RANK}"], uneven), ValueError, "equal length")
        refused(lambda: service.best_matches([table], weight="size"), ValueError, "size")
        (found,) = service.best_matches([table])
        assert found is not None
        rest = [f"fine-{rank}" for rank in range(SIZE - 1)] if RANK == 0 else []
        assert all(service.retire(rest))


def waiting_is_cheap() -> None:
    """Prints the CPU seconds of rank 1, which waits for two seconds in a collective call."""
    with PrefixService(WORLD) as service:
        WORLD.Barrier()
        begin = time.process_time()
        if RANK == 0:
            time.sleep(2.0)
        service.register([], [])
        spent = WORLD.gather(time.process_time() - begin)
    if RANK == 0:
        print(json.dumps(spent))


def leaving_without_closing() -> None:
    """A rank that ends without close() must not hang or crash in MPI's own end."""
    service = PrefixService(WORLD)
    service.register([f"model-{RANK}"], [models(1)[0].table])


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    print("passed", file=sys.stderr if sys.argv[1] == "waiting_is_cheap" else sys.stdout)
