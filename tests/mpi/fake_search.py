"""A search whose evaluations cost nothing, for `test_search.py`: the engine under MPI alone.

Arguments: the run directory, and JSON with ``max_evals``, ``seconds`` (that an evaluation takes),
``timeout``, ``fail_every``, ``resume``, ``manager_error_at``. Rank 0 prints what happened as JSON.
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from transfer_nas.job import DONE, Evaluation, Job
from transfer_nas.ranks import MPIRanks, join
from transfer_nas.search import serial
from transfer_nas.search.evaluation import InProcess
from transfer_nas.search.evolution import AgingEvolution
from transfer_nas.search.interruption import Interruption
from transfer_nas.search.manager import Manager, Status
from transfer_nas.search.run_directory import RunDirectory
from transfer_nas.spaces import FeedForward

SPACE = FeedForward([(4,)], 2, max_depth=3)


class Fake:
    """Good genomes have large numbers; every `fail_every`-th job raises."""

    def __init__(self, seconds: float, fail_every: int) -> None:
        self.seconds = seconds
        self.fail_every = fail_every
        self.last: Job | None = None

    def evaluate(self, job: Job) -> Evaluation:
        time.sleep(self.seconds)
        if self.fail_every and job.id % self.fail_every == 0:
            raise RuntimeError("as asked")
        self.last = job
        measures = {"layers": 4, "layers_transferred": 1 if job.parent is not None else 0}
        return Evaluation(job, DONE, float(sum(job.genome)), measures)

    def save_model(self, path: Path) -> None:
        assert self.last is not None
        path.write_text(json.dumps(self.last.to_dict()))


def main() -> int:
    path, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    ranks = join()
    retired: list[int] = []
    reports: list[Status] = []

    def retire(ids: Sequence[int]) -> None:
        retired.extend(ids)

    def report(status: Status) -> None:
        reports.append(status)
        if status.evaluations >= options.get("manager_error_at", math.inf):
            raise OSError("disk full, as asked")
        if len(reports) == 1:
            print("first evaluation", file=sys.stderr, flush=True)

    manager = None
    if ranks.rank == 0:
        begin = RunDirectory.resume if options.get("resume") else RunDirectory.create
        directory = begin(path, SPACE, {}, {})
        manager = Manager(
            AgingEvolution(SPACE, 8, 3, seed=5),
            directory,
            max_evals=options.get("max_evals"),
            retire=retire,
            report=report,
            warn=print,
        )
    ranks.share(None)
    seconds = options.get("seconds", 0.0)
    if isinstance(seconds, list):  # by rank
        seconds = seconds[ranks.rank]
    log = sys.stderr.write if options.get("log") else lambda text: None
    evaluate = InProcess(Fake(seconds, options.get("fail_every", 0)), path, log)
    begun = time.perf_counter()
    interruption = Interruption(options.get("timeout"))
    try:
        with interruption:
            if isinstance(ranks, MPIRanks) and ranks.size > 1:
                from transfer_nas.search import mpi

                mpi.run(ranks.comm, manager, evaluate, interruption)
            else:
                assert manager is not None
                serial.run(manager, evaluate, interruption)
    except OSError as error:
        print(error, file=sys.stderr, flush=True)
        ranks.abort(1)
    seconds = time.perf_counter() - begun
    cpu = ranks.share(time.process_time())
    if manager is not None:
        status = manager.status
        print(
            json.dumps(
                {
                    "evaluations": status.evaluations,
                    "failures": status.failures,
                    "best": status.best and status.best.job.id,
                    "best_objective": status.best and status.best.objective,
                    "share": status.share_transferred,
                    "retired": retired,
                    "seconds": seconds,
                    "cpu": cpu,
                    "reason": interruption.reason,
                }
            )
        )
    code = interruption.exit_code
    ranks.finish()
    return code


if __name__ == "__main__":
    sys.exit(main())
