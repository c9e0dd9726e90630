"""An MPI communicator whose waits do not spin.

Blocking MPI calls burn a core for as long as they wait. Every wait here probes, and sleeps longer
and longer in between (at most `LONGEST_SLEEP` seconds, which also bounds how late an idle rank
answers).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mpi4py import MPI

#: Seconds that a waiting rank sleeps at most between two looks at its messages. Longer saves CPU
#: time (one look costs about 20 us), shorter answers the first question after a pause sooner.
LONGEST_SLEEP = 2e-3

# After something happened, more is likely to: a rank looks without sleeping, then after shortest
# sleeps (of which the kernel makes 80 us), then ever less often.
_EAGER_SECONDS = 50e-6
_KEEN_SECONDS = 5e-3
_SHORTEST_SLEEP = 20e-6
# The first probe may only make MPI take a message in, and find nothing.
_PROBES = 3


class Pause:
    """How long to wait between two looks: the longer nothing happens, the longer."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._since = time.perf_counter()
        self._seconds = _SHORTEST_SLEEP

    def wait(self) -> None:
        quiet = time.perf_counter() - self._since
        if quiet < _EAGER_SECONDS:
            return
        time.sleep(self._seconds)
        if quiet > _KEEN_SECONDS:
            self._seconds = min(2 * self._seconds, LONGEST_SLEEP)


class PatientComm:
    """A duplicate of a communicator, or one rank without MPI.

    Parameters
    ----------
    comm
        Is duplicated, which makes this call collective; ``None``: one rank without MPI.
    while_waiting
        Called before each sleep of a wait; returns whether it found something to do.
    """

    def __init__(self, comm: MPI.Comm | None, while_waiting: Callable[[], bool]) -> None:
        self.rank = 0
        self.size = 1
        self._while_waiting = while_waiting
        self._comm: MPI.Comm | None = None
        if comm is not None:
            from mpi4py import MPI

            self._mpi = MPI
            self._comm = comm.Dup()
            self.rank = self._comm.Get_rank()
            self.size = self._comm.Get_size()

    @property
    def largest_tag(self) -> int:
        """The largest tag that messages may have."""
        largest: int | None = self._open.Get_attr(self._mpi.TAG_UB)
        return largest or 32767

    def send(self, content: bytes, rank: int, tag: int) -> MPI.Request:
        """Begin to send; `content` must stay until the request has ended."""
        return self._open.Isend([content, self._mpi.BYTE], rank, tag)

    def receive(self, tag: int) -> tuple[bytearray, int] | None:
        """Return a message of that tag and its sender; ``None`` if none has arrived."""
        status = self._mpi.Status()
        for _ in range(_PROBES):
            message = self._open.Improbe(self._mpi.ANY_SOURCE, tag, status)
            if message is not None:
                content = bytearray(status.Get_count(self._mpi.BYTE))
                message.Recv([content, self._mpi.BYTE])
                return content, status.Get_source()
        return None

    def wait(self, request: MPI.Request) -> None:
        """Wait for a request."""
        pause = Pause()
        while not request.Test():
            self.wait_a_little(pause)

    def wait_a_little(self, pause: Pause) -> None:
        """Wait between two looks at something else."""
        if self._while_waiting():
            pause.reset()
        else:
            pause.wait()

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self._comm is not None:
            self.wait(self._comm.Ibarrier())

    def allgather(self, mine: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the arrays of all ranks, which have one shape, by rank."""
        every = np.empty((self.size, *mine.shape), dtype=np.int64)
        if self.size == 1:
            every[0] = mine
        else:
            self.wait(self._open.Iallgather(mine, every))
        return every

    def allgather_bytes(self, mine: bytes) -> list[memoryview | bytes]:
        """Return what each rank passes, by rank."""
        if self.size == 1:
            return [mine]
        counts = self.allgather(np.array([len(mine)], dtype=np.int64))[:, 0]
        buffer = bytearray(int(counts.sum()))
        self.wait(
            self._open.Iallgatherv(
                [mine, self._mpi.BYTE], [buffer, counts.tolist(), self._mpi.BYTE]
            )
        )
        return _split(buffer, counts)

    def exchange(self, batches: Sequence[bytes]) -> list[memoryview | bytes]:
        """Send the i-th batch to rank i; return what each rank sent here."""
        if self.size == 1:
            return list(batches)
        sent = np.array([len(batch) for batch in batches], dtype=np.int64)
        received = np.empty_like(sent)
        self.wait(self._open.Ialltoall(sent, received))
        buffer = bytearray(int(received.sum()))
        self.wait(
            self._open.Ialltoallv(
                [b"".join(batches), sent.tolist(), self._mpi.BYTE],
                [buffer, received.tolist(), self._mpi.BYTE],
            )
        )
        return _split(buffer, received)

    def free(self) -> None:
        """Give the communicator back (collective)."""
        if self._comm is not None:
            self._comm.Free()
            self._comm = None

    @property
    def _open(self) -> MPI.Comm:
        if self._comm is None:
            raise ValueError("the prefix service is closed")
        return self._comm


def _split(buffer: bytearray, counts: NDArray[np.int64]) -> list[memoryview | bytes]:
    ends = np.cumsum(counts).tolist()
    view = memoryview(buffer)
    return [view[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
