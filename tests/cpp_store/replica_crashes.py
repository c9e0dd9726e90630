"""Random histories on two servers that keep both replicas on disk, and die all the time.

    python -m tests.cpp_store.replica_crashes --faults 500 --seed 1

As `crashes`, with one server or both killed in each round, and started again on what they have.
What was acknowledged must be there; what was retired must not come back; layers of retired models
must be there for their heirs, at each server alone; and when all is retired, nothing is left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cpp_store
from cpp_store import _core

from .crashes import LAG, Client, Found, Violation, server_program

MEMORY = 8 << 20
PATIENCE = 90.0  # seconds for what takes up to half of them
STANDSTILL = 35.0  # seconds after which servers that did nothing have nothing to do
# Where a server built for it dies, and at which visit at most.
FAILPOINTS = {
    "catalogue.sync.done": 20,
    "catalogue.write": 60,
    "log.write": 60,
    "file.sync": 60,
    "*": 300,
}


class Pair:
    """Two servers, each with a directory and an address of its own."""

    def __init__(self, root: Path, sync: bool) -> None:
        self.directories = [root / "first", root / "second"]
        self.addresses = ["ofi+tcp://127.0.0.1:0"] * 2
        self._durability = "sync" if sync else "lazy"
        self._program, self.has_failpoints = server_program()
        self._processes: list[subprocess.Popen[str] | None] = [None, None]

    def start(self, server: int, failpoint: str = "") -> None:
        """Start a server, unless it runs."""
        running = self._processes[server]
        if running is not None and running.poll() is None:
            return
        self.kill(server)
        arguments = [self._program, self.addresses[server], "--memory", str(MEMORY)]
        arguments += ["--data_dir", str(self.directories[server]), "--lag", str(LAG)]
        process = subprocess.Popen(
            [*arguments, "--durability", self._durability],
            env={**os.environ, "CPP_STORE_FAILPOINTS": failpoint},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._processes[server] = process
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if address:
            self.addresses[server] = address
        elif not failpoint or process.wait(timeout=30) != -9:
            raise Violation(f"server {server} does not start")

    def kill(self, server: int) -> None:
        """As kill -9 does."""
        process = self._processes[server]
        if process is None:
            return
        process.kill()
        process.wait(timeout=30)
        if process.stdout is not None:
            process.stdout.close()
        self._processes[server] = None

    def end(self, server: int) -> None:
        """Cleanly."""
        process = self._processes[server]
        assert process is not None
        process.terminate()
        if process.wait(timeout=30) != 0:
            raise Violation(f"server {server} ended with {process.returncode}")

    def connect(self) -> cpp_store.Store:
        """Return a client that knows nothing of what happened before."""
        return cpp_store.connect(self.addresses, replicas=2, timeout=10)


class History:
    """What one pair of servers goes through."""

    def __init__(self, seed: int, root: Path) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.sync = seed % 2 == 1
        # Of several lazy clients nobody could say which calls come last.
        clients = self.random.randint(1, 3) if self.sync else 1
        self.clients = [Client(f"client{i}", seed) for i in range(clients)]
        self.cut_off: set[str] = set()  # ids of puts that did not happen
        self.pair = Pair(root, self.sync)

    def run(self, faults: int) -> Found:
        """Go through at least so many faults."""
        found = Found()
        try:
            both = False
            while found.faults_injected < faults:
                both = self.round(found, both)
            self.look_at_each(found, both)
            self.retire_all()
            self.check_directories(found)
        except Violation as violation:
            found.wrong_bytes += "wrong bytes" in str(violation)
            found.violations.append(f"seed {self.seed}: {violation}")
        except (cpp_store.StoreError, subprocess.TimeoutExpired) as error:
            found.violations.append(f"seed {self.seed}: {type(error).__name__}: {error}")
        finally:
            for server in (0, 1):
                self.pair.kill(server)
        found.acknowledged = sum(client.acknowledged for client in self.clients)
        return found

    def round(self, found: Found, both_died: bool) -> bool:
        """Start who is dead, look, use and kill. Returns whether both died."""
        order = self.random.sample([0, 1], 2)
        for server in order:
            self.pair.start(server)
        with self.pair.connect() as store:
            self.check(store, found, both_died)
            victims = self.random.choice([[0], [1], [0, 1], [1, 0]])
            waits = [self.random.uniform(0.0, 0.3), self.random.uniform(0.0, 0.1)]
            calls = self.random.randint(10, 60)
            with ThreadPoolExecutor(len(self.clients)) as threads:
                running = [threads.submit(use, client, store, calls) for client in self.clients]
                for victim, wait in zip(victims, waits, strict=False):
                    threading.Event().wait(wait)
                    self.pair.kill(victim)
                for each in running:
                    each.result()
        for client in self.clients:
            for state in client.uncertain:
                self.cut_off.update(set(state) - set(client.state))
        if self.pair.has_failpoints and self.random.random() < 0.5:
            self.die_while_catching_up(victims[0])
            victims = [0, 1]
        found.faults_injected += len(victims)
        return len(victims) == 2

    def die_while_catching_up(self, server: int) -> None:
        """Start it so that it dies as it learns what it missed; then the other one."""
        name, most = self.random.choice(list(FAILPOINTS.items()))
        self.pair.start(server, f"{name}:{self.random.randint(1, most)}:kill")
        threading.Event().wait(self.random.uniform(0.1, 0.5))
        for each in (0, 1):
            self.pair.kill(each)

    def check(self, store: cpp_store.Store, found: Found, both_died: bool) -> None:
        """Compare what there is with what was acknowledged, once the servers agree."""
        until(lambda: self.numbers(store, "peers") == [1, 1], "the servers do not agree")
        if len(set(self.numbers(store, "models"))) != 1:
            raise Violation("the servers do not have the same models")
        for client in self.clients:
            before = set(client.state)
            # While one server lives, nothing is lost whatever the other one's lag was.
            lost = client.check_all(store, self.sync or not both_died)
            if lost:
                found.acknowledged_lost += lost
                raise Violation(
                    f"{lost} acknowledged calls of {client.name} are lost "
                    f"({'sync' if self.sync else 'lazy'}, both died: {both_died})"
                )
            self.cut_off.update(before - set(client.state))  # what lazy servers may lose

    def look_at_each(self, found: Found, both_died: bool) -> None:
        """All there is must be at each server."""
        for server in (0, 1):
            self.pair.start(server)
        with self.pair.connect() as store:
            self.check(store, found, both_died)
            needed = {
                (owner, layer)
                for client in self.clients
                for layers in client.state.values()
                for layer, owner in layers.items()
            }
            until(lambda: min(self.numbers(store, "layers")) >= len(needed), "layers are missing")
        for gone in (0, 1):
            self.pair.kill(gone)
            with self.pair.connect() as store:
                for client in self.clients:
                    if set(store.list(client.name)) != set(client.state):
                        raise Violation(f"server {1 - gone} alone has other models")
                    for model in client.state:
                        client.check_model(store, model)
            self.pair.start(gone)
            with self.pair.connect() as store:
                self.check(store, found, False)

    def retire_all(self) -> None:
        """Nobody needs anything any more, but what puts acquired that were cut off, for a while."""
        with self.pair.connect() as store:
            for client in self.clients:
                for model in client.state:
                    store.retire(model)
            most = len(self.cut_off)
            until(lambda: self.numbers(store, "models") == [0, 0], "models are left")
            until(lambda: max(self.numbers(store, "foreign_holders")) <= most, "holders are left")
            if most > 0:  # those may still be others, which end within a second or two
                wait_while_changing(lambda: self.numbers(store, "foreign_holders"))
            else:
                until(lambda: self.numbers(store, "layers") == [0, 0], "layers are left")

    def check_directories(self, found: Found) -> None:
        """Of servers that ended cleanly: no damage, nothing that nobody needs."""
        for server, directory in enumerate(self.pair.directories):
            self.pair.end(server)
            with contextlib.closing(sqlite3.connect(directory / "catalogue.sqlite")) as catalogue:
                rows = catalogue.execute("SELECT holder FROM holders").fetchall()
            if not {holder.rpartition("@")[0] for (holder,) in rows} <= self.cut_off:
                raise Violation(f"references are left: {rows}")
            report = _core.check_directory(str(directory), False)
            found.leaks += len(report["leaks"])
            if report["damage"] or report["leaks"]:
                raise Violation(f"{report['damage']} {report['leaks']}")

    @staticmethod
    def numbers(store: cpp_store.Store, name: str) -> list[int]:
        """Return a number of each server's."""
        return [server[name] for server in store.stats()["servers"].values()]


def use(client: Client, store: cpp_store.Store, calls: int) -> None:
    """Make calls until no server answers."""
    with contextlib.suppress(cpp_store.DeadlineExceeded):
        client.run(store, calls)


def until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for what servers do by themselves."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if condition():
                return
        except (cpp_store.ConnectionError, cpp_store.DeadlineExceeded):
            pass  # one of them is not ready
        if time.monotonic() > deadline:
            raise Violation(otherwise)
        time.sleep(0.05)


def wait_while_changing(numbers: Callable[[], list[int]]) -> None:
    """Wait until servers have had time for what they do every second, and did nothing."""
    seen, since = numbers(), time.monotonic()
    while max(seen) > 0 and time.monotonic() - since < STANDSTILL:
        time.sleep(0.1)
        if (now := numbers()) != seen:
            seen, since = now, time.monotonic()


def run(faults: int, seed: int, histories: int = 2) -> Found:
    """Run histories side by side, with so many faults together."""

    def one(number: int) -> Found:
        root = Path(tempfile.mkdtemp(prefix="cpp_store_replica_crashes_"))
        found = History(number, root).run(-(-faults // histories))
        if not found.violations:
            shutil.rmtree(root)
        return found

    together = Found()
    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(one, range(seed, seed + histories)):
            together.add(found)
    return together


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as many faults as asked for, and say what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--histories", type=int, default=2)
    given = parser.parse_args(arguments)
    found = run(given.faults, given.seed, given.histories)
    print(json.dumps(found.__dict__, indent=2))
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
