"""Calls that overlap with other work: as futures, and for asyncio."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from cpp_store._core import StoreError
from cpp_store._store import LeasedMatch, Store

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 8
"""How many calls of one store run at a time; more of them wait for their turn."""


class Threads:
    """The threads that a store's overlapping calls run in, started as they are needed."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._executor = ThreadPoolExecutor(
            THREADS, thread_name_prefix="cpp_store", initializer=self._mark
        )

    def _mark(self) -> None:
        self._own.is_ours = True

    def submit(self, call: Callable[[], T]) -> Future[T]:
        try:
            return self._executor.submit(call)
        except RuntimeError as error:  # shut down
            raise StoreError("the store is closed") from error

    def close(self) -> None:
        """Cancel what has not begun and wait for what has."""
        here = getattr(self._own, "is_ours", False)  # closed by a future's callback
        self._executor.shutdown(wait=not here, cancel_futures=True)


def _submitted(
    method: Callable[Concatenate[Store, P], T],
) -> Callable[Concatenate[Submitter, P], Future[T]]:
    @functools.wraps(method)
    def submit(self: Submitter, /, *arguments: P.args, **named: P.kwargs) -> Future[T]:
        self._store._open_handle()  # a fork has none of the threads
        return self._threads.submit(lambda: method(self._store, *arguments, **named))

    return submit


class Submitter:
    """A store's calls as futures: ``store.submit.read("m")`` of what ``store.read("m")`` returns.

    - **Overlap.** Up to `THREADS` calls run at a time, each waiting and copying without the GIL;
      further ones wait for their turn, in order. Two calls that were submitted one after the other
      may take effect in either order unless the first one's result was waited for.
    - **Ownership.** Arrays given to a put or a `read_into` must be left alone until it is done.
    - **Errors** that the call raises, ``Future.result()`` raises.
    - **Cancelling** a call that has not begun makes it never happen. One that has begun runs to its
      end; ``Future.cancel()`` returns False then.
    - **Closing** the store cancels the calls that have not begun, and waits for the others.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._threads = Threads()

    put = _submitted(Store.put)
    read = _submitted(Store.read)
    read_into = _submitted(Store.read_into)
    read_match = _submitted(Store.read_match)
    best_match = _submitted(Store.best_match)
    best_matches = _submitted(Store.best_matches)
    lookup = _submitted(Store.lookup)
    contains = _submitted(Store.__contains__)
    list = _submitted(Store.list)
    retire = _submitted(Store.retire)
    stats = _submitted(Store.stats)
    scrub = _submitted(Store.scrub)
    verify = _submitted(Store.verify)

    def close_match(self, match: LeasedMatch) -> Future[None]:
        """End a match's lease."""
        self._store._open_handle()
        return self._threads.submit(match.close)

    def close(self) -> None:
        """Cancel what has not begun and wait for what has. The store does it when it closes."""
        self._threads.close()


def _awaited(
    method: Callable[Concatenate[Submitter, P], Future[T]],
) -> Callable[Concatenate[AsyncStore, P], Coroutine[Any, Any, T]]:
    @functools.wraps(method)
    async def call(self: AsyncStore, /, *arguments: P.args, **named: P.kwargs) -> T:
        future = method(self.store.submit, *arguments, **named)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(self._end_leases)
            raise

    return call


class AsyncStore:
    """A store for asyncio: ``await store.read(...)``, with the arguments and results of `Store`.

    Calls run in the store's threads, as :class:`Submitter` says, and the event loop never waits for
    one. Cancelling a task that awaits a call makes a call that has not begun never happen; one that
    has begun runs to its end (a put may thus take effect), and the lease of a match that nobody
    receives any more is ended. :meth:`Store.allocate` is missing: arrays are filled in place by
    whoever calls ``store.store.allocate``.

    An asynchronous context manager that closes the store. Matches are asynchronous context
    managers, too: ``async with await store.best_match(...) as match``.

    Parameters
    ----------
    store
        What :func:`embedded` or :func:`connect` returned. It may be used directly all the while.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    put = _awaited(Submitter.put)
    read = _awaited(Submitter.read)
    read_into = _awaited(Submitter.read_into)
    read_match = _awaited(Submitter.read_match)
    best_match = _awaited(Submitter.best_match)
    best_matches = _awaited(Submitter.best_matches)
    close_match = _awaited(Submitter.close_match)
    lookup = _awaited(Submitter.lookup)
    contains = _awaited(Submitter.contains)
    list = _awaited(Submitter.list)
    retire = _awaited(Submitter.retire)
    stats = _awaited(Submitter.stats)
    scrub = _awaited(Submitter.scrub)
    verify = _awaited(Submitter.verify)

    async def close(self) -> None:
        """Close the store: calls that have not begun are cancelled, the others waited for."""
        await asyncio.to_thread(self.store.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _end_leases(self, future: Future[Any]) -> None:
        """End the leases in a result that nobody receives."""
        if future.cancelled() or future.exception() is not None:
            return
        found = future.result()
        for match in found if isinstance(found, list) else [found]:
            if isinstance(match, LeasedMatch):
                with suppress(StoreError):  # closed meanwhile; the lease expires
                    self.store.submit.close_match(match)
