"""Feeds Keras with what is not in memory, or changes from epoch to epoch: rows on disk, sources of
batches, and rows that a function augments.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from transfer_nas.applications import Batch, Batches, Data, OnDisk, as_tuple, shuffled

_PIECE_BYTES = 2**26  # of inputs that are read together, beside as many that are being read

Order = npt.NDArray[np.integer]


class Feed:
    """One part of the data, batch by batch: to judge by, and for Keras' ``fit`` on any backend.

    Rows on disk are read by a thread of the feed's own, some batches ahead, in an order that is
    kind to disks (`shuffled`). A source of batches is gone through once an epoch, by as many
    threads as a `PyDataset` has workers; a `tf.data.Dataset` goes to Keras as it is.

    Parameters
    ----------
    data, part
        What is fed: ``train`` or ``valid``, or ``test``.
    batch_size
        Rows a batch, unless the source decides.
    augment
        ``augment(x, rng)`` returns other inputs for a batch; None: they stay as they are.
    """

    def __init__(
        self,
        data: Data,
        part: str,
        batch_size: int,
        augment: Callable[[Any, np.random.Generator], Any] | None = None,
    ) -> None:
        self._x: Any = getattr(data, f"x_{part}")
        self._y: Any = getattr(data, f"y_{part}")
        self._w = data.w_train if part == "train" else None
        self._batch_size = batch_size
        self._augment = augment
        self._raised: list[Exception] = []

    @contextlib.contextmanager
    def epoch(self, order: Order, seed: int) -> Iterator[dict[str, Any]]:
        """Give the arguments of ``fit`` for once through the data.

        Parameters
        ----------
        order
            Numbers of rows, or of the batches of a source.
        seed
            Of this epoch.

        Raises
        ------
        Exception
            What the source raises, rather than what Keras makes of it; ApplicationError if it ends
            early.
        """
        raised = self._raised
        raised.clear()
        try:
            yield {"x": self._given(order, seed), "steps_per_epoch": self._steps}
        except Exception:
            if raised:
                raise raised[0] from None
            raise
        if raised:
            raise raised[0]

    @property
    def _steps(self) -> int:
        if isinstance(self._x, Batches):
            return len(self._x)
        return -(-len(as_tuple(self._x)[0]) // self._batch_size)

    def batches(self) -> Iterator[tuple[Any, ...]]:
        """Yield all batches in the order that they have."""
        source = self._x
        all_of_it = source if isinstance(source, Batches) else self._rows(None)
        return (self._fed(batch, 0, 0) for batch in all_of_it)

    def _given(self, order: Order, seed: int) -> Any:
        source = self._x
        if not isinstance(source, Batches):
            return self._recorded(self._rows(order), seed)
        if source.is_tensorflow and self._augment is None:
            return self._dataset
        if source.is_indexed:
            workers = max(1, getattr(source.source, "workers", 1))  # of a PyDataset
            calls = [functools.partial(source.batch, int(number)) for number in order]
            return self._recorded(_ahead(calls, workers, 2 * workers), seed)
        return self._recorded(source.epoch(order, seed), seed)

    def _recorded(self, batches: Iterator[Batch], seed: int) -> Iterator[tuple[Any, ...]]:
        """Yield batches as Keras takes them; it is a generator, by which Keras knows it."""
        try:
            for number, batch in enumerate(batches):
                yield self._fed(batch, seed, number)
        except Exception as cause:
            self._raised.append(cause)
            raise

    @functools.cached_property
    def _dataset(self) -> Any:
        """The user's `tf.data.Dataset`; it fails where it would end early."""
        import tensorflow as tf

        def fail() -> Iterator[Any]:
            try:
                yield self._x.ended()
            except Exception as cause:
                self._raised.append(cause)
                raise

        given, length = self._x.source, len(self._x)
        known = int(given.cardinality())
        if known == length:
            return given
        if known > length or known == tf.data.INFINITE_CARDINALITY:
            return given.take(length).prefetch(tf.data.AUTOTUNE)
        behind = tf.data.Dataset.from_generator(fail, output_signature=given.element_spec)
        whole = given.take(length).concatenate(behind).take(length)
        return whole.prefetch(tf.data.AUTOTUNE)

    def _fed(self, batch: Batch, seed: int, number: int) -> tuple[Any, ...]:
        x: Any = batch.x if len(batch.x) > 1 else batch.x[0]
        if self._augment is not None:
            x = self._augment(x, np.random.default_rng((seed, number)))
        return (x, batch.y) if batch.w is None else (x, batch.y, batch.w)

    def _rows(self, order: Order | None) -> Iterator[Batch]:
        x: tuple[Any, ...] = as_tuple(self._x)
        size = self._batch_size
        row_bytes = max(1, sum(array[:1].nbytes for array in x))
        if order is None:
            order = np.arange(len(x[0]))
        elif any(isinstance(array, OnDisk) for array in x):
            block = max(array.block for array in x if isinstance(array, OnDisk))
            order = shuffled(order, block, row_bytes, _PIECE_BYTES)
        step = size * max(1, _PIECE_BYTES // (row_bytes * size))
        pieces = [order[begin : begin + step] for begin in range(0, len(order), step)]
        for read in _ahead([functools.partial(self._read, piece) for piece in pieces], 1, 1):
            for begin in range(0, len(read.x[0]), size):
                yield _cut(read, slice(begin, begin + size))

    def _read(self, rows: Order) -> Batch:
        y = tuple(array[rows] for array in as_tuple(self._y))
        return Batch(
            tuple(array[rows] for array in as_tuple(self._x)),
            y if isinstance(self._y, tuple) else y[0],
            None if self._w is None else self._w[rows],
        )


def _cut(batch: Batch, rows: slice) -> Batch:
    y: Any = batch.y
    y = tuple(array[rows] for array in y) if isinstance(y, tuple) else y[rows]
    return Batch(tuple(x[rows] for x in batch.x), y, None if batch.w is None else batch.w[rows])


def _ahead(calls: Sequence[Callable[[], Batch]], workers: int, ahead: int) -> Iterator[Batch]:
    """Yield what calls return, in their order; threads make some of them ahead."""
    with ThreadPoolExecutor(workers, thread_name_prefix="batches") as threads:
        coming: deque[Future[Batch]] = deque()
        for call in calls:
            coming.append(threads.submit(call))
            if len(coming) > ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
