"""Diabetes: how the disease progressed in 442 patients within a year, from 10 features each.

The whole of the original (Efron et al., *Least angle regression*, 2004), which scikit-learn ships.
"""

from __future__ import annotations

from transfer_nas.applications import _tables
from transfer_nas.applications._base import Application
from transfer_nas.applications._data import Data


def load() -> Data:
    """Return the patients, split as `_tables.split` says; progression has mean 0, deviation 1."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    return _tables.split(x, y)


application = Application(
    name="diabetes",
    load=load,
    input_shapes=[(10,)],
    output_units=1,
    loss="mean_squared_error",
    metric="r2_score",
    epochs=20,
    batch_size=32,
    default_space="dense_skip",
)
