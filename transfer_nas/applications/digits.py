"""Handwritten digits: 1,797 images of 8x8 pixels that scikit-learn ships.

These are the test set of the original (UCI, *Optical recognition of handwritten digits*), of which
`read` takes ``optdigits.tra`` (3,823 images) to train on and ``optdigits.tes`` to judge by.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from transfer_nas.applications import _files
from transfer_nas.applications._base import Application, Data

TRAIN_ROWS = 1347  # three quarters


def load() -> Data:
    """Return the digits, pixels scaled to [0, 1], split once and for all.

    The split is stratified and does not depend on scikit-learn's version: of the rows in order of
    class, and of the file within a class, every fourth one is for validation.
    """
    from sklearn.datasets import load_digits  # takes half a second; only those who train need it

    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32).reshape(-1, 8, 8)
    labels = labels.astype(np.int32)
    by_class = np.argsort(labels, kind="stable")
    valid = np.sort(by_class[3::4])
    train = np.setdiff1d(np.arange(len(labels)), valid)
    return Data(images[train], labels[train], images[valid], labels[valid])


def read(directory: Path) -> Data:
    """Return the original, pixels scaled to [0, 1], by its own split."""
    train, valid = (
        _files.numbers(_files.find(directory, name), 8 * 8 + 1)
        for name in ("optdigits.tra", "optdigits.tes")
    )
    return Data(
        (train[:, :-1] / 16).reshape(-1, 8, 8),
        train[:, -1].astype(np.int32),
        (valid[:, :-1] / 16).reshape(-1, 8, 8),
        valid[:, -1].astype(np.int32),
    )


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
