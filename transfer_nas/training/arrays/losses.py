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
    values
        Takes targets and predictions; returns the loss of each row.
    gradient
        Takes the same; returns the gradient of the mean over rows with respect to what goes into
        the activation `after` of the predictions, or to the predictions if `after` is None. A new
        array.
    after
        The activation that the predictions must come from: a softmax, or sigmoid, and the
        logarithm in the loss are derived together, as Keras does it, since apart they lose digits.
    """

    values: Callable[[Targets, Array], Array]
    gradient: Callable[[Targets, Array], Array]
    after: str | None = None

    def value(self, y: Targets, p: Array, weights: Array | None = None) -> float:
        """Return the mean over the rows, each multiplied by its weight, as Keras does it."""
        values = self.values(y, p)
        return float((values if weights is None else values * weights).mean())

    def weighted_gradient(self, y: Targets, p: Array, weights: Array | None) -> Array:
        """Return the gradient of what `value` returns."""
        gradient = self.gradient(y, p)
        if weights is not None:
            gradient *= weights.reshape(-1, *(1 for _ in gradient.shape[1:]))
        return gradient


def _sparse_categorical_values(y: Targets, p: Array) -> Array:
    losses: Array = -np.log(np.maximum(p[np.arange(len(p)), y.reshape(-1)], _TINY))
    return losses


def _sparse_categorical_gradient(y: Targets, p: Array) -> Array:
    gradient = p / np.float32(len(p))
    gradient[np.arange(len(p)), y.reshape(-1)] -= np.float32(1 / len(p))
    return gradient


def _categorical_values(y: Targets, p: Array) -> Array:
    return _of_rows(-(y * np.log(np.maximum(p, _TINY))).sum(-1))


def _categorical_gradient(y: Targets, p: Array) -> Array:
    # Targets that do not sum to 1 weigh their rows.
    y = _like(y, p)
    gradient: Array = (p * y.sum(-1, keepdims=True) - y) / np.float32(len(p))
    return gradient


def _binary_values(y: Targets, p: Array) -> Array:
    y = _like(y, p)
    log_p, log_not_p = np.log(np.maximum(p, _TINY)), np.log(np.maximum(1 - p, _TINY))
    return _of_rows(-(y * log_p + (1 - y) * log_not_p))


def _difference(y: Targets, p: Array) -> Array:
    return (p - _like(y, p)) / np.float32(p.size)


def _squared_values(y: Targets, p: Array) -> Array:
    return _of_rows(np.square(p - _like(y, p)))


def _squared_gradient(y: Targets, p: Array) -> Array:
    return 2 * _difference(y, p)


def _absolute_values(y: Targets, p: Array) -> Array:
    return _of_rows(np.abs(p - _like(y, p)))


def _absolute_gradient(y: Targets, p: Array) -> Array:
    gradient: Array = np.sign(p - _like(y, p)) / np.float32(p.size)
    return gradient


def _of_rows(values: Array) -> Array:
    """Return the mean of each row."""
    means: Array = values.reshape(len(values), -1).mean(axis=1)
    return means


def _like(y: Targets, p: Array) -> Array:
    """Return targets in the shape of the predictions: ``(n,)`` belongs to ``(n, 1)``."""
    return y.reshape(p.shape).astype(np.float32, copy=False)


_SQUARED = Loss(_squared_values, _squared_gradient)
_ABSOLUTE = Loss(_absolute_values, _absolute_gradient)

LOSSES: Mapping[str, Loss] = {
    "sparse_categorical_crossentropy": Loss(
        _sparse_categorical_values, _sparse_categorical_gradient, "softmax"
    ),
    "categorical_crossentropy": Loss(_categorical_values, _categorical_gradient, "softmax"),
    "binary_crossentropy": Loss(_binary_values, _difference, "sigmoid"),
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
    return float(np.sqrt(_SQUARED.value(y, p)))


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
