"""A tenth of the load that ``make soak`` runs."""

import math

import pytest

from . import load

pytestmark = pytest.mark.long


def test_eight_processes_see_no_error_while_servers_are_killed() -> None:
    found = load.run(operations=100_000, seconds=math.inf, processes=8, restart=6, seed=1)
    assert found["errors"] == [] and found["wrong"] == []
    assert found["restarts"] >= 2 and found["operations"] >= 100_000
