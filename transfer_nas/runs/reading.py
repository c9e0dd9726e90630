"""Reads a run directory, finished or not, into columns."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from transfer_nas.errors import RunDirectoryError
from transfer_nas.job import DONE
from transfer_nas.search.run_directory import FORMAT, MEASURES, wrong_format

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FINISHED, IN_PROGRESS, STOPPED = "finished", "in progress", "stopped"

_SILENT = 600.0  # seconds without a result after which a run without a lock counts as stopped
_TEXTS = {name for name, kind in MEASURES.items() if kind is str}


@dataclass(frozen=True)
class Run:
    """One search as far as it has come. Row i of every column is the i-th evaluation told.

    Attributes
    ----------
    path
        The run directory.
    description
        What ``run.json`` says.
    summary
        What ``summary.json`` says; empty while there is none.
    state
        ``finished``; ``in progress``; ``stopped``: killed or interrupted, `--resume` goes on.
    asked
        Number of jobs that were handed out.
    table
        ``results.csv``: the columns with their names; numbers as float64, null where empty.
    damaged
        Number of lines of ``results.csv`` that cannot be read and are left out.
    """

    path: Path
    description: Mapping[str, Any]
    summary: Mapping[str, Any]
    state: str
    asked: int
    table: pa.Table
    damaged: int = 0

    def __len__(self) -> int:
        """Return the number of evaluations, failures included."""
        return int(self.table.num_rows)

    @property
    def id(self) -> str:
        """Tells the run from all others."""
        return str(self.description["id"])

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the user chose."""
        settings: Mapping[str, Any] = self.description["settings"]
        return settings

    @cached_property
    def genes(self) -> dict[str, list[Any]]:
        """The values of each gene, in order."""
        genes: dict[str, list[Any]] = self.description["space"]["genes"]
        return genes

    @cached_property
    def done(self) -> NDArray[np.bool_]:
        """Whether each evaluation worked, shape (n,)."""
        return np.asarray(self.status == DONE, dtype=bool)

    @cached_property
    def status(self) -> NDArray[np.object_]:
        """``DONE`` or ``F_`` and a reason, shape (n,)."""
        return self.texts("job_status")

    @cached_property
    def job(self) -> Integers:
        """Ids of the jobs, shape (n,)."""
        return self.numbers("job_id").astype(np.int64)

    @cached_property
    def row_of(self) -> dict[int, int]:
        """The row of each job that has one."""
        return {int(job): row for row, job in enumerate(self.job)}

    @cached_property
    def objective(self) -> Floats:
        """What the search maximises, NaN where the evaluation failed, shape (n,)."""
        values = np.full(len(self), np.nan)
        texts = self.table["objective"].combine_chunks()
        try:
            values[self.done] = pc.cast(texts.filter(pa.array(self.done)), pa.float64())
        except pa.ArrowInvalid as cause:
            raise RunDirectoryError(
                f"{self.path / 'results.csv'}: an objective is not a number ({cause})"
            ) from cause
        return values

    @cached_property
    def seconds(self) -> Floats:
        """When each result was there, in seconds since the run began, shape (n,)."""
        return self.measure("timestamp_gather")

    @cached_property
    def running_best(self) -> Floats:
        """The best objective up to each evaluation, NaN before one worked, shape (n,)."""
        return np.fmax.accumulate(self.objective) if len(self) else self.objective

    @cached_property
    def best(self) -> int | None:
        """The row of the best evaluation, the first of equals; None if none worked."""
        return int(np.nanargmax(self.objective)) if self.done.any() else None

    @cached_property
    def parent(self) -> Integers:
        """The job whose genome was mutated, -1 for none, shape (n,)."""
        parents = self.measure("parent")
        return np.where(np.isnan(parents), -1, parents).astype(np.int64)

    @cached_property
    def ancestor(self) -> Integers:
        """The job whose layers were taken over, shape (n,).

        -1: none; -2: a model of another run in the same store.
        """
        if "m:ancestor" not in self.table.column_names:
            return np.full(len(self), -1, dtype=np.int64)
        encoded = self.table["m:ancestor"].combine_chunks().dictionary_encode()
        jobs = [self._job_of(model) for model in encoded.dictionary.to_pylist()]
        return np.array([*jobs, -1], dtype=np.int64)[_codes(encoded)]

    @cached_property
    def genomes(self) -> Integers:
        """Position of each gene's value among its values, -1 for none, shape (n, genes)."""
        genomes = np.full((len(self), len(self.genes)), -1, dtype=np.int64)
        for column, (gene, values) in enumerate(self.genes.items()):
            if f"p:{gene}" not in self.table.column_names:
                continue
            position = {str(value): i for i, value in enumerate(values)}
            encoded = self.table[f"p:{gene}"].combine_chunks().dictionary_encode()
            known = [position.get(text, -1) for text in encoded.dictionary.to_pylist()]
            genomes[:, column] = np.array([*known, -1])[_codes(encoded)]
        return genomes

    def has(self, measure: str) -> bool:
        """Return whether any evaluation has this measure (a name without ``m:``)."""
        name = f"m:{measure}"
        return name in self.table.column_names and self.table[name].null_count < len(self)

    def measure(self, name: str) -> Floats:
        """Return a measure (without ``m:``), NaN where it is empty or unknown, shape (n,)."""
        return self.numbers(f"m:{name}")

    def numbers(self, column: str) -> Floats:
        """Return a column of numbers, NaN where it is empty or not there, shape (n,)."""
        if column not in self.table.column_names:
            return np.full(len(self), np.nan)
        return np.asarray(self.table[column].to_numpy(), dtype=np.float64)

    def texts(self, column: str) -> NDArray[np.object_]:
        """Return a column of texts, None where it is empty, shape (n,)."""
        return np.asarray(self.table[column].to_numpy(), dtype=object)

    def _job_of(self, model: str) -> int:
        run, _, job = model.rpartition("/")
        if run in ("", self.id) and job.isdecimal():
            return int(job)
        return -2


def read_directory(path: Path) -> Run:
    """Read a run directory; a line that is still being written is left out.

    Raises
    ------
    RunDirectoryError
        It is no run directory, of a newer version, or damaged; the message says which.
    """
    description = _description(path)
    table, damaged = _results(path / "results.csv")
    return Run(
        path=path,
        description=description,
        summary=_summary(path),
        state=_state(path),
        asked=_whole_lines(path / "checkpoint").count(b"\n"),
        table=table,
        damaged=damaged,
    )


def names(runs: Sequence[Run]) -> list[str]:
    """Return what to call runs: the directory's name, with those above it where names are equal."""
    parts = [run.path.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts), default=0)):
        short = ["/".join(part[-depth:]) for part in parts]
        if len(set(short)) == len(set(parts)):
            break
    return short if runs else []


def _description(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: there is no such directory")
    file = path / "run.json"
    if not file.exists():
        if (path / "population.json").exists():
            raise RunDirectoryError(
                f"{path} holds a population, which nothing was trained of; expected the run "
                "directory of a search with an --application"
            )
        what = "is empty" if not any(path.iterdir()) else "holds no run.json"
        raise RunDirectoryError(
            f"{path} {what}: expected the --output_dir of a transfer_nas.evolve"
        )
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        found = description["format"]
    except OSError as cause:
        raise RunDirectoryError(f"cannot read {file}: {cause.strerror}") from cause
    except (KeyError, RecursionError, TypeError, ValueError) as cause:
        raise RunDirectoryError(f"{file}: not a run's description ({cause})") from cause
    if found != FORMAT:
        raise wrong_format(file, found)
    space = description.get("space")
    if not (
        {"id", "settings", "started"} <= description.keys()
        and isinstance(description["settings"], dict)
        and isinstance(description["started"], int | float)
        and 0 <= description["started"] < 1e11  # seconds since the epoch
        and isinstance(space, dict)
        and isinstance(space.get("genes"), dict)
        and all(isinstance(v, list) and v for v in space["genes"].values())
    ):
        raise RunDirectoryError(f"{file}: not a search's run.json")
    assert isinstance(description, dict)
    return description


def _summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError):  # a run that is killed has none, or half of one
        return {}
    return summary if isinstance(summary, dict) else {}


def _state(path: Path) -> str:
    """Tell a run that goes on from one that ended in good order and from one that was killed."""
    summary, results = path / "summary.json", path / "results.csv"
    changed = results.stat().st_mtime if results.exists() else 0.0
    if _is_locked(path / "checkpoint"):
        return IN_PROGRESS
    if summary.exists() and summary.stat().st_mtime >= changed:
        return FINISHED
    # The lock of a search on another host is not seen here.
    return IN_PROGRESS if time.time() - changed < _SILENT else STOPPED


def _is_locked(file: Path) -> bool:
    """Return whether a process of this host holds the file's lock; takes no lock itself."""
    try:
        status = file.stat()
        locks = Path("/proc/locks").read_text()
    except OSError:
        return False
    major, minor = status.st_dev >> 8 & 0xFFF, status.st_dev & 0xFF | status.st_dev >> 12 & 0xFFF00
    return f" {major:02x}:{minor:02x}:{status.st_ino} " in locks


def _results(file: Path) -> tuple[pa.Table, int]:
    """Return the table, and how many damaged lines are left out, as a resumed search does."""
    content = _whole_lines(file)
    if not content:
        empty = pa.table(
            {
                "objective": pa.array([], pa.string()),
                "job_id": pa.array([], pa.float64()),
                "job_status": pa.array([], pa.string()),
            }
        )
        return empty, 0
    header = content.split(b"\n", 1)[0].decode(errors="replace").split(",")
    missing = {"objective", "job_id", "job_status"} - set(header)
    if missing:
        raise RunDirectoryError(f"{file}, line 1: no column {', '.join(sorted(missing))}")
    numbers = {"job_id", *(f"m:{name}" for name in MEASURES if name not in _TEXTS)}
    types = {name: pa.float64() if name in numbers else pa.string() for name in header}
    try:
        table, damaged = _parse(content, types)
    except pa.ArrowInvalid:
        table, damaged = _parse_line_by_line(content, types)
    known = pc.and_(pc.is_valid(table["job_id"]), pc.is_valid(table["job_status"]))
    kept = table.filter(known)
    return kept, damaged + table.num_rows - kept.num_rows


def _parse(content: bytes, types: Mapping[str, pa.DataType]) -> tuple[pa.Table, int]:
    """Return the table and how many rows had too few or too many cells.

    Raises
    ------
    pyarrow.ArrowInvalid
        A cell is not what its column holds.
    """
    damaged = 0

    def skip(_: Any) -> str:
        nonlocal damaged
        damaged += 1
        return "skip"

    # Of one block, so that a column is one chunk.
    reading = pa.csv.ReadOptions(block_size=max(len(content) + 1, 1 << 20), use_threads=False)
    parsing = pa.csv.ParseOptions(invalid_row_handler=skip)
    options = pa.csv.ConvertOptions(
        column_types=types,
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    table = pa.csv.read_csv(pa.BufferReader(content), reading, parsing, options)
    return table, damaged


def _parse_line_by_line(content: bytes, types: Mapping[str, pa.DataType]) -> tuple[pa.Table, int]:
    """Do the same for a file that holds a wrong cell: leave out the rows that do."""
    header, *lines = content.decode(errors="replace").split("\n")[:-1]
    good, damaged = [header], 0
    for line in lines:
        try:
            found, short = _parse(f"{header}\n{line}\n".encode(), types)
        except pa.ArrowInvalid:
            found, short = None, 1
        if found is None or found.num_rows != 1 or short:
            damaged += 1
        else:
            good.append(line)
    table, _ = _parse(("\n".join(good) + "\n").encode(), types)
    return table, damaged


def _whole_lines(file: Path) -> bytes:
    """Return a journal up to the end of its last whole line."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as cause:
        raise RunDirectoryError(f"cannot read {file}: {cause.strerror}") from cause
    return content[: content.rfind(b"\n") + 1]


def _codes(encoded: pa.DictionaryArray) -> Integers:
    """Return positions in the dictionary; one past its end, hence -1, where there is no text."""
    return np.asarray(encoded.indices.fill_null(len(encoded.dictionary)), dtype=np.int64)
