"""Which evaluation is the best: the one answer that search, report and files give.

The highest objective; of equals the first one told; never a failure, never NaN.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from transfer_nas.job import Evaluation


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
