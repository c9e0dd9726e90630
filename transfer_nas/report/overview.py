"""What stands at the top: the figures that people ask for first, and what the runs were."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from transfer_nas.report import charts, judged
from transfer_nas.report.charts import Table, View
from transfer_nas.report.progress import Group, share_transferred
from transfer_nas.report.scale import Scale
from transfer_nas.report.storage import whole_copies
from transfer_nas.runs import FINISHED, IN_PROGRESS, Run


@dataclass(frozen=True)
class Number:
    """What a tile says of one group, or of all.

    Attributes
    ----------
    value, remark
        The figure, and what to know of it.
    group, colour
        Whose it is; empty if there is one group.
    """

    value: str
    remark: str
    group: str = ""
    colour: str = ""


@dataclass(frozen=True)
class Tile:
    """One of the figures at the top; groups that are compared have one each."""

    name: str
    figures: Sequence[Number]


_REASONS = 12  # of failures


def tiles(groups: Sequence[Group]) -> list[Tile]:
    """Return the figures of each group."""
    found: dict[str, dict[int, Number]] = {}
    for i, group in enumerate(groups):
        name, colour = (group.name, group.colour) if len(groups) > 1 else ("", "")
        for title, value, remark in _figures(group):
            found.setdefault(title, {})[i] = Number(value, remark, name, colour)
    return [
        Tile(title, [of.get(i, _nothing(group)) for i, group in enumerate(groups)])
        for title, of in found.items()
    ]


def _nothing(group: Group) -> Number:
    return Number("–", "", group.name, group.colour)


def _figures(group: Group) -> Iterator[tuple[str, str, str]]:
    """Yield title, value and remark of the figures of a group's runs together."""
    runs = group.runs
    evaluations, failures = sum(map(len, runs)), sum(int((~run.done).sum()) for run in runs)
    tried = [(run, name) for run, name in zip(runs, group.names, strict=True) if run.done.any()]
    if tried:
        run, name = max(tried, key=lambda one: one[0].running_best[-1])
        yield best_figure(run, name if len(runs) > 1 else "")
    failed = f"{failures:,} failed" if failures else "none failed"
    yield "evaluations", f"{evaluations:,}", failed
    share = share_transferred(runs)
    if np.isfinite(share):
        yield "transferred", f"{share:.0%}", "of the children's layers"
    stored = sum(float(np.nansum(run.measure("bytes_stored"))) for run in runs)
    whole = sum(float(np.nansum(whole_copies(run))) for run in runs)
    if stored:
        remark = f"whole copies {charts.bytes_text(whole)}"
        yield "stored", charts.bytes_text(stored), remark
    seconds = [float(np.nanmax(run.seconds)) for run in runs if np.isfinite(run.seconds).any()]
    if seconds:
        rate = f"{evaluations / max(sum(seconds), 1e-9):.3g} evaluations/s"
        longest = ", the longest run" if len(seconds) > 1 else ""
        yield "time", charts.seconds_text(max(seconds)), rate + longest


def best_figure(run: Run, name: str) -> tuple[str, str, str]:
    """Return title, value and remark of a run's best; `name` of the run, if there are several."""
    best, scale = run.best, Scale.of(run)
    assert best is not None
    remark = f"job {run.job[best]}" + (f" of {name}" if name else "")
    limits = judged.interval(run)
    if limits is not None:
        rows = f" from {scale.rows:,} rows" if scale.rows else ""
        remark += f"; 95 % interval {limits[0]:.4g} to {limits[1]:.4g}{rows}"
    if scale.sign < 0:
        remark += f"; {scale.better}"
    return f"best {scale.name}", scale.text(run.objective[best]), remark


def states(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Return what is to be known of runs that are not finished, or damaged."""
    sentences = []
    for run, name in zip(runs, names, strict=True):
        if run.damaged:
            sentences.append(
                f"Left out: {charts.counted(run.damaged, 'damaged line')} of {name}/results.csv."
            )
        if run.state == FINISHED:
            continue
        waiting = max(0, run.asked - len(run))
        how_far = f"{charts.counted(len(run), 'evaluation')} so far, {waiting:,} under way"
        if run.state == IN_PROGRESS:
            sentences.append(f"{name} is still in progress: {how_far}.")
        else:
            sentences.append(
                f"{name} stopped before its end, with {charts.counted(len(run), 'evaluation')}; "
                "evolve --resume continues it."
            )
    return sentences


def facts(groups: Sequence[Group]) -> View:
    """Return the table of all runs."""
    rows = []
    several = len(groups) > 1
    common = Scale.common([run for group in groups for run in group.runs])
    for group in groups:
        for run, name in zip(group.runs, group.names, strict=True):
            scale = Scale.of(run)
            share = share_transferred([run])
            rows.append(
                [
                    *([group.name] if several else []),
                    name,
                    run.state,
                    *(_text(run.settings.get(key)) for key in ("application", "transfer", "seed")),
                    _ranks(run),
                    f"{len(run):,}",
                    f"{int((~run.done).sum()):,}",
                    "–" if run.best is None else scale.text(run.objective[run.best]),
                    f"{share:.0%}" if np.isfinite(share) else "–",
                ]
            )
    columns = [
        *(["group"] if several else []),
        *("run", "state", "application", "transfer", "seed", "ranks"),
        *("evaluations", "failed", f"best {common.name}", "transferred"),
    ]
    first = columns.index("seed")
    numeric = frozenset(range(first, len(columns)))
    return View("runs", "Runs", tables=[Table("All runs", columns, rows, numeric)])


def failures(run: Run) -> View | None:
    """Return how often evaluations failed for which reason; None if none did."""
    failed = np.flatnonzero(~run.done)
    said = run.texts("m:error") if run.has("error") else np.full(len(run), None, dtype=object)
    reasons = Counter((str(run.status[row]), str(said[row] or "–")) for row in failed.tolist())
    first = {(str(run.status[row]), str(said[row] or "–")): row for row in failed.tolist()[::-1]}
    errors = run.texts("m:transfer_error") if run.has("transfer_error") else ()
    without = sum(error is not None for error in errors)
    tables = []
    if reasons:
        shown = reasons.most_common(_REASONS)
        rows = [
            [status, error, f"{count:,}", f"{count / len(run):.1%}", f"job {run.job[first[key]]}"]
            for key, count in shown
            for status, error in [key]
        ]
        columns = ["reason", "message", "evaluations", "share", "first"]
        jobs = {4: [int(run.job[first[key]]) for key, _ in shown]}
        title = "Evaluations that failed"
        if len(reasons) > len(shown):
            title += f" (the {len(shown)} most frequent of {len(reasons):,} messages)"
        tables.append(Table(title, columns, rows, frozenset({2, 3}), jobs=jobs))
    if without:
        texts = Counter(str(error) for error in errors if error is not None)
        rows = [[text, f"{count:,}"] for text, count in texts.most_common(_REASONS)]
        tables.append(
            Table("Candidates without transfer", ["error", "evaluations"], rows, frozenset({1}))
        )
    return View("failures", "Failures", tables=tables) if tables else None


def settings(run: Run) -> View:
    """Return what a run was started with, on what, and where."""
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(float(run.description["started"])))
    rows = [["started", started], ["id", run.id], ["directory", str(run.path)]]
    rows += [[name, _text(value)] for name, value in run.settings.items() if value is not None]
    versions = run.description.get("versions")
    if isinstance(versions, dict):
        rows += [[f"version of {name}", _text(value)] for name, value in versions.items()]
    ranks = run.description.get("ranks")
    if isinstance(ranks, list):
        hosts = Counter(str(rank.get("host")) for rank in ranks if isinstance(rank, dict))
        rows.append(["ranks", ", ".join(f"{count} on {host}" for host, count in hosts.items())])
    judged_by = run.description.get("objective")
    if isinstance(judged_by, dict):
        rows += [[name.replace("_", " "), _text(value)] for name, value in judged_by.items()]
    again = run.description.get("resumed")
    if isinstance(again, list) and again:
        rows.append(["resumed", charts.counted(len(again), "time")])
    return View("settings", "Settings", tables=[Table("Settings", ["setting", "value"], rows)])


def _ranks(run: Run) -> str:
    ranks = run.description.get("ranks")
    return str(len(ranks)) if isinstance(ranks, list) else "–"


def _text(value: object) -> str:
    return "–" if value is None else str(value)
