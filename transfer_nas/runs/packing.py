"""One run as one Parquet file: its evaluations as a table, all else beside them in the footer.

Any reader of Parquet finds the columns of ``results.csv`` with their types. The file's metadata
holds the other files of the run, so that `unpack` makes the same directory again, byte by byte.
The format is that of docs/formats.md, "Packed runs".
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet

from cpp_store import files
from transfer_nas.errors import RunDirectoryError
from transfer_nas.job import DONE
from transfer_nas.runs.reading import FINISHED, Run, described
from transfer_nas.searching.results import measure_cell, row_text
from transfer_nas.values import declared_in, own

_FORMAT = b"1"
_KEY = b"transfer-nas packed run"
_FILE = b"file:"
# What belongs to a run; a packed file from somewhere else may name no others.
_NAMES = re.compile(
    r"checkpoint|results\.csv|summary\.json|best\.(keras|safetensors)|best-validation\.json|front/\d+\.(keras|safetensors)|logs/rank-\d+\.(log|jsonl)"
)


def pack(run: Run, output: Path) -> None:
    """Write a run as a Parquet file.

    Parameters
    ----------
    run
        Finished, or as far as it has come. Weights in ``models/`` are left out.
    output
        The file; one that is there is replaced when the new one is whole.

    Raises
    ------
    RunDirectoryError
        A file cannot be read or written.
    """
    table = _typed(run)
    metadata: dict[bytes, bytes] = {_KEY: _FORMAT}
    try:
        metadata[b"run.json"] = (run.path / "run.json").read_bytes()
        for file in sorted(run.path.rglob("*")):
            name = file.relative_to(run.path).as_posix()
            if not _NAMES.fullmatch(name) or not file.is_file():
                continue
            content = file.read_bytes()
            if name == "results.csv":
                content = content[: content.rfind(b"\n") + 1]
                if content == _as_csv(table, run.description):
                    continue  # the table says it all
            metadata[_FILE + name.encode()] = _compressed(content)
        # The file's name need not be UTF-8.
        with files.replacing(output) as fresh, pa.OSFile(os.fsencode(fresh), "w") as sink:
            # Metadata of the schema, which is where Parquet keeps keys and values.
            pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), sink)
    except OSError as cause:
        raise RunDirectoryError(f"cannot pack {run.path}: {cause}") from cause


def unpack(file: Path, directory: Path) -> None:
    """Make a run directory of a packed run.

    Parameters
    ----------
    file
        What `pack` wrote.
    directory
        Must not be there, or be empty.

    Raises
    ------
    RunDirectoryError
        `file` is no packed run or of a newer version, or `directory` holds something.
    """
    table, metadata = _read(file)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RunDirectoryError(f"{directory} is there already; choose another directory")
    description = described(metadata[b"run.json"], file)
    files = {"run.json": metadata[b"run.json"], "results.csv": _as_csv(table, description)}
    for key, content in metadata.items():
        if key.startswith(_FILE):
            name = key.removeprefix(_FILE).decode()
            if not _NAMES.fullmatch(name):
                raise RunDirectoryError(f"{file}: {name!r} is no file of a run")
            files[name] = _expanded(content, file)
    fresh = directory.with_name(directory.name + ".new")
    try:
        # The summary last: a run is taken for finished if it is newer than the results.
        for name in sorted(files, key=lambda name: name == "summary.json"):
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_bytes(files[name])
        if directory.exists():
            directory.rmdir()
        fresh.replace(directory)
    except OSError as cause:
        shutil.rmtree(fresh, ignore_errors=True)
        raise RunDirectoryError(f"cannot unpack to {directory}: {cause}") from cause


def read_packed(file: Path) -> Run:
    """Return a packed run as `reading.read_directory` returns a run directory."""
    table, metadata = _read(file)
    contents = {
        key.removeprefix(_FILE).decode(): _expanded(content, file)
        for key, content in metadata.items()
        if key in (_FILE + b"summary.json", _FILE + b"checkpoint")
    }
    try:
        summary = json.loads(contents.get("summary.json", b"{}"))
    except (RecursionError, ValueError) as cause:
        raise RunDirectoryError(f"{file}: damaged ({cause})") from cause
    asked = contents.get("checkpoint", b"").count(b"\n")
    description = described(metadata[b"run.json"], file)
    summary = summary if isinstance(summary, dict) else {}
    return Run(file, description, summary, FINISHED, asked, _untyped(table))


def open_files(path: Path, pattern: str) -> Iterator[BinaryIO]:
    """Open files of a run, one after the other, whether it is a directory or packed.

    Parameters
    ----------
    path
        As for `runs.read`.
    pattern
        Of their names, such as ``logs/rank-*.jsonl``.

    Raises
    ------
    RunDirectoryError
        One cannot be read.
    """
    try:
        if path.is_dir():
            for file in sorted(path.glob(pattern)):
                with file.open("rb") as opened:
                    yield opened
            return
        metadata: dict[bytes, bytes] = pyarrow.parquet.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid) as cause:
        raise RunDirectoryError(f"cannot read {path}: {cause}") from cause
    for key in sorted(metadata):
        if key.startswith(_FILE) and fnmatch(key.removeprefix(_FILE).decode(), pattern):
            yield io.BytesIO(_expanded(metadata[key], path))


def _typed(run: Run) -> pa.Table:
    """Return the results with the objective as a number and whole numbers as such."""
    columns = {}
    whole = {"job_id", *(f"m:{name}" for name, value in run.declared.items() if value.kind is int)}
    for name in run.table.column_names:
        column = run.table[name].combine_chunks()
        if name == "objective":
            column = pa.array(run.objective, from_pandas=True)
        elif name in whole:
            column = column.cast(pa.int64())
        elif name.startswith("p:") or name == "job_status":
            column = column.dictionary_encode()
        columns[name] = column
    return pa.table(columns)


def _untyped(table: pa.Table) -> pa.Table:
    """Undo `_typed`."""
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = column.cast(pa.string())
            if name.startswith("p:"):
                column = column.fill_null("")  # as it was before the empty text could be a value
        elif name == "objective":
            done = table["job_status"].to_pylist()
            pairs = zip(column.to_pylist(), done, strict=True)
            texts = [repr(value) if status == DONE else status for value, status in pairs]
            column = pa.array(texts, pa.string())
        elif pa.types.is_int64(column.type):
            column = column.cast(pa.float64())
        columns[name] = column
    return pa.table(columns)


def _as_csv(table: pa.Table, description: Mapping[str, Any]) -> bytes:
    """Return the text that `RunDirectory` writes of these results."""
    exact = {f"m:{value.name}" for value in own(declared_in(description))}
    status = table["job_status"].to_pylist()
    texts = []
    for name in table.column_names:
        values = table[name].to_pylist()
        if name == "objective":
            pairs = zip(values, status, strict=True)
            texts.append([repr(value) if s == DONE else str(s) for value, s in pairs])
        elif name.startswith("m:") or name == "job_id":
            cells = [
                "" if value is None else measure_cell(value, exact=name in exact)
                for value in values
            ]
            texts.append(cells)
        else:
            texts.append(values)
    rows = [table.column_names, *zip(*texts, strict=True)]
    return "".join(map(row_text, rows)).encode()


def _read(file: Path) -> tuple[pa.Table, dict[bytes, bytes]]:
    try:
        if not file.is_file():
            raise RunDirectoryError(f"{file}: there is no such file")
        with pa.OSFile(os.fsencode(file)) as source:  # its name need not be UTF-8
            table = pyarrow.parquet.read_table(source)
    except (OSError, pa.ArrowInvalid) as cause:
        raise RunDirectoryError(f"{file} is no Parquet file ({cause})") from cause
    metadata: dict[bytes, bytes] = table.schema.metadata or {}
    found = metadata.get(_KEY)
    if found is None or b"run.json" not in metadata:
        raise RunDirectoryError(f"{file} is no packed run: expected what transfer_nas.runs packs")
    if found != _FORMAT:
        raise RunDirectoryError(
            f"{file}: expected format {_FORMAT.decode()}, found {found.decode(errors='replace')}; "
            "a newer transfer-nas wrote it: update this one"
        )
    return table, metadata


def _compressed(content: bytes) -> bytes:
    compressed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return len(content).to_bytes(8, "little") + compressed


def _expanded(content: bytes, file: Path) -> bytes:
    try:
        size = int.from_bytes(content[:8], "little")
        if size > 2**34:
            raise RunDirectoryError(f"{file}: damaged: a file of {size} bytes")
        expanded: bytes = pa.decompress(content[8:], size, codec="zstd", asbytes=True)
    except (OSError, pa.ArrowInvalid, MemoryError) as cause:
        raise RunDirectoryError(f"{file}: damaged ({cause})") from cause
    return expanded
