"""Cases of `tests/mpi/test_service.py`, run on every rank: ``prefix_service.py CASE``.

Every rank draws the same random models from one seed, so each knows what the answers must be.
"""

import json
import sys
import threading
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


def register(service: PrefixService, model: Model) -> None:
    service.register(model.id, model.table, score=model.score, sequence=model.sequence)


def one_at_a_time(threaded: bool | None = None) -> None:
    with PrefixService(WORLD, threaded=threaded) as service:
        population, questions = models(400), models(60, seed=2)
        for model in block(population):
            register(service, model)
        service.register_all([], [])  # a barrier in which a rank without a thread serves
        index = index_of(population)
        for question in questions:
            for weight in ("layers", "bytes"):
                for exclude in ([], ["model-7", "model-8"]):
                    asked = {"weight": weight, "min_layers": 2, "exclude": exclude}
                    found = service.best_match(question.table, **asked)
                    same(found, index.best_match(question.table, **asked))
            several = service.best_matches(question.table, count=5)
            expected = index.best_matches(question.table, count=5)
            assert len(several) == len(expected)
            for found, right in zip(several, expected, strict=True):
                same(found, right)
        registered = service.stats()["models"]
    assert sum(WORLD.allgather(registered)) == 400


def without_a_thread() -> None:
    one_at_a_time(threaded=False)


def retirement() -> None:
    with PrefixService(WORLD) as service:
        population = models(300)
        for model in block(population):
            register(service, model)
        WORLD.Barrier()
        gone = population[::3]
        for model in block(gone):
            assert service.retire(model.id)
            assert not service.retire(model.id)
        WORLD.Barrier()
        left = [model for model in population if model not in gone]
        index = index_of(left)
        for question in models(60, seed=3):
            same(service.best_match(question.table), index.best_match(question.table))
        WORLD.Barrier()
        # A retired id may come back, newer than before.
        back = [replace(model, sequence=1000 + i) for i, model in enumerate(gone)]
        for model in block(back):
            register(service, model)
        WORLD.Barrier()
        index = index_of(left + back)
        for question in models(60, seed=3):
            same(service.best_match(question.table), index.best_match(question.table))


def sequence_numbers() -> None:
    """Without numbers of their own, later registrations are newer, in bulk and one at a time."""
    with PrefixService(WORLD) as service:
        table = models(1)[0].table
        names = [f"bulk-{i}" for i in range(10)]
        service.register_all(block(names), [table] * len(block(names)))
        found = service.best_match(table)
        assert found is not None and (found.model, found.sequence) == ("bulk-9", 10)
        WORLD.Barrier()
        for rank in range(SIZE):
            if rank == RANK:
                service.register(f"single-{rank}", table)
                assert service.best_match(table).model == f"single-{rank}"
            WORLD.Barrier()
        service.register_all(["last"] if RANK == 0 else [], [table] if RANK == 0 else [])
        assert service.best_match(table).model == "last"


def bulk() -> None:
    service_module._ROUND = 512  # so that the ranks need different numbers of rounds
    with PrefixService(WORLD) as service:
        population, questions = models(5000), models(500, seed=4)
        mine = block(population)
        service.register_all(
            [m.id for m in mine],
            [m.table for m in mine],
            scores=[m.score for m in mine],
            sequences=[m.sequence for m in mine],
        )
        index = index_of(population)
        for weight in ("layers", "bytes"):
            asked = block(questions)
            excluded = [[f"model-{i}" for i in range(j, j + 3)] for j in range(len(asked))]
            answers = service.best_matches_all(
                [q.table for q in asked], weight=weight, min_layers=2, exclude=excluded
            )
            for question, found, out in zip(asked, answers, excluded, strict=True):
                right = index.best_match(question.table, weight=weight, min_layers=2, exclude=out)
                same(found, right)
        gone = [model.id for model in population[::2]]
        unknown = [f"nobody-{RANK}"]
        assert service.retire_all(block(gone) + unknown) == [True] * len(block(gone)) + [False]
        for model in gone:
            index.remove(model)
        asked = block(questions)
        answers = service.best_matches_all([q.table for q in asked])
        for question, found in zip(asked, answers, strict=True):
            same(found, index.best_match(question.table))


def serial_evolution() -> None:
    """advance_all sees what one process that takes the steps one after the other sees."""
    with PrefixService(WORLD) as service:
        population, children = models(200), models(700, seed=5)
        children = [
            replace(child, id=f"child-{i}", sequence=1000 + i) for i, child in enumerate(children)
        ]
        mine = block(population)
        service.register_all(
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
            answers = service.advance_all(
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


def everybody_at_once() -> None:
    """Several threads of each rank ask, register and retire; nothing is lost or mixed up."""
    with PrefixService(WORLD) as service:
        population = models(200)
        for model in block(population):
            register(service, model)
        WORLD.Barrier()
        index = index_of(population)
        questions = models(40, seed=6)
        expected = [index.best_match(question.table) for question in questions]
        failures: list[str] = []

        def work(thread: int) -> None:
            try:
                for i, question in enumerate(questions):
                    own = f"own-{RANK}-{thread}-{i}"
                    lonely = LayerTable([f"{own}-a", f"{own}-b"], [[], [0]], [1, 1])
                    service.register(own, lonely)
                    found = service.best_match(lonely)
                    assert found is not None and found.model == own
                    same(service.best_match(question.table), expected[i])
                    assert service.retire(own)
                    assert service.best_match(lonely) is None
            except Exception as error:
                failures.append(repr(error))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures
        WORLD.Barrier()
        assert sum(WORLD.allgather(service.stats()["models"])) == 200


def asking_a_rank_that_computes() -> None:
    with PrefixService(WORLD) as service:
        population = models(200)
        for model in block(population):
            register(service, model)
        done = WORLD.Ibarrier() if RANK else None
        if RANK == 0:
            index = index_of(population)
            # The others may still be registering; the last question must be right.
            for question in models(50, seed=7):
                service.best_match(question.table)
            WORLD.Ibarrier().Wait()
            for question in models(50, seed=7):
                same(service.best_match(question.table), index.best_match(question.table))
        while done is not None and not done.Test():
            sum(i * i for i in range(2000))  # pure Python: holds the interpreter


def errors() -> None:
    with PrefixService(WORLD) as service:
        table = models(1)[0].table
        if RANK == 0:
            service.register("twice", table)
        WORLD.Barrier()

        def refused(call: Callable[[], object], error: type[Exception], text: str) -> None:
            try:
                call()
            except error as caught:
                assert text in str(caught), str(caught)
            else:
                raise AssertionError(f"expected {error.__name__}")

        refused(lambda: service.register("twice", table), cpp_store.AlreadyExists, "twice")
        refused(lambda: service.best_match(table, weight="size"), cpp_store.InvalidArgument, "size")
        # One rank's mistake is told to all, and the service goes on.
        mine = ["twice"] if RANK == SIZE - 1 else [f"fine-{RANK}"]
        refused(lambda: service.register_all(mine, [table]), cpp_store.AlreadyExists, "twice")
        uneven = [table] * 2 if RANK == SIZE - 1 else [table]
        refused(
            lambda: service.register_all([f"uneven-{RANK}"], uneven), ValueError, "equal length"
        )
        found = service.best_matches_all([table], weight="layers")
        assert found[0] is not None
        WORLD.Barrier()
        if RANK == 0:
            rest = [f"fine-{rank}" for rank in range(SIZE - 1)]
            assert all(service.retire(model) for model in rest)
            assert service.retire("twice")


def waiting_is_cheap() -> None:
    """Prints the CPU seconds of rank 1, which waits for two seconds in a collective call."""
    with PrefixService(WORLD) as service:
        WORLD.Barrier()
        begin = time.process_time()
        if RANK == 0:
            time.sleep(2.0)
        service.register_all([], [])
        spent = WORLD.gather(time.process_time() - begin)
    if RANK == 0:
        print(json.dumps(spent))


def leaving_without_closing() -> None:
    """A rank that ends without close() must not hang or crash in MPI's own end."""
    service = PrefixService(WORLD)
    service.register(f"model-{RANK}", models(1)[0].table)
    WORLD.Barrier()


def closing_while_asked() -> None:
    """A rank that comes to close() first goes on answering the others."""
    service = PrefixService(WORLD)
    if RANK == 0:
        for model in models(50):
            register(service, model)
        for question in models(50, seed=8):
            service.best_match(question.table)
    service.close()
    service.close()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    print("passed", file=sys.stderr if sys.argv[1] == "waiting_is_cheap" else sys.stdout)
