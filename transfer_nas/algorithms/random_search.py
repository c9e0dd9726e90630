"""Random search: the baseline that every search must beat."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cpp_store.ranges import COUNT

from transfer_nas.algorithms._base import Algorithm, Draws, draw_seed
from transfer_nas.errors import InputError
from transfer_nas.job import Evaluation, Job
from transfer_nas.schema import check, setting

if TYPE_CHECKING:
    from transfer_nas.spaces import Space


class RandomSearch(Algorithm):
    """Every job is an architecture that its space draws at random.

    Bergstra and Bengio, *Random search for hyper-parameter optimization*, JMLR 13 (2012). The
    first jobs are those of `AgingEvolution` with the same seed.

    Parameters
    ----------
    space
            Where architectures come from.
    population_size
        Models of that many jobs remain to transfer from: the newest that worked.
    seed
        Seed of the whole search.
    """

    name = "random"

    @dataclass(frozen=True)
    class Settings:
        """What users can choose."""

        population_size: int = setting(
            32, "models kept to transfer from", metavar="P", numbers=COUNT
        )

        def __post_init__(self) -> None:
            check(self)

    def __init__(self, space: Space, population_size: int, seed: int) -> None:
        super().__init__(space, seed)
        if population_size < 1:
            raise InputError(f"population size must be at least 1, not {population_size}")
        self._keep = population_size
        self._kept: deque[int] = deque()

    def _new_job(self, id: int, draws: Draws) -> Job:
        seed = draw_seed(draws)
        return Job(id, self.space.sample(draws), None, seed)

    def _learn(self, evaluation: Evaluation) -> list[int]:
        self._kept.append(evaluation.job.id)
        return [self._kept.popleft()] if len(self._kept) > self._keep else []
