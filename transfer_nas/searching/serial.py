"""Drives a search in one process."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from transfer_nas import tracing
from transfer_nas.searching.evaluation import Evaluate
from transfer_nas.searching.interruption import Interrupted, Interruption
from transfer_nas.searching.manager import Manager


def run(manager: Manager, evaluate: Evaluate, interruption: Interruption) -> None:
    """Evaluate one job after the other until there are no more, or until interrupted.

    Parameters
    ----------
    manager
        The search.
    evaluate
        Evaluates.
    interruption
        Entered by the caller, so that a timeout covers what the caller wants it to cover.
    """
    while interruption.reason is None:
        with tracing.span("ask"):
            jobs = manager.next_jobs(1)
            manager.commit()
        if not jobs:
            return
        (job,) = jobs
        best = manager.best_objective
        try:
            with interruption.evaluating(), tracing.span("evaluate", job=job.id):
                if manager.wants_reports:
                    report = functools.partial(_report, manager, interruption, job.id)
                    evaluation = evaluate(job, best, report)
                else:
                    evaluation = evaluate(job, best)
        except Interrupted:
            manager.abandoned(job)
            return
        with tracing.span("tell"):
            manager.finished(evaluation, rank=0)
    manager.commit()


def _report(
    manager: Manager, interruption: Interruption, job: int, step: int, values: Mapping[str, float]
) -> bool:
    with interruption.held_off():
        return manager.report(job, step, values)
