"""How long does a best match take over MPI while the other ranks compute?

``mpiexec -n 2 python benchmarks/mpi_best_match.py [--models N] [--queries N] [--computing KIND]``
registers N models of a mutation family (space `dense_skip`) in `graph_meta.PrefixService`; then
rank 0 asks while all others compute without a break. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import numpy as np
from mpi4py import MPI

from cpp_store import PrefixIndex, ranges
from graph_meta import PrefixService
from transfer_nas.population import default_space, draw_genomes, draw_lineage

FOUNDERS = 1000  # of the mutation family


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=ranges.COUNT, default=60_000)
    parser.add_argument("--queries", type=ranges.COUNT, default=2_000)
    parser.add_argument(
        "--computing",
        choices=("numpy", "python", "nothing"),
        default="numpy",
        help="what the other ranks do: matrix products, pure Python, or sleep",
    )
    given = parser.parse_args()
    world = MPI.COMM_WORLD
    space = default_space("dense_skip")
    founders = draw_genomes(space, 0, 0, FOUNDERS)
    count = given.models - FOUNDERS + given.queries
    family = draw_lineage(space, 0, np.arange(FOUNDERS), founders, count).genome
    with PrefixService(world) as service:
        mine = range(world.rank, given.models, world.size)
        tables = [space.graph(family[number].tolist()).table for number in mine]
        world.Barrier()
        begin = time.perf_counter()
        service.register_all(
            [str(number) for number in mine], tables, sequences=[number + 1 for number in mine]
        )
        register = time.perf_counter() - begin
        if world.rank == 0:
            questions = [space.graph(genome).table for genome in family[given.models :].tolist()]
            figures = ask(service, questions)
            figures["register_all_per_s"] = given.models / register
            figures["wrong_answers"] = wrong_answers(
                service, space, family[: given.models], questions
            )
            print(json.dumps({"models": given.models, "ranks": world.size, **figures}))
            world.Ibarrier().Wait()
        else:
            compute(given.computing, world)
    return 0


def ask(service: PrefixService, questions: list) -> dict[str, float]:
    """Time one question after the other, and some after a pause each."""
    for question in questions[:50]:
        service.best_match(question)
    hot = sorted(timed(service, question) for question in questions)
    cold = []
    for question in questions[:100]:
        time.sleep(0.02)  # the others have found nothing to answer for a while
        cold.append(timed(service, question))
    cold.sort()
    return {
        "mpi_best_match_p50_us": 1e6 * hot[len(hot) // 2],
        "mpi_best_match_p99_us": 1e6 * hot[len(hot) * 99 // 100],
        "mpi_best_match_after_a_pause_p50_us": 1e6 * cold[len(cold) // 2],
    }


def timed(service: PrefixService, question: object) -> float:
    begin = time.perf_counter()
    service.best_match(question)
    return time.perf_counter() - begin


def wrong_answers(
    service: PrefixService, space: object, family: np.ndarray, questions: list
) -> int:
    """Compare with one index that holds all models."""
    index = PrefixIndex()
    for number, genome in enumerate(family.tolist()):
        index.add(str(number), space.graph(genome).table, sequence=number + 1)
    return sum(
        repr(service.best_match(question)) != repr(index.best_match(question))
        for question in questions
    )


def compute(kind: str, world: MPI.Comm) -> None:
    """Keep this rank busy until rank 0 is done."""
    done = world.Ibarrier()
    matrix = np.random.default_rng(0).random((300, 300))
    while not done.Test():
        if kind == "numpy":
            matrix @ matrix
        elif kind == "python":
            sum(i * i for i in range(3000))
        else:
            time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main())
