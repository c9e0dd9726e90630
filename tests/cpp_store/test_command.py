"""`cpp-store`: what people and programs see, and files that come back as they were."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from cpp_store.command import main
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import cpp_store
from cpp_store import LayerTable, Store, _files

from .conftest import Pool

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(pool: Pool) -> Iterator[tuple[str, Store]]:
    """Give an address and a store that is connected to it."""
    group = pool.take(1)
    with cpp_store.connect(group.addresses) as store:
        yield group.addresses[0], store
    pool.give_back(1, group)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """``run(*arguments)`` gives exit code, output and errors."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def put_family(store: Store) -> dict[str, list[np.ndarray]]:
    """A parent, and a child that inherits its first layer. Returns the child's tensors."""
    rng = np.random.default_rng(0)
    first = [rng.random((64, 32), np.float32), rng.random(32, np.float32)]
    second = [rng.random((32, 8)).astype(ml_dtypes.bfloat16)]
    table = LayerTable(["first", "drop", "second"], [[], [0], [1]])
    store.put("parent", {"first": first, "last": [np.zeros(4)]}, score=0.25, namespace="digits",
              table=LayerTable(["first", "last"], [[], [0]]))  # fmt: skip
    with store.best_match(table, namespace="digits") as match:
        store.put("child", {"second": second}, table=table, inherited=match.owners,
                  namespace="digits", score=0.5, parent="parent", graph='{"layers": []}',
                  metadata={"epochs": 3, "loss": float("nan")})  # fmt: skip
    return {"first": first, "second": second}


def assert_same(found: dict[str, list[np.ndarray]], expected: dict[str, list[np.ndarray]]) -> None:
    assert list(found) == list(expected)
    for name, arrays in expected.items():
        for one, other in zip(found[name], arrays, strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert one.tobytes() == other.tobytes()


def test_ls_shows_sizes_scores_and_ages(server: tuple[str, Store], run: Run) -> None:
    address, store = server
    put_family(store)
    store.put("other\n", {"a": [np.zeros(3)]}, score=float("inf"))

    code, out, _ = run("ls", address)
    assert code == 0
    head, *lines = out.splitlines()
    assert head.split() == ["MODEL", "NAMESPACE", "SCORE", "LAYERS", "OWN", "INHERITED", "AGE"]
    assert [line.split()[:3] for line in lines[:2]] == [
        ["parent", "digits", "0.25"],
        ["child", "digits", "0.5"],
    ]
    assert lines[1].split()[3:9] == ["3", "512", "B", "8.12", "KiB", "0"]
    assert lines[2].startswith('"other\\n" ')

    code, out, _ = run("ls", address, "--namespace", "digits", "--json")
    parent, child = json.loads(out)
    assert (parent["model"], child["model"]) == ("parent", "child")
    assert (child["score"], child["bytes_own"], child["bytes_inherited"]) == (0.5, 512, 8_320)
    assert child["parent"] == "parent"
    assert json.loads(run("ls", address, "--json")[1])[2]["score"] == "inf"
    assert run("ls", address, "--namespace", "nothing")[1].splitlines() == [
        "MODEL  NAMESPACE  SCORE  LAYERS  OWN  INHERITED  AGE"
    ]


def test_ls_of_many_models(server: tuple[str, Store], run: Run) -> None:
    address, store = server
    for i in range(600):
        store.put(f"m{i}", {"a": [np.zeros(1)]})
    found = json.loads(run("ls", address, "--json")[1])
    assert [each["model"] for each in found] == [f"m{i}" for i in range(600)]


def test_stat_of_a_server_and_of_a_model(server: tuple[str, Store], run: Run) -> None:
    address, store = server
    put_family(store)

    code, out, _ = run("stat", address)
    assert code == 0
    assert f"server     {address}, reached by shm" in out
    assert "models     2 of 3 layers" in out
    assert "of 64 MiB used" in out
    assert json.loads(run("stat", address, "--json")[1])["models"] == 2

    code, out, _ = run("stat", address, "child")
    assert code == 0
    assert "parent     parent" in out
    assert [line.split() for line in out.splitlines()[-3:]] == [
        ["first", "parent"],
        ["drop", "-"],
        ["second", "child"],
    ]
    found = json.loads(run("stat", address, "child", "--json")[1])
    assert found["metadata"] == {"epochs": 3, "loss": "nan"}
    assert [layer["owner"] for layer in found["layers"]] == ["parent", None, "child"]


def test_what_get_writes_put_restores(server: tuple[str, Store], run: Run, tmp_path: Path) -> None:
    address, store = server
    expected = put_family(store)
    file = tmp_path / "child.safetensors"
    before = store.lookup("child")

    assert run("get", address, "child", "-o", file) == (0, "", "")
    loaded = load_file(file)
    assert sorted(loaded) == ["first/0", "first/1", "second"]
    np.testing.assert_array_equal(loaded["first/0"], expected["first"][0])
    assert [path.name for path in tmp_path.iterdir()] == ["child.safetensors"]
    assert file.stat().st_mode & 0o777 == 0o666 & ~_umask()

    store.retire("child")
    store.retire("parent")
    assert run("put", address, file) == (0, "child\n", "")
    assert_same(store.read("child"), expected)
    after = store.lookup("child")
    assert after.table == before.table
    for name in ("namespace", "score", "parent", "graph"):
        assert getattr(after, name) == getattr(before, name)
    assert str(after.metadata) == str(before.metadata)
    assert after.owners == {"first": "child", "second": "child"}
    code, out, _ = run("put", address, file, "--json")
    assert (code, json.loads(out)) == (0, {"model": "child", "bytes": 8_320 + 512})
    assert run("put", address, file, "--model", "copy", "--namespace", "n", "--score", "2")[0] == 0
    copy = store.lookup("copy")
    assert (copy.namespace, copy.score) == ("n", 2.0)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint16", "int64", "float16", "float64", "complex64", "complex128",
     "bfloat16", "float8_e4m3fn", "float8_e5m2"],
)  # fmt: skip
def test_files_keep_every_dtype_shape_and_name(tmp_path: Path, dtype: str) -> None:
    made = [
        (np.arange(np.prod(shape)) % 5).astype(getattr(ml_dtypes, dtype, dtype)).reshape(shape)
        for shape in [(), (0,), (2, 3, 0), (7,), (2, 3, 4)]
    ]
    tensors = {"a": made, "none": [], "a/1": [made[3]], "größe\n ": [made[4]], "a/2": made[:2]}
    with cpp_store.embedded(memory="1MiB") as store:
        store.put("m", tensors)
        expected = store.read("m")
        _files.write(tmp_path / "file", store.lookup("m"), expected, replace=False)
        found = _files.read(tmp_path / "file")
        assert_same(found.tensors, expected)
        assert found.table == store.lookup("m").table
        with safe_open(tmp_path / "file", framework="np") as file:
            assert len(list(file.keys())) == 9


def test_any_safetensors_file_goes_in_and_comes_out(
    server: tuple[str, Store], run: Run, tmp_path: Path
) -> None:
    address, store = server
    arrays = {
        "encoder.0.weight": np.arange(6.0).reshape(2, 3),
        "encoder.0.bias": np.arange(3, dtype="float16"),
        "position": np.array(7),
    }
    save_file(arrays, tmp_path / "bert.safetensors", metadata={"format": "pt"})

    assert run("put", address, tmp_path / "bert.safetensors") == (0, "bert\n", "")
    assert_same(
        {k: store.read("bert")[k] for k in arrays}, {k: [array] for k, array in arrays.items()}
    )
    assert run("get", address, "bert", "-o", tmp_path / "out")[0] == 0
    again = load_file(tmp_path / "out")
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)


def test_get_replaces_only_when_told(server: tuple[str, Store], run: Run, tmp_path: Path) -> None:
    address, store = server
    put_family(store)
    file = tmp_path / "kept"
    file.write_text("precious")
    code, out, errors = run("get", address, "child", "-o", file)
    assert (code, out) == (2, "")
    assert f"{file} exists already; --force replaces it" in errors
    assert file.read_text() == "precious"
    assert run("get", address, "child", "-o", file, "--force")[0] == 0
    assert "second" in load_file(file)


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "file"
    with cpp_store.embedded(memory="1MiB") as store:
        store.put("m", {"a": [np.zeros(3)]})

        def appear(_: Path) -> None:
            file.write_text("precious")

        with pytest.raises(_files.FileError, match="exists already"):
            _files.write(file, store.lookup("m"), store.read("m"), replace=False, started=appear)
    assert file.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [file]


def test_rm_retires_all_that_are_there(server: tuple[str, Store], run: Run) -> None:
    address, store = server
    put_family(store)
    store.put("third", {"a": [np.zeros(1)]})
    code, out, errors = run("rm", address, "parent", "nobody", "child", "--json")
    assert code == 2
    assert json.loads(out) == {"retired": ["parent", "child"]}
    assert errors == "cpp-store: error: there is no model 'nobody'\n"
    assert store.list() == ["third"]
    assert run("rm", address, "third") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "the following arguments are required"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["ls"], "required: ADDRESS"),
        (["ls", "127.0.0.1:80"], "malformed"),
        (["ls", "ofi+teleport://127.0.0.1:9"], "teleport"),
        (["ls", "ofi+tcp://127.0.0.1:9"], "ofi+tcp://127.0.0.1:9"),
        (["ls", ""], "no server"),
        (["ls", "ADDRESS", "--timeout", "soon"], "--timeout must be a number, not 'soon'"),
        (["ls", "ADDRESS", "--timeout", "-1"], "--timeout must be positive, not -1"),
        (["stat", "ADDRESS", "nobody"], "there is no model 'nobody'"),
        (["get", "ADDRESS", "nobody", "-o", "DIR/file"], "there is no model 'nobody'"),
        (["get", "ADDRESS", "m", "-o", "DIR/no/file"], "No such file or directory"),
        (["put", "ADDRESS", "DIR/missing"], "missing: there is no such file"),
        (["put", "ADDRESS", "DIR"], "cannot read DIR"),
        (["put", "ADDRESS", "DIR/text"], "text is not a safetensors file"),
        (["put", "ADDRESS", "DIR/good", "--model", "m"], "'m'"),
        (["put", "ADDRESS", "DIR/good", "--model", ""], "1 to 65,535 bytes"),
        (["put", "ADDRESS", "DIR/damaged"], "damaged"),
        (["put", "ADDRESS", "DIR/newer"], "format 99; this program reads 1"),
        (["put", "ADDRESS", "DIR/lacking"], "want 'b'"),
        (["put", "ADDRESS", "DIR/large"], "need"),
        (["rm", "ADDRESS"], "required: MODEL"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_code_2(
    server: tuple[str, Store], run: Run, tmp_path: Path, arguments: list[str], says: str
) -> None:
    address, store = server
    store.put("m", {"a": [np.zeros(3)]})
    (tmp_path / "text").write_text("not tensors " * 10)
    layer = {"name": "a", "requires": [], "nbytes": 0, "tensors": [["b", "float32"]]}
    for name, document in {
        "damaged": "[]",
        "newer": '{"format": 99}',
        "lacking": json.dumps({"format": 1, "layers": [layer]}),
    }.items():
        save_file({"a": np.zeros(3)}, tmp_path / name, metadata={"cpp_store": document})
    save_file({"a": np.ones(3)}, tmp_path / "good")
    if "DIR/large" in arguments:
        save_file({"a": np.zeros(100 << 20, "uint8")}, tmp_path / "large")

    code, out, errors = run(
        *(word.replace("ADDRESS", address).replace("DIR", str(tmp_path)) for word in arguments)
    )

    assert (code, out) == (2, "")
    assert errors.startswith("cpp-store: error: ")
    assert says.replace("DIR", str(tmp_path)) in errors
    assert len(errors.splitlines()) == 1
    assert store.list() == ["m"]


def test_a_server_that_says_nothing_is_named(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"ofi+tcp://127.0.0.1:{silent.getsockname()[1]}"
        code, _, errors = run("ls", address, "--timeout", "1")
    assert code == 2
    assert address in errors
    assert len(errors.splitlines()) == 1


def test_output_may_be_cut_off(server: tuple[str, Store]) -> None:
    address, store = server
    for i in range(3_000):
        store.put(f"{i:0100}", {"a": []})
    process = subprocess.Popen(
        [sys.executable, "-m", "cpp_store.command", "ls", address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("MODEL")
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == ""


@pytest.mark.parametrize("command", [[], ["ls"], ["stat"], ["get"], ["put"], ["rm"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "usage: cpp-store" in said
    if command:
        assert "ADDRESS" in said
        assert "(default: 10)" in said


def test_says_how_far_it_is_on_a_terminal() -> None:
    """On a terminal, and after two seconds only."""
    from cpp_store import command

    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        patch.setattr(command, "PATIENCE", 0.0)
        with command._progress(lambda: "half way"):
            said = os.read(leader, 100)
    os.close(leader)
    assert b"half way" in said
