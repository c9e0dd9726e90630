"""What every search algorithm has in common: ask for jobs, tell results, take up a journal."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from transfer_nas.errors import InputError
from transfer_nas.job import Evaluation, Job

if TYPE_CHECKING:
    from transfer_nas.objectives import Objectives
    from transfer_nas.spaces import Space

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15  # the golden ratio, odd: every state comes once


class Draws:
    """The random numbers of one job: a function of the search's key and the job's id alone.

    SplitMix64 (Steele, Lea and Flood, *Fast splittable pseudorandom number generators*,
    OOPSLA'14), because it costs nothing to begin: a NumPy generator takes 20 microseconds to seed,
    for half a dozen numbers. It answers to `integers` and `uniform` as `numpy.random.Generator`
    does.
    """

    __slots__ = ("_state",)

    def __init__(self, key: int, job: int) -> None:
        # Mixed, so that the streams of neighbours are nowhere near each other.
        self._state = _mix(key ^ _mix(job + _GAMMA & _MASK))

    def integers(self, high: int, /) -> int:
        """Return an integer in [0, `high`); all are equally likely, to within high / 2**64."""
        return self._bits() * high >> 64

    def uniform(self) -> float:
        """Return a number in [0, 1), of 53 random bits."""
        return (self._bits() >> 11) * 2.0**-53

    def _bits(self) -> int:
        self._state = self._state + _GAMMA & _MASK
        return _mix(self._state)


Decision = Literal["continue", "stop"]
"""What becomes of a job that trains."""


class Algorithm(ABC):
    """Proposes jobs and learns from their evaluations; neither MPI nor files in it.

    Job j draws from a stream of its own (`Draws`), so there is no generator state to save: the
    jobs asked and the evaluations told, in order, are the whole state.

    A subclass sets `name` and implements `_new_job` and `_learn`; what users can choose of it are
    fields (`transfer_nas.schema.setting`) of its dataclass `Settings`, which its constructor takes
    as keywords. Not thread-safe: one manager owns it.

    Parameters
    ----------
    space
        Where architectures come from.
    seed
        Seed of the whole search.

    Attributes
    ----------
    objectives
        What the search is after if that is several things at once: then an algorithm may select by
        `Objectives.scores`. Set by who makes the search, before the first `ask`; None: by
        `Evaluation.objective`.
    useful_in_flight
        How many jobs may wait to be evaluated before asking for more makes the search worse,
        because they are asked without the results of the others; None: any number.
    """

    name: ClassVar[str]
    objectives: Objectives | None = None
    useful_in_flight: int | None = None

    @dataclass(frozen=True)
    class Settings:
        """What users can choose: nothing."""

    @classmethod
    def create(cls, space: Space, seed: int, settings: Any, epochs: int) -> Self:
        """Make one as a user chose it.

        Parameters
        ----------
        space, seed
            As for the constructor.
        settings
            Of this class's `Settings`.
        epochs
            Those of a whole training; for who decides on them.

        Raises
        ------
        InputError
            They do not go together with the space.
        """
        del epochs
        return cls(space, seed=seed, **vars(settings))

    def __init__(self, space: Space, seed: int) -> None:
        if seed < 0:
            raise InputError(f"seed must not be negative: {seed}")
        self.space = space
        self.seed = seed
        self._key = _key_of(seed)
        self._next_id = 0
        self._unfinished: dict[int, Job] = {}
        self._again: deque[int] = deque()  # asked before a restart, and never told

    @property
    def wants_reports(self) -> bool:
        """Whether anybody has to tell it of epochs: it has a `report` of its own."""
        return type(self).report is not Algorithm.report

    def report(self, job: Job, step: int, values: Mapping[str, float]) -> Decision:
        """Take what a job that is being trained has come to; say what becomes of it.

        Called in the manager's thread, between `ask` and `tell` of the job, if a subclass has one.
        A stop takes effect at the next epoch or the one after, or never if there is none: the job
        is judged, stored and told like any other, with its epochs as measure ``epochs``. When
        reports come depends on how quick everything is, and a restored search has none of those of
        the processes before: what depends on them is no part of `restore`.

        Parameters
        ----------
        job
            One that was asked and not told yet.
        step
            The epoch, from 1. After a restart it may be one that was reported before.
        values
            ``objective`` after this epoch, where that is known; the losses ``loss`` and
            ``val_loss``, the metric by its name; whatever a `fit` of the user's reports.
        """
        return "continue"

    @property
    def unfinished(self) -> tuple[int, ...]:
        """Ids of the jobs that were asked and not told yet, those to be asked again included."""
        return tuple(self._unfinished.keys() | self._again)

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to ask: the space holds one architecture, and it was asked."""
        return self.space.size == 1 and self._next_id > 0 and not self._again

    def ask(self, count: int = 1) -> list[Job]:
        """Return the next `count` jobs to evaluate; fewer if the search is `exhausted`."""
        jobs: list[Job] = []
        while len(jobs) < count and not self.exhausted:
            jobs.append(self._ask_one())
        return jobs

    def tell(self, evaluation: Evaluation) -> list[int]:
        """Take the result of a job; return the ids of the jobs whose models nobody needs any more.

        Raises
        ------
        ValueError
            The job was not asked, or was told before.
        """
        if self._unfinished.pop(evaluation.job.id, None) is None:
            raise ValueError(f"job {evaluation.job.id} is not waiting for a result")
        if not evaluation.done or math.isnan(evaluation.objective):
            return []
        return self._learn(evaluation)

    def restore(self, jobs: Iterable[Job], evaluations: Iterable[Evaluation]) -> list[int]:
        """Take up a search where another process left it.

        Jobs that were asked and not told are the first that `ask` returns, with their old ids. If
        one of them is not known any more, another takes its id.

        Parameters
        ----------
        jobs
            The jobs that were asked, in order.
        evaluations
            All evaluations that were told, in order.

        Returns
        -------
        list[int]
            Ids of all jobs whose models nobody needs any more.

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
            self._was_asked(job)
        told, dead = set[int](), list[int]()
        for evaluation in evaluations:
            dead += self.tell(evaluation)
            told.add(evaluation.job.id)
        open_ids = set(range(self._next_id)).difference(told)
        self._again.extend(sorted(open_ids))
        return dead

    def _ask_one(self) -> Job:
        if self._again:
            id = self._again.popleft()
            if id in self._unfinished:
                return self._unfinished[id]
        else:
            id = self._next_id
            self._next_id += 1
        job = self._unfinished[id] = self._new_job(id, Draws(self._key, id))
        return job

    @abstractmethod
    def _new_job(self, id: int, draws: Draws) -> Job:
        """Return job `id`; everything random in it comes from `draws`."""

    @abstractmethod
    def _learn(self, evaluation: Evaluation) -> list[int]:
        """Take an evaluation that worked; return whose models nobody needs any more."""

    def _was_asked(self, job: Job) -> None:
        """Take note of a job that another process was given by `_new_job`."""
        del job


def _key_of(seed: int) -> int:
    import numpy as np  # not for --help

    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])


def draw_seed(draws: Draws) -> int:
    """Return the seed of a job's evaluation."""
    return draws.integers(2**31)


def _mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31
