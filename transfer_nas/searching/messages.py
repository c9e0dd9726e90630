"""What workers and the manager of a search send each other over MPI.

JSON in UTF-8. A worker sends ``{"results": [[job id, status, objective or null, measures], …],
"abandoned": [job id, …], "last": why}`` and gets ``{"jobs": [job, …], "best": … or null, "end":
bool}``; to its last it gets one that ends it. An empty message is a sign of life; one with
``"epochs": [[job id, epoch, values], …]`` tells of jobs that go on, and is answered only if one of
them shall stop: ``"stop": [job id, …]``. Orders have ``"reports": true`` where that is wanted.

A message longer than MPI's eager limit, some kilobytes, travels only while its receiver receives.
So nobody waits in a send: `Outbox` begins it, and both sides receive while it is under way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mpi4py import MPI

from transfer_nas.job import Evaluation, Job
from transfer_nas.spaces import Space

TO_MANAGER, TO_WORKER = 1, 2  # tags

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


@dataclass(slots=True)
class Report:
    """What a worker has to say; an empty one asks for its first job.

    Attributes
    ----------
    results, abandoned
        Jobs that it has evaluated, and that it was given and will not evaluate.
    last
        Why it was interrupted and wants no more (`Interruption.reason`); empty: it goes on.
    epochs
        Job's id, epoch and values, of jobs that go on. Such a report asks for nothing.
    """

    results: list[Evaluation] = field(default_factory=list)
    abandoned: list[Job] = field(default_factory=list)
    last: str = ""
    epochs: list[tuple[int, int, Mapping[str, float]]] = field(default_factory=list)

    def encode(self) -> bytes:
        """Return the message."""
        if self.epochs:
            told = [(job, step, _without_nan(values)) for job, step, values in self.epochs]
            return _encode({"epochs": told}).encode()
        fields = {
            "results": [
                (
                    result.job.id,
                    result.status,
                    None if math.isnan(result.objective) else result.objective,
                    result.measures,
                )
                for result in self.results
            ],
            "abandoned": [job.id for job in self.abandoned],
            "last": self.last,
        }
        return _encode(fields).encode()

    @classmethod
    def decode(cls, message: bytes, jobs: Mapping[int, Job] | None) -> Report:
        """Undo `encode`; `jobs` are those of the sender by id, None if it was given up."""
        fields = json.loads(message)
        if "epochs" in fields:
            return cls(
                epochs=[(job, step, _with_nan(told)) for job, step, told in fields["epochs"]]
            )
        if jobs is None:
            return cls()
        return cls(
            [
                Evaluation(jobs[id], status, math.nan if objective is None else objective, measures)
                for id, status, objective, measures in fields["results"]
            ],
            [jobs[id] for id in fields["abandoned"]],
            fields["last"],
        )


@dataclass(slots=True)
class Order:
    """What a worker shall do next.

    Attributes
    ----------
    jobs
        More jobs.
    best
        The best objective so far; minus infinity while there is none.
    end
        There are no more jobs, and there will be none.
    stop
        Ids of jobs that shall end with their next epoch.
    reports
        Whether the algorithm wants to know of the epochs of these jobs.
    """

    jobs: list[Job] = field(default_factory=list)
    best: float = -math.inf
    end: bool = False
    stop: list[int] = field(default_factory=list)
    reports: bool = False

    def encode(self, space: Space) -> bytes:
        """Return the message; `space` has the jobs' architectures."""
        fields: dict[str, Any] = {
            "jobs": [job.to_dict(space.to_json) for job in self.jobs],
            "best": self.best if math.isfinite(self.best) else None,
            "end": self.end,
        }
        if self.stop:
            fields["stop"] = self.stop
        if self.reports:
            fields["reports"] = True
        return _encode(fields).encode()

    @classmethod
    def decode(cls, message: bytes, space: Space) -> Order:
        """Undo `encode`."""
        fields = json.loads(message)
        best = fields["best"]
        jobs = [Job.from_dict(job, space.from_json) for job in fields["jobs"]]
        best = -math.inf if best is None else best
        return cls(jobs, best, fields["end"], fields.get("stop", []), fields.get("reports", False))


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(v) if math.isfinite(v) else None for name, v in values.items()}


def _with_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}


class Outbox:
    """Messages that this rank has sent and that may not have been taken yet.

    Not thread-safe, as it calls MPI.

    Parameters
    ----------
    comm, tag
        Where they are sent, and as what.
    """

    def __init__(self, comm: MPI.Comm, tag: int) -> None:
        self._comm = comm
        self._tag = tag
        self._under_way: list[tuple[int, MPI.Request]] = []

    def post(self, content: bytes, rank: int) -> None:
        """Begin to send a message."""
        request = self._comm.Isend([content, MPI.BYTE], dest=rank, tag=self._tag)
        self._under_way.append((rank, request))  # the request keeps the content alive

    def settled(self, without: Collection[int] = ()) -> bool:
        """Let messages travel on; return whether all have been taken, but for some ranks'."""
        self._under_way = [(rank, sent) for rank, sent in self._under_way if not sent.Test()]
        return all(rank in without for rank, _ in self._under_way)


def receive(comm: MPI.Comm, source: int, tag: int) -> tuple[bytes, int] | None:
    """Return a message and the rank of its sender; None if there is none."""
    status = MPI.Status()
    message = comm.Improbe(source, tag, status)
    if message is None:
        return None
    content = bytearray(status.Get_count(MPI.BYTE))
    message.Recv([content, MPI.BYTE])
    return bytes(content), status.Get_source()
