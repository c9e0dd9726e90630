"""What the best model gets wrong: the confusion matrix of classes, or residuals of values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from transfer_nas import judgement, runs, trained_model
from transfer_nas.errors import InputError
from transfer_nas.report import charts
from transfer_nas.report.charts import Figure, Floats, Table, View
from transfer_nas.report.scale import Scale
from transfer_nas.runs import Run

_LARGEST = 20_000_000  # bytes of a file that can be one
_WORST = 8  # rows of the table of confusions


def read(run: Run) -> dict[str, Any] | None:
    """Return what the best predicts; None if there is nothing, or it is of an earlier best."""
    try:
        if any(True for _ in runs.open_files(run.path, f"best{trained_model.SUFFIX}")):
            return None
        content = [file.read(_LARGEST) for file in runs.open_files(run.path, judgement.NAME)]
        found = json.loads(content[0]) if content else None
    except (InputError, ValueError):  # the page is no worse without it
        return None
    return found if isinstance(found, dict) and _is_sound(found) else None


def interval(run: Run) -> tuple[float, float] | None:
    """Return the 95 % interval of the best's metric; None if nothing tells."""
    if run.best is None:
        return None
    scale = Scale.of(run)
    found = scale.interval(float(run.objective[run.best]))
    if found is None:
        judged = read(run)
        names = {value.name for value in run.own_values}
        if scale.name.replace(" ", "_") in names:  # it is of the metric, which is not the objective
            return None
        if judged is not None and isinstance(judged.get("interval"), list):
            low, high = judged["interval"]
            found = (float(low), float(high))
    return found


def view(run: Run) -> View | None:
    """Return what the best model gets wrong; None if the run does not tell."""
    judged = read(run)
    if judged is None or run.best is None:
        return None
    rows = f"{judged['rows']:,}"
    if judged["rows"] < judged["of"]:
        rows += f" of {judged['of']:,}"
    title = f"What job {run.job[run.best]}, the best, gets wrong"
    if judged["kind"] == "classes":
        return View("judged", title, figures=[_confusion(judged, rows)], tables=_worst(judged))
    return View("judged", title, figures=[_residuals(judged, rows)])


def _confusion(judged: Mapping[str, Any], rows: str) -> Figure:
    counts = np.array(judged["counts"], dtype=np.int64)
    right = int(np.trace(counts))
    return Figure(
        "judged-confusion",
        "Confusion matrix",
        f"{right:,} of {int(counts.sum()):,} validation rows are right.",
        {
            "counts": {
                "kind": "confusion",
                "classes": [str(i) for i in range(len(counts))],
                "counts": counts.tolist(),
            }
        },
        f"On {rows} validation rows: a line for each class that is true, a column for each that is "
        "predicted; the stronger the colour, the larger the share of the line.",
    )


def _worst(judged: Mapping[str, Any]) -> list[Table]:
    counts = np.array(judged["counts"], dtype=np.int64)
    off = counts.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:_WORST]
    rows = []
    for true, predicted in zip(*np.unravel_index(order, off.shape), strict=True):
        if off[true, predicted]:
            share = off[true, predicted] / counts[true].sum()
            rows.append([str(true), str(predicted), f"{off[true, predicted]:,}", f"{share:.1%}"])
    columns = ["true class", "predicted", "rows", "of the class"]
    table = Table("Taken for each other most", columns, rows, frozenset({2, 3}))
    return [table] if rows else []


def _residuals(judged: Mapping[str, Any], rows: str) -> Figure:
    true = np.array(judged["true"], dtype=np.float64)
    predicted = np.array(judged["predicted"], dtype=np.float64)
    left = predicted - true
    ends = np.array([min(true.min(), predicted.min()), max(true.max(), predicted.max())])
    label = (
        f"Predicted minus true is {left.mean():+.3g} on average, with a standard deviation of "
        f"{left.std():.3g}; half of the errors are smaller than {np.median(np.abs(left)):.3g}."
    )
    caption = f"On {rows} validation rows, in the units of the targets."
    if judged["outputs"] > 1:
        caption += f" All {judged['outputs']} outputs together."
    return Figure(
        "judged-residuals",
        "Predicted and true values",
        label,
        {
            "predicted": charts.xy(
                "true value",
                "predicted value",
                [
                    charts.line("as it should be", ends, ends, "muted"),
                    charts.points("validation rows", true, predicted, "first"),
                ],
            ),
            "residuals": charts.xy(
                "predicted value",
                "predicted minus true",
                [
                    charts.line("as it should be", _span(predicted), np.zeros(2), "muted"),
                    charts.points("validation rows", predicted, left, "first"),
                ],
            ),
        },
        caption,
    )


def _span(values: Floats) -> Floats:
    return np.array([values.min(), values.max()])


def _is_sound(found: Mapping[str, Any]) -> bool:
    """Whether a file is what `judgement.write` writes."""
    if found.get("format") != judgement.FORMAT or not all(
        isinstance(found.get(name), int) and found[name] > 0 for name in ("rows", "of")
    ):
        return False
    try:
        if found.get("kind") == "classes":
            counts = np.array(found["counts"], dtype=np.int64)
            return bool(
                counts.ndim == 2
                and 2 <= len(counts) == counts.shape[1] <= 100
                and (counts >= 0).all()
                and counts.sum() > 0
            )
        pairs = np.array([found["true"], found["predicted"]], dtype=np.float64)
        limits = np.array(found.get("interval", [0, 0]), dtype=np.float64)
        return bool(
            found.get("kind") == "values"
            and isinstance(found.get("outputs"), int)
            and pairs.ndim == 2
            and pairs.shape[1] > 0
            and np.isfinite(pairs).all()
            and limits.shape == (2,)
            and np.isfinite(limits).all()
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
