"""TensorBoard event files of a search, without TensorFlow: ``evolve --tensorboard``.

Scalars over the number of evaluations, at the time when the manager had the result. The files are
in ``tensorboard/`` of the run directory, a new one for each start. For TensorBoard's HPARAMS, each
evaluation is a session of its own, ``tensorboard/job-N``: its genes, and what it measured. A
session is a directory, and TensorBoard reads them all, so that after the first thousand only those
follow that improve the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cpp_store import extras
from transfer_nas.best import beats
from transfer_nas.errors import InputError
from transfer_nas.job import Evaluation
from transfer_nas.values import Value

_SESSIONS = 1_000
_MEASURED = ("parameters", "layers", "layers_transferred", "train_seconds")
_SECONDS = ("match", "build", "load", "train", "store")


class EventFile:
    """Takes evaluations in the order in which they are told. One thread.

    Parameters
    ----------
    directory
        The run directory.
    started
        When the run began, in seconds since the epoch.
    genes
        The values of each gene.
    before
        Evaluations that an earlier process of the run has written.
    values
        What the application declares.

    Raises
    ------
    InputError
        tensorboardX is not installed.
    """

    def __init__(
        self,
        directory: Path,
        started: float,
        genes: Mapping[str, Sequence[Any]],
        before: Sequence[Evaluation] = (),
        values: Sequence[Value] = (),
    ) -> None:
        check()
        import tensorboardX

        self._folder = directory / "tensorboard"
        self._genes = genes
        self._started = started
        self._step = self._failures = self._stored = self._whole = 0
        self._values = [value.name for value in values if value.kind is not str]
        self._measured = (*_MEASURED, *self._values)
        self._best: Evaluation | None = None
        for evaluation in before:
            self._count(evaluation)
        # Waits a minute at most until what is written can be seen, or until 10 evaluations.
        self._writer = tensorboardX.SummaryWriter(str(self._folder), flush_secs=30)

    def write(self, evaluation: Evaluation) -> None:
        """Write the scalars of an evaluation."""
        before = self._best
        self._count(evaluation)
        measures = evaluation.measures
        scalars = {"search/failures": float(self._failures)}
        if evaluation.done:
            scalars["objective/evaluation"] = evaluation.objective
            scalars["objective/best"] = (self._best or evaluation).objective
        if self._whole:
            scalars["storage/stored_bytes"] = float(self._stored)
            scalars["storage/whole_copies_bytes"] = float(self._whole)
        layers = float(measures.get("layers", 0))
        if evaluation.job.parent is not None and layers:
            scalars["transfer/share_of_layers"] = float(measures["layers_transferred"]) / layers
        for name in _SECONDS:
            if f"{name}_seconds" in measures:
                scalars[f"seconds/{name}"] = float(measures[f"{name}_seconds"])
        for name in self._values:
            if name in measures:
                scalars[f"values/{name}"] = float(measures[name])
        when = self._started + float(measures.get("timestamp_gather", 0.0))
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, self._step, walltime=when)
        if self._step <= _SESSIONS or self._best is not before:
            self._write_session(evaluation, when)

    def _write_session(self, evaluation: Evaluation, when: float) -> None:
        """Write what TensorBoard's HPARAMS shows of an evaluation."""
        from tensorboardX import FileWriter
        from tensorboardX.summary import hparams, scalar

        genes = {
            name: _value(values[code])
            for (name, values), code in zip(
                self._genes.items(), evaluation.job.architecture, strict=True
            )
        }
        measured = {
            f"hparams/{name}": float(evaluation.measures[name])
            for name in self._measured
            if name in evaluation.measures
        }
        if evaluation.done:
            measured = {"hparams/objective": evaluation.objective, **measured}
        # Of a resumed run, the process before may have written it too: the same again.
        writer = FileWriter(str(self._folder / f"job-{evaluation.job.id}"))
        # Every session lists all metrics: those of the first one are the columns of the table.
        names = {f"hparams/{name}": 0.0 for name in ("objective", *self._measured)}
        for summary in hparams(genes, names):
            writer.add_summary(summary, self._step, walltime=when)
        for name, value in measured.items():
            writer.add_summary(scalar(name, value), self._step, walltime=when)
        writer.close()

    def __enter__(self) -> EventFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def _count(self, evaluation: Evaluation) -> None:
        self._step += 1
        self._failures += not evaluation.done
        self._stored += int(evaluation.measures.get("bytes_stored", 0))
        if evaluation.done:
            self._best = evaluation if beats(evaluation, self._best) else self._best
            self._whole += int(evaluation.measures.get("bytes_whole_copy", 0))


def _value(value: Any) -> bool | float | str:
    """Return a gene's value as HPARAMS knows them: numbers, truth values, texts."""
    return value if isinstance(value, bool | int | float) else str(value)


def check() -> None:
    """Raise InputError unless event files can be written."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--tensorboard needs tensorboardX, which is not installed: "
            f"{extras.install('tensorboard')}"
        ) from error
