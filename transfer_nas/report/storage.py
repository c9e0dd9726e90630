"""What the store holds, against whole copies of the models: over a run, and at each moment."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

from transfer_nas.report import charts
from transfer_nas.report.best import Architectures
from transfer_nas.report.charts import Chart, Figure, Floats, View
from transfer_nas.report.progress import CURVE, Group, each_group, several, time_of, unit_of
from transfer_nas.runs import Run

_REPLAYED = 5_000  # evaluations of which it is worked out what is kept


def view(groups: Sequence[Group], architectures: Architectures | None = None) -> View:
    """Return the view of bytes stored.

    Parameters
    ----------
    groups
        The runs.
    architectures
        Of the run, if it is one: needed for what is kept at each moment.
    """
    runs = [run for group in groups for run in group.runs]
    if not any(run.has("bytes_stored") for run in runs):
        return View("storage", "Storage", missing="The runs do not measure what they store.")
    figures = [_in_total(groups, runs)]
    if len(runs) == 1 and architectures is not None:
        found = kept(runs[0], architectures)
        if found is not None:
            figures.insert(0, _at_each_moment(runs[0], *found))
    return View("storage", "Storage", figures=figures)


def whole_copies(run: Run) -> Floats:
    """Return the bytes that each model would have added without sharing, NaN for failures."""
    # Runs of earlier versions did not measure it; weights are float32 unless said otherwise.
    measured = run.measure("bytes_whole_copy")
    sizes = np.where(np.isfinite(measured), measured, 4 * run.measure("parameters"))
    return np.where(run.done, sizes, np.nan)


def kept(run: Run, architectures: Architectures) -> tuple[Floats, Floats] | None:
    """Work out what the store holds after each evaluation, by replaying the run.

    A model refers to its ancestor's layers for those that they share, and holds the others. Of a
    model that leaves the population, those go that no other model refers to.

    Returns
    -------
    tuple or None
        Bytes held, and what whole copies of the same models take, shape (n,) each. None if it
        cannot be told: the space is not known, the run is too long, does not retire by age, or
        trains what it inherits, so that layers are not shared as their names say.
    """
    settings = run.settings
    population = settings.get("population_size")
    if (
        architectures.space is None
        or not 0 < len(run) <= _REPLAYED
        or settings.get("search", "evolution") not in ("evolution", "random")
        or not isinstance(population, int)
        or settings.get("transfer") not in (None, "store")
    ):
        return None
    stored = run.measure("bytes_stored")
    held, whole = np.zeros(len(run)), np.zeros(len(run))
    owners: dict[int, dict[str, int]] = {}  # of each model: who put which layer
    members: deque[int] = deque()
    references: Counter[tuple[int, str]] = Counter()
    sizes: dict[str, int] = {}
    alive = copies = 0
    for row in range(len(run)):
        graph = architectures.graph(run, row) if run.done[row] else None
        if graph is not None:
            sizes |= {
                name: layer.spec.nbytes
                for name, layer in zip(graph.names, graph.layers, strict=True)
                if layer.spec.weights
            }
            above = owners.get(run.row_of.get(int(run.ancestor[row]), -1), {})
            mine = {name: above.get(name, row) for name in graph.names if name in sizes}
            added = sum(sizes[name] for name, owner in mine.items() if owner == row)
            if stored[row] != added:
                return None
            owners[row] = mine
            members.append(row)
            copies += graph.nbytes
            for name, owner in mine.items():
                # An ancestor that died while this one trained was held by its lease.
                alive += sizes[name] if references[owner, name] == 0 else 0
                references[owner, name] += 1
            if len(members) > population:
                dead = members.popleft()
                for name, owner in owners[dead].items():
                    references[owner, name] -= 1
                    alive -= sizes[name] if references[owner, name] == 0 else 0
                    copies -= sizes[name]
        held[row], whole[row] = alive, copies
    return held, whole


def _at_each_moment(run: Run, held: Floats, whole: Floats) -> Figure:
    unit = unit_of([run])
    at = charts.thinned(len(run), CURVE)
    x = time_of(run, unit)[at]
    label = (
        f"At its end the store holds {charts.bytes_text(held[-1])}; whole copies of the same "
        f"models take {charts.bytes_text(whole[-1])}"
        + (f", {whole[-1] / held[-1]:.1f} times as much." if held[-1] else ".")
    )
    series = [
        charts.line("whole copies", x, whole[at], "muted", step=True),
        charts.line("held", x, held[at], "first", step=True),
    ]
    return Figure(
        "storage-held",
        "Bytes held at each moment",
        label,
        {"bytes": _chart(f"{unit.name} since the search began", "bytes held", series)},
        "The models of the population, worked out from who inherited what; a layer goes with the "
        "last model that refers to it.",
    )


def _in_total(groups: Sequence[Group], runs: Sequence[Run]) -> Figure:
    unit = unit_of(runs)

    def stored(run: Run) -> Floats:
        return np.cumsum(np.nan_to_num(run.measure("bytes_stored")))

    def whole(run: Run) -> Floats:
        return np.cumsum(np.nan_to_num(whole_copies(run)))

    def in_all(group: Group) -> str:
        sums = [(stored(run)[-1], whole(run)[-1]) for run in group.runs if len(run)]
        total, copies = sum(pair[0] for pair in sums), sum(pair[1] for pair in sums)
        return (
            f"stored {charts.bytes_text(total)}, whole copies take {charts.bytes_text(copies)}"
            + (f", {copies / total:.1f} times as much" if total else "")
        )

    label = each_group(groups, in_all)
    label = label[0].upper() + label[1:]
    if len(runs) == 1:
        at = charts.thinned(len(runs[0]), CURVE)
        x = time_of(runs[0], unit)[at]
        series = [
            charts.line("whole copies", x, whole(runs[0])[at], "muted"),
            charts.line("stored", x, stored(runs[0])[at], "first"),
        ]
    else:
        series = several(groups, lambda run: time_of(run, unit), stored)
        merged = Group("whole copies", runs, [], "muted")
        series += several([merged], lambda run: time_of(run, unit), whole, each=False)
    return Figure(
        "storage-stored",
        "Bytes stored in total",
        label,
        {"bytes": _chart(f"{unit.name} since the search began", "bytes put", series)},
        "All that was ever put, before models retire; whole copies: every model that worked, with "
        "all its weights.",
    )


def _chart(x: str, y: str, series: Sequence[Chart]) -> Chart:
    return charts.xy(x, y, series, x_zero=True, y_format="bytes", y_zero=True)
