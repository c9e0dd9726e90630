"""Attn: whether a cell line responds to a drug (ECP-CANDLE Benchmarks, Pilot1/Attn).

Of the original, which CANDLE publishes as ``top_21_1fold_001.h5``, `read` takes the tables
``x_train_0`` (942 expressions), ``x_train_1`` (5,270 descriptors), ``y_train`` (column AUC, 0 or 1)
and the same of ``val``. Without it there is a generated drug screen.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from transfer_nas.applications import _files
from transfer_nas.applications._base import Application
from transfer_nas.applications._data import Data
from transfer_nas.applications._screen import Screen, divided
from transfer_nas.errors import ApplicationError

FILE = "top_21_1fold_001.h5"
TRAIN_ROWS, VALID_ROWS = 2_000, 500
ORIGINAL_WIDTHS = (942, 5270)
FEATURES = 200  # of 6,212


def read(directory: Path) -> Data:
    """Return the original, which is scaled already; expressions and descriptors side by side."""
    path = _files.find(directory, FILE)
    parts = []
    with _files.Frames(path) as frames:
        for part in ("train", "val"):
            x = np.hstack([frames.read(f"x_{part}_0"), frames.read(f"x_{part}_1")])
            y = frames.target(f"y_{part}")
            if not np.isin(y, (0, 1)).all():
                wrong = y[~np.isin(y, (0, 1))][0]
                raise ApplicationError(f"{path}: expected 0 or 1 in y_{part}, found {wrong:g}")
            parts.append((x, y.astype(np.int32)))
    (x_train, y_train), (x_valid, y_valid) = parts
    return Data(x_train, y_train, x_valid, y_valid)


def generate(features: int = FEATURES) -> Data:
    """Return a made-up screen: expressions and descriptors, and whether the cell responds."""
    rng = np.random.default_rng(6_212)
    expressions, descriptors = divided(features, ORIGINAL_WIDTHS)
    screen = Screen(rng)
    rows = TRAIN_ROWS + VALID_ROWS
    cells, drugs = screen.draw(rows)
    x = np.hstack(
        [
            screen.cell_features(expressions)[cells],
            screen.drug_features(descriptors)[drugs],
        ]
    )
    effect = screen.effect(cells, drugs) + rng.normal(scale=0.3, size=rows)
    y = (effect > 0.5).astype(np.int32)
    return Data(x[:TRAIN_ROWS], y[:TRAIN_ROWS], x[TRAIN_ROWS:], y[TRAIN_ROWS:])


application = Application(
    name="attn-synthetic",
    load=generate,
    read=read,
    generate=generate,
    input_shapes=[(sum(divided(FEATURES, ORIGINAL_WIDTHS)),)],
    output_units=2,
    output_activation="softmax",
    loss="sparse_categorical_crossentropy",
    metric="sparse_categorical_accuracy",
    epochs=10,
    batch_size=64,
    default_space="attn",
)
