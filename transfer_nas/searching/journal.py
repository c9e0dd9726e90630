"""A file that is only appended to, and read again after whatever ended its writer."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Generic, TypeVar

from transfer_nas.errors import RunDirectoryError

T = TypeVar("T")


@dataclass
class Found(Generic[T]):
    """What a reader makes of a file.

    Attributes
    ----------
    entries
        In order.
    kept
        What the file shall hold: what was found without what is torn, without damage, and with
        what it lacks, such as a header.
    damage
        A line for the user about each line that was left out.
    """

    kept: bytes
    entries: list[T] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)


class Journal(Generic[T]):
    """The entries of a file, open for appending.

    A process that is killed can leave the last entry torn: it is cut off. Anything else that
    cannot be read is damage: it is left out, the file as it was found is kept beside as
    ``NAME.damaged``, and `damage` says what happened.

    Locked against a second process until `close`. One process, one thread.

    Parameters
    ----------
    path
        The file; made if it is not there.
    read
        Finds the entries in the content of the file.

    Attributes
    ----------
    entries
        What was found, in order.
    damage
        A line for the user about each line that was left out.

    Raises
    ------
    RunDirectoryError
        Another process works on it, or `read` refuses it.
    """

    def __init__(self, path: Path, read: Callable[[bytes], Found[T]]) -> None:
        self._file = _open_locked(path)
        try:
            content = path.read_bytes()
            found = read(content)
            self.entries, self.damage = found.entries, found.damage
            if self.damage:
                shutil.copyfile(path, _free(path.with_name(path.name + ".damaged")))
            if not content.startswith(found.kept):
                self._replace(path, found.kept)
            elif len(found.kept) < len(content):
                self._file.truncate(len(found.kept))
        except BaseException:
            self._file.close()
            raise

    def append(self, text: str) -> None:
        """Write whole entries such that they outlive this process, all at once.

        Raises
        ------
        OSError
            They could not be written; the file is as it was.
        """
        end = os.fstat(self._file.fileno()).st_size
        try:
            _write(self._file, text.encode())
        except OSError:
            self._file.truncate(end)  # takes no room
            raise

    def close(self) -> None:
        """Close the file and let another process work on it."""
        self._file.close()

    def _replace(self, path: Path, content: bytes) -> None:
        """Put another file in the place of this one: whole, and locked before it is there."""
        fresh = path.with_name(path.name + ".new")
        fresh.unlink(missing_ok=True)
        file = _open_locked(fresh)
        try:
            _write(file, content)
            fresh.replace(path)
        except OSError:
            file.close()
            fresh.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file = file


def read_lines(content: bytes, name: str, parse: Callable[[str], T]) -> Found[T]:
    """Read a file of one entry a line.

    Parameters
    ----------
    content
        Of the file.
    name
        Of the file, for messages.
    parse
        Turns a line without its end into an entry; raises KeyError, TypeError or ValueError if
        that cannot be done.
    """
    found = Found[T](b"")
    kept = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            found.entries.append(parse(line.decode()))
            kept.append(line + b"\n")
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as cause:
            found.damage.append(f"{name}, line {number}: {cause}; it is left out")
    found.kept = b"".join(kept)
    return found


def write_new(path: Path, text: str) -> None:
    """Write a file that must not be there yet, whole; of several who try at once, one can.

    Raises
    ------
    FileExistsError
        It is there.
    """
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(6)}")
    try:
        fresh.write_text(text, encoding="utf-8", newline="")
        _link(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _link(file: Path, path: Path) -> None:
    """Give a file another name, which must not be there."""
    try:
        os.link(file, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with path.open("x"):
            pass
        file.replace(path)


@contextlib.contextmanager
def claim(directory: Path) -> Iterator[None]:
    """Keep others who claim a directory out of it; whoever comes second is refused.

    Raises
    ------
    RunDirectoryError
        Another process has it.
    """
    path = directory / ".claim"
    file = _open_locked(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # those who wait for it see that, see `_open_locked`
        file.close()


def _open_locked(path: Path) -> FileIO:
    while True:
        file = FileIO(path, "a")  # nothing waits in a buffer for a disk that has room again
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            file.close()
            raise RunDirectoryError(f"another process works on {path.parent}") from cause
        except OSError:
            return file  # some shared file systems know no locks; `write_new` does without
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # another file has taken its place in the meantime


def _free(path: Path) -> Path:
    """Return a path where nothing is: this one, or it with a number."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _write(file: FileIO, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]
