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
damaged since: its job is done again (`Journal`). What is finished stays finished: a job that the
checkpoint has lost is taken from its row.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cpp_store import files
from graph_meta.graph import FORMAT_VERSION, GraphError, check_version
from transfer_nas.errors import RunDirectoryError, SpaceError, writing
from transfer_nas.job import DONE, Evaluation, Job, Measure
from transfer_nas.searching import results
from transfer_nas.searching.clock import Clock, resumptions
from transfer_nas.searching.journal import Found, Journal, claim, read_lines, write_new
from transfer_nas.searching.results import GeneCells
from transfer_nas.spaces import GeneSpace, Space
from transfer_nas.values import Value, declared_in, own

FORMAT = 1
"""Of the run directory; the number in ``run.json``."""

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_FILES = ("run.json", "results.csv", "checkpoint", "population.json")
_SAMPLED = 4  # networks that tell whether a space is still the same
_IN_FLIGHT = 1_000  # jobs that may have been under way when a row was written, generously


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
    values
        Declared values by name, those of the core first: the ``m:*`` columns.
    clock
        Turns timestamps into seconds of search; a process that takes up a run begins where the
        last result was.
    """

    def __init__(self, path: Path, space: Space, description: dict[str, Any]) -> None:
        self.path = path
        self.id = str(description["id"])
        self.started = float(description["started"])
        self._settings = description["settings"]
        self._space = space
        self._cells = {}
        if isinstance(space, GeneSpace):
            self._cells = {gene.name: GeneCells(gene.values) for gene in space.genes}
        self.values = declared_in(description)
        self._own = {value.name for value in own(self.values)}
        self._columns = results.columns(_chosen_columns(space), self.values)
        self._new_jobs: list[str] = []
        self._new_rows: list[str] = []
        self._fresh = self._made = False  # the run, the directory: by this process
        (path / "logs").mkdir(exist_ok=True)
        self._journal = Journal(path / "checkpoint", self._read_jobs)
        try:
            self._known = {job.id: job for job in self._journal.entries}
            self._results = Journal(path / "results.csv", self._read_results)
        except BaseException:
            self._journal.close()
            raise
        self.evaluations = self._results.entries
        self.jobs = [self._known[id] for id in sorted(self._known)]
        self.damage = [*self._journal.damage, *self._results.damage]
        if self._new_jobs:
            self.damage.append(
                f"{path / 'checkpoint'} lacks {len(self._new_jobs)} jobs that are finished; they "
                "are taken from results.csv"
            )
        self.clock = self._clock(description)

    @classmethod
    def create(
        cls,
        path: Path,
        space: Space,
        settings: Mapping[str, Any],
        extra: Mapping[str, Any],
        *,
        values: Sequence[Value] = (),
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
        values
            What is declared beside the core's values.

        Raises
        ------
        RunDirectoryError
            The directory holds another run, or cannot be written.
        """
        if path.exists() and not path.is_dir():
            raise RunDirectoryError(f"output directory {path} is a file")
        description = {
            "format": FORMAT,
            "layer_graphs": FORMAT_VERSION,
            "id": secrets.token_hex(6),
            "started": time.time(),
            "settings": dict(settings),
            "space": space.describe(),
            "networks": _networks(space),
            "values": [value.to_dict() for value in values],
            **extra,
        }
        made = not path.exists()
        try:
            path.mkdir(parents=True, exist_ok=True)
            with claim(path):
                _refuse_another(path)
                # Where file systems know no locks, this refuses all who start here but one.
                write_new(path / "run.json", json.dumps(description, indent=2) + "\n")
                try:
                    directory = cls(path, space, description)
                except BaseException:
                    _remove(path)
                    raise
        except FileExistsError as cause:
            raise RunDirectoryError(f"another process works on {path}") from cause
        except OSError as cause:
            raise RunDirectoryError(f"cannot write to {path}: {cause.strerror}") from cause
        finally:
            if made:
                with contextlib.suppress(OSError):  # it holds something, or was never made
                    path.rmdir()
        directory._fresh, directory._made = True, made
        return directory

    @classmethod
    def resume(
        cls,
        path: Path,
        space: Space,
        settings: Mapping[str, Any],
        extra: Mapping[str, Any],
        *,
        values: Sequence[Value] = (),
    ) -> RunDirectory:
        """Take up a run.

        Parameters
        ----------
        path, space, extra
            As in `create`; ``run.json`` keeps the `extra` of each start.
        settings
            What the user chooses now. Each must be what it was.
        values
            What is declared now; it must be what it was.

        Raises
        ------
        RunDirectoryError
            There is no run, its settings, its space or its declared values differ (the message
            names them), or another process works on it.
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
        if description.get("networks", (found := _networks(space))) != found:
            raise RunDirectoryError(
                f"{path} was started with another space {space.name}: the same choices make other "
                "networks now; resume with the code that it was started with, or begin a new run"
            )
        _compare_values(path, description.get("values", []), values)
        try:
            directory = cls(path, space, description)
            try:
                description = load_description(path)  # as it is now that nobody else changes it
                description.setdefault("resumed", []).append({"at": time.time(), **extra})
                files.write_text(path / "run.json", json.dumps(description, indent=2) + "\n")
            except BaseException:
                directory.close()
                raise
        except OSError as cause:
            raise RunDirectoryError(f"cannot write to {path}: {cause.strerror}") from cause
        directory.clock = directory._clock(description)
        return directory

    def asked(self, job: Job) -> None:
        """Write down a job at the next `flush`, which comes before it is handed out."""
        self._fresh = False
        self._new_jobs.append(self._job_line(job))

    def told(self, evaluation: Evaluation) -> None:
        """Write down an evaluation at the next `flush`.

        A failure has its ``F_…`` both as status and as objective: the latter is where DeepHyper
        looks for it.
        """
        if complaint := self.complaint(evaluation):
            raise ValueError(complaint)
        measures, job = evaluation.measures, evaluation.job
        cells = self._chosen_cells(job)
        cells.append(repr(float(evaluation.objective)) if evaluation.done else evaluation.status)
        cells += (str(job.id), evaluation.status)
        cells += [
            results.measure_cell(measures[name], exact=name in self._own)
            if name in measures
            else ""
            for name in self.values
        ]
        self._new_rows.append(results.row_text(cells))

    def complaint(self, evaluation: Evaluation) -> str:
        """Return in one line which measures have no column; empty: all have."""
        if evaluation.measures.keys() <= self.values.keys():
            return ""
        unknown = ", ".join(sorted(evaluation.measures.keys() - self.values.keys()))
        return f"measured and not declared: {unknown}; an application declares its `values`"

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
                self._results.append("".join(self._new_rows))
                self._new_rows.clear()
            if self._new_jobs:
                self._journal.append("".join(self._new_jobs))
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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close; a run that ends by an error before it began is taken away again.

        It would only be in the way of the next start.
        """
        if kind is None or not self._fresh:
            self.close()
            return
        _remove(self.path)
        self._results.close()
        self._journal.close()
        if self._made:
            with contextlib.suppress(OSError):  # somebody put something into it
                self.path.rmdir()

    def _clock(self, description: Mapping[str, Any]) -> Clock:
        gathered = [e.measures.get("timestamp_gather", math.nan) for e in self.evaluations]
        return Clock(resumptions(description), gathered)

    def _read_jobs(self, content: bytes) -> Found[Job]:
        return read_lines(content, str(self.path / "checkpoint"), self._parse_job)

    def _parse_job(self, line: str) -> Job:
        return Job.from_dict(json.loads(line), self._space.from_json)

    def _job_line(self, job: Job) -> str:
        try:
            return _encode(job.to_dict(self._space.to_json)) + "\n"
        except (TypeError, ValueError) as cause:
            raise SpaceError(
                f"space {self._space.name}: expected to_json to return a JSON value: {cause}"
            ) from cause

    def _chosen_cells(self, job: Job) -> list[str]:
        """Return what a row says of the job's architecture."""
        if isinstance(self._space, GeneSpace):
            genes = zip(self._cells.values(), job.architecture, strict=True)
            return [gene.texts[value] for gene, value in genes]
        values = self._space.values(job.architecture)
        if values.keys() != {*self._space.columns}:
            raise SpaceError(
                f"space {self._space.name}: expected values of {list(self._space.columns)}, found "
                f"{list(values)}"
            )
        return [
            _encode(self._space.to_json(job.architecture)),
            *(results.value_cell(values[name]) for name in self._space.columns),
        ]

    def _read_results(self, content: bytes) -> Found[Evaluation]:
        file = self.path / "results.csv"
        rows = results.split(content, self._cells)
        if not rows.header:
            return Found(results.row_text(self._columns).encode())
        _check_header(file, self._columns, rows.header)
        found = Found[Evaluation](b"")
        told, damage = set[int](), rows.damage
        current = rows.header == self._columns
        header = dict(zip(self._columns, self._columns, strict=True))
        kept = [rows.header_text + b"\n" if current else self._in_our_columns(header)]
        bound = len(self._known) + len(rows.cells) + _IN_FLIGHT
        for cells, line, text in zip(rows.cells, rows.lines, rows.texts, strict=True):
            try:
                row = dict(zip(rows.header, cells, strict=True))
                id = results.integer(row["job_id"])
                if id in told:
                    raise ValueError(f"job {id} is there twice")
                job = self._known.get(id) or self._rebuilt(id, row, bound)
                found.entries.append(_evaluation(job, row, self.values))
            except (ValueError, OverflowError, RecursionError) as cause:
                damage.append((line, str(cause)))
                continue
            if id not in self._known:
                self._known[id] = job
                self._new_jobs.append(self._job_line(job))
            told.add(id)
            kept.append(text + b"\n" if current else self._in_our_columns(row))
        found.kept = b"".join(kept)
        found.damage = [f"{file}, line {n}: {why}; it is left out" for n, why in sorted(damage)]
        return found

    def _in_our_columns(self, row: Mapping[str, str]) -> bytes:
        """Return a row of a run that an earlier version, which measured less, has begun."""
        return results.row_text(row.get(name, "") for name in self._columns).encode()

    def _rebuilt(self, id: int, row: Mapping[str, str], bound: int) -> Job:
        """Return the job of a row that the checkpoint has lost: what is finished stays finished.

        Raises
        ------
        ValueError
            The row does not tell, or its number is none that a job can have.
        """
        halving = self._settings.get("search") == "halving"  # its jobs have epochs of their own
        if halving or not 0 <= id < bound:
            raise ValueError(f"job {id} is not in the checkpoint")
        if isinstance(self._space, GeneSpace):
            genes = self._cells.items()
            value: Any = [cells.position(row[f"p:{name}"]) for name, cells in genes]
        else:
            value = json.loads(row[f"p:{results.ARCHITECTURE}"])
        try:
            architecture = self._space.from_json(value)
        except SpaceError:
            raise ValueError(f"job {id} is not in the checkpoint") from None
        parent = row.get("m:parent")
        return Job(id, architecture, results.integer(parent) if parent else None)


def _chosen_columns(space: Space) -> tuple[str, ...]:
    """Return the ``p:`` columns, without the ``p:``; raises SpaceError if two are one."""
    names = space.columns
    if not isinstance(space, GeneSpace):
        names = (results.ARCHITECTURE, *names)
        for name in names:
            if not isinstance(name, str) or not name.isprintable():
                raise SpaceError(f"space {space.name}: expected texts as columns, found {name!a}")
    if len(set(names)) < len(names):
        what = "genes" if isinstance(space, GeneSpace) else "columns"
        raise SpaceError(f"space {space.name}: two {what} have one name")
    return names


def _networks(space: Space) -> list[str]:
    """Return what tells whether a space still makes the same networks: the names of some."""
    rng, found = np.random.default_rng(0), []
    for _ in range(_SAMPLED):
        digest = hashlib.blake2b(digest_size=8)
        try:
            digest.update("\n".join(space.graph(space.sample(rng)).names).encode())
        except Exception as error:  # a user's function may raise anything for some choices
            digest.update(type(error).__name__.encode())
        found.append(digest.hexdigest())
    return found


def _evaluation(job: Job, row: Mapping[str, str], values: Mapping[str, Value]) -> Evaluation:
    """Return what a row says; raises ValueError if it says nothing that makes sense."""
    status = row["job_status"]
    if status != DONE and not status.startswith("F_"):
        raise ValueError(f"expected DONE or F_… as status, found {status!r}")
    measures: dict[str, Measure] = {
        name: (results.integer if value.kind is int else value.kind)(row[f"m:{name}"])
        for name, value in values.items()
        if row.get(f"m:{name}")
    }
    return Evaluation(
        job, status, float(row["objective"]) if status == DONE else math.nan, measures
    )


def _refuse_another(path: Path) -> None:
    """Raise RunDirectoryError if a directory holds a run, or parts of one."""
    for name in _FILES:
        if not (path / name).exists():
            continue
        if name == "population.json":
            raise RunDirectoryError(
                f"output directory {path} holds a population ({name}); choose another directory"
            )
        what = f"output directory {path} holds another run ({name}); "
        rows = path / "results.csv"
        if name == "run.json" and (not rows.exists() or rows.read_bytes().count(b"\n") < 2):
            what += "nothing in it is finished: remove it to begin anew, or "
        raise RunDirectoryError(f"{what}continue it with --resume or choose another directory")


def _remove(path: Path) -> None:
    """Remove what `RunDirectory` makes, run.json last: until then nobody else begins here."""
    for log in (path / "logs").glob("rank-*"):
        log.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds something else
        (path / "logs").rmdir()
    for name in ("results.csv", "checkpoint", "run.json"):
        (path / name).unlink(missing_ok=True)


def _check_header(file: Path, expected: Sequence[str], found: Sequence[str]) -> None:
    """Raise RunDirectoryError unless only measures are missing that an earlier version had not."""
    missing = [name for name in expected if name not in found]
    surplus = [name for name in found if name not in expected]
    if surplus or not all(name.startswith("m:") for name in missing):
        raise RunDirectoryError(
            f"{file}, line 1: columns differ: missing {missing}, surplus {surplus}"
        )


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
        kinds = {"id": str, "settings": dict, "space": dict, "started": int | float}
        if not all(isinstance(description.get(name), kind) for name, kind in kinds.items()):
            raise RunDirectoryError(f"{file}: not a search's run.json")
    except OSError as cause:
        raise RunDirectoryError(
            f"nothing to resume: cannot read {file} ({cause.strerror})"
        ) from cause
    except RunDirectoryError:
        raise
    except (KeyError, RecursionError, TypeError, ValueError) as cause:
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


def _compare_values(path: Path, before: object, now: Sequence[Value]) -> None:
    """Raise RunDirectoryError unless the same values are declared as at the start."""
    declared = [value.to_dict() for value in now]
    if before == declared:
        return
    known = before if isinstance(before, list) else []
    names = [each.get("name") if isinstance(each, dict) else each for each in known]
    found = [value.name for value in now]
    what = (
        f"values {', '.join(map(str, names)) or 'none'}, not {', '.join(found) or 'none'}"
        if names != found
        else f"other values of the names {', '.join(found)}"
    )
    raise RunDirectoryError(
        f"{path} was started with declared {what}: a resumed run keeps what it measures"
    )


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(name for name in now if before.get(name) != now[name])
