"""``results.csv``: its columns and its cells, written and read here and nowhere else.

CSV as RFC 4180 has it, by the standard library. A gene's name and its values may be any text, so a
row may span several lines; how many is known from the genes. That is what tells a torn last row
from damage, and keeps a stray quote from taking rows behind it along.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transfer_nas.job import Measure
from transfer_nas.spaces import Scalar

ARCHITECTURE = "architecture"
"""The column ``p:architecture`` of a space without genes: the architecture as JSON."""


class GeneCells:
    """The values of a gene as cells of a CSV file, and back.

    A value is written as `str` has it. Where that makes two values of the gene one, such as
    ``"16"`` and 16, all of them are written as JSON, which tells them apart.

    Parameters
    ----------
    values
        Of the gene, or what JSON has made of them.

    Attributes
    ----------
    texts
        The cell of each value.
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self._values = list(values)
        self.texts = [str(value) for value in values]
        if len(set(self.texts)) < len(self.texts):
            self.texts = [json.dumps(value) for value in values]
        self._positions = {text: position for position, text in enumerate(self.texts)}

    @property
    def line_ends(self) -> int:
        """How many line ends a cell has at most."""
        return max(text.count("\n") for text in self.texts)

    def position(self, text: str) -> int:
        """Return the position of the value that a cell holds; -1 if it holds none of them.

        What other programs make of a cell is understood, too: 16.0 of 16, nothing of None.
        """
        found = self._positions.get(text)
        if found is not None:
            return found
        if text == "" and None in self._values:
            return self._values.index(None)
        try:
            number = float(text)
        except ValueError:
            return -1
        for position, value in enumerate(self._values):
            if isinstance(value, int | float) and not isinstance(value, bool) and value == number:
                return position
        return -1


def columns(chosen: Iterable[str], values: Iterable[str]) -> list[str]:
    """Return the header for genes, or other columns of a space, and values of these names."""
    return [
        *(f"p:{name}" for name in chosen),
        "objective",
        "job_id",
        "job_status",
        *(f"m:{value}" for value in values),
    ]


def row_text(cells: Iterable[object]) -> str:
    """Return a row as it stands in the file, with its end; None is the empty cell."""
    text = io.StringIO()
    # With this end of a row the writer quotes both line ends, wherever they are.
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue()[:-2] + "\n"


def measure_cell(value: Measure, *, exact: bool = False) -> str:
    """Return the cell of a measure; texts become one line.

    Seconds have six decimals; what an application measures (`exact`) may be of any size.
    """
    if isinstance(value, float):
        return repr(value) if exact else f"{value:.6f}"
    return " ".join(value.splitlines()) if isinstance(value, str) else str(value)


def value_cell(value: Scalar) -> str:
    """Return the cell of what a space without genes says; None is empty, texts become one line."""
    return "" if value is None else " ".join(str(value).splitlines())


def integer(cell: str) -> int:
    """Return the integer in a cell, perhaps as pandas writes those of a column with gaps: 4.0.

    Raises
    ------
    ValueError
        There is another number, or none.
    """
    whole, point, zeros = cell.partition(".")
    return int(whole if point and zeros and not zeros.strip("0") else cell)


@dataclass
class Rows:
    """What is in a file.

    Attributes
    ----------
    header, header_text
        Its cells, and it as it stands in the file; empty if the file has none yet.
    cells
        Of each whole row.
    lines
        The number of the first line of each, from 1.
    texts
        Each as it stands in the file, without its end.
    damage
        Number of a line that is in no row, and why.
    """

    header: list[str] = field(default_factory=list)
    header_text: bytes = b""
    cells: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)
    damage: list[tuple[int, str]] = field(default_factory=list)


def split(content: bytes, genes: Mapping[str, GeneCells]) -> Rows:
    """Split a file into rows.

    A last row that a killed writer has not brought to its end is left out without a word. A line
    that is in no row of as many cells as the header has is damage; those behind it are not.

    Parameters
    ----------
    content
        Of the file, perhaps while it is written.
    genes
        By name.
    """
    # Excel begins with a mark of UTF-8; what has no end is torn.
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")[:-1]
    found = Rows()
    begin, header = _header(lines, sum(name.count("\n") for name in genes))
    if not header:
        return found
    found.header, found.header_text = header, b"\n".join(lines[:begin])
    cells_of = {f"p:{name}": cells for name, cells in genes.items()}
    spanning = [cells_of.get(name) for name in header]
    most = 1 + sum(cells.line_ends for cells in spanning if cells is not None)
    torn: int | None = None  # number of damaged lines before a row that may be torn
    at = begin
    while at < len(lines):
        end = _end(lines, at, most)
        try:
            if end is None:
                raise ValueError("a quote is not closed")
            text = b"\n".join(lines[at:end])
            cells = _cells(text)
            if len(cells) != len(header):
                raise ValueError(f"expected {len(header)} columns, found {len(cells)}")
            if end - at > 1:
                _check_spanning(cells, spanning)
        except (ValueError, csv.Error) as cause:
            if torn is None and end is None and len(lines) - at < most:
                torn = len(found.damage)
            found.damage.append((at + 1, str(cause)))
            at += 1
            continue
        found.cells.append(cells)
        found.lines.append(at + 1)
        found.texts.append(text)
        at, torn = end, None
    if torn is not None:
        del found.damage[torn:]
    return found


def _header(lines: Sequence[bytes], line_ends: int) -> tuple[int, list[str]]:
    """Return how many lines the header takes, and its cells; none if it is torn."""
    end = _end(lines, 0, 1 + line_ends)
    if end is None and len(lines) <= line_ends:
        return 0, []
    try:
        return end or 1, _cells(b"\n".join(lines[: end or 1]))
    except (ValueError, csv.Error):
        return 1, [lines[0].decode(errors="replace")]


def _end(lines: Sequence[bytes], begin: int, most: int) -> int | None:
    """Return behind which line the row ends that begins here: where its quotes are closed."""
    quotes = 0
    for end in range(begin, min(begin + most, len(lines))):
        quotes += lines[end].count(b'"')
        if quotes % 2 == 0:
            return end + 1
    return None


def _cells(text: bytes) -> list[str]:
    return next(csv.reader([text.decode()], strict=True), [])


def _check_spanning(cells: Sequence[str], genes: Sequence[GeneCells | None]) -> None:
    """Raise ValueError unless each cell of several lines is a value of its gene."""
    for cell, gene in zip(cells, genes, strict=True):
        if "\n" in cell and (gene is None or gene.position(cell) < 0):
            raise ValueError("a quote is not closed")
