"""NT3: normal or tumour tissue, from 60,483 gene expressions (ECP-CANDLE Benchmarks, Pilot1/NT3).

Of the original, which CANDLE publishes, `read` takes ``nt_train2.csv`` (1,120 rows): no header, a
label of 0 or 1, then the expressions. ``nt_test2.csv`` is left alone: it is for who wants to know
what the network found is worth. Without the files there is a generated set of the same kind.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt

from transfer_nas.applications import _files
from transfer_nas.applications._base import Application
from transfer_nas.applications._callbacks import ReduceLROnPlateau
from transfer_nas.applications._data import Data
from transfer_nas.applications._files import Matrix
from transfer_nas.applications._tables import every_fourth
from transfer_nas.errors import ApplicationError

Labels = npt.NDArray[np.generic]

TRAIN_ROWS, VALID_ROWS = 1_120, 280
FEATURES = 512  # of 60,483: so that candidates train in seconds on a few cores
ORIGINAL_WIDTH = 60_483


def read(directory: Path) -> Data:
    """Return the original; expressions are divided by each gene's largest, as in the benchmark."""
    path = _files.find(directory, "nt_train2.csv")
    rows = _files.numbers(path)
    if not np.isin(rows[:, 0], (0, 1)).all():
        wrong = int(np.argmin(np.isin(rows[:, 0], (0, 1))))
        raise ApplicationError(
            f"{path}, line {wrong + 1}: expected a label 0 or 1 in column 1, "
            f"found {rows[wrong, 0]:g}"
        )
    train, valid = every_fourth(rows[:, 0])
    return _divided(rows[train, 0], rows[train, 1:], rows[valid, 0], rows[valid, 1:])


def generate(features: int = FEATURES) -> Data:
    """Return made-up expressions of as many genes, and rows as many as in the original.

    Expressions follow a few hidden programs that neighbouring genes share, and noise; in tumours,
    some programs are up and others down, not in all of them.
    """
    rng = np.random.default_rng(20_483)
    rows, programs = TRAIN_ROWS + VALID_ROWS, 24
    labels = np.arange(rows) % 2
    activity = rng.normal(size=(rows, programs))
    disturbed = rng.random((rows, 8)) < 0.45
    shift = np.where(np.arange(8) % 2, 1.6, -1.6)
    activity[:, :8] += labels[:, None] * disturbed * shift
    centres = np.linspace(0, features, programs, endpoint=False) + features / programs / 2
    width = features / programs / 2
    loadings = np.exp(
        -0.5 * ((np.arange(features) - centres[rng.permutation(programs), None]) / width) ** 2
    )
    level = rng.normal(1.0, 0.5, size=features)
    noise = rng.normal(scale=0.8, size=(rows, features))
    genes = activity @ loadings  # in place, as this is large at the original's width
    genes += level
    genes += noise
    genes *= 0.5
    expressions = np.exp(genes, out=genes).astype(np.float32)
    order = rng.permutation(rows)
    train, valid = order[:TRAIN_ROWS], order[TRAIN_ROWS:]
    return _divided(labels[train], expressions[train], labels[valid], expressions[valid])


def _divided(y_train: Labels, x_train: Matrix, y_valid: Labels, x_valid: Matrix) -> Data:
    largest = np.abs(x_train).max(axis=0)
    largest[largest == 0] = 1.0
    return Data(
        x_train / largest, y_train.astype(np.int32), x_valid / largest, y_valid.astype(np.int32)
    )


application = Application(
    name="nt3-synthetic",
    load=generate,
    read=read,
    generate=generate,
    input_shapes=[(FEATURES,)],
    output_units=2,
    output_activation="softmax",
    loss="sparse_categorical_crossentropy",
    metric="sparse_categorical_accuracy",
    epochs=5,
    batch_size=20,
    default_space="nt3",
)

published = dataclasses.replace(
    application,
    name="nt3-published-synthetic",
    load=functools.partial(generate, ORIGINAL_WIDTH),
    input_shapes=[(ORIGINAL_WIDTH,)],
    metric="accuracy",
    optimizer="sgd",
    learning_rate=1e-3,
    callbacks=(ReduceLROnPlateau(monitor="val_loss", factor=0.1, patience=10, min_delta=1e-4),),
    epochs=400,
)
"""With what ``nt3_default_model.txt`` and ``nt3_baseline_keras2.py`` say."""
