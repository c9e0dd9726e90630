"""Aging evolution, without any MPI in it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

from transfer_nas.errors import InputError
from transfer_nas.job import Evaluation, Job
from transfer_nas.spaces import Space


class AgingEvolution:
    """Aging ("regularized") evolution, asynchronous.

    The first `population_size` jobs are random genomes. Each later job is a mutation, in one gene,
    of the best of `sample_size` distinct members drawn from the population; while no member is
    there yet, jobs stay random. Every evaluation that worked enters the population; when it is
    full, its oldest member dies, however good it is. Failures never enter.

    Job j draws from ``SeedSequence(seed, spawn_key=(j,))`` alone, so there is no generator state to
    save: the jobs asked and the evaluations told, in order, are the whole state.

    From Real et al., *Regularized evolution for image classifier architecture search*, AAAI'19,
    algorithm 1; asynchronous as in its section 3.

    Not thread-safe: one manager owns it.

    Parameters
    ----------
    space
        Where genomes come from.
    population_size
        Number of members (P).
    sample_size
        Number of members that compete to be a parent (S), at most `population_size`.
    seed
        Seed of the whole search.
    """

    def __init__(self, space: Space, population_size: int, sample_size: int, seed: int) -> None:
        if population_size < 1:
            raise InputError(f"population size must be at least 1, not {population_size}")
        if not 1 <= sample_size <= population_size:
            raise InputError(
                f"sample size must be between 1 and the population size ({population_size}), "
                f"not {sample_size}"
            )
        if seed < 0:
            raise InputError(f"seed must not be negative: {seed}")
        self.space = space
        self.population_size = population_size
        self.sample_size = sample_size
        self.seed = seed
        self._next_id = 0
        self._members: list[Evaluation] = []  # a ring, once it is full
        self._oldest = 0  # where the ring starts
        self._unfinished: dict[int, Job] = {}
        self._again: deque[Job] = deque()  # asked before a restart, and never told

    @property
    def population(self) -> tuple[Evaluation, ...]:
        """The members, oldest first."""
        return (*self._members[self._oldest :], *self._members[: self._oldest])

    @property
    def unfinished(self) -> tuple[Job, ...]:
        """Jobs that were asked and not told yet, oldest first."""
        return tuple(self._unfinished.values())

    def ask(self, count: int = 1) -> list[Job]:
        """Return the next `count` jobs to evaluate."""
        return [self._ask_one() for _ in range(count)]

    def tell(self, evaluation: Evaluation) -> list[int]:
        """Take the result of a job; return the ids of the jobs whose members died of it.

        Raises
        ------
        ValueError
            The job was not asked, or was told before.
        """
        if self._unfinished.pop(evaluation.job.id, None) is None:
            raise ValueError(f"job {evaluation.job.id} is not waiting for a result")
        if not evaluation.done or math.isnan(evaluation.objective):
            return []
        if len(self._members) < self.population_size:
            self._members.append(evaluation)
            return []
        dead = self._members[self._oldest]
        self._members[self._oldest] = evaluation
        self._oldest = (self._oldest + 1) % self.population_size
        return [dead.job.id]

    def restore(self, jobs: Iterable[Job], evaluations: Iterable[Evaluation]) -> list[int]:
        """Take up a search where another process left it.

        Jobs that were asked and not told are the first that `ask` returns, with their old ids.

        Parameters
        ----------
        jobs
            All jobs that were asked, in order.
        evaluations
            All evaluations that were told, in order.

        Returns
        -------
        list[int]
            Ids of all jobs whose members died.

        Raises
        ------
        ValueError
            An evaluation's job is not among the jobs, or has two evaluations.
        """
        if self._next_id:
            raise ValueError("only a search that has not begun can be restored")
        for job in jobs:
            self._unfinished[job.id] = job
            self._next_id = max(self._next_id, job.id + 1)
        dead = [retired for evaluation in evaluations for retired in self.tell(evaluation)]
        self._again.extend(self._unfinished.values())
        return dead

    def _ask_one(self) -> Job:
        if self._again:
            return self._again.popleft()
        job = self._new_job(self._next_id)
        self._next_id += 1
        self._unfinished[job.id] = job
        return job

    def _new_job(self, id: int) -> Job:
        sequence = np.random.SeedSequence(self.seed, spawn_key=(id,))
        rng = np.random.Generator(np.random.PCG64(sequence))
        seed = int(rng.integers(2**31))
        if id < self.population_size or not self._members:
            return Job(id, self.space.sample(rng), None, seed)
        winner = self._tournament(rng)
        return Job(id, self.space.mutate(winner.job.genome, rng), winner.job.id, seed)

    def _tournament(self, rng: np.random.Generator) -> Evaluation:
        size = min(self.sample_size, len(self._members))
        drawn: list[int] = rng.choice(
            len(self._members), size, replace=False, shuffle=False
        ).tolist()
        # Ties go to the newer member, as ties between matches do.
        members = [self._members[i] for i in drawn]
        return max(members, key=lambda member: (member.objective, member.job.id))
