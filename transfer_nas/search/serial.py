"""Drives a search in one process."""

from __future__ import annotations

from collections.abc import Callable

from transfer_nas.search.interruption import Interrupted, Interruption
from transfer_nas.search.manager import Evaluator, Manager, evaluate


def run(
    manager: Manager,
    evaluator: Evaluator,
    interruption: Interruption,
    *,
    log: Callable[[str], None],
) -> None:
    """Evaluate one job after the other until there are no more, or until interrupted.

    Parameters
    ----------
    manager
        The search.
    evaluator
        Who evaluates.
    interruption
        Entered by the caller, so that a timeout covers what the caller wants it to cover.
    log
        Takes what is worth a line in this rank's log.
    """
    while interruption.reason is None:
        job = manager.next_job()
        if job is None:
            return
        try:
            with interruption.evaluating():
                evaluation = evaluate(
                    evaluator,
                    job,
                    best_objective=manager.best_objective,
                    directory=manager.path,
                    log=log,
                )
        except Interrupted:
            manager.abandoned(job)
            return
        manager.finished(evaluation, rank=0)
