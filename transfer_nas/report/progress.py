"""How the runs went: objective and transfer over time, each run a line or all a band."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from transfer_nas.report import charts
from transfer_nas.report.charts import Chart, Figure, Floats, Integers, Unit, View
from transfer_nas.report.scale import Scale
from transfer_nas.runs import Run

_POINTS = 6_000  # drawn one by one at most
CURVE = 800
"""Points of a line at most."""

_GRID = 240  # points of a band over runs


@dataclass(frozen=True)
class Group:
    """Runs that are shown as one, in one colour."""

    name: str
    runs: Sequence[Run]
    names: Sequence[str]
    colour: str


def objective(groups: Sequence[Group], more: Sequence[Figure] = ()) -> View:
    """Return the view of the objective over time and over evaluations, and `more` figures."""
    runs = [run for group in groups for run in group.runs]
    unit, scale = unit_of(runs), Scale.common([run for group in groups for run in group.runs])
    time, count = f"{unit.name} since the search began", "evaluations that ended"

    def natural(run: Run) -> Floats:
        return scale.natural(run.running_best)

    if len(runs) == 1:
        run = runs[0]
        one = (_one_run(run, time_of(run, unit)), _one_run(run, count_of(run)))
        improved = len(_improvements(run))
        best = run.best
        label = "No evaluation has worked yet."
        if best is not None:
            label = (
                f"{charts.counted(int(run.done.sum()), 'objective')}; {scale.better}. The best so "
                f"far changed {charts.counted(improved, 'time')}, last to "
                f"{scale.text(run.objective[best])} after "
                f"{charts.seconds_text(float(run.seconds[best]))}."
            )
        drawn = len(_drawn(run))
        caption = "The shade holds the middle 80 % of the evaluations around each moment."
        if drawn < int(run.done.sum()):
            caption += (
                f" {drawn:,} of {int(run.done.sum()):,} points are drawn, evenly chosen; all that "
                "improved the best are among them."
            )
    else:
        one = (
            several(groups, lambda run: time_of(run, unit), natural),
            several(groups, count_of, natural),
        )
        label = (
            each_group(groups, lambda group: _finals(group, scale))
            + f" {scale.better.capitalize()}."
        )
        label = label[0].upper() + label[1:]
        caption = (
            "Thin: the best so far of each run. Thick: their median; the shade reaches from the "
            "worst to the best run. A run that has ended keeps its best."
        )
    limits, outside = _limits(runs, scale) if len(runs) == 1 else ({}, 0)
    if outside:
        caption += f" Worse than what is shown: {charts.counted(outside, 'evaluation')}."
    figure = Figure(
        "objective-over-time",
        "Objective" if scale.name == "objective" else f"Objective: {scale.name}",
        label,
        {
            "over time": charts.xy(time, scale.axis, one[0], x_zero=True, **limits),
            "over evaluations": charts.xy(count, scale.axis, one[1], x_zero=True, **limits),
        },
        caption,
    )
    return View("objective", "Objective over time", figures=[figure, *more])


def transfer(groups: Sequence[Group]) -> View:
    """Return the view of the share of layers that are transferred to children."""
    runs = [run for group in groups for run in group.runs]
    unit = unit_of(runs)

    def share(run: Run) -> Floats:
        return charts.moving_mean(layer_share(run), _width(run))

    share_of_all = share_transferred(runs)
    if not np.isfinite(share_of_all):
        return View(
            "transfer",
            "Transfer over time",
            missing="No child has been evaluated yet, or the runs measure no transfer.",
        )
    label = "Of all layers of children were transferred: " + each_group(
        groups, lambda group: _percent(share_transferred(group.runs))
    )
    if len(runs) == 1:
        run = runs[0]
        series = _share_lines(run, unit)
        caption = (
            f"Means over the last {_width(run)} evaluations. Random genomes of the start count "
            "for nothing: they have no parent."
        )
    else:
        # Runs last for different times; after as many evaluations they are at the same point.
        series = several(groups, count_of, share, hold=False)
        caption = (
            "Means over the last evaluations. Thin: each run; thick: their median; the shade "
            "reaches from the lowest to the highest."
        )
    chart = charts.xy(
        f"{unit.name} since the search began" if len(runs) == 1 else "evaluations that ended",
        "share of the layers transferred",
        series,
        y_format="percent",
        y_zero=True,
        x_zero=True,
    )
    return View(
        "transfer",
        "Transfer over time",
        figures=[Figure("transfer-share", "Share transferred", label, {"share": chart}, caption)],
    )


def each_group(groups: Sequence[Group], say: Callable[[Group], str]) -> str:
    """Return what there is to say of each group, with its name if there are several."""
    if len(groups) == 1:
        return f"{say(groups[0])}."
    return "; ".join(f"“{group.name}” {say(group)}" for group in groups) + "."


def _finals(group: Group, scale: Scale) -> str:
    finals = [float(run.running_best[-1]) for run in group.runs if run.best is not None]
    if not finals:
        return "no evaluation has worked yet"
    if len(finals) == 1:
        return f"the best of 1 run is {scale.text(finals[0])}"
    return (
        f"the best of {len(group.runs)} runs is between {scale.text(min(finals))} and "
        f"{scale.text(max(finals))}"
    )


def _percent(share: float) -> str:
    return f"{share:.0%}" if np.isfinite(share) else "nothing"


def share_transferred(runs: Sequence[Run]) -> float:
    """Return the share of all layers of children that were transferred; NaN if there are none.

    As the summary of a search says it: large children count for more.
    """
    taken = sum(float(np.nansum(r.measure("layers_transferred")[r.parent >= 0])) for r in runs)
    layers = sum(float(np.nansum(r.measure("layers")[r.parent >= 0])) for r in runs)
    return taken / layers if layers else np.nan


def layer_share(run: Run) -> Floats:
    """Return the share of layers that were transferred to each child, shape (n,).

    NaN for what has no parent.
    """
    taken, layers = run.measure("layers_transferred"), run.measure("layers")
    share = np.divide(taken, layers, out=np.full(len(run), np.nan), where=layers > 0)
    return np.where(run.parent >= 0, share, np.nan)


def byte_share(run: Run) -> Floats:
    """Return the share of its bytes that each child did not store again, NaN for others."""
    taken, added = run.measure("bytes_transferred"), run.measure("bytes_stored")
    # What was taken over and trained on is stored again, so the two can exceed the model.
    total = np.maximum(taken + added, 1)
    return np.where((run.parent >= 0) & (taken + added > 0), taken / total, np.nan)


def _share_lines(run: Run, unit: Unit) -> list[Chart]:
    at = charts.thinned(len(run), CURVE)
    x = time_of(run, unit)[at]
    width = _width(run)
    drawn = _drawn(run, layer_share(run))
    series = [
        charts.points(
            "layers, each child",
            time_of(run, unit)[drawn],
            layer_share(run)[drawn],
            "muted",
            [f"job {run.job[i]}" for i in drawn] if len(drawn) <= _POINTS // 4 else (),
        ),
        charts.line("layers", x, charts.moving_mean(layer_share(run), width)[at], "first"),
    ]
    if _any(byte_share(run)):
        mean = charts.moving_mean(byte_share(run), width)[at]
        series.append(charts.line("bytes", x, mean, "second"))
    return series


def _one_run(run: Run, x: Floats) -> list[Chart]:
    drawn, scale = _drawn(run), Scale.of(run)
    values, best_so_far = scale.natural(run.objective), scale.natural(run.running_best)
    centres, (low, middle, high) = charts.windows(x, values, 120, (0.1, 0.5, 0.9))
    best = charts.thinned(len(run), CURVE, _improvements(run))
    return [
        charts.band("middle 80 %", centres, low, high, "first"),
        charts.points(
            "evaluations", x[drawn], values[drawn], "first", [_what(run, i) for i in drawn]
        ),
        charts.line("median", centres, middle, "first"),
        charts.line("best so far", x[best], best_so_far[best], "accent", step=True),
    ]


def several(
    groups: Sequence[Group],
    x_of: Callable[[Run], Floats],
    y_of: Callable[[Run], Floats],
    *,
    each: bool = True,
    hold: bool = True,
) -> list[Chart]:
    """Return for each group its band and median, and each run's own line.

    `hold`: a run that has ended counts on with its last value; otherwise only as long as it runs.
    """
    series = []
    for group in groups:
        lines = [(x_of(run), y_of(run)) for run in group.runs]
        lines = [(x[good], y[good]) for x, y in lines for good in [np.isfinite(x) & np.isfinite(y)]]
        lines = [(x, y) for x, y in lines if len(x)]
        if not lines:
            continue
        if len(lines) > 1:
            # From where all have begun: one that begins late would make the median jump.
            start = max(float(x[0]) for x, _ in lines)
            grid = np.linspace(start, max(float(x[-1]) for x, _ in lines), _GRID)
            values = np.array([_at(grid, x, y, hold) for x, y in lines])
            seen = np.isfinite(values).any(axis=0)
            grid, values = grid[seen], values[:, seen]
            series += [
                charts.band(
                    f"{group.name}: all runs",
                    grid,
                    np.nanmin(values, axis=0),
                    np.nanmax(values, axis=0),
                    group.colour,
                ),
                charts.line(
                    f"{group.name}: median",
                    grid,
                    np.nanmedian(values, axis=0),
                    group.colour,
                    step=True,
                ),
            ]
        if each and len(lines) <= 30:
            for name, (x, y) in zip(group.names, lines, strict=False):
                at = charts.thinned(len(x), CURVE // 4, np.flatnonzero(np.diff(y)) + 1)
                at = at if len(at) <= CURVE else charts.thinned(len(x), CURVE)
                thin = len(lines) > 1
                series.append(charts.line(name, x[at], y[at], group.colour, step=True, thin=thin))
    return series


def _at(grid: Floats, x: Floats, y: Floats, hold: bool) -> Floats:
    """Return the last y at each place of a grid, NaN before the first."""
    values = np.where(grid >= x[0], y[np.searchsorted(x, grid, side="right") - 1], np.nan)
    return values if hold else np.where(grid <= x[-1], values, np.nan)


def _limits(runs: Sequence[Run], scale: Scale) -> tuple[dict[str, float], int]:
    """Return where to cut the objective's axis, and how many evaluations lie outside.

    A few that are far worse than all others would leave no room for the differences of those.
    """
    values = np.concatenate([run.objective[run.done] for run in runs])
    if not len(values):
        return {}, 0
    low, high = float(np.quantile(values, 0.02)), float(values.max())
    floor = min(float(f"{low - 0.15 * (high - low):.3g}"), low)
    outside = int((values < floor).sum())
    end = "y_min" if scale.sign > 0 else "y_max"
    return ({end: scale.sign * floor}, outside) if outside else ({}, 0)


def _what(run: Run, row: int) -> str:
    return f"job {run.job[row]}"


def _drawn(run: Run, values: Floats | None = None) -> Integers:
    """Return the rows that are drawn as points."""
    values = run.objective if values is None else values
    rows = np.flatnonzero(np.isfinite(values))
    improved = np.searchsorted(rows, _improvements(run))
    improved = improved[improved < len(rows)]
    return rows[charts.thinned(len(rows), _POINTS, improved)]


def _improvements(run: Run) -> Integers:
    """Return the rows that improved the best."""
    best = np.where(np.isnan(run.running_best), -np.inf, run.running_best)
    return np.flatnonzero(best > np.concatenate([[-np.inf], best[:-1]]))


def _width(run: Run) -> int:
    return max(5, len(run) // 40)


def time_of(run: Run, unit: Unit) -> Floats:
    """Return when each result was there, in this unit; the number of results if nobody knows."""
    if not _any(run.seconds):
        return count_of(run)
    return run.seconds / unit.seconds


def count_of(run: Run) -> Floats:
    """Return how many evaluations had ended with each."""
    return np.arange(1, len(run) + 1, dtype=np.float64)


def unit_of(runs: Sequence[Run]) -> Unit:
    """Return the unit for the times of some runs."""
    ends = [float(np.nanmax(run.seconds)) for run in runs if _any(run.seconds)]
    return charts.time_unit(max(ends)) if ends else Unit("evaluations", 1.0)


def _any(values: Floats) -> bool:
    return bool(np.isfinite(values).any())
