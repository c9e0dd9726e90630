"""Handwritten digits: 1,797 images of 8x8 pixels that scikit-learn ships.

These are the test set of the original (UCI, *Optical recognition of handwritten digits*), of which
`read` takes ``optdigits.tra`` (3,823 images), to train on and to judge by. ``optdigits.tes`` is
left alone: it is for who wants to know what the network found is worth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transfer_nas.applications import _files
from transfer_nas.applications._base import Application
from transfer_nas.applications._data import Data
from transfer_nas.applications._tables import every_fourth

TRAIN_ROWS = 1347  # three quarters


def load() -> Data:
    """Return the digits, pixels scaled to [0, 1], split once and for all.

    The split is stratified and does not depend on scikit-learn's version (`every_fourth`).
    """
    from sklearn.datasets import load_digits  # takes half a second; only those who train need it

    return _divided(*load_digits(return_X_y=True))


def read(directory: Path) -> Data:
    """Return the original's training images, split as those that come along."""
    rows = _files.numbers(_files.find(directory, "optdigits.tra"), 8 * 8 + 1)
    return _divided(rows[:, :-1], rows[:, -1])


def _divided(pixels: npt.NDArray[Any], classes: npt.NDArray[Any]) -> Data:
    images = (pixels / 16.0).astype(np.float32).reshape(-1, 8, 8)
    labels = classes.astype(np.int32)
    train, valid = every_fourth(labels)
    return Data(images[train], labels[train], images[valid], labels[valid])


application = Application(
    name="digits",
    load=load,
    read=read,
    input_shapes=[(8, 8)],
    output_units=10,
    output_activation="softmax",
    loss="sparse_categorical_crossentropy",
    metric="sparse_categorical_accuracy",
    learning_rate=2e-3,
    epochs=10,
    batch_size=64,
    default_space="dense_skip",
)
