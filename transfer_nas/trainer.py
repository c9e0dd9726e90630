"""Evaluates candidates: each starts from the weights of the stored model that shares its prefix."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from graph_meta import LayerGraph
from transfer_nas import loops
from transfer_nas.applications import Application
from transfer_nas.errors import InputError, TransferError, TransferUnavailable, near_misses
from transfer_nas.job import DONE, Evaluation, Job, Measure
from transfer_nas.spaces import Space
from transfer_nas.transfer import Inheritance, NoTransfer, Tensors, TransferMethod

if TYPE_CHECKING:
    import keras

POLICIES = ("freeze", "finetune", "freeze_then_finetune")

_log = logging.getLogger(__name__)


class TransferTrainer:
    """Builds, trains, judges and stores the model of one genome after the other.

    Keras and its backend are imported at the first evaluation. From then on the process belongs to
    evaluations: Keras' session is cleared and its seed set before each.

    One thread evaluates; `retire` may be called from another at any time.

    Parameters
    ----------
    application
        Data, loss, metric, optimizer.
    space
        Turns genomes into layer graphs.
    transfer
        Where models are put and found; it stays the caller's.
    policy
        What becomes of inherited layers. ``freeze``: they stay as they are, and only the others
        train. ``finetune``: all train; the model shares with its ancestor what did not change.
        ``freeze_then_finetune``: the first half of the epochs (the larger, of an odd number)
        frozen, then all.
    epochs, batch_size
        None: the application's.
    run
        Distinguishes the models of this search from those of others in the same place: the model
        of job 7 is called ``run/7``; without `run`, ``7``.

    Raises
    ------
    InputError
        The policy is unknown.
    """

    def __init__(
        self,
        application: Application,
        space: Space,
        transfer: TransferMethod,
        *,
        policy: str = "freeze",
        epochs: int | None = None,
        batch_size: int | None = None,
        run: str = "",
    ) -> None:
        if policy not in POLICIES:
            raise InputError(f"unknown policy {policy!r}; {near_misses(policy, POLICIES)}")
        self.application = application
        self.space = space
        self.policy = policy
        self.epochs = application.epochs if epochs is None else epochs
        self.batch_size = application.batch_size if batch_size is None else batch_size
        self._run = run
        self._transfer = transfer
        self._said: set[type[TransferError]] = set()
        self._unreported: dict[str, Measure] = {}  # what failed in `retire`: the next one says so
        self._loop: loops.TrainingLoop | None = None
        self._last: _Candidate | None = None

    def evaluate(self, job: Job) -> Evaluation:
        """Train the model of a job's genome and judge it on the validation rows.

        Parameters
        ----------
        job
            Its seed decides on initial weights, order of rows and dropout: equal jobs that find
            equal ancestors have equal objectives.

        Returns
        -------
        Evaluation
            With the measures ``ancestor`` (model id), ``layers``, ``layers_transferred``,
            ``parameters``, ``bytes_transferred``, ``bytes_stored``, ``bytes_whole_copy`` (what the
            model takes without sharing), ``match_seconds``,
            ``load_seconds`` (reading and setting weights), ``train_seconds`` (building, compiling,
            training, judging), ``store_seconds``, and ``transfer_error`` where the transfer method
            failed (the candidate then goes without it). ``F_nan`` if objective or loss is not a
            finite number; ``F_`` and the exception's name for whatever building or training
            raised. Nothing but what is no `Exception` is raised.
        """
        self._last = None  # its memory is needed now
        measures: dict[str, Measure] = {}
        try:
            candidate, objective = self._evaluate(job, measures)
        except Exception as error:  # a user's application may raise anything
            _log.exception("job %d failed", job.id)
            return Evaluation.failure(job, type(error).__name__, measures)
        if not math.isfinite(objective):
            _log.warning("job %d failed: loss or objective is not a finite number", job.id)
            return Evaluation.failure(job, "nan", measures)
        self._last = candidate
        return Evaluation(job, DONE, objective, measures)

    def save_model(self, path: Path) -> None:
        """Write the model of the last evaluation that worked, as a ``.keras`` file.

        The file holds a compiled model, all layers trainable, its optimizer as at the start; plain
        Keras opens it (custom layers need their classes registered, as always).
        """
        if self._last is None:
            raise ValueError("no evaluation has worked yet: there is no model to save")
        from graph_meta import keras_io

        model = keras_io.to_keras(self._last.graph)
        keras_io.set_weights(model, keras_io.get_weights(self._last.model))
        self._compile(model)
        model.optimizer.build(model.trainable_variables)  # else Keras warns when it opens the file
        model.save(path)

    def retire(self, jobs: Iterable[int]) -> None:
        """Take the models of jobs out of the candidates for ancestors."""
        try:
            self._transfer.retire([self._model_id(job) for job in jobs])
        except TransferError as error:
            self._without_transfer(error, self._unreported)

    def _evaluate(self, job: Job, measures: dict[str, Measure]) -> tuple[_Candidate, float]:
        """Return the trained candidate, stored unless it is worthless, and its objective."""
        graph = self.space.graph(job.genome)
        measures |= {
            "layers": len(graph),
            "layers_transferred": 0,
            "parameters": graph.parameters,
            "bytes_transferred": 0,
            "bytes_stored": 0,
            "bytes_whole_copy": graph.nbytes,
        }
        if self._unreported:
            measures["transfer_error"] = self._unreported.popitem()[1]
        loop = self._start(job.seed)
        with contextlib.ExitStack() as leases:
            with _timed(measures, "match_seconds"):
                inheritance = self._best_match(graph, measures)
            if inheritance is not None:
                leases.enter_context(inheritance)
            with _timed(measures, "train_seconds"):
                candidate = _Candidate.build(graph)
            if inheritance is not None:
                with _timed(measures, "load_seconds"):
                    self._load(candidate, inheritance, measures)
            with _timed(measures, "train_seconds"):
                self._train(job, candidate, loop)
                objective = self._objective(loop.validate(candidate.model))
            if math.isfinite(objective):
                with _timed(measures, "store_seconds"):
                    self._put(job, candidate, objective, inheritance, measures)
        return candidate, objective

    def _start(self, seed: int) -> loops.TrainingLoop:
        """Give the candidate a session as if it were the first of the process."""
        import keras

        if self._loop is None:
            self._loop = loops.make(self.application.data, self.batch_size)
            # Keras' objects are cycles, so each candidate's memory comes back by a collection.
            # That of a process with TensorFlow in it takes 0.2 s unless what stays is set apart.
            gc.collect()
            gc.freeze()
        keras.utils.clear_session()
        keras.utils.set_random_seed(seed % 2**32)
        return self._loop

    def _best_match(self, graph: LayerGraph, measures: dict[str, Measure]) -> Inheritance | None:
        try:
            return self._transfer.best_match(graph)
        except TransferError as error:
            self._without_transfer(error, measures)
            return None

    def _load(
        self, candidate: _Candidate, inheritance: Inheritance, measures: dict[str, Measure]
    ) -> None:
        try:
            candidate.load(inheritance.read())
        except TransferError as error:
            self._without_transfer(error, measures)
        else:
            measures["ancestor"] = inheritance.ancestor
            measures["layers_transferred"] = len(inheritance.layers)
            measures["bytes_transferred"] = inheritance.nbytes

    def _train(self, job: Job, candidate: _Candidate, loop: loops.TrainingLoop) -> None:
        """Train by the policy; leave the model compiled."""
        model, rng = candidate.model, np.random.default_rng(job.seed)
        for frozen, epochs in self._phases(job, candidate):
            candidate.freeze(frozen)
            self._compile(model)
            if epochs and model.trainable_variables:
                loop.train(model, epochs, rng)

    def _phases(self, job: Job, candidate: _Candidate) -> Iterator[tuple[bool, int]]:
        """Yield whether inherited layers are frozen and for how many epochs."""
        epochs = self.epochs if job.epochs is None else job.epochs
        if job.trained and candidate.inherits_everything():
            yield False, epochs - job.trained  # it goes on with what it was: nothing is frozen
        elif not candidate.loaded or self.policy == "finetune":
            yield False, epochs
        elif self.policy == "freeze":
            yield True, epochs
        else:
            yield True, epochs - epochs // 2
            yield False, epochs // 2

    def _compile(self, model: keras.Model) -> None:
        import keras

        optimizer = keras.optimizers.get(self.application.optimizer)
        optimizer.learning_rate = self.application.learning_rate
        jax = keras.backend.backend() == "jax"  # it has no other way to run fast
        model.compile(
            optimizer=optimizer,
            loss=self.application.loss,
            metrics=[self.application.metric],
            jit_compile=jax,
        )

    def _objective(self, logs: dict[str, float]) -> float:
        """Return what is maximised; NaN if the loss is not a finite number."""
        if not math.isfinite(logs.pop("loss")):
            return math.nan
        (value,) = logs.values()
        return value if self.application.mode == "max" else -value

    def _put(
        self,
        job: Job,
        candidate: _Candidate,
        objective: float,
        inheritance: Inheritance | None,
        measures: dict[str, Measure],
    ) -> None:
        inherited = candidate.unchanged()
        try:
            measures["bytes_stored"] = self._transfer.put(
                self._model_id(job.id),
                candidate.graph,
                candidate.tensors(inherited),
                score=objective,
                parent="" if job.parent is None else self._model_id(job.parent),
                inheritance=inheritance if inherited else None,
                inherited=inherited,
            )
        except TransferError as error:
            self._without_transfer(error, measures)

    def _without_transfer(self, error: TransferError, measures: dict[str, Measure]) -> None:
        """Record a failure of the transfer method; if nothing answers it any more, leave it be."""
        measures["transfer_error"] = f"{type(error).__name__}: {error}"
        gone = isinstance(error, TransferUnavailable)
        if gone:
            self._transfer = NoTransfer()
        if type(error) not in self._said:
            self._said.add(type(error))
            what = "the search goes on without transfer" if gone else "the search goes on"
            _log.warning("transfer failed, %s: %s", what, error)

    def _model_id(self, job: int) -> str:
        return f"{self._run}/{job}" if self._run else str(job)


@dataclass
class _Candidate:
    """A model in training.

    Attributes
    ----------
    graph
        What it is.
    model
        The Keras model; its layers carry the stable names of `graph`.
    loaded
        The inherited tensors, as they were.
    frozen
        Whether the inherited layers were kept from training all the time.
    """

    graph: LayerGraph
    model: keras.Model
    loaded: Tensors
    frozen: bool = True

    @classmethod
    def build(cls, graph: LayerGraph) -> _Candidate:
        from graph_meta import keras_io

        return cls(graph, keras_io.to_keras(graph), {})

    def load(self, tensors: Tensors) -> None:
        from graph_meta import keras_io

        keras_io.set_weights(self.model, tensors)
        self.loaded = tensors

    def inherits_everything(self) -> bool:
        """Whether all weights were inherited."""
        return bool(self.loaded) and all(
            layer.name in self.loaded for layer in self.model.layers if layer.weights
        )

    def freeze(self, frozen: bool) -> None:
        """Keep inherited layers from training, statistics included, or let them train."""
        for name in self.loaded:
            self.model.get_layer(name).trainable = not frozen
        self.frozen = self.frozen and frozen

    def unchanged(self) -> set[str]:
        """Return the names of inherited layers whose tensors are still what they were, bit by bit.

        What was frozen can have changed only where a layer keeps statistics of its own accord.
        """
        specs = dict(
            zip(self.graph.names, (layer.spec for layer in self.graph.layers), strict=True)
        )
        return {
            name
            for name, tensors in self.loaded.items()
            if (self.frozen and all(weight.trainable for weight in specs[name].weights))
            or _same_bits(tensors, self.model.get_layer(name).get_weights())
        }

    def tensors(self, inherited: Collection[str]) -> Tensors:
        """Return the tensors of all layers but the inherited ones."""
        return {
            layer.name: layer.get_weights()
            for layer in self.model.layers
            if layer.weights and layer.name not in inherited
        }


def _same_bits(
    before: Iterable[npt.NDArray[np.generic]], after: Iterable[npt.NDArray[np.generic]]
) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True))


@contextlib.contextmanager
def _timed(measures: dict[str, Measure], name: str) -> Iterator[None]:
    """Add the seconds that the block takes, to what there is already."""
    begin = time.perf_counter()
    try:
        yield
    finally:
        measures[name] = float(measures.get(name, 0.0)) + time.perf_counter() - begin
