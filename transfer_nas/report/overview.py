"""What stands at the top: the figures that people ask for first, and what the runs were."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from transfer_nas.report import charts
from transfer_nas.report.charts import Table, View
from transfer_nas.report.progress import Group, layer_share
from transfer_nas.report.storage import whole_copies
from transfer_nas.runs import FINISHED, IN_PROGRESS, Run

Tile = tuple[str, str, str]
"""A figure: what it is, its value, a remark."""

_REASONS = 12  # of failures


def tiles(runs: Sequence[Run]) -> list[Tile]:
    """Return the figures of all runs together."""
    evaluations, failures = sum(map(len, runs)), sum(int((~run.done).sum()) for run in runs)
    tried = [run for run in runs if run.best is not None]
    best = max(tried, key=lambda run: run.running_best[-1], default=None)
    shares = np.concatenate([layer_share(run) for run in runs]) if runs else np.empty(0)
    stored = sum(float(np.nansum(run.measure("bytes_stored"))) for run in runs)
    whole = sum(float(np.nansum(whole_copies(run))) for run in runs)
    seconds = [float(np.nanmax(run.seconds)) for run in runs if np.isfinite(run.seconds).any()]
    found: list[Tile] = []
    if best is not None and best.best is not None:
        remark = f"job {best.job[best.best]}"
        found.append(("best objective", f"{best.objective[best.best]:.4f}", remark))
    failed = f"{failures:,} failed" if failures else "none failed"
    found.append(("evaluations", f"{evaluations:,}", failed))
    if np.isfinite(shares).any():
        remark = "of the children's layers"
        found.append(("transferred", f"{np.nanmean(shares):.0%}", remark))
    if stored:
        remark = f"whole copies {charts.bytes_text(whole)}"
        found.append(("stored", charts.bytes_text(stored), remark))
    if seconds:
        rate = f"{evaluations / max(sum(seconds), 1e-9):.3g} evaluations/s"
        found.append(("time", charts.seconds_text(max(seconds)), rate))
    return found


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
    for group in groups:
        for run, name in zip(group.runs, group.names, strict=True):
            best = run.running_best[-1] if run.best is not None else np.nan
            share = layer_share(run)
            rows.append(
                [
                    *([group.name] if several else []),
                    name,
                    run.state,
                    *(_text(run.settings.get(key)) for key in ("application", "transfer", "seed")),
                    _ranks(run),
                    f"{len(run):,}",
                    f"{int((~run.done).sum()):,}",
                    f"{best:.4f}" if np.isfinite(best) else "–",
                    f"{np.nanmean(share):.0%}" if np.isfinite(share).any() else "–",
                ]
            )
    columns = [
        *(["group"] if several else []),
        *("run", "state", "application", "transfer", "seed", "ranks"),
        *("evaluations", "failed", "best objective", "transferred"),
    ]
    first = columns.index("seed")
    numeric = frozenset(range(first, len(columns)))
    return View("runs", "Runs", tables=[Table("All runs", columns, rows, numeric)])


def failures(run: Run) -> View | None:
    """Return how often evaluations failed for which reason; None if none did."""
    reasons = Counter(str(status) for status in run.status[~run.done])
    errors = run.texts("m:transfer_error") if run.has("transfer_error") else ()
    without = sum(error is not None for error in errors)
    tables = []
    if reasons:
        rows = [
            [reason, f"{count:,}", f"{count / len(run):.1%}"]
            for reason, count in reasons.most_common(_REASONS)
        ]
        columns = ["reason", "evaluations", "share"]
        tables.append(Table("Evaluations that failed", columns, rows, frozenset({1, 2})))
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
    again = run.description.get("resumed")
    if isinstance(again, list) and again:
        rows.append(["resumed", charts.counted(len(again), "time")])
    return View("settings", "Settings", tables=[Table("Settings", ["setting", "value"], rows)])


def _ranks(run: Run) -> str:
    ranks = run.description.get("ranks")
    return str(len(ranks)) if isinstance(ranks, list) else "–"


def _text(value: object) -> str:
    return "–" if value is None else str(value)
