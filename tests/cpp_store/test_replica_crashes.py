"""Two servers that keep both replicas on disk lose nothing, though both die (`replica_crashes`)."""

import os

import pytest

from . import replica_crashes

pytestmark = pytest.mark.long


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_though_both_servers_die() -> None:
    faults = int(os.environ.get("CRASH_FAULTS", "20"))
    seed = int(os.environ.get("CRASH_SEED", "1"))
    found = replica_crashes.run(faults, seed)
    assert found.violations == []
    assert (found.acknowledged_lost, found.wrong_bytes, found.leaks) == (0, 0, 0)
    assert found.faults_injected >= faults
    assert found.acknowledged > faults
