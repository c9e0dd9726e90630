"""What the applications on small tables share: a split that depends on nothing but the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from transfer_nas.applications._data import Data
from transfer_nas.applications._files import Matrix

Rows = npt.NDArray[np.int64]

_EVERY = 4  # one row of four validates


def every_fourth(targets: npt.NDArray[np.generic]) -> tuple[Rows, Rows]:
    """Return the numbers of the rows to train on and of those to judge by.

    In order of the target, and of the file where targets are equal, every fourth row is for
    validation: classes and values are spread alike over both parts, whatever the library's version.
    """
    by_target = np.argsort(targets.reshape(len(targets)), kind="stable")
    valid = np.sort(by_target[_EVERY - 1 :: _EVERY])
    return np.setdiff1d(np.arange(len(targets)), valid), valid


def split(features: Matrix, targets: npt.NDArray[np.generic]) -> Data:
    """Return rows split once and for all, scaled by what the training rows say.

    Features, and targets that are real numbers, have mean 0 and deviation 1 there.
    """
    train, valid = every_fourth(targets)
    x = _scaled(features, train)
    y = targets
    if np.issubdtype(targets.dtype, np.floating):
        y = _scaled(targets.reshape(-1, 1), train)
    return Data(x[train], y[train], x[valid], y[valid])


def _scaled(values: npt.NDArray[Any], train: Rows) -> Matrix:
    mean, deviation = values[train].mean(axis=0), values[train].std(axis=0)
    return np.asarray((values - mean) / np.where(deviation > 0, deviation, 1.0), np.float32)
