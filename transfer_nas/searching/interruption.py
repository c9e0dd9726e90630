"""Ends a search at a signal or at a time, between two evaluations or in the middle of one."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_REPEATED = 1.0  # seconds; mpiexec and the terminal may both deliver one and the same Ctrl-C


class Interrupted(KeyboardInterrupt):
    """Raised where an evaluation happens to be; not an Exception, so that no handler takes it."""


class Interruption:
    """Turns SIGINT, SIGTERM and two time limits into one way to stop.

    As a context manager in the main thread it takes over both signals and the interval timer.
    The first to come sets `reason`; inside `evaluating` it also raises `Interrupted`. A second
    signal more than a second later ends the process at once, as people expect of a second Ctrl-C.

    Parameters
    ----------
    timeout
        Seconds from entering, after which the search is done; None: no limit.
    max_wait
        Seconds from entering, after which it stops though it is not done; None: no limit.

    Attributes
    ----------
    reason
        None, ``timeout``, ``max_wait`` or ``signal``.
    exit_code
        What a process that a signal ended returns: 128 plus its number; 0 otherwise.
    """

    def __init__(self, timeout: float | None = None, max_wait: float | None = None) -> None:
        limits = {"timeout": timeout, "max_wait": max_wait}
        # The one that comes first; none is infinity.
        self._limit, self._seconds = min(
            ((name, math.inf if seconds is None else seconds) for name, seconds in limits.items()),
            key=lambda limit: limit[1],
        )
        self._armed = False
        self._signalled_at: float | None = None
        self.reason: str | None = None
        self.exit_code = 0

    def __enter__(self) -> Interruption:
        self._previous = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
        }
        if self._seconds < math.inf:
            signal.setitimer(signal.ITIMER_REAL, max(self._seconds, 1e-6))
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Let the body be interrupted: raises `Interrupted` in it, or at once if it is late."""
        self._armed = True
        try:
            if self.reason is not None:
                raise Interrupted
            yield
        finally:
            self._armed = False

    @contextmanager
    def held_off(self) -> Iterator[None]:
        """Let the body, in the middle of `evaluating`, end first; raises `Interrupted` after it."""
        armed, self._armed = self._armed, False
        try:
            yield
        finally:
            self._armed = armed
        if armed and self.reason is not None:
            self._armed = False
            raise Interrupted

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        now = time.monotonic()
        if number == signal.SIGALRM:
            if self.reason is None:
                self.reason = self._limit
        else:
            if self._signalled_at is not None and now - self._signalled_at > _REPEATED:
                raise KeyboardInterrupt
            if self._signalled_at is None:
                self._signalled_at = now
                self.reason = "signal"
                self.exit_code = 128 + number
        if self._armed:
            self._armed = False
            raise Interrupted
