"""The page of a run of the benchmarks: each question, its figures beside targets, and its plots."""

from __future__ import annotations

import html
import io
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import figures

UNITS = {
    "_per_s": "per second",
    "_gb_per_s": "GB/s",
    "_ms": "milliseconds",
    "_us": "microseconds",
    "_s": "seconds",
    "_over_": "ratio",
    "bytes": "bytes",
}
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h2 { margin: 2.5rem 0 .3rem; border-top: 1px solid #8886; padding-top: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .1rem .8rem .1rem 0; text-align: left; }
td.n { text-align: right; } td.n, td.met, td.missed { white-space: nowrap; }
.met { color: #1a7f37; } .missed { color: #cf222e; font-weight: 600; }
.scroll, figure { overflow-x: auto; margin: .5rem 0; } details { margin: .5rem 0; }
svg { background: #fff; min-width: 34rem; max-width: 100%; height: auto; border-radius: 6px; }
summary { cursor: pointer; }
@media (prefers-color-scheme: dark) { .met { color: #3fb950; } .missed { color: #f85149; }
svg { filter: invert(.9) hue-rotate(180deg); } }
"""


def write(file: Path, document: Mapping[str, Any]) -> None:
    """Write the page; without matplotlib, the page has tables only and says so."""
    facts = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(_plain(value))}</td></tr>"
        for key, value in document["machine"].items()
    )
    body = "".join(_section(name, answer) for name, answer in document["questions"].items())
    links = " · ".join(f'<a href="#{name}">{name}</a>' for name in document["questions"])
    quick = " (quick: small sizes, few repetitions)" if document["quick"] else ""
    file.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Benchmarks</title>"
        f'<meta name=viewport content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>Benchmarks</h1><p>{html.escape(document['made'])}{quick}</p><p>{links}</p>"
        f"<details><summary>The machine</summary><table>{facts}</table></details>{body}</html>\n"
    )


def median(values: Sequence[float]) -> float:
    """Return the median, as a whole number if all are."""
    middle = statistics.median(values)
    return int(middle) if all(isinstance(each, int) for each in values) else middle


def _section(name: str, answer: Mapping[str, Any]) -> str:
    parts = [f'<h2 id="{name}">{html.escape(answer["asks"])}</h2>']
    parts.append(
        f"<p><code>python -m benchmarks run {name}</code>, {answer['seconds']:g} s. "
        f"Compares {html.escape(answer['compares'])}.</p>"
    )
    for peer, install in answer["missing"].items():
        parts.append(f"<p class=missed>Without {html.escape(peer)}: {html.escape(install)}</p>")
    if "error" in answer:
        parts.append(f"<p class=missed>Failed: {html.escape(answer['error'])}</p>")
    results, targets = answer["results"], answer["targets"]
    parts.append(_table({key: results[key] for key in targets if key in results}, targets))
    parts += [f"<figure>{each}</figure>" for each in _plots(answer)]
    rest = _table(results, targets)
    parts.append(f"<details><summary>All {len(results)} figures</summary>{rest}</details>")
    return "".join(parts)


def _table(results: Mapping[str, float], targets: figures.Targets) -> str:
    rows = []
    for key, value in results.items():
        said = figures.verdict(value, targets.get(key))
        style = "missed" if said.startswith("MISSED") else "met"
        name = html.escape(key).replace("_", "_<wbr>")
        rows.append(
            f"<tr><td>{name}</td><td class=n>{_number(value)}</td>"
            f"<td class={style}>{html.escape(said)}</td></tr>"
        )
    return f"<div class=scroll><table>{''.join(rows)}</table></div>" if rows else ""


def _number(value: float) -> str:
    """Return four digits, or all of a large number; neither as powers of ten."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def _plots(answer: Mapping[str, Any]) -> list[str]:
    """Draw what the question asks to be drawn, and the rest as bars, a plot a unit."""
    try:
        import matplotlib
    except ImportError:
        return ["<p>No plots: pip install matplotlib</p>"]
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "font.size": 9, "svg.hashsalt": "benchmarks"}
    left = dict(answer["results"])
    drawn = []
    for title, pattern in answer["plots"].items():
        found = {key: match for key in left if (match := re.fullmatch(pattern, key))}
        values = {key: left.pop(key) for key in found}
        if any(match.groupdict().get("x") for match in found.values()):
            drawn.append(_lines(title, found, values))
        elif values:
            named = {match.group("series"): values[key] for key, match in found.items()}
            drawn.append(_bars(title, named, {}))
    by_unit: dict[str, dict[str, float]] = {}
    for key, value in left.items():
        if value > 0:
            by_unit.setdefault(_unit(key), {})[key] = value
    drawn += [_bars(unit, values, answer["targets"]) for unit, values in by_unit.items() if unit]
    return drawn


def _unit(key: str) -> str:
    fitting = [ending for ending in UNITS if key.endswith(ending)]
    if fitting:
        return UNITS[max(fitting, key=len)]
    return next((UNITS[part] for part in ("_over_", "bytes") if part in key), "")


def _lines(title: str, found: Mapping[str, re.Match[str]], values: Mapping[str, float]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.add_subplot()
    series: dict[str, list[tuple[float, float]]] = {}
    for key, match in found.items():
        point = (float(match.group("x")), values[key])
        series.setdefault(match.group("series"), []).append(point)
    for label, points in series.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.set(xscale="log", yscale="log", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure, title)


def _bars(title: str, values: Mapping[str, float], targets: figures.Targets) -> str:
    """Draw a bar a figure, longest names at the left; a mark where its target is."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 0.7 + 0.24 * len(values)), layout="constrained")
    axes = figure.add_subplot()
    names = list(values)
    positions = range(len(names))
    axes.barh(positions, list(values.values()), color="#4878cf", height=0.7)
    for position, (key, value) in enumerate(values.items()):
        axes.text(value, position, f" {_number(value)}", va="center", fontsize=8)
        if key in targets:
            limit = targets[key][1]
            axes.plot([limit, limit], [position - 0.45, position + 0.45], color="#d65f5f", lw=2)
    axes.set_yticks(positions, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    if max(values.values()) > 50 * min(values.values()):
        axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_title(f"{title} (red: target)" if any(key in targets for key in names) else title)
    return _svg(figure, title)


def _svg(figure: Any, title: str) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    drawn = out.getvalue()[out.getvalue().index("<svg") :]
    drawn = re.sub("<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    # Scrolls in its figure where the screen is narrow; so it is reached by keyboard, too.
    label = html.escape(title)
    return drawn.replace("<svg ", f'<svg role="img" tabindex="0" aria-label="{label}" ', 1)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
