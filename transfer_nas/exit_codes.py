"""What the commands tell the script that runs them; docs/clusters.md says what to do with each.

A search that a signal ended returns 128 plus the signal's number, as programs do: it is resumable.
"""

from __future__ import annotations

import signal

DONE = 0
FAILED = 1
"""Nothing worked: every candidate failed, or the command broke. To run it again is no use."""
BAD_INPUT = 2
"""A flag, a file or an environment variable does not make sense; a line says which."""
NOTHING_TO_DO = 3
"""The run to resume has all its evaluations, or no run waits in the queue."""
RESUMABLE = 75
"""Ended in good order before it was done: run it again with ``--resume`` (EX_TEMPFAIL)."""


def resumable(code: int) -> bool:
    """Whether a search that ended with this code goes on with ``--resume``.

    Besides `RESUMABLE` these are the signals by which queues and people end a job, SIGKILL among
    them: nothing that was finished is lost. A crash, such as SIGSEGV, would only come again.
    Negative numbers are what `subprocess` says of signals.
    """
    ended = {signal.SIGINT, signal.SIGKILL, signal.SIGTERM}
    return code == RESUMABLE or (-code if code < 0 else code - 128) in ended
