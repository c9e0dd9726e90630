"""What the commands tell the script that runs them; docs/clusters.md says what to do with each.

A search that a signal ended returns 128 plus the signal's number, as programs do: it is resumable.

A search that has lost a rank cannot end with all of them together: it has the launcher end the
others, and launchers disagree about what they return then (MPICH's says 9 of a rank that it had to
kill, whatever the search said). So it first leaves its code in the run directory.
"""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

DONE = 0
FAILED = 1
"""Nothing worked: every candidate failed, or the command broke. To run it again is no use."""
BAD_INPUT = 2
"""A flag, a file or an environment variable does not make sense; a line says which."""
NOTHING_TO_DO = 3
"""The run to resume has all its evaluations, or no run waits in the queue."""
RESUMABLE = 75
"""Ended in good order before it was done: run it again with ``--resume`` (EX_TEMPFAIL)."""

_FILE = "exit_code"


def leave(directory: Path, code: int) -> None:
    """Write down what the search returns, before the launcher is made to end it."""
    (directory / _FILE).write_text(f"{code}\n")


def forget(directory: Path) -> None:
    """Remove what an earlier start of the search left."""
    (directory / _FILE).unlink(missing_ok=True)


def returned(directory: Path, code: int) -> int:
    """Return what the search meant, whose launcher returned `code`."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int((directory / _FILE).read_text())
    return code


def resumable(code: int) -> bool:
    """Whether a search that ended with this code goes on with ``--resume``.

    Besides `RESUMABLE` these are the signals by which queues and people end a job, SIGKILL among
    them: nothing that was finished is lost. A crash, such as SIGSEGV, would only come again.
    Negative numbers are what `subprocess` says of signals.
    """
    ended = {signal.SIGINT, signal.SIGKILL, signal.SIGTERM}
    return code == RESUMABLE or (-code if code < 0 else code - 128) in ended
