"""results.csv: any text in names and values, torn and damaged at any place, and back."""

import csv
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_nas.searching import results
from transfer_nas.searching.results import GeneCells
from transfer_nas.values import CORE

# What tears CSV apart is likelier here than in life.
TEXTS = st.text(
    st.sampled_from(',"\n\r\t \x00\x85\u2028;16aNü') | st.characters(codec="utf-8"), max_size=8
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
GENES = st.dictionaries(
    TEXTS, st.lists(SCALARS, min_size=1, max_size=4, unique=True), min_size=1, max_size=3
)


def write(genes: dict[str, list[Any]], genomes: list[dict[str, int]]) -> tuple[bytes, list[int]]:
    """Return a file of results, and where each row ends in it."""
    text = results.row_text(results.columns(genes, [value.name for value in CORE]))
    content, ends = text.encode(), list[int]()
    for job, genome in enumerate(genomes):
        cells = [GeneCells(genes[name]).texts[genome[name]] for name in genes]
        cells += ["0.5", str(job), "DONE", *[""] * len(CORE)]
        content += results.row_text(cells).encode()
        ends.append(len(content))
    return content, ends


def read(content: bytes, genes: dict[str, list[Any]]) -> tuple[list[dict[str, int]], list[int]]:
    """Return the genomes of a file, and its damaged lines."""
    cells = {name: GeneCells(values) for name, values in genes.items()}
    rows = results.split(content, cells)
    positions = [rows.header.index(f"p:{name}") for name in genes] if rows.header else []
    found = [
        {
            name: cells[name].position(row[at])
            for name, at in zip(genes, positions, strict=bool(rows.header))
        }
        for row in rows.cells
    ]
    return found, [line for line, _ in rows.damage]


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[str, list[Any]], list[dict[str, int]]]:
    genes = draw(GENES)
    genome = st.fixed_dictionaries(
        {name: st.integers(0, len(values) - 1) for name, values in genes.items()}
    )
    return genes, draw(st.lists(genome, min_size=1, max_size=4))


@settings(max_examples=150, deadline=None)
@given(tables())
def test_names_and_values_of_any_text_come_back(
    table: tuple[dict[str, list[Any]], list[dict[str, int]]],
) -> None:
    genes, genomes = table
    content, _ = write(genes, genomes)
    assert read(content, genes) == (genomes, [])
    # And any other reader of CSV finds the same cells.
    header, *rows = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
    assert header == results.columns(genes, [value.name for value in CORE])
    assert len(rows) == len(genomes)


@settings(max_examples=60, deadline=None)
@given(tables(), st.data())
def test_a_torn_row_is_no_damage_and_costs_no_other(
    table: tuple[dict[str, list[Any]], list[dict[str, int]]], data: st.DataObject
) -> None:
    genes, genomes = table
    content, ends = write(genes, genomes)
    cut = data.draw(st.integers(0, len(content)))
    whole = sum(end <= cut for end in ends)
    assert read(content[:cut], genes) == (genomes[:whole], [])


@pytest.mark.parametrize("values", [["relu", "tanh"], ["one\ntwo", "x"]])
def test_a_stray_quote_costs_its_row_and_no_other(values: list[str]) -> None:
    genes: dict[str, list[Any]] = {"a": values}
    genomes = [{"a": number % 2} for number in range(6)]
    content, ends = write(genes, genomes)
    for at in range(ends[1], ends[2] - 1):
        damaged = content[:at] + b'"' + content[at + 1 :]
        found, lines = read(damaged, genes)
        assert found[:2] == genomes[:2] and found[-3:] == genomes[-3:], damaged
        assert len(found) == 6 or lines


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (["None", None], ['"None"', "null"]),
        (["16", 16], ['"16"', "16"]),
        ([True, "True", 2], ["true", '"True"', "2"]),
        ([True, 2], ["True", "2"]),
        (["", "NA", "None"], ["", "NA", "None"]),
        ([0.1, 1e-05], ["0.1", "1e-05"]),
    ],
)
def test_each_value_has_a_cell_of_its_own(values: list[Any], texts: list[str]) -> None:
    cells = GeneCells(values)
    assert cells.texts == texts
    assert [cells.position(text) for text in texts] == list(range(len(values)))


def test_what_others_write_of_a_value_is_understood() -> None:
    assert GeneCells([None, 16]).position("16.0") == 1
    assert GeneCells([None, 16]).position("") == 0
    assert GeneCells(["16", "x"]).position("16.0") == -1
    assert GeneCells([1, 2]).position("True") == -1
