"""Uno: how a tumour responds to one drug or two (ECP-CANDLE Benchmarks, Pilot1/Uno).

Of the original, `read` takes what the benchmark exports (``uno_baseline_keras2.py --export_data``)
or CANDLE publishes as ``top_21_auc_1fold.uno.h5``: tables ``x_train_0``, ``x_train_1``, … one for
each input, ``y_train``, and the same of ``val``. Without it there is a generated drug screen.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from transfer_nas.applications import _files
from transfer_nas.applications._base import Application
from transfer_nas.applications._data import Data
from transfer_nas.applications._screen import Screen, divided
from transfer_nas.errors import ApplicationError

FILE = "top_21_auc_1fold.uno.h5"
TRAIN_ROWS, VALID_ROWS = 2_000, 500
ORIGINAL_WIDTHS = (942, 5270, 2048)  # expressions of a cell; descriptors, fingerprints of a drug
FEATURES = 300
PUBLISHED = 15_580  # features of the original


def read(directory: Path) -> Data:
    """Return the original: the inputs as they were exported (scaled), and AUC or growth."""
    path = _files.find(directory, FILE, "uno.h5")
    with _files.Frames(path) as frames:
        parts = []
        for part in ("train", "val"):
            keys = frames.numbered(f"x_{part}_")
            if len(keys) < 2:
                raise ApplicationError(
                    f"{path}: expected tables x_{part}_0, x_{part}_1, … found {len(keys)} of them"
                )
            parts.append((tuple(map(frames.read, keys)), frames.target(f"y_{part}")[:, None]))
    (x_train, y_train), (x_valid, y_valid) = parts
    return Data(x_train, y_train, x_valid, y_valid)


def generate(features: int = FEATURES) -> Data:
    """Return a made-up screen: two doses, a cell, and descriptors and fingerprints of two drugs.

    Growth falls with each drug's dose along a Hill curve, from 1 to -1 for both together.
    """
    rng = np.random.default_rng(15_580)
    expressions, descriptors, fingerprints = _widths(features)
    screen = Screen(rng)
    rows = TRAIN_ROWS + VALID_ROWS
    cells, first = screen.draw(rows)
    _, second = screen.draw(rows)
    doses = rng.uniform(-1.5, 1.5, size=(2, rows))
    effects = [screen.effect(cells, drug) for drug in (first, second)]
    response = sum(
        1 / (1 + np.exp(-2 * (dose + effect))) for dose, effect in zip(doses, effects, strict=True)
    )
    growth = 1 - response + rng.normal(scale=0.1, size=rows)
    cell = screen.cell_features(expressions)
    drug, bits = screen.drug_features(descriptors), screen.fingerprints(fingerprints)
    inputs = (
        *(dose.astype(np.float32)[:, None] for dose in doses),
        cell[cells],
        *(view[which] for which in (first, second) for view in (drug, bits)),
    )
    y = growth.astype(np.float32)[:, None]
    return Data(
        tuple(array[:TRAIN_ROWS] for array in inputs),
        y[:TRAIN_ROWS],
        tuple(array[TRAIN_ROWS:] for array in inputs),
        y[TRAIN_ROWS:],
    )


def _widths(features: int) -> tuple[int, ...]:
    """Return the widths of cell, descriptors and fingerprints; those of a drug come twice."""
    expressions, descriptors, fingerprints = ORIGINAL_WIDTHS
    cell, drug, bits = divided(features, (expressions, 2 * descriptors, 2 * fingerprints))
    bits = max(2, bits // 2)
    drug = max(2, drug // 2)
    return cell, drug + (drug == bits), bits  # inputs of equal shape would share a tower


def _shapes(features: int) -> list[tuple[int]]:
    cell, drug, bits = _widths(features)
    return [(1,), (1,), (cell,), (drug,), (bits,), (drug,), (bits,)]


application = Application(
    name="uno-synthetic",
    load=generate,
    read=read,
    generate=generate,
    input_shapes=_shapes(FEATURES),
    output_units=1,
    loss="mean_squared_error",
    metric="r2_score",
    epochs=10,
    batch_size=64,
    default_space="uno",
)

published = dataclasses.replace(
    application,
    name="uno-published-synthetic",
    load=functools.partial(generate, PUBLISHED),
    input_shapes=_shapes(PUBLISHED),
    metrics=("mean_absolute_error",),
    batch_size=32,
)
"""With what ``uno_default_model.txt`` and ``uno_baseline_keras2.py`` say."""
