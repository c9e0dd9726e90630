"""A server that dies at any moment loses nothing that it acknowledged (see `crashes`)."""

import os

import pytest

from . import crashes

pytestmark = pytest.mark.long


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_and_nothing_is_wrong() -> None:
    faults = int(os.environ.get("CRASH_FAULTS", "200"))
    seed = int(os.environ.get("CRASH_SEED", "1"))
    found = crashes.run(faults, seed)
    assert found.violations == []
    assert (found.acknowledged_lost, found.wrong_bytes, found.leaks) == (0, 0, 0)
    assert found.faults_injected >= faults
    assert found.acknowledged > faults
