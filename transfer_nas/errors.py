"""The exceptions of `transfer_nas`.

Everything a user can put right by changing a flag, a file or an environment variable is an
`InputError`: the commands print its message as one line and end with exit code 2.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path

from cpp_store import command_line


class TransferNasError(Exception):
    """Base class of the exceptions of this package."""


class InputError(TransferNasError, command_line.InputError):
    """A setting, a file or an environment variable that does not make sense."""


class SpaceError(InputError):
    """An unknown space, an option it does not take, or a genome that is not one of its own."""


class ApplicationError(InputError):
    """An application that cannot be found or imported, or whose parts do not fit together."""


class RunDirectoryError(InputError):
    """A directory that holds another run, or files of a run that cannot be read."""


class Unwritable(TransferNasError):
    """Files of a run cannot be written any more: the disk is full, a quota is used up.

    Not a failure of the candidate at hand, which is done again when the search is resumed.

    Parameters
    ----------
    what
        What could not be written, and why; the message goes on from there.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"{what}; nothing that was finished is lost: make room and go on with --resume"
        )


class TransferError(TransferNasError):
    """A transfer method could not do what it was asked to; the next call may work."""


class TransferUnavailable(TransferError):
    """Nothing answers a transfer method any more: a dead server, a directory that is gone."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of a run's file or directory that it cannot be written, whatever is wrong with it.

    Raises
    ------
    Unwritable
        Instead of OSError.
    """
    try:
        yield
    except OSError as cause:
        raise Unwritable(f"cannot write to {path}: {cause.strerror}") from cause


def close_matches(name: str, known: Iterable[str]) -> list[str]:
    """Return what a mistyped name may have meant, the likeliest first; at most two."""
    return difflib.get_close_matches(name, sorted(set(known)), n=2, cutoff=0.5)


def near_misses(name: str, known: Iterable[str]) -> str:
    """Say what a mistyped name may have meant, and what there is.

    Returns
    -------
    str
        For instance ``did you mean 'digits'? Known: digits, nt3``.
    """
    names = sorted(known)
    close = close_matches(name, names)
    meant = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{meant}Known: {', '.join(names)}"
