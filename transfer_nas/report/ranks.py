"""What the ranks did all the time: a Gantt chart, and how much of the time each step took."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transfer_nas.report import charts
from transfer_nas.report.charts import Figure, Floats, View
from transfer_nas.runs import Run

PHASES = ("match", "build", "load", "train", "store")
"""Steps of an evaluation, in their order; `ask` is the time before it, `other` what is left."""

_BARS = 1_500  # evaluations drawn one by one at most
_WINDOWS = 160  # over all the time
_COLOURS = ("muted", "fourth", "second", "third", "first", "accent", "fifth")


@dataclass(frozen=True)
class Timeline:
    """When each evaluation ran where. All arrays have shape (n,), in order of `begin`.

    Attributes
    ----------
    row
        In the run's columns.
    rank
        Where.
    ask
        When its rank began to wait for it: the end of the one before.
    begin, end
        In seconds since the run began.
    steps
        Seconds of each of `PHASES`, shape (n, len(PHASES)).
    measured
        Whether the workers noted when they began; otherwise `begin` is what is left when the steps
        are taken off the time of the result.
    """

    row: NDArray[np.int64]
    rank: NDArray[np.int64]
    ask: Floats
    begin: Floats
    end: Floats
    steps: Floats
    measured: bool


def timeline(run: Run) -> Timeline | None:
    """Return when each evaluation ran where; None if the run does not tell."""
    good = np.isfinite(run.measure("rank")) & np.isfinite(run.seconds)
    if not good.any():
        return None
    rows = np.flatnonzero(good)
    steps = np.array([np.nan_to_num(run.measure(f"{name}_seconds")) for name in PHASES]).T[rows]
    measured = bool(np.isfinite(run.measure("timestamp_start")[rows]).any())
    gathered = run.seconds[rows]
    end = _or_else(run.measure("timestamp_end")[rows], gathered)
    begin = _or_else(run.measure("timestamp_start")[rows], end - steps.sum(axis=1))
    order = np.argsort(begin, kind="stable")
    rows, begin, end, steps = rows[order], begin[order], end[order], steps[order]
    rank = run.measure("rank")[rows].astype(np.int64)
    ask = np.zeros(len(rows))
    for one in np.unique(rank):
        mine = np.flatnonzero(rank == one)
        before = np.concatenate([[0.0], end[mine][:-1]])
        begin[mine] = np.maximum(begin[mine], before) if not measured else begin[mine]
        ask[mine] = np.minimum(before, begin[mine])
    return Timeline(rows, rank, ask, begin, end, steps, measured)


def view(run: Run) -> View:
    """Return the Gantt chart of a run's ranks."""
    times = timeline(run)
    if times is None:
        return View("ranks", "Ranks", missing="The run does not say which rank did what when.")
    present = [name for name in PHASES if run.has(f"{name}_seconds")]
    spans = _seconds_by_step(times)
    total = sum(spans.values())
    busy = 1 - spans["ask"] / total if total else 0.0
    label = (
        f"{charts.counted(len(np.unique(times.rank)), 'rank')} evaluated, {busy:.0%} of the time; "
        + ", ".join(f"{name} {spans[name] / total:.1%}" for name in ("ask", *present, "other"))
        + "."
        if total
        else "No time was measured."
    )
    figures = [_gantt(run, times), _shares(run, times, label)]
    notes = []
    if not times.measured:
        notes.append(
            "This run did not note when its workers began; beginnings are counted back from when "
            "results were there, so that the time of messages counts as work."
        )
    return View("ranks", "Ranks", figures=figures, notes=notes)


def _gantt(run: Run, times: Timeline) -> Figure:
    count = len(times.row)
    first, last = max(0, count - _BARS), count
    if count > _BARS and run.best is not None:
        centre = int(np.flatnonzero(times.row == run.best)[0]) if run.best in times.row else count
        first = min(max(0, centre - _BARS // 2), count - _BARS)
        last = first + _BARS
    at = np.arange(first, last)
    ranks = np.unique(times.rank)
    position = np.searchsorted(ranks, times.rank[at])
    bounds = _bounds(times)[at]
    label = (
        f"When {charts.counted(len(ranks), 'rank')} worked on which evaluation, "
        f"from {bounds.min():.1f} to {bounds.max():.1f} seconds."
    )
    caption = (
        "Ask: waiting for a job, at first also the start of the process. Other: what no step "
        "measures, above all writing a model that may be the best (the first time Keras is "
        "imported for it). Drag the handles below, or press + and - on the chart, to look closer."
    )
    if len(at) < count:
        caption = f"{len(at):,} of {count:,} evaluations, those around the best. " + caption
    chart = {
        "kind": "gantt",
        "x": "seconds since the search began",
        "ranks": [f"rank {rank}" for rank in ranks.tolist()],
        "phases": ["ask", *PHASES, "other"],
        "colours": list(_COLOURS),
        "rank": position.tolist(),
        "bounds": [charts.numbers(row, 7) for row in bounds],
        "labels": [
            f"job {run.job[row]}: "
            + (f"{run.objective[row]:.4g}" if run.done[row] else str(run.status[row]))
            for row in times.row[at]
        ],
        "failed": np.flatnonzero(~run.done[times.row[at]]).tolist(),
    }
    return Figure("ranks-gantt", "Who did what when", label, {"gantt": chart}, caption)


def _shares(run: Run, times: Timeline, label: str) -> Figure:
    """Return where the ranks' time went, in windows over all the run."""
    edges = np.linspace(0, float(times.end.max()), min(_WINDOWS, len(times.row)) + 1)
    bounds = _bounds(times)
    sums = np.array(
        [_overlap(bounds[:, i], bounds[:, i + 1], edges) for i in range(bounds.shape[1] - 1)]
    )
    total = sums.sum(axis=0)
    shares = np.divide(sums, total, out=np.zeros_like(sums), where=total > 0)
    unit = charts.time_unit(float(edges[-1]))
    centres = (edges[:-1] + edges[1:]) / 2 / unit.seconds
    names = ["ask", *PHASES, "other"]
    series = [
        charts.line(name, centres, share, colour)
        for name, share, colour in zip(names, shares, _COLOURS, strict=True)
        if share.max(initial=0.0) > 0.0005
    ]
    chart = charts.xy(
        f"{unit.name} since the search began",
        "share of the ranks' time",
        series,
        y_format="percent",
        y_zero=True,
        y_max=1,
        stack=True,
    )
    return Figure("ranks-shares", "Where the time went", label, {"shares": chart})


def _bounds(times: Timeline) -> Floats:
    """Return where ask, the steps and the rest begin and end, shape (n, len(PHASES) + 3)."""
    steps = times.begin[:, None] + np.cumsum(times.steps, axis=1)
    columns = (times.ask[:, None], times.begin[:, None], steps, times.end[:, None])
    # Steps are durations: together they can pass the end by what clocks differ.
    bounds = np.minimum(np.concatenate(columns, axis=1), times.end[:, None])
    return np.asarray(np.maximum.accumulate(bounds, axis=1))


def _seconds_by_step(times: Timeline) -> dict[str, float]:
    spans = {"ask": float((times.begin - times.ask).sum())}
    spans |= {name: float(times.steps[:, i].sum()) for i, name in enumerate(PHASES)}
    work = float((times.end - times.begin).sum())
    spans["other"] = max(0.0, work - float(times.steps.sum()))
    return spans


def _overlap(begin: Floats, end: Floats, edges: Floats) -> Floats:
    """Return how many seconds of all intervals lie in each window, shape (windows,)."""

    def until(moments: Floats) -> Floats:
        """Return for each edge the sum over intervals of what lies before it."""
        ordered = np.sort(moments)
        sums = np.concatenate([[0.0], np.cumsum(ordered)])
        counts = np.searchsorted(ordered, edges)
        return np.asarray(counts * edges - sums[counts])

    return np.diff(until(begin) - until(end))


def _or_else(values: Floats, others: Floats) -> Floats:
    return np.where(np.isfinite(values), values, others)
