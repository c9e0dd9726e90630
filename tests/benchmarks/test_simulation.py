"""The simulated search: laws that it must obey."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import simulation

FREE = simulation.Costs(
    group=0, result=0, job=0, send=0, receive=0, latency=0, oversleep=1e-5, retire=0
)
COSTS = simulation.Costs(
    group=1e-4, result=2e-4, job=1e-4, send=5e-5, receive=5e-5, latency=2e-5, oversleep=6e-5,
    retire=1e-4, request=3e-5, match=1e-4, read=2e-4, put=4e-4,
)  # fmt: skip


@pytest.mark.parametrize("workers", [1, 3, 40])
def test_a_manager_that_costs_nothing_keeps_everybody_busy(workers: int) -> None:
    outcome = simulation.simulate(workers, 50 * workers, FREE, lambda job: 0.1)
    assert outcome.rate == pytest.approx(10 * workers, rel=0.02)
    assert outcome.manager_busy == 0 and outcome.waiting < 0.02


def test_the_manager_limits_the_rate_of_many_workers() -> None:
    outcome = simulation.simulate(500, 5_000, COSTS, lambda job: 0.01)
    # Arriving together, results share the cost of a commit, and of messages.
    assert 1 / COSTS.manager <= outcome.rate <= 1 / (COSTS.result + COSTS.job + COSTS.retire)
    assert outcome.manager_busy > 0.98 and outcome.waiting > 0.5


def test_the_store_takes_its_time() -> None:
    without = simulation.simulate(1, 50, COSTS, lambda job: 0.05)
    with_store = simulation.simulate(1, 50, COSTS, lambda job: 0.05, workers_per_server=1)
    extra = COSTS.request + COSTS.match + COSTS.read + COSTS.put
    assert with_store.seconds / without.seconds == pytest.approx(1 + extra / 0.05, rel=0.002)


def test_equal_seeds_give_equal_searches() -> None:
    first, second = (
        simulation.simulate(16, 300, COSTS, lambda job: 0.01 + job % 7 / 100, workers_per_server=4)
        for _ in range(2)
    )
    assert first == second
