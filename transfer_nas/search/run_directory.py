"""What a run leaves on disk, and how a later process takes it up.

``run.json``
    Every setting, versions, the space, the layout of ranks, when the run started.
``checkpoint``
    One line of JSON for each job, written before the job is handed out.
``results.csv``
    One row for each evaluation, in the columns of DeepHyper. A row that is there is finished.
``best.safetensors``, ``best.keras``
    The best model so far, and at the end (`transfer_nas.trained_model`).
``logs/``
    What each rank and the libraries under it had to say.

The two journals are the whole state: `Algorithm.restore` takes what they hold. A process that is
killed can leave the last line of either torn; that line is dropped, and so is one that was
damaged since: its job is done again (`Journal`).
"""

from __future__ import annotations

import csv
import json
import math
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graph_meta.graph import FORMAT_VERSION, GraphError, check_version
from transfer_nas.errors import RunDirectoryError, writing
from transfer_nas.job import DONE, Evaluation, Job, Measure
from transfer_nas.search.journal import Journal, write_whole
from transfer_nas.spaces import Space

MEASURES: Mapping[str, type[int] | type[float] | type[str]] = {
    "parent": int,
    "ancestor": str,
    "layers": int,
    "layers_transferred": int,
    "layers_grown": int,
    "bytes_transferred": int,
    "bytes_stored": int,
    "bytes_whole_copy": int,
    "match_seconds": float,
    "build_seconds": float,
    "load_seconds": float,
    "train_seconds": float,
    "store_seconds": float,
    "epochs": int,
    "engine": str,
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
    damage
        What was found damaged, a line each; without it the run can go on.
    """

    def __init__(self, path: Path, space: Space, description: Mapping[str, Any]) -> None:
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
        self._journal = Journal(path / "checkpoint", self._parse_job)
        try:
            self._told: set[int] = set()
            self._known = {job.id: job for job in self._journal.entries}
            header = ",".join(map(_quoted, self._columns))
            self._results = Journal(path / "results.csv", self._parse_evaluation, header)
        except BaseException:
            self._journal.close()
            raise
        self.jobs = list(self._known.values())
        self.evaluations = self._results.entries
        self.damage = [*self._journal.damage, *self._results.damage]

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
            "layer_graphs": FORMAT_VERSION,
            "id": secrets.token_hex(6),
            "started": time.time(),
            "settings": dict(settings),
            "space": space.describe(),
            **extra,
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_whole(path / "run.json", json.dumps(description, indent=2) + "\n")
            return cls(path, space, description)
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
            There is no run, its settings or its space differ (the message names them), or another
            process works on it.
        """
        description = load_description(path)
        try:
            check_version(description.get("layer_graphs", 1), f"{path / 'run.json'}")
        except GraphError as cause:
            raise RunDirectoryError(str(cause)) from None
        compare_settings(path, description["settings"], settings)
        if description["space"] != json.loads(json.dumps(space.describe())):
            raise RunDirectoryError(
                f"{path} was started with another space: "
                f"{_difference(description['space'], space.describe())}"
            )
        description.setdefault("resumed", []).append({"at": time.time(), **extra})
        try:
            directory = cls(path, space, description)
            try:
                write_whole(path / "run.json", json.dumps(description, indent=2) + "\n")
            except OSError:
                directory.close()
                raise
        except OSError as cause:
            raise RunDirectoryError(f"cannot write to {path}: {cause.strerror}") from cause
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
        cells += [format_cell(measures[name]) if name in measures else "" for name in MEASURES]
        self._new_rows.append(",".join(cells))

    def flush(self) -> None:
        """Write everything so far, such that it outlives this process, evaluations first.

        A job that is on disk then always finds the evaluations on disk that it was asked after.

        Raises
        ------
        Unwritable
            They cannot be written. Those that could not are tried again by the next call.
        """
        with writing(self.path):
            if self._new_rows:
                self._results.append(self._new_rows)
                self._new_rows.clear()
            if self._new_jobs:
                self._journal.append(self._new_jobs)
                self._new_jobs.clear()

    def close(self) -> None:
        """Close the files and let another process work on the run; raises as `flush`."""
        try:
            self.flush()
        finally:
            self._results.close()
            self._journal.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _parse_job(self, line: str) -> Job:
        job = Job.from_dict(json.loads(line))
        self._space.check(job.genome)
        return job

    def _parse_evaluation(self, line: str) -> Evaluation:
        cells = next(csv.reader([line]), [])
        if len(cells) != len(self._columns):
            raise ValueError(f"expected {len(self._columns)} columns, found {len(cells)}")
        row = dict(zip(self._columns, cells, strict=True))
        id = int(row["job_id"])
        if id not in self._known:
            raise ValueError(f"job {id} is not in the checkpoint")
        if id in self._told:
            raise ValueError(f"job {id} is there twice")
        status = row["job_status"]
        if status != DONE and not status.startswith("F_"):
            raise ValueError(f"expected DONE or F_… as status, found {status!r}")
        objective = float(row["objective"]) if status == DONE else math.nan
        measures: dict[str, Measure] = {
            name: kind(row[f"m:{name}"]) for name, kind in MEASURES.items() if row[f"m:{name}"]
        }
        self._told.add(id)
        return Evaluation(self._known[id], status, objective, measures)


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
            raise wrong_format(file, description["format"])
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


def wrong_format(file: Path, found: object) -> RunDirectoryError:
    """Return the error of a description in another format, with what to do about a newer one."""
    newer = isinstance(found, int) and found > FORMAT
    advice = "; a newer transfer-nas wrote it: update this one" if newer else ""
    return RunDirectoryError(f"{file}: expected format {FORMAT}, found {found}{advice}")


def compare_settings(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise RunDirectoryError, naming the setting, unless all settings of `now` are as before."""
    for name, value in now.items():
        if before.get(name) != value:
            raise RunDirectoryError(
                f"{path} was started with {name} {before.get(name)}, not {value}: a resumed run "
                "keeps its settings"
            )


def format_cell(value: Measure) -> str:
    """Return a cell of ``results.csv``."""
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
