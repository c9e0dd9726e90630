"""What the applications on small tables share: a split that depends on nothing but the data."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from transfer_nas.applications._base import Data
from transfer_nas.applications._files import Matrix

_EVERY = 4  # one row of four validates


def split(features: Matrix, targets: npt.NDArray[np.generic]) -> Data:
    """Return rows split once and for all; features are scaled by what the training rows say.

    In order of the target, and of the file where targets are equal, every fourth row is for
    validation: classes and values are spread alike over both parts, whatever the library's version.
    """
    by_target = np.argsort(targets.reshape(len(targets)), kind="stable")
    valid = np.sort(by_target[_EVERY - 1 :: _EVERY])
    train = np.setdiff1d(np.arange(len(targets)), valid)
    mean, deviation = features[train].mean(axis=0), features[train].std(axis=0)
    x = ((features - mean) / np.where(deviation > 0, deviation, 1.0)).astype(np.float32)
    return Data(x[train], targets[train], x[valid], targets[valid])


def standardized(targets: npt.NDArray[np.floating]) -> Matrix:
    """Return real targets as a column of mean 0 and deviation 1."""
    return np.asarray((targets - targets.mean()) / targets.std(), np.float32)[:, None]
