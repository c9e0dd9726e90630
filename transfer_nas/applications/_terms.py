"""What losses, metrics and optimizers are called, what they take, and which way is better.

Names that are known here are checked without Keras, whose import takes seconds; others are looked
up there. Each may be spelt as Keras spells it anywhere: ``mse``, ``MSE``, ``mean_squared_error``
and ``MeanSquaredError`` are one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
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

SCORES = ("auc", "auc_pr", "f1", "mcc")
"""Metrics of classes that `training.scores` computes from all predictions at once, whatever form
the targets have and whichever engine trains; macro averages where there are several classes."""

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
    "binary_accuracy",
    "binary_io_u",
    "categorical_accuracy",
    "concordance_correlation",
    "cosine_similarity",
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
    **{name: Metric(ANY, "max") for name in SCORES},
    "accuracy": Metric(ANY, "max"),  # one of three, by the shape of the targets
    _SPARSE: Metric(CLASSES, "max"),
    "sparse_top_k_categorical_accuracy": Metric(CLASSES, "max"),
    "sparse_categorical_crossentropy": Metric(CLASSES, "min"),
    **{name: Metric(NUMBERS, "min") for name in _LESS},
    **{name: Metric(NUMBERS, "max") for name in _MORE},
}
"""By Keras name. What is not among them has no known direction."""

_OF_PROBABILITIES = (
    "auc",
    "auc_pr",
    "binary_crossentropy",
    "categorical_crossentropy",
    "precision",
    "recall",
    "sparse_categorical_crossentropy",
)
"""Metrics that mean nothing of a linear layer's outputs."""

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
    "auc-pr": "auc_pr",
    "aucpr": "auc_pr",
    "auprc": "auc_pr",
    "pr_auc": "auc_pr",
    "auroc": "auc",
    "roc_auc": "auc",
    "f1_score": "f1",  # Keras' has a number for each class
    "r2": "r2_score",
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


class Judged(NamedTuple):
    """How one output is trained and judged, as engines take it.

    Loss and metrics that were given by name are there by one name each, the one that `LOSSES` and
    `METRICS` have; others are what was given (`new`).

    Attributes
    ----------
    loss
        What is minimised.
    metrics
        By what results call them.
    weight
        Of the loss, among those of all outputs.
    """

    loss: Any
    metrics: Mapping[str, Any]
    weight: float = 1.0


class Terms(NamedTuple):
    """An application's losses, metrics and optimizer as engines take them."""

    outputs: tuple[Judged, ...]
    optimizer: Any

    @property
    def loss(self) -> Any:
        """The first output's, which most often is the only one."""
        return self.outputs[0].loss

    @property
    def metric(self) -> Any:
        """The first one of the first output that has any; None: there is none."""
        return next((term for each in self.outputs for term in each.metrics.values()), None)


def new(given: Any) -> Any:
    """Return an object for one model only: what a function or class makes, or an object's copy.

    Names, configurations, and functions of targets and predictions are what they are.
    """
    if isinstance(given, type):
        return given()
    if hasattr(given, "get_config"):
        return type(given).from_config(given.get_config())
    return given() if is_maker(given) else given


def is_maker(given: Any) -> bool:
    """Whether something is a function that makes objects: one that can do without arguments."""
    if not callable(given) or hasattr(given, "get_config"):
        return False
    try:
        inspect.signature(given).bind()
    except (TypeError, ValueError):
        return False
    return True


def name_of(given: Any) -> str:
    """Return what results call a metric."""
    if is_maker(given) and not isinstance(given, type):
        given = given()
    name = given
    if not isinstance(given, str):
        name = getattr(given, "__name__", None) or getattr(given, "name", type(given).__name__)
    return re.sub(r"\W", "_", str(plain_name(name)))


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
    known = known_direction(metric)
    shown = metric if isinstance(metric, str) else getattr(metric, "__name__", metric)
    if known is None:
        if mode is None:
            raise ApplicationError(
                f"metric {shown!r}: is more of it better, or less? Say mode='max' or mode='min'"
            )
        return mode
    if mode not in (None, known):
        more = "more" if known == "max" else "less"
        raise ApplicationError(
            f"mode={mode!r} would search for the worst, as {more} of metric {shown!r} is better: "
            "leave mode out"
        )
    return known


def known_direction(metric: Any) -> Direction | None:
    """Return which way of a metric is better, if that is known of its name or class."""
    kind = metric if isinstance(metric, str | type) else type(metric)
    found = METRICS.get(plain_name(kind if isinstance(kind, str) else kind.__name__))
    return None if found is None else found.direction


def check_probabilities(metric: Any, kind: str | None) -> None:
    """Raise ApplicationError for a metric of probabilities; the outputs are of a linear layer."""
    name = metric if isinstance(metric, str | type) else type(metric)
    name = plain_name(name if isinstance(name, str) else name.__name__)
    if name in _OF_PROBABILITIES or (name in ("f1", "mcc") and kind == UNIT):
        wanted = "sigmoid" if kind == UNIT else "softmax"
        raise ApplicationError(
            f"metric {name_of(metric)} takes probabilities, and the networks end in a linear "
            f"layer: set output_activation={wanted!r}"
        )


def check_names(losses: Iterable[Any], metrics: Iterable[Any], optimizer: Any) -> None:
    """Raise ApplicationError, with near misses, unless Keras has them all."""
    asked: list[tuple[str, Any, Iterable[str]]] = [("loss", each, LOSSES) for each in losses]
    asked += [("metric", each, METRICS) for each in metrics]
    for what, given, known in asked:
        if isinstance(given, str):
            if plain_name(given) not in known:
                _look_up(what, given, known)
        elif not callable(given) and not isinstance(given, dict):
            raise ApplicationError(
                f"{what} must be the name of a Keras {what}, an object of one or a function, "
                f"not {given!r}"
            )
    if isinstance(optimizer, str):
        if optimizer.lower() not in OPTIMIZERS:
            _look_up("optimizer", optimizer, OPTIMIZERS)
    elif not isinstance(optimizer, dict) and not (
        hasattr(optimizer, "get_config") or isinstance(optimizer, type) or is_maker(optimizer)
    ):
        raise ApplicationError(
            "optimizer must be the name of a Keras optimizer, its configuration, an optimizer (of "
            f"which each candidate gets a copy) or a function that makes one, not {optimizer!r}"
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
