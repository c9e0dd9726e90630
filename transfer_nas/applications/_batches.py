"""Sources of batches: data that only comes a batch at a time, in an order of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from transfer_nas.errors import ApplicationError


class Batch(NamedTuple):
    """Inputs, an array for each of the model's; targets, a tuple of them for several outputs;
    weights of the rows, or None.
    """

    x: tuple[npt.NDArray[Any], ...]
    y: Any
    w: npt.NDArray[Any] | None = None


class Batches:
    """A source of batches ``(x, y)`` or ``(x, y, w)``; ``x`` is a tuple for several inputs.

    Parameters
    ----------
    source
        A `keras.utils.PyDataset` (or whatever gives batches by number), a `tf.data.Dataset`, a
        Torch `DataLoader` (or whatever can be iterated over again), or a function that returns an
        iterator. A function that takes an argument gets a seed, another one for each epoch.
    length
        Batches an epoch; None: as many as the source says it has.

    Raises
    ------
    ApplicationError
        Neither is known, or it is no source of batches.
    """

    def __init__(self, source: Any, length: int | None = None) -> None:
        self.source = source
        self.is_tensorflow = hasattr(source, "element_spec") and hasattr(source, "cardinality")
        self.is_indexed = not self.is_tensorflow and hasattr(source, "__getitem__")
        if not (callable(source) or self.is_indexed or hasattr(source, "__iter__")):
            raise ApplicationError(
                f"expected a source of batches (PyDataset, tf.data.Dataset, DataLoader, or a "
                f"function that returns an iterator), found {type(source).__name__}"
            )
        if length is None:
            length = self._own_length()
        if length is None or length < 1:
            raise ApplicationError(
                f"the source of batches ({type(source).__name__}) has no length: say how many "
                "batches an epoch has, as in Batches(source, length=100)"
            )
        self._length = length

    @staticmethod
    def is_source(given: Any) -> bool:
        """Whether something can only be a source of batches: it is no array, frame or list."""
        if isinstance(given, Batches):
            return True
        if given is None or isinstance(given, str | bytes | list | tuple | dict):
            return False
        if any(hasattr(given, name) for name in ("shape", "dtype", "__array__", "columns")):
            return False
        indexed = hasattr(given, "__getitem__") and hasattr(given, "__len__")
        return callable(given) or hasattr(given, "element_spec") or indexed or _again(given)

    def __len__(self) -> int:
        return self._length

    @functools.cached_property
    def first(self) -> Batch:
        """The first batch; what the others look like, but for the number of rows."""
        return next(self._raw(np.arange(1), 0), None) or self.ended()

    @property
    def rows(self) -> int:
        """Rows of an epoch, if all batches have as many as the first."""
        return len(self) * len(self.first.x[0])

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(np.arange(len(self)), 0)

    def epoch(self, order: npt.NDArray[np.integer], seed: int) -> Iterator[Batch]:
        """Yield the batches of one epoch.

        Parameters
        ----------
        order
            Numbers of batches, for a source that gives batches by number.
        seed
            For a function that takes one, and for what shuffles with Torch's generator.

        Raises
        ------
        ApplicationError
            It ends early, or the shape of a batch is not that of the first.
        """
        for count, batch in enumerate(self._raw(order, seed), 1):
            self.check(batch)
            yield batch
            if count == len(order):
                return
        self.ended()

    def batch(self, number: int) -> Batch:
        """Return the batch of a number, from a source that gives batches so."""
        found = _batch(self.source[number])
        self.check(found)
        return found

    def check(self, batch: Batch) -> None:
        """Raise ApplicationError unless a batch has the shapes of the first."""
        y = _tuple(batch.y)
        for part, known, found in (("x", self.first.x, batch.x), ("y", _tuple(self.first.y), y)):
            shapes = [[array.shape[1:] for array in arrays] for arrays in (known, found)]
            if shapes[0] != shapes[1]:
                raise ApplicationError(
                    f"the source of batches changes its shapes: {part} of the first batch has "
                    f"{_shown(shapes[0])} after the first axis, a later one {_shown(shapes[1])}"
                )
        if len({len(array) for array in (*batch.x, *y)}) != 1:
            raise ApplicationError(
                "the source of batches: x and y of a batch must have as many rows, found "
                f"{[len(array) for array in (*batch.x, *y)]}"
            )

    def ended(self) -> Any:
        """Raise ApplicationError, as there were too few batches."""
        raise ApplicationError(
            f"the source of batches ended before its {len(self)} batches: say how many an epoch "
            "has, as in Batches(source, length=100)"
        )

    def _raw(self, order: npt.NDArray[np.integer], seed: int) -> Iterator[Batch]:
        if self.is_indexed:
            return (_batch(self.source[int(number)]) for number in order)
        source = self.source
        if not self.is_tensorflow and not callable(source):
            _seed_torch(source, seed)
        elif callable(source):
            source = source(seed) if _takes_seed(source) else source()
        return map(_batch, iter(source))

    def _own_length(self) -> int | None:
        if self.is_tensorflow:
            return int(self.source.cardinality())  # negative: infinite, or unknown
        try:
            return len(self.source)
        except TypeError:
            return None


def _again(given: Any) -> bool:
    """Whether something can be iterated over more than once."""
    return hasattr(given, "__iter__") and not hasattr(given, "__next__")


def _takes_seed(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _seed_torch(source: Any, seed: int) -> None:
    if any(of.__module__.startswith("torch.") for of in type(source).__mro__):
        import torch

        torch.manual_seed(seed)


def _batch(given: Any) -> Batch:
    """Return what a source has given as arrays; raises ApplicationError."""
    if not isinstance(given, tuple | list) or len(given) not in (2, 3):
        raise ApplicationError(
            f"the source of batches must give (x, y) or (x, y, weights), found {given!r:.60}"
        )
    w = None if len(given) == 2 or given[2] is None else np.asarray(given[2])
    several = isinstance(given[1], tuple) and all(hasattr(part, "shape") for part in given[1])
    y = tuple(map(np.asarray, given[1])) if several else np.asarray(given[1])
    return Batch(tuple(map(np.asarray, _tuple(given[0]))), y, w)


def _tuple(given: Any) -> tuple[Any, ...]:
    return tuple(given) if isinstance(given, tuple | list) else (given,)


def _shown(shapes: list[tuple[int, ...]]) -> str:
    return str(shapes[0]) if len(shapes) == 1 else str(shapes)
