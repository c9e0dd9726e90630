"""A page of a run as one writes it with Plotly; ``bench_report.py`` runs it beside our report.

``python benchmarks/plotly_report.py RUN --output FILE``: four of the report's views, in one page
that opens offline, of all evaluations, by the traces that Plotly has for many points.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

# The name of the mark that our own page sets when its first chart is on show.
MARK = (
    """if (!performance.getEntriesByName("first-chart").length) performance.mark("first-chart");"""
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    given = parser.parse_args()
    rows = pd.read_csv(given.run / "results.csv", low_memory=False)
    rows["objective"] = pd.to_numeric(rows["objective"], errors="coerce")
    rows = rows.sort_values("m:timestamp_gather")
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=number == 0, post_script=MARK)
        for number, figure in enumerate((objective(rows), transfer(rows), genes(rows), ranks(rows)))
    ]
    given.output.write_text(
        f"<!doctype html><meta charset=utf-8><title>Run</title>{''.join(parts)}"
    )


def objective(rows: pd.DataFrame) -> go.Figure:
    """Return every evaluation over time, and the running best."""
    time, value = rows["m:timestamp_gather"], rows["objective"]
    return go.Figure(
        [
            go.Scattergl(x=time, y=value, mode="markers", name="evaluations"),
            go.Scattergl(x=time, y=value.cummax(), mode="lines", name="best"),
        ]
    )


def transfer(rows: pd.DataFrame) -> go.Figure:
    """Return the share of layers that came from an ancestor, over time."""
    share = (rows["m:layers_transferred"] / rows["m:layers"]).rolling(100, min_periods=1).mean()
    return go.Figure(go.Scattergl(x=rows["m:timestamp_gather"], y=share, mode="lines"))


def genes(rows: pd.DataFrame) -> go.Figure:
    """Return parallel coordinates of the genes, coloured by the objective."""
    dimensions = []
    for name in [name for name in rows.columns if name.startswith("p:")]:
        codes, values = pd.factorize(rows[name], sort=True)
        dimensions.append(
            {
                "label": name.removeprefix("p:"),
                "values": codes,
                "tickvals": list(range(len(values))),
                "ticktext": [str(value) for value in values],
            }
        )
    dimensions.append({"label": "objective", "values": rows["objective"]})
    return go.Figure(go.Parcoords(dimensions=dimensions, line={"color": rows["objective"]}))


def ranks(rows: pd.DataFrame) -> go.Figure:
    """Return what each rank evaluated when."""
    begin, end = rows["m:timestamp_submit"], rows["m:timestamp_gather"]
    return go.Figure(
        go.Bar(base=begin, x=end - begin, y=rows["m:rank"], orientation="h", name="evaluations")
    )


if __name__ == "__main__":
    main()
