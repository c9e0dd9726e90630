"""What `cpp_store.command_line` does, for the commands of this package and on several ranks."""

from __future__ import annotations

from collections.abc import Callable

from cpp_store import command_line
from transfer_nas.ending import Ending
from transfer_nas.errors import InputError
from transfer_nas.ranks import Ranks, Refused, join


class Parser(command_line.Parser):
    """A parser that raises this package's `InputError`."""

    complaint = InputError


def on_ranks(name: str, work: Callable[[Ranks], int]) -> int:
    """Join the other ranks of the job, work, and leave together; for `cpp_store.command_line.run`.

    What `work` raises in all ranks (`Refused`) ends them together. Whatever else one rank raises
    alone cannot end in good order, as the others may be in the middle of anything (`Ending`).

    Parameters
    ----------
    name
        What to call the command in complaints.
    work
        Returns the exit code.
    """
    ranks = join()
    ending = Ending(name, ranks)
    try:
        with ending:
            code = work(ranks)
    except Refused:
        ranks.finish()
        raise
    except BaseException as error:  # of the only rank
        found = command_line.explained(error)
        if found is None or found[0] != command_line.BAD_INPUT:
            ending.fail(error)
        raise
    ranks.finish()
    return code
