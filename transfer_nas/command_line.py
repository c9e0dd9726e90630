"""What `cpp_store.command_line` does, for the commands of this package and on several ranks."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable

from cpp_store import command_line
from transfer_nas.errors import InputError, Unwritable
from transfer_nas.exit_codes import BAD_INPUT, FAILED, RESUMABLE
from transfer_nas.ranks import Ranks, join


class Parser(command_line.Parser):
    """A parser that raises this package's `InputError`."""

    complaint = InputError


def on_ranks(name: str, work: Callable[[Ranks], int]) -> int:
    """Join the other ranks of the job, work, and leave together; for `cpp_store.command_line.run`.

    What `work` raises in all ranks, bad input, ends them together. Whatever else one rank raises
    alone cannot end in good order, as the others may be in the middle of anything: it is said by
    that rank, and all are ended at once.

    Parameters
    ----------
    name
        What to call the command in complaints.
    work
        Returns the exit code.
    """
    ranks = join()
    try:
        code = work(ranks)
    except InputError:
        ranks.finish()
        raise
    except BaseException as error:
        found = (RESUMABLE, str(error)) if isinstance(error, Unwritable) else None
        found = found or command_line.explained(error)
        if found is None:
            traceback.print_exc()
            found = FAILED, ""
        code, line = found
        if line:
            command_line.complain(name, line)
        if ranks.size == 1 and code == BAD_INPUT:
            return code
        with contextlib.suppress(command_line.OutputLost):
            sys.stdout.flush()
        ranks.abort(code)
        raise
    ranks.finish()
    return code
