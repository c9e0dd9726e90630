"""Losses with their gradients, and metrics, as Keras computes them for predictions as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transfer_nas.training.arrays.layers import Array

Targets = npt.NDArray[np.generic]

_TINY = np.float32(np.finfo(np.float32).tiny)


class Loss(NamedTuple):
    """A loss.

    Attributes
    ----------
    value
        Takes targets and predictions; returns the mean over the rows.
    gradient
        Takes the same; returns the mean's gradient with respect to what goes into the activation
        `after` of the predictions, or to the predictions if `after` is None. A new array.
    after
        The activation that the predictions must come from: a softmax, or sigmoid, and the
        logarithm in the loss are derived together, as Keras does it, since apart they lose digits.
    """

    value: Callable[[Targets, Array], float]
    gradient: Callable[[Targets, Array], Array]
    after: str | None = None


def _sparse_categorical_value(y: Targets, p: Array) -> float:
    return float(-np.log(np.maximum(p[np.arange(len(p)), y.reshape(-1)], _TINY)).mean())


def _sparse_categorical_gradient(y: Targets, p: Array) -> Array:
    gradient = p / np.float32(len(p))
    gradient[np.arange(len(p)), y.reshape(-1)] -= np.float32(1 / len(p))
    return gradient


def _categorical_value(y: Targets, p: Array) -> float:
    return float(-(y * np.log(np.maximum(p, _TINY))).sum(-1).mean())


def _categorical_gradient(y: Targets, p: Array) -> Array:
    # Targets that do not sum to 1 weigh their rows.
    y = _like(y, p)
    gradient: Array = (p * y.sum(-1, keepdims=True) - y) / np.float32(len(p))
    return gradient


def _binary_value(y: Targets, p: Array) -> float:
    y = _like(y, p)
    log_p, log_not_p = np.log(np.maximum(p, _TINY)), np.log(np.maximum(1 - p, _TINY))
    return float(-(y * log_p + (1 - y) * log_not_p).mean())


def _difference(y: Targets, p: Array) -> Array:
    return (p - _like(y, p)) / np.float32(p.size)


def _squared_value(y: Targets, p: Array) -> float:
    return float(np.square(p - _like(y, p)).mean())


def _squared_gradient(y: Targets, p: Array) -> Array:
    return 2 * _difference(y, p)


def _absolute_value(y: Targets, p: Array) -> float:
    return float(np.abs(p - _like(y, p)).mean())


def _absolute_gradient(y: Targets, p: Array) -> Array:
    gradient: Array = np.sign(p - _like(y, p)) / np.float32(p.size)
    return gradient


def _like(y: Targets, p: Array) -> Array:
    """Return targets in the shape of the predictions: ``(n,)`` belongs to ``(n, 1)``."""
    return y.reshape(p.shape).astype(np.float32, copy=False)


_SQUARED = Loss(_squared_value, _squared_gradient)
_ABSOLUTE = Loss(_absolute_value, _absolute_gradient)

LOSSES: Mapping[str, Loss] = {
    "sparse_categorical_crossentropy": Loss(
        _sparse_categorical_value, _sparse_categorical_gradient, "softmax"
    ),
    "categorical_crossentropy": Loss(_categorical_value, _categorical_gradient, "softmax"),
    "binary_crossentropy": Loss(_binary_value, _difference, "sigmoid"),
    "mean_squared_error": _SQUARED,
    "mean_absolute_error": _ABSOLUTE,
}
"""By Keras name."""


def _sparse_accuracy(y: Targets, p: Array) -> float:
    return float((p.argmax(-1) == y.reshape(-1)).mean())


def _categorical_accuracy(y: Targets, p: Array) -> float:
    return float((p.argmax(-1) == y.argmax(-1)).mean())


def _binary_accuracy(y: Targets, p: Array) -> float:
    return float(((p > np.float32(0.5)) == _like(y, p)).mean())


def _root_squared(y: Targets, p: Array) -> float:
    return float(np.sqrt(_squared_value(y, p)))


def _r2(y: Targets, p: Array) -> float:
    exact = _like(y, p).astype(np.float64)
    residual = np.square(p - exact).sum(0)
    return float((1 - residual / np.square(exact - exact.mean(0)).sum(0)).mean())


METRICS: Mapping[str, Callable[[Targets, Array], float]] = {
    "sparse_categorical_accuracy": _sparse_accuracy,
    "categorical_accuracy": _categorical_accuracy,
    "binary_accuracy": _binary_accuracy,
    "root_mean_squared_error": _root_squared,
    "r2_score": _r2,
    **{name: loss.value for name, loss in LOSSES.items()},
}
"""By Keras name. Takes all targets and predictions."""
