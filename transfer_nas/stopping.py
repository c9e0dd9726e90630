"""Ends trainings that promise little, in a search by any algorithm: ``--stop asha``.

A stopper hears of each epoch beside the algorithm and compares a candidate with what the newest
others had come to after as many epochs: heirs with heirs and newcomers with newcomers, since who
inherits begins ahead. A stopped candidate is stored, judged and told as what it is after its last
epoch. That is a fair member of a population: it was behind others after as many epochs, and less
than it could have been counts against it alone.
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transfer_nas.errors import InputError, near_misses
from transfer_nas.job import Job

REDUCTION = 3
"""Of ASHA: one of so many goes on."""
_NEWEST = 100  # others to compare with at most: who came long ago says little of who comes now
_FEWEST = 5  # of them, or nobody is stopped


class _Group(NamedTuple):
    """Trainings that may be compared: after so many epochs, of heirs or of newcomers."""

    step: int
    is_heir: bool
    trained: int


class Stopper(ABC):
    """Says which trainings shall end. Not thread-safe: the manager owns it.

    Its memory is that of the process: a resumed search begins to compare anew.
    """

    def __init__(self) -> None:
        self._known: dict[_Group, deque[float]] = defaultdict(lambda: deque(maxlen=_NEWEST))
        self._own: dict[int, list[float]] = {}

    def report(self, job: Job, step: int, values: Mapping[str, float]) -> bool:
        """Take an epoch of a job; return whether it shall stop; see `Algorithm.report`.

        Without ``objective`` among the values nothing is stopped: there is nothing to go by.
        """
        objective = values.get("objective", math.nan)
        if math.isnan(objective):
            return False
        own = self._own.setdefault(job.id, [])
        own.append(objective)
        return self._stops(
            step, own, self._known[_Group(step, job.parent is not None, job.trained)]
        )

    def forget(self, job: int) -> None:
        """Take note that a job has ended."""
        self._own.pop(job, None)

    @abstractmethod
    def _stops(self, step: int, own: Sequence[float], known: deque[float]) -> bool:
        """Decide on a job by its objectives so far and what is known of others; add what it is."""


class Asha(Stopper):
    """Asynchronous successive halving, by stopping: after 1, 3, 9, … epochs the best third goes on.

    Li et al., *A system for massively parallel hyperparameter tuning*, MLSys 2020; the variant that
    stops instead of promoting, which needs no second job and no pause.
    """

    def _stops(self, step: int, own: Sequence[float], known: deque[float]) -> bool:
        while step % REDUCTION == 0:
            step //= REDUCTION
        if step != 1:
            return False
        better = sum(other > own[-1] for other in known)
        known.append(own[-1])
        return len(known) > _FEWEST and better >= len(known) / REDUCTION


class Median(Stopper):
    """Stops whose best so far is below the median of the others' means up to that epoch.

    Golovin et al., *Google Vizier*, KDD 2017, section 3.2.
    """

    def _stops(self, step: int, own: Sequence[float], known: deque[float]) -> bool:
        stops = len(known) >= _FEWEST and max(own) < statistics.median(known)
        known.append(statistics.fmean(own))
        return stops


_STOPPERS: Mapping[str, type[Stopper]] = {"asha": Asha, "median": Median}
STOPS = ("none", *_STOPPERS)


def stopper(name: str) -> Stopper | None:
    """Make the stopper of a name; None for ``none``."""
    if name not in STOPS:
        raise InputError(f"unknown --stop {name!r}; {near_misses(name, STOPS)}")
    return None if name == "none" else _STOPPERS[name]()
