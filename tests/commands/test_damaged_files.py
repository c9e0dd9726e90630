"""Files that say something else than they should: a line for each, whichever command reads it."""

import copy
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpp_store
from cpp_store import _files, _lineage, command
from graph_meta import find_prefix
from graph_meta.graph import GraphError, LayerGraph
from tests.made_up_runs import write_run
from transfer_nas import evolve, experiments
from transfer_nas.population import PopulationError, default_space, files, patterns
from transfer_nas.report import __main__ as report

DELETED = object()
ODD: list[Any] = [
    *(None, True, 5, -1, 1e308, 10**400, "x", "\ud800", "a\0b", DELETED),
    *([], [None], [[]], {}, {"a": None}, {"name": 5}),
]
NOT_JSON_OF_OURS = ["", "{", "[]", "5", "null", '"x"', "[" * 100_000, '{"a":' * 5_000, "\ufeff{}"]


def places(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where something stands in a document; of lists, the first two items."""
    if isinstance(document, dict | list):
        keys = list(document) if isinstance(document, dict) else range(min(2, len(document)))
        for key in keys:
            yield (*at, key)
            yield from places(document[key], (*at, key))


def changed(document: Any, count: int) -> Iterator[str]:
    """Yield the document as JSON, something in it replaced or left out, and what is none of it."""
    rng = random.Random(1)
    every = [(place, odd) for place in places(document) for odd in ODD]
    for place, odd in rng.sample(every, min(count, len(every))):
        fresh = copy.deepcopy(document)
        inner = fresh
        for key in place[:-1]:
            inner = inner[key]
        if odd is DELETED:
            del inner[place[-1]]
        else:
            inner[place[-1]] = odd
        yield json.dumps(fresh)
    yield from NOT_JSON_OF_OURS


Capture = pytest.CaptureFixture[str]


def check(capsys: Capture, main: Callable[[list[str]], int], *arguments: str | Path) -> None:
    """Run a command: it works, or says in one line why not."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert code in (0, 2), said
    assert said.count("\n") == (code == 2), said


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Give a run directory."""
    write_run(tmp_path / "run", 8, population_size=4, ranks=2)
    return tmp_path / "run"


def test_descriptions_of_runs(run: Path, tmp_path: Path, capsys: Capture) -> None:
    file = run / "run.json"
    for text in changed(json.loads(file.read_text()), 60):
        file.write_text(text)
        check(capsys, report.main, run, "--output", tmp_path / "report.html")
        check(capsys, experiments.main, "aggregate", run)
        try:
            evolve.parse(["--resume", "--output_dir", str(run)])
        except cpp_store.command_line.InputError as error:
            assert "Traceback" not in str(error)


def test_journals_of_runs(run: Path, tmp_path: Path, capsys: Capture) -> None:
    rng = random.Random(1)
    damages: list[Callable[[bytes], bytes]] = [
        lambda line: b"\xff" + line,
        lambda line: b"[" * 3_000,
        lambda line: line.replace(b"0", b"9" * 30),
        lambda line: b"null",
        lambda line: line.replace(b",", b"\0,", 2),
        lambda line: line.replace(b"1", b"nan"),
    ]
    for name in ("checkpoint", "results.csv"):
        whole = (run / name).read_bytes()
        for damage in damages:
            lines = whole.splitlines(keepends=True)
            number = rng.randrange(1, len(lines))
            lines[number] = damage(lines[number])
            (run / name).write_bytes(b"".join(lines))
            check(capsys, report.main, run, "--output", tmp_path / "report.html")
            check(capsys, patterns.main, run)
        (run / name).write_bytes(whole)


def test_descriptions_of_populations(tmp_path: Path, capsys: Capture) -> None:
    population = tmp_path / "population"
    given = ["--population_size", "4", "--seed", "1", "--output_dir", str(population)]
    assert evolve.main(given) == 0
    file = population / "population.json"
    for text in changed(json.loads(file.read_text()), 150):
        file.write_text(text)
        for read in (
            files.space_name,
            files.read_members,
            lambda path: files.Population(path, default_space("dense_skip")),
        ):
            try:
                read(population)
            except PopulationError as error:
                assert "\n" not in str(error)
    shutil.rmtree(population)


def safetensors(path: Path, said: str) -> None:
    """Write a file of one tensor that says something of itself."""
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    head = json.dumps({"__metadata__": {"cpp_store": said, "cpp_store_models": said}, "a": entry})
    content = head.encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(4))


LAYER = {"name": "a", "requires": [], "nbytes": 4, "tensors": [["a", "float32"]], "owner": "m"}
MODEL = {
    "format": 1,
    "model": "m",
    "namespace": "",
    "score": 0.5,
    "parent": "",
    "created": 0.0,
    "graph": "",
    "metadata": {"by": "hand"},
    "layers": [LAYER],
}


def test_files_of_models(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with cpp_store.embedded(memory="16MiB") as store:
        for number, text in enumerate(changed(MODEL, 300)):
            safetensors(file, text)
            try:
                found = _files.read(file)
                store.put(
                    f"{number}",
                    found.tensors,
                    table=found.table,
                    namespace=found.namespace,
                    score=found.score,
                    parent=found.parent,
                    graph=found.graph,
                    metadata=found.metadata,
                )
            except (_files.FileError, cpp_store.StoreError) as error:
                assert str(error)
        assert store.list()


def test_files_of_lineages(tmp_path: Path) -> None:
    file = tmp_path / "models.safetensors"
    with cpp_store.embedded(memory="16MiB") as store:
        store.put("m", {"a": [np.zeros(1, "f4")]}, score=0.5, metadata={"by": "hand"})
        _lineage.write(file, store, ["m"], replace=False)
    head = json.loads(file.read_bytes()[8:].split(b"}}", 1)[0] + b"}}")["__metadata__"]
    [(key, said)] = head.items()
    for text in changed(json.loads(said), 300):
        entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
        content = json.dumps({"__metadata__": {key: text}, "m/a": entry, "a": entry}).encode()
        del entry
        file.write_bytes(struct.pack("<Q", len(content)) + content + bytes(4))
        with cpp_store.embedded(memory="16MiB") as store:
            try:
                _lineage.put(store, _lineage.read(file))
            except (_files.FileError, cpp_store.StoreError) as error:
                assert str(error)


def test_layer_graphs(tmp_path: Path, capsys: Capture) -> None:
    graph = default_space("dense_skip").graph([0] * 21)
    file = tmp_path / "graph.json"
    for text in changed(json.loads(graph.to_json()), 150):
        file.write_text(text)
        check(capsys, find_prefix.main, file, file)
        try:
            LayerGraph.from_json(text)
        except GraphError as error:
            assert "\n" not in str(error)


def test_results_of_benchmarks_and_keys(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "key"
    for text in (*NOT_JSON_OF_OURS, "\xe9" * 64, "0" * 64):
        file.write_text(text, encoding="latin-1" if "\xe9" in text else "utf-8")
        file.chmod(0o600)
        arguments = ["stat", "ofi+tcp://127.0.0.1:1", "--key_file", str(file), "--timeout", "0.1"]
        assert command.main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
