"""What a chart is to this package: data with names and units. `static/charts.js` draws it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Chart = dict[str, Any]
"""JSON values; ``kind`` says which function of ``charts.js`` draws them."""

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """A place for a chart on the page.

    Attributes
    ----------
    id
        Unique on the page.
    title
        Stands above it.
    label
        What it shows, in a sentence or two with numbers: for those who cannot see it.
    charts
        By name: if there are several, the reader chooses.
    caption
        Stands below it: what is left out, how to read it.
    second
        A second choice of the reader's, by name: what the chart gets as ``second``.
    logarithmic
        Axes, ``x`` and ``y``, that the reader may make logarithmic.
    """

    id: str
    title: str
    label: str
    charts: Mapping[str, Chart]
    caption: str = ""
    second: Mapping[str, str] = field(default_factory=dict)
    logarithmic: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """A table for people; cells are texts.

    Attributes
    ----------
    title, columns, rows
        What it says.
    numeric
        Columns that are aligned right.
    commands
        One for each row, to copy; `command` says for what.
    jobs
        By column: the job that each cell names, None where it names none.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()
    commands: Sequence[str] = ()
    command: str = ""
    jobs: Mapping[int, Sequence[int | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class View:
    """A section of the page.

    Attributes
    ----------
    id, title
        As in the address and in the heading.
    text
        A paragraph on what there is to see.
    figures, tables
        In this order.
    pictures
        Title and SVG element (trusted: made by `graph_meta.drawing`) of drawings.
    missing
        Why there is nothing to see, instead of all that.
    rows
        Whether the table of all evaluations stands here.
    """

    id: str
    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[tuple[str, str]] = ()
    missing: str = ""
    notes: Sequence[str] = field(default_factory=list)
    rows: bool = False


def xy(x: str, y: str, series: Sequence[Chart], **options: Any) -> Chart:
    """Return a chart of two axes.

    Parameters
    ----------
    x, y
        Names of the axes, with units.
    series
        From `points`, `line` and `band`.
    **options
        ``x_format``, ``y_format``: ``number``, ``percent`` or ``bytes``; ``x_zero``, ``y_zero``:
        whether the axis starts at zero; ``y_min``, ``y_max``: where the vertical one is cut;
        ``x_inverse``: whether it goes from right to left; ``stack``: whether series stand on each
        other.
    """
    return {"kind": "xy", "x": x, "y": y, "series": list(series), **options}


def points(name: str, x: ArrayLike, y: ArrayLike, colour: str, labels: Sequence[str] = ()) -> Chart:
    """Return a series of single points; `labels` say what each is."""
    return {"type": "points", "name": name, "colour": colour, **_pairs(x, y), "labels": [*labels]}


def line(
    name: str, x: ArrayLike, y: ArrayLike, colour: str, *, step: bool = False, thin: bool = False
) -> Chart:
    """Return a series that is connected; `step`: each value holds until the next."""
    kind = "step" if step else "line"
    return {"type": kind, "name": name, "colour": colour, "thin": thin, **_pairs(x, y)}


def band(name: str, x: ArrayLike, low: ArrayLike, high: ArrayLike, colour: str) -> Chart:
    """Return the area between two curves."""
    return {
        "type": "band",
        "name": name,
        "colour": colour,
        "x": numbers(x),
        "low": numbers(low),
        "high": numbers(high),
    }


def numbers(values: ArrayLike, digits: int = 6) -> list[float | int | None]:
    """Return JSON numbers of so many significant digits; null for what is not finite."""
    array = np.asarray(values)
    if array.dtype.kind in "iub":
        integers: list[float | int | None] = array.astype(np.int64).tolist()
        return integers
    rounded = [float(f"{value:.{digits}g}") for value in array.tolist()]
    return [
        None if not math.isfinite(value) else int(value) if value.is_integer() else value
        for value in rounded
    ]


def thinned(count: int, limit: int, keep: ArrayLike = ()) -> Integers:
    """Return at most about `limit` positions of `count`, evenly spread, and those to `keep`."""
    if count <= limit:
        return np.arange(count)
    kept = np.asarray(keep, dtype=np.int64)
    even = np.linspace(0, count - 1, max(2, limit - len(kept))).astype(np.int64)
    return np.union1d(even, kept)


def windows(x: Floats, y: Floats, count: int, quantiles: Sequence[float]) -> tuple[Floats, Floats]:
    """Summarise y in windows of equally many points.

    Parameters
    ----------
    x, y
        Positions, ascending, and values, shape (n,); not finite ones are left out.
    count
        Number of windows at most.
    quantiles
        Which quantiles of y.

    Returns
    -------
    centres, values
        Mean x of each window, shape (w,); the quantiles, shape (quantiles, w).
    """
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    pieces = max(1, min(count, len(y) // 8))
    if len(y) == 0:
        return np.empty(0), np.empty((len(quantiles), 0))
    edges = np.linspace(0, len(y), pieces + 1).astype(int)
    bounds = list(pairwise(edges))
    centres = np.array([x[a:b].mean() for a, b in bounds])
    values = np.array([np.quantile(y[a:b], quantiles) for a, b in bounds]).T
    return centres, values


def moving_mean(values: Floats, width: int) -> Floats:
    """Return the mean of the last `width` values that are numbers, at each position."""
    good = np.isfinite(values)
    sums = np.cumsum(np.where(good, values, 0.0))
    counts = np.cumsum(good)
    sums[width:] = sums[width:] - sums[:-width].copy()
    counts[width:] = counts[width:] - counts[:-width].copy()
    return np.asarray(np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0))


@dataclass(frozen=True)
class Unit:
    """What seconds are shown in: divide by `seconds`."""

    name: str
    seconds: float


def time_unit(longest: float) -> Unit:
    """Return the unit in which `longest` seconds are a handy number."""
    for name, seconds in (("days", 86_400.0), ("hours", 3_600.0), ("minutes", 60.0)):
        if longest >= 3 * seconds:
            return Unit(name, seconds)
    return Unit("seconds", 1.0)


def bytes_text(count: float) -> str:
    """Return a number of bytes for people, in decimal units."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"


def counted(count: int, noun: str) -> str:
    """Return how many there are, in words: ``1 run``, ``2,000 runs``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def seconds_text(seconds: float) -> str:
    """Return a duration for people."""
    unit = time_unit(seconds)
    short = {"seconds": "s", "minutes": "min", "hours": "h", "days": "d"}[unit.name]
    return f"{seconds / unit.seconds:.3g} {short}"


def _pairs(x: ArrayLike, y: ArrayLike) -> Chart:
    return {"x": numbers(x), "y": numbers(y)}
