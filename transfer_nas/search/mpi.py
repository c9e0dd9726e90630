"""Drives a search on many ranks: one manager in rank 0, a worker in every rank.

The manager runs in a thread of rank 0 beside rank 0's own worker; it is the only one there that
talks MPI, so `MPI_THREAD_SERIALIZED` is enough. Where MPI gives less, rank 0 manages and does not
evaluate, and nobody notices a rank that is gone. Asynchronous: a worker reports results and gets
new jobs in the reply; nobody waits for anybody else.

A worker has one job at a time, as long as evaluations take their time: a job is asked with all
results known, and a slow evaluation keeps none waiting. Where they are short against the
milliseconds that a message takes, it gets some in advance (`_Worker.depth`), and reports when it
has done half of them.

Messages are JSON in UTF-8, on a duplicated communicator. A worker sends
``{"results": [[job id, status, objective or null, measures], …], "abandoned": [job id, …],
"last": bool}`` and, unless it was the last, gets ``{"jobs": [job, …], "best": … or null,
"end": bool}``. An empty message is a sign of life; `_SIGN_OF_LIFE` times as long without any, and
a rank counts as lost: its jobs fail with ``F_lost`` and the search goes on without it.
"""

from __future__ import annotations

import json
import math
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mpi4py import MPI

from transfer_nas.job import Evaluation, Job
from transfer_nas.ranks import BackOff
from transfer_nas.search.evaluation import Evaluate
from transfer_nas.search.interruption import Interrupted, Interruption
from transfer_nas.search.manager import Manager

LOST_AFTER = 60.0  # seconds without a sign of life

_TO_MANAGER, _TO_WORKER = 1, 2
_LONGEST = 1e-3  # seconds between two looks for messages when nothing happens
_SIGN_OF_LIFE = 6
_IN_ADVANCE = 20e-3  # seconds for which a worker may have jobs at most
_MOST_IN_ADVANCE = 16  # jobs
_REPORT_AFTER = 5e-3  # seconds that a worker keeps results to itself at most, between evaluations
_SWITCH_INTERVAL = 2e-4  # seconds; 5 ms, as it is, would hold up the manager in every MPI call

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


@dataclass(slots=True)
class _Report:
    """What a worker has to say; an empty one asks for its first job."""

    results: list[Evaluation] = field(default_factory=list)
    abandoned: list[Job] = field(default_factory=list)
    last: bool = False  # it was interrupted and wants no more


@dataclass(slots=True)
class _Order:
    """What a worker shall do next; `end`: nothing any more."""

    jobs: list[Job]
    best: float
    end: bool


def run(
    comm: MPI.Comm,
    manager: Manager | None,
    evaluate: Evaluate,
    interruption: Interruption,
    *,
    lost_after: float = LOST_AFTER,
) -> frozenset[int]:
    """Search until there are no more jobs, or until interrupted; collective.

    Parameters
    ----------
    comm
        All ranks of the search; a duplicate of it is used.
    manager
        The search, in rank 0; None elsewhere.
    evaluate
        Evaluates in this rank.
    interruption
        As in `serial.run`. Each rank has its own: one that is interrupted leaves, and an
        interrupted rank 0 lets the others end as soon as they report.
    lost_after
        Seconds after which a rank without a sign of life is given up.

    Returns
    -------
    frozenset
        Ranks that were given up, in rank 0. If there are any, nothing can be done together
        afterwards.

    Raises
    ------
    Exception
        Whatever the manager raised (a full disk, for instance), in rank 0, whose own evaluation is
        interrupted. The others may still be evaluating: abort.
    """
    comm = comm.Dup()
    threads = MPI.Query_thread() >= MPI.THREAD_SERIALIZED
    if not threads:
        lost_after = math.inf
    if manager is None:
        remote = _RemoteManager(comm, lost_after)
        with remote.signs_of_life():
            _work(remote, evaluate, interruption)
        comm.Free()
        return frozenset()
    local = _LocalManager() if threads else None
    managing = _Managing(comm, manager, interruption, lost_after, local)
    if local is None:
        managing.run()
    else:
        with managing.beside():
            _work(local, evaluate, interruption)
    if not managing.lost:
        comm.Free()
    return frozenset(managing.lost)


def _work(
    manager: _RemoteManager | _LocalManager, evaluate: Evaluate, interruption: Interruption
) -> None:
    jobs: deque[Job] = deque()
    results: list[Evaluation] = []
    best = -math.inf
    manager.send(_Report())
    reported = time.monotonic()
    while True:
        while (order := manager.receive(wait=not jobs)) is not None:
            if order.end:
                return
            jobs += order.jobs
            best = order.best
        job = jobs.popleft()
        try:
            with interruption.evaluating():
                results.append(evaluate(job, best))
        except Interrupted:
            manager.send(_Report(results, [job, *jobs], last=True))
            return
        if interruption.reason is not None:
            manager.send(_Report(results, [*jobs], last=True))
            return
        now = time.monotonic()
        if len(results) >= len(jobs) or now - reported > _REPORT_AFTER:
            manager.send(_Report(results))
            results, reported = [], now


class _RemoteManager:
    """The manager as a worker of another rank sees it."""

    def __init__(self, comm: MPI.Comm, lost_after: float) -> None:
        self._comm = comm
        self._lost_after = lost_after
        self._one_at_a_time = threading.Lock()  # MPI, for the thread that shows signs of life

    def send(self, report: _Report) -> None:
        fields = {
            "results": [
                (
                    result.job.id,
                    result.status,
                    None if math.isnan(result.objective) else result.objective,
                    result.measures,
                )
                for result in report.results
            ],
            "abandoned": [job.id for job in report.abandoned],
            "last": report.last,
        }
        content = _encode(fields).encode()
        with self._one_at_a_time:
            self._comm.Send(content, dest=0, tag=_TO_MANAGER)

    def receive(self, wait: bool) -> _Order | None:
        """Return an order; None if there is none and nobody wants to wait for one."""
        back_off = BackOff(_LONGEST)
        asked = time.monotonic()
        while True:
            with self._one_at_a_time:
                received = _receive(self._comm, 0, _TO_WORKER)
            if received is not None:
                break
            if not wait:
                return None
            time.sleep(back_off.next())
            if time.monotonic() - asked > self._lost_after:
                raise TimeoutError(f"the manager in rank 0 is silent for {self._lost_after:g} s")
        fields = json.loads(received[0])
        best = fields["best"]
        return _Order(
            [Job.from_dict(job) for job in fields["jobs"]],
            -math.inf if best is None else best,
            fields["end"],
        )

    @contextmanager
    def signs_of_life(self) -> Iterator[None]:
        """Show them from another thread, whatever this one does."""
        if math.isinf(self._lost_after):
            yield
            return
        over = threading.Event()

        def show() -> None:
            while not over.wait(self._lost_after / _SIGN_OF_LIFE):
                with self._one_at_a_time:
                    self._comm.Send(b"", dest=0, tag=_TO_MANAGER)

        thread = threading.Thread(target=show, name="signs of life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class _LocalManager:
    """The manager as rank 0's own worker sees it: a thread of the same process."""

    def __init__(self) -> None:
        self.reports: queue.SimpleQueue[_Report] = queue.SimpleQueue()
        self.orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self.reported = threading.Event()

    def send(self, report: _Report) -> None:
        self.reports.put(report)
        self.reported.set()

    def receive(self, wait: bool) -> _Order | None:
        try:
            return self.orders.get(block=wait)
        except queue.Empty:
            return None


@dataclass(slots=True)
class _Worker:
    """A rank that evaluates, as the manager sees it.

    Attributes
    ----------
    heard
        When it last sent anything, by `time.monotonic`.
    jobs
        What it has been given and has not reported, by id.
    seconds
        About how long its evaluations take; infinite until it is known.
    """

    heard: float
    jobs: dict[int, Job] = field(default_factory=dict)
    seconds: float = math.inf

    def depth(self, limit: int) -> int:
        """Return how many jobs it shall have at once, at most `limit`."""
        in_advance = _IN_ADVANCE / max(self.seconds, _IN_ADVANCE / _MOST_IN_ADVANCE)
        return min(1 + int(in_advance), limit)

    def took(self, seconds: float) -> None:
        """Take note of how long an evaluation took."""
        known = math.isfinite(self.seconds)
        self.seconds += (seconds - self.seconds) / 4 if known else 0.0
        if not known:
            self.seconds = seconds


class _Managing:
    """Serves all workers until each has been told to end, has said that it does, or is lost."""

    def __init__(
        self,
        comm: MPI.Comm,
        manager: Manager,
        interruption: Interruption,
        lost_after: float,
        local: _LocalManager | None,
    ) -> None:
        self._comm = comm
        self._manager = manager
        self._interruption = interruption
        self._lost_after = lost_after
        self._local = local
        now = time.monotonic()
        ranks = range(0 if local else 1, comm.size)
        self._workers = {rank: _Worker(heard=now) for rank in ranks}
        useful = manager.useful_in_flight
        self._depth = _MOST_IN_ADVANCE if useful is None else max(1, useful // max(1, len(ranks)))
        self.lost: set[int] = set()

    def run(self) -> None:
        """Serve."""
        back_off = BackOff(_LONGEST)
        while self._workers:
            reports = list(self._arrived())
            if not reports:
                self._rest(back_off.next())
                self._give_up_silent()
                continue
            back_off.reset()
            for rank, report in reports:
                self._take(rank, report)
            orders = {rank: self._order(rank) for rank in dict(reports)}
            self._manager.commit()
            for rank, order in orders.items():
                if order is not None:
                    self._send(rank, order)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Serve from a thread while the context is entered, and then until it is done."""
        assert self._local is not None
        local, errors = self._local, list[BaseException]()

        def run() -> None:
            try:
                self.run()
            except BaseException as error:  # raised again below, in the main thread
                errors.append(error)
                local.orders.put(_Order([], 0.0, end=True))
                self._interruption.now()

        thread = threading.Thread(target=run, name="manager")
        before = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL)
        thread.start()
        try:
            yield
        finally:
            thread.join()
            sys.setswitchinterval(before)
            if errors:
                raise errors[0]

    def _arrived(self) -> Iterator[tuple[int, _Report]]:
        """Yield what there is from each rank, and take note of all signs of life."""
        if self._local is not None:
            while not self._local.reports.empty():
                yield 0, self._local.reports.get()
        while (received := _receive(self._comm, MPI.ANY_SOURCE, _TO_MANAGER)) is not None:
            content, rank = received
            worker = self._workers.get(rank)
            if worker is not None:
                worker.heard = time.monotonic()
            if content:
                yield rank, self._decode(rank, content)

    def _decode(self, rank: int, content: bytes) -> _Report:
        fields = json.loads(content)
        worker = self._workers.get(rank)
        if worker is None:  # it was given up, and its jobs with it
            return _Report(last=fields["last"])
        return _Report(
            [
                Evaluation(
                    worker.jobs[id], status, math.nan if objective is None else objective, measures
                )
                for id, status, objective, measures in fields["results"]
            ],
            [worker.jobs[id] for id in fields["abandoned"]],
            fields["last"],
        )

    def _take(self, rank: int, report: _Report) -> None:
        """Learn what a worker has to say."""
        worker = self._workers.get(rank)
        if worker is None:
            return
        for result in report.results:
            del worker.jobs[result.job.id]
            self._manager.finished(result, rank)
            times = result.measures
            if "timestamp_start" in times:
                worker.took(float(times["timestamp_end"]) - float(times["timestamp_start"]))
        for job in report.abandoned:
            del worker.jobs[job.id]
            self._manager.abandoned(job)
        if report.last or self._interruption.reason is not None:
            self._manager.stop()
        if report.last:
            del self._workers[rank]

    def _order(self, rank: int) -> _Order | None:
        """Return what a worker that reported shall do next; None: go on."""
        worker = self._workers.get(rank)
        if worker is None:
            # Who said its last word waits for nothing; who was given up shall end.
            return _Order([], 0.0, end=True) if rank in self.lost else None
        jobs = self._manager.next_jobs(worker.depth(self._depth) - len(worker.jobs))
        worker.jobs |= {job.id: job for job in jobs}
        if not worker.jobs:
            del self._workers[rank]
            return _Order([], 0.0, end=True)
        return _Order(jobs, self._manager.best_objective, end=False) if jobs else None

    def _send(self, rank: int, order: _Order) -> None:
        if self._local is not None and rank == 0:
            self._local.orders.put(order)
            return
        fields = {
            "jobs": [job.to_dict() for job in order.jobs],
            "best": order.best if math.isfinite(order.best) else None,
            "end": order.end,
        }
        self._comm.Send(_encode(fields).encode(), dest=rank, tag=_TO_WORKER)

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
                    self._manager.finished(Evaluation.failure(job, "lost"), rank)
                self._manager.commit()


def _receive(comm: MPI.Comm, source: int, tag: int) -> tuple[bytes, int] | None:
    """Return a message and the rank of its sender; None if there is none."""
    status = MPI.Status()
    message = comm.Improbe(source, tag, status)
    if message is None:
        return None
    content = bytearray(status.Get_count(MPI.BYTE))
    message.Recv([content, MPI.BYTE])
    return bytes(content), status.Get_source()
