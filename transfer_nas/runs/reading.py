"""Reads a run directory, finished or not, into columns."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from transfer_nas.best import Front, ranking
from transfer_nas.errors import RunDirectoryError
from transfer_nas.job import DONE, Evaluation, Job
from transfer_nas.objectives import Objectives
from transfer_nas.searching import results
from transfer_nas.searching.clock import Clock, resumptions
from transfer_nas.searching.results import GeneCells
from transfer_nas.searching.run_directory import FORMAT, wrong_format
from transfer_nas.values import Value, declared_in, own

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FINISHED, IN_PROGRESS, STOPPED = "finished", "in progress", "stopped"

_SILENT = 600.0  # seconds without a result after which a run without a lock counts as stopped


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
        ``results.csv``: the columns with their names; measures that are numbers as float64, null
        where empty; all else as the texts that it is.
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
    def declared(self) -> dict[str, Value]:
        """The declared values by name: what the columns ``m:*`` are."""
        return declared_in(self.description)

    @property
    def own_values(self) -> list[Value]:
        """Those that the application has declared and that some evaluation has."""
        return [value for value in own(self.declared) if self.has(value.name)]

    @cached_property
    def genes(self) -> dict[str, list[Any]]:
        """The values of each gene, in order; empty for a space without genes."""
        genes: dict[str, list[Any]] = self.description["space"].get("genes", {})
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
        values[self.done] = pc.cast(texts.filter(pa.array(self.done)), pa.float64())
        return values

    @cached_property
    def clock(self) -> Clock:
        """Turns timestamps into seconds of search, without the pauses of a resumed run."""
        return Clock(resumptions(self.description), self.numbers("m:timestamp_gather"))

    @cached_property
    def seconds(self) -> Floats:
        """When each result was there, in seconds of search, shape (n,)."""
        return self.measure("timestamp_gather")

    @cached_property
    def running_best(self) -> Floats:
        """The best objective up to each evaluation, NaN before one worked, shape (n,)."""
        return np.fmax.accumulate(self.objective) if len(self) else self.objective

    @cached_property
    def ranking(self) -> Integers:
        """Rows of the evaluations that worked, the best first; of equals, the first one told."""
        return ranking(self.objective)

    @property
    def best(self) -> int | None:
        """The row of the best evaluation: that of ``best.keras``; None if none worked."""
        return int(self.ranking[0]) if len(self.ranking) else None

    @cached_property
    def objectives(self) -> Objectives | None:
        """What was searched for if that were several things at once; None: the objective."""
        return Objectives.from_json(self.description.get("objectives"))

    @property
    def front(self) -> Front | None:
        """The front of several objectives; None if there is one."""
        return None if self.objectives is None else self.fronts()[0]

    def fronts(self) -> tuple[Front, list[tuple[int, tuple[int, ...]]]]:
        """Return the front, and how it came to be: the rows that joined it, and its jobs then."""
        assert self.objectives is not None
        front, history = Front(self.objectives), []
        columns = {
            each.measure: self.measure(each.measure).tolist()
            for each in self.objectives
            if each.measure is not None
        }
        for row, objective in enumerate(self.objective.tolist()):
            if not self.done[row]:
                continue
            measures = {name: values[row] for name, values in columns.items()}
            job = Job(int(self.job[row]), None)
            if front.add(Evaluation(job, DONE, objective, measures)) is not None:
                history.append((row, tuple(front.members)))
        return front, history

    @cached_property
    def figures(self) -> dict[str, float]:
        """What came out of the run, as ``summary.json`` says it; NaN for what it does not tell."""
        seconds = float(np.nanmax(self.seconds)) if np.isfinite(self.seconds).any() else np.nan
        children = self.parent >= 0
        layers = np.nansum(self.measure("layers")[children])
        transferred = np.nansum(self.measure("layers_transferred")[children])
        best = self.best
        return {
            "evaluations": len(self),
            "failures": int((~self.done).sum()),
            "seconds": seconds,
            "evaluations_per_second": len(self) / seconds if seconds > 0 else np.nan,
            "best_objective": np.nan if best is None else float(self.objective[best]),
            "evaluations_to_best": np.nan if best is None else best + 1,
            "share_transferred": transferred / layers if layers else np.nan,
            "bytes_transferred": float(np.nansum(self.measure("bytes_transferred"))),
            "bytes_stored": float(np.nansum(self.measure("bytes_stored"))),
            "bytes_whole_copies": float(np.nansum(self.measure("bytes_whole_copy")[self.done])),
        }

    @cached_property
    def parent(self) -> Integers:
        """The job whose architecture was mutated, -1 for none, shape (n,)."""
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
            cells = GeneCells(values)
            encoded = self.table[f"p:{gene}"].combine_chunks().dictionary_encode()
            known = [cells.position(text) for text in encoded.dictionary.to_pylist()]
            genomes[:, column] = np.array([*known, -1])[_codes(encoded)]
        return genomes

    def architecture(self, row: int) -> Any:
        """Return an evaluation's architecture as its space's `to_json` has it.

        Raises
        ------
        RunDirectoryError
            The row holds none of the space.
        """
        if "genes" in self.description["space"]:
            genome: list[int] = self.genomes[row].tolist()
            if min(genome, default=0) >= 0:
                return genome
        else:
            with contextlib.suppress(ValueError, KeyError, RecursionError):
                return json.loads(self.texts(f"p:{results.ARCHITECTURE}")[row])
        raise RunDirectoryError(
            f"{self.path}: job {self.job[row]} has values that are none of its space"
        )

    def values(self, row: int) -> dict[str, Any]:
        """Return what an evaluation chose, as the space declares it; without what is not known.

        Of a space without genes, the columns that it declares, as texts.
        """
        if not self.genes:
            columns = self.description["space"].get("columns", ())
            return {name: self.texts(f"p:{name}")[row] for name in columns}
        chosen = zip(self.genes.items(), self.genomes[row].tolist(), strict=True)
        return {gene: values[value] for (gene, values), value in chosen if value >= 0}

    def frame(self) -> pd.DataFrame:
        """Return the table for pandas: values as the space declares them, objectives as numbers."""
        import pandas as pd

        frame = self.table.to_pandas()
        for column, (gene, values) in enumerate(self.genes.items()):
            if f"p:{gene}" in frame:
                chosen = [values[i] if i >= 0 else None for i in self.genomes[:, column].tolist()]
                frame[f"p:{gene}"] = pd.Series(chosen, index=frame.index, dtype=_dtype(chosen))
        for name, value in self.declared.items():
            if value.kind is int and f"m:{name}" in frame and frame[f"m:{name}"].notna().all():
                frame[f"m:{name}"] = frame[f"m:{name}"].astype(np.int64)
        frame["objective"] = self.objective
        frame["job_id"] = self.job
        return frame

    def has(self, measure: str) -> bool:
        """Return whether any evaluation has this measure (a name without ``m:``)."""
        name = f"m:{measure}"
        return name in self.table.column_names and self.table[name].null_count < len(self)

    def measure(self, name: str) -> Floats:
        """Return a measure (without ``m:``), NaN where it is empty or unknown, shape (n,).

        Timestamps are in seconds of search: without pauses (`numbers` has them as they are).
        """
        found = self.numbers(f"m:{name}")
        return self.clock(found) if name.startswith("timestamp_") else found

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
        if run in ("", self.id) and job.isdecimal() and len(job) < 19:  # of 64 bits
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
    table, damaged = _results(path / "results.csv", description)
    return Run(
        path=path,
        description=description,
        summary=_summary(path),
        state=_state(path),
        asked=_content(path / "checkpoint").count(b"\n"),
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
        content = file.read_bytes()
    except OSError as cause:
        raise RunDirectoryError(f"cannot read {file}: {cause.strerror}") from cause
    return described(content, file)


def described(content: bytes, file: Path) -> dict[str, Any]:
    """Return what a ``run.json`` says; RunDirectoryError, naming `file`, if that makes no sense."""
    try:
        description = json.loads(content)
        found = description["format"]
    except (KeyError, RecursionError, TypeError, ValueError) as cause:
        raise RunDirectoryError(f"{file}: not a run's description ({cause})") from cause
    if found != FORMAT:
        raise wrong_format(file, found)
    space = description.get("space")
    if not (
        isinstance(description.get("id"), str)
        and isinstance(description.get("settings"), dict)
        and isinstance(description.get("started"), int | float)
        and 0 <= description["started"] < 1e11  # seconds since the epoch
        and isinstance(space, dict)
        and isinstance(space.get("name", ""), str)
        and isinstance(space.get("output_activation"), str | list | None)
        and _chosen(space)
    ):
        raise RunDirectoryError(f"{file}: not a search's run.json")
    assert isinstance(description, dict)
    return description


def _chosen(space: Mapping[str, Any]) -> bool:
    """Whether a space's description says what its architectures choose: genes, or columns."""
    if "genes" not in space:
        columns = space.get("columns")
        return isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    genes = space["genes"]
    return isinstance(genes, dict) and all(isinstance(v, list) and v for v in genes.values())


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


def _results(file: Path, description: Mapping[str, Any]) -> tuple[pa.Table, int]:
    """Return the table, and how many damaged lines are left out, as a resumed search does."""
    genes: Mapping[str, Sequence[Any]] = description["space"].get("genes", {})
    values = declared_in(description)
    numbers = {"job_id", *(f"m:{name}" for name in values if values[name].kind is not str)}
    rows = results.split(_content(file), {gene: GeneCells(genes[gene]) for gene in genes})
    header = rows.header or ["objective", "job_id", "job_status"]
    missing = {"objective", "job_id", "job_status"} - set(header)
    if missing:
        raise RunDirectoryError(f"{file}, line 1: no column {', '.join(sorted(missing))}")
    texts = zip(*rows.cells, strict=True) if rows.cells else ((),) * len(header)
    columns, good = {}, np.ones(len(rows.cells), dtype=bool)
    for name, cells in zip(header, texts, strict=True):
        if name in numbers:
            columns[name], readable = _numbers(cells)
            good &= readable
        else:  # a gene's value can be the empty text
            empty = "" if name.startswith("p:") else None
            columns[name] = pa.array([cell or empty for cell in cells], pa.string())
    table = pa.table(columns)
    good &= _makes_sense(table)
    return table.filter(pa.array(good)).combine_chunks(), len(rows.damage) + int((~good).sum())


def _numbers(cells: Sequence[str]) -> tuple[pa.Array, NDArray[np.bool_]]:
    """Return the numbers of a column, and which of its cells are empty or numbers."""
    texts = pa.array([cell or None for cell in cells], pa.string())
    readable = np.ones(len(cells), dtype=bool)
    try:
        return pc.cast(texts, pa.float64()), readable
    except pa.ArrowInvalid:
        numbers = []
        for row, cell in enumerate(cells):
            try:
                numbers.append(float(cell) if cell else None)
            except ValueError:
                numbers.append(None)
                readable[row] = False
        return pa.array(numbers, pa.float64()), readable


def _makes_sense(table: pa.Table) -> NDArray[np.bool_]:
    """Return which rows say what became of a job that no row before them tells of."""
    jobs = np.asarray(table["job_id"].to_numpy(), dtype=np.float64)
    first = np.zeros(len(jobs), dtype=bool)
    first[np.unique(jobs, return_index=True)[1]] = True
    status = table["job_status"].to_pylist()
    done = np.array([text == DONE for text in status], dtype=bool)
    failed = np.array([text is not None and text.startswith("F_") for text in status], dtype=bool)
    _, judged = _numbers(table["objective"].to_pylist())
    return first & np.isfinite(jobs) & (failed | done & judged)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as cause:
        raise RunDirectoryError(f"cannot read {file}: {cause.strerror}") from cause


def _dtype(values: Sequence[Any]) -> type:
    """Return the type of all of some values; object where pandas would make others of them."""
    kinds = {type(value) for value in values}
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values):
        return int
    return kinds.pop() if kinds in ({bool}, {float}) else object


def _codes(encoded: pa.DictionaryArray) -> Integers:
    """Return positions in the dictionary; one past its end, hence -1, where there is no text."""
    return np.asarray(encoded.indices.fill_null(len(encoded.dictionary)), dtype=np.int64)
