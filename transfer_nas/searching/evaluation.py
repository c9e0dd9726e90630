"""One evaluation in a worker: what goes wrong in it becomes a failure."""

from __future__ import annotations

import dataclasses
import errno
import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from transfer_nas import tracing, trained_model
from transfer_nas.errors import Unwritable, writing
from transfer_nas.job import Evaluation, Job, Report
from transfer_nas.spaces import Space

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a disk that say nothing about the candidate: of its checkpoint, of the rank's log."""


class Evaluate(Protocol):
    """What the hosts (`serial.py`, `mpi.py`) need of a worker.

    `InProcess` does it in this process, `isolation.InChild` in another.
    """

    def __call__(
        self, job: Job, best_objective: float, report: Report | None = None, /
    ) -> Evaluation:
        """Evaluate a job; nothing but `Interrupted` and `Unwritable` is raised.

        Parameters
        ----------
        job
            The job.
        best_objective
            The best that the manager knew when it handed out the job.
        report
            Takes its epochs; None: the algorithm does not want to know.
        """


class Evaluator(Protocol):
    """Who evaluates; one in each process.

    Attributes
    ----------
    space
        Has the architectures of the jobs.
    """

    space: Space

    def evaluate(self, job: Job, report: Report | None = None) -> Evaluation:
        """Evaluate a job; what it raises becomes a failure ``F_…``, unless it found no room.

        Called without `report` unless the algorithm wants to know of epochs.
        """

    def save_model(self, path: Path) -> None:
        """Write the model of the last evaluation that was done, as `trained_model` does."""


class InProcess:
    """Lets an evaluator of this process evaluate.

    A model that beats the best objective is written down at once: later it may have been retired.

    Parameters
    ----------
    evaluator
        Who does it.
    directory
        The run directory.
    log
        Takes the traceback of a failure.
    """

    def __init__(self, evaluator: Evaluator, directory: Path, log: Callable[[str], None]) -> None:
        self._evaluator = evaluator
        self._directory = directory
        self._log = log

    def __call__(
        self, job: Job, best_objective: float, report: Report | None = None, /
    ) -> Evaluation:
        """Evaluate; adds when, in seconds since the epoch."""
        start = time.time()
        evaluation = self._evaluate(job, best_objective, report)
        measures = {
            **evaluation.measures,
            "timestamp_start": start,
            "timestamp_end": time.time(),
        }
        return dataclasses.replace(evaluation, measures=measures)

    def _evaluate(self, job: Job, best_objective: float, report: Report | None) -> Evaluation:
        try:
            # Without it as long as nobody wants to know: then an evaluator need not know of it.
            arguments = (job,) if report is None else (job, report)
            evaluation = self._evaluator.evaluate(*arguments)
            if evaluation.done and not math.isfinite(evaluation.objective):
                self._log(f"job {job.id}: objective {evaluation.objective}")
                return Evaluation.failure(
                    job,
                    "nan",
                    evaluation.measures,
                    error=f"the objective is {evaluation.objective}, not a finite number",
                )
            if evaluation.done and evaluation.objective > best_objective:
                with tracing.span("save model"), writing(self._directory):
                    self._evaluator.save_model(candidate_path(self._directory, job))
            return evaluation
        except Unwritable:
            raise
        except Exception as error:  # whatever a user's application raises must not end the search
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise Unwritable(f"job {job.id} found no room on a disk: {error}") from error
            self._log(f"job {job.id} failed:\n{traceback.format_exc()}")
            return Evaluation.failure(job, type(error).__name__, error=error)


def candidate_path(directory: Path, job: Job) -> Path:
    """Where a rank writes a model that may be the best, until the manager has decided."""
    return directory / f"candidate-{job.id}{trained_model.SUFFIX}"


def checkpoints_path(directory: Path) -> Path:
    """Where evaluations save how far they are, each in the section of its job's id."""
    return directory / "evaluations"
