"""The stores that the conformance suite runs on."""

from collections.abc import Iterator
from contextlib import suppress

import pytest

import cpp_store

from . import servers

MEMORY = "64MiB"
EMPTY = ("models", "retired", "layers", "leases", "foreign_holders", "memory_used")


class Pool:
    """Servers that tests use one after the other, since starting one costs half a second.

    A server is used again only if it is as empty as a new one; one that is not, because a test
    left a lease behind or broke it, is ended and replaced.
    """

    def __init__(self) -> None:
        self._idle: dict[int, list[servers.Group]] = {}

    def take(self, count: int) -> servers.Group:
        """Return `count` servers that make one empty store."""
        idle = self._idle.setdefault(count, [])
        return idle.pop() if idle else servers.Group(count, "--memory", MEMORY)

    def give_back(self, count: int, group: servers.Group) -> None:
        """Empty the servers and keep them, or end them."""
        with suppress(cpp_store.StoreError), cpp_store.connect(group.addresses) as store:
            for model in store.list():
                store.retire(model)
            if not any(store.stats()[name] for name in EMPTY):
                self._idle[count].append(group)
                return
        group.finish()

    def finish(self) -> None:
        """End all servers; each must end cleanly."""
        for groups in self._idle.values():
            for group in groups:
                group.finish()


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Give the servers of this run of tests."""
    made = Pool()
    yield made
    made.finish()


@pytest.fixture(
    params=["embedded", "server shm", "two servers shm", "server tcp", "two servers tcp"]
)
def store(request: pytest.FixtureRequest) -> Iterator[cpp_store.Store]:
    """Give an empty store of each kind, with room for 64 MiB (on each server)."""
    if request.param == "embedded":
        with cpp_store.embedded(memory=MEMORY) as made:
            yield made
        return
    pool: Pool = request.getfixturevalue("pool")
    count = 2 if "two" in request.param else 1
    group = pool.take(count)
    transport = request.param.split()[-1]
    with cpp_store.connect(group.addresses, same_host=transport == "shm") as made:
        assert made.transport.count("shm") == (count if transport == "shm" else 0)
        yield made
    pool.give_back(count, group)
