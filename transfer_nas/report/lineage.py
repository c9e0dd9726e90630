"""Where the best model's layers come from: who inherited what from whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transfer_nas.report import charts
from transfer_nas.report.charts import Chart, Figure, Table, View
from transfer_nas.report.scale import Scale
from transfer_nas.runs import Run

_KIN = 240  # models beside the line that are drawn at most
_EACH = 8  # heirs of one model that are drawn at most
_ROWS = 30  # of the table at most


@dataclass(frozen=True)
class Step:
    """One model of the line from the first ancestor to the best.

    Attributes
    ----------
    row
        In the run's columns.
    changes
        Genes in which it differs from its ancestor, as ``gene: old to new``.
    heirs
        Number of models that inherited from it.
    """

    row: int
    changes: Sequence[str]
    heirs: int


def line_of_descent(run: Run, row: int) -> list[int]:
    """Return the rows from the first ancestor to `row`, following who inherited from whom.

    Ends where a model inherited nothing, or from one that has no row here. (Ids of ancestors are
    those of the store; a damaged file that makes a circle of them ends where it closes.)
    """
    line = [row]
    seen = {row}
    while True:
        above = run.row_of.get(int(run.ancestor[line[-1]]))
        if above is None or above in seen:
            return line[::-1]
        seen.add(above)
        line.append(above)


def view(run: Run) -> View:
    """Return the lineage of a run's best model."""
    best = run.best
    if best is None:
        return View("lineage", "Lineage of the best", missing="No evaluation has worked yet.")
    line = line_of_descent(run, best)
    heirs: dict[int, list[int]] = defaultdict(list)
    for row, ancestor in enumerate(run.ancestor.tolist()):
        if ancestor >= 0 and (above := run.row_of.get(ancestor)) is not None:
            heirs[above].append(row)
    steps = [
        Step(row, _changes(run, above, row), len(heirs[row]))
        for above, row in zip([None, *line[:-1]], line, strict=True)
    ]
    job = run.job[best]
    if len(line) == 1:
        label = f"Job {job}, the best, inherited from no model of this run."
    else:
        label = (
            f"The best, job {job}, stands at the end of a line of {len(line)} models that begins "
            f"with job {run.job[line[0]]}; it inherits {_taken(run, best)} from "
            f"job {run.job[line[-2]]}."
        )
    if len(line) == 1 and not heirs[best]:
        return View("lineage", "Lineage of the best", missing=f"{label} None inherited from it.")
    figure = Figure(
        "lineage-tree",
        "Who inherited from whom",
        label,
        {"tree": _chart(run, line, heirs)},
        "Each dot is a model, each line an inheritance, from left to right; the larger a dot, the "
        "more of its layers were transferred. Filled: the best and its ancestors. Hollow: the best "
        "of their other heirs.",
    )
    return View("lineage", "Lineage of the best", figures=[figure], tables=[_table(run, steps)])


def _chart(run: Run, line: Sequence[int], heirs: dict[int, list[int]]) -> Chart:
    rows = list(line)
    generation = {row: number for number, row in enumerate(line)}
    edges = [[number, number + 1] for number in range(len(line) - 1)]
    each = min(_EACH, _KIN // len(line))  # none beside a long line
    for above in line:
        others = [row for row in heirs[above] if row not in generation and run.done[row]]
        others.sort(key=lambda row: -run.objective[row])
        for row in others[:each]:
            edges.append([generation[above], len(rows)])
            generation[row] = generation[above] + 1
            rows.append(row)
    at = np.array(rows)
    layers = run.measure("layers")[at]
    share = np.divide(
        run.measure("layers_transferred")[at], layers, out=np.zeros(len(at)), where=layers > 0
    )
    return {
        "kind": "lineage",
        "x": "generation",
        "y": Scale.of(run).axis,
        "generation": [generation[row] for row in rows],
        "objective": charts.numbers(Scale.of(run).natural(run.objective[at])),
        "share": charts.numbers(np.nan_to_num(share), 3),
        "labels": [f"job {run.job[row]}: inherits {_taken(run, row)}" for row in rows],
        "line": len(line),
        "edges": edges,
    }


def _table(run: Run, steps: Sequence[Step]) -> Table:
    shown = steps if len(steps) <= _ROWS else [*steps[:5], *steps[5 - _ROWS :]]
    rows, scale = [], Scale.of(run)
    for step in shown:
        ancestor = int(run.ancestor[step.row])
        whom = {-1: "nobody", -2: "another run"}.get(ancestor, f"job {ancestor}")
        rows.append(
            [
                f"job {run.job[step.row]}",
                scale.text(run.objective[step.row]),
                whom,
                _taken(run, step.row).removesuffix(" layers"),
                charts.bytes_text(np.nan_to_num(run.measure("bytes_transferred")[step.row])),
                "; ".join(step.changes) or "–",
                f"{step.heirs:,}",
            ]
        )
    title = "The line, from the first ancestor to the best"
    if len(shown) < len(steps):
        title += f" ({len(shown)} of {len(steps)} models: the first 5 and the last)"
    columns = [
        "model",
        scale.name,
        "inherits from",
        "layers transferred",
        "bytes",
        "changed",
        "heirs",
    ]
    jobs: dict[int, list[int | None]] = {
        0: [int(run.job[step.row]) for step in shown],
        2: [
            above if (above := int(run.ancestor[step.row])) in run.row_of else None
            for step in shown
        ],
    }
    return Table(title, columns, rows, frozenset({1, 4, 6}), jobs=jobs)


def _taken(run: Run, row: int) -> str:
    taken, layers = run.measure("layers_transferred")[row], run.measure("layers")[row]
    if np.isnan(taken) or np.isnan(layers):
        return "nothing"
    return f"{taken:.0f} of {layers:.0f} layers"


def _changes(run: Run, above: int | None, row: int) -> list[str]:
    if above is None:
        return []
    before, after = run.values(above), run.values(row)
    changes = [
        f"{name}: {before[name]} to {after[name]}"
        for name in before
        if name in after and before[name] != after[name]
    ]
    return changes if len(changes) <= 4 else [*changes[:4], f"and {len(changes) - 4} more"]
