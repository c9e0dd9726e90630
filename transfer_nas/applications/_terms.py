"""What losses, metrics and optimizers are called, what they take, and which way is better.

Names that are known here are checked without Keras, whose import takes seconds; others are looked
up there. Each may be spelt as Keras spells it anywhere: ``mse``, ``MSE``, ``mean_squared_error``
and ``MeanSquaredError`` are one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from transfer_nas.errors import ApplicationError, near_misses

Direction = Literal["max", "min"]

CLASSES, ONE_HOT, UNIT, NUMBERS, ANY = "classes", "one-hot", "unit", "numbers", "any"
"""What targets are: numbers of classes, one a row; a share for each class; numbers from 0 to 1 in
the shape of the outputs; numbers in the shape of the outputs; whatever the user means."""

LOSSES: Mapping[str, str] = {
    "sparse_categorical_crossentropy": CLASSES,
    **dict.fromkeys(
        ("categorical_crossentropy", "categorical_focal_crossentropy", "categorical_hinge"), ONE_HOT
    ),
    **dict.fromkeys(("binary_crossentropy", "binary_focal_crossentropy", "dice", "tversky"), UNIT),
    **dict.fromkeys(
        (
            "cosine_similarity",
            "hinge",
            "huber",
            "kl_divergence",
            "log_cosh",
            "mean_absolute_error",
            "mean_absolute_percentage_error",
            "mean_squared_error",
            "mean_squared_logarithmic_error",
            "poisson",
            "squared_hinge",
        ),
        NUMBERS,
    ),
    "circle": ANY,
    "ctc": ANY,
    "crossentropy": ANY,  # one of three, by the shape of the targets
}
"""By Keras name: what targets it takes."""

_SPARSE = "sparse_categorical_accuracy"
_LESS = (
    "binary_crossentropy",
    "categorical_crossentropy",
    "categorical_hinge",
    "false_negatives",
    "false_positives",
    "hinge",
    "kl_divergence",
    "log_cosh_error",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "poisson",
    "root_mean_squared_error",
    "squared_hinge",
)
_MORE = (
    "auc",
    "binary_accuracy",
    "binary_io_u",
    "categorical_accuracy",
    "concordance_correlation",
    "cosine_similarity",
    "f1_score",
    "f_beta_score",
    "pearson_correlation",
    "precision",
    "r2_score",
    "recall",
    "top_k_categorical_accuracy",
    "true_negatives",
    "true_positives",
)


class Metric(NamedTuple):
    """A metric: what targets it takes, and which way is better."""

    targets: str
    direction: Direction


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(ANY, "max"),  # one of three, by the shape of the targets
    _SPARSE: Metric(CLASSES, "max"),
    "sparse_top_k_categorical_accuracy": Metric(CLASSES, "max"),
    "sparse_categorical_crossentropy": Metric(CLASSES, "min"),
    **{name: Metric(NUMBERS, "min") for name in _LESS},
    **{name: Metric(NUMBERS, "max") for name in _MORE},
}
"""By Keras name. What is not among them has no known direction."""

OPTIMIZERS = (
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamw",
    "ftrl",
    "lion",
    "nadam",
    "rmsprop",
    "sgd",
)

_SHORT = {
    "acc": "accuracy",
    "bce": "binary_crossentropy",
    "ce": "crossentropy",
    "kld": "kl_divergence",
    "mae": "mean_absolute_error",
    "mape": "mean_absolute_percentage_error",
    "mse": "mean_squared_error",
    "msle": "mean_squared_logarithmic_error",
}
_MODES: Mapping[str, Direction] = {
    "max": "max",
    "maximise": "max",
    "maximize": "max",
    "min": "min",
    "minimise": "min",
    "minimize": "min",
}


class Terms(NamedTuple):
    """An application's loss, metric and optimizer as engines take them.

    Those that were given by name are there by one name each, the one that `LOSSES`, `METRICS` and
    `OPTIMIZERS` have; others are what was given.
    """

    loss: Any
    metric: Any
    optimizer: Any


def plain_name(given: Any) -> Any:
    """Return the one name of a loss or metric; what is no name as it is."""
    if not isinstance(given, str):
        return given
    snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", given))
    return _SHORT.get(snake.lower(), snake.lower())


def mode_of(given: object) -> Direction:
    """Return the mode that a user spelt out; raises ApplicationError."""
    mode = _MODES.get(given.lower()) if isinstance(given, str) else None
    if mode is None:
        raise ApplicationError(
            f"mode must be 'max' (more of the metric is better) or 'min', not {given!r}"
        )
    return mode


def direction_of(metric: Any, mode: Direction | None) -> Direction:
    """Return which way of a metric is better.

    Raises
    ------
    ApplicationError
        It is not known and `mode` does not say it, or `mode` says the opposite.
    """
    known = METRICS.get(plain_name(metric if isinstance(metric, str) else type(metric).__name__))
    shown = metric if isinstance(metric, str) else getattr(metric, "__name__", metric)
    if known is None:
        if mode is None:
            raise ApplicationError(
                f"metric {shown!r}: is more of it better, or less? Say mode='max' or mode='min'"
            )
        return mode
    if mode not in (None, known.direction):
        more = "more" if known.direction == "max" else "less"
        raise ApplicationError(
            f"mode={mode!r} would search for the worst, as {more} of metric {shown!r} is better: "
            "leave mode out"
        )
    return known.direction


def check_names(loss: Any, metric: Any, optimizer: Any) -> None:
    """Raise ApplicationError, with near misses, unless Keras has them all."""
    for what, given, known in (("loss", loss, LOSSES), ("metric", metric, METRICS)):
        if isinstance(given, str):
            if plain_name(given) not in known:
                _look_up(what, given, known)
        elif not callable(given) and not isinstance(given, dict):
            raise ApplicationError(f"{what} must be the name of a Keras {what}, not {given!r}")
    if isinstance(optimizer, str):
        if optimizer.lower() not in OPTIMIZERS:
            _look_up("optimizer", optimizer, OPTIMIZERS)
    elif not isinstance(optimizer, dict):
        raise ApplicationError(
            "optimizer must be the name of a Keras optimizer, or its configuration (an optimizer "
            f"object serves one model only), not {optimizer!r}"
        )


def _look_up(what: str, given: str, known: Any) -> None:
    try:
        import keras
    except ImportError:
        keras = None
    try:
        if keras is not None:
            getattr(keras, {"loss": "losses"}.get(what, f"{what}s")).get(given)
            return
    except TypeError as cause:
        kind = f"keras.{what}s"
        raise ApplicationError(
            f"{what} {given!r} cannot be made by its name alone, give an object of {kind}: {cause}"
        ) from cause
    except ValueError:
        pass
    raise ApplicationError(f"unknown {what} {given!r}; {near_misses(given, known)}")


def resolved_loss(loss: Any, units: int, target: tuple[int, ...] | None) -> Any:
    """Return the one name of a loss; ``crossentropy`` is one of three, as in Keras.

    Parameters
    ----------
    loss
        As the user gave it.
    units
        Width of the outputs.
    target
        Shape of the targets without the first axis; None: there are several of them.
    """
    name = plain_name(loss)
    if name != "crossentropy" or target is None:
        return name
    if units == 1:
        return "binary_crossentropy"
    return f"{'sparse_' if _is_sparse(target) else ''}categorical_crossentropy"


def resolved_metric(metric: Any, loss: Any, units: int, target: tuple[int, ...] | None) -> Any:
    """Return the one name of a metric; ``accuracy`` is one of three, as in Keras."""
    name = plain_name(metric)
    if name != "accuracy" or target is None:
        return name
    if units == 1:
        return "binary_accuracy"
    sparse = LOSSES.get(loss) == CLASSES if isinstance(loss, str) else False
    return _SPARSE if sparse or _is_sparse(target) else "categorical_accuracy"


def _is_sparse(target: tuple[int, ...]) -> bool:
    return not target or target[-1] == 1
