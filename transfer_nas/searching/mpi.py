"""Drives a search on many ranks: one manager in rank 0, a worker in every rank.

The manager runs in a thread of rank 0 beside rank 0's own worker; it is the only one there that
talks MPI, so `MPI_THREAD_SERIALIZED` is enough. Where MPI gives less, rank 0 manages and does not
evaluate, and nobody notices a rank that is gone. Asynchronous: a worker reports results and gets
new jobs in the reply; nobody waits for anybody else, and no message for its receiver
(`messages.Outbox`).

A worker has one job at a time, as long as evaluations take their time: a job is asked with all
results known, and a slow evaluation keeps none waiting. Where the milliseconds that an answer takes
count, it gets some in advance (`managing.Worker.depth`), and reports when it has done half of them.

An algorithm that wants to know of epochs is told of each, and may stop a job: its worker reads the
answers when it tells of the next one.

A worker that evaluates shows a sign of life now and then. Without any for `LOST_AFTER` seconds a
rank counts as lost: its jobs fail with ``F_lost`` and the search goes on without it.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from mpi4py import MPI

from transfer_nas import tracing
from transfer_nas.job import Evaluation, Job
from transfer_nas.ranks import BackOff, wait
from transfer_nas.searching.evaluation import Evaluate
from transfer_nas.searching.interruption import Interrupted, Interruption
from transfer_nas.searching.manager import Manager
from transfer_nas.searching.managing import Local, Managing
from transfer_nas.searching.messages import TO_MANAGER, TO_WORKER, Order, Outbox, Report, receive
from transfer_nas.spaces import Space

LOST_AFTER = 60.0  # seconds without a sign of life

_SIGN_OF_LIFE = 6  # times while that long
_REPORT_AFTER = 5e-3  # seconds that a worker keeps results to itself at most, between evaluations
_OFTEN, _LONGEST = 1e-4, 1e-3  # seconds between two looks for an answer: at first, and later
_SOON = 5e-3  # seconds


def run(
    comm: MPI.Comm,
    space: Space,
    manager: Manager | None,
    evaluate: Evaluate,
    interruption: Interruption,
    *,
    fail: Callable[[BaseException], object],
    lost_after: float = LOST_AFTER,
) -> frozenset[int]:
    """Search until there are no more jobs, or until interrupted; collective.

    Parameters
    ----------
    comm
        All ranks of the search; a duplicate of it is used.
    space
        What is searched: turns architectures into JSON and back.
    manager
        The search, in rank 0; None elsewhere.
    evaluate
        Evaluates in this rank.
    interruption
        As in `serial.run`. Each rank has its own: one that is interrupted leaves, and an
        interrupted rank 0 lets the others end as soon as they report.
    fail
        Called in rank 0, in the manager's thread, with what the manager raised. The worker beside
        it and the other ranks may be in the middle of anything: to end them all.
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
        Whatever `evaluate` raised, in that rank. The others may still be evaluating: abort.
    """
    comm = comm.Dup()
    threads = MPI.Query_thread() >= MPI.THREAD_SERIALIZED
    if not threads:
        lost_after = math.inf
    if manager is None:
        remote = _Remote(comm, space, lost_after)
        with remote.signs_of_life():
            _Worker(remote, evaluate, interruption).run()
        remote.part()
        comm.Free()
        return frozenset()
    local = Local() if threads else None
    managing = Managing(comm, manager, interruption, lost_after, local, fail)
    if local is None:
        managing.run()
    else:
        with managing.beside():
            _Worker(local, evaluate, interruption).run()
    if not managing.lost:
        comm.Free()
    return frozenset(managing.lost)


class _Worker:
    """What this rank has to do, and has been told."""

    def __init__(
        self, manager: _Remote | Local, evaluate: Evaluate, interruption: Interruption
    ) -> None:
        self._manager = manager
        self._evaluate = evaluate
        self._interruption = interruption
        self._jobs: deque[Job] = deque()
        self._best = -math.inf
        self._reports = False
        self._stopped = set[int]()
        self._over = False

    def run(self) -> None:
        """Evaluate until there are no more jobs, or until interrupted."""
        results: list[Evaluation] = []
        self._manager.send(Report())
        reported = time.monotonic()
        while True:
            with tracing.span("ask"):
                while not self._over and self._take_order(wait=not self._jobs):
                    pass
            if self._over:
                return
            job = self._jobs.popleft()
            try:
                with self._interruption.evaluating(), tracing.span("evaluate", job=job.id):
                    results.append(self._evaluated(job))
            except Interrupted:
                self._jobs.appendleft(job)
            self._stopped.discard(job.id)
            if self._interruption.reason is not None:
                self._leave(results)
                return
            now = time.monotonic()
            if len(results) >= len(self._jobs) or now - reported > _REPORT_AFTER:
                self._manager.send(Report(results))
                results, reported = [], now

    def _evaluated(self, job: Job) -> Evaluation:
        if not self._reports:
            return self._evaluate(job, self._best)
        return self._evaluate(job, self._best, functools.partial(self._report, job.id))

    def _report(self, job: int, step: int, values: Mapping[str, float]) -> bool:
        """Tell the manager of an epoch; return what it has answered to earlier ones."""
        with self._interruption.held_off():  # a message must not be lost half-way
            self._manager.tell(job, step, values)
            while self._take_order(wait=False):
                pass
        return self._over or job in self._stopped

    def _take_order(self, wait: bool) -> bool:
        """Take note of an order; return whether there was one."""
        order = self._manager.receive(wait)
        if order is None:
            return False
        self._over = self._over or order.end
        self._stopped.update(order.stop)
        if order.jobs:
            self._jobs += order.jobs
            self._best, self._reports = order.best, order.reports
        return True

    def _leave(self, results: list[Evaluation]) -> None:
        """Say that this rank was interrupted; wait until that is known."""
        if self._over:
            return
        self._manager.send(Report(results, [*self._jobs], last=self._interruption.reason or ""))
        while (order := self._manager.receive(wait=True)) is None or not order.end:
            pass  # jobs that were on their way when it said so


class _Remote:
    """The manager as a worker of another rank sees it."""

    def __init__(self, comm: MPI.Comm, space: Space, lost_after: float) -> None:
        self._comm = comm
        self._space = space
        self._lost_after = lost_after
        self._outbox = Outbox(comm, TO_MANAGER)
        self._untold: list[tuple[int, int, Mapping[str, float]]] = []
        self._one_at_a_time = threading.Lock()  # MPI, for the thread that shows signs of life

    def send(self, report: Report) -> None:
        """Say something to the manager; returns when it is taken."""
        self._untold.clear()  # of jobs that are over
        with self._one_at_a_time:
            self._outbox.post(report.encode(), 0)
        self._settle()

    def tell(self, job: int, step: int, values: Mapping[str, float]) -> None:
        """Tell of an epoch; never waits: what finds another under way goes with the next one."""
        self._untold.append((job, step, dict(values)))
        with self._one_at_a_time:
            if self._outbox.settled():
                self._outbox.post(Report(epochs=self._untold).encode(), 0)
                self._untold = []

    def receive(self, wait: bool) -> Order | None:
        """Return an order; None if there is none and nobody wants to wait for one."""
        asked = time.monotonic()
        while True:
            with self._one_at_a_time:
                received = receive(self._comm, 0, TO_WORKER)
            if received is not None:
                return Order.decode(received[0], self._space)
            if not wait:
                return None
            waited = self._waited(asked)
            # It answers within a millisecond or two, or else is busy with something.
            time.sleep(_OFTEN if waited < _SOON else _LONGEST)

    def part(self) -> None:
        """Wait until the manager has taken everything, from everybody."""
        self._settle()
        wait(self._comm.Ibarrier())

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
                    if self._outbox.settled():  # else the manager has not taken the last one yet
                        self._outbox.post(b"", 0)

        thread = threading.Thread(target=show, name="signs of life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _settle(self) -> None:
        asked, back_off = time.monotonic(), BackOff(_LONGEST)
        while True:
            with self._one_at_a_time:
                if self._outbox.settled():
                    return
            self._waited(asked)
            time.sleep(back_off.next())

    def _waited(self, since: float) -> float:
        """Return the seconds since then; raises TimeoutError if that is too long."""
        waited = time.monotonic() - since
        if waited > self._lost_after:
            raise TimeoutError(f"the manager in rank 0 is silent for {self._lost_after:g} s")
        return waited
