"""How fast is the engine, whatever the candidates cost?

``mpiexec -n 3 python benchmarks/mpi_evolution.py DIRECTORY [--evaluations N] [--seconds LOW HIGH]``
searches space `dense_skip` by aging evolution with evaluations that only sleep: each for a time
between LOW and HIGH that depends on its job, by default not at all. Everything else is the real
thing, journals included. Rank 0 prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from cpp_store.ranges import Range

from cpp_store import ranges
from transfer_nas.algorithms.evolution import AgingEvolution
from transfer_nas.ending import Ending
from transfer_nas.job import DONE, Evaluation, Job
from transfer_nas.ranks import MPIRanks, join
from transfer_nas.searching import serial
from transfer_nas.searching.evaluation import InProcess
from transfer_nas.searching.interruption import Interruption
from transfer_nas.searching.manager import Manager
from transfer_nas.searching.run_directory import RunDirectory
from transfer_nas.spaces import DenseSkip

SPACE = DenseSkip([(8, 8)], 10, "softmax")
POPULATION, SAMPLE = 100, 10


class Sleeper:
    """Sleeps instead of training; genomes of large numbers are good.

    Parameters
    ----------
    low, high
        Seconds that an evaluation takes, at least and at most.
    """

    space = SPACE

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.busy = 0.0

    def evaluate(self, job: Job) -> Evaluation:
        """Sleep as long as the job's number says."""
        begin = time.perf_counter()
        if self.high > 0:
            time.sleep(np.random.default_rng(job.id).uniform(self.low, self.high))
        self.busy += time.perf_counter() - begin
        return Evaluation(job, DONE, float(sum(job.architecture)))

    def save_model(self, path: Path) -> None:
        """Write nothing: there is no model."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="of the run; must hold none")
    parser.add_argument("--evaluations", type=ranges.COUNT, default=20_000)
    parser.add_argument("--seconds", type=Range(0, 10**6, whole=False), nargs=2, default=(0.0, 0.0))
    given = parser.parse_args()
    ranks = join()
    manager = None
    if ranks.rank == 0:
        manager = Manager(
            AgingEvolution(SPACE, POPULATION, SAMPLE, seed=1),
            RunDirectory.create(given.directory, SPACE, {}, {}),
            max_evals=given.evaluations,
            retire=lambda jobs: None,
            report=lambda status: None,
            warn=print,
        )
    ranks.share(None)
    sleeper = Sleeper(*given.seconds)
    evaluate = InProcess(sleeper, given.directory, sys.stderr.write)
    interruption = Interruption()
    begin = time.perf_counter()
    with interruption:
        if isinstance(ranks, MPIRanks) and ranks.size > 1:
            from transfer_nas.searching import mpi

            mpi.run(
                ranks.comm,
                SPACE,
                manager,
                evaluate,
                interruption,
                fail=Ending("mpi_evolution", ranks).fail,
            )
        else:
            assert manager is not None
            serial.run(manager, evaluate, interruption)
    seconds = time.perf_counter() - begin
    busy = ranks.share(sleeper.busy)
    if manager is not None:
        assert manager.status.evaluations == given.evaluations
        found = {"evaluations": given.evaluations, "seconds": seconds, "busy": busy}
        print(json.dumps(found), flush=True)
    ranks.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
