"""Which evaluation is the best: the one answer that search, report and files give.

The highest objective; of equals the first one told; never a failure, never NaN. Of several
objectives there is no best one: the answer is their *front*, those evaluations than which no other
is as good in all objectives and better in one; of equals, again, the first one told.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from transfer_nas.job import Evaluation

if TYPE_CHECKING:
    from transfer_nas.objectives import Objectives


def ranking(objectives: ArrayLike) -> NDArray[np.int64]:
    """Return the positions of evaluations, told in this order, the best first.

    Parameters
    ----------
    objectives
        NaN of those that failed, which are left out.
    """
    values = np.asarray(objectives, dtype=np.float64)
    rows = np.flatnonzero(~np.isnan(values))
    return rows[np.argsort(-values[rows], kind="stable")]


def beats(evaluation: Evaluation, best: Evaluation | None) -> bool:
    """Return whether an evaluation is better than the best of all that were told before it."""
    if not evaluation.done or math.isnan(evaluation.objective):
        return False
    return best is None or evaluation.objective > best.objective


class Front:
    """The front of all evaluations that were told so far.

    Attributes
    ----------
    members
        The evaluations by job, in the order in which they were told.
    """

    def __init__(self, objectives: Objectives) -> None:
        self.objectives = objectives
        self.members: dict[int, Evaluation] = {}
        self._scores: dict[int, tuple[float, ...]] = {}
        self._worst: list[float] = []
        self._best: list[float] = []

    def add(self, evaluation: Evaluation) -> list[int] | None:
        """Take an evaluation; return the jobs it drives off the front, None if it is not on it."""
        scores = self.objectives.scores(evaluation)
        if not evaluation.done or not all(map(math.isfinite, scores)):
            return None
        self._worst = [*map(min, self._worst or scores, scores)]
        self._best = [*map(max, self._best or scores, scores)]
        if any(_as_good(each, scores) for each in self._scores.values()):
            return None
        beaten = [job for job, each in self._scores.items() if _as_good(scores, each)]
        for job in beaten:
            del self.members[job], self._scores[job]
        self.members[evaluation.job.id] = evaluation
        self._scores[evaluation.job.id] = scores
        return beaten

    @property
    def hypervolume(self) -> float | None:
        """The share of the space between the worst and the best of each objective that is beaten.

        In [0, 1], of scores (`Objectives`); None for more than three objectives. What is worst and
        best is of all evaluations told, so it compares moments of one search, not searches.
        """
        if not self._worst or len(self._worst) > 3:
            return None
        worst, reach = np.array(self._worst), np.subtract(self._best, self._worst)
        scaled = (np.array([*self._scores.values()]) - worst) / np.where(reach > 0, reach, 1)
        return hypervolume(scaled, np.zeros(len(worst)))


def _as_good(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a >= b for a, b in zip(one, other, strict=True))


def hypervolume(scores: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume that points dominate above a reference, exactly.

    Zitzler and Thiele, *Multiobjective evolutionary algorithms*, IEEE TEVC 3 (1999). By slices
    along the last axis: n log n for two objectives, n^2 log n for three.

    Parameters
    ----------
    scores
        More is better; shape (n, m), m one, two or three.
    reference
        What counts from; shape (m,).
    """
    points = np.maximum(np.asarray(scores, np.float64) - np.asarray(reference, np.float64), 0.0)
    if points.shape[1] > 3:
        raise ValueError(f"expected at most three objectives, found {points.shape[1]}")
    return _volume(points)


def _volume(points: NDArray[np.float64]) -> float:
    if len(points) == 0:
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    points = points[np.argsort(-points[:, -1], kind="stable")]
    heights = points[:, -1] - np.append(points[1:, -1], 0.0)
    if points.shape[1] == 2:  # what the slices reach is the greatest so far
        return float(np.maximum.accumulate(points[:, 0]) @ heights)
    areas = (_volume(points[: i + 1, :-1]) if height else 0.0 for i, height in enumerate(heights))
    return float(np.dot([*areas], heights))


def by_dominance(scores: ArrayLike) -> list[int]:
    """Return positions, the best first: by fronts, on each of them the loneliest first.

    NSGA-II's order: Deb et al., *A fast and elitist multiobjective genetic algorithm: NSGA-II*,
    IEEE TEVC 6 (2002), sections III.A and III.B. Of equals the last one comes first.

    Parameters
    ----------
    scores
        More is better, minus infinity for what is not known; shape (n, m).
    """
    values = np.asarray(scores, np.float64)
    as_good: NDArray[np.bool_] = np.all(values[:, None] >= values[None], axis=2)
    dominates = as_good & ~as_good.T
    left, order = np.ones(len(values), bool), list[int]()
    while left.any():
        front = np.flatnonzero(left & ~dominates[left].any(0))
        left[front] = False
        crowding = _crowding(values[front])
        order += front[np.lexsort((-front, -crowding))].tolist()
    return order


def _crowding(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the crowding distances on a front, infinite at its ends."""
    distance = np.zeros(len(values))
    values = np.maximum(values, -1e300)  # what is not known is far away
    for column in values.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        if ordered[0] == ordered[-1]:
            continue
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += (ordered[2:] - ordered[:-2]) / (ordered[-1] - ordered[0])
    return distance
