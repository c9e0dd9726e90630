"""MNIST-1D: series of 40 numbers made of ten digits' outlines (Greydanus and Kobak, 2020).

The 4,000 training and 1,000 test series that the package ``mnist1d`` makes by its own defaults; a
fifth of the former validates. Published test accuracies: logistic regression 0.32, a dense network
0.68, convolutions 0.94, people 0.96.
"""

from __future__ import annotations

import random

import numpy as np

from transfer_nas.applications._base import Application
from transfer_nas.applications._data import Data
from transfer_nas.errors import ApplicationError


def load() -> Data:
    """Return the series; raises ApplicationError if the package is not installed."""
    try:
        from mnist1d import data
    except ImportError as cause:
        raise ApplicationError(
            f"application mnist1d: expected the package mnist1d: pip install mnist1d ({cause})"
        ) from cause
    # The package seeds both.
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        made = data.make_dataset()
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
    return Data(
        x_train=made["x"].astype(np.float32),
        y_train=made["y"].astype(np.int32),
        x_test=made["x_test"].astype(np.float32),
        y_test=made["y_test"].astype(np.int32),
    )


application = Application(
    name="mnist1d",
    load=load,
    input_shapes=[(40,)],
    output_units=10,
    output_activation="softmax",
    loss="sparse_categorical_crossentropy",
    metric="accuracy",
    learning_rate=3e-3,
    epochs=8,
    batch_size=64,
    validation=0.2,
    default_space="series_cnn",
)
