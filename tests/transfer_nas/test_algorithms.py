"""What every search algorithm must do, and what random search and successive halving do besides."""

from collections import Counter, deque
from collections.abc import Callable

import pytest

from transfer_nas.algorithms._base import Algorithm, Draws
from transfer_nas.algorithms.evolution import AgingEvolution
from transfer_nas.algorithms.halving import SuccessiveHalving
from transfer_nas.algorithms.random_search import RandomSearch
from transfer_nas.errors import InputError
from transfer_nas.evolve import parse
from transfer_nas.job import DONE, Evaluation, Job
from transfer_nas.searching.run import _algorithm
from transfer_nas.spaces import FeedForward

SPACE = FeedForward([(4,)], 2, max_depth=3)
MAKERS: dict[str, Callable[[int], Algorithm]] = {
    "evolution": lambda seed: AgingEvolution(SPACE, 6, 3, seed),
    "evolution with beta": lambda seed: AgingEvolution(SPACE, 6, 3, seed, beta=2.0),
    "random": lambda seed: RandomSearch(SPACE, 6, seed),
    "halving": lambda seed: SuccessiveHalving(SPACE, 20, seed),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[[int], Algorithm]:
    return MAKERS[request.param]


def evaluate(job: Job) -> Evaluation:
    """A deterministic landscape: wide layers are good, and some jobs fail."""
    if job.id % 5 == 3:
        return Evaluation.failure(job, "unlucky")
    return Evaluation(job, DONE, sum(job.architecture) + job.id % 7 / 10)


def run(algorithm: Algorithm, count: int) -> list[Job]:
    jobs = []
    for _ in range(count):
        jobs += algorithm.ask()
        algorithm.tell(evaluate(jobs[-1]))
    return jobs


def test_jobs_are_numbered_and_of_the_space(make: Callable[[int], Algorithm]) -> None:
    jobs = run(make(7), 60)
    assert [job.id for job in jobs] == list(range(60))
    for job in jobs:
        SPACE.check(job.architecture)
        assert 0 <= job.seed < 2**31
        assert job.parent is None or job.parent < job.id
    assert len({job.seed for job in jobs}) == 60


def test_same_seed_same_jobs_other_seed_other_jobs(make: Callable[[int], Algorithm]) -> None:
    assert run(make(3), 40) == run(make(3), 40)
    assert [job.architecture for job in run(make(3), 40)] != [
        job.architecture for job in run(make(4), 40)
    ]


def test_asking_for_many_is_asking_often(make: Callable[[int], Algorithm]) -> None:
    at_once, one_by_one = make(3), make(3)
    run(at_once, 30)
    run(one_by_one, 30)
    assert at_once.ask(10) == [job for _ in range(10) for job in one_by_one.ask()]


@pytest.mark.parametrize("cut", [0, 1, 5, 6, 23, 50])
def test_taking_up_a_search_is_as_if_it_had_never_stopped(
    make: Callable[[int], Algorithm], cut: int
) -> None:
    def go_on(algorithm: Algorithm, steps: int, jobs: list[Job], told: list[Evaluation]) -> None:
        waiting = [job for job in jobs if job.id not in {e.job.id for e in told}]
        for _ in range(steps):
            while len(waiting) < 3:  # three in flight, the newest first to be done
                asked = algorithm.ask()
                jobs += asked
                waiting += asked
            told.append(evaluate(waiting.pop()))
            algorithm.tell(told[-1])

    straight: tuple[list[Job], list[Evaluation]] = ([], [])
    go_on(make(7), 60, *straight)

    jobs: list[Job] = []
    told: list[Evaluation] = []
    go_on(make(7), cut, jobs, told)
    resumed = make(7)
    resumed.restore(jobs, told)
    unfinished = [job for job in jobs if job.id not in {e.job.id for e in told}]
    assert resumed.ask(len(unfinished)) == unfinished
    go_on(resumed, 60 - cut, jobs, told)

    assert jobs == straight[0]
    assert [(e.job, e.status) for e in told] == [(e.job, e.status) for e in straight[1]]


def test_a_job_that_is_not_known_any_more_is_replaced(make: Callable[[int], Algorithm]) -> None:
    algorithm = make(7)
    jobs = run(algorithm, 30)
    lost = {2, 17, 28}
    resumed = make(7)
    known = [job for job in jobs if job.id not in lost]
    resumed.restore(known, [evaluate(job) for job in known if job.id != 20])
    assert set(resumed.unfinished) == {2, 17, 20, 28}
    again = resumed.ask(5)
    assert [job.id for job in again] == [2, 17, 20, 28, 30]
    assert again[2] == jobs[20]
    for job in again:
        SPACE.check(job.architecture)
        resumed.tell(evaluate(job))
    assert resumed.unfinished == ()


def test_refuses_results_that_nobody_waits_for(make: Callable[[int], Algorithm]) -> None:
    algorithm = make(7)
    (job,) = algorithm.ask()
    algorithm.tell(evaluate(job))
    with pytest.raises(ValueError, match="job 0 is not waiting"):
        algorithm.tell(evaluate(job))
    with pytest.raises(ValueError, match="job 9 is not waiting"):
        algorithm.tell(Evaluation(Job(9, job.architecture), DONE, 1.0))
    with pytest.raises(ValueError, match="not begun"):
        algorithm.restore([], [])


def test_streams_of_neighbouring_jobs_are_independent_and_uniform() -> None:
    counts = Counter(Draws(5, job).integers(10) for job in range(20_000))
    assert all(abs(counts[value] - 2000) < 200 for value in range(10))  # 4.7 standard deviations
    pairs = Counter((Draws(5, j).integers(4), Draws(5, j + 1).integers(4)) for j in range(16_000))
    assert all(abs(pairs[a, b] - 1000) < 150 for a in range(4) for b in range(4))
    draws = Draws(5, 0)
    numbers = [draws.uniform() for _ in range(20_000)]
    assert 0 <= min(numbers) < 0.001 and 0.999 < max(numbers) < 1
    assert abs(sum(numbers) / 20_000 - 0.5) < 0.01


def test_random_search_keeps_the_newest_models() -> None:
    search, worked = RandomSearch(SPACE, 4, 7), deque[int]()
    for _ in range(40):
        (job,) = search.ask()
        assert job.parent is None and job.epochs is None
        evaluation = evaluate(job)
        dead = search.tell(evaluation)
        if evaluation.done:
            worked.append(job.id)
        assert dead == ([worked.popleft()] if len(worked) > 4 else [])


def test_random_search_begins_as_evolution_does() -> None:
    evolution = AgingEvolution(SPACE, 20, 3, seed=9)
    assert RandomSearch(SPACE, 6, seed=9).ask(20) == evolution.ask(20)


def test_halving_promotes_the_best_third_and_continues_it() -> None:
    search = SuccessiveHalving(SPACE, 20, seed=7)
    assert search.rungs == (2, 6, 20)
    found: dict[int, Evaluation] = {}
    promoted: set[int] = set()
    for _ in range(300):
        (job,) = search.ask()
        rungs = [
            [e for e in found.values() if e.job.epochs == epochs and e.done]
            for epochs in search.rungs
        ]
        expected = None  # algorithm 2 of the paper, by the letter
        for rung in (rungs[1], rungs[0]):
            rung.sort(key=lambda e: (-e.objective, e.job.id))
            best = [e for e in rung[: len(rung) // 3] if e.job.id not in promoted]
            if best:
                expected = best[0].job
                break
        if expected is None:
            assert (job.parent, job.epochs, job.trained) == (None, 2, 0)
        else:
            promoted.add(expected.id)
            assert (job.parent, job.architecture) == (expected.id, expected.architecture)
            at = search.rungs.index(expected.epochs or 0)
            assert (job.trained, job.epochs) == search.rungs[at : at + 2]
        evaluation = evaluate(job)
        dead = search.tell(evaluation)
        # Its parent's model is superseded.
        assert dead == ([job.parent] if job.parent is not None and evaluation.done else [])
        found[job.id] = evaluation
    spent = Counter(e.job.epochs for e in found.values())
    assert spent[2] > 2 * spent[6] > 4 * spent[20] > 0


def test_halving_of_a_single_epoch_is_random_search() -> None:
    search = SuccessiveHalving(SPACE, 1, seed=7)
    assert search.rungs == (1,)
    assert {(job.parent, job.epochs) for job in run(search, 30)} == {(None, 1)}


def test_the_command_line_chooses() -> None:
    def chosen(*flags: str) -> Algorithm:
        settings = parse(["--application", "digits", "--seed", "5", *flags])
        return _algorithm(settings, SPACE, 18)

    sizes = ["--population_size", "40", "--sample_size", "7"]
    evolution = chosen(*sizes, "--beta", "-1.5")
    assert isinstance(evolution, AgingEvolution) and evolution.seed == 5
    assert (evolution.population_size, evolution.sample_size) == (40, 7)
    same = AgingEvolution(SPACE, 40, 7, 5, beta=-1.5)
    other = AgingEvolution(SPACE, 40, 7, 5)
    assert run(evolution, 200) == run(same, 200) != run(other, 200)
    assert run(chosen("--search", "random"), 9) == run(RandomSearch(SPACE, 32, 5), 9)
    halving = chosen("--search", "halving")
    assert isinstance(halving, SuccessiveHalving) and halving.rungs == (2, 6, 18)


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(InputError, match="epochs must be at least 1, not 0"):
        SuccessiveHalving(SPACE, 0, 1)
    with pytest.raises(InputError, match="population size must be at least 1, not 0"):
        RandomSearch(SPACE, 0, 1)
    with pytest.raises(InputError, match="seed must not be negative"):
        RandomSearch(SPACE, 1, -1)
