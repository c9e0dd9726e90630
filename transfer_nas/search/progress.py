"""Tells how far a search is: one line that changes in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TextIO

from transfer_nas.search.manager import Status

_EVERY = 5.0  # seconds between two plain lines


class Progress(ABC):
    """Shows the status of a search; a context manager. May be called from any one thread."""

    @abstractmethod
    def update(self, status: Status) -> None:
        """Show a status."""

    @abstractmethod
    def warn(self, text: str) -> None:
        """Show a line that stays."""

    def __enter__(self) -> Progress:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...


class PlainProgress(Progress):
    """A line every few seconds, and one at the end.

    Parameters
    ----------
    stream
        Where to.
    timeout
        Seconds that the search may take; None: no limit.
    """

    def __init__(self, stream: TextIO, timeout: float | None) -> None:
        self._stream = stream
        self._timeout = timeout
        self._shown_at = time.monotonic()
        self._pending: Status | None = None

    def update(self, status: Status) -> None:
        """Show a status unless the last one is recent."""
        self._pending = status
        if time.monotonic() - self._shown_at >= _EVERY:
            self._show(status)

    def warn(self, text: str) -> None:
        """Show a line."""
        print(f"warning: {text}", file=self._stream, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._pending is not None:
            self._show(self._pending)

    def _show(self, status: Status) -> None:
        self._shown_at = time.monotonic()
        self._pending = None
        print(describe(status, self._timeout), file=self._stream, flush=True)


class TerminalProgress(Progress):
    """One line that is kept up to date.

    Parameters
    ----------
    stream
        The terminal.
    timeout
        Seconds that the search may take; None: no limit.
    """

    def __init__(self, stream: TextIO, timeout: float | None) -> None:
        import rich.console
        import rich.progress

        self._timeout = timeout
        self._line = rich.progress.Progress(
            rich.progress.SpinnerColumn("line"),
            rich.progress.TextColumn("{task.description}"),
            console=rich.console.Console(file=stream),
        )
        self._task = self._line.add_task("waiting for the first evaluation", total=None)

    def update(self, status: Status) -> None:
        """Show a status."""
        self._line.update(
            self._task,
            total=status.max_evals,
            completed=status.evaluations,
            description=describe(status, self._timeout),
        )

    def warn(self, text: str) -> None:
        """Show a line above it."""
        self._line.console.print(f"warning: {text}", markup=False, highlight=False)

    def __enter__(self) -> TerminalProgress:
        self._line.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._line.stop()


def describe(status: Status, timeout: float | None) -> str:
    """Return a status in one line."""
    done = f"{status.evaluations}"
    if status.max_evals is not None:
        done += f"/{status.max_evals}"
    parts = [f"{done} evaluations"]
    if status.failures:
        parts.append(f"{status.failures} failed")
    if status.best is not None:
        parts.append(f"best {status.best.objective:.4f} (job {status.best.job.id})")
    parts.append(f"{status.share_transferred:.0%} of layers transferred")
    left = seconds_left(status, timeout)
    if left is not None:
        parts.append(f"{int(left) // 60}:{int(left) % 60:02} left")
    return " · ".join(parts)


def seconds_left(status: Status, timeout: float | None) -> float | None:
    """Estimate the seconds until a search ends; None if there is nothing to go by."""
    limits = []
    if status.max_evals is not None and status.fresh:
        limits.append((status.max_evals - status.evaluations) * status.here / status.fresh)
    if timeout is not None:
        limits.append(timeout - status.here)
    return max(0.0, min(limits)) if limits else None
