"""Rows to train on, to judge by and to test with; how they are parted, and which are taken."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from cpp_store import _core
from transfer_nas.applications._batches import Batches
from transfer_nas.applications._disk import OnDisk

Arrays = npt.NDArray[np.generic] | tuple[npt.NDArray[np.generic], ...]
"""One array, or one for each input of the model; the first axis counts the rows."""

Rows = npt.NDArray[np.int64]

PARTS = ("train", "valid", "test")

_HASHED = 2**26  # bytes that are copied at a time to be hashed, of arrays that are not contiguous


@dataclass(frozen=True)
class Data:
    """Rows to train on, to judge candidates by, and to test with who is left in the end.

    Attributes
    ----------
    x_train, x_valid, x_test
        Inputs, ``(rows, *shape)``; a tuple of arrays if the model has several inputs. Without
        validation rows a part of the training rows is set aside (`Application.validation`). No
        search looks at test rows. Large arrays on disk stay there (`OnDisk`). Or a source of
        batches, which gives the targets, too (`Batches`).
    y_train, y_valid, y_test
        Targets, ``(rows, ...)``, as the loss expects them; labels may be strings.
    w_train
        How much each training row counts in the loss, ``(rows,)``; None: all alike.
    version
        Stands for what the rows are in `digest`: another one for other data. None: they are read
        for it; a source of batches needs one.

    What `Application.load` returns may hold frames, lists and labels of any dtype;
    `Application.data` holds arrays.
    """

    x_train: Arrays
    y_train: Arrays = None  # type: ignore[assignment]  # of a source of batches
    x_valid: Arrays = None  # type: ignore[assignment]  # `Application.data` always has them
    y_valid: Arrays = None  # type: ignore[assignment]
    x_test: Arrays | None = None
    y_test: Arrays | None = None
    w_train: npt.NDArray[np.generic] | None = None
    version: str | None = None

    @functools.cached_property
    def digest(self) -> str:
        """Return 16 hexadecimal digits that stand for what is trained on and judged by.

        Of all bytes, shapes and dtypes; of `version` in place of the bytes, if there is one. Test
        rows change no search.
        """
        digest = hashlib.blake2b(digest_size=8)
        if self.version is not None:
            digest.update(f"version {self.version}".encode())
        for name in ("x_train", "y_train", "x_valid", "y_valid", "w_train"):
            given = getattr(self, name)
            if isinstance(given, Batches):
                digest.update(f"{name} {len(given)} batches".encode())
                continue
            for array in () if given is None else map(_array, as_tuple(given)):
                digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
                for part in () if self.version is not None else _bytes_of(array):
                    digest.update(part)
        return digest.hexdigest()

    def count(self, part: str) -> int:
        """Return how many rows a part has: ``train``, ``valid`` or ``test``."""
        x = getattr(self, f"x_{part}")
        if isinstance(x, Batches):
            return x.rows
        return 0 if x is None else len(as_tuple(x)[0])

    @property
    def ordered(self) -> int:
        """What an epoch puts into a new order: training rows, or the batches of a source."""
        return len(as_tuple(self.x_train)[0])

    def steps(self, batch_size: int) -> int:
        """Return how many batches an epoch has."""
        alone = isinstance(self.x_train, Batches)
        return self.ordered if alone else -(-self.ordered // batch_size)

    def in_memory(self, part: str) -> bool:
        """Whether a part is neither on disk nor a source of batches."""
        x = as_tuple(getattr(self, f"x_{part}"))
        return not any(isinstance(array, OnDisk | Batches) for array in x)

    def taking(self, part: str, rows: Rows, source: str | None = None) -> dict[str, Any]:
        """Return fields of a part that holds some rows of its own, or of another part."""
        prefixes = ("x", "y", "w") if part == "train" else ("x", "y")
        found = {}
        for prefix in prefixes:
            given = getattr(self, f"{prefix}_{source or part}")
            if given is not None:
                taken = tuple(_taken(array, rows) for array in as_tuple(given))
                found[f"{prefix}_{part}"] = taken if isinstance(given, tuple) else taken[0]
        return found

    def fields(self) -> dict[str, Any]:
        """Return all fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def as_tuple(arrays: Arrays) -> tuple[npt.NDArray[np.generic], ...]:
    """Return one array or several as a tuple of arrays."""
    return tuple(arrays) if isinstance(arrays, tuple | list) else (arrays,)


def chosen(count: int, rows: int, labels: npt.NDArray[Any] | None, seed: int) -> Rows:
    """Draw some rows, in ascending order; of each class its share, where there are classes.

    Parameters
    ----------
    count
        How many to draw.
    rows
        Of how many.
    labels
        Classes of the rows; None: there are none.
    seed
        Equal seeds draw equal rows.
    """
    order = np.random.default_rng(seed).permutation(rows)
    if labels is not None:
        _, classes, sizes = np.unique(labels[order], return_inverse=True, return_counts=True)
        by_class = np.argsort(classes, kind="stable")
        begins = np.repeat(np.cumsum(sizes) - sizes, sizes)
        places = np.empty(rows)  # of each row in its class, from 0 to 1
        places[by_class] = (np.arange(rows) - begins + 0.5) / np.repeat(sizes, sizes)
        order = order[np.argsort(places, kind="stable")]
    return np.sort(order[:count])


def shared_rows(part: Arrays, others: Iterator[Arrays]) -> int:
    """Return how many rows of a part stand in other parts, too: equal bytes in all inputs."""
    counts = Counter(_digests(part))
    found = {digest for other in others for digest in _digests(other) if digest in counts}
    return sum(counts[digest] for digest in found)


def _digests(part: Arrays) -> Iterator[bytes]:
    arrays = as_tuple(part)
    step = max(1, _HASHED * len(arrays[0]) // max(1, sum(array.nbytes for array in arrays)))
    for begin in range(0, len(arrays[0]), step):
        chunks = [array[begin : begin + step] for array in arrays]
        for row in range(len(chunks[0])):
            yield _core.xxh3_128(b"".join(chunk[row].tobytes() for chunk in chunks))


def _array(given: Any) -> Any:
    return given if isinstance(given, OnDisk) else np.asarray(given)


def _taken(array: Any, rows: Rows) -> Any:
    return array.taking(rows) if isinstance(array, OnDisk) else array[rows]


def _bytes_of(array: Any) -> Iterator[Any]:
    """Yield the bytes of an array's elements in C order, copying few of them at a time."""
    if not isinstance(array, OnDisk) and array.dtype.hasobject:
        yield repr(array.tolist()).encode()  # the elements' own bytes are addresses
    elif not isinstance(array, OnDisk) and array.flags.c_contiguous:
        yield array.reshape(-1).view(np.uint8)
    else:
        step = max(1, _HASHED * len(array) // max(array.nbytes, 1))
        for begin in range(0, len(array), step):
            yield np.ascontiguousarray(array[begin : begin + step]).reshape(-1).view(np.uint8)
