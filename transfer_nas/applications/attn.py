"""Attn: whether a cell line responds to a drug (ECP-CANDLE Benchmarks, Pilot1/Attn).

Of the original, which CANDLE publishes as ``top_21_1fold_001.h5``, `read` takes the tables
``x_train_0`` (942 expressions), ``x_train_1`` (5,270 descriptors), ``y_train`` (column AUC, 0 or 1)
and the same of ``val``. Without it there is a generated drug screen.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from transfer_nas.applications import _files
from transfer_nas.applications._base import Application
from transfer_nas.applications._callbacks import EarlyStopping, ReduceLROnPlateau
from transfer_nas.applications._data import Data
from transfer_nas.applications._screen import Screen, divided
from transfer_nas.errors import ApplicationError

FILE = "top_21_1fold_001.h5"
TRAIN_ROWS, VALID_ROWS = 2_000, 500
ORIGINAL_WIDTHS = (942, 5270)
FEATURES = 200  # of 6,212
PUBLISHED_ROWS = 2_800  # to train on, of `published` where its data is made up
NEGATIVES = 27  # rows without a response for each one with it, in the original


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
    return _screen(features, TRAIN_ROWS, VALID_ROWS, 0.5)


def generate_published(features: int = sum(ORIGINAL_WIDTHS)) -> Data:
    """Return the same with features from 0 to 1, and one row of 28 that responds.

    Scaled by the training rows.
    """
    data = _screen(features, PUBLISHED_ROWS, PUBLISHED_ROWS // 4, None)
    x_train, x_valid = np.asarray(data.x_train), np.asarray(data.x_valid)
    low = x_train.min(axis=0)
    span = np.maximum(x_train.max(axis=0) - low, 1e-6)
    return Data((x_train - low) / span, data.y_train, (x_valid - low) / span, data.y_valid)


def _screen(features: int, train: int, valid: int, threshold: float | None) -> Data:
    """Return rows of which those above a threshold of effect respond; None: one of 28."""
    rng = np.random.default_rng(6_212)
    expressions, descriptors = divided(features, ORIGINAL_WIDTHS)
    screen = Screen(rng)
    rows = train + valid
    cells, drugs = screen.draw(rows)
    x = np.hstack(
        [
            screen.cell_features(expressions)[cells],
            screen.drug_features(descriptors)[drugs],
        ]
    )
    effect = screen.effect(cells, drugs) + rng.normal(scale=0.3, size=rows)
    if threshold is None:
        threshold = float(np.quantile(effect, 1 - 1 / (1 + NEGATIVES)))
    y = (effect > threshold).astype(np.int32)
    return Data(x[:train], y[:train], x[train:], y[train:])


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

published = dataclasses.replace(
    application,
    name="attn-published-synthetic",
    load=generate_published,
    generate=generate_published,
    input_shapes=[(sum(ORIGINAL_WIDTHS),)],
    metric="auc_pr",
    metrics=("accuracy", "auc", "f1"),
    class_weight="balanced",
    optimizer={"class_name": "SGD", "config": {"momentum": 0.9}},
    learning_rate=1e-5,
    callbacks=(
        ReduceLROnPlateau(
            monitor="val_auc", factor=0.2, patience=40, min_delta=1e-4, cooldown=3, min_lr=1e-9
        ),
        EarlyStopping(monitor="val_auc", patience=200),
    ),
    epochs=400,
    batch_size=32,
)
"""With what ``attn_default_model.txt`` and ``attn_baseline_keras2.py`` say."""
