"""Many processes that put, read, match and retire, while servers are killed and started again.

``python -m tests.cpp_store.load`` is part of ``make soak``; `test_load.py` runs a little of it.
Prints what was done as JSON, and returns 1 if a client saw an error after it had tried again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import cpp_store
from cpp_store import AlreadyExists, LayerTable, NotFound, Store

from .test_replicas import Replicas

TRIES = 5
"""How often a call is made that finds no server."""


def main() -> int:
    """Run the load that the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m tests.cpp_store.load")
    parser.add_argument("--operations", type=int, default=1_000_000, help="of all processes")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--restart", type=float, default=30.0, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    found = run(given.operations, given.seconds, given.processes, given.restart, given.seed)
    print(json.dumps(found, indent=2))
    return 1 if found["errors"] or found["wrong"] else 0


def run(
    operations: int, seconds: float, processes: int, restart: float, seed: int
) -> dict[str, Any]:
    """Return how much was done, and what went wrong."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    group = Replicas(3)
    clients = []
    restarts = 0
    try:
        for number in range(processes):
            here, there = context.Pipe()
            client = context.Process(
                target=_be_client,
                args=(there, group.addresses, number, seed, operations // processes, seconds),
            )
            client.start()
            there.close()
            clients.append((client, here))
        begun = time.monotonic()
        while any(client.is_alive() for client, _ in clients):
            if time.monotonic() - begun > restart * (restarts + 1):
                group.settle()  # what has one copy goes with its server
                group.kill(restarts % 3)
                group.restart(restarts % 3)
                restarts += 1
            time.sleep(0.05)
        answers = [here.recv() for _, here in clients]
        with cpp_store.connect(group.addresses, replicas=2) as store:
            damaged = store.verify()
    finally:
        for client, _ in clients:
            client.kill()
            client.join()
        group.end()
    return {
        "operations": sum(answer["operations"] for answer in answers),
        "seconds": time.monotonic() - begun,
        "restarts": restarts,
        "retries": sum(answer["retries"] for answer in answers),
        "errors": [error for answer in answers for error in answer["errors"]],
        "wrong": [wrong for answer in answers for wrong in answer["wrong"]] + damaged,
    }


def _be_client(
    connection: Connection,
    addresses: list[str],
    number: int,
    seed: int,
    operations: int,
    seconds: float,
) -> None:
    with cpp_store.connect(addresses, replicas=2, same_host=number % 2 == 0) as store:
        client = Client(store, number, random.Random(seed * 1_000 + number))
        deadline = time.monotonic() + seconds
        while client.operations < operations and time.monotonic() < deadline:
            client.step()
        connection.send(
            {
                "operations": client.operations,
                "retries": client.retries,
                "errors": client.errors[:20],  # a pipe takes no more before somebody reads
                "wrong": client.wrong[:20],
            }
        )


class Client:
    """Puts models whose tensors say whose they are, and looks at what comes back."""

    def __init__(self, store: Store, number: int, rng: random.Random) -> None:
        self._store = store
        self._number = number
        self._rng = rng
        self._mine: list[str] = []
        self._made = 0
        self.operations = self.retries = 0
        self.errors: list[str] = []
        self.wrong: list[str] = []

    def step(self) -> None:
        """Do one thing, again if no server answers."""
        kind = self._rng.random()
        if len(self._mine) > 16:
            what = self._retire
        elif kind < 0.2 or not self._mine:
            what = self._put
            self._made += 1
        elif kind < 0.5:
            what = self._match
        else:
            what = self._read
        for tries in range(TRIES):
            self.operations += 1
            try:
                what(tries)
                return
            except (cpp_store.ConnectionError, cpp_store.DeadlineExceeded) as error:
                self.retries += 1
                last = error
                time.sleep(0.1 * (tries + 1))
            except cpp_store.StoreError as error:
                last = error
                break
        self.errors.append(f"{what.__name__}: {type(last).__name__}: {last}")

    def _value(self, model: str) -> int:
        return hash(tuple(model.encode())) % 2**31

    def _put(self, tries: int) -> None:
        model = f"{self._number}/{self._made}"
        size = (16, 1_000, 20_000)[self._made % 3]
        own = [np.full(size, self._value(model), "int32")]
        table = LayerTable(["trunk", model])
        inherits = self._made % 2 == 0
        try:
            if inherits and (match := self._store.best_match(table)):
                with match:
                    self._store.put(model, {model: own}, table=table, inherited={"trunk": match})
            else:
                trunk = [np.full(100, 7, "int32")]
                self._store.put(model, {"trunk": trunk, model: own}, table=table)
        except AlreadyExists:  # the first try was done, inheriting from another ancestor
            if tries == 0:
                raise
        except NotFound:  # the servers of the lease were killed, and the ancestor is retired
            if not inherits:
                raise
            self._store.put(model, {"trunk": [np.full(100, 7, "int32")], model: own}, table=table)
        self._mine.append(model)

    def _retire(self, tries: int) -> None:
        model = self._mine[0]
        try:
            self._store.retire(model)
        except NotFound:
            if tries == 0:
                raise
        self._mine.pop(0)

    def _match(self, tries: int) -> None:
        match = self._store.best_match(LayerTable(["trunk"]))
        if not match:
            return
        with match:
            try:
                [trunk] = self._store.read_match(match)["trunk"]
            except NotFound:  # the servers of its lease were killed, and it is retired
                return
            if not (trunk == 7).all():
                self.wrong.append(f"trunk of {match.model}")

    def _read(self, tries: int) -> None:
        model = self._rng.choice(self._mine)
        tensors = self._store.read(model)
        if not (tensors["trunk"][0] == 7).all():
            self.wrong.append(f"trunk of {model}")
        if not (tensors[model][0] == self._value(model)).all():
            self.wrong.append(model)


if __name__ == "__main__":
    sys.exit(main())
