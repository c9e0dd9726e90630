"""Aging evolution against a straightforward oracle; what all algorithms do: test_algorithms.py."""

import math
from collections import Counter

import numpy as np
import pytest

from transfer_nas.algorithms.evolution import AgingEvolution, _rank_ends
from transfer_nas.errors import InputError
from transfer_nas.job import DONE, Evaluation, Job
from transfer_nas.spaces import FeedForward

SPACE = FeedForward([(4,)], 2, max_depth=3)


def objective(job: Job) -> float:
    """A deterministic landscape: wide layers are good."""
    return sum(job.architecture) + job.id % 7 / 10


def evaluate(job: Job) -> Evaluation:
    if job.id % 5 == 3:
        return Evaluation.failure(job, "unlucky")
    return Evaluation(job, DONE, objective(job))


def search(population: int = 6, sample: int = 3, seed: int = 7) -> AgingEvolution:
    return AgingEvolution(SPACE, population, sample, seed)


def differences(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


def test_population_is_the_last_members_that_worked() -> None:
    evolution = search()
    worked: list[int] = []
    for _ in range(60):
        (job,) = evolution.ask()
        evaluation = evaluate(job)
        retired = evolution.tell(evaluation)
        if evaluation.done:
            worked.append(job.id)
            assert retired == ([worked[-7]] if len(worked) > 6 else [])
        else:
            assert retired == []
        assert [member.job.id for member in evolution.population] == worked[-6:]


def test_jobs_are_random_first_and_then_mutations_of_a_good_member() -> None:
    evolution = search(population=8, sample=8)
    for number in range(40):
        population = evolution.population
        (job,) = evolution.ask()
        assert job.id == number
        SPACE.check(job.architecture)
        if number < 8:
            assert job.parent is None
        else:
            # All members compete, so the parent is the best one.
            best = max(population, key=lambda e: (e.objective, e.job.id))
            assert job.parent == best.job.id
            assert differences(job.architecture, best.job.architecture) == 1
        evolution.tell(evaluate(job))


def test_a_tournament_prefers_good_members_but_not_always_the_best() -> None:
    evolution = search(population=20, sample=2, seed=1)
    for job in evolution.ask(20):
        evolution.tell(Evaluation(job, DONE, float(job.id)))
    parents = Counter(job.parent for job in evolution.ask(4000))
    expected = [2 * rank / (20 * 19) for rank in range(20)]  # the better of two distinct members
    observed = [parents[rank] / 4000 for rank in range(20)]
    np.testing.assert_allclose(observed, expected, atol=0.02)
    assert parents[0] == 0


@pytest.mark.parametrize(("count", "sample"), [(1, 1), (5, 1), (5, 5), (7, 3), (60, 15)])
def test_the_distribution_of_the_winners_rank(count: int, sample: int) -> None:
    expected = [
        1 - math.comb(count - 1 - rank, sample) / math.comb(count, sample) for rank in range(count)
    ]
    ends = _rank_ends(count, sample)
    np.testing.assert_allclose(ends, expected[: len(ends)], rtol=1e-12)
    assert ends[-1] == 1 and expected[len(ends) - 1 :] == [1] * sample


def test_ties_go_to_the_newer_member() -> None:
    evolution = search(population=4, sample=4)
    for job in evolution.ask(4):
        evolution.tell(Evaluation(job, DONE, 0.5))
    assert {job.parent for job in evolution.ask(5)} == {3}


def test_stays_random_while_every_candidate_fails() -> None:
    evolution = search(population=2, sample=1)
    for _ in range(10):
        (job,) = evolution.ask()
        assert job.parent is None
        evolution.tell(Evaluation.failure(job, "always"))
    assert evolution.population == ()


def test_nan_never_enters_the_population() -> None:
    evolution = search()
    (job,) = evolution.ask()
    evolution.tell(Evaluation(job, DONE, math.nan))
    assert evolution.population == ()


@pytest.mark.parametrize(
    ("population", "sample", "seed", "message"),
    [
        (0, 1, 0, "population size must be at least 1, not 0"),
        (4, 0, 0, "sample size must be between 1 and the population size"),
        (4, 5, 0, "sample size must be between 1 and the population size"),
        (4, 2, -1, "seed must not be negative"),
    ],
)
def test_refuses_sizes_that_make_no_sense(
    population: int, sample: int, seed: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        AgingEvolution(SPACE, population, sample, seed)
