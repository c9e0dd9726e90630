"""The stores that the conformance suite runs on."""

from collections.abc import Iterator

import pytest

import cpp_store


@pytest.fixture(params=["embedded"])
def store(request: pytest.FixtureRequest) -> Iterator[cpp_store.Store]:
    """Give an empty store of each kind, with room for 64 MiB."""
    with cpp_store.embedded(memory="64MiB") as made:
        yield made
