"""What the best model of a search predicts on the validation rows: ``best-validation.json``.

Written with ``best.keras``, when the model is there anyway, so that a report can show the confusion
matrix or the residuals, and how sure the metric is, without training or TensorFlow. The format is
that of docs/formats.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpp_store import files
from graph_meta import LayerGraph
from transfer_nas.applications import Application, Batches, Data, as_tuple
from transfer_nas.transfer import Tensors

Floats = npt.NDArray[np.float64]

NAME = "best-validation.json"
FORMAT = 1

_ROWS = 20_000  # that are predicted at most, evenly chosen
_PAIRS = 2_000  # of true and predicted values that are kept at most, evenly chosen
_CLASSES = 60  # of which a confusion matrix is kept at most
_RESAMPLED = 1_000  # times for an interval


def write(directory: Path, graph: LayerGraph, tensors: Tensors, application: Application) -> None:
    """Predict the validation rows and write what came of it; nothing for targets of other kinds.

    Parameters
    ----------
    directory
        The run directory.
    graph, tensors
        The best model.
    application
        Whose validation rows.
    """
    from graph_meta import keras_io

    model = keras_io.to_keras(graph)
    keras_io.set_weights(model, tensors)
    data = application.data
    total = data.count("valid")
    inputs, targets = _some_rows(data, total)
    found: dict[str, Any] | None = None
    if len(targets) == 1:
        predicted = model.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
        terms = application.terms
        found = judge(targets[0], np.asarray(predicted), terms.loss, terms.metric)
    path = directory / NAME
    if found is None:
        path.unlink(missing_ok=True)
        return
    content = {"format": FORMAT, "rows": len(targets[0]), "of": total, **found}
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    files.write_text(path, f"{text}\n")


def _some_rows(data: Data, total: int) -> tuple[list[Any], list[Any]]:
    """Return inputs and targets of some validation rows; of a source of batches, the first."""
    if isinstance(data.x_valid, Batches):
        batches = []
        for batch in data.x_valid:
            batches.append((batch.x, as_tuple(batch.y)))
            if sum(len(x[0]) for x, _ in batches) >= _ROWS:
                break
        inputs, targets = (
            [np.concatenate(parts)[:_ROWS] for parts in zip(*some, strict=True)]
            for some in zip(*batches, strict=True)
        )
        return inputs, targets
    at = np.unique(np.linspace(0, total - 1, min(total, _ROWS)).astype(np.int64))
    x, y = as_tuple(data.x_valid), as_tuple(data.y_valid)
    return [array[at] for array in x], [array[at] for array in y]


def judge(
    true: npt.NDArray[Any], predicted: npt.NDArray[Any], loss: object, metric: object
) -> dict[str, Any] | None:
    """Return the confusion matrix of classes, or pairs of values; None for anything else.

    Parameters
    ----------
    true
        Targets as the loss expects them, shape (n, ...).
    predicted
        What the model gave, shape (n, outputs).
    loss, metric
        By the names that engines know (`Application.terms`); the loss tells what the targets are.
    """
    if isinstance(loss, str) and "crossentropy" in loss:
        classes = _classes(true, predicted, loss)
        return None if classes is None else _confusion(*classes)
    numbers = np.asarray(true, np.float64).reshape(len(true), -1)
    guesses = np.asarray(predicted, np.float64).reshape(len(predicted), -1)
    if numbers.shape != guesses.shape or not (
        np.isfinite(numbers).all() and np.isfinite(guesses).all()
    ):
        return None
    at = np.unique(np.linspace(0, numbers.size - 1, min(numbers.size, _PAIRS)).astype(np.int64))
    found: dict[str, Any] = {
        "kind": "values",
        "outputs": int(numbers.shape[1]),
        "true": _rounded(numbers.ravel()[at]),
        "predicted": _rounded(guesses.ravel()[at]),
    }
    if isinstance(metric, str) and metric in _METRICS and len(numbers) > 2:
        found["interval"] = _rounded(np.array(bootstrap(numbers, guesses, _METRICS[metric])))
    return found


def bootstrap(
    true: Floats, predicted: Floats, metric: Callable[[Floats, Floats], float], seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of a metric over rows drawn with replacement (percentiles)."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(_RESAMPLED):
        at = rng.integers(0, len(true), len(true))
        values.append(metric(true[at], predicted[at]))
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(low), float(high)


def _r2(true: Floats, predicted: Floats) -> float:
    total = ((true - true.mean(axis=0)) ** 2).sum(axis=0)
    left = ((true - predicted) ** 2).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.mean(np.where(total > 0, 1 - left / total, np.nan)))


def _mse(true: Floats, predicted: Floats) -> float:
    return float(((true - predicted) ** 2).mean())


def _mae(true: Floats, predicted: Floats) -> float:
    return float(np.abs(true - predicted).mean())


_METRICS: dict[str, Callable[[Floats, Floats], float]] = {
    "r2_score": _r2,
    "mean_squared_error": _mse,
    "mean_absolute_error": _mae,
    "root_mean_squared_error": lambda true, predicted: _mse(true, predicted) ** 0.5,
}
"""Metrics as Keras computes them; of others there is no interval."""


def _classes(
    true: npt.NDArray[Any], predicted: npt.NDArray[Any], loss: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int] | None:
    """Return true and predicted classes, and their number."""
    outputs = predicted.reshape(len(predicted), -1)
    flat = np.asarray(true).reshape(len(true), -1)
    if loss == "binary_crossentropy" and outputs.shape[1] == flat.shape[1] == 1:
        return (flat[:, 0] > 0.5).astype(np.int64), (outputs[:, 0] > 0.5).astype(np.int64), 2
    count = outputs.shape[1]
    if predicted.ndim != 2 or not 2 <= count <= _CLASSES:
        return None
    if loss == "categorical_crossentropy" and flat.shape == outputs.shape:
        return flat.argmax(axis=1), outputs.argmax(axis=1), count
    if loss == "sparse_categorical_crossentropy" and flat.shape[1] == 1:
        found = flat[:, 0].astype(np.int64)
        if found.min() >= 0 and found.max() < count:
            return found, outputs.argmax(axis=1), count
    return None


def _confusion(
    true: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], count: int
) -> dict[str, Any]:
    counts = np.bincount(true * count + predicted, minlength=count * count)
    return {"kind": "classes", "counts": counts.reshape(count, count).tolist()}


def _rounded(values: Floats) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]
