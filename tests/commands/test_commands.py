"""Every command, with streams, paths and files as they should not be: a line, or silence."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.made_up_runs import write_run

from .forks import MODULES

ROOT = Path(__file__).parent.parent.parent
NOT_UTF8 = os.fsdecode(b"caf\xe9")


@dataclass
class Result:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Give a function that runs a command: its name, arguments, and what its streams are."""
    command = [sys.executable, "-m", "tests.commands.forks"]
    if os.geteuid() == 0:  # who may enter every directory
        capabilities = "-dac_override,-dac_read_search"
        less = [f"--bounding-set={capabilities}", f"--inh-caps={capabilities}"]
        command = ["setpriv", *less, *command]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        to, of = process.stdin, process.stdout
        assert of.readline() == "\n"

        def ask(
            name: str,
            *arguments: str | Path,
            out: str = "kept",
            err: str = "kept",
            encoding: str = "utf-8",
        ) -> Result:
            given = [str(argument) for argument in arguments]
            case = {"command": name, "arguments": given, "out": out, "err": err}
            to.write(json.dumps(case | {"encoding": encoding}) + "\n")
            to.flush()
            return Result(**json.loads(of.readline()))

        yield ask
        to.close()
        assert process.wait(timeout=30) == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a run directory."""
    path = tmp_path_factory.mktemp("runs") / "run"
    write_run(path, 12, population_size=4, ranks=2)
    return path


@pytest.fixture
def shut(tmp_path: Path) -> Iterator[Path]:
    """Give a directory that may be neither entered nor looked at."""
    path = tmp_path / "shut"
    path.mkdir()
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    path.chmod(0o700 if os.geteuid() == 0 else 0)
    yield path
    path.chmod(0o700)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """Give a directory that nothing can be written to."""
    path = tmp_path / "read-only"
    path.mkdir()
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    path.chmod(0o555)
    yield path
    path.chmod(0o755)


# Something to print, in no time.
PRINTING: dict[str, list[list[str]]] = {name: [["--help"]] for name in MODULES}
PRINTING["benchmarks"].append(["list"])
PRINTING["birthday"].append(["--queries", "3", "--models", "2", "--population_size", "3"])
PRINTING["gen_models"].append(["--count", "3", "--json"])
PRINTING["experiments"].append(["aggregate", "RUN"])
PRINTING["find_prefix"].append(["dense_skip:" + ",".join("0" * 21)] * 2)
PRINTING["patterns"].append(["RUN"])
PRINTING["report"].append(["RUN", "--output", "OUT/report.html"])
PRINTING["runs"].append(["pack", "RUN", "OUT/packed.parquet"])


def cases() -> list[Any]:
    return [
        pytest.param(name, given, id=f"{name}-{given[0]}")
        for name in sorted(PRINTING)
        for given in PRINTING[name]
    ]


@pytest.mark.parametrize(("name", "given"), cases())
def test_streams(run: Run, finished: Path, tmp_path: Path, name: str, given: list[str]) -> None:
    given = [each.replace("RUN", str(finished)).replace("OUT", str(tmp_path)) for each in given]
    fine = run(name, *given)
    assert fine.code == 0 and fine.out and not fine.err

    assert run(name, *given, out="closed") == Result(0, "", "")
    assert run(name, *given, out="closed", err="closed") == Result(0, "", "")
    assert run(name, *given, out="gone") == Result(141, "", "")
    assert run(name, *given, out="full") == Result(
        1, "", f"{name}: error: cannot write to standard output: No space left on device\n"
    )
    assert run(name, *given, out="full", err="full") == Result(1, "", "")
    plain = run(name, *given, encoding="ascii")
    assert plain.code == 0 and plain.out.isascii() and not plain.err


def test_complaints_that_nobody_hears(run: Run) -> None:
    for name in MODULES:
        assert run(name, "--nonsense", "x", "y", err="full").code == 2
        assert run(name, "--nonsense", "x", "y", err="closed", out="closed").code == 2
        assert run(name, "--nonsense", "x", "y", err="gone").code == 2


def complains(name: str, result: Result) -> None:
    """Check that there was one line and exit code 2."""
    assert result.code == 2, (name, result)
    assert result.err.startswith(f"{name}: error: "), (name, result)
    assert result.err.count("\n") == 1 and result.err.endswith("\n"), (name, result)


# PATH is what they read.
READING = [
    ["benchmarks", "compare", "PATH", "PATH"],
    ["benchmarks", "page", "PATH", "--output", "OUT"],
    ["cpp-store", "check", "PATH"],
    ["cpp-store", "export", "PATH", "m", "OUT"],
    ["cpp-store", "import", "PATH", "OUT"],
    ["cpp-store", "stat", "ofi+tcp://127.0.0.1:1", "--key_file", "PATH"],
    ["dashboard", "PATH", "--port", "0"],
    ["evolve", "--resume", "--output_dir", "PATH"],
    ["evolve", "--application", "PATH:x", "--output_dir", "OUT"],
    ["evolve", "--application", "PATH.py:x", "--output_dir", "OUT"],
    ["evolve", "--initial_population_dir", "PATH", "--output_dir", "OUT"],
    ["evolve", "--application", "nt3", "--data", "PATH", "--output_dir", "OUT"],
    ["experiments", "aggregate", "PATH"],
    ["find_prefix", "PATH", "PATH"],
    ["find_prefix", "PATH.json", "PATH.json"],
    ["logs", "PATH"],
    ["patterns", "PATH"],
    ["report", "PATH", "--output", "OUT"],
    ["retrain", "PATH"],
    ["runs", "pack", "PATH", "OUT"],
    ["runs", "unpack", "PATH", "OUT"],
    ["tracing", "PATH"],
    ["trained_model", "PATH"],
]
# PATH is what they write.
WRITING = [
    [
        "birthday",
        "--queries",
        "3",
        "--models",
        "2",
        "--population_size",
        "3",
        "--output",
        "PATH.svg",
    ],
    ["cpp-store", "keygen", "PATH"],
    ["evolve", "--population_size", "3", "--output_dir", "PATH"],
    ["experiments", "aggregate", "RUN", "--output", "PATH"],
    ["experiments", "aggregate", "RUN", "--output", "PATH.parquet"],
    ["find_prefix", *["dense_skip:" + ",".join("0" * 21)] * 2, "--svg", "PATH"],
    ["patterns", "RUN", "--output", "PATH.svg"],
    ["report", "RUN", "--output", "PATH"],
    ["runs", "pack", "RUN", "PATH"],
    ["runs", "unpack", "PACKED", "PATH"],
    ["retrain", "RUN", "--output", "PATH.keras"],
]


def filled(given: list[str], **names: str | Path) -> list[str]:
    for name, value in names.items():
        given = [each.replace(name, str(value)) for each in given]
    return given


@pytest.fixture(scope="module")
def packed(run: Run, finished: Path) -> Path:
    """Give the run as a file."""
    path = finished.parent / "packed.parquet"
    assert run("runs", "pack", finished, path).code == 0
    return path


@pytest.mark.parametrize("given", READING, ids=" ".join)
def test_paths_that_are_read(run: Run, tmp_path: Path, shut: Path, given: list[str]) -> None:
    name, *given = given
    (tmp_path / "file").write_bytes(b"\xff\0 no file of ours\n")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo")
    paths = [NOT_UTF8, "missing", "file", "file/within", "empty", "shut", "shut/within", "x" * 300]
    if name == "dashboard":  # waits for runs that may begin
        paths = [path for path in paths if path not in (NOT_UTF8, "missing", "empty")]
    for path in [*paths, "fifo", "x" * 5000]:
        result = run(name, *filled(given, PATH=tmp_path / path, OUT=tmp_path / "out"))
        complains(name, result)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", WRITING, ids=" ".join)
def test_paths_that_are_written(
    run: Run,
    tmp_path: Path,
    shut: Path,
    read_only: Path,
    finished: Path,
    packed: Path,
    given: list[str],
) -> None:
    name, *given = given
    (tmp_path / "file").write_text("")
    for path in ("shut/within", "read-only/within", "file/within", "x" * 300, "x" * 5000):
        paths = {"PATH": tmp_path / path, "RUN": finished, "PACKED": packed}
        complains(name, run(name, *filled(given, **paths)))
    if name != "retrain":
        written = tmp_path / NOT_UTF8
        result = run(name, *filled(given, PATH=written, RUN=finished, PACKED=packed))
        assert result.code == 0 and "Traceback" not in result.err, result


@pytest.mark.parametrize(
    "given",
    [
        *(given for given in WRITING if given[0] in ("birthday", "experiments", "patterns")),
        ["find_prefix", *["dense_skip:" + ",".join("0" * 21)] * 2, "--svg", "PATH"],
        ["logs", "RUN", "--select", "epoch/*/loss", "--output", "PATH.csv"],
        ["logs", "RUN", "--select", "epoch/*/loss", "--output", "PATH.parquet"],
        ["report", "RUN", "--output", "PATH"],
        ["runs", "pack", "RUN", "PATH"],
    ],
    ids=" ".join,
)
def test_files_for_which_there_is_no_room(
    run: Run, small_disk: Any, finished: Path, given: list[str]
) -> None:
    """What was there is there still, and nothing else is."""
    name, *given = given
    small_disk.resize("8k")
    given = filled(given, PATH=small_disk.path / "out", RUN=finished)
    before = Path(given[-1])
    before.write_text("as it was\n")
    (small_disk.path / "full").write_bytes(bytes(4096))
    complains(name, run(name, *given))
    assert before.read_text() == "as it was\n"
    assert {file.name for file in small_disk.path.iterdir()} == {before.name, "full"}


def test_a_device_is_written_to_and_not_replaced(run: Run, tmp_path: Path, finished: Path) -> None:
    (tmp_path / "null").symlink_to("/dev/null")
    assert run("report", finished, "--output", tmp_path / "null").code == 0
    assert Path("/dev/null").is_char_device() and (tmp_path / "null").is_symlink()
    (tmp_path / "link").symlink_to("page.html")
    assert run("report", finished, "--output", tmp_path / "link").code == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "page.html").stat().st_size > 1000


def test_a_run_whose_name_is_not_utf8(run: Run, tmp_path: Path, finished: Path) -> None:
    path = tmp_path / NOT_UTF8
    path.symlink_to(finished)
    for name, *given in (
        ["report", path, "--output", tmp_path / "report.html"],
        ["experiments", "aggregate", path],
        ["patterns", path],
        ["runs", "pack", path, tmp_path / "run.parquet"],
    ):
        result = run(name, *given)
        assert result.code == 0 and not result.err, result
