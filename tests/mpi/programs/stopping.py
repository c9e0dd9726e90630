"""A search that stops what is worse than the median, for `test_reports.py`.

Arguments: the run directory, and JSON with ``max_evals``, ``epochs``, ``seconds`` (of an epoch),
``synchronous``, ``isolate``, ``resume``, ``silent`` (the algorithm has no `report`). Rank 0 prints
what the algorithm was told, as JSON.
"""

import json
import math
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from transfer_nas.algorithms._base import Decision
from transfer_nas.algorithms.random_search import RandomSearch
from transfer_nas.job import DONE, Evaluation, Job, Report
from transfer_nas.ranks import MPIRanks, join
from transfer_nas.searching import serial
from transfer_nas.searching.evaluation import Evaluate, InProcess
from transfer_nas.searching.interruption import Interruption
from transfer_nas.searching.isolation import InChild
from transfer_nas.searching.manager import Manager
from transfer_nas.searching.run_directory import RunDirectory
from transfer_nas.spaces import FeedForward

SPACE = FeedForward([(4,)], 2, max_depth=3)


class MedianStopping(RandomSearch):
    """Stops a job that is worse than the median of the others after as many epochs.

    Golovin et al., *Google Vizier*, KDD'17, section 3.2.2, with the value at the epoch.
    """

    useful_in_flight = 1000

    def __init__(self, seed: int) -> None:
        super().__init__(SPACE, 8, seed)
        self.at: defaultdict[int, dict[int, float]] = defaultdict(dict)  # epoch -> job -> value
        self.stopped: set[int] = set()
        self.threads: set[str] = set()

    def report(self, job: Job, step: int, values: Mapping[str, float]) -> Decision:
        self.threads.add(threading.current_thread().name)
        assert job.id in self.unfinished
        others = [value for id, value in self.at[step].items() if id != job.id]
        self.at[step][job.id] = values["objective"]
        if len(others) < 4 or values["objective"] >= statistics.median(others):
            return "continue"
        self.stopped.add(job.id)
        return "stop"


class Silent(MedianStopping):
    """Does not want to know."""

    report = RandomSearch.report


class Fake:
    """Comes nearer to what the genome is worth with each epoch."""

    space = SPACE

    def __init__(self, epochs: int, seconds: float) -> None:
        self.epochs, self.seconds = epochs, seconds
        self.last: Job | None = None

    def evaluate(self, job: Job, report: Report | None = None) -> Evaluation:
        worth = float(sum(job.architecture))
        for epoch in range(1, self.epochs + 1):
            time.sleep(self.seconds)
            value = worth * (1 - 0.5**epoch)
            if report is not None and report(epoch, {"objective": value, "loss": math.nan}):
                break
        self.last = job
        return Evaluation(job, DONE, value, {"epochs": epoch, "layers": int(report is not None)})

    def save_model(self, path: Path) -> None:
        assert self.last is not None
        path.write_text(json.dumps(self.last.to_dict(list)))


def main() -> None:
    path, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    ranks = join()
    algorithm = (Silent if options.get("silent") else MedianStopping)(seed=3)
    manager = None
    if ranks.rank == 0:
        begin = RunDirectory.resume if options.get("resume") else RunDirectory.create
        manager = Manager(
            algorithm,
            begin(path, SPACE, {}, {}),
            max_evals=options["max_evals"],
            retire=lambda ids: None,
            report=lambda status: None,
            warn=sys.stderr.write,
        )
    ranks.share(None)
    fake = {"epochs": options["epochs"], "seconds": options["seconds"]}
    evaluate: Evaluate = InProcess(Fake(**fake), path, sys.stderr.write)
    with ExitStack() as stack, Interruption(options.get("timeout")) as interruption:
        if options.get("isolate"):
            child = InChild(
                f"{__file__}:Fake", fake, path, space=SPACE, timeout=30, log=sys.stderr.write
            )
            evaluate = stack.enter_context(child)
        if isinstance(ranks, MPIRanks) and ranks.size > 1:
            from fake_search import synchronous

            from transfer_nas.searching import mpi

            comm = synchronous(ranks.comm) if options.get("synchronous") else ranks.comm
            mpi.run(comm, SPACE, manager, evaluate, interruption, fail=lambda error: ranks.abort(1))
        else:
            assert manager is not None
            serial.run(manager, evaluate, interruption)
    if manager is not None:
        told = {
            "stopped": sorted(algorithm.stopped),
            "heard": sum(map(len, algorithm.at.values())),
            "threads": sorted(algorithm.threads),
            "best": manager.status.best and manager.status.best.job.id,
        }
        print(json.dumps(told), flush=True)
    ranks.finish()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
