"""A store of several replicas: servers that die, hang and return, while clients go on."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import numpy as np
import pytest

import cpp_store
from cpp_store import LayerTable, Store

from . import servers

PATIENCE = 60.0  # seconds for what takes up to half of them: references that end late
CONTENT = np.arange(5_000, dtype="int32")  # beyond what travels in messages


class Replicas:
    """Servers that can be killed and started again at their addresses.

    Each keeps its models in a directory of its own in `root`, if there is one.
    """

    def __init__(self, count: int, durability: str = "lazy", root: str = "") -> None:
        self._durability = durability
        self._root = root
        self.processes: list[subprocess.Popen[str]] = []
        self.addresses: list[str] = []
        for number in range(count):
            process, address = servers.start(*self._arguments(number))
            self.processes.append(process)
            self.addresses.append(address)

    def _arguments(self, server: int) -> list[str]:
        disk = ["--data_dir", f"{self._root}/{server}", "--durability", self._durability]
        return ["--memory", "64MiB", *(disk if self._root else [])]

    def kill(self, server: int) -> None:
        self.processes[server].kill()
        self.processes[server].communicate()

    def restart(self, server: int) -> None:
        self.processes[server], _ = servers.start(self.addresses[server], *self._arguments(server))

    def settle(self, replicas: int = 2) -> None:
        """Wait until all have compared what they keep."""
        others = len(self.processes) - 1
        # A connection that lost a server leaves it alone for a while.
        with cpp_store.connect(self.addresses, replicas=replicas) as store:
            until(lambda: numbers(store, "peers") == [others] * len(self.processes))

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@contextmanager
def durable(count: int) -> Iterator[Replicas]:
    """As `running`, each with a data directory."""
    with TemporaryDirectory() as root:
        made = Replicas(count, durability="sync", root=root)
        try:
            yield made
        finally:
            made.end()


@contextmanager
def running(count: int) -> Iterator[Replicas]:
    made = Replicas(count)
    try:
        yield made
    finally:
        made.end()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what servers do by themselves."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def put(store: Store, model: str, value: int = 0) -> None:
    store.put(model, {"a": [CONTENT + value], model: [CONTENT]}, score=float(value))


def put_heir(store: Store, model: str) -> None:
    """Put a model that inherits layer "a" of the best one."""
    with store.best_match(LayerTable(["a"])) or pytest.fail("no match") as match:
        store.put(model, {model: [CONTENT]}, table=LayerTable(["a", model]), inherited={"a": match})


def numbers(store: Store, name: str) -> list[int]:
    """Return a number of each server's, in their order."""
    found = store.stats()["servers"]
    return [found[address][name] for address in store.servers]


@pytest.mark.parametrize("same_host", [True, False], ids=["shm", "tcp"])
def test_reads_matches_and_puts_go_on_when_a_server_is_killed(same_host: bool) -> None:
    with (
        running(3) as group,
        cpp_store.connect(group.addresses, replicas=2, same_host=same_host) as store,
    ):
        for i in range(12):
            put(store, f"m{i}", i)
        put_heir(store, "heir")
        assert sum(numbers(store, "models")) == 26
        group.kill(1)
        assert all((store.read(f"m{i}")["a"][0] == CONTENT + i).all() for i in range(12))
        assert (store.read("heir")["a"][0] == CONTENT + 11).all()
        with store.best_match(LayerTable(["a"])) or pytest.fail("no match") as match:
            assert match.model == "m11"
            assert (store.read_match(match)["a"][0] == CONTENT + 11).all()
        assert store.absent == [group.addresses[1]]
        put(store, "later", 50)
        put_heir(store, "heir of later")
        store.retire("m3")
        assert "m3" not in store and store.lookup("later").score == 50
        assert set(store.list()) == {*(f"m{i}" for i in range(12) if i != 3), "heir", "later",
                                     "heir of later"}  # fmt: skip


def test_what_is_put_right_after_the_start_survives_a_kill() -> None:
    for victim in range(3):
        with running(3) as group, cpp_store.connect(group.addresses, replicas=2) as store:
            for i in range(6):
                put(store, f"m{i}", i)
            group.kill(victim)
            assert all((store.read(f"m{i}")["a"][0] == CONTENT + i).all() for i in range(6))


def test_a_server_that_returns_with_nothing_gets_everything_back() -> None:
    with running(2) as group, cpp_store.connect(group.addresses, replicas=2) as store:
        put(store, "ancestor", 7)
        put_heir(store, "heir")
        store.retire("ancestor")
        put(store, "other")
        group.kill(0)
        put(store, "missed", 3)
        store.retire("other")
        group.restart(0)
        until(lambda: numbers(store, "models") == [2, 2])  # heir, missed
        until(lambda: numbers(store, "layers")[0] == numbers(store, "layers")[1])
        group.kill(1)
        assert set(store.list()) == {"heir", "missed"}
        assert (store.read("heir")["a"][0] == CONTENT + 7).all()
        assert (store.read("missed")["a"][0] == CONTENT + 3).all()
        assert store.verify() == []
        for model in store.list():
            store.retire(model)
        group.restart(1)
        until(lambda: numbers(store, "layers") == [0, 0])


def test_one_that_was_away_does_not_bring_back_what_was_retired() -> None:
    with running(2) as group, cpp_store.connect(group.addresses, replicas=2, timeout=8) as store:
        put(store, "m")
        put(store, "n")
        servers.freeze(group.processes[0])
        store.retire("m")
        put(store, "new", 1)
        group.processes[0].send_signal(signal.SIGCONT)
        assert "n" in store and "new" in store
        until(lambda: numbers(store, "models") == [2, 2] and sorted(store.list()) == ["n", "new"])
        assert "m" not in store and sum(numbers(store, "degraded_puts")) == 1
        put(store, "m", 9)  # the id is free again
        assert store.lookup("m").score == 9


def test_references_end_with_the_last_heir_at_every_server() -> None:
    with running(3) as group, cpp_store.connect(group.addresses, replicas=2) as store:
        put(store, "ancestor", 1)
        match = store.best_match(LayerTable(["a"]))
        assert match
        store.retire("ancestor")
        with match:  # its lease is at all servers of the ancestor
            store.put("heir", {}, table=LayerTable(["a"]), inherited={"a": match})
        until(lambda: sum(numbers(store, "layers")) == 2)
        assert (store.read("heir")["a"][0] == CONTENT + 1).all()
        store.retire("heir")
        until(lambda: sum(numbers(store, "layers")) == 0)
        assert sum(numbers(store, "memory_used")) == 0


def test_one_full_server_refuses_a_put_at_all() -> None:
    with running(2) as group, cpp_store.connect(group.addresses, replicas=2) as store:
        with pytest.raises(cpp_store.OutOfMemory, match="limit"):
            store.put("large", {"a": [np.zeros(80 << 20, "int8")]})
        assert store.list() == []
        put(store, "small")
        assert numbers(store, "models") == [1, 1]


def test_all_clients_say_the_same_number(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(2) as group:
        with pytest.raises(cpp_store.InvalidArgument, match="3 replicas on 2 servers"):
            cpp_store.connect(group.addresses, replicas=3)
        monkeypatch.setenv("MODEL_REPLICAS", "two")
        with pytest.raises(cpp_store.InvalidArgument, match="MODEL_REPLICAS is 'two'"):
            cpp_store.connect(group.addresses)
        monkeypatch.setenv("MODEL_REPLICAS", "2")
        with cpp_store.connect(group.addresses) as store:
            assert store.replicas == 2
            put(store, "m")
            with pytest.raises(cpp_store.InvalidArgument, match="the same list"):
                cpp_store.connect(group.addresses, replicas=1)


def test_with_one_replica_a_dead_server_is_left_out_of_best_matches() -> None:
    with running(2) as group, cpp_store.connect(group.addresses) as store:
        for i in range(8):
            put(store, f"m{i}", i)
        group.kill(0)
        kept = [m for m in (f"m{i}" for i in range(8)) if is_kept(store, m)]
        assert 0 < len(kept) < 8
        with store.best_match(LayerTable(["a"])) or pytest.fail("no match") as match:
            assert match.model == kept[-1]
        assert store.absent == [group.addresses[0]]
        group.kill(1)
        with pytest.raises(cpp_store.ConnectionError):
            store.best_match(LayerTable(["a"]))


def is_kept(store: Store, model: str) -> bool:
    try:
        return model in store
    except cpp_store.ConnectionError:
        return False


def test_a_client_can_begin_while_a_server_is_away() -> None:
    with running(2) as group:
        with cpp_store.connect(group.addresses, replicas=2) as store:
            put(store, "m")
        group.kill(0)
        with cpp_store.connect(group.addresses, replicas=2) as store:
            assert "m" in store and store.absent == [group.addresses[0]]
        group.kill(1)
        with pytest.raises(cpp_store.ConnectionError, match="no server at"):
            cpp_store.connect(group.addresses, replicas=2)


def test_servers_end_cleanly_while_they_follow_each_other() -> None:
    with running(2) as group:
        with cpp_store.connect(group.addresses, replicas=2) as store:
            put(store, "m")
        for process in group.processes:
            code, errors = servers.finish(process)
            assert code == 0, errors
        assert all(process.poll() == 0 for process in group.processes)


def test_a_put_beside_a_dead_server_is_counted_and_repaired() -> None:
    with running(2) as group, cpp_store.connect(group.addresses, replicas=2) as store:
        put(store, "before")
        group.kill(0)
        put(store, "beside", 1)
        assert numbers(store, "degraded_puts") == [0, 1]
        group.restart(0)
        until(lambda: numbers(store, "models") == [2, 2])
        assert numbers(store, "repaired")[0] == 2
        group.kill(1)
        assert (store.read("beside")["a"][0] == CONTENT + 1).all()


def test_what_one_server_lacks_is_asked_of_the_other_and_never_denied() -> None:
    with running(2) as group, cpp_store.connect(group.addresses, replicas=2) as store:
        put(store, "m")
        group.kill(0)
        group.restart(0)  # with nothing: it answers all the same
        assert "m" in store and (store.read("m")["a"][0] == CONTENT).all()
        until(lambda: numbers(store, "models") == [1, 1])
        store.retire("m")
        group.kill(1)
        assert "m" not in store  # the other one knows that it was retired
        with pytest.raises(cpp_store.ConnectionError):  # and not whether this was put
            store.lookup("other")


def test_an_id_has_one_content_at_both_servers() -> None:
    with running(2) as group, cpp_store.connect(group.addresses, replicas=2) as store:
        put(store, "m", 1)
        put(store, "m", 1)
        with pytest.raises(cpp_store.AlreadyExists):
            put(store, "m", 2)
        assert numbers(store, "models") == [1, 1]
        assert (store.read("m")["a"][0] == CONTENT + 1).all()


def test_what_is_retired_beside_a_dead_server_leaves_no_references() -> None:
    """The server that returns hears of it, and ends what its heir referred to."""
    for victim in range(2):
        with (
            durable(2) as group,
            cpp_store.connect(group.addresses, replicas=2) as store,
        ):
            put(store, "ancestor")
            put_heir(store, "heir")
            group.kill(victim)
            store.retire("ancestor")
            store.retire("heir")
            group.restart(victim)
            until(lambda: numbers(store, "layers") == [0, 0])
            assert numbers(store, "foreign_holders") == [0, 0]
