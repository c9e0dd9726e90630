"""Stores that keep their models in a directory."""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import cpp_store
from cpp_store import _core

from ..conftest import SmallDisk
from . import servers

TABLE = cpp_store.LayerTable(["a", "b"], [[], [0]])
CHILD = cpp_store.LayerTable(["a", "c"], [[], [0]])


def fill(store: cpp_store.Store) -> None:
    """A parent, a child that inherits from it, and one that is retired again."""
    store.put(
        "parent",
        {"a": [np.arange(6.0).reshape(2, 3), np.ones(3, "complex128")], "b": [np.zeros(1000)]},
        table=TABLE,
        score=0.5,
        graph='{"layers": []}',
        metadata={"epochs": 3},
    )
    with store.best_match(CHILD) as match:
        store.put("child", {"c": [np.full(5, 7)]}, table=CHILD, inherited={"a": match})
    store.put("gone", {"x": [np.ones(10)]})
    store.retire("gone")
    store.retire("parent")


def check(store: cpp_store.Store) -> None:
    assert store.list() == ["child"]
    assert store.lookup("child").owners == {"a": "parent", "c": "child"}
    found = store.read("child")
    assert (found["a"][0] == np.arange(6.0).reshape(2, 3)).all()
    assert found["a"][1].dtype == np.complex128 and (found["c"][0] == 7).all()
    assert store.verify() == []
    with store.best_match(CHILD) as match:
        assert match.model == "child"


@pytest.mark.parametrize("durability", ["lazy", "sync"])
def test_a_full_disk_can_be_emptied_again(small_disk: SmallDisk, durability: str) -> None:
    with cpp_store.embedded(data_dir=small_disk.path / "data", durability=durability) as store:  # type: ignore[arg-type]
        with pytest.raises(cpp_store.StorageError, match="full"):
            for i in range(100):
                store.put(f"m{i}", {"a": [np.full(1 << 20, i, "int8")]})
        kept = store.list()
        assert 32 < len(kept) <= 48
        assert all((store.read(model)["a"][0] == i).all() for i, model in enumerate(kept))
        for model in kept:
            store.retire(model)
        store.put("more", {"a": [np.zeros(4 << 20, "int8")]})
        assert store.list() == ["more"]


@pytest.mark.parametrize("durability", ["lazy", "sync"])
def test_finds_models_again_in_process(tmp_path: Path, durability: str) -> None:
    directory = tmp_path / "data"
    with cpp_store.embedded(data_dir=directory, durability=durability) as store:  # type: ignore[arg-type]
        fill(store)
        check(store)
    with cpp_store.embedded(data_dir=str(directory)) as store:
        check(store)


@pytest.mark.parametrize("durability", ["lazy", "sync"])
@pytest.mark.parametrize("same_host", [True, False])
def test_finds_models_again_behind_a_server(
    tmp_path: Path, durability: str, same_host: bool
) -> None:
    arguments = ("--data_dir", str(tmp_path / "data"), "--durability", durability)
    with (
        servers.running(1, *arguments) as addresses,
        cpp_store.connect(addresses, same_host=same_host) as store,
    ):
        fill(store)
        store.put("big", {"w": [np.arange(1 << 20)]})
    process, address = servers.start(*arguments)
    with cpp_store.connect(address, same_host=same_host) as store:
        assert (store.read("big")["w"][0] == np.arange(1 << 20)).all()
        store.retire("big")
        check(store)
    code, errors = servers.finish(process)
    assert code == 0
    assert errors.endswith(f"({durability}); found 2\n")


def test_the_end_of_the_process_closes_it(tmp_path: Path) -> None:
    program = (
        "import cpp_store, numpy, sys\n"
        "store = cpp_store.embedded(data_dir=sys.argv[1])\n"
        "store.put('m', {'a': [numpy.arange(9)]})\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "data"], check=True, timeout=60)
    with cpp_store.embedded(data_dir=tmp_path / "data") as store:
        assert (store.read("m")["a"][0] == np.arange(9)).all()


def test_segments_are_safetensors(tmp_path: Path) -> None:
    with cpp_store.embedded(data_dir=tmp_path / "data") as store:
        store.put(
            "m",
            {
                "a": [np.ones(3, "uint8"), np.arange(4, dtype="complex128")],
                "b": [np.arange(100_000)],
            },
        )
    (segment,) = (tmp_path / "data" / "segments").iterdir()
    found = load_file(segment)
    assert (found["m/b/0"] == np.arange(100_000)).all()
    assert (found["m/a/0"] == 1).all()
    assert (found["m/a/1"][:, 0] == np.arange(4)).all()


def test_a_directory_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("text")
    with cpp_store.embedded(data_dir=tmp_path / "taken"):
        for directory, says in (
            (tmp_path / "file", "is not a directory"),
            (tmp_path / "other", "'notes.txt'"),
            (tmp_path / "taken", "is in use"),
            (tmp_path / "no" / "where", "cannot be made"),
            ("", "expected a path"),
        ):
            with pytest.raises(cpp_store.InvalidArgument, match=says):
                cpp_store.embedded(data_dir=directory)
        ended = subprocess.run(
            [servers.PROGRAM, "--data_dir", tmp_path / "taken"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1 and str(tmp_path / "taken") in ended.stderr


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    cpp_store.embedded(data_dir=tmp_path / "data").close()
    catalogue = sqlite3.connect(tmp_path / "data" / "catalogue.sqlite")
    catalogue.execute("PRAGMA user_version = 99")
    catalogue.close()
    with pytest.raises(cpp_store.InvalidArgument, match="format 99, this version knows up to 4"):
        cpp_store.embedded(data_dir=tmp_path / "data")


def test_json_of_a_server_stays_one_line(tmp_path: Path) -> None:
    process, line = servers.start("--json", "--data_dir", str(tmp_path / "data"))
    assert json.loads(line)["address"].startswith("ofi+tcp://")
    assert servers.finish(process)[0] == 0


def test_reads_a_directory_of_format_1(tmp_path: Path) -> None:
    kept = Path(__file__).resolve().parents[1] / "data" / "store_format_1"
    shutil.copytree(kept, tmp_path / "data")
    with cpp_store.embedded(data_dir=tmp_path / "data") as store:
        assert store.list() == ["child"]
        info = store.lookup("child")
        assert info.owners == {"a": "parent", "c": "child"}
        assert (info.namespace, info.parent, np.isnan(info.score)) == ("n", "parent", True)
        found = store.read("child")
        assert np.array_equal(found["a"][0], np.arange(6.0).reshape(2, 3))
        assert np.array_equal(found["a"][1], np.array([1 + 2j]))
        assert np.array_equal(found["c"][0], np.full(3, 7, "uint8"))
        assert store.verify() == []


def test_reads_a_directory_of_format_3(tmp_path: Path) -> None:
    """Of a sync store that was killed: all but "parent" is in its log only."""
    kept = Path(__file__).resolve().parents[1] / "data" / "store_format_3"
    shutil.copytree(kept, tmp_path / "data")
    assert (tmp_path / "data" / "log.0").stat().st_size > 0
    with cpp_store.embedded(data_dir=tmp_path / "data") as store:
        assert store.list() == ["child"]
        info = store.lookup("child")
        assert info.owners == {"a": "parent", "c": "child"}
        assert (info.namespace, info.parent) == ("n", "parent")
        found = store.read("child")
        assert np.array_equal(found["a"][0], np.arange(6.0).reshape(2, 3))
        assert np.array_equal(found["c"][0], np.full(3, 7, "uint8"))
        assert store.verify() == []
    assert not (tmp_path / "data" / "log.0").exists()


def test_reads_a_directory_of_format_2(tmp_path: Path) -> None:
    """One of two replicas': what it adopted, what another server's model holds, a retirement."""
    kept = Path(__file__).resolve().parents[1] / "data" / "store_format_2"
    shutil.copytree(kept, tmp_path / "data")
    with cpp_store.embedded(data_dir=tmp_path / "data") as store:
        assert store.list() == ["child"]
        info = store.lookup("child")
        assert [owner.partition("@")[0] for owner in info.owners.values()] == ["parent", "child"]
        assert np.array_equal(store.read("child", ["c"])["c"][0], np.full(3, 7, "uint8"))
        stats = store.stats()
        assert (stats["layers"], stats["foreign_holders"]) == (2, 1)  # one of them adopted
        assert store.verify() == []
    catalogue = sqlite3.connect(tmp_path / "data" / "catalogue.sqlite")
    assert catalogue.execute("SELECT model, retired FROM notes").fetchall() == [("parent", 1)]
    catalogue.close()
    report = _core.check_directory(str(tmp_path / "data"), False)
    assert (report["damage"], report["leaks"]) == ([], [])
