"""Tells how far a search is: one line that changes in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from transfer_nas.searching.manager import Status

_EVERY = 5.0  # seconds between two plain lines
_SILENT, _SILENT_AGAIN = 2.0, 20.0  # seconds without a word, at first and later


@dataclass(frozen=True)
class Goal:
    """What is better, in the metric's own numbers.

    Attributes
    ----------
    metric
        Its name.
    minimized
        Less of it is better: the objective, which is maximised, is its negative.
    """

    metric: str = "objective"
    minimized: bool = False

    def value(self, objective: float) -> float:
        """Return the metric's value."""
        return 0.0 - objective if self.minimized else objective  # no negative zero

    @property
    def direction(self) -> str:
        """What people have to know to read a value."""
        return "lower is better" if self.minimized else "higher is better"

    def best(self, objective: float) -> str:
        """Return the best objective, for people."""
        if self.minimized:
            return f"lowest {self.metric} {self.value(objective):.4f}"
        return f"best {objective:.4f}"


_OBJECTIVE = Goal()
_FIRST = "waiting for the first evaluation"


@contextlib.contextmanager
def patience(stream: TextIO, what: str, silent: float = _SILENT) -> Iterator[None]:
    """Say what goes on while the body is entered, if it takes longer than people like to wait."""
    over = threading.Event()
    begun = time.monotonic()

    def say() -> None:
        wait = silent
        while not over.wait(wait):
            print(f"{what} ({time.monotonic() - begun:.0f} s)", file=stream, flush=True)
            wait = _SILENT_AGAIN

    thread = threading.Thread(target=say, name="patience", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


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
    goal
        What is better.
    """

    def __init__(self, stream: TextIO, timeout: float | None, goal: Goal = _OBJECTIVE) -> None:
        self._stream = stream
        self._timeout = timeout
        self._goal = goal
        self._first = contextlib.ExitStack()
        self._shown_at = time.monotonic()
        self._pending: Status | None = None

    def update(self, status: Status) -> None:
        """Show a status unless the last one is recent."""
        self._first.close()
        self._pending = status
        if time.monotonic() - self._shown_at >= _EVERY:
            self._show(status)

    def warn(self, text: str) -> None:
        """Show a line."""
        print(f"warning: {text}", file=self._stream, flush=True)

    def __enter__(self) -> PlainProgress:
        self._first.enter_context(patience(self._stream, _FIRST))
        return self

    def __exit__(self, *_: object) -> None:
        self._first.close()
        if self._pending is not None:
            self._show(self._pending)

    def _show(self, status: Status) -> None:
        self._shown_at = time.monotonic()
        self._pending = None
        print(describe(status, self._timeout, self._goal), file=self._stream, flush=True)


class TerminalProgress(Progress):
    """One line that is kept up to date.

    Parameters
    ----------
    stream
        The terminal.
    timeout
        Seconds that the search may take; None: no limit.
    goal
        What is better.
    """

    def __init__(self, stream: TextIO, timeout: float | None, goal: Goal = _OBJECTIVE) -> None:
        import rich.console
        import rich.progress

        self._timeout = timeout
        self._goal = goal
        self._line = rich.progress.Progress(
            rich.progress.SpinnerColumn("line"),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.TimeElapsedColumn(),
            console=rich.console.Console(file=stream),
        )
        self._task = self._line.add_task(_FIRST, total=None)

    def update(self, status: Status) -> None:
        """Show a status."""
        self._line.update(
            self._task,
            total=status.max_evals,
            completed=status.evaluations,
            description=describe(status, self._timeout, self._goal),
        )

    def warn(self, text: str) -> None:
        """Show a line above it."""
        self._line.console.print(f"warning: {text}", markup=False, highlight=False)

    def __enter__(self) -> TerminalProgress:
        self._line.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._line.stop()


def describe(status: Status, timeout: float | None, goal: Goal = _OBJECTIVE) -> str:
    """Return a status in one line."""
    done = f"{status.evaluations}"
    if status.max_evals is not None:
        done += f"/{status.max_evals}"
    parts = [f"{done} evaluations"]
    if status.failures:
        parts.append(f"{status.failures} failed")
    if status.stopped:
        parts.append(f"{status.stopped} stopped early")
    if status.best is not None:
        parts.append(f"{goal.best(status.best.objective)} (job {status.best.job.id})")
    if status.front is not None:
        parts.append(f"{len(status.front.members)} on the front")
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
