"""The front of a search for several objectives: the models on it, and how it came to be."""

from __future__ import annotations

import itertools
import math

import numpy as np

from transfer_nas.best import hypervolume
from transfer_nas.objectives import Objective
from transfer_nas.report import charts
from transfer_nas.report.best import Architectures, picture, retrain_command
from transfer_nas.report.charts import Chart, Figure, Floats, Table, View
from transfer_nas.report.progress import CURVE, count_of, time_of, unit_of
from transfer_nas.runs import Run

_POINTS = 3_000  # drawn beside the front at most
_PICTURES = 6  # evenly chosen along the front
_AHEAD = 3  # objectives whose hypervolume is known at most


def view(run: Run, architectures: Architectures) -> View | None:
    """Return the view of a run's front; None if it has one objective."""
    if run.objectives is None:
        return None
    front, history = run.fronts()
    if not front.members:
        return View("front", "Front", missing="No evaluation has worked yet.")
    objectives = run.objectives
    first = objectives[0]
    rows = [run.row_of[job] for job in front.members]
    found = {each.name: _values(run, each) for each in objectives}
    rows.sort(key=lambda row: first.score(found[first.name][row]), reverse=True)
    names = ", ".join(f"{each.name} ({each.direction})" for each in objectives)
    chosen = [rows[i] for i in charts.thinned(len(rows), _PICTURES).tolist()]
    return View(
        "front",
        "Front",
        f"Searched for {names}. On the front are the models than which no other is as good in all "
        "of them and better in one.",
        figures=[_scatter(run, rows, found), _over_time(run, history, found)],
        tables=[_table(run, rows, found)],
        pictures=[each for row in chosen if (each := picture(run, row, architectures))[1]],
    )


def _values(run: Run, objective: Objective) -> Floats:
    if objective.measure is None:
        return -run.objective if objective.negated else run.objective
    return np.where(run.done, run.measure(objective.measure), np.nan)


def _scatter(run: Run, rows: list[int], found: dict[str, Floats]) -> Figure:
    """Return the front among all that worked, for each pair of objectives."""
    assert run.objectives is not None
    others = np.setdiff1d(np.flatnonzero(run.done), rows)
    others = others[charts.thinned(len(others), _POINTS)]

    def chart(across: Objective, up: Objective) -> Chart:
        x, y = found[across.name], found[up.name]
        order = sorted(rows, key=lambda row: (x[row], y[row]))
        labels = [f"job {run.job[row]}" for row in order]
        series = [
            charts.points("other models", x[others], y[others], "muted", _labels(run, others)),
            charts.line("front", x[order], y[order], "first", thin=True),
            charts.points("on the front", x[order], y[order], "first", labels),
        ]
        return charts.xy(_axis(across), _axis(up), series)

    pairs = itertools.combinations(run.objectives, 2)
    ends = {
        each.name: each.text(float(found[each.name][rows][_best(each, found[each.name][rows])]))
        for each in run.objectives
    }
    return Figure(
        "front-models",
        "Models on the front",
        f"{charts.counted(len(rows), 'model')} on the front of {int(run.done.sum()):,} that "
        f"worked. Best: {', '.join(f'{name} {text}' for name, text in ends.items())}.",
        {f"{up.name} against {across.name}": chart(across, up) for up, across in pairs},
        "Each point names its model."
        + (" With more than two objectives the front is no line." if len(ends) > 2 else ""),
        logarithmic=("x", "y"),
    )


def _labels(run: Run, rows: charts.Integers) -> list[str]:
    return [f"job {job}" for job in run.job[rows].tolist()]


def _axis(objective: Objective) -> str:
    way = "lower" if objective.direction == "min" else "higher"
    return f"{objective.name.replace('_', ' ')} ({way} is better)"


def _best(objective: Objective, values: Floats) -> int:
    return int(np.argmax(values if objective.direction == "max" else -values))


def _over_time(
    run: Run, history: list[tuple[int, tuple[int, ...]]], found: dict[str, Floats]
) -> Figure:
    """Return hypervolume and number of models over time."""
    assert run.objectives is not None
    history = [history[i] for i in charts.thinned(len(history), CURVE).tolist()]
    rows = np.array([row for row, _ in history])
    sizes = np.array([len(jobs) for _, jobs in history], dtype=np.float64)
    curves = {"models on the front": sizes}
    label = f"The front has {charts.counted(int(sizes[-1]), 'model')}."
    if len(run.objectives) <= _AHEAD:
        scores = np.array(
            [[each.score(value) for value in found[each.name].tolist()] for each in run.objectives]
        ).T
        known = scores[np.isfinite(scores).all(axis=1)]
        worst, reach = known.min(axis=0), np.ptp(known, axis=0)
        scaled = (scores - worst) / np.where(reach > 0, reach, 1)
        volumes = [
            hypervolume(scaled[[run.row_of[job] for job in jobs]], np.zeros(len(worst)))
            for _, jobs in history
        ]
        curves = {"hypervolume": np.array(volumes), **curves}
        label = (
            f"The hypervolume is {volumes[-1]:.3f} in the end; it was {volumes[-1] / 2:.3f} or "
            f"more after {int(rows[np.argmax(np.array(volumes) >= volumes[-1] / 2)]) + 1:,} "
            f"evaluations. {label}"
        )
    unit = unit_of([run])
    moments = {
        "evaluations": ("evaluations that ended", count_of(run)),
        "time": (f"{unit.name} since the search began", time_of(run, unit)),
    }
    shown = {}
    for name, values in curves.items():
        for by, (axis, x) in moments.items():
            whole = np.append(x[rows], x[-1]), np.append(values, values[-1])
            series = [charts.line(name, *whole, "first", step=True)]
            shown[f"{name} over {by}"] = charts.xy(axis, name, series, x_zero=True, y_zero=True)
    return Figure(
        "front-over-time",
        "The front over time",
        label,
        shown,
        "Hypervolume: the share of the space between the worst and the best of each objective that "
        "the front beats; of costs, such as parameters, by their logarithm.",
    )


def _table(run: Run, rows: list[int], found: dict[str, Floats]) -> Table:
    assert run.objectives is not None
    cells = [
        [
            f"job {run.job[row]}",
            *(each.text(float(found[each.name][row])) for each in run.objectives),
            _count(run.measure("layers")[row]),
            _count(run.measure("epochs")[row]),
            f"front/{run.job[row]}.keras",
        ]
        for row in rows
    ]
    columns = ["model", *(each.name for each in run.objectives), "layers", "epochs", "file"]
    commands = [retrain_command(run, int(run.job[row])) for row in rows]
    numeric = frozenset(range(1, len(columns) - 1))
    jobs = {0: [int(run.job[row]) for row in rows]}
    return Table("On the front", columns, cells, numeric, commands, "train it alone", jobs)


def _count(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else "–"
