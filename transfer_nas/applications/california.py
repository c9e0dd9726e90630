"""California housing: what houses cost in 20,640 blocks, from 8 features each.

The data does not come along; `read` takes the original's ``cal_housing.data`` (Pace and Barry,
*Sparse spatial autoregressions*, 1997; StatLib). ``diabetes`` is the table that does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from transfer_nas.applications import _files, _tables
from transfer_nas.applications._base import Application
from transfer_nas.applications._data import Data
from transfer_nas.errors import ApplicationError

_COLUMNS = 9  # longitude, latitude, age, rooms, bedrooms, population, households, income, value


def load() -> Data:
    """Raise ApplicationError: there is no data without ``--data``."""
    raise ApplicationError(
        "application california needs --data DIR with the original's cal_housing.data; "
        "application diabetes is a table that comes along"
    )


def read(directory: Path) -> Data:
    """Return the blocks with scikit-learn's features: counts are per household."""
    rows = _files.numbers(_files.find(directory, "cal_housing.data"), _COLUMNS).astype(float)
    longitude, latitude, age, rooms, bedrooms, population, households, income, value = rows.T
    if not (households > 0).all():
        line = int(np.argmin(households > 0)) + 1
        raise ApplicationError(
            f"{directory / 'cal_housing.data'}, line {line}: expected households above 0 in "
            f"column 7, found {households[line - 1]:g}"
        )
    per_household = [column / households for column in (rooms, bedrooms, population)]
    average_rooms, average_bedrooms, occupants = per_household
    x = np.column_stack([
        income, age, average_rooms, average_bedrooms, population, occupants, latitude, longitude,
    ])  # fmt: skip
    return _tables.split(x, value)


application = Application(
    name="california",
    load=load,
    read=read,
    input_shapes=[(8,)],
    output_units=1,
    loss="mean_squared_error",
    metric="r2_score",
    epochs=10,
    batch_size=256,
    default_space="dense_skip",
)
