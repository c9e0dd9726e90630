"""Arrays as engines take them, made of what users have: frames, lists, labels of any dtype.

What means one thing only is converted, alike for all engines; anything else is refused in one line
that says what was expected, what was found and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from transfer_nas.applications import _terms
from transfer_nas.applications._disk import OnDisk
from transfer_nas.applications._terms import CLASSES, NUMBERS, ONE_HOT, UNIT, Judged, Terms
from transfer_nas.errors import ApplicationError

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

_CHUNK = 2**22  # elements to look at together
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_SHARES = ("softmax", "sigmoid", "hard_sigmoid")
"""Activations whose outputs lie between 0 and 1."""


def inputs_of(
    name: str, given: object, shapes: Sequence[Shape], *, whole: bool = True
) -> tuple[Array, ...]:
    """Return the inputs of a model as arrays, one for each shape.

    Parameters
    ----------
    name
        What the user calls them, for messages.
    given
        What the user has: for one input, whatever makes an array; for several, a tuple of those.
    shapes
        Of the inputs, without the first axis.
    whole
        Whether to look at all numbers of arrays that stay on disk, or at the first ones only.

    Raises
    ------
    ApplicationError
        They are not numbers (or strings, for models that take those), not finite, or of other
        shapes.
    """
    several = _several(given, len(shapes), shapes[0])
    arrays: list[Any] = [
        OnDisk(part) if OnDisk.is_needed(part) else _array(name, part, strings=True)
        for part in (several or (given,))
    ]
    if len(arrays) == len(shapes) == 1 and arrays[0].ndim == 1 and shapes[0] == (1,):
        arrays = [arrays[0].reshape(-1, 1)]  # a series: one feature
    found = [array.shape[1:] for array in arrays]
    if found != list(shapes):
        first = [shape[-1:] + shape[:-1] for shape in shapes]  # as Torch has images
        hint = ", channels first: numpy.moveaxis(x, 1, -1) puts them last"
        raise ApplicationError(
            f"{name} must hold inputs of shapes {list(shapes)} after the first axis, found {found}"
            f"{hint if found == first else ''}"
        )
    for array in arrays:
        on_disk = isinstance(array, OnDisk)
        _check_finite(name, array[: array.block] if on_disk and not whole else array)
    return tuple(array.view(np.uint8) if array.dtype == bool else array for array in arrays)


class Labels:
    """The strings that stand for classes in targets: numbered in their order, from 0.

    Those of the training rows, which come first; others are refused.

    Parameters
    ----------
    loss
        As the user gave it: it must be one of classes.
    """

    def __init__(self, loss: Any) -> None:
        self._loss = _terms.plain_name(loss)
        self.known: Array | None = None

    def numbered(self, name: str, y: Array) -> Array:
        """Return the numbers of labels; raises ApplicationError for one that is not known."""
        loss = self._loss
        if loss != "crossentropy" and _terms.LOSSES.get(str(loss)) not in (CLASSES, UNIT):
            raise ApplicationError(
                f"{name} holds strings ({', '.join(map(repr, y[:2].tolist()))}, …), and {loss} "
                "takes numbers"
            )
        if self.known is None:
            self.known = np.unique(y)
        numbers = np.searchsorted(self.known, y).clip(max=len(self.known) - 1)
        wrong = y[self.known[numbers] != y]
        if len(wrong):
            raise ApplicationError(
                f"{name} holds the label {str(wrong[0])!r}, which no training row has"
            )
        return numbers.astype(np.int32)


def targets_of(name: str, given: object, rows: int, labels: Labels | None) -> tuple[Array, ...]:
    """Return targets as arrays, one for each output of the model; raises ApplicationError.

    Strings, one a row, are labels and become numbers, unless there can be none.
    """
    several = _several_targets(given, rows)
    strings = several is None and labels is not None
    arrays = [_array(name, part, strings=strings) for part in (several or (given,))]
    if arrays[0].dtype.kind in "US" and labels is not None:
        if arrays[0].size != len(arrays[0]):
            raise ApplicationError(
                f"{name} holds strings in {arrays[0].size // len(arrays[0])} columns: expected one "
                "label a row"
            )
        arrays = [labels.numbered(name, arrays[0].reshape(-1))]
    for array in arrays:
        _check_finite(name, array)
    return tuple(arrays)


def weights_of(name: str, given: object, rows: int) -> Array:
    """Return weights of rows; raises ApplicationError."""
    weights = _array(name, given, strings=False)
    if weights.shape != (rows,):
        raise ApplicationError(
            f"{name} must hold a number a row, shape ({rows},), found {weights.shape}"
        )
    _check_finite(name, weights)
    if weights.min() < 0 or not weights.any():
        raise ApplicationError(f"{name} must not be negative, nor all 0")
    return weights.astype(np.float32)


def classes(y: Any, terms: Terms) -> Array | None:
    """Return the class of each row, shape (rows,); None where targets are no classes."""
    if isinstance(y, tuple) or not isinstance(terms.loss, str):
        return None
    kind = _terms.LOSSES.get(terms.loss, _terms.ANY)
    if kind == ONE_HOT and y.ndim == 2:
        return np.asarray(y.argmax(axis=1))
    if kind == CLASSES or (kind == UNIT and y.size == len(y) and np.isin(y, (0, 1)).all()):
        return np.asarray(y.reshape(len(y), -1)[:, 0])
    return None


def class_weights(given: Any, y: Any, terms: Terms, labels: Labels) -> Array:
    """Return the weight of each row by its class, on average 1 if they are balanced.

    Parameters
    ----------
    given
        By label, or ``balanced``: rows / (classes x rows of the class), as scikit-learn has it.
    y
        Targets of the rows, as `fit` has them.
    terms, labels
        What they are.
    """
    found = classes(y, terms)
    if found is None:
        raise ApplicationError("class_weight: the targets are no classes")
    present, numbers, counts = np.unique(found, return_inverse=True, return_counts=True)
    if given == "balanced":
        by_class = len(found) / (len(present) * counts)
    else:
        named = present if labels.known is None else labels.known[present.astype(np.int64)]
        keys = {str(label): float(weight) for label, weight in given.items()}
        missing = [str(label) for label in named.tolist() if _name(label) not in keys]
        if missing:
            raise ApplicationError(
                f"class_weight has no weight for the label {missing[0]!r}; it has {', '.join(keys)}"
            )
        by_class = np.array([keys[_name(label)] for label in named.tolist()])
    return by_class[numbers.reshape(-1)].astype(np.float32)


def _name(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def check_rows(names: str, arrays: Sequence[Array]) -> None:
    """Raise ApplicationError unless all arrays have the same number of rows, at least one."""
    counts = [len(array) for array in arrays]
    if len(set(counts)) != 1 or 0 in counts:
        raise ApplicationError(
            f"{names} must have the same number of rows, at least one; found {counts}"
        )


def fit(
    name: str, y: Array, terms: Judged, units: int, activation: str | None, metrics: Sequence[Any]
) -> Array:
    """Return targets in the dtype that the loss takes, checked against loss, metric and outputs.

    Parameters
    ----------
    name
        What the user calls them, for messages.
    y
        Targets of a model with one output.
    terms
        Loss and metrics, by their one names.
    units, activation
        Of the outputs.
    metrics
        As the user gave them, for messages.

    Raises
    ------
    ApplicationError
        They do not go together.
    """
    kind = _terms.LOSSES.get(terms.loss, _terms.ANY) if isinstance(terms.loss, str) else _terms.ANY
    prepare = _FITS.get(kind)
    if prepare is not None:
        y = prepare(name, y, str(terms.loss), units)
    elif y.dtype == bool:
        y = y.astype(np.float32)
    if kind == NUMBERS and activation in _SHARES and (y.min() < 0 or y.max() > 1):
        raise ApplicationError(
            f"{name} holds {_shown(y.min())} to {_shown(y.max())}, which outputs of {activation} "
            "(0 to 1) never reach: regression takes no output_activation"
        )
    for given, metric in zip(metrics, terms.metrics.values(), strict=True):
        _check_metric(name, y, metric, str(terms.loss), kind, units, given)
    return y


def _several(given: object, inputs: int, shape: Shape) -> Sequence[object] | None:
    """Return the parts of what was given for several inputs; None: it is for one."""
    if not isinstance(given, tuple | list):
        return None
    if inputs > 1:
        return given
    # One input in a tuple, as some write it; its rows would otherwise be the first axis.
    alone = len(given) == 1 and _axes(given[0]) == len(shape) + 1
    return given if alone else None


def _several_targets(given: object, rows: int) -> Sequence[object] | None:
    if isinstance(given, tuple):
        return given if all(map(_axes, given)) else None
    if isinstance(given, list) and len(given) != rows:
        parts = [getattr(part, "shape", ()) for part in given]
        return given if given and all(part and part[0] == rows for part in parts) else None
    return None


def _axes(part: Any) -> int:
    """Return how many axes something has, without making an array of strings or objects."""
    if isinstance(part, tuple | list):
        return 1 + (_axes(part[0]) if part else 0)
    return int(getattr(part, "ndim", 0))


def _array(name: str, given: Any, *, strings: bool) -> Array:
    """Return one array of numbers, or of strings where a model may take those."""
    if given is None or isinstance(given, str | bytes | dict) or np.isscalar(given):
        raise ApplicationError(
            f"{name} must be an array whose first axis counts the rows, found {_kind(given)}"
        )
    if hasattr(given, "toarray"):
        raise ApplicationError(f"{name} is a sparse matrix ({_kind(given)}): pass its .toarray()")
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise ApplicationError(f"{name} has masked elements: fill them or drop their rows")
    try:
        array = np.asarray(given)
    except (ValueError, TypeError) as cause:
        raise ApplicationError(f"{name} makes no array, are its rows alike? {_line(cause)}") from (
            cause
        )
    if array.ndim == 0:
        raise ApplicationError(
            f"{name} must be an array whose first axis counts the rows, found {_kind(given)}"
        )
    if array.dtype == object:
        array = _of_objects(name, given, array)
    kind = array.dtype.kind
    if kind in "US" and strings:
        return array
    if kind in "US":
        raise ApplicationError(
            f"{name} holds strings ({', '.join(map(repr, array.reshape(-1)[:2].tolist()))}, …): "
            "number them, as numpy.unique(y, return_inverse=True)[1] does"
        )
    if kind not in "biufV" or array.dtype.names is not None:
        raise ApplicationError(f"{name} must hold numbers, found dtype {array.dtype}")
    if kind == "V" or array.dtype.isbuiltin == 2:  # bfloat16 and the like, which NumPy lacks
        return array.astype(np.float32)
    if array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _of_objects(name: str, given: Any, array: Array) -> Array:
    """Return numbers out of an array of Python objects, if they are numbers."""
    elements = array.reshape(-1)
    if array.ndim == 1 and len(array) and all(isinstance(e, np.ndarray | list) for e in elements):
        try:
            return np.stack([np.asarray(element) for element in elements])
        except ValueError as cause:
            raise ApplicationError(f"{name} has rows of different shapes") from cause
    if all(isinstance(element, str) for element in elements):
        return array.astype(str)
    wrong = next((e for e in elements if isinstance(e, str | bytes) or not _is_number(e)), None)
    if wrong is not None:
        where = _column_of(given, wrong)
        raise ApplicationError(f"{name}{where} must hold numbers, found {wrong!r} ({_kind(wrong)})")
    if all(isinstance(element, bool | np.bool_) for element in elements):
        return array.astype(bool)
    if all(isinstance(element, int | np.integer) for element in elements):
        return array.astype(np.int64)
    return array.astype(np.float64)  # None becomes NaN, which is refused with the others


def _is_number(element: object) -> bool:
    if element is None:
        return True
    try:
        float(element)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def _column_of(given: Any, wrong: object) -> str:
    """Return the column of a frame that an element stands in, for a message."""
    for column in getattr(given, "columns", ()):
        if any(element is wrong for element in np.asarray(given[column], object)):
            return f", column {column!r},"
    return ""


def _check_finite(name: str, array: Array) -> None:
    """Raise ApplicationError for NaN, infinity, and what is infinite as float32."""
    if array.dtype.kind != "f" or not array.size:
        return
    bad = 0
    step = max(1, _CHUNK * len(array) // array.size)
    for begin in range(0, len(array), step):
        rows = array[begin : begin + step]
        finite = np.isfinite(rows) if rows.itemsize <= 4 else np.abs(rows) <= _FLOAT32_MAX
        if not finite.all():
            bad += int((~finite.reshape(len(rows), -1).all(axis=1)).sum())
    if bad:
        raise ApplicationError(
            f"{name} holds NaN, infinite or too large numbers in {bad:,} of {len(array):,} rows: "
            "fill them or drop those rows"
        )


def _classes(name: str, y: Array, loss: str, units: int) -> Array:
    """Check numbers of classes; return them as integers."""
    if y.ndim == 2 and y.shape[1] > 1 and is_one_hot(y) and y.shape[1] == units:
        raise ApplicationError(
            f"{name} is one-hot, shape {y.shape}, and {loss} takes numbers of classes: use "
            f"y.argmax(axis=1), or loss={loss.removeprefix('sparse_')!r}"
        )
    if y.dtype.kind == "f" and not np.array_equal(y, np.floor(y)):
        raise ApplicationError(
            f"{name} holds {_shown(y[y != np.floor(y)][0])}, and {loss} takes numbers of classes; "
            "for regression use loss='mean_squared_error' and no output_activation"
        )
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= units:
        hint = "number them from 0, as numpy.unique(y, return_inverse=True)[1] does"
        if low >= 0 and units == 1:
            hint = "output_units is the number of classes, 1 only with loss='binary_crossentropy'"
        raise ApplicationError(
            f"{name}: labels {low}..{high}, expected 0..{units - 1} (output_units={units}): {hint}"
        )
    return y.astype(np.int32) if y.dtype.kind in "bf" else y


def _one_hot(name: str, y: Array, loss: str, units: int) -> Array:
    """Check a share for each class; return floats."""
    if y.shape[-1] != units or y.ndim < 2:
        hint = f"or loss='sparse_{loss}'" if loss == "categorical_crossentropy" else ""
        raise ApplicationError(
            f"{name} has the shape {y.shape}, and {loss} takes one-hot rows of {units} numbers "
            f"(output_units): make them, as numpy.eye({units})[y] does, {hint}".rstrip(", ")
        )
    return _between(name, y, loss, "shares from 0 to 1")


def _unit(name: str, y: Array, loss: str, units: int) -> Array:
    """Check numbers from 0 to 1, one for each output."""
    return _between(name, _numbers(name, y, loss, units), loss, "0, 1 or what lies between")


def _between(name: str, y: Array, loss: str, what: str) -> Array:
    low, high = y.min(), y.max()
    if low < 0 or high > 1:
        raise ApplicationError(
            f"{name}: labels {_shown(low)}..{_shown(high)}, and {loss} takes {what}"
        )
    return y.astype(np.float32) if y.dtype == bool else y


def _numbers(name: str, y: Array, loss: str, units: int) -> Array:
    """Check that there is a number for each output."""
    if not _has_outputs_shape(y, units):
        raise ApplicationError(
            f"{name} has {math.prod(y.shape[1:])} numbers a row, shape {y.shape}, and output_units "
            f"is {units}: {loss} takes as many as there are outputs"
        )
    return y.astype(np.float32) if y.dtype == bool else y


_FITS: dict[str, Callable[[str, Array, str, int], Array]] = {
    CLASSES: _classes,
    ONE_HOT: _one_hot,
    UNIT: _unit,
    NUMBERS: _numbers,
}


def _check_metric(
    name: str, y: Array, metric: Any, loss: str, kind: str, units: int, given: Any
) -> None:
    known = _terms.METRICS.get(metric) if isinstance(metric, str) else None
    if known is None:
        return
    if known.targets == CLASSES and (kind in (UNIT, NUMBERS, ONE_HOT) or units == 1):
        better = "binary_accuracy" if units == 1 else "categorical_accuracy"
        raise ApplicationError(
            f"metric {given!r} takes numbers of classes, which {name}, shape {y.shape}, are not "
            f"for this loss: use metric={better!r}"
        )
    if kind == CLASSES and (known.targets == NUMBERS or (metric in _terms.SCORES and units == 1)):
        if units == 1:
            raise ApplicationError(
                f"metric {given!r}: with {loss} and one output there is but one class; "
                "output_units is the number of classes, 1 only with loss='binary_crossentropy'"
            )
        raise ApplicationError(
            f"metric {given!r} takes as many targets as there are outputs ({units}), and {name} "
            "holds numbers of classes: use metric='accuracy'"
        )
    counts = metric in ("binary_accuracy", "categorical_accuracy", *_terms.SCORES)
    if counts and kind == NUMBERS and not np.isin(y, (-1, 0, 1)).all():
        raise ApplicationError(
            f"metric {given!r} counts classes, and {name} holds {_shown(y.min())} to "
            f"{_shown(y.max())}: use 'r2_score' or 'mean_absolute_error'"
        )


def _has_outputs_shape(y: Array, units: int) -> bool:
    """Whether targets have a number for each output, or an axis of them at the end."""
    return math.prod(y.shape[1:]) == units or (y.ndim > 1 and y.shape[-1] == units)


def is_one_hot(y: Array) -> bool:
    """Whether each row of targets, shape (rows, classes), names one class."""
    return bool(np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all())


def _shown(number: Any) -> str:
    return f"{number:g}" if isinstance(number, np.floating | float) else str(int(number))


def _kind(given: object) -> str:
    return type(given).__name__


def _line(cause: BaseException) -> str:
    return " ".join(str(cause).split())
