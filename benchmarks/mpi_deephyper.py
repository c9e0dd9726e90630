"""How many empty evaluations does DeepHyper complete over MPI?

``mpiexec -n 3 python benchmarks/mpi_deephyper.py DIRECTORY [--evaluations N]``, under Open MPI,
searches the space of ``mpi_evolution.py`` by DeepHyper's `RegularizedEvolution` under its
``mpicomm`` evaluator. Rank 0 prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time

from deephyper.evaluator import Evaluator
from deephyper.hpo import RegularizedEvolution
from mpi_evolution import POPULATION, SAMPLE, SPACE

from cpp_store import ranges
from transfer_nas.deephyper import genome_of, problem_of


def evaluate(job: object) -> float:
    return float(sum(genome_of(SPACE, job)))  # type: ignore[arg-type]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    parser.add_argument("--evaluations", type=ranges.COUNT, default=60)
    given = parser.parse_args()
    with (
        contextlib.redirect_stdout(sys.stderr),  # DeepHyper prints each result
        Evaluator.create(evaluate, method="mpicomm") as evaluator,
    ):
        if not evaluator.is_master:
            return 0
        search = RegularizedEvolution(
            problem_of(SPACE),
            random_state=1,
            log_dir=given.directory,
            population_size=POPULATION,
            sample_size=SAMPLE,
        )
        begin = time.perf_counter()
        results = search.search(evaluator, max_evals=given.evaluations)
        seconds = time.perf_counter() - begin
    print(json.dumps({"evaluations": len(results), "seconds": seconds}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
