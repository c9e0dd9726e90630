"""The stores that the conformance suite runs on."""

from collections.abc import Iterator

import pytest

import cpp_store

from . import servers


@pytest.fixture(params=["embedded", "server", "two servers"])
def store(request: pytest.FixtureRequest) -> Iterator[cpp_store.Store]:
    """Give an empty store of each kind, with room for 64 MiB (on each server)."""
    if request.param == "embedded":
        with cpp_store.embedded(memory="64MiB") as made:
            yield made
        return
    count = 1 if request.param == "server" else 2
    with (
        servers.running(count, "--memory", "64MiB") as addresses,
        cpp_store.connect(addresses) as made,
    ):
        yield made
