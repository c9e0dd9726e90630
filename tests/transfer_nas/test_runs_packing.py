"""A run as one Parquet file, and back."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.made_up_runs import write_run
from transfer_nas import runs
from transfer_nas.errors import RunDirectoryError
from transfer_nas.logs import Log
from transfer_nas.runs.__main__ import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", 80, failures=0.1)
    (tmp_path / "run" / "best.keras").write_bytes(os.urandom(500))
    (tmp_path / "run" / "models").mkdir()
    (tmp_path / "run" / "models" / "0").write_bytes(b"weights")
    with Log(tmp_path / "run" / "logs" / "rank-0.jsonl") as log:
        log.set(a=1)
    return tmp_path / "run"


def files(directory: Path) -> dict[str, bytes]:
    found = [file for file in directory.rglob("*") if file.is_file()]
    return {file.relative_to(directory).as_posix(): file.read_bytes() for file in found}


def test_unpacking_gives_every_byte_back_but_weights(run: Path, tmp_path: Path) -> None:
    assert main(["pack", str(run), str(tmp_path / "run.parquet")]) == 0
    assert main(["unpack", str(tmp_path / "run.parquet"), str(tmp_path / "again")]) == 0
    expected = files(run)
    del expected["models/0"]
    assert files(tmp_path / "again") == expected
    assert runs.read(tmp_path / "again").state == runs.FINISHED


def test_the_results_are_regenerated_not_kept_twice(run: Path, tmp_path: Path) -> None:
    runs.pack(runs.read(run), tmp_path / "run.parquet")
    metadata = pyarrow.parquet.read_schema(tmp_path / "run.parquet").metadata
    assert b"file:results.csv" not in metadata and b"file:checkpoint" in metadata


def test_results_of_another_hand_are_kept_as_they_are(run: Path, tmp_path: Path) -> None:
    text = (run / "results.csv").read_text().replace(",1,DONE", ",01,DONE", 1)
    (run / "results.csv").write_text(text)
    runs.pack(runs.read(run), tmp_path / "run.parquet")
    runs.unpack(tmp_path / "run.parquet", tmp_path / "again")
    assert (tmp_path / "again" / "results.csv").read_text() == text


def test_any_reader_finds_columns_with_types(run: Path, tmp_path: Path) -> None:
    runs.pack(runs.read(run), tmp_path / "run.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "run.parquet")
    assert table.num_rows == 80
    assert table["objective"].type == pa.float64() and table["m:layers"].type == pa.int64()
    assert table["objective"].null_count == (~runs.read(run).done).sum() > 0


def test_a_packed_run_is_read_as_the_directory(run: Path, tmp_path: Path) -> None:
    runs.pack(runs.read(run), tmp_path / "run.parquet")
    expected, found = runs.read(run), runs.read(tmp_path / "run.parquet")
    assert found.table.equals(expected.table)
    assert np.array_equal(found.genomes, expected.genomes)
    assert np.array_equal(found.objective, expected.objective, equal_nan=True)
    assert (found.id, found.asked, found.best) == (expected.id, expected.asked, expected.best)


def with_metadata(file: Path, **changes: bytes) -> None:
    table = pyarrow.parquet.read_table(file)
    changed = {key.encode(): value for key, value in changes.items()}
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({**table.schema.metadata, **changed}), file
    )


def test_files_outside_the_directory_are_refused(run: Path, tmp_path: Path) -> None:
    runs.pack(runs.read(run), tmp_path / "run.parquet")
    with_metadata(tmp_path / "run.parquet", **{"file:../evil": b"\0" * 8})
    with pytest.raises(RunDirectoryError, match=r"'../evil' is no file of a run"):
        runs.unpack(tmp_path / "run.parquet", tmp_path / "again")
    assert not (tmp_path / "again").exists() and not (tmp_path / "evil").exists()


def test_a_size_that_lies_is_damage(run: Path, tmp_path: Path) -> None:
    runs.pack(runs.read(run), tmp_path / "run.parquet")
    with_metadata(tmp_path / "run.parquet", **{"file:checkpoint": (2**40).to_bytes(8, "little")})
    with pytest.raises(RunDirectoryError, match="damaged"):
        runs.unpack(tmp_path / "run.parquet", tmp_path / "again")


def test_bad_input_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, other, newer = (str(tmp_path / f"{name}.parquet") for name in ("good", "other", "newer"))
    assert main(["pack", str(run), good]) == 0
    pyarrow.parquet.write_table(pa.table({"a": [1]}), other)
    Path(newer).write_bytes(Path(good).read_bytes())
    with_metadata(Path(newer), **{"transfer-nas packed run": b"2"})
    (tmp_path / "text").write_text("no Parquet")
    free = str(tmp_path / "free")
    for arguments, complaint in (
        (["unpack", good, str(run)], "is there already"),
        (["unpack", other, free], "is no packed run"),
        (["unpack", newer, free], "expected format 1, found 2; a newer transfer-nas wrote it"),
        (["unpack", str(tmp_path / "text"), free], "is no Parquet file"),
        (["unpack", str(tmp_path / "nowhere"), free], "there is no such file"),
        (["pack", str(tmp_path), free], "holds no run.json"),
        (["pack", str(run), str(tmp_path / "no" / "file")], "cannot pack"),
        (["pak"], "invalid choice"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert error.startswith("runs: error: ") and error.count("\n") == 1, error
        assert complaint in error, error
    assert not Path(free).exists()


def test_a_run_in_progress_is_packed_as_far_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run", 20, finished=False)
    assert main(["pack", str(tmp_path / "run"), str(tmp_path / "file")]) == 0
    assert "still in progress" in capsys.readouterr().out
    description = runs.read(tmp_path / "file").description
    assert description == json.loads((tmp_path / "run" / "run.json").read_text())
