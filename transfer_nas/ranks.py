"""The processes of one job: who they are, and the few things they do together.

MPI is imported only where a launcher started the process, so that a plain ``python -m`` needs
none. A waiting rank must not spin: blocking MPI calls burn a core for as long as they wait, so
everything here polls and backs off.
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from cpp_store.command_line import BAD_INPUT, RANK_VARIABLES, explained

from transfer_nas.errors import InputError

if TYPE_CHECKING:
    from mpi4py import MPI

_LAUNCHERS = (*RANK_VARIABLES, "PMI_FD")
T = TypeVar("T")

_SHORTEST, _LONGEST = 20e-6, 10e-3  # seconds between two looks


class Refused(InputError):
    """Bad input of which all ranks know: they end together, in good order."""


class Ranks(ABC):
    """The processes of one job; every method but `abort` is collective.

    Attributes
    ----------
    rank, size
        Number of this process, and how many there are.
    local_rank, local_size
        The same among the processes of this node.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    @abstractmethod
    def share(self, value: Any) -> list[Any]:
        """Return everybody's `value` (anything that JSON can say), by rank."""

    @abstractmethod
    def abort(self, code: int) -> None:
        """End all processes, now, whatever they are doing."""

    @abstractmethod
    def finish(self) -> None:
        """Wait for everybody and leave; nothing can be done together afterwards."""


class Alone(Ranks):
    """A process that no launcher started."""

    rank, size, local_rank, local_size = 0, 1, 0, 1

    def share(self, value: Any) -> list[Any]:
        """Return the value; see `Ranks.share`."""
        return [value]

    def abort(self, code: int) -> None:
        """End the process; see `Ranks.abort`."""
        os._exit(code)

    def finish(self) -> None:
        """Do nothing; see `Ranks.finish`."""


class MPIRanks(Ranks):
    """The processes that a launcher started; works on a communicator of its own.

    Parameters
    ----------
    comm
        Duplicated, never used.
    """

    def __init__(self, comm: MPI.Comm) -> None:
        from mpi4py import MPI

        self.comm = comm.Dup()
        self.rank, self.size = self.comm.rank, self.comm.size
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = node.rank, node.size
        node.Free()

    def share(self, value: Any) -> list[Any]:
        """Return everybody's value; see `Ranks.share`."""
        import numpy as np  # not at the top: `--help` comes by here

        mine = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = np.empty(self.size, np.int64)
        wait(self.comm.Iallgather(np.array([len(mine)], np.int64), lengths))
        everything = np.empty(int(lengths.sum()), np.uint8)
        wait(self.comm.Iallgatherv(mine, [everything, lengths]))
        ends = np.cumsum(lengths)
        return [
            json.loads(everything[end - length : end].tobytes())
            for end, length in zip(ends, lengths, strict=True)
        ]

    def abort(self, code: int) -> None:
        """End all processes; see `Ranks.abort`."""
        self.comm.Abort(code)

    def finish(self) -> None:
        """Wait without spinning (as MPI_Finalize would) and leave; see `Ranks.finish`."""
        from mpi4py import MPI

        wait(self.comm.Ibarrier())
        self.comm.Free()
        MPI.Finalize()


def launched() -> bool:
    """Whether a launcher (mpiexec, srun) started this process."""
    return any(name in os.environ for name in _LAUNCHERS)


def environment_alone() -> dict[str, str]:
    """Return the environment for a child process that is no rank of this job."""
    ours = ("PMI_", "PMIX_", "OMPI_COMM_", "PRTE_", "MPI_LOCAL")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def join() -> Ranks:
    """Return the processes of this job; imports and initialises MPI if a launcher started it."""
    if not launched():
        return Alone()
    from mpi4py import MPI

    return MPIRanks(MPI.COMM_WORLD)


class BackOff:
    """How long to sleep until the next look: short after something happened, then longer.

    Parameters
    ----------
    longest
        Longest sleep, in seconds.
    """

    def __init__(self, longest: float = _LONGEST) -> None:
        self._longest = longest
        self._next = _SHORTEST

    def reset(self) -> None:
        """Something happened: look again soon."""
        self._next = _SHORTEST

    def next(self) -> float:
        """Return the seconds to sleep now."""
        seconds = self._next
        self._next = min(2 * seconds, self._longest)
        return seconds


def wait(request: MPI.Request) -> None:
    """Wait for a request without spinning."""
    back_off = BackOff()
    while not request.Test():
        time.sleep(back_off.next())


def together(ranks: Ranks, step: Callable[[], T]) -> T:
    """Take a step in every rank; where one finds bad input, all do. Collective.

    Raises
    ------
    Refused
        In all ranks, with the message of the first rank in which `step` raised InputError, or could
        not use a named file.
    """
    result: T | None = None
    complaint: str | None = None
    try:
        result = step()
    except InputError as error:
        complaint = str(error)
    except OSError as error:
        found = explained(error)
        if found is None or found[0] != BAD_INPUT:
            raise
        complaint = found[1]
    complaints = [found for found in ranks.share(complaint) if found is not None]
    if complaints:
        raise Refused(complaints[0])
    return cast(T, result)
