"""Objective against what a model takes, and gene by gene: charts of every evaluation.

Their data is that of the table (`rows.py`); here is what they show of it, and the sentences.
"""

from __future__ import annotations

import numpy as np

from transfer_nas.report import charts
from transfer_nas.report.charts import Chart, Figure, Floats, View
from transfer_nas.report.genes import explained
from transfer_nas.report.scale import Scale
from transfer_nas.runs import Run

_AGAINST = {
    "parameters": "m:parameters",
    "training time": "m:train_seconds",
    "layers": "m:layers",
    "layers transferred": "m:layers_transferred",
    "epochs": "m:epochs",
    "bytes stored": "m:bytes_stored",
}


def against(run: Run) -> View:
    """Return the view of the objective against size and time."""
    title = "Objective against size and time"
    scale = Scale.of(run)
    numbers = [value for value in run.own_values if value.kind is not str]
    more = {f"m:{value.name}" for value in numbers if value.direction == "max"}
    shown = {
        name: column
        for name, column in {
            **{value.label: f"m:{value.name}" for value in numbers},
            **_AGAINST,
        }.items()
        for values in [run.numbers(column)[run.done & np.isfinite(run.numbers(column))]]
        if len(values) and values.min() < values.max()
    }
    if not shown or run.done.sum() < 3:
        return View("against", title, missing="There are too few evaluations that worked.")
    found = {name: rank_correlation(run.numbers(shown[name]), run.objective) for name in shown}
    label = (
        "Rank correlation with how good the model is (Spearman; +1: more is always better): "
        + (", ".join(f"{name} {value:+.2f}" for name, value in found.items()) + ".")
    )
    figure = Figure(
        "against-scatter",
        f"{scale.name} against",
        label,
        {
            name: {"kind": "scatter", "rows": True, "x": column, "y": "objective"}
            | ({"more": True} if column in more else {})
            for name, column in shown.items()
        },
        "Each point is an evaluation; the line joins those that nothing smaller or faster is "
        "better than. Click a point for its details. Failures are not shown.",
        logarithmic=("x", "y"),
    )
    return View("against", title, figures=[figure])


def rank_correlation(a: Floats, b: Floats) -> float:
    """Return Spearman's rank correlation of the pairs that are numbers, 0 if one never changes."""
    good = np.isfinite(a) & np.isfinite(b)
    ranks = [_ranks(values[good]) for values in (a, b)]
    if min(float(r.std()) if len(r) else 0.0 for r in ranks) == 0:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Floats) -> Floats:
    """Return the rank of each value, the mean one for equals."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[where], dtype=np.float64)


def slices(run: Run) -> list[Figure]:
    """Return the figures of one gene, and of two, against the objective."""
    share = explained(run)
    names = [list(run.genes)[i] for i in np.argsort(-share, kind="stable").tolist()]
    by_name = dict(zip(run.genes, share.tolist(), strict=True))
    slice_of: dict[str, Chart] = {
        f"{name} ({by_name[name]:.0%})": {"kind": "slice", "rows": True, "gene": f"p:{name}"}
        for name in names
    }
    figures = [
        Figure(
            "genes-slices",
            "One gene",
            f"{charts.counted(len(names), 'gene')}; in brackets, the share of the variance that "
            "lies between the values of each.",
            slice_of,
            "Boxes: the middle half of the evaluations with that value and their median; whiskers: "
            "the least and the most. In brackets: how many worked, and how many failed.",
        )
    ]
    if len(names) > 1:
        pairs: dict[str, Chart] = {
            name: {"kind": "pairs", "rows": True, "gene": f"p:{name}"} for name in names
        }
        figures.append(
            Figure(
                "genes-pairs",
                "Two genes together",
                f"Mean objective for each pair of values of {names[0]} and {names[1]}; others can "
                "be chosen.",
                pairs,
                "Empty: pairs that were not tried, or never worked. Genes that act on their own "
                "make stripes; blots are what they do together.",
                second={name: f"p:{name}" for name in [*names[1:], names[0]]},
            )
        )
    return figures
