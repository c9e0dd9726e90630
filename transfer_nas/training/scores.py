"""Metrics of classes that need all predictions at once: `auc`, `auc_pr`, `f1`, `mcc`.

Exact, where Keras' own take thresholds, and the same for all engines. Targets may be numbers of
classes, one-hot rows, or 0 and 1 for each output. Two classes are one question, whether a row is of
the second. Of several classes, or several outputs of 0 and 1, `auc`, `auc_pr` and `f1` are the mean
over those that the targets have (macro); `mcc` of several classes is that of the confusion matrix
(Gorodkin, *Comparing two K-category assignments by a K-category correlation coefficient*, 2004).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from transfer_nas.applications._rows import is_one_hot

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def score(name: str, y: Array, p: Array, weights: Array | None = None) -> float:
    """Return a metric; NaN where it is not defined, as where all rows are of one class.

    Parameters
    ----------
    name
        One of `applications._terms.SCORES`.
    y
        Targets of the rows.
    p
        Predictions, ``(rows, outputs)``.
    weights
        Of the rows; None: equal.
    """
    p = np.asarray(p, np.float64).reshape(len(p), -1)
    w = np.ones(len(p)) if weights is None else np.asarray(weights, np.float64)
    flat = np.asarray(y).reshape(len(p), -1)
    width = p.shape[1]
    if width == 1 or (flat.shape[1] == width and not is_one_hot(flat)):
        truths, decided = flat > 0, p > 0.5
        each = [_of_one(name, truths[:, i], p[:, i], decided[:, i], w) for i in range(width)]
        return _mean(each)
    true = flat[:, 0].astype(np.int64) if flat.shape[1] == 1 else flat.argmax(axis=1)
    decision = p.argmax(axis=1)
    if name == "mcc":
        return _correlation(true, decision, width, w)
    classes = [1] if width == 2 else np.unique(true[w > 0])
    return _mean([_of_one(name, true == c, p[:, c], decision == c, w) for c in classes])


def _of_one(name: str, true: Array, p: Floats, decided: Array, w: Floats) -> float:
    if name == "f1":
        hits = w[true & decided].sum()
        both = w[true].sum() + w[decided].sum()
        return float(2 * hits / both) if both else 0.0
    if name == "mcc":
        return _correlation(true.astype(np.int64), decided.astype(np.int64), 2, w)
    return _AREAS[name](true, p, w)


def _auc(true: Array, p: Floats, w: Floats) -> float:
    """Return the area under the ROC curve; ties count half."""
    hits, falls = _cumulated(true, p, w)
    if not (hits[-1] and falls[-1]):
        return float("nan")
    area = (np.diff(falls) * (hits[1:] + hits[:-1])).sum() / 2
    return float(area / (hits[-1] * falls[-1]))


def _auc_pr(true: Array, p: Floats, w: Floats) -> float:
    """Return average precision: the area under the steps of precision over recall."""
    hits, falls = _cumulated(true, p, w)
    if not hits[-1]:
        return float("nan")
    taken = hits[1:] + falls[1:]
    precision = np.divide(hits[1:], taken, out=np.zeros_like(taken), where=taken > 0)
    return float((np.diff(hits) * precision).sum() / hits[-1])


def _cumulated(true: Array, p: Floats, w: Floats) -> tuple[Floats, Floats]:
    """Return weights of positives and of negatives above each threshold, from the highest on."""
    order = np.argsort(-p, kind="stable")
    last = np.append(np.diff(p[order]) != 0, True)  # of rows with equal predictions
    positive = np.cumsum(np.where(true, w, 0.0)[order])[last]
    negative = np.cumsum(np.where(true, 0.0, w)[order])[last]
    return np.append(0.0, positive), np.append(0.0, negative)


def _correlation(true: Array, decided: Array, classes: int, w: Floats) -> float:
    counts = np.zeros((classes, classes))
    np.add.at(counts, (true, decided), w)
    total, hits = counts.sum(), np.trace(counts)
    of_true, of_decided = counts.sum(axis=1), counts.sum(axis=0)
    spread = (total**2 - of_true @ of_true) * (total**2 - of_decided @ of_decided)
    return float((hits * total - of_true @ of_decided) / np.sqrt(spread)) if spread > 0 else 0.0


def _mean(values: list[float]) -> float:
    defined = [value for value in values if value == value]
    return float(np.mean(defined)) if defined else float("nan")


_AREAS: Mapping[str, Callable[[Array, Floats, Floats], float]] = {"auc": _auc, "auc_pr": _auc_pr}
"""Of one question, by name; the others are made of decisions."""
