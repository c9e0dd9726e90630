"""Breast cancer, Wisconsin: 569 tumours, 30 features each, malignant or benign.

The whole of the original, which scikit-learn ships.
"""

from __future__ import annotations

import numpy as np

from transfer_nas.applications import _tables
from transfer_nas.applications._base import Application
from transfer_nas.applications._data import Data


def load() -> Data:
    """Return the tumours, split as `_tables.split` says."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return _tables.split(x, y.astype(np.int32))


application = Application(
    name="breast_cancer",
    load=load,
    input_shapes=[(30,)],
    output_units=2,
    output_activation="softmax",
    loss="sparse_categorical_crossentropy",
    metric="sparse_categorical_accuracy",
    epochs=15,
    batch_size=32,
    default_space="dense_skip",
)
