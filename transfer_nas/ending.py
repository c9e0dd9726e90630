"""One rank that breaks ends all of them: the others would wait for it, or go on for nothing."""

from __future__ import annotations

import contextlib
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import TextIO

from transfer_nas import exit_codes
from transfer_nas.errors import InputError, Unwritable
from transfer_nas.ranks import Ranks, Refused


class Ending:
    """Ends all ranks with what went wrong in this one; a context manager.

    It is the innermost of a rank's contexts, so that nothing is closed first: that might wait for
    the others, who are in the middle of anything. It leaves alone what all raise together
    (`Refused`), and what the only process raises.

    Parameters
    ----------
    ranks
        The processes of the job.
    terminal
        Where people look; None: standard error.

    Attributes
    ----------
    directory
        That of the run, once it is this job's: the exit code is left there, since launchers may
        return that of a rank which they had to kill.
    """

    def __init__(self, ranks: Ranks, terminal: TextIO | None = None) -> None:
        self._ranks = ranks
        self._terminal = terminal
        self.directory: Path | None = None

    def fail(self, error: BaseException) -> None:
        """Say what went wrong, and end all ranks; from any thread."""
        terminal = self._terminal or sys.__stderr__
        print(self._explain(error), file=terminal, flush=True)
        code = exit_codes.of(error)
        with contextlib.suppress(OSError):  # the disk may be full
            if self.directory is not None:
                exit_codes.leave(self.directory, code)
            sys.stdout.flush()
        self._ranks.abort(code)

    def __enter__(self) -> Ending:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not isinstance(error, Refused) and self._ranks.size > 1:
            self.fail(error)

    def _explain(self, error: BaseException) -> str:
        which = f"rank {self._ranks.rank}: " if self._ranks.size > 1 else ""
        line = f"evolve: error: {which}"
        if isinstance(error, InputError | Unwritable):
            return line + " ".join(str(error).split())
        if isinstance(error, KeyboardInterrupt):
            return line + "interrupted"
        last = traceback.format_exception_only(error)[-1].strip()
        return "".join(traceback.format_exception(error)) + line + last
