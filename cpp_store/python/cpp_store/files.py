"""Files that are there whole or not at all, whatever ends their writer and whenever."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path, *, replace: bool = True, through_links: bool = True) -> Iterator[Path]:
    """Give a file to write beside `path`, which takes its place at the end.

    It has the same suffix. Whatever the caller raises, it is removed, and `path` is as it was. What
    is no file, such as ``/dev/stdout``, is given as it is.

    Parameters
    ----------
    path
        The file.
    replace
        Whether it may be there already.
    through_links
        Where `path` is a link, whether what it leads to is replaced, or the link itself.

    Raises
    ------
    FileExistsError
        It is there and shall not be replaced.
    OSError
        The directory cannot be written to.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    if through_links:
        path = Path(os.path.realpath(path))
    descriptor, name = tempfile.mkstemp(path.suffix, f".{path.stem[:40]}.", path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # as any new file; temporary ones are private
        if replace:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # unlike a rename, fails if it appeared meanwhile
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file as `replacing` has it, in UTF-8; names of files may be any bytes."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
