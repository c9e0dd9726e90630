"""A file of lines that is only appended to, and read again after whatever ended its writer."""

from __future__ import annotations

import csv
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable
from io import FileIO
from pathlib import Path
from typing import Generic, TypeVar

from transfer_nas.errors import RunDirectoryError

T = TypeVar("T")


class Journal(Generic[T]):
    """The entries of a file, one a line, open for appending.

    A process that is killed can leave the last line torn: it is cut off. Any other line that
    cannot be read is damage: it is left out, the file as it was found is kept beside as
    ``NAME.damaged``, and `damage` says what happened.

    Locked against a second process until `close`. One process, one thread.

    Parameters
    ----------
    path
        The file; made if it is not there.
    parse
        Turns a line without its end into an entry; raises KeyError, TypeError or ValueError if
        that cannot be done.
    header
        First line of the file; None: it has none.

    Attributes
    ----------
    entries
        What was found, in order.
    damage
        A line for the user about each line that was left out.

    Raises
    ------
    RunDirectoryError
        Another process works on it, or it has another header.
    """

    def __init__(self, path: Path, parse: Callable[[str], T], header: str | None = None) -> None:
        self.entries: list[T] = []
        self.damage: list[str] = []
        self._file = _open_locked(path)
        try:
            kept = self._read(path, parse, header)
            if self.damage:
                shutil.copyfile(path, path.with_name(path.name + ".damaged"))
                write_whole(path, "".join(line + "\n" for line in kept))
                self._file.close()
                self._file = _open_locked(path)
            if header is not None and not kept:
                self.append([header])
        except BaseException:
            self._file.close()
            raise

    def append(self, lines: Iterable[str]) -> None:
        """Write lines such that they outlive this process, all at once.

        Raises
        ------
        OSError
            They could not be written; the file is as it was.
        """
        left = memoryview("".join([line + "\n" for line in lines]).encode())
        end = os.fstat(self._file.fileno()).st_size
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(end)  # takes no room
            raise

    def close(self) -> None:
        """Close the file and let another process work on it."""
        self._file.close()

    def _read(self, path: Path, parse: Callable[[str], T], header: str | None) -> list[str]:
        """Take the entries; return the lines that are to be kept."""
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        kept = []
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
            try:
                text = line.decode()
                if number == 1 and header is not None:
                    _check_header(path, header, text)
                else:
                    self.entries.append(parse(text))
                kept.append(text)
            except (KeyError, RecursionError, TypeError, ValueError, csv.Error) as cause:
                if isinstance(cause, RunDirectoryError):
                    raise
                self.damage.append(f"{path}, line {number}: {cause}; it is left out")
        return kept


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new one, never a part."""
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.write_text(text, encoding="utf-8", newline="")
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def _open_locked(path: Path) -> FileIO:
    file = FileIO(path, "a")  # nothing waits in a buffer for a disk that has room again
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as cause:
        file.close()
        raise RunDirectoryError(f"another process works on {path.parent}") from cause
    except OSError:
        pass  # some shared file systems know no locks; the refusal to reuse a directory remains
    return file


def _check_header(path: Path, expected: str, found: str) -> None:
    if found == expected:
        return
    names, others = next(csv.reader([expected])), next(csv.reader([found]), [])
    missing = [name for name in names if name not in others]
    surplus = [name for name in others if name not in names]
    raise RunDirectoryError(f"{path}, line 1: columns differ: missing {missing}, surplus {surplus}")
