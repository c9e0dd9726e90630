"""Weights of training rows in the loss, of classes and of single rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from transfer_nas.applications import _terms
from transfer_nas.applications._terms import CLASSES, ONE_HOT, UNIT
from transfer_nas.errors import ApplicationError

Array = npt.NDArray[Any]


def of_rows(name: str, given: object, rows: int) -> Array | None:
    """Return weights of rows as float32, ``(rows,)``; raises ApplicationError."""
    if given is None:
        return None
    try:
        weights = np.asarray(given, np.float32)
    except (TypeError, ValueError):
        raise ApplicationError(f"{name} must hold numbers, found {given!r:.60}") from None
    if weights.shape != (rows,):
        raise ApplicationError(
            f"{name}: expected one weight a row, ({rows},), found {weights.shape}"
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ApplicationError(f"{name}: expected finite weights of at least 0, not all of them 0")
    return weights


def labels(y: Array, loss: Any, units: int) -> Array:
    """Return the number of each row's class; raises ApplicationError for targets of no classes."""
    kind = _terms.LOSSES.get(loss) if isinstance(loss, str) else None
    if y.ndim == 2 and y.shape[1] == units > 1 and kind in (ONE_HOT, None):
        return np.asarray(y.argmax(axis=1))
    flat = y.reshape(len(y), -1)
    if flat.shape[1] == 1 and (kind == CLASSES or (kind in (UNIT, None) and units == 1)):
        found = flat[:, 0].astype(np.int64)
        if np.array_equal(found, flat[:, 0]):
            return np.asarray(found)
    raise ApplicationError(
        f"class_weight weighs rows by their class, and y_train, shape {y.shape}, holds none for "
        f"{loss if isinstance(loss, str) else 'this loss'}: give weights of rows, w_train"
    )


def of_labels(given: Any, found: Array) -> dict[int, float]:
    """Return the weight of each label.

    Parameters
    ----------
    given
        `Application.class_weight`.
    found
        The number of each training row's class.

    Raises
    ------
    ApplicationError
        It names labels that there are not, or is something else.
    """
    known, counts = np.unique(found, return_counts=True)
    if isinstance(given, str) and given == "balanced":
        weights = len(found) / (len(known) * counts)
        return {int(label): float(w) for label, w in zip(known, weights, strict=True)}
    if not isinstance(given, Mapping):
        raise ApplicationError(
            f"class_weight must be 'balanced' or weights by label, found {given!r:.60}"
        )
    for label, weight in given.items():
        if label not in known:
            shown = ", ".join(map(str, known[:10]))
            raise ApplicationError(
                f"class_weight: label {label!r} is not among those of y_train: {shown}"
            )
        if isinstance(weight, bool) or not isinstance(weight, int | float | np.number):
            raise ApplicationError(
                f"class_weight of {label!r}: expected a number, found {weight!r}"
            )
        if not (np.isfinite(weight) and weight >= 0):
            raise ApplicationError(
                f"class_weight of {label!r}: expected at least 0, found {weight}"
            )
    return {int(label): float(given.get(int(label), 1.0)) for label in known}
