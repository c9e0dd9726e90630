"""The manager's side of a search under MPI; the workers' is `mpi.py`."""

from __future__ import annotations

import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from mpi4py import MPI

from transfer_nas import tracing
from transfer_nas.job import Evaluation, Job
from transfer_nas.ranks import BackOff
from transfer_nas.searching.interruption import Interruption
from transfer_nas.searching.manager import Manager
from transfer_nas.searching.messages import TO_MANAGER, TO_WORKER, Order, Outbox, Report, receive

# Between two looks for messages when nothing happens: a share of what evaluations take, within
# limits.
_LOOK_SHARE, _LOOK_SHORTEST, _LOOK_LONGEST = 2e-3, 1e-3, 10e-3  # -, seconds, seconds
# A worker whose evaluations take no longer than the first has one job in advance, or as many as
# take as long as the second together.
_ONE_IN_ADVANCE, _IN_ADVANCE = 0.2, 20e-3  # seconds
_MOST_IN_ADVANCE = 16  # jobs
_SWITCH_INTERVAL = 2e-4  # seconds; 5 ms, as it is, would hold up the manager in every MPI call


class Local:
    """The manager as rank 0's own worker sees it: a thread of the same process."""

    def __init__(self) -> None:
        self.reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self.orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self.reported = threading.Event()

    def send(self, report: Report) -> None:
        """Say something to the manager."""
        self.reports.put(report)
        self.reported.set()

    def tell(self, job: int, step: int, values: Mapping[str, float]) -> None:
        """Tell of an epoch; never waits."""
        self.send(Report(epochs=[(job, step, dict(values))]))

    def receive(self, wait: bool) -> Order | None:
        """Return an order; None if there is none and nobody wants to wait for one."""
        try:
            return self.orders.get(block=wait)
        except queue.Empty:
            return None


@dataclass(slots=True)
class Worker:
    """A rank that evaluates, as the manager sees it.

    Attributes
    ----------
    heard
        When it last sent anything, by `time.monotonic`.
    jobs
        What it has been given and has not reported, by id.
    seconds
        About how long its evaluations take, those that work; infinite until it is known.
    """

    heard: float
    jobs: dict[int, Job] = field(default_factory=dict)
    seconds: float = math.inf

    def depth(self, limit: int) -> int:
        """Return how many jobs it shall have at once, at most `limit`."""
        if self.seconds > _ONE_IN_ADVANCE:
            return 1
        in_advance = _IN_ADVANCE / max(self.seconds, _IN_ADVANCE / _MOST_IN_ADVANCE)
        return min(1 + max(1, int(in_advance)), limit)

    def took(self, seconds: float) -> None:
        """Take note of how long an evaluation took: at once if it was long."""
        mean = self.seconds + (seconds - self.seconds) / 4
        self.seconds = max(seconds, mean) if math.isfinite(self.seconds) else seconds


class Managing:
    """Serves all workers until each has been told to end, has said that it does, or is lost."""

    def __init__(
        self,
        comm: MPI.Comm,
        manager: Manager,
        interruption: Interruption,
        lost_after: float,
        local: Local | None,
        fail: Callable[[BaseException], object],
    ) -> None:
        self._comm = comm
        self._outbox = Outbox(comm, TO_WORKER)
        self._manager = manager
        self._interruption = interruption
        self._lost_after = lost_after
        self._local = local
        self._fail = fail
        now = time.monotonic()
        ranks = range(0 if local else 1, comm.size)
        self._workers = {rank: Worker(heard=now) for rank in ranks}
        useful = manager.useful_in_flight
        self._depth = _MOST_IN_ADVANCE if useful is None else max(1, useful // max(1, len(ranks)))
        self.lost: set[int] = set()
        self._left = False  # rank 0's own worker broke

    def run(self) -> None:
        """Serve."""
        back_off = BackOff(_LOOK_SHORTEST)
        while self._workers and not self._left:
            reports = list(self._arrived())
            self._give_up_silent()  # after all messages that wait, however long this rank was away
            if not self._outbox.settled(without=self.lost):
                back_off.reset()  # they travel while somebody looks
            if not reports:
                self._rest(back_off.next())
                continue
            back_off = BackOff(self._longest_rest())
            with tracing.span("tell", reports=len(reports)):
                for rank, report in reports:
                    self._take(rank, report)
            with tracing.span("next jobs"):
                asking = dict.fromkeys(rank for rank, report in reports if not report.epochs)
                orders = {rank: self._order(rank) for rank in asking}
            with tracing.span("commit"):
                self._manager.commit()
            with tracing.span("send"):
                for rank, order in orders.items():
                    if order is not None:
                        self._send(rank, order)
        if not self._left:
            self._part()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Serve from a thread while the context is entered, and then until it is done.

        What goes wrong in the thread is for `fail`: the main thread may not come to it for long.
        """

        def run() -> None:
            try:
                self.run()
            except BaseException as error:
                self._fail(error)

        thread = threading.Thread(target=run, name="manager")
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL)
        thread.start()
        try:
            yield
        except BaseException:
            self._left = True
            raise
        finally:
            thread.join()
            sys.setswitchinterval(before)

    def _arrived(self) -> Iterator[tuple[int, Report]]:
        """Yield what there is from each rank, and take note of all signs of life."""
        if self._local is not None:
            while not self._local.reports.empty():
                yield 0, self._local.reports.get()
        while (received := receive(self._comm, MPI.ANY_SOURCE, TO_MANAGER)) is not None:
            content, rank = received
            worker = self._workers.get(rank)
            if worker is not None:
                worker.heard = time.monotonic()
            if content:
                # Of a rank that was given up, nothing but the message itself counts any more.
                yield rank, Report.decode(content, worker.jobs if worker else None)

    def _take(self, rank: int, report: Report) -> None:
        """Learn what a worker has to say."""
        worker = self._workers.get(rank)
        if worker is None:
            return
        for result in report.results:
            del worker.jobs[result.job.id]
            self._manager.finished(result, rank)
            times = result.measures
            if result.done and "timestamp_start" in times:
                worker.took(float(times["timestamp_end"]) - float(times["timestamp_start"]))
        tell = self._manager.report
        stop = [job for job, step, values in report.epochs if tell(job, step, values)]
        if stop:
            self._send(rank, Order(stop=stop))
        for job in report.abandoned:
            del worker.jobs[job.id]
            self._manager.abandoned(job)
        if report.last:  # a signal may have come to that rank alone
            self._interruption.reason = self._interruption.reason or report.last
        if self._interruption.reason is not None:
            self._manager.stop()
        if report.last:
            for job in worker.jobs.values():  # which were on their way when it left
                self._manager.abandoned(job)
            del self._workers[rank]

    def _order(self, rank: int) -> Order | None:
        """Return what a worker that reported shall do next; None: go on."""
        worker = self._workers.get(rank)
        if worker is None:  # who said its last word, or was given up
            return Order(end=True)
        # Towards the end nothing in advance: who has nothing left shall not wait for who has two.
        left = self._manager.left
        depth = 1 if left < 2 * len(self._workers) else worker.depth(self._depth)
        jobs = self._manager.next_jobs(depth - len(worker.jobs))
        worker.jobs |= {job.id: job for job in jobs}
        if not worker.jobs:
            del self._workers[rank]
            return Order(end=True)
        if not jobs:
            return None
        best, reports = self._manager.best_objective, self._manager.wants_reports
        return Order(jobs, best, reports=reports)

    def _send(self, rank: int, order: Order) -> None:
        if self._local is not None and rank == 0:
            self._local.orders.put(order)
        else:
            self._outbox.post(order.encode(self._manager.space), rank)

    def _part(self) -> None:
        """Let the last messages arrive, and take those of all that were not lost."""
        parting = None if self.lost else self._comm.Ibarrier()
        back_off = BackOff()
        while True:
            for _ in self._arrived():  # nothing but signs of life
                pass
            together = parting is None or parting.Test()
            if self._outbox.settled(without=self.lost) and together:
                return
            time.sleep(back_off.next())

    def _longest_rest(self) -> float:
        """Return for how long nobody minds that the manager does not look for messages."""
        shortest = min((worker.seconds for worker in self._workers.values()), default=0.0)
        return min(max(_LOOK_SHARE * shortest, _LOOK_SHORTEST), _LOOK_LONGEST)

    def _rest(self, seconds: float) -> None:
        """Sleep, but not longer than until rank 0's own worker reports."""
        if self._local is None:
            time.sleep(seconds)
        elif self._local.reported.wait(seconds):
            self._local.reported.clear()

    def _give_up_silent(self) -> None:
        """Record the jobs of ranks that show no sign of life any more as lost."""
        long_ago = time.monotonic() - self._lost_after
        for rank, worker in list(self._workers.items()):
            if worker.heard < long_ago and not (self._local is not None and rank == 0):
                del self._workers[rank]
                self.lost.add(rank)
                for job in worker.jobs.values():
                    self._manager.finished(
                        Evaluation.failure(job, "lost", error=f"rank {rank} ended or fell silent"),
                        rank,
                    )
                self._manager.commit()
