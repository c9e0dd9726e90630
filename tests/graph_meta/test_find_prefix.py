"""``python -m graph_meta.find_prefix``: files and genomes in, the prefix and a picture out."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from graph_meta import GraphBuilder, LayerGraph, layers, prefix
from graph_meta.find_prefix import main

SVG = "{http://www.w3.org/2000/svg}"


def network(*widths: int) -> LayerGraph:
    builder = GraphBuilder()
    x = builder.input((4,))
    for width in widths:
        y = builder.add(layers.dense(width, activation="relu"), x)
        x = builder.add(layers.concatenate(), x, y)
    return builder.build(x)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    for name, widths in (("a", (8, 8, 2)), ("b", (8, 8, 3, 5))):
        (tmp_path / f"{name}.json").write_text(network(*widths).to_json())
    return str(tmp_path / "a.json"), str(tmp_path / "b.json")


def test_prints_the_shared_layers(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*files]) == 0
    out = capsys.readouterr().out.splitlines()
    shared = prefix(network(8, 8, 2), network(8, 8, 3, 5))
    assert len(shared) == 5
    assert out[0].endswith("a.json: 7 layers, 186 parameters")
    assert out[2] == "shared prefix: 5 layers, 144 parameters"
    assert [line.split()[0] for line in out[3:]] == shared
    assert out[4].split()[1:] == ["40", "8", "relu"]


def test_json(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [model["layers"] for model in found["models"]] == [7, 9]
    assert found["prefix"]["names"] == prefix(network(8, 8, 2), network(8, 8, 3, 5))
    assert found["prefix"]["bytes"] == 4 * found["prefix"]["parameters"] == 4 * 144


def test_draws_both_graphs_with_the_shared_part_marked(
    files: tuple[str, str], tmp_path: Path
) -> None:
    assert main([*files, "--svg", str(tmp_path / "pair.svg")]) == 0
    root = ElementTree.parse(tmp_path / "pair.svg").getroot()
    boxes = [group for group in root.iter(f"{SVG}g") if group.find(f"{SVG}title") is not None]
    assert len(boxes) == 7 + 9
    marked = [box for box in boxes if box.get("class") == "shared"]
    assert len(marked) == 2 * 5
    names = {box.find(f"{SVG}title").text for box in marked}  # type: ignore[union-attr]
    assert names == set(prefix(network(8, 8, 2), network(8, 8, 3, 5)))
    places = [tuple(map(box.find(f"{SVG}rect").get, "xy")) for box in boxes]  # type: ignore[union-attr]
    assert len(set(places[:7])) == 7 and len(set(places[7:])) == 9
    edges = list(root.iter(f"{SVG}path"))
    assert len(edges) == 3 * 3 + 4 * 3
    assert sum(edge.get("class") == "shared" for edge in edges) == 2 * 6


def test_keras_files(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("keras")
    from graph_meta.keras_io import to_keras

    path = files[0].replace(".json", ".keras")
    to_keras(network(8, 8, 2)).save(path)
    assert main([path, files[0], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prefix"]["layers"] == 7
    Path(path).write_bytes(b"PK")
    assert main([path, files[0]]) == 2
    error = capsys.readouterr().err
    assert path in error and error.count("\n") == 1


@pytest.fixture
def entry_point(tmp_path: Path) -> dict[str, str]:
    """Declares the entry point as an installed package does."""
    folder = tmp_path / "packages" / "transfer_nas_here-1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: transfer-nas-here\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(
        "[graph_meta.graphs]\ngenome = transfer_nas.spaces:graph_of_genome\n"
    )
    path = [str(folder.parent), *filter(None, sys.path)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path)}


def run(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    code = (
        "import sys; from graph_meta.find_prefix import main; code = main(); "
        "assert not {'tensorflow', 'keras', 'mpi4py'} & set(sys.modules); sys.exit(code)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_genomes_without_importing_tensorflow(entry_point: dict[str, str]) -> None:
    from transfer_nas import spaces

    space = spaces.DenseSkip.example()
    first = [0] * len(space.genes)
    second = [0] * (len(first) - 1) + [1]
    texts = [f"dense_skip:{','.join(map(str, genome))}" for genome in (first, second)]
    done = run(entry_point, *texts, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["prefix"]
    assert found["names"] == prefix(space.graph(tuple(first)), space.graph(tuple(second)))

    for text, message in (
        ("dense_skop:1,2", "dense_skip"),
        ("dense_skip:1,2", "dense_skip:1,2: "),
    ):
        done = run(entry_point, texts[0], text)
        assert done.returncode == 2
        assert message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("missing.json", "missing.json: there is no such file"),
        ("missing.keras", "missing.keras: there is no such file"),
        ("model.h5", "model.h5: expected a .keras file, a .json file or space:genome"),
        (__file__ + ".json", "there is no such file"),
    ],
)
def test_bad_input_is_one_line(
    model: str, message: str, files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([files[0], model]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_damaged_files_and_flags_are_one_line(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files[1]).write_text('{"format":\n"layer-graph"}')
    nowhere = str(tmp_path / "no" / "such.svg")
    for arguments in ([*files], [files[0]], [files[0], files[0], "--svg", nowhere]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
