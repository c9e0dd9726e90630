"""Keeps the best models of a search, and trains them fully when it is over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cpp_store import files
from transfer_nas.applications import Application
from transfer_nas.best import ranking
from transfer_nas.job import Evaluation, Job
from transfer_nas.trainer import TransferTrainer
from transfer_nas.training.policy import Policy

_RETRAINED = 2**40
"""Added to a job's id: the id under which its retrained model is stored."""


class Finalists:
    """The best models so far; they are not retired though they die.

    Not thread-safe: the manager's thread owns it.

    Parameters
    ----------
    count
        How many.
    retire
        Takes models of jobs out of the candidates for ancestors.
    evaluations
        Those of an earlier process.

    Attributes
    ----------
    best
        The best evaluations, the best first.
    """

    def __init__(
        self,
        count: int,
        retire: Callable[[Sequence[int]], None],
        evaluations: Iterable[Evaluation] = (),
    ) -> None:
        self._count = count
        self._retire = retire
        self.best: list[Evaluation] = []
        self._kept: set[int] = set()  # dead, and not retired yet
        for evaluation in evaluations:
            self.observe(evaluation)

    def observe(self, evaluation: Evaluation) -> None:
        """Take note of an evaluation."""
        if not self._count or not evaluation.done:
            return
        told = [*self.best, evaluation]
        ranked = [told[i] for i in ranking([each.objective for each in told])]
        self.best = ranked[: self._count]
        for displaced in ranked[self._count :]:
            if displaced.job.id in self._kept:
                self._kept.remove(displaced.job.id)
                self._retire([displaced.job.id])

    def retire(self, jobs: Sequence[int]) -> None:
        """Retire models, but for the best."""
        best = {evaluation.job.id for evaluation in self.best}
        self._kept |= best.intersection(jobs)
        others = [id for id in jobs if id not in best]
        if others:
            self._retire(others)


def retrain(
    finalists: Sequence[Evaluation],
    trainer: TransferTrainer,
    directory: Path,
    say: Callable[[str], None],
    candidates: int,
) -> list[dict[str, Any]]:
    """Train models fully, from the weights that they have, and test them.

    For their application's epochs, or those of the search if they are more, with a learning rate
    that falls along a cosine. Nothing is frozen but what their space has frozen. A model whose
    weights are gone starts from what is stored of others.

    Parameters
    ----------
    finalists
        Their evaluations in the search.
    trainer
        Of the search.
    directory
        Where ``retrained-JOB.keras`` and ``retrained.json`` are written.
    say
        Takes lines about each.
    candidates
        From how many they were chosen by their validation rows.

    Returns
    -------
    list of dict
        What ``retrained.json`` says of each: job, objectives in the search and now, what it gives
        on the test rows (loss and metrics), epochs, file.
    """
    epochs = max(trainer.application.epochs, trainer.epochs)
    # With a constant rate, what the last steps come to is a matter of luck.
    policy = Policy("finetune", child_epochs=epochs, schedule="cosine")
    fully = trainer.with_policy(policy, epochs)
    results = []
    for number, before in enumerate(finalists, 1):
        found = before.job
        say(f"retraining job {found.id} for {fully.epochs} epochs ({number} of {len(finalists)})")
        after = fully.evaluate(Job(found.id + _RETRAINED, found.architecture, found.id, found.seed))
        result: dict[str, Any] = {
            "job": before.job.id,
            "objective_in_search": before.objective,
            "objective": after.objective if after.done else None,
            "status": after.status,
            "chosen_from": candidates,
            "test": None,
            "epochs": after.measures.get("epochs"),
        }
        if after.done:
            result["model"] = f"retrained-{before.job.id}.keras"
            fully.save_model(directory / result["model"])
            result["test"] = fully.tested()
        results.append(result)
        say(f"  {in_words(result, trainer.application)}")
    files.write_text(directory / "retrained.json", json.dumps(results, indent=2) + "\n")
    return results


def in_words(result: Mapping[str, Any], application: Application) -> str:
    """Return what came of a finalist, validation and test side by side."""
    if result["objective"] is None:
        return f"job {result['job']}: {result['status']}"
    value, name = application.natural(result["objective"]), application.objective_name
    valid = f"job {result['job']}: {name} {value:.4f} on the validation rows"
    if result["test"] is None:
        return valid
    test = result["test"].get(application.tested_name)
    count = application.data.count("test")
    return (
        f"{valid}, by which it is the best of {result['chosen_from']:,}; "
        f"{application.tested_name} {test:.4f} on {count:,} test rows that no search saw"
    )
