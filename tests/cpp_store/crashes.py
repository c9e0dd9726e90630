"""Random histories on a real server that dies all the time, against a model of what it said.

    python -m tests.cpp_store.crashes --faults 5000 --seed 1

runs as many faults as asked for and prints what was found as JSON; exit code 1 if anything was
lost, wrong or leaked. In the manner of RocksDB's crash tests: clients put, read, match and retire
at random while the server is killed (kill -9 from outside at a random moment; at a failpoint, if it
was built with CPP_STORE_FAILPOINTS) or its disk fails; then a server is started on the same
directory, and what it has is compared with what was acknowledged. A failing seed repeats the
choices, though not the moments of kills from outside.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import cpp_store
from cpp_store import _core

from . import servers

LAG = 0.15  # seconds
MEMORY = 4 << 20  # so little that tensors leave it all the time
# Where a server built for it can die or fail, and at which visit at most.
FAILPOINTS = {
    "file.create": 6,
    "file.write": 6,
    "file.write.done": 6,
    "file.sync": 6,
    "file.sync.done": 6,
    "directory.sync": 6,
    "directory.sync.done": 6,
    "file.remove": 3,
    "file.remove.done": 3,
    "file.open": 6,
    "file.read": 10,
    "file.map": 6,
    "catalogue.write": 30,
    "catalogue.write.done": 30,
    "catalogue.sync": 20,
    "catalogue.sync.done": 20,
    "transfer.done": 6,
    "*": 200,
}
ERRORS = ("enospc", "eio", "emfile", "short")

Layers = dict[str, str]  # of a model: layer -> the model that put its tensors
State = dict[str, Layers]  # the models of one client


class Violation(AssertionError):
    """The store did not keep what it promised."""


@dataclass
class Found:
    """What many histories found, together."""

    faults_injected: int = 0
    acknowledged: int = 0
    acknowledged_lost: int = 0
    wrong_bytes: int = 0
    leaks: int = 0
    violations: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Count another history's findings, too."""
        self.faults_injected += other.faults_injected
        self.acknowledged += other.acknowledged
        self.acknowledged_lost += other.acknowledged_lost
        self.wrong_bytes += other.wrong_bytes
        self.leaks += other.leaks
        self.violations += other.violations


def server_program() -> tuple[str, bool]:
    """Return the server to test, and whether it has failpoints."""
    built = [
        Path(__file__).resolve().parents[2] / "build" / preset / "cpp_store" / "cpp-store-server"
        for preset in ("release", "failpoints")
    ]
    for program in (*built, servers.PROGRAM):
        if program.exists():
            said = subprocess.run([program, "--version"], capture_output=True, text=True)
            if "failpoints" in said.stdout:
                return str(program), True
    return str(servers.PROGRAM), False


def owners_of(layers: Layers) -> Layers:
    """Return who put each layer; with replicas, the store says as of which version, too."""
    return {layer: owner.partition("@")[0] for layer, owner in layers.items()}


def content(owner: str, layer: str) -> list[np.ndarray[Any, Any]]:
    """Return the tensors of a layer, which follow from who put it."""
    seed = zlib.crc32(f"{owner}/{layer}".encode())
    made = np.random.default_rng(seed)
    size = int(made.choice([3, 200, 5_000, 60_000, 300_000], p=[0.2, 0.3, 0.3, 0.15, 0.05]))
    return [made.integers(0, 256, size, dtype=np.uint8), made.random(int(made.integers(0, 4)))]


class Client:
    """One client's history, its model, and what it does not know."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.random = random.Random(f"{seed}/{name}")
        self.state: State = {}
        self.past: list[tuple[float, State]] = [(0.0, {})]  # after each acknowledgement
        # If a call happened that was cut off, or failed; until a later one is acknowledged.
        self.uncertain: list[State] = []
        self.count = 0
        self.acknowledged = 0
        self.errors = 0  # calls that failed because the disk did

    def run(self, store: cpp_store.Store, calls: int) -> None:
        """Make calls until the server is gone."""
        for _ in range(calls):
            try:
                self.call(store)
            except cpp_store.ConnectionError:
                return
            except cpp_store.StorageError:
                self.errors += 1
                self.check_unchanged(store)

    def check_unchanged(self, store: cpp_store.Store) -> None:
        """After a call that failed because the disk did."""
        with contextlib.suppress(cpp_store.ConnectionError):
            if set(store.list(self.name)) != set(self.state):
                raise Violation("a call that failed has changed something")

    def call(self, store: cpp_store.Store) -> None:
        """Make one call, and note what it says."""
        kind = self.random.random()
        if kind < 0.5 or not self.state:
            self.put(store)
        elif kind < 0.7:
            model = self.random.choice(list(self.state))
            after = {each: layers for each, layers in self.state.items() if each != model}
            self.uncertain.append(after)
            store.retire(model)
            self.acknowledge(after)
        else:
            self.check_model(store, self.random.choice(list(self.state)))

    def put(self, store: cpp_store.Store) -> None:
        """Put a model, half of them on top of the best match."""
        self.count += 1
        model = f"{self.name}.{self.count}"
        base = self.random.choice(list(self.state.values())) if self.state else {}
        shared = list(base)[: self.random.randint(0, len(base))]
        names = [*shared, *(f"{model}.{i}" for i in range(self.random.randint(1, 3)))]
        table = cpp_store.LayerTable(names, [[i - 1] if i else [] for i in range(len(names))])
        match = store.best_match(table, namespace=self.name) if shared else None
        owners = owners_of(match.owners) if match else {}
        if match and match.model not in self.state:
            raise Violation(f"{model} matches {match.model}, which was retired")
        layers = {name: owners.get(name, model) for name in names}
        after = self.state | {model: layers}
        self.uncertain.append(after)
        try:
            store.put(
                model,
                {name: content(model, name) for name in names if name not in owners},
                table=table,
                inherited=dict.fromkeys(owners, match) if match else {},
                namespace=self.name,
                score=self.random.random(),
            )
        finally:
            if match:
                match.close()
        self.acknowledge(after)

    def acknowledge(self, after: State) -> None:
        """Note that a change has happened."""
        self.state = after
        self.past.append((time.monotonic(), after))
        self.acknowledged += 1
        self.uncertain = []

    def check_model(self, store: cpp_store.Store, model: str) -> None:
        """Compare all tensors of a model with what was put."""
        found = store.read(model)
        if list(found) != list(self.state[model]):
            raise Violation(f"{model} has the layers {list(found)}")
        for layer, owner in self.state[model].items():
            for mine, theirs in zip(content(owner, layer), found[layer], strict=True):
                if not np.array_equal(mine, theirs):
                    raise Violation(f"wrong bytes in layer {layer} of {model}")

    def check_all(self, store: cpp_store.Store, sync: bool) -> int:
        """After a restart: find out where the history stands. Returns how many calls were lost."""
        found = {model: owners_of(store.lookup(model).owners) for model in store.list(self.name)}
        possible = [self.state]
        if not sync:
            last = self.past[-1][0]
            bound = 0
            for place, (when, _) in enumerate(self.past):
                if when < last - LAG:
                    bound = place
            possible = [state for _, state in self.past[bound:]]
        possible += self.uncertain
        self.uncertain = []
        lost = 0
        if found not in possible:
            gone = sorted(set(self.state) - set(found))
            risen = sorted(set(found) - set(self.state))
            lost = max(1, len(gone) + len(risen))
        self.state = found
        self.past = [(0.0, found)]
        for model in self.random.sample(list(found), min(len(found), 25)):
            self.check_model(store, model)
        return lost


class History:
    """A directory, and the servers that live and die on it."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.directory = directory
        self.sync = self.random.random() < 0.6
        # Of several lazy clients nobody could say which calls come last.
        clients = self.random.randint(1, 3) if self.sync else 1
        self.clients = [Client(f"client{i}", seed) for i in range(clients)]
        self.program, self.has_failpoints = server_program()

    def run(self, faults: int) -> Found:
        """Go through so many faults."""
        found = Found()
        try:
            while found.faults_injected < faults:
                self.round(found)
            self.check_directory(found)
        except Violation as violation:
            found.wrong_bytes += "wrong bytes" in str(violation)
            found.violations.append(f"seed {self.seed}: {violation}")
        except (cpp_store.StoreError, RuntimeError) as error:
            found.violations.append(f"seed {self.seed}: {type(error).__name__}: {error}")
        found.acknowledged = sum(client.acknowledged for client in self.clients)
        if found.violations or found.acknowledged_lost:
            print(f"failing seed: {self.seed} ({self.directory})", file=sys.stderr, flush=True)
        return found

    def round(self, found: Found) -> None:
        """One life of a server: look at what it has, use it, end it."""
        failpoint = self.choose_failpoint()
        with self.server(failpoint) as (process, address):
            if address is None:  # it died, or said that the disk is broken, as it started
                found.faults_injected += 1
                return
            same_host = self.random.random() < 0.7
            try:
                with cpp_store.connect(address, timeout=20, same_host=same_host) as store:
                    for client in self.clients:
                        lost = client.check_all(store, self.sync)
                        if lost:
                            found.acknowledged_lost += lost
                            found.violations.append(
                                f"seed {self.seed}: {lost} acknowledged calls of {client.name} "
                                f"are lost ({'sync' if self.sync else 'lazy'})"
                            )
                    self.use(store, process)
            except cpp_store.ConnectionError:
                pass  # died as it was asked for what it has
            except cpp_store.StorageError:
                found.faults_injected += 1  # a read that failed by design
            for client in self.clients:
                found.faults_injected += client.errors
                client.errors = 0
            if process.poll() is None and self.random.random() < 0.1:
                process.terminate()  # a clean end is no fault
                process.wait(timeout=30)
                self.check_directory(found)
                return
            process.kill()
            process.wait(timeout=30)
            found.faults_injected += 1

    def use(self, store: cpp_store.Store, process: subprocess.Popen[str]) -> None:
        """Let all clients make calls until the server is killed, or they have had enough."""
        calls = self.random.randint(5, 40)
        killer = threading.Timer(self.random.uniform(0.0, 0.25), process.kill)
        if self.random.random() < 0.7:
            killer.start()
        with ThreadPoolExecutor(len(self.clients)) as threads:
            running = [threads.submit(client.run, store, calls) for client in self.clients]
            for each in running:
                each.result()
        killer.cancel()

    def choose_failpoint(self) -> str:
        """Return what to arm; empty: nothing, it is killed from outside."""
        if not self.has_failpoints or self.random.random() < 0.3:
            return ""
        name, most = self.random.choice(list(FAILPOINTS.items()))
        is_call = not name.endswith(".done")
        action = self.random.choice(ERRORS) if is_call and self.random.random() < 0.3 else "kill"
        return f"{name}:{self.random.randint(1, most)}:{action}"

    @contextmanager
    def server(self, failpoint: str) -> Iterator[tuple[subprocess.Popen[str], str | None]]:
        """Start a server; the address is None if it could not start, which a failpoint may do."""
        arguments = [self.program, "--data_dir", str(self.directory), "--memory", str(MEMORY)]
        arguments += ["--durability", "sync" if self.sync else "lazy", "--lag", str(LAG)]
        environment = {**os.environ, "CPP_STORE_FAILPOINTS": failpoint}
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                arguments, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            try:
                assert process.stdout is not None
                address = process.stdout.readline().strip() or None
                if address is None:
                    code = process.wait(timeout=30)
                    errors.seek(0)
                    said = errors.read()
                    if not failpoint or code not in (-9, 2):
                        raise Violation(f"the server does not start: {code}, {said!r}")
                yield process, address
            finally:
                process.kill()
                process.wait(timeout=30)
                process.stdout.close()

    def check_directory(self, found: Found) -> None:
        """Of a server that ended cleanly: no damage, nothing that nobody needs."""
        with cpp_store.embedded(memory=MEMORY, data_dir=self.directory):
            pass  # what a crash left behind goes when the directory is opened
        report = _core.check_directory(str(self.directory), False)
        if report["damage"]:
            raise Violation(f"damage: {report['damage']}")
        found.leaks += len(report["leaks"])
        if report["leaks"]:
            raise Violation(f"leaks: {report['leaks']}")


def run(faults: int, seed: int, workers: int = 4) -> Found:
    """Run histories of 25 faults each, side by side."""
    each = 25
    seeds = range(seed, seed + -(-faults // each))

    def one(number: int) -> Found:
        directory = Path(tempfile.mkdtemp(prefix="cpp_store_crashes_"))
        found = History(number, directory / "data").run(min(each, faults))
        if not found.violations:
            shutil.rmtree(directory)
        return found

    together = Found()
    with ThreadPoolExecutor(workers) as threads:
        for found in threads.map(one, seeds):
            together.add(found)
    return together


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as many faults as asked for, and say what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    found = run(given.faults, given.seed)
    print(json.dumps(found.__dict__, indent=2))
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
