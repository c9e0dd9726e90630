"""Random concurrent calls on a store, and what came back.

A *script* says for each of some callers what to ask, in order. Callers run at the same time, as
threads of one process or of several; every call is written down with the times around it.
"""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import cpp_store
from cpp_store import AlreadyExists, LayerTable, LeasedMatch, NotFound, Store

from .linearizability import UNKNOWN, Call, Content

CALLERS = 4
TRUNK = ("t0", "t1", "t2")
"""Layers that models of a script share, each requiring the one before."""


@dataclass(frozen=True)
class Script:
    """What each caller asks. Models and namespace are the script's own."""

    name: str
    asks: tuple[tuple[tuple[Any, ...], ...], ...]


def write(name: str, mix: str, rng: random.Random, asks_each: tuple[int, int] = (3, 7)) -> Script:
    """Make up a script.

    Parameters
    ----------
    name
        Prefix of its models, and their namespace.
    mix
        "models": few models, put, read and retired over and over, with different contents.
        "matches": many models, best matches and lists. "lineage": best matches whose layers are
        read and inherited under a lease, beside retirements. "descent": the same, but what the
        best match is is not part of the history.
    asks_each
        At least and at most as many for each caller.
    """
    made = iter(range(10**6))

    def put(model: str) -> tuple[Any, ...]:
        value = next(made)
        depth = rng.randint(1, len(TRUNK))
        size = rng.choice([4, 1_000, 30_000])
        return ("put", model, (*TRUNK[:depth], f"own-{model}"), value, size)

    def ask(caller: int) -> tuple[Any, ...]:
        kind = rng.random()
        if mix == "models":
            model = f"{name}/{rng.randrange(2)}"
            if kind < 0.35:
                return put(model)
            return (("read" if kind < 0.7 else "contains" if kind < 0.75 else "retire"), model)
        # An id that is used once, as that of a retired model with heirs stays taken.
        if kind < 0.3:
            known.append(f"{name}/{caller}-{next(made)}")
            return put(known[-1])
        model = rng.choice(known) if known else f"{name}/none"
        if kind < 0.45:
            return ("retire", model)
        if kind < 0.6:
            return ("read", model)
        if mix == "matches":
            return ("list",) if kind < 0.75 else ("match", TRUNK[: rng.randint(1, 3)])
        known.append(f"{name}/{caller}-{next(made)}")
        return ("derive" if mix == "lineage" else "descend", known[-1], next(made))

    known: list[str] = []
    asks = [tuple(ask(caller) for _ in range(rng.randint(*asks_each))) for caller in range(CALLERS)]
    return Script(name, tuple(asks))


def run_threads(
    connect: Callable[[], Store], scripts: Sequence[Script], callers: Sequence[int] = range(CALLERS)
) -> dict[str, list[Call]]:
    """Let threads of this process follow the scripts, script by script."""
    return _follow(connect(), scripts, callers, threading.Barrier(len(callers)))


def run_processes(
    addresses: Sequence[str],
    scripts: Sequence[Script],
    *,
    same_host: bool,
    processes: int = 2,
) -> dict[str, list[Call]]:
    """Let threads of several processes, each with a connection of its own, follow the scripts."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    barrier = context.Barrier(CALLERS)
    recorded: dict[str, list[Call]] = {script.name: [] for script in scripts}
    started = []
    for number in range(processes):
        here, there = context.Pipe()
        callers = range(number, CALLERS, processes)
        process = context.Process(
            target=_be_process,
            args=(there, list(addresses), same_host, scripts, callers, barrier),
        )
        process.start()
        there.close()
        started.append((process, here))
    try:
        for process, here in started:
            result = here.recv()
            if isinstance(result, BaseException):
                raise result
            for name, calls in result.items():
                recorded[name] += calls
            process.join(30)
            assert process.exitcode == 0
    finally:
        barrier.abort()
        for process, _ in started:
            process.kill()
            process.join()
    return recorded


def _be_process(
    connection: Connection,
    addresses: list[str],
    same_host: bool,
    scripts: Sequence[Script],
    callers: Sequence[int],
    barrier: Any,
) -> None:
    try:
        with cpp_store.connect(addresses, same_host=same_host) as store:
            connection.send(_follow(store, scripts, callers, barrier))
    except BaseException as error:
        connection.send(error)


def run_with_a_kill(
    addresses: Sequence[str], script: Script, after: int, *, same_host: bool
) -> list[Call]:
    """Let half of the callers be a process that is killed when so many of its calls have begun."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    here, there = context.Pipe()
    doomed, survivors = range(CALLERS // 2), range(CALLERS // 2, CALLERS)
    process = context.Process(
        target=_be_doomed, args=(there, list(addresses), same_host, script, doomed)
    )
    process.start()
    there.close()
    assert here.recv() == "connected"
    calls: dict[tuple[str, float], Call] = {}

    def watch() -> None:
        here.send("go")
        with suppress(EOFError):
            while True:
                call = here.recv()
                calls[call.who, call.begun] = call  # the second time with its result
                if len(calls) >= after:
                    process.kill()

    watcher = threading.Thread(target=watch)
    watcher.start()
    with cpp_store.connect(addresses, same_host=same_host) as store:
        recorded = _follow(store, [script], survivors, threading.Barrier(len(survivors)))
    watcher.join()
    process.join()
    return [*recorded[script.name], *calls.values()]


def _be_doomed(
    connection: Connection,
    addresses: list[str],
    same_host: bool,
    script: Script,
    callers: Sequence[int],
) -> None:
    with cpp_store.connect(addresses, same_host=same_host) as store:
        connection.send("connected")
        assert connection.recv() == "go"
        sending = threading.Lock()

        def say(call: Call) -> None:
            with sending:
                connection.send(call)

        threads = [
            threading.Thread(
                target=Doomed(store, f"d{caller}", script.name, say).follow,
                args=(script.asks[caller],),
            )
            for caller in callers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _follow(
    store: Store, scripts: Sequence[Script], callers: Sequence[int], barrier: Any
) -> dict[str, list[Call]]:
    recorded: dict[str, list[Call]] = {script.name: [] for script in scripts}
    failures: list[BaseException] = []

    def follow(caller: int) -> None:
        try:
            for script in scripts:
                barrier.wait(60)
                Caller(store, f"c{caller}", script.name, recorded[script.name]).follow(
                    script.asks[caller]
                )
        except threading.BrokenBarrierError:
            pass  # another caller failed
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=follow, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return recorded


class Caller:
    """Asks the store and writes down what came back."""

    def __init__(self, store: Store, who: str, namespace: str, recorded: list[Call]) -> None:
        self._store = store
        self._who = who
        self._namespace = namespace
        self._recorded = recorded

    def follow(self, asks: Sequence[tuple[Any, ...]]) -> None:
        for name, *arguments in asks:
            getattr(self, f"_{name}")(*arguments)

    def _record(
        self,
        what: tuple[Any, ...],
        ask: Callable[[], Hashable],
        finish: Callable[[Any], Hashable] = lambda result: result,
    ) -> Hashable:
        """Ask, and write down when; `finish` makes a result of the answer when the clock stands."""
        begun = time.monotonic_ns()
        answer = ask()
        ended = time.monotonic_ns()
        result = finish(answer)
        self._recorded.append(Call(self._who, what, result, begun, ended))
        return result

    def _put(self, model: str, layers: Sequence[str], value: int, size: int) -> None:
        said = tuple((layer, value) for layer in sorted(layers))
        tensors = {layer: [np.full(size, value, "int32")] for layer in layers}

        def ask() -> str:
            try:
                self._store.put(
                    model, tensors, table=chain(layers), namespace=self._namespace, score=value
                )
            except AlreadyExists:
                return "exists"
            return "stored"

        self._record(("put", model, said, float(value)), ask)

    def _read(self, model: str) -> None:
        def ask() -> Hashable:
            try:
                return content_of(self._store.read(model))
            except NotFound:
                return "missing"

        self._record(("read", model), ask)

    def _contains(self, model: str) -> None:
        self._record(("contains", model), lambda: model in self._store)

    def _retire(self, model: str) -> None:
        def ask() -> str:
            try:
                self._store.retire(model)
            except NotFound:
                return "missing"
            return "retired"

        self._record(("retire", model), ask)

    def _list(self) -> None:
        self._record(("list",), lambda: frozenset(self._store.list(self._namespace)))

    def _match(self, layers: Sequence[str]) -> None:
        self._record(("match", tuple(layers)), lambda: self._best_match(layers), self._look_at)

    def _derive(self, model: str, value: int) -> None:
        """Put a child of the best match, which stays readable however soon it is retired."""
        matches: list[LeasedMatch] = []

        def ask() -> None:
            matches.extend(filter(None, [self._best_match(TRUNK)]))

        def look(_: None) -> Hashable:
            return (matches[0].model, self._content(matches[0])) if matches else "nothing"

        self._record(("match", TRUNK), ask, look)
        for match in matches:
            self._put_child(model, value, match)

    def _descend(self, model: str, value: int) -> None:
        match = self._best_match(TRUNK)
        if match:
            self._put_child(model, value, match)

    def _put_child(self, model: str, value: int, match: LeasedMatch) -> None:
        with match:
            own = f"own-{model}"
            inherited = self._content(match)
            names = [name for name, _ in inherited]
            said = tuple(sorted([*inherited, (own, value)]))
            self._record(
                ("put", model, said, float(value)),
                lambda: self._store.put(
                    model,
                    {own: [np.full(100, value, "int32")]},
                    table=chain([*names, own]),
                    inherited=dict.fromkeys(names, match),
                    namespace=self._namespace,
                    score=value,
                ),
                lambda _: "stored",
            )

    def _best_match(self, layers: Sequence[str]) -> LeasedMatch:
        return self._store.best_match(chain(layers), namespace=self._namespace)

    def _look_at(self, match: LeasedMatch) -> Hashable:
        if not match:
            return "nothing"
        with match:
            return match.model, self._content(match)

    def _content(self, match: LeasedMatch) -> Content:
        """What the lease keeps, whatever happened since."""
        return content_of(self._store.read_match(match))


class Doomed(Caller):
    """Says what it is about to ask before it does, as it may not live to say what came back."""

    def __init__(self, store: Store, who: str, namespace: str, say: Callable[[Call], None]) -> None:
        super().__init__(store, who, namespace, [])
        self._say = say

    def _record(
        self,
        what: tuple[Any, ...],
        ask: Callable[[], Hashable],
        finish: Callable[[Any], Hashable] = lambda result: result,
    ) -> Hashable:
        begun = time.monotonic_ns()
        self._say(Call(self._who, what, UNKNOWN, begun))
        result = finish(ask())
        self._say(Call(self._who, what, result, begun, time.monotonic_ns()))
        return result


def chain(layers: Sequence[str]) -> LayerTable:
    """Layers that each require the one before."""
    return LayerTable(layers, [[i - 1] if i else [] for i in range(len(layers))])


def content_of(tensors: dict[str, list[np.ndarray]]) -> Content:
    """Layer names and the number that fills each one's tensors."""
    for name, [array] in tensors.items():
        assert (array == array[0]).all(), f"layer {name} is torn: {np.unique(array)}"
    return tuple(sorted((name, int(array[0])) for name, [array] in tensors.items()))
