"""Collective calls of MPI that do not spin while they wait.

Blocking MPI calls burn a core for as long as they wait. Every wait here looks, and sleeps longer
and longer in between.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mpi4py import MPI

_SHORTEST, _LONGEST = 20e-6, 2e-3  # seconds between two looks


class Collectives:
    """A duplicate of a communicator, or one rank without MPI.

    Parameters
    ----------
    comm
        Is duplicated, which makes this call collective; ``None``: one rank without MPI.
    """

    def __init__(self, comm: MPI.Comm | None) -> None:
        self.rank = 0
        self.size = 1
        self._comm: MPI.Comm | None = None
        if comm is not None and comm.Get_size() > 1:
            self._comm = comm.Dup()
            self.rank = self._comm.Get_rank()
            self.size = self._comm.Get_size()

    def allgather(self, mine: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the arrays of all ranks, which have one shape, by rank."""
        every = np.empty((self.size, *mine.shape), dtype=np.int64)
        if self.size == 1:
            every[0] = mine
        else:
            _wait(self._open.Iallgather(mine, every))
        return every

    def allgather_bytes(self, mine: bytes) -> list[memoryview | bytes]:
        """Return what each rank passes, by rank."""
        if self.size == 1:
            return [mine]
        counts = self.allgather(np.array([len(mine)], dtype=np.int64))[:, 0]
        everything = np.empty(int(counts.sum()), dtype=np.uint8)
        _wait(self._open.Iallgatherv(np.frombuffer(mine, np.uint8), [everything, counts]))
        return _split(everything, counts)

    def exchange(self, batches: Sequence[bytes]) -> list[memoryview | bytes]:
        """Send the i-th batch to rank i; return what each rank sent here."""
        if self.size == 1:
            return list(batches)
        sent = np.array([len(batch) for batch in batches], dtype=np.int64)
        received = np.empty_like(sent)
        _wait(self._open.Ialltoall(sent, received))
        everything = np.empty(int(received.sum()), dtype=np.uint8)
        outgoing = np.frombuffer(b"".join(batches), np.uint8)
        _wait(self._open.Ialltoallv([outgoing, sent], [everything, received]))
        return _split(everything, received)

    def free(self) -> None:
        """Wait for all ranks and give the communicator back; a second call does nothing."""
        if self._comm is not None:
            _wait(self._comm.Ibarrier())
            self._comm.Free()
            self._comm = None

    @property
    def _open(self) -> MPI.Comm:
        if self._comm is None:
            raise ValueError("the prefix service is closed")
        return self._comm


def _wait(request: MPI.Request) -> None:
    seconds = _SHORTEST
    while not request.Test():
        time.sleep(seconds)
        seconds = min(2 * seconds, _LONGEST)


def _split(everything: NDArray[np.uint8], counts: NDArray[np.int64]) -> list[memoryview | bytes]:
    ends = np.cumsum(counts).tolist()
    view = everything.data
    return [view[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
