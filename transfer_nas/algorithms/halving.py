"""Asynchronous successive halving: many candidates for few epochs, few for many."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from transfer_nas.algorithms._base import Algorithm, Draws, draw_seed
from transfer_nas.errors import InputError
from transfer_nas.job import Evaluation, Job

if TYPE_CHECKING:
    from transfer_nas.spaces import Space

REDUCTION = 3


class SuccessiveHalving(Algorithm):
    """Asynchronous successive halving of epochs (ASHA).

    Random architectures train for few epochs. Whenever one is among the best third of those that
    have trained as long as it did, it is promoted: it goes on to three times the epochs. If nothing
    can be promoted, a new random one begins; nobody ever waits.

    Li et al., *A system for massively parallel hyperparameter tuning*, MLSys 2020, algorithm 2,
    with reduction factor `REDUCTION` and without an early-stopping offset.

    A promoted candidate is a job of its own: the parent is the job it continues, the architecture
    the same, `Job.epochs` what it will have trained in all and `Job.trained` what the parent has.
    If its weights can be transferred it goes on from them (the optimizer begins anew), otherwise it
    trains all epochs. When it has worked, its parent's model is no longer needed.

    Parameters
    ----------
    space
        Where architectures come from.
    epochs
        Epochs of the longest training; the shorter ones have a third of it (rounded down), a ninth
        and so on, at least one.
    seed
        Seed of the whole search.
    """

    name = "halving"

    @classmethod
    def create(cls, space: Space, seed: int, settings: Any, epochs: int) -> Self:
        """Make one whose longest training has all epochs."""
        del settings
        return cls(space, epochs, seed)

    def __init__(self, space: Space, epochs: int, seed: int) -> None:
        super().__init__(space, seed)
        if epochs < 1:
            raise InputError(f"epochs must be at least 1, not {epochs}")
        self._rungs = [_Rung(epochs)]
        while self._rungs[0].epochs >= REDUCTION:
            self._rungs.insert(0, _Rung(self._rungs[0].epochs // REDUCTION))
        self._rung_of = {rung.epochs: number for number, rung in enumerate(self._rungs)}

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs that candidates have trained at each rung, ascending."""
        return tuple(rung.epochs for rung in self._rungs)

    @property
    def exhausted(self) -> bool:
        """Never: an architecture that was asked goes on to more epochs."""
        return False

    def _new_job(self, id: int, draws: Draws) -> Job:
        seed = draw_seed(draws)
        for number in reversed(range(len(self._rungs) - 1)):
            rung = self._rungs[number]
            best = rung.promote()
            if best is not None:
                epochs = self._rungs[number + 1].epochs
                return Job(id, best.architecture, best.id, seed, epochs, trained=rung.epochs)
        return Job(id, self.space.sample(draws), None, seed, self._rungs[0].epochs)

    def _learn(self, evaluation: Evaluation) -> list[int]:
        job = evaluation.job
        if job.epochs not in self._rung_of:
            raise ValueError(f"job {job.id}: no rung has {job.epochs} epochs")
        self._rungs[self._rung_of[job.epochs]].add(evaluation)
        return [] if job.parent is None else [job.parent]

    def _was_asked(self, job: Job) -> None:
        if job.parent is not None:
            self._rungs[self._rung_of[job.trained]].promoted.add(job.parent)


@dataclass
class _Rung:
    """Candidates that have trained for the same number of epochs.

    Attributes
    ----------
    epochs
        That number.
    ranking
        Minus objective, id and job of all that worked, best first; ties go to the older.
    waiting
        Those of them that have not been promoted.
    promoted
        Ids of those that have.
    """

    epochs: int
    ranking: list[tuple[float, int, Job]] = field(default_factory=list)
    waiting: list[tuple[float, int, Job]] = field(default_factory=list)
    promoted: set[int] = field(default_factory=set)

    def add(self, evaluation: Evaluation) -> None:
        """Take one more."""
        entry = (-evaluation.objective, evaluation.job.id, evaluation.job)
        insort(self.ranking, entry)
        if evaluation.job.id not in self.promoted:
            insort(self.waiting, entry)

    def promote(self) -> Job | None:
        """Return the best that has not been promoted, if it is among the best third of all."""
        if not self.waiting:
            return None
        if bisect_left(self.ranking, self.waiting[0]) >= len(self.ranking) // REDUCTION:
            return None
        job = self.waiting.pop(0)[2]
        self.promoted.add(job.id)
        return job
