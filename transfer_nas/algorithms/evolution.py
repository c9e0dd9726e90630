"""Aging evolution."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right, insort
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cpp_store.ranges import COUNT, Range

from transfer_nas.algorithms._base import Algorithm, Draws, draw_seed
from transfer_nas.errors import InputError, SpaceError
from transfer_nas.job import Evaluation, Job
from transfer_nas.schema import check, setting

if TYPE_CHECKING:
    from transfer_nas.spaces import Space


class AgingEvolution(Algorithm):
    """Aging ("regularized") evolution, asynchronous.

    The first `population_size` jobs are random architectures. Each later job is a mutation of the
    best of `sample_size` distinct members drawn from the population; while no member is there yet,
    jobs stay random. Every evaluation that worked enters the population; when it is full, its
    oldest member dies, however good it is. Failures never enter.

    From Real et al., *Regularized evolution for image classifier architecture search*, AAAI'19,
    algorithm 1; asynchronous as in its section 3.

    The members are kept in the order of their objectives. A tournament then is one random number:
    the rank of its winner, whose distribution is known (`_rank_ends`). That is the same
    as drawing `sample_size` members and comparing them, at a cost that does not depend on it.

    With several `objectives` the order is NSGA-II's (`best.by_dominance`): by fronts of the
    population, on each of them those first that have no others near. It is made anew when a member
    came or went and a parent is wanted, so results may come in any order and number.

    Parameters
    ----------
    space
        Where architectures come from.
    population_size
        Number of members (P).
    sample_size
        Number of members that compete to be a parent (S), at most `population_size`.
    seed
        Seed of the whole search.
    beta
        How much a mutation prefers genes that leave most of the network as it is, so that more is
        transferred to the child: gene i is chosen with a probability proportional to
        ``exp(beta * kept_i)``, where ``kept_i`` is the mean share of layers that a change of it
        keeps (`locality.kept_shares`). 0: all genes alike; negative: the other way round. Any other
        needs a space of genes.
    """

    name = "evolution"

    @dataclass(frozen=True)
    class Settings:
        """What users can choose."""

        population_size: int = setting(32, "members of the population", metavar="P", numbers=COUNT)
        sample_size: int | None = setting(
            None,
            "members that compete to be a parent",
            otherwise="a quarter of the population",
            metavar="S",
            numbers=COUNT,
        )
        beta: float = setting(
            0.0,
            "prefer mutations that leave most of the network as it is: a gene is chosen in "
            "proportion to exp(beta * share of the layers that its change keeps); 0: all alike, "
            "about 3: many more layers transferred, negative: more exploration",
            numbers=Range(-1000, 1000, whole=False),
        )

        def __post_init__(self) -> None:
            check(self)
            if self.sample_size is None:
                object.__setattr__(self, "sample_size", max(1, self.population_size // 4))
            elif self.sample_size > self.population_size:
                raise InputError(
                    f"--sample_size {self.sample_size} is above --population_size "
                    f"{self.population_size}"
                )

    def __init__(
        self, space: Space, population_size: int, sample_size: int, seed: int, beta: float = 0.0
    ) -> None:
        super().__init__(space, seed)
        if population_size < 1:
            raise InputError(f"population size must be at least 1, not {population_size}")
        if not 1 <= sample_size <= population_size:
            raise InputError(
                f"sample size must be between 1 and the population size ({population_size}), "
                f"not {sample_size}"
            )
        self.population_size = self.useful_in_flight = population_size
        self.sample_size = sample_size
        self._gene_ends: list[float] | None = None
        if beta and space.size != 1:
            from transfer_nas.algorithms.locality import gene_weights

            self._gene_ends = gene_weights(space, beta).cumsum().tolist()
        self._members: deque[Evaluation] = deque()  # oldest first
        self._ranking: list[tuple[float, int, Job]] = []  # worst first
        self._ordered: list[Job] = []  # with several objectives: best first, empty until wanted
        self._rank_ends: list[float] = []
        self._ranked = 0  # number of members that `_rank_ends` is for

    @property
    def population(self) -> tuple[Evaluation, ...]:
        """The members, oldest first."""
        return tuple(self._members)

    def _new_job(self, id: int, draws: Draws) -> Job:
        seed = draw_seed(draws)
        if id < self.population_size or not self._members:
            return Job(id, self.space.sample(draws), None, seed)
        parent = self._tournament(draws)
        try:
            return Job(id, self._mutate(parent.architecture, draws), parent.id, seed)
        except SpaceError:  # the space has no mutation of it
            return Job(id, self.space.sample(draws), None, seed)

    def _learn(self, evaluation: Evaluation) -> list[int]:
        self._members.append(evaluation)
        if self.objectives is not None:
            self._ordered = []
            full = len(self._members) > self.population_size
            return [self._members.popleft().job.id] if full else []
        # Ties go to the newer member, as ties between matches do.
        insort(self._ranking, (evaluation.objective, evaluation.job.id, evaluation.job))
        if len(self._members) <= self.population_size:
            return []
        dead = self._members.popleft()
        del self._ranking[bisect_left(self._ranking, (dead.objective, dead.job.id))]
        return [dead.job.id]

    def _tournament(self, draws: Draws) -> Job:
        """Return the winner among members drawn without replacement."""
        count = len(self._members)
        if self._ranked != count:
            self._rank_ends = _rank_ends(count, min(self.sample_size, count))
            self._ranked = count
        rank = bisect_right(self._rank_ends, draws.uniform())
        if self.objectives is None:
            return self._ranking[-1 - rank][2]
        if not self._ordered:
            from transfer_nas.best import by_dominance  # NumPy is not for --help

            members = [*self._members]
            order = by_dominance([self.objectives.scores(member) for member in members])
            self._ordered = [members[position].job for position in order]
        return self._ordered[rank]

    def _mutate(self, architecture: Any, draws: Draws) -> Any:
        if self._gene_ends is None:
            return self.space.mutate(architecture, draws)
        position = bisect_left(self._gene_ends, (1.0 - draws.uniform()) * self._gene_ends[-1])
        space: Any = self.space  # of genes, or it would have no weights
        return space.mutate(architecture, draws, position)


def _rank_ends(count: int, sample: int) -> list[float]:
    """Return the probabilities that the best of `sample` out of `count` has at most a rank.

    All of the sample rank behind r with probability C(count - 1 - r, sample) / C(count, sample),
    which is the product of (count - i - sample) / (count - i) over i = 0 … r. Rank 0 is the best;
    the last probability is 1.
    """
    left = range(count, sample - 1, -1)
    behind = itertools.accumulate(((each - sample) / each for each in left), lambda p, q: p * q)
    return [1.0 - each for each in behind]
