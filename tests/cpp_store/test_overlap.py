"""Calls as futures and for asyncio, on every kind of store."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest
from cpp_store._overlap import THREADS

import cpp_store
from cpp_store import AsyncStore, LayerTable, NotFound, Store


def weights(value: float, count: int = 1_000) -> dict[str, list[np.ndarray]]:
    return {"a": [np.full(count, value, "float32")]}


class Gate:
    """A tensor that a put waits for: its bytes are given only when the gate is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        self.entered.set()
        assert self.opened.wait(60)
        return np.zeros(3, "float32")


def block_all_threads(store: Store) -> tuple[list[Gate], Callable[[], None]]:
    """Let every thread of the store be in a put until the returned function is called."""
    gates = [Gate() for _ in range(THREADS)]
    puts = [store.submit.put(f"gate-{i}", {"a": [gate]}) for i, gate in enumerate(gates)]  # type: ignore[list-item]
    for gate in gates:
        assert gate.entered.wait(60)

    def release() -> None:
        for gate in gates:
            gate.opened.set()
        wait(puts)

    return gates, release


def test_futures_give_what_calls_return(store: Store) -> None:
    puts = [store.submit.put(f"m{i}", weights(i)) for i in range(20)]
    assert [put.result() for put in puts] == [4_000] * 20
    reads = [store.submit.read(f"m{i}", ["a"], copy=True) for i in range(20)]
    for i, read in enumerate(reads):
        assert (read.result()["a"][0] == i).all()
    into = np.zeros(1_000, "float32")
    assert store.submit.read_into("m7", {"a": [into]}).result() == 4_000
    assert (into == 7).all()
    assert store.submit.contains("m7").result()
    assert len(store.submit.list().result()) == 20
    assert store.submit.lookup("m3").result().model == "m3"
    wait([store.submit.retire(f"m{i}") for i in range(20)])
    assert store.submit.stats().result()["models"] == 0
    with pytest.raises(NotFound, match="there is no model 'm3'"):
        store.submit.read("m3").result()


def test_calls_overlap(store: Store) -> None:
    """All threads are within a put at once; a call in this one goes ahead meanwhile."""
    _, release = block_all_threads(store)
    store.put("m", weights(1))
    assert store.list() == ["m"]
    release()
    assert len(store) == THREADS + 1


def test_a_call_that_has_not_begun_can_be_cancelled(store: Store) -> None:
    gates, release = block_all_threads(store)
    waiting = store.submit.put("m", weights(1))
    assert waiting.cancel()
    release()
    with pytest.raises(CancelledError):
        waiting.result()
    assert "m" not in store
    assert len(gates) == len(store)


def test_closing_cancels_what_has_not_begun_and_waits_for_the_rest(store: Store) -> None:
    before = set(threading.enumerate())
    gate = Gate()
    running = store.submit.put("running", {"a": [gate]})  # type: ignore[list-item]
    assert gate.entered.wait(60)
    closing = threading.Thread(target=store.close)
    closing.start()
    gate.opened.set()
    closing.join()
    assert running.done()
    with pytest.raises(cpp_store.StoreError, match="the store is closed"):
        store.submit.list()
    assert set(threading.enumerate()) <= before


def test_a_callback_may_close_the_store() -> None:
    store = cpp_store.embedded(memory="1MiB")
    closed = threading.Event()

    def close(_: object) -> None:
        store.close()
        closed.set()

    store.submit.list().add_done_callback(close)
    assert closed.wait(60)


def test_awaits_what_calls_return(store: Store) -> None:
    table = LayerTable(["a"])

    async def work() -> None:
        async with AsyncStore(store) as asynchronous:
            await asyncio.gather(
                *(asynchronous.put(f"m{i}", weights(i), table=table, score=i) for i in range(20))
            )
            found = await asyncio.gather(*(asynchronous.read(f"m{i}") for i in range(20)))
            assert [tensors["a"][0][0] for tensors in found] == list(range(20))
            match = await asynchronous.best_match(table)
            assert match
            async with match:
                assert match.model == "m19"
                await asynchronous.retire("m19")
                assert (await asynchronous.read_match(match))["a"][0][0] == 19
            assert (await asynchronous.stats())["leases"] == 0
            assert await asynchronous.contains("m18")
            with pytest.raises(NotFound):
                await asynchronous.lookup("m19")
        with pytest.raises(cpp_store.StoreError, match="closed"):
            await asynchronous.list()

    asyncio.run(work())


def test_the_event_loop_never_waits_for_a_call(store: Store) -> None:
    async def work() -> None:
        asynchronous = AsyncStore(store)
        gate = Gate()
        put = asyncio.create_task(asynchronous.put("m", {"a": [gate]}))  # type: ignore[list-item]
        await asyncio.to_thread(gate.entered.wait, 60)
        assert await asynchronous.list() == []
        gate.opened.set()
        assert await put == 12

    asyncio.run(work())


def test_a_cancelled_task_leaves_no_lease(store: Store) -> None:
    table = LayerTable(["a"])
    store.put("m", weights(1), table=table)

    async def work() -> None:
        asynchronous = AsyncStore(store)
        for _ in range(50):
            task = asyncio.create_task(asynchronous.best_match(table))
            await asyncio.sleep(0)  # it is submitted
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(work())
    # What was cancelled before it began never happens; what had begun ends its lease in turn.
    leases = (store.submit.stats().result()["leases"] for _ in range(1_000))
    assert 0 in leases
