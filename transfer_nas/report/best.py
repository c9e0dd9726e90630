"""The best models: a table with commands, and their architectures with what they inherited."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graph_meta import LayerGraph, drawing, prefix
from transfer_nas import spaces
from transfer_nas.errors import RunDirectoryError, SpaceError
from transfer_nas.report import charts
from transfer_nas.report.charts import Table, View
from transfer_nas.report.lineage import line_of_descent
from transfer_nas.report.scale import Scale
from transfer_nas.runs import Run
from transfer_nas.spaces import Space

_ROWS = 10  # of the table
_PICTURES = 5


@dataclass(frozen=True)
class Architectures:
    """Turns architectures of a run into layer graphs.

    Attributes
    ----------
    space
        The run's; None if it is not known here.
    why_not
        Why it is not known.
    """

    space: Space | None
    why_not: str = ""
    _made: dict[str, LayerGraph | None] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, run: Run, own_space: str | None = None) -> Architectures:
        """Find a run's space.

        A space of somebody's own is code. That a run directory names it is no reason to run it, so
        it is imported only if `own_space` says so.
        """
        found = run.description["space"]
        name = str(found.get("name"))
        if own_space is None and name not in spaces.REGISTRY:
            why = f"The space {name} is not one of this package; name it with --space."
            return cls(None, why)
        try:
            space = spaces.get(
                own_space or name,
                found.get("input_shapes", []),
                found.get("output_units", 1),
                found.get("output_activation"),
            )
        except (SpaceError, TypeError, ValueError) as error:
            if own_space is not None:
                raise
            return cls(None, f"The space {name} cannot be made: {error}")
        described = space.describe()
        if any(described.get(key) != found.get(key) for key in ("genes", "columns")):
            why = f"The run searched {name} with other options than its defaults."
            return cls(None, why)
        return cls(space)

    def graph(self, run: Run, row: int) -> LayerGraph | None:
        """Return the layer graph of an evaluation; None if it or the space is not known."""
        if self.space is None:
            return None
        try:
            value = run.architecture(row)
        except RunDirectoryError:
            return None
        key = json.dumps(value)
        if key not in self._made:
            self._made[key] = _graph(self.space, value)
        return self._made[key]


def _graph(space: Space, value: Any) -> LayerGraph | None:
    try:
        return space.graph(space.from_json(value))
    except Exception:  # a space of a user's own may raise anything: that candidate has failed
        return None


def view(run: Run, architectures: Architectures) -> View:
    """Return the table of a run's best models and their architectures."""
    if run.best is None:
        return View("best", "Best models", missing="No evaluation has worked yet.")
    ranked = run.ranking[:_ROWS].tolist()
    pictures = [
        (f"{place + 1}. {title}", svg)
        for place, row in enumerate(ranked[:_PICTURES])
        for title, svg in [picture(run, row, architectures)]
        if svg
    ]
    notes = [architectures.why_not + " Its architectures are not drawn."]
    return View(
        "best",
        "Best models",
        tables=[*_retrained(run), _table(run, ranked)],
        pictures=pictures,
        notes=() if architectures.space is not None else notes,
    )


def _retrained(run: Run) -> list[Table]:
    """Return the table of the finalists: by validation and by test rows, side by side."""
    scale, cells, jobs = Scale.of(run), [], list[int | None]()
    found = [each for each in run.summary.get("retrained") or [] if isinstance(each, dict)]
    for each in found:
        after, test = each.get("objective"), each.get("test")
        jobs.append(each.get("job"))
        cells.append(
            [
                f"job {each.get('job')}",
                scale.text(each.get("objective_in_search", math.nan)),
                "–" if after is None else scale.text(after),
                _tested(test),
                f"{each.get('chosen_from', 0):,}",
                f"{each.get('epochs') or 0:,}",
            ]
        )
    values = (f"{scale.name} in the search", f"{scale.name} retrained", "on test rows")
    columns = ("model", *values, "chosen from", "epochs")
    title = "Trained fully, and tested with rows that no search saw"
    return [Table(title, columns, cells, frozenset({1, 2, 4, 5}), jobs={0: jobs})] if cells else []


def _tested(test: object) -> str:
    if not isinstance(test, dict):
        return "no test rows"
    return ", ".join(f"{name} {value:.4f}" for name, value in test.items() if name != "loss")


def retrain_command(run: Run, job: int) -> str:
    """Return the command that trains the model of a job alone, as long as the search trains."""
    words = ["python", "-m", "transfer_nas.retrain", str(run.path), "--job", str(job)]
    epochs = _epochs(run)
    return shlex.join([*words, *(["--epochs", str(epochs)] if epochs else [])])


def _epochs(run: Run) -> int:
    """Return the most epochs that a model was trained for, 0 if nobody knows."""
    chosen = run.settings.get("epochs")
    found = run.measure("epochs")
    trained = int(found[np.isfinite(found)].max(initial=0)) if len(found) else 0
    return max(trained, chosen if isinstance(chosen, int) and 0 < chosen < 2**31 else 0)


def _table(run: Run, rows: Sequence[int]) -> Table:
    cells, scale = [], Scale.of(run)
    for place, row in enumerate(rows, start=1):
        cells.append(
            [
                str(place),
                f"job {run.job[row]}",
                scale.text(run.objective[row]),
                _number(run.measure("layers")[row]),
                _number(run.measure("parameters")[row]),
                _share(run, row),
                f"{len(line_of_descent(run, row)) - 1}",
                charts.seconds_text(float(np.nan_to_num(run.measure("train_seconds")[row]))),
            ]
        )
    columns = [
        *("place", "model", scale.name, "layers", "parameters"),
        *("transferred", "ancestors", "training"),
    ]
    commands = [retrain_command(run, int(run.job[row])) for row in rows]
    numeric = frozenset(set(range(len(columns))) - {1})
    jobs = {1: [int(run.job[row]) for row in rows]}
    return Table("The best", columns, cells, numeric, commands, "train it alone", jobs)


def picture(run: Run, row: int, architectures: Architectures) -> tuple[str, str]:
    """Return a title and the drawing of a model beside its ancestor, or alone if it has none."""
    graph = architectures.graph(run, row)
    if graph is None:
        return "", ""
    scale = Scale.of(run)
    own = f"job {run.job[row]}: {scale.text(run.objective[row])}"
    above = run.row_of.get(int(run.ancestor[row]))
    ancestor = None if above is None else architectures.graph(run, above)
    if ancestor is None or above is None:
        return own, drawing.draw([(graph, own)], (), style=False)
    theirs = f"job {run.job[above]}: {scale.text(run.objective[above])}"
    shared = prefix(ancestor, graph)
    pair = [(ancestor, f"ancestor, {theirs}"), (graph, own)]
    return f"{own}, from {theirs}", drawing.draw(pair, shared, style=False)


def _share(run: Run, row: int) -> str:
    taken, layers = run.measure("layers_transferred")[row], run.measure("layers")[row]
    return f"{taken / layers:.0%}" if layers > 0 and np.isfinite(taken) else "–"


def _number(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else "–"
