"""What a run reused, and what a population did."""

import json
from pathlib import Path

import pytest

from tests.made_up_runs import write_run
from transfer_nas import runs
from transfer_nas.population import patterns, read_members, run
from transfer_nas.population.patterns import Model, Prefix
from transfer_nas.ranks import Alone
from transfer_nas.settings import GenerationSettings


def digests(*layers: int) -> tuple[bytes, ...]:
    return tuple(bytes([layer]) * 16 for layer in layers)


RUN = [
    Model("0", None, 3, 0, digests(1, 2, 3)),
    Model("1", None, 3, 0, digests(1, 2, 4)),
    Model("2", "0", 3, 2, digests(1, 2, 5)),
    Model("3", "1", 3, 2, digests(1, 2, 6)),
    Model("4", "3", 4, 3, digests(1, 2, 6, 7)),
]


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "search"
    write_run(path, 60, failures=0.1)
    return path


@pytest.fixture
def population(tmp_path: Path) -> Path:
    path = tmp_path / "population"
    settings = {"population_size": 20, "evolve_count": 30, "seed": 1, "output_dir": str(path)}
    assert run(GenerationSettings(**settings), Alone()) == 0
    return path


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
    found = runs.read(search)

    models = patterns.read(search)

    assert len(models) == found.done.sum() < 60
    assert [int(model.id) for model in models] == found.job[found.done].tolist()
    assert (
        sum(m.transferred for m in models) == found.measure("layers_transferred")[found.done].sum()
    )
    assert sum(m.ancestor is None for m in models) == (found.ancestor[found.done] < 0).sum()


def test_reads_a_population_in_order_of_age(population: Path) -> None:
    members = read_members(population).to_pylist()

    models = patterns.read(population)

    assert [model.id for model in models] == [str(number) for number in range(50)]
    assert [model.digests for model in models] == [tuple(row["digests"]) for row in members]
    assert patterns.find(models).prefixes[0].digest != ""


def test_an_empty_run_has_no_patterns() -> None:
    found = patterns.find([])

    assert (found.models, found.prefixes, found.depths, found.periods) == (0, [], [], [])


def test_the_command_prints_a_table(search: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert patterns.main([str(search)]) == 0

    models = patterns.read(search)
    out = capsys.readouterr().out
    assert (
        f"{len(models)} models, " in out and f"of {sum(m.layers for m in models):,} layers" in out
    )


def test_the_command_prints_json(population: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert patterns.main([str(population), "--json", "--count", "1"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert sum(found["depths"]) == found["models"] == 50
    assert len(found["prefixes"]) == 1


def test_the_command_draws(search: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    assert patterns.main([str(search), "--output", str(tmp_path / "plot.svg")]) == 0

    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert patterns.main([str(tmp_path)]) == 2

    err = capsys.readouterr().err
    assert str(tmp_path) in err and err.count("\n") == 1


def test_a_truncated_population_is_named(
    population: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = population.glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-9])

    assert patterns.main([str(population)]) == 2
    err = capsys.readouterr().err
    assert f"{file.name}: the file cannot be read" in err and err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--count", "0"], ["--colour"], ["--count", "x"]])
def test_bad_flags_are_one_line(
    flags: list[str], search: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert patterns.main([str(search), *flags]) == 2
    assert capsys.readouterr().err.startswith("patterns: error: ")
