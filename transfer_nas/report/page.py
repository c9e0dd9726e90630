"""Puts the views of runs into one page of HTML that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from transfer_nas.report import (
    best,
    comparison,
    explore,
    front,
    genes,
    judged,
    lineage,
    overview,
    progress,
    ranks,
    rows,
    storage,
    targets,
)
from transfer_nas.report.best import Architectures
from transfer_nas.report.charts import View
from transfer_nas.report.progress import Group
from transfer_nas.runs import Run
from transfer_nas.runs.reading import names

_SCRIPTS = ("echarts.min.js", "charts.js", "rows.js", "detail.js", "explore.js", "page.js")
_COLOURS = ("first", "second")
_DETAILED = 12  # runs that have views of their own at most


@dataclass(frozen=True)
class Part:
    """The views of one run, or of all: a choice of the reader's."""

    id: str
    name: str
    views: Sequence[View]
    rows: rows.Rows | None = None


@dataclass(frozen=True)
class Content:
    """Everything on a page, before it is HTML."""

    title: str
    subtitle: str
    notices: Sequence[str]
    tiles: Sequence[overview.Tile]
    together: Part
    each: Sequence[Part]

    @property
    def charts(self) -> dict[str, Any]:
        """The charts by the ids of their figures: what the scripts read."""
        return {
            f"{part.id}-{figure.id}": dict(figure.charts)
            for part in (self.together, *self.each)
            for view in part.views
            for figure in view.figures
        }

    @property
    def rows(self) -> dict[str, rows.Rows]:
        """All evaluations of each part that has them."""
        return {part.id: part.rows for part in self.each if part.rows is not None}


def content(
    runs: Sequence[Run],
    against: Sequence[Run] = (),
    labels: Sequence[str] = ("first", "second"),
    own_space: str | None = None,
) -> Content:
    """Return what a page says of runs.

    Parameters
    ----------
    runs
        At least one.
    against
        A second group, to compare with.
    labels
        What to call the groups.
    own_space
        The runs' space if it is the user's own; see `Architectures.of`.

    Raises
    ------
    InputError
        A run is damaged, or `own_space` is not to be found.
    """
    everything = [*runs, *against]
    called = names(everything)
    groups = [
        Group(label, some, some_names, colour)
        for label, some, some_names, colour in zip(
            labels if against else ("all runs",),
            (runs, against),
            (called[: len(runs)], called[len(runs) :]),
            _COLOURS,
            strict=False,
        )
        if some
    ]
    # By path: a run that is given twice has one.
    drawn = {run.path: Architectures.of(run, own_space) for run in everything}

    reached = targets.figure(groups)
    together = [
        *([comparison.view(groups)] if len(groups) == 2 else []),
        progress.objective(groups, [reached] if reached is not None else []),
        progress.transfer(groups),
        storage.view(groups, drawn[everything[0].path]),
        *([overview.facts(groups)] if len(everything) > 1 else []),
    ]
    each, room = [], rows.LIMIT
    for i, (run, name) in enumerate(zip(everything[:_DETAILED], called, strict=False)):
        room -= len(run)
        packed = rows.rows(run, drawn[run.path]) if len(run) and room >= 0 else None
        each.append(Part(f"run{i}", name, _views(run, drawn[run.path], packed), packed))
    title = " against ".join(labels) if against else called[0]
    if len(runs) > 1 and not against:
        title = f"{len(runs)} runs"
    return Content(
        title=title,
        subtitle=_subtitle(everything),
        notices=_notices(everything, called),
        tiles=overview.tiles(groups),
        together=Part("all", "", together),
        each=each,
    )


def _notices(everything: Sequence[Run], called: Sequence[str]) -> list[str]:
    """Return what the reader must know first."""
    notices = overview.states(everything, called)
    searched = {
        (str(run.settings.get("namespace")), str(run.genes or run.description["space"]))
        for run in everything
    }
    if len(searched) > 1:
        notices.append("These runs are not of the same data and space.")
    if len(everything) > _DETAILED:
        notices.append(f"Details are of the first {_DETAILED} of {len(everything)} runs.")
    return notices


def _subtitle(everything: Sequence[Run]) -> str:
    """Return what the runs searched, where and how."""
    found = {
        "application": [run.settings.get("application") for run in everything],
        "space": [run.description["space"].get("name") for run in everything],
        "transfer": [run.settings.get("transfer") for run in everything],
    }
    return ", ".join(
        f"{what} {' and '.join(dict.fromkeys(map(str, values)))}" for what, values in found.items()
    )


def render(page: Content, *, live: bool = False) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    page
        What it says. Every text in it is escaped.
    live
        Whether it follows `transfer_nas.dashboard`, which serves it; otherwise it connects to
        nothing.
    """
    scripts = [_static(name) for name in _SCRIPTS]
    policy = [
        "default-src 'none'",
        "script-src " + " ".join(f"'sha256-{_digest(script)}'" for script in scripts),
        "style-src 'unsafe-inline'",  # charts put theirs on elements
        "img-src data: blob:",
        "connect-src 'self'" if live else "connect-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return str(
        _template("page.html").render(
            page=page,
            policy="; ".join(policy),
            style=_static("page.css"),
            scripts=scripts,
            charts=as_script(page.charts),
            rows=as_script(page.rows),
            live=live,
        )
    )


def render_fragment(page: Content) -> str:
    """Return what changes on a live page as a run goes on: the inside of ``<main>``."""
    return str(_template("main.html").render(page=page))


def as_script(values: Any) -> str:
    """Return JSON that may stand in a ``<script>`` element, whatever texts are in it."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028"}
    for character, escape in (*escapes.items(), ("\u2029", "\\u2029")):
        text = text.replace(character, escape)
    return text


def _views(run: Run, architectures: Architectures, packed: rows.Rows | None) -> list[View]:
    optional = [judged.view(run), overview.failures(run), front.view(run, architectures)]
    title = "All evaluations"
    if packed is not None:
        table = View("evaluations", title, rows=True)
    elif len(run):
        why = f"A page holds the tables of at most {rows.LIMIT:,} evaluations: show fewer runs."
        table = View("evaluations", title, missing=why)
    else:
        table = View("evaluations", title, missing="No evaluation has ended yet.")
    more = explore.slices(run) if run.genes and packed is not None else ()
    return [
        *([optional[2]] if optional[2] is not None else []),
        best.view(run, architectures),
        *([optional[0]] if optional[0] is not None else []),
        table,
        *([explore.against(run)] if packed is not None else []),
        lineage.view(run),
        *([genes.view(run, more)] if run.genes else []),
        ranks.view(run),
        *([optional[1]] if optional[1] is not None else []),
        overview.settings(run),
    ]


@cache
def _static(name: str) -> str:
    # Line ends as they are: the policy names the digests of the scripts.
    return resources.files(__package__).joinpath("static", name).read_bytes().decode()


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _template(name: str) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_static), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(name)
