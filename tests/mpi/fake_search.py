"""A search whose evaluations cost nothing, for `test_search.py`: the engine under MPI alone.

Arguments: the run directory, and JSON with ``max_evals``, ``population``, ``timeout``, ``resume``
(also: if there is anything to resume), ``manager_error_at``, ``lost_after``, ``pids`` (a directory
for the number of each rank's process), ``wide`` (12,000 genes), ``synchronous`` (each message waits
for its receiver, as long ones do), the arguments of `Fake` (``seconds`` may be a list, by rank) and
``evaluation_timeout``, which lets child processes evaluate. Rank 0 prints what happened as JSON.
"""

import errno
import json
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transfer_nas.algorithms.evolution import AgingEvolution
from transfer_nas.errors import Unwritable
from transfer_nas.job import DONE, Evaluation, Job, Measure
from transfer_nas.ranks import MPIRanks, join
from transfer_nas.searching import serial
from transfer_nas.searching.evaluation import Evaluate, InProcess
from transfer_nas.searching.interruption import Interruption
from transfer_nas.searching.isolation import InChild
from transfer_nas.searching.manager import Manager, Status
from transfer_nas.searching.run_directory import RunDirectory
from transfer_nas.spaces import FeedForward

SPACE = FeedForward([(4,)], 2, max_depth=3)
WIDE = FeedForward([(4,)], 2, max_depth=6000)  # 12,000 genes


def synchronous(comm: Any) -> Any:
    """Return a communicator, to duplicate, whose messages all wait for their receivers."""
    from mpi4py import MPI

    class Synchronous(MPI.Intracomm):
        def Isend(self, buf: Any, dest: int, tag: int = 0) -> MPI.Request:
            return self.Issend(buf, dest, tag)

    return Synchronous(comm)


class Fake:
    """Good genomes have large numbers; some jobs go wrong, as asked.

    Parameters
    ----------
    seconds, spread
        That an evaluation takes: between 1 - `spread` and 1 + `spread` times `seconds`.
    fail_every
        Every so many jobs one raises.
    hang, die
        Jobs that never end, and that end their process.
    no_room
        Jobs that find the disk full.
    padding
        Bytes that a report is longer.
    slow
        A ``job`` that ends ``then_seconds`` after there are ``until_rows`` rows in ``results``.
    """

    space = SPACE

    def __init__(
        self,
        seconds: float = 0.0,
        spread: float = 0.0,
        fail_every: int = 0,
        hang: Sequence[int] = (),
        die: Sequence[int] = (),
        no_room: Sequence[int] = (),
        padding: int = 0,
        slow: Mapping[str, Any] | None = None,
    ) -> None:
        self.seconds = seconds
        self.spread = spread
        self.fail_every = fail_every
        self.hang = hang
        self.die = die
        self.no_room = no_room
        self.padding = padding
        self.slow = slow
        self.last: Job | None = None

    def evaluate(self, job: Job) -> Evaluation:
        # The job's seed decides, so that a search takes as long each time.
        time.sleep(self.seconds * (1 + self.spread * (job.seed % 1001 / 500 - 1)))
        if job.id in self.hang:
            time.sleep(3600)
        if self.slow and job.id == self.slow["job"]:
            results = Path(self.slow["results"])
            while len(results.read_text().splitlines()) <= self.slow["until_rows"]:
                time.sleep(0.01)
            time.sleep(self.slow["then_seconds"])  # what is measured is what waiting takes
        if job.id in self.die:
            os.kill(os.getpid(), signal.SIGSEGV)
        if job.id in self.no_room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.fail_every and job.id % self.fail_every == 0:
            raise RuntimeError("as asked")
        self.last = job
        measures: dict[str, Measure] = {
            "layers": 4,
            "layers_transferred": 1 if job.parent is not None else 0,
            "ancestor": self.padding * "x",
        }
        return Evaluation(job, DONE, float(sum(job.architecture)), measures)

    def save_model(self, path: Path) -> None:
        assert self.last is not None
        path.write_text(json.dumps(self.last.to_dict(SPACE.to_json)))


def main() -> int:
    path, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    ranks = join()
    if "pids" in options:
        Path(options["pids"], str(ranks.rank)).write_text(str(os.getpid()))
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

    def fail(error: BaseException) -> None:
        print(error, file=sys.stderr, flush=True)
        ranks.abort(1)

    space = WIDE if options.get("wide") else SPACE
    manager = None
    if ranks.rank == 0:
        resume = options.get("resume") and (path / "run.json").exists()
        begin = RunDirectory.resume if resume else RunDirectory.create
        directory = begin(path, space, {}, {})
        population = options.get("population", 8)
        manager = Manager(
            AgingEvolution(space, population, min(3, population), seed=5),
            directory,
            max_evals=options.get("max_evals"),
            retire=retire,
            report=report,
            warn=sys.stderr.write,
        )
    ranks.share(None)
    fake = {
        name: options[name]
        for name in ("spread", "fail_every", "hang", "die", "no_room", "padding")
        if name in options
    }
    if "slow" in options:
        fake["slow"] = {**options["slow"], "results": str(path / "results.csv")}
    fake["seconds"] = options.get("seconds", 0.0)
    if isinstance(fake["seconds"], list):  # by rank
        fake["seconds"] = fake["seconds"][ranks.rank]
    evaluate: Evaluate = InProcess(Fake(**fake), path, sys.stderr.write)
    stack = ExitStack()
    if "evaluation_timeout" in options:
        limit = options["evaluation_timeout"]
        child = InChild(
            f"{__file__}:Fake", fake, path, space=SPACE, timeout=limit, log=sys.stderr.write
        )
        evaluate = stack.enter_context(child)
    lost: frozenset[int] = frozenset()
    begun, cpu_before = time.perf_counter(), time.process_time()
    interruption = Interruption(options.get("timeout"))
    try:
        with stack, interruption:
            if isinstance(ranks, MPIRanks) and ranks.size > 1:
                from transfer_nas.searching import mpi

                lost_after = options.get("lost_after", mpi.LOST_AFTER)
                comm = synchronous(ranks.comm) if options.get("synchronous") else ranks.comm
                lost = mpi.run(
                    comm, space, manager, evaluate, interruption, fail=fail, lost_after=lost_after
                )
            else:
                assert manager is not None
                serial.run(manager, evaluate, interruption)
    except (OSError, Unwritable) as error:
        fail(error)
    seconds = time.perf_counter() - begun
    cpu = ranks.share(time.process_time() - cpu_before) if not lost else []
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
                    "lost": sorted(lost),
                }
            ),
            flush=True,
        )
    if lost:
        ranks.abort(0)
    code = interruption.exit_code
    ranks.finish()
    return code


if __name__ == "__main__":
    sys.exit(main())
