"""Arrays that are larger than memory is to be used for: they stay where they are."""

from __future__ import annotations

import math
import mmap
import os
from typing import Any

import numpy as np
import numpy.typing as npt

_SHARE = 8
MOST_BYTES = min(2**30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _SHARE)
"""Of an array that is read whole: an eighth of the machine's memory, and no more than 1 GiB, as
each rank has its own."""

_BLOCK_BYTES = 2**16  # that are read together at least
_RESIDENT_BYTES = 2**22
"""Of a mapped file that are read before its pages are let go. Few, as the system may map 2 MiB
around each block that is read."""


class OnDisk:
    """Rows of an array that is read a part at a time; what is asked for is an array of NumPy.

    Takes slices (``rows[3:9]``) and arrays of rows' numbers, as `numpy.ndarray` does. One thread
    at a time may read.

    Parameters
    ----------
    given
        What the user has opened: it has shape and dtype, and gives arrays for slices.
    picked
        The numbers of the rows that this one has, ascending; None: all.

    Attributes
    ----------
    block
        Rows of `given` that had better be read together: whole chunks, and not too few bytes.
    """

    def __init__(self, given: Any, picked: npt.NDArray[np.int64] | None = None) -> None:
        self._given, self._picked = given, picked
        self._read_bytes = 0
        rows = len(given) if picked is None else len(picked)
        self.shape: tuple[int, ...] = (rows, *map(int, given.shape[1:]))
        kind = np.dtype(given.dtype)
        self.dtype = np.dtype(np.uint8) if kind.kind == "b" else kind.newbyteorder("=")
        chunk = (getattr(given, "chunks", None) or (1,))[0]
        self.block = int(chunk) * max(1, _BLOCK_BYTES // max(1, self._row_bytes * int(chunk)))

    @staticmethod
    def is_needed(given: Any) -> bool:
        """Whether an array is one to leave where it is: a large one that is not in memory."""
        if isinstance(given, np.ndarray) and _mapped(given) is None:
            return False
        if not all(hasattr(given, name) for name in ("shape", "dtype", "__getitem__", "__len__")):
            return False
        try:
            kind = np.dtype(given.dtype)  # not of a frame, nor of another library's tensor
            bytes_of_all = math.prod(given.shape) * kind.itemsize
        except TypeError:
            return False
        return kind.kind in "biuf" and len(given.shape) > 0 and bytes_of_all > MOST_BYTES

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | npt.NDArray[np.integer]) -> npt.NDArray[Any]:
        if isinstance(rows, slice):
            begin, end, step = rows.indices(len(self))
            if self._picked is None and step == 1:
                return self._read(begin, max(begin, end))
            rows = np.arange(begin, end, step)
        return self._gather(rows if self._picked is None else self._picked[rows])

    def taking(self, rows: npt.NDArray[np.int64]) -> OnDisk | npt.NDArray[Any]:
        """Return some rows, ascending; those that are few in memory."""
        if len(rows) * self._row_bytes <= MOST_BYTES:
            return self[rows]
        return OnDisk(self._given, rows if self._picked is None else self._picked[rows])

    @property
    def _row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def _gather(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[Any]:
        """Return rows in any order, each block read once."""
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        begins = np.flatnonzero(np.diff(ascending // self.block, prepend=-1))
        for begin, end in zip(begins, [*begins[1:], len(rows)], strict=True):
            low, high = int(ascending[begin]), int(ascending[end - 1]) + 1
            found[order[begin:end]] = self._read(low, high)[ascending[begin:end] - low]
        return found

    def _read(self, begin: int, end: int) -> npt.NDArray[Any]:
        found = np.array(self._given[begin:end], self.dtype)
        mapped = _mapped(self._given)
        self._read_bytes += found.nbytes
        if mapped is not None and self._read_bytes > _RESIDENT_BYTES:
            # Pages that were read count as this process's memory; the system keeps them for it
            # as long as there is room.
            mapped.madvise(mmap.MADV_DONTNEED)
            self._read_bytes = 0
        return found


def _mapped(given: Any) -> mmap.mmap | None:
    """Return the mapped file of an array of NumPy; None if it has none, or changes only here."""
    if getattr(given, "mode", None) not in ("r", "r+", "w+"):
        return None
    found = getattr(given, "_mmap", None)
    return found if isinstance(found, mmap.mmap) else None


def shuffled(
    order: npt.NDArray[np.integer], block: int, row_bytes: int, most_bytes: int
) -> npt.NDArray[np.integer]:
    """Return an order in which neighbours on disk are near each other, else as random as it was.

    Blocks of rows in random order; the rows of as many blocks as fit into memory at a time in
    random order. A function of `order` alone.

    Parameters
    ----------
    order
        A permutation of all rows.
    block
        Rows that are read together.
    row_bytes
        Of a row.
    most_bytes
        Of rows that are read before they are used.
    """
    blocks = max(16, most_bytes // max(1, block * row_bytes))
    numbers = order // block
    first = np.full(int(numbers.max()) + 1, len(order))
    np.minimum.at(first, numbers, np.arange(len(order)))
    rank = np.empty_like(first)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return order[np.argsort(rank[numbers] // blocks, kind="stable")]
