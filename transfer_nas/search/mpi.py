"""Drives a search on many ranks: one manager in rank 0, a worker in every rank.

The manager runs in a thread of rank 0 beside rank 0's own worker; it is the only one there that
talks MPI, so `MPI_THREAD_SERIALIZED` is enough. Where MPI gives less, rank 0 manages and does not
evaluate. Asynchronous: a worker reports a result and gets its next job in the reply; nobody
waits for anybody else.

Messages are JSON in UTF-8, on a duplicated communicator. A worker sends
``{"evaluation": … or null, "abandoned": … or null, "last": bool}`` and, unless it was the last,
gets ``{"job": … or null, "best": … or null}``; null as a job ends it.
"""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpi4py import MPI

from transfer_nas.job import Evaluation, Job
from transfer_nas.ranks import BackOff
from transfer_nas.search.interruption import Interrupted, Interruption
from transfer_nas.search.manager import Evaluator, Manager, evaluate

_TO_MANAGER, _TO_WORKER = 1, 2
_MANAGER_LONGEST = 5e-3  # seconds between two looks for messages when nothing happens
_WORKER_LONGEST = 1e-3


@dataclass(frozen=True, slots=True)
class _Report:
    """What a worker has to say; an empty one asks for its first job."""

    evaluation: Evaluation | None = None
    abandoned: Job | None = None
    last: bool = False  # it was interrupted and wants no more


@dataclass(frozen=True, slots=True)
class _Order:
    """What a worker shall do; without a job: end."""

    job: Job | None
    best: float


def run(
    comm: MPI.Comm,
    manager: Manager | None,
    evaluator: Evaluator,
    interruption: Interruption,
    *,
    directory: Path,
    log: Callable[[str], None],
) -> None:
    """Search until there are no more jobs, or until interrupted; collective.

    Parameters
    ----------
    comm
        All ranks of the search; a duplicate of it is used.
    manager
        The search, in rank 0; None elsewhere.
    evaluator
        Who evaluates in this rank.
    interruption
        As in `serial.run`. Each rank has its own: one that is interrupted leaves, and an
        interrupted rank 0 lets the others end as soon as they report.
    directory
        The run directory, which all ranks can write to.
    log
        Takes what is worth a line in this rank's log.

    Raises
    ------
    Exception
        Whatever the manager raised (a full disk, for instance), in rank 0, whose own evaluation is
        interrupted. The others may still be evaluating: abort.
    """
    comm = comm.Dup()
    try:
        if manager is None:
            _work(_RemoteManager(comm), evaluator, interruption, directory, log)
        elif MPI.Query_thread() >= MPI.THREAD_SERIALIZED:
            with _ManagerThread(comm, manager, interruption) as local:
                _work(local, evaluator, interruption, directory, log)
        else:
            _manage(comm, manager, interruption, local=None)
    finally:
        comm.Free()


def _work(
    manager: _RemoteManager | _ManagerThread,
    evaluator: Evaluator,
    interruption: Interruption,
    directory: Path,
    log: Callable[[str], None],
) -> None:
    report = _Report()
    while True:
        manager.send(report)
        if report.last:
            return
        order = manager.receive()
        job = order.job
        if job is None:
            return
        try:
            with interruption.evaluating():
                evaluation = evaluate(
                    evaluator, job, best_objective=order.best, directory=directory, log=log
                )
            report = _Report(evaluation=evaluation, last=interruption.reason is not None)
        except Interrupted:
            report = _Report(abandoned=job, last=True)


class _RemoteManager:
    """The manager as a worker of another rank sees it."""

    def __init__(self, comm: MPI.Comm) -> None:
        self._comm = comm

    def send(self, report: _Report) -> None:
        fields = {
            "evaluation": None if report.evaluation is None else report.evaluation.to_dict(),
            "abandoned": None if report.abandoned is None else report.abandoned.to_dict(),
            "last": report.last,
        }
        self._comm.Send(_encode(fields), dest=0, tag=_TO_MANAGER)

    def receive(self) -> _Order:
        back_off = BackOff(_WORKER_LONGEST)
        while not self._comm.Iprobe(source=0, tag=_TO_WORKER):
            time.sleep(back_off.next())
        fields, _ = _receive(self._comm, source=0, tag=_TO_WORKER)
        job, best = fields["job"], fields["best"]
        return _Order(
            None if job is None else Job.from_dict(job), -math.inf if best is None else best
        )


class _ManagerThread:
    """The manager as rank 0's own worker sees it; runs while the context is entered."""

    def __init__(self, comm: MPI.Comm, manager: Manager, interruption: Interruption) -> None:
        self.reports: queue.SimpleQueue[_Report] = queue.SimpleQueue()
        self.orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self.reported = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._manage, args=(comm, manager, interruption), name="manager"
        )

    def __enter__(self) -> _ManagerThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def send(self, report: _Report) -> None:
        self.reports.put(report)
        self.reported.set()

    def receive(self) -> _Order:
        return self.orders.get()

    def _manage(self, comm: MPI.Comm, manager: Manager, interruption: Interruption) -> None:
        try:
            _manage(comm, manager, interruption, local=self)
        except BaseException as error:  # raised again by __exit__, in the main thread
            self._error = error
            self.orders.put(_Order(None, 0.0))
            interruption.now()


def _manage(
    comm: MPI.Comm, manager: Manager, interruption: Interruption, local: _ManagerThread | None
) -> None:
    """Serve all workers until each has been told to end, or has said that it does."""
    workers = set(range(0 if local else 1, comm.size))
    back_off = BackOff(_MANAGER_LONGEST)
    while workers:
        arrived = _next_report(comm, local)
        if arrived is None:
            _rest(local, back_off.next())
            continue
        back_off.reset()
        rank, report = arrived
        if report.evaluation is not None:
            manager.finished(report.evaluation, rank)
        if report.abandoned is not None:
            manager.abandoned(report.abandoned)
        if report.last or interruption.reason is not None:
            manager.stop()
        if report.last:
            workers.discard(rank)
            continue
        job = manager.next_job()
        if job is None:
            workers.discard(rank)
        order = _Order(job, manager.best_objective)
        if local is not None and rank == 0:
            local.orders.put(order)
        else:
            _send_order(comm, rank, order)


def _next_report(comm: MPI.Comm, local: _ManagerThread | None) -> tuple[int, _Report] | None:
    if local is not None and not local.reports.empty():
        return 0, local.reports.get()
    if not comm.Iprobe(source=MPI.ANY_SOURCE, tag=_TO_MANAGER):
        return None
    fields, rank = _receive(comm, source=MPI.ANY_SOURCE, tag=_TO_MANAGER)
    evaluation, abandoned = fields["evaluation"], fields["abandoned"]
    return rank, _Report(
        evaluation=None if evaluation is None else Evaluation.from_dict(evaluation),
        abandoned=None if abandoned is None else Job.from_dict(abandoned),
        last=fields["last"],
    )


def _rest(local: _ManagerThread | None, seconds: float) -> None:
    """Sleep, but not longer than until rank 0's own worker reports."""
    if local is None:
        time.sleep(seconds)
    elif local.reported.wait(seconds):
        local.reported.clear()


def _send_order(comm: MPI.Comm, rank: int, order: _Order) -> None:
    fields = {
        "job": None if order.job is None else order.job.to_dict(),
        "best": order.best if math.isfinite(order.best) else None,
    }
    comm.Send(_encode(fields), dest=rank, tag=_TO_WORKER)


def _encode(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, allow_nan=False, separators=(",", ":")).encode()


def _receive(comm: MPI.Comm, source: int, tag: int) -> tuple[dict[str, Any], int]:
    """Receive a message that a probe has seen; return it and the rank of its sender."""
    status = MPI.Status()
    comm.Probe(source=source, tag=tag, status=status)
    content = bytearray(status.Get_count(MPI.BYTE))
    sender = status.Get_source()
    comm.Recv([content, MPI.BYTE], source=sender, tag=tag)
    fields = json.loads(content)
    assert isinstance(fields, dict)
    return fields, sender
