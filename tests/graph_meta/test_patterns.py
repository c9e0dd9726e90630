"""What a run reused, from results.csv and from a population."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graph_meta import patterns
from graph_meta.patterns import Model, Prefix

COLUMNS = "p:x,objective,job_id,job_status,m:parent,m:ancestor,m:layers,m:layers_transferred"


def digests(*layers: int) -> tuple[bytes, ...]:
    return tuple(bytes([layer]) * 16 for layer in layers)


RUN = [
    Model("0", None, 3, 0, digests(1, 2, 3)),
    Model("1", None, 3, 0, digests(1, 2, 4)),
    Model("2", "0", 3, 2, digests(1, 2, 5)),
    Model("3", "1", 3, 2, digests(1, 2, 6)),
    Model("4", "3", 4, 3, digests(1, 2, 6, 7)),
]


@pytest.fixture
def search(tmp_path: Path) -> Path:
    (tmp_path / "results.csv").write_text(
        f"{COLUMNS}\n1,0.5,0,DONE,,,4,0\n2,0.6,1,DONE,0,run/0,4,3\n3,F_nan,2,F_nan,0,,,\n"
        "4,0.7,3,DONE,1,run/1,6,3\n"
    )
    return tmp_path


@pytest.fixture
def population(tmp_path: Path) -> Path:
    rows = [
        {
            "model": int(model.id),
            "ancestor": None if model.ancestor is None else int(model.ancestor),
            "layers": model.layers,
            "layers_shared": model.transferred,
            "digests": list(model.digests),
        }
        for model in RUN
    ]
    # Two files, the younger models in the first one.
    pq.write_table(pa.Table.from_pylist(rows[2:]), tmp_path / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:2]), tmp_path / "b.parquet")
    return tmp_path


def test_prefixes_are_the_same_wherever_they_come_from() -> None:
    found = patterns.find(RUN)

    assert found.prefixes == [
        Prefix(uses=2, layers=2, ancestors=2, example="0", digest="02" * 16),
        Prefix(uses=1, layers=3, ancestors=1, example="3", digest="06" * 16),
    ]
    assert (found.models, found.without_ancestor) == (5, 2)
    assert (found.layers, found.transferred) == (16, 7)


def test_lineages_are_followed_to_their_beginning() -> None:
    assert patterns.find(RUN).depths == [2, 2, 1]
    # An ancestor from an earlier run is where a lineage begins here.
    assert patterns.find([Model("7", "3", 4, 2)]).depths == [0, 1]


def test_periods_cover_the_run() -> None:
    models = [Model(str(i), "0", 10, i % 11) for i in range(73)]

    periods = patterns.find(models).periods

    assert len(periods) == 20
    assert [p.begin for p in periods[1:]] == [p.end for p in periods[:-1]]
    assert (periods[0].begin, periods[-1].end) == (0, 73)
    layers = sum((p.end - p.begin) * 10 * p.share for p in periods)
    assert layers == pytest.approx(sum(model.transferred for model in models))


def test_reads_a_search(search: Path) -> None:
    assert patterns.read(search) == [
        Model("0", None, 4, 0),
        Model("1", "0", 4, 3),
        Model("3", "1", 6, 3),
    ]


def test_reads_a_population_in_order_of_age(population: Path) -> None:
    assert patterns.read(population) == RUN


def test_an_empty_run_has_no_patterns() -> None:
    found = patterns.find([])

    assert (found.models, found.prefixes, found.depths, found.periods) == (0, [], [], [])


def test_the_command_prints_a_table(search: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert patterns.main([str(search)]) == 0

    out = capsys.readouterr().out
    assert "3 models, 1 of them without an ancestor; 42.9% of 14 layers transferred" in out


def test_the_command_prints_json(population: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert patterns.main([str(population), "--json", "--count", "1"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert found["depths"] == [2, 2, 1]
    assert [prefix["uses"] for prefix in found["prefixes"]] == [2]


@pytest.mark.parametrize("rows", ["", "1,0.5,0,DONE,,,4,0\n2,0.6,1,DONE,0,run/0,4,3\n"])
def test_the_command_draws(rows: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "results.csv").write_text(f"{COLUMNS}\n{rows}")

    assert patterns.main([str(tmp_path), "--output", str(tmp_path / "plot.svg")]) == 0

    assert "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds neither results.csv of a search nor Parquet files"),
        ("a,b\n1,2\n", "line 1: there is no column job_id"),
        (f"{COLUMNS}\n1,0.5,x,DONE,,,4,0\n", "line 2: invalid literal"),
        (f"{COLUMNS}\n1,0.5,1,DONE,,,,0\n", "line 2: invalid literal"),
        (f"{COLUMNS}\n1,0.5,1,DONE\n", "line 2: "),
    ],
)
def test_bad_input_is_one_line(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "results.csv").write_text(content)

    assert patterns.main([str(tmp_path)]) == 2

    err = capsys.readouterr().err
    assert message in err and str(tmp_path) in err and err.count("\n") == 1


def test_a_truncated_population_is_named(
    population: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (population / "b.parquet").write_bytes((population / "b.parquet").read_bytes()[:-9])

    assert patterns.main([str(population)]) == 2
    err = capsys.readouterr().err
    assert "b.parquet: the file cannot be read" in err and err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--count", "0"], ["--colour"], ["--count", "x"]])
def test_bad_flags_are_one_line(
    flags: list[str], search: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert patterns.main([str(search), *flags]) == 2
    assert capsys.readouterr().err.startswith("patterns: error: ")
