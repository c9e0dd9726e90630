"""The state of a running search: what to evaluate next, and what to do with a result. No MPI."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from transfer_nas.job import Evaluation, Job
from transfer_nas.search.evolution import AgingEvolution
from transfer_nas.search.run_directory import RunDirectory


class Evaluator(Protocol):
    """Who evaluates; one in each process."""

    def evaluate(self, job: Job) -> Evaluation:
        """Evaluate a job; what it raises becomes a failure ``F_…``."""

    def save_model(self, path: Path) -> None:
        """Write the model of the last evaluation that was done, as Keras does."""


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
        Since this process began to search.
    fresh
        Number of evaluations since then.
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
    fresh: int

    @property
    def share_transferred(self) -> float:
        """Share of the children's layers that were transferred, in [0, 1]."""
        return self.layers_transferred / self.layers if self.layers else 0.0


class Manager:
    """Hands out jobs and takes their results: journal, population, best model, retirement.

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
        Called after each evaluation.
    warn
        Called with a line about what the user should know at once.
    """

    def __init__(
        self,
        algorithm: AgingEvolution,
        directory: RunDirectory,
        *,
        max_evals: int | None,
        retire: Callable[[Sequence[int]], None],
        report: Callable[[Status], None],
        warn: Callable[[str], None],
    ) -> None:
        self._algorithm = algorithm
        self._directory = directory
        self._max_evals = max_evals
        self._retire = retire
        self._report = report
        self._warn = warn
        self._warned = False
        self._stopped = False
        self._on_disk = {job.id for job in directory.jobs}
        self._submitted: dict[int, float] = {}
        self._evaluations = 0
        self._failures = 0
        self._best: Evaluation | None = None
        self._sums = dict.fromkeys(
            ("layers", "layers_transferred", "bytes_transferred", "bytes_stored"), 0
        )
        self._bytes_whole_copies = 0
        self._begun = time.monotonic()
        algorithm.restore(directory.jobs, directory.evaluations)
        for evaluation in directory.evaluations:
            self._count(evaluation)
        self._found = self._evaluations
        self._adopt_candidates()
        self._forget_models([job.id for job in algorithm.unfinished])

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._directory.path

    @property
    def best_objective(self) -> float:
        """The best objective so far; minus infinity while there is none."""
        return -math.inf if self._best is None else self._best.objective

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
            bytes_whole_copies=self._bytes_whole_copies,
            seconds=time.monotonic() - self._begun,
            fresh=self._evaluations - self._found,
        )

    def stop(self) -> None:
        """Hand out no more jobs; results of those that run are still welcome."""
        self._stopped = True

    def next_job(self) -> Job | None:
        """Return the next job, written down; None: there will be no more."""
        planned = self._evaluations + len(self._submitted)
        if self._stopped or (self._max_evals is not None and planned >= self._max_evals):
            return None
        (job,) = self._algorithm.ask()
        if job.id not in self._on_disk:
            self._directory.asked(job)
        self._submitted[job.id] = self._now()
        return job

    def finished(self, evaluation: Evaluation, rank: int) -> None:
        """Take the result of a job that `rank` evaluated."""
        job = evaluation.job
        measures = {
            **evaluation.measures,
            "timestamp_submit": self._submitted.pop(job.id),
            "timestamp_gather": self._now(),
            "rank": rank,
        }
        if job.parent is not None:
            measures["parent"] = job.parent
        evaluation = Evaluation(job, evaluation.status, evaluation.objective, measures)
        self._directory.told(evaluation)
        dead = self._algorithm.tell(evaluation)
        self._keep_model(evaluation, best=self._count(evaluation))
        if dead:
            self._retire(dead)
        if "transfer_error" in evaluation.measures and not self._warned:
            self._warned = True  # once is enough: results.csv has them all
            error = evaluation.measures["transfer_error"]
            self._warn(f"job {job.id} went without transfer, the search goes on: {error}")
        self._report(self.status)

    def abandoned(self, job: Job) -> None:
        """Forget that a job was handed out: it was interrupted, a resumed search does it again."""
        del self._submitted[job.id]
        candidate_path(self._directory.path, job).unlink(missing_ok=True)
        self._forget_models([job.id])

    def _now(self) -> float:
        return time.time() - self._directory.started

    def _count(self, evaluation: Evaluation) -> bool:
        """Add an evaluation to the sums; return whether it is the best so far."""
        self._evaluations += 1
        for name in ("bytes_transferred", "bytes_stored"):
            self._sums[name] += int(evaluation.measures.get(name, 0))
        if evaluation.job.parent is not None:
            for name in ("layers", "layers_transferred"):
                self._sums[name] += int(evaluation.measures.get(name, 0))
        if not evaluation.done:
            self._failures += 1
            return False
        self._bytes_whole_copies += self._algorithm.space.graph(evaluation.job.genome).nbytes
        if evaluation.objective <= self.best_objective:
            return False
        self._best = evaluation
        return True

    def _keep_model(self, evaluation: Evaluation, *, best: bool) -> None:
        candidate = candidate_path(self._directory.path, evaluation.job)
        if best and candidate.exists():
            candidate.replace(self._directory.path / "best.keras")
        else:
            candidate.unlink(missing_ok=True)  # another rank was better in the meantime

    def _forget_models(self, jobs: Sequence[int]) -> None:
        """Retire models that jobs without a result may have stored.

        The jobs are to be done again, and would inherit whole models from themselves.
        """
        if jobs:
            self._retire(jobs)

    def _adopt_candidates(self) -> None:
        """Decide on the models that a killed process left undecided."""
        if self._best is not None:
            self._keep_model(self._best, best=True)
        for candidate in self._directory.path.glob("candidate-*.keras"):
            candidate.unlink()


def candidate_path(directory: Path, job: Job) -> Path:
    """Where a rank writes a model that may be the best, until the manager has decided."""
    return directory / f"candidate-{job.id}.keras"


def evaluate(
    evaluator: Evaluator,
    job: Job,
    *,
    best_objective: float,
    directory: Path,
    log: Callable[[str], None],
) -> Evaluation:
    """Evaluate a job; what goes wrong in it becomes a failure.

    A model that beats `best_objective` is written down at once: later it may have been retired.

    Parameters
    ----------
    evaluator
        Who does it.
    job
        The job.
    best_objective
        Best objective that the manager knew when it handed out the job.
    directory
        The run directory.
    log
        Takes the traceback of a failure.
    """
    try:
        evaluation = evaluator.evaluate(job)
        if evaluation.done and not math.isfinite(evaluation.objective):
            log(f"job {job.id}: objective {evaluation.objective}")
            return Evaluation.failure(job, "nan", evaluation.measures)
        if evaluation.done and evaluation.objective > best_objective:
            evaluator.save_model(candidate_path(directory, job))
        return evaluation
    except Exception as error:  # whatever a user's application raises must not end the search
        log(f"job {job.id} failed:\n{traceback.format_exc()}")
        return Evaluation.failure(job, type(error).__name__)
