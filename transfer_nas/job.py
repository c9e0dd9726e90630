"""What travels between the search and those who evaluate: a job, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Measure = float | int | str
"""A value of one of the ``m:*`` columns."""

Report = Callable[[int, Mapping[str, float]], bool]
"""Takes an epoch of a job, from 1, and its values by name; returns whether the job shall stop.

Never waits: the answer may be that to an earlier epoch."""

DONE = "DONE"

_LONGEST_ERROR = 300  # characters; the rest is in the log


@dataclass(frozen=True, slots=True)
class Job:
    """One candidate to evaluate.

    Attributes
    ----------
    id
        Number of the job in its search, from 0 in the order of asking.
    architecture
        What to build and train, as the space of the search has it. For a space of genes, the
        position of each gene's value among the gene's values.
    parent
        Id of the job whose architecture was mutated; None for a random one.
    seed
        Seed of everything random in the evaluation; a function of the search's seed and of `id`.
    epochs
        Epochs that the candidate shall have trained in all; None: as many as the evaluator likes.
    trained
        How many of them the parent's model has trained already: the architecture is the same, and
        with the parent's weights the remaining epochs are enough.
    """

    id: int
    architecture: tuple[int, ...]
    parent: int | None = None
    seed: int = 0
    epochs: int | None = None
    trained: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; without `epochs` unless the search decides on them."""
        fields = {
            "id": self.id,
            "architecture": self.architecture,
            "parent": self.parent,
            "seed": self.seed,
        }
        if self.epochs is not None:
            fields |= {"epochs": self.epochs, "trained": self.trained}
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Job:
        """Undo `to_dict`; raises KeyError, TypeError or ValueError for anything else."""
        parent, epochs = fields["parent"], fields.get("epochs")
        # Earlier versions called it the genome.
        architecture = fields["architecture" if "architecture" in fields else "genome"]
        return cls(
            id=int(fields["id"]),
            architecture=tuple(map(int, architecture)),
            parent=None if parent is None else int(parent),
            seed=int(fields["seed"]),
            epochs=None if epochs is None else int(epochs),
            trained=int(fields.get("trained", 0)),
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What became of a job.

    Attributes
    ----------
    job
        The job.
    status
        ``DONE``, or ``F_`` and the reason of the failure.
    objective
        What the search maximises; NaN if it failed.
    measures
        The ``m:*`` columns, without the ``m:``.
    """

    job: Job
    status: str
    objective: float
    measures: Mapping[str, Measure] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether it worked."""
        return self.status == DONE

    @classmethod
    def failure(
        cls,
        job: Job,
        reason: str,
        measures: Mapping[str, Measure] | None = None,
        *,
        error: str | BaseException = "",
    ) -> Evaluation:
        """Return the evaluation of a job that failed.

        Parameters
        ----------
        job
            The job.
        reason
            One word, for the status.
        measures
            What is known of the evaluation.
        error
            What went wrong, for people: the measure ``error``, one line of at most 300 characters.
            An exception is written as its class and its message.
        """
        known = dict(measures or {})
        if error:
            known["error"] = one_line(error)
        return cls(job, f"F_{reason}", math.nan, known)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values (which know no NaN: a failure's objective is None)."""
        return {
            "job": self.job.to_dict(),
            "status": self.status,
            "objective": None if math.isnan(self.objective) else self.objective,
            "measures": dict(self.measures),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Evaluation:
        """Undo `to_dict`; raises KeyError, TypeError or ValueError for anything else."""
        objective = fields["objective"]
        return cls(
            job=Job.from_dict(fields["job"]),
            status=str(fields["status"]),
            objective=math.nan if objective is None else float(objective),
            measures=dict(fields["measures"]),
        )


def one_line(error: str | BaseException) -> str:
    """Return what went wrong in one line: of an exception, its class and its message."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    line = " ".join(text.split()).removesuffix(":")
    return line if len(line) <= _LONGEST_ERROR else f"{line[: _LONGEST_ERROR - 1]}…"
