"""One rank that breaks ends all of them: the others would wait for it, or go on for nothing."""

from __future__ import annotations

import contextlib
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import TextIO

from cpp_store import command_line
from transfer_nas import exit_codes
from transfer_nas.errors import Unwritable
from transfer_nas.job import one_line
from transfer_nas.ranks import Ranks, Refused


class Ending:
    """Ends all ranks with what went wrong in this one; a context manager.

    It is the innermost of a rank's contexts, so that nothing is closed first: that might wait for
    the others, who are in the middle of anything. It leaves alone what all raise together
    (`Refused`), and what the only process raises.

    Parameters
    ----------
    name
        Of the command, for complaints.
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

    def __init__(self, name: str, ranks: Ranks, terminal: TextIO | None = None) -> None:
        self._name = name
        self._ranks = ranks
        self._terminal = terminal
        self.directory: Path | None = None

    def fail(self, error: BaseException) -> None:
        """Say what went wrong, and end all ranks; from any thread."""
        code, line = self._explain(error)
        stream = self._terminal or sys.stderr
        if line is None:
            line = traceback.format_exception_only(error)[-1]
            stream.write("".join(traceback.format_exception(error)))
        if line:
            which = f"rank {self._ranks.rank}: " if self._ranks.size > 1 else ""
            print(f"{self._name}: error: {which}{' '.join(line.split())}", file=stream, flush=True)
        with contextlib.suppress(OSError, command_line.OutputLost):
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

    @staticmethod
    def _explain(error: BaseException) -> tuple[int, str | None]:
        """Return the exit code, and the line to print, if it says it all."""
        if isinstance(error, Unwritable):
            return exit_codes.RESUMABLE, str(error)
        if isinstance(error, SystemExit):  # a user's file ends the program: it has said why
            return exit_codes.FAILED, one_line(error)
        return command_line.explained(error) or (exit_codes.FAILED, None)
