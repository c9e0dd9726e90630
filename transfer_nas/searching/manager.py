"""The state of a running search: what to evaluate next, and what to do with a result. No MPI."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer_nas import trained_model
from transfer_nas.algorithms._base import Algorithm
from transfer_nas.best import Front, beats
from transfer_nas.job import Evaluation, Job
from transfer_nas.searching.evaluation import candidate_path, checkpoints_path
from transfer_nas.searching.run_directory import RunDirectory
from transfer_nas.spaces import Space
from transfer_nas.stopping import Stopper

_SUMS_OF_ALL = ("bytes_transferred", "bytes_stored")
_SUMS_OF_CHILDREN = (*_SUMS_OF_ALL, "layers", "layers_transferred")

GIVE_UP_AFTER = 8
"""Candidates that fail for one reason before one works, after which a search ends; with many ranks
two each, since so many may run before anybody knows."""
STORED_PERHAPS = ("F_timeout", "F_lost", "F_undeclared")
"""How evaluations fail that may have stored their model before."""


@dataclass(frozen=True)
class Status:
    """How far a search is.

    Attributes
    ----------
    evaluations
        Number of evaluations, failures included.
    failures
        Number of failures.
    max_evals
        How many there will be; None: no limit.
    best
        The best evaluation; None while there is none.
    layers_transferred, layers
        Of all children together.
    bytes_transferred, bytes_stored
        Of all evaluations together.
    bytes_whole_copies
        What the weights of all candidates that worked take, each whole.
    seconds
        Of search until the last result, those of earlier processes included.
    here
        Seconds since this process began to search.
    fresh
        Number of evaluations since then.
    first_failure
        The first evaluation that failed; None while there is none.
    front
        Of several objectives; None if there is one.
    stopped
        Trainings that were told to end early by this process.
    """

    evaluations: int
    failures: int
    max_evals: int | None
    best: Evaluation | None
    layers_transferred: int
    layers: int
    bytes_transferred: int
    bytes_stored: int
    bytes_whole_copies: int
    seconds: float
    here: float
    fresh: int
    first_failure: Evaluation | None = None
    front: Front | None = None
    stopped: int = 0

    @property
    def evaluations_per_second(self) -> float:
        """Evaluations in a second of search, over all processes; 0 while there is none."""
        return self.evaluations / self.seconds if self.seconds > 0 else 0.0

    @property
    def share_transferred(self) -> float:
        """Share of the children's layers that were transferred, in [0, 1]."""
        return self.layers_transferred / self.layers if self.layers else 0.0


def explain(failure: Evaluation) -> str:
    """Return why an evaluation failed, for people."""
    return str(failure.measures.get("error") or failure.status)


def _reason(failure: Evaluation) -> tuple[str, str]:
    """Return what failures for one reason have in common: numbers differ from job to job."""
    return failure.status, re.sub(r"\d+", "#", str(failure.measures.get("error", "")))


class Manager:
    """Hands out jobs and takes their results: journal, population, best model, retirement.

    Results and jobs come in groups: any number of `finished`, then `next_jobs`, then one `commit`,
    which writes them down. Only then may a job leave, and only then does anything that depends on
    a result happen outside: an evaluation is finished when its row is in ``results.csv``. A
    process that is killed before that has lost nothing that anybody was told.

    Not thread-safe: one thread of one process owns it.

    Parameters
    ----------
    algorithm
        Proposes jobs. It takes up what `directory` holds of an earlier process.
    directory
        Where everything is written.
    max_evals
        Number of evaluations after which the search ends, those found on disk included; None: no
        limit.
    retire
        Called with the ids of jobs whose models left the population.
    report
        Called after each group of evaluations.
    warn
        Called with a line about what the user should know at once.
    observe
        Called with each evaluation once it is written down.
    give_up_after
        If so many evaluations fail before one works, all for the same reason, the search ends;
        None: it does not.
    stopper
        Ends trainings beside what the algorithm says; None: nobody does.

    Attributes
    ----------
    hopeless
        Whether it ended so.
    wants_reports
        Whether `report` shall be called.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        directory: RunDirectory,
        *,
        max_evals: int | None,
        retire: Callable[[Sequence[int]], None],
        report: Callable[[Status], None],
        warn: Callable[[str], None],
        observe: Callable[[Evaluation], None] | None = None,
        give_up_after: int | None = None,
        stopper: Stopper | None = None,
    ) -> None:
        self._algorithm = algorithm
        self._stopper = stopper
        self._stops: set[int] = set()  # jobs that run and were told to stop
        self._stopped_early = 0
        self.wants_reports = algorithm.wants_reports or stopper is not None
        self._directory = directory
        self._max_evals = max_evals
        self._retire = retire
        self._report = report
        self._warn = warn
        self._observe = observe
        self._give_up_after = give_up_after
        self._first_failure: Evaluation | None = None
        self._alike = True  # nothing has worked, and all failures have one reason
        self._explained = False
        self.hopeless = False
        self._unobserved: list[Evaluation] = []
        self._warned = False
        self._stopped = False
        self._on_disk = {job.id for job in directory.jobs}
        self._submitted: dict[int, tuple[float, float]] = {}  # when, best objective then
        self._jobs: dict[int, Job] = {}  # those that were submitted, while reports are wanted
        self._reported = 0
        self._retired: list[int] = []  # to be told at the next commit
        self._told: list[int] = []  # since the last commit
        self._undecided: list[tuple[Evaluation, bool]] = []  # may have left a model; is the best
        self._evaluations_path = checkpoints_path(directory.path)
        self._evaluations = 0
        self._failures = 0
        self._best: Evaluation | None = None
        self._front = None if algorithm.objectives is None else Front(algorithm.objectives)
        self._dead: set[int] = set()  # of the front: what the algorithm needs no more
        self._fallen: list[int] = []  # from the front, since the last commit
        self._last_result = 0.0  # seconds after the run was started for the first time
        self._exhausted = False
        self._sums = dict.fromkeys((*_SUMS_OF_CHILDREN, "bytes_whole_copy"), 0)
        self._begun = time.monotonic()
        # Of a process that was killed: what died may not have been retired any more.
        dead = algorithm.restore(directory.jobs, directory.evaluations)
        dead += [e.job.id for e in directory.evaluations if e.status in STORED_PERHAPS]
        for evaluation in directory.evaluations:
            self._count(evaluation)
        self._found = self._reported = self._evaluations
        for line in directory.damage:
            warn(line)
        self._adopt_candidates()
        self._drop_checkpoints()
        self._forget_models([*self._without_front(dead), *algorithm.unfinished])

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._directory.path

    @property
    def space(self) -> Space:
        """What is searched."""
        return self._algorithm.space

    @property
    def useful_in_flight(self) -> int | None:
        """How many jobs may wait at once without harm; see `Algorithm`."""
        return self._algorithm.useful_in_flight

    @property
    def left(self) -> float:
        """How many jobs there are still to be handed out; may be infinite."""
        if self._stopped:
            return 0
        if self._max_evals is None:
            return math.inf
        return self._max_evals - self._evaluations - len(self._submitted)

    @property
    def best_objective(self) -> float:
        """What an objective has to exceed for its model to be written down.

        The best so far; minus infinity while there is none, and with several objectives, where any
        model may be on the front.
        """
        if self._best is None or self._front is not None:
            return -math.inf
        return self._best.objective

    @property
    def status(self) -> Status:
        """How far the search is."""
        return Status(
            evaluations=self._evaluations,
            failures=self._failures,
            max_evals=self._max_evals,
            best=self._best,
            layers_transferred=self._sums["layers_transferred"],
            layers=self._sums["layers"],
            bytes_transferred=self._sums["bytes_transferred"],
            bytes_stored=self._sums["bytes_stored"],
            bytes_whole_copies=self._sums["bytes_whole_copy"],
            seconds=float(self._directory.clock(self._last_result)),
            here=time.monotonic() - self._begun,
            fresh=self._evaluations - self._found,
            first_failure=self._first_failure,
            front=self._front,
            stopped=self._stopped_early,
        )

    def report(self, id: int, step: int, values: Mapping[str, float]) -> bool:
        """Tell of an epoch of a job; return whether the job shall stop.

        Raises
        ------
        ValueError
            The algorithm answers what is no decision.
        """
        if id not in self._submitted:
            return False
        job = self._jobs[id]
        decision = self._algorithm.report(job, step, values)
        if decision not in ("continue", "stop"):
            name = type(self._algorithm).__name__
            raise ValueError(f"{name}.report: expected continue or stop, found {decision!r:.60}")
        stops = self._stopper is not None and self._stopper.report(job, step, values)
        if (stops or decision == "stop") and id not in self._stops:
            self._stops.add(id)
            self._stopped_early += 1
        return id in self._stops

    def stop(self) -> None:
        """Hand out no more jobs; results of those that run are still welcome."""
        self._stopped = True

    @property
    def exhausted(self) -> bool:
        """Whether the search ended because its algorithm had nothing left to ask."""
        return self._exhausted

    def next_jobs(self, count: int) -> list[Job]:
        """Return up to `count` jobs, which may leave after `commit`; fewer: there are no more."""
        wanted = int(min(count, self.left))
        jobs = self._algorithm.ask(wanted)
        if len(jobs) < wanted and not self._exhausted:
            self._exhausted = True
            self._warn(f"space {self.space.name} holds one architecture: the search ends with it")
        if jobs:
            submitted = self._now(), self.best_objective
            for job in jobs:
                self._submitted[job.id] = submitted
                if self.wants_reports:
                    self._jobs[job.id] = job
                if job.id not in self._on_disk:
                    self._directory.asked(job)
        return jobs

    def finished(self, evaluation: Evaluation, rank: int) -> None:
        """Take the result of a job that `rank` evaluated, to be written down at `commit`."""
        job = evaluation.job
        submitted, best_then = self._submitted.pop(job.id)
        self._no_more_reports(job.id)
        measures = {
            **evaluation.measures,
            "timestamp_submit": submitted,
            "timestamp_gather": self._now(),
            "rank": rank,
        }
        for name in ("timestamp_start", "timestamp_end"):
            if name in measures:
                measures[name] = float(measures[name]) - self._directory.started
        if job.parent is not None:
            measures["parent"] = job.parent
        evaluation = Evaluation(job, evaluation.status, evaluation.objective, measures)
        complaint = self._directory.complaint(evaluation)
        if complaint:
            known = {name: measures[name] for name in self._directory.values if name in measures}
            evaluation = Evaluation.failure(job, "undeclared", known, error=complaint)
        self._directory.told(evaluation)
        if self._observe is not None:
            self._unobserved.append(evaluation)
        best = self._count(evaluation)
        self._retired += self._without_front(self._algorithm.tell(evaluation))
        if evaluation.status in STORED_PERHAPS:
            self._retired.append(job.id)
        self._told.append(job.id)
        if evaluation.objective > best_then or not evaluation.done:
            self._undecided.append((evaluation, best))
        if not evaluation.done:
            self._despair(evaluation)
        if "transfer_error" in measures and not self._warned:
            self._warned = True  # once is enough: results.csv has them all
            error = measures["transfer_error"]
            self._warn(f"job {job.id} went without transfer, the search goes on: {error}")

    def commit(self) -> None:
        """Write down what was finished and what is to be handed out; then act on it."""
        self._directory.flush()
        for evaluation in self._unobserved:
            assert self._observe is not None
            self._observe(evaluation)
        self._unobserved.clear()
        for evaluation, best in self._undecided:
            self._keep_model(evaluation, best=best)
        self._undecided.clear()
        for job_id in self._fallen:
            self._drop_from_front(job_id)
        self._fallen.clear()
        if self._told and self._evaluations_path.is_dir():
            for job in self._told:
                shutil.rmtree(self._evaluations_path / str(job), ignore_errors=True)
        self._told.clear()
        if self._retired:
            self._retire(self._retired)
            self._retired = []
        if self._evaluations > self._reported:
            self._reported = self._evaluations
            self._report(self.status)

    def abandoned(self, job: Job) -> None:
        """Forget that a job was handed out: it was interrupted, a resumed search does it again."""
        del self._submitted[job.id]
        self._no_more_reports(job.id)
        candidate_path(self._directory.path, job).unlink(missing_ok=True)
        self._forget_models([job.id])

    def _no_more_reports(self, job: int) -> None:
        self._jobs.pop(job, None)
        self._stops.discard(job)
        if self._stopper is not None:
            self._stopper.forget(job)

    def _now(self) -> float:
        return time.time() - self._directory.started

    def _count(self, evaluation: Evaluation) -> bool:
        """Add an evaluation to the sums; return whether it is the best so far."""
        self._evaluations += 1
        measures = evaluation.measures
        self._last_result = max(self._last_result, float(measures.get("timestamp_gather", 0.0)))
        for name in _SUMS_OF_ALL if evaluation.job.parent is None else _SUMS_OF_CHILDREN:
            self._sums[name] += int(measures.get(name, 0))
        if not evaluation.done:
            self._failures += 1
            self._first_failure = self._first_failure or evaluation
            self._alike = self._alike and _reason(evaluation) == _reason(self._first_failure)
            return False
        self._alike = False
        self._sums["bytes_whole_copy"] += int(measures.get("bytes_whole_copy", 0))
        if self._front is not None:
            fallen = self._front.add(evaluation) or []
            self._fallen += fallen
            self._retired += self._dead.intersection(fallen)
            self._dead.difference_update(fallen)
        if not beats(evaluation, self._best):
            return False
        self._best = evaluation
        return True

    def _despair(self, failure: Evaluation) -> None:
        """Say why the first evaluation fails; end the search if all fail for one reason."""
        if not self._explained:
            self._explained = True  # once is enough: results.csv has them all
            self._warn(f"job {failure.job.id} failed: {explain(failure)}")
        if self._alike and self._failures >= (self._give_up_after or math.inf):
            self.hopeless = True
            self.stop()

    def _without_front(self, dead: Sequence[int]) -> list[int]:
        """Return those of some dead that are not on the front; the others are retired later."""
        front = self._front.members if self._front is not None else {}
        self._dead |= front.keys() & dead
        return [job for job in dead if job not in front]

    def _drop_from_front(self, job: int) -> None:
        for path in trained_model.front_path(self._directory.path, job).parent.glob(f"{job}.*"):
            path.unlink()

    def _keep_model(self, evaluation: Evaluation, *, best: bool) -> None:
        candidate = candidate_path(self._directory.path, evaluation.job)
        job = evaluation.job.id
        if self._front is not None and job in self._front.members and candidate.exists():
            kept = trained_model.front_path(self._directory.path, job)
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(candidate, kept)
        if best and candidate.exists():
            candidate.replace(trained_model.best_path(self._directory.path))
        else:
            candidate.unlink(missing_ok=True)  # another rank was better in the meantime

    def _forget_models(self, jobs: Sequence[int]) -> None:
        """Retire models that may be stored and that nobody needs.

        Those of jobs without a result among them: the jobs are to be done again, and would inherit
        whole models from themselves.
        """
        if jobs:
            self._retire(jobs)

    def _drop_checkpoints(self) -> None:
        """Remove what evaluations saved that a killed process had finished."""
        unfinished = {str(job) for job in self._algorithm.unfinished}
        for path in self._evaluations_path.glob("*"):
            if path.name not in unfinished:
                shutil.rmtree(path, ignore_errors=True)

    def _adopt_candidates(self) -> None:
        """Decide on the models that a killed process left undecided."""
        if self._best is not None:
            self._keep_model(self._best, best=True)
        if self._front is not None:
            for evaluation in self._front.members.values():
                self._keep_model(evaluation, best=False)
            self._fallen.clear()
            for path in trained_model.front_path(self._directory.path, 0).parent.glob("*.*"):
                if path.stem not in map(str, self._front.members):
                    path.unlink()
        for candidate in self._directory.path.glob("candidate-*"):
            candidate.unlink()
