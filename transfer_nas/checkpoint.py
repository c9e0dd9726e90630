"""What a long computation saves of itself, section by section, to go on from after a restart.

Each part saves its own state under its own key in its own section, whenever it has made a step: a
search in one, an evaluation in a section of it, the epochs of its training in that. Whoever begins
looks for its key, and goes on from there.

A file a key, ``SECTION/…/KEY``, written under another name and renamed; the one before it remains
as ``KEY.previous``. If a file is damaged, the one before it is used. The format is that of
docs/formats.md, "Checkpoints".
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

_MAGIC = b"transfer-nas checkpoint 1 "
_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Saved:
    """What was saved under a key.

    Attributes
    ----------
    values
        Whatever JSON can say.
    arrays
        Any dtype that is not of objects.
    """

    values: Mapping[str, Any]
    arrays: Sequence[Array] = field(default_factory=list)


class Checkpoint:
    """A section: keys, and sections within it.

    One process at a time writes a section; different sections can be written at the same time.

    Parameters
    ----------
    path
        Directory of the section; made when something is saved.
    warn
        Takes a line about each file that was found damaged.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path = path
        self._warn = warn

    def section(self, name: str) -> Checkpoint:
        """Return a section of this one; letters, digits, ``_`` and ``-`` make a name."""
        return Checkpoint(self._path / _checked(name), self._warn)

    def save(self, key: str, values: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
        """Save, so that a process that is killed leaves this state or the one before it.

        Raises
        ------
        OSError
            The disk is full, for instance; what was saved before is still there.
        """
        path = self._path / _checked(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(key + ".new")
        _write(fresh, values, arrays)
        if path.exists():
            path.replace(path.with_name(key + ".previous"))
        fresh.replace(path)

    def load(self, key: str) -> Saved | None:
        """Return what was saved last and can be read; None if there is nothing."""
        path = self._path / _checked(key)
        damaged = False
        for candidate in (path, path.with_name(key + ".previous")):
            try:
                saved = _read(candidate)
            except FileNotFoundError:
                continue
            except (OSError, RecursionError, ValueError, KeyError, TypeError) as cause:
                self._warn(f"{candidate} is damaged ({cause})")
                damaged = True
                continue
            if damaged:
                self._warn(f"{candidate}, which is the one before it, is used instead")
            return saved
        if damaged:
            self._warn(f"{path}: there is none before it; what it was about begins anew")
        return None

    def directory(self, name: str) -> Path:
        """Make a directory in the section, for files of others; return it."""
        path = self._path / _checked(name)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def clear(self) -> None:
        """Remove the section with everything in it."""
        shutil.rmtree(self._path, ignore_errors=True)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"expected letters, digits, _ and - as a name, found {name!r}")
    return name


def _write(path: Path, values: Mapping[str, Any], arrays: Sequence[Array]) -> None:
    contiguous = [np.ascontiguousarray(array).reshape(np.shape(array)) for array in arrays]
    shapes = [[array.dtype.name, list(array.shape)] for array in contiguous]
    header = json.dumps({"values": values, "arrays": shapes}).encode() + b"\n"
    parts: list[bytes | memoryview] = [header]
    parts += [array.reshape(-1).view(np.uint8).data for array in contiguous]
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    with path.open("wb") as file:
        file.write(_MAGIC + digest.hexdigest().encode() + b"\n")
        for part in parts:
            file.write(part)


def _read(path: Path) -> Saved:
    """Read a file; raises ValueError or what parsing raises if it is damaged."""
    first, _, rest = path.read_bytes().partition(b"\n")
    expected = _MAGIC + hashlib.blake2b(rest, digest_size=16).hexdigest().encode()
    if first != expected:
        what = "checksum" if first.startswith(_MAGIC) else "first line"
        raise ValueError(f"wrong {what}")
    header, _, data = rest.partition(b"\n")
    fields = json.loads(header)
    arrays, begin = [], 0
    for name, shape in fields["arrays"]:
        dtype = _dtype(name)
        end = begin + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        arrays.append(np.frombuffer(data[begin:end], dtype).reshape(shape).copy())
        begin = end
    return Saved(fields["values"], arrays)


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:  # bfloat16 and its like
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return dtype
