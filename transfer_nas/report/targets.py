"""How long it takes to reach an objective: over all thresholds, for one run or for groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from transfer_nas.report import charts
from transfer_nas.report.charts import Chart, Figure, Floats
from transfer_nas.report.progress import CURVE, Group, count_of, time_of, unit_of
from transfer_nas.report.scale import Scale
from transfer_nas.runs import Run

_GRID = 240  # thresholds of a median over runs


def first_reached(best: Floats, when: Floats, thresholds: Floats) -> Floats:
    """Return when the running best first was at each threshold, infinity where never.

    Parameters
    ----------
    best
        The running best, ascending, NaN before anything worked, shape (n,).
    when
        The moment of each, shape (n,).
    thresholds
        Objectives to reach, shape (t,).
    """
    good = np.isfinite(best) & np.isfinite(when)
    best, when = best[good], when[good]
    at = np.searchsorted(best, thresholds, side="left")
    reached = at < len(best)
    times = np.full(len(thresholds), np.inf)
    times[reached] = when[at[reached]]
    return times


def figure(groups: Sequence[Group]) -> Figure | None:
    """Return the curve of the time to each threshold; None while no run has two bests."""
    runs = [run for group in groups for run in group.runs if run.best is not None]
    ends = [end for run in runs for end in (run.running_best[run.done][0], run.running_best[-1])]
    if len(set(ends)) < 2:
        return None
    scale, unit = Scale.common(runs), unit_of(runs)

    def chart(y: str, of: Callable[[Run], Floats]) -> Chart:
        return charts.xy(
            f"{scale.axis} to reach",
            y,
            _series(groups, scale, of),
            x_inverse=scale.sign < 0,
            y_zero=True,
        )

    several = len(runs) > 1
    return Figure(
        "objective-targets",
        "Time to each objective",
        _label(groups, scale),
        {
            "time": chart(f"{unit.name} since the search began", lambda run: time_of(run, unit)),
            "evaluations": chart("evaluations that ended", count_of),
        },
        "How long until the best so far was that good or better; lower is faster."
        + (
            " Thin: each run. Thick: the median of a group, as far as half of its runs came."
            if several
            else ""
        ),
        logarithmic=("y",),
    )


def _series(groups: Sequence[Group], scale: Scale, of: Callable[[Run], Floats]) -> list[Chart]:
    series = []
    for group in groups:
        runs = [run for run in group.runs if run.best is not None]
        for run, name in zip(group.runs, group.names, strict=True):
            if run.best is None or len(runs) > 30:
                continue
            best = run.running_best[run.done]
            levels = best[np.flatnonzero(np.diff(best, prepend=-np.inf))]
            levels = levels[charts.thinned(len(levels), CURVE)]
            when = first_reached(run.running_best, of(run), levels)
            # Each level holds from the one before it: in the direction of harder ones.
            line = charts.line(
                name, scale.natural(levels), when, group.colour, step=True, thin=len(runs) > 1
            )
            series.append({**line, "type": "stairs"})
        if len(runs) > 1:
            low = min(float(np.nanmin(run.running_best)) for run in runs)
            high = max(float(run.running_best[-1]) for run in runs)
            grid = np.linspace(low, high, _GRID)
            middle = np.median([first_reached(r.running_best, of(r), grid) for r in runs], axis=0)
            seen = np.isfinite(middle)
            line = charts.line(
                f"{group.name}: median", scale.natural(grid[seen]), middle[seen], group.colour
            )
            series.append(line)
    return series


def _label(groups: Sequence[Group], scale: Scale) -> str:
    """Say how long each group takes to what half of the runs of the worse one reach."""
    finals = [
        np.array([run.running_best[-1] for run in group.runs if run.best is not None])
        for group in groups
    ]
    finals = [found for found in finals if len(found)]
    target = min(float(np.sort(found)[len(found) // 2 - (len(found) % 2 == 0)]) for found in finals)
    sentences = []
    for group in groups:
        times = np.array(
            [
                first_reached(run.running_best, run.seconds, np.array([target]))[0]
                for run in group.runs
            ]
        )
        reached = int(np.isfinite(times).sum())
        middle = float(np.median(times)) if len(times) else np.inf
        after = f"after {charts.seconds_text(middle)}" if np.isfinite(middle) else "not by half"
        if len(group.runs) == 1:
            sentences.append(f"“{group.name}” {after}" if len(groups) > 1 else after)
        else:
            sentences.append(
                f"“{group.name}” {after} (median; {reached} of {len(group.runs)} runs)"
            )
    return f"{scale.text(target)} was reached " + ", ".join(sentences) + "."
