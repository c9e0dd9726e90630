"""``cpp-store check``, ``export`` and ``import``."""

import contextlib
import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from cpp_store.command import main

import cpp_store

from . import servers

TABLE = cpp_store.LayerTable(["a", "b"], [[], [0]])
CHILD = cpp_store.LayerTable(["a", "c"], [[], [0]])
GRANDCHILD = cpp_store.LayerTable(["a", "c", "d"], [[], [0], [1]])


def fill(store: cpp_store.Store) -> None:
    """A lineage of three, of which the first is retired when the third is there."""
    weights = {"a": [np.arange(70_000.0), np.ones(3, "complex128")], "b": [np.zeros(9, "int8")]}
    store.put("first", weights, table=TABLE, score=1.5)
    with store.best_match(CHILD) as match:
        store.put(
            "second",
            {"c": [np.full((2, 3), 7, "bool")]},
            table=CHILD,
            inherited={"a": match},
            parent="first",
            graph="{}",
            metadata={"epochs": 2},
        )
    with store.best_match(GRANDCHILD) as match:
        store.put(
            "third",
            {"d": [np.float32(4)]},
            table=GRANDCHILD,
            inherited={"a": match, "c": match},
            parent="second",
        )
    store.retire("first")


def same(one: cpp_store.Store, other: cpp_store.Store, models: list[str]) -> None:
    """Whether both have these models with the same content."""
    for model in models:
        mine, theirs = one.lookup(model), other.lookup(model)
        assert mine.table == theirs.table and mine.score == theirs.score
        assert (mine.parent, mine.graph, mine.metadata) == (
            theirs.parent,
            theirs.graph,
            theirs.metadata,
        )
        expected, found = one.read(model), other.read(model)
        assert list(expected) == list(found)
        for layer in expected:
            for a, b in zip(expected[layer], found[layer], strict=True):
                assert a.dtype == b.dtype and np.array_equal(a, b)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with cpp_store.embedded(data_dir=tmp_path / "data") as store:
        fill(store)
    return tmp_path / "data"


def damage_index(catalogue: Path) -> None:
    """Let an index say that layers are in another segment than their table says."""
    move = "UPDATE layers SET segment = segment {} 1000"
    with contextlib.closing(sqlite3.connect(catalogue, isolation_level=None)) as database:
        database.execute(move.format("+"))
        database.execute("PRAGMA writable_schema = ON")
        name = "layers_by_segment"
        row = database.execute("SELECT * FROM sqlite_schema WHERE name = ?", [name]).fetchone()
        database.execute("DELETE FROM sqlite_schema WHERE name = ?", [name])
    with contextlib.closing(sqlite3.connect(catalogue, isolation_level=None)) as database:
        database.execute(move.format("-"))  # and the index knows nothing of it
        database.execute("PRAGMA writable_schema = ON")
        database.execute("INSERT INTO sqlite_schema VALUES(?, ?, ?, ?, ?)", row)


def test_check_rebuilds_an_index(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage_index(directory / "catalogue.sqlite")
    assert main(["check", str(directory)]) == 1
    assert "damage: the catalogue itself" in capsys.readouterr().out
    assert main(["check", str(directory), "--repair"]) == 1
    said = capsys.readouterr().out
    assert "its indexes are rebuilt" in said and "dropped" not in said
    assert main(["check", str(directory)]) == 0
    with cpp_store.embedded(data_dir=directory) as store:
        assert store.list() == ["second", "third"] and store.verify() == []


def test_check_finds_nothing_where_all_is_well(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(directory)]) == 0
    assert "2 models, 3 layers" in capsys.readouterr().out
    assert main(["check", str(directory), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["models"], found["retired"], found["damage"], found["leaks"]) == (2, 1, [], [])


def test_check_finds_and_repairs_damage(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with cpp_store.embedded(data_dir=directory) as store:
        store.put("other", {"x": [np.arange(100_000)]})
    bad = max((directory / "segments").iterdir())
    with bad.open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"!")
    (directory / "segments" / "000000000077.safetensors").write_bytes(b"left over")
    assert main(["check", str(directory)]) == 1
    said = capsys.readouterr().out
    assert "layer 'x' of model 'other'" in said and "000000000077" in said
    with cpp_store.embedded(data_dir=directory) as store:
        with pytest.raises(cpp_store.StorageError, match="damaged"):
            store.read("other")
        assert len(store.verify()) == 1
    assert main(["check", "--repair", str(directory), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["dropped"] == ["other"]
    assert main(["check", str(directory)]) == 0
    with cpp_store.embedded(data_dir=directory) as store:
        assert store.list() == ["second", "third"]
        assert store.verify() == []


def test_check_drops_heirs_of_what_is_damaged(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for segment in (directory / "segments").iterdir():
        segment.unlink()
    with pytest.raises(cpp_store.StorageError, match="is missing; cpp-store check --repair"):
        cpp_store.embedded(data_dir=directory)
    assert main(["check", str(directory)]) == 1
    assert main(["check", str(directory), "--repair"]) == 1
    assert main(["check", str(directory)]) == 0
    with cpp_store.embedded(data_dir=directory) as store:
        assert store.list() == []


def test_a_catalogue_that_is_cut_off_says_what_to_do(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = directory / "catalogue.sqlite"
    os.truncate(catalogue, catalogue.stat().st_size // 2)
    for flags in ([], ["--repair"]):
        assert main(["check", str(directory), *flags]) == 2
        assert "move it out of the directory" in capsys.readouterr().err
    segments = sorted(path.name for path in (directory / "segments").iterdir())
    catalogue.rename(tmp_path / "damaged.sqlite")
    assert main(["check", str(directory), "--repair"]) == 1
    assert "it is made anew of what the segments say" in capsys.readouterr().out
    assert main(["check", str(directory)]) == 0
    assert sorted(path.name for path in (directory / "segments").iterdir()) == segments
    with cpp_store.embedded(data_dir=directory) as store:
        # The only one of 64 KiB or more. It was retired, which only the catalogue knew.
        assert store.list() == ["first"] and store.verify() == []


def test_check_wants_a_directory_that_nobody_has_open(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with cpp_store.embedded(data_dir=directory):
        assert main(["check", str(directory)]) == 2
    assert "is in use" in capsys.readouterr().err
    assert main(["check", str(directory / "nowhere")]) == 2
    assert "is no data directory" in capsys.readouterr().err


def test_a_lineage_goes_from_store_to_store(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "lineage.safetensors"
    assert main(["export", str(directory), "third", str(file), "--lineage"]) == 0
    # Each tensor once: the heirs of the one that was retired share its layer.
    assert file.stat().st_size < 70_000 * 8 + 10_000
    assert main(["import", str(file), str(tmp_path / "copy")]) == 0
    assert main(["import", str(file), str(tmp_path / "copy")]) == 0  # again: nothing to do
    with (
        cpp_store.embedded(data_dir=directory) as one,
        cpp_store.embedded(data_dir=tmp_path / "copy") as other,
    ):
        assert other.list() == ["second", "third"]
        same(one, other, ["second", "third"])
        assert other.lookup("third").owners == {"a": "second", "c": "second", "d": "third"}


def test_single_models_go_to_servers_and_back(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    assert main(["export", str(directory), "third", str(file)]) == 0
    assert main(["export", str(directory), "third", str(file)]) == 2  # is there already
    with servers.running(1) as (address,), cpp_store.connect(address) as other:
        assert main(["import", str(file), address]) == 0
        assert other.lookup("third").owners == {"a": "third", "c": "third", "d": "third"}
        assert main(["export", address, "third", str(file), "--force"]) == 0
        with cpp_store.embedded(data_dir=directory) as one:
            same(one, other, ["third"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export", "{data}", "nobody", "{tmp}/f"], "no model 'nobody'"),
        (["export", "{tmp}/nowhere", "m", "{tmp}/f"], "neither a data directory nor an address"),
        (["import", "{tmp}/nowhere", "{data}"], "cannot read"),
        (["import", "{tmp}/text", "{data}"], "is not a safetensors file"),
    ],
)
def test_bad_input_is_one_line(
    directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    (tmp_path / "text").write_text("text")
    assert main([each.format(data=directory, tmp=tmp_path) for each in arguments]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
