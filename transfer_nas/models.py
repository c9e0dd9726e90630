"""The stored models of one search, as its evaluations see them: by job, with patience."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from graph_meta import LayerGraph
from transfer_nas.errors import TransferUnavailable
from transfer_nas.transfer import Inheritance, Tensors, TransferMethod

T = TypeVar("T")

_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds


class Models:
    """Puts, finds and retires the models of a search in some place.

    Where nothing answers, the place is left alone for a while: a second at first, twice as long
    each time, a minute at most. Meanwhile nothing is found there and nothing is put; what is to be
    retired is retired afterwards.

    Every method may be called from several threads at once.

    Parameters
    ----------
    method
        The place; it stays the caller's.
    run
        Distinguishes the models of this search from those of others in the same place: the model
        of job 7 is called ``run/7``; without `run`, ``7``.
    clock
        Seconds.

    Raises
    ------
    TransferError
        Of all methods but `id_of`: this call failed; the next may work.
    TransferUnavailable
        Nothing answers; the place is left alone from now on, for `pause` seconds.
    """

    def __init__(
        self,
        method: TransferMethod,
        run: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._method = method
        self._run = run
        self._clock = clock
        self._lock = threading.Lock()  # guards what follows
        self._pause = 0.0
        self._until = 0.0
        self._late: set[str] = set()  # to be retired

    @property
    def pause(self) -> float:
        """For how many seconds the place is left alone after it did not answer; 0: it did."""
        return self._pause

    def id_of(self, job: int) -> str:
        """Return what the model of a job is called."""
        return f"{self._run}/{job}" if self._run else str(job)

    def best_match(self, graph: LayerGraph, only: str = "") -> Inheritance | None:
        """See `TransferMethod.best_match`."""
        return self._ask(lambda: self._method.best_match(graph, only), None)

    def read(self, inheritance: Inheritance) -> Tensors:
        """See `Inheritance.read`; nothing while the place is left alone."""
        return self._ask(inheritance.read, {})

    def whole(self, job: int) -> tuple[LayerGraph, Tensors] | None:
        """See `TransferMethod.whole`."""
        return self._ask(lambda: self._method.whole(self.id_of(job)), None)

    def put(
        self,
        job: int,
        graph: LayerGraph,
        tensors: Tensors,
        *,
        score: float,
        parent: int | None = None,
        inheritance: Inheritance | None = None,
        inherited: Collection[str] = (),
    ) -> int:
        """See `TransferMethod.put`."""
        return self._ask(
            lambda: self._method.put(
                self.id_of(job),
                graph,
                tensors,
                score=score,
                parent="" if parent is None else self.id_of(parent),
                inheritance=inheritance,
                inherited=inherited,
            ),
            0,
        )

    def retire(self, jobs: Iterable[int]) -> None:
        """See `TransferMethod.retire`."""
        models = {self.id_of(job) for job in jobs}
        with self._lock:
            self._late |= models
        if models:
            self._ask(lambda: None, None)

    def _ask(self, call: Callable[[], T], otherwise: T) -> T:
        with self._lock:
            if self._clock() < self._until:
                return otherwise
            late, self._late = self._late, set()
        try:
            if late:
                self._method.retire(sorted(late))
                late = set()
            answer = call()
        except TransferUnavailable:
            with self._lock:
                self._late |= late
                self._pause = min(2 * self._pause or _PAUSE, _LONGEST_PAUSE)
                self._until = self._clock() + self._pause
            raise
        if self._pause:
            with self._lock:
                self._pause = 0.0
        return answer
