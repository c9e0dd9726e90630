"""What a run leaves on disk, and how a later process takes it up.

``run.json``
    Every setting, versions, the space, the layout of ranks, when the run started.
``checkpoint``
    One line of JSON for each job, written before the job is handed out.
``results.csv``
    One row for each evaluation, in the columns of DeepHyper. A row that is there is finished.
``best.keras``
    The best model so far.
``logs/``
    What each rank and the libraries under it had to say.

The two journals are the whole state: `Algorithm.restore` takes what they hold. A process that is
killed can leave the last line of either torn; that line is dropped.
"""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from transfer_nas.errors import RunDirectoryError
from transfer_nas.job import Evaluation, Job, Measure
from transfer_nas.spaces import Space

MEASURES: Mapping[str, type[int] | type[float] | type[str]] = {
    "parent": int,
    "ancestor": str,
    "layers": int,
    "layers_transferred": int,
    "bytes_transferred": int,
    "bytes_stored": int,
    "bytes_whole_copy": int,
    "match_seconds": float,
    "load_seconds": float,
    "train_seconds": float,
    "store_seconds": float,
    "timestamp_submit": float,
    "timestamp_start": float,
    "timestamp_end": float,
    "timestamp_gather": float,
    "rank": int,
    "parameters": int,
    "transfer_error": str,
}
"""The ``m:*`` columns. Timestamps count seconds since the run was started for the first time."""

FORMAT = 1
"""Of the run directory; the number in ``run.json``."""

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_FILES = ("run.json", "results.csv", "checkpoint")


class RunDirectory:
    """The files of one run, open for appending. One process, one thread.

    Make one with `create` or `resume`; it is locked against a second process until `close`.

    Attributes
    ----------
    path
        The directory.
    id
        Tells the run from all others.
    started
        When the run was started for the first time, in seconds since the epoch.
    jobs
        Jobs found on disk, in the order in which they were asked.
    evaluations
        Evaluations found on disk, in the order in which they were told.
    """

    def __init__(
        self, path: Path, space: Space, description: Mapping[str, Any], created: bool
    ) -> None:
        self.path = path
        self.id = str(description["id"])
        self.started = float(description["started"])
        self._space = space
        self._columns = [
            *(f"p:{gene.name}" for gene in space.genes),
            "objective",
            "job_id",
            "job_status",
            *(f"m:{measure}" for measure in MEASURES),
        ]
        self._gene_cells = [[_quoted(str(value)) for value in gene.values] for gene in space.genes]
        self._new_jobs: list[str] = []
        self._new_rows: list[str] = []
        (path / "logs").mkdir(exist_ok=True)
        self._journal = _open_locked(path / "checkpoint")
        try:
            self.jobs: list[Job] = [] if created else self._read_journal()
            known = {job.id: job for job in self.jobs}
            self.evaluations: list[Evaluation] = [] if created else self._read_results(known)
            self._results = (path / "results.csv").open("a", encoding="utf-8", newline="")
        except BaseException:
            self._journal.close()
            raise
        if self._results.tell() == 0:
            self._new_rows.append(",".join(map(_quoted, self._columns)))
            self.flush()

    @classmethod
    def create(
        cls, path: Path, space: Space, settings: Mapping[str, Any], extra: Mapping[str, Any]
    ) -> RunDirectory:
        """Begin a run.

        Parameters
        ----------
        path
            A directory without a run; made if it is not there.
        space
            The space that is searched.
        settings
            What the user chose; `resume` compares it.
        extra
            What else belongs into ``run.json``: versions, layout of ranks.

        Raises
        ------
        RunDirectoryError
            The directory holds another run, or cannot be written.
        """
        if path.exists() and not path.is_dir():
            raise RunDirectoryError(f"output directory {path} is a file")
        for name in _FILES:
            if (path / name).exists():
                raise RunDirectoryError(
                    f"output directory {path} holds another run ({name}); continue it with "
                    "--resume or choose another directory"
                )
        description = {
            "format": FORMAT,
            "id": secrets.token_hex(6),
            "started": time.time(),
            "settings": dict(settings),
            "space": space.describe(),
            **extra,
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            _write_whole(path / "run.json", json.dumps(description, indent=2) + "\n")
            return cls(path, space, description, created=True)
        except OSError as cause:
            raise RunDirectoryError(f"cannot write to {path}: {cause.strerror}") from cause

    @classmethod
    def resume(
        cls, path: Path, space: Space, settings: Mapping[str, Any], extra: Mapping[str, Any]
    ) -> RunDirectory:
        """Take up a run.

        Parameters
        ----------
        path, space, extra
            As in `create`; ``run.json`` keeps the `extra` of each start.
        settings
            What the user chooses now. Each must be what it was.

        Raises
        ------
        RunDirectoryError
            There is no run, its settings or its space differ (the message names them), another
            process works on it, or a file is damaged elsewhere than in its last line.
        """
        description = load_description(path)
        compare_settings(path, description["settings"], settings)
        if description["space"] != json.loads(json.dumps(space.describe())):
            raise RunDirectoryError(
                f"{path} was started with another space: "
                f"{_difference(description['space'], space.describe())}"
            )
        directory = cls(path, space, description, created=False)
        description.setdefault("resumed", []).append({"at": time.time(), **extra})
        _write_whole(path / "run.json", json.dumps(description, indent=2) + "\n")
        return directory

    def asked(self, job: Job) -> None:
        """Write down a job at the next `flush`, which comes before it is handed out."""
        self._new_jobs.append(_encode(job.to_dict()))

    def told(self, evaluation: Evaluation) -> None:
        """Write down an evaluation at the next `flush`.

        A failure has its ``F_…`` both as status and as objective: the latter is where DeepHyper
        looks for it.
        """
        measures = evaluation.measures
        if not measures.keys() <= MEASURES.keys():
            unknown = sorted(measures.keys() - MEASURES.keys())
            raise ValueError(f"measures without a column: {unknown}")
        job = evaluation.job
        cells = [cells[value] for cells, value in zip(self._gene_cells, job.genome, strict=True)]
        cells.append(repr(evaluation.objective) if evaluation.done else evaluation.status)
        cells += (str(job.id), evaluation.status)
        cells += [_cell(measures[name]) if name in measures else "" for name in MEASURES]
        self._new_rows.append(",".join(cells))

    def flush(self) -> None:
        """Write everything so far, such that it outlives this process, evaluations first.

        A job that is on disk then always finds the evaluations on disk that it was asked after.
        """
        for lines, file in ((self._new_rows, self._results), (self._new_jobs, self._journal)):
            if lines:
                lines.append("")
                file.write("\n".join(lines))
                file.flush()
                lines.clear()

    def close(self) -> None:
        """Close the files and let another process work on the run."""
        self.flush()
        self._results.close()
        self._journal.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_journal(self) -> list[Job]:
        path = self.path / "checkpoint"
        jobs = []
        for number, line in enumerate(_whole_lines(path), start=1):
            try:
                job = Job.from_dict(json.loads(line))
                self._space.check(job.genome)
            except (KeyError, TypeError, ValueError) as cause:
                raise RunDirectoryError(f"{path}, line {number}: not a job ({cause})") from cause
            jobs.append(job)
        return jobs

    def _read_results(self, jobs: Mapping[int, Job]) -> list[Evaluation]:
        path = self.path / "results.csv"
        rows = csv.reader(_whole_lines(path))
        header = next(rows, None)
        if header is not None and header != self._columns:
            raise RunDirectoryError(
                f"{path}, line 1: columns differ: {_list_difference(self._columns, header)}"
            )
        evaluations: dict[int, Evaluation] = {}
        for number, row in enumerate(rows, start=2):
            try:
                evaluation = self._parse(dict(zip(self._columns, row, strict=True)), jobs)
            except (KeyError, ValueError) as cause:
                raise RunDirectoryError(
                    f"{path}, line {number}: not an evaluation ({cause})"
                ) from cause
            if evaluation.job.id in evaluations:
                raise RunDirectoryError(
                    f"{path}, line {number}: job {evaluation.job.id} is there twice"
                )
            evaluations[evaluation.job.id] = evaluation
        return list(evaluations.values())

    @staticmethod
    def _parse(row: Mapping[str, str], jobs: Mapping[int, Job]) -> Evaluation:
        job = int(row["job_id"])
        if job not in jobs:
            raise ValueError(f"job {job} is not in the checkpoint")
        status = row["job_status"]
        objective = math.nan if status.startswith("F_") else float(row["objective"])
        measures: dict[str, Measure] = {
            name: kind(row[f"m:{name}"]) for name, kind in MEASURES.items() if row[f"m:{name}"]
        }
        return Evaluation(jobs[job], status, objective, measures)


def load_description(path: Path) -> dict[str, Any]:
    """Return what ``run.json`` of a run directory says.

    Raises
    ------
    RunDirectoryError
        There is none, or it cannot be read.
    """
    file = path / "run.json"
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        if description["format"] != FORMAT:
            raise RunDirectoryError(
                f"{file}: expected format {FORMAT}, found {description['format']}"
            )
        if not {"id", "settings", "space", "started"} <= description.keys():
            raise RunDirectoryError(f"{file}: not a search's run.json")
    except OSError as cause:
        raise RunDirectoryError(
            f"nothing to resume: cannot read {file} ({cause.strerror})"
        ) from cause
    except RunDirectoryError:
        raise
    except (KeyError, TypeError, ValueError) as cause:
        raise RunDirectoryError(f"{file}: not a run's description ({cause})") from cause
    assert isinstance(description, dict)
    return description


def compare_settings(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise RunDirectoryError, naming the setting, unless all settings of `now` are as before."""
    for name, value in now.items():
        if before.get(name) != value:
            raise RunDirectoryError(
                f"{path} was started with {name} {before.get(name)}, not {value}: a resumed run "
                "keeps its settings"
            )


def _cell(value: Measure) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    # One line a row, so that a torn row is a torn line.
    return _quoted(" ".join(value.splitlines())) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    """Return a cell of a CSV file (RFC 4180)."""
    if "," in text or '"' in text or "\n" in text or "\r" in text:
        return '"' + text.replace('"', '""') + '"'
    return text


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(name for name in now if before.get(name) != now[name])


def _list_difference(expected: Sequence[str], found: Sequence[str]) -> str:
    missing = [name for name in expected if name not in found]
    surplus = [name for name in found if name not in expected]
    return f"missing {missing}, surplus {surplus}"


def _open_locked(path: Path) -> TextIO:
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as cause:
        file.close()
        raise RunDirectoryError(f"another process works on {path.parent}") from cause
    except OSError:
        pass  # some shared file systems know no locks; the refusal to reuse a directory remains
    return file


def _whole_lines(path: Path) -> list[str]:
    """Return the lines of a journal; cuts off what a killed process left unfinished."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    try:
        return content[:whole].decode().split("\n")[:-1]
    except UnicodeDecodeError as cause:
        line = content[: cause.start].count(b"\n") + 1
        raise RunDirectoryError(f"{path}, line {line}: not UTF-8") from cause


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new one, never a part."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)
