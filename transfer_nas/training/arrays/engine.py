"""Trains small networks in NumPy: no model to build, nothing to trace, no TensorFlow to import.

A search trains thousands of networks of different shapes for a second or less each. With Keras on
TensorFlow, three quarters of the time of such an evaluation go into building the model, tracing its
training step and preparing the trace, and no two networks share any of that. Here a network is a
list of NumPy calls, made in a millisecond.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_meta import LayerGraph
from transfer_nas.applications import Application, Arrays, Terms, as_tuple
from transfer_nas.applications._terms import SCORES
from transfer_nas.training import statistics
from transfer_nas.training._base import Candidate, Engine
from transfer_nas.training.arrays.layers import Array, BatchNormalization
from transfer_nas.training.arrays.losses import LOSSES, METRICS
from transfer_nas.training.arrays.optimizers import OPTIMIZERS
from transfer_nas.training.arrays.plan import Plan, new_weights, unknown
from transfer_nas.training.arrays.program import ArrayTraining, Program, limited
from transfer_nas.training.scores import score
from transfer_nas.transfer import Tensors

_CHUNK = 1024  # rows to judge at once

_ONE_THREAD = 2**22
"""Multiplications of a layer, for a batch, up to which other threads cost more than they do."""

_MOST_WORK = 2 * 10**12
"""Multiplications of a training up to which it is a small one: some twenty seconds."""


class ArrayEngine(Engine):
    """Candidates of NumPy arrays.

    Results are those of Keras but for rounding, and for the random numbers: initial weights and
    dropout come from the same distributions, not from the same generators.

    Parameters
    ----------
    application
        Its loss, metric and optimizer must be known here (`misfit`).
    batch_size
        Rows a step.
    epochs
        Epochs of a training; with the number of rows, tells a small network from a large one.
    """

    name = "numpy"

    def __init__(self, application: Application, batch_size: int, epochs: int) -> None:
        self._terms = application.terms
        self._batch_size = batch_size
        self._rows = _Rows.of(application)
        self._epochs = epochs

    @staticmethod
    def misfit(application: Application) -> str | None:
        """Return what of an application is not known here; None: nothing."""
        data, terms = application.data, application.terms
        if not (data.in_memory("train") and data.in_memory("valid")):
            return "data that is not in memory"
        if application.augment is not None:
            return "augmentation"
        if len(terms.outputs) > 1 or isinstance(data.y_train, tuple):
            return "several outputs"
        metrics = terms.outputs[0].metrics.values()
        known = [("loss", terms.loss, LOSSES), ("optimizer", terms.optimizer, OPTIMIZERS)]
        known += [("metric", metric, {**METRICS, **dict.fromkeys(SCORES)}) for metric in metrics]
        for what, name, names in known:
            if not isinstance(name, str) or name not in names:
                return f"the {what} {name!r}" if isinstance(name, str) else f"a {what} of one's own"
        for metric in metrics:
            if metric not in SCORES and _is_sparse(terms.loss) != _is_sparse(metric):
                return f"{metric} beside {terms.loss}"
        if application.initial_rate is None:
            return "a learning rate of each step"
        if application.precision != "float32":
            return f"the precision {application.precision}"
        if any(callback.needs_model for callback in application.watchers):
            return "callbacks of one's own"
        if any(x.dtype.kind not in "fiu" for x in as_tuple(data.x_train)):
            return "inputs that are no numbers"
        return None

    def obstacle(self, graph: LayerGraph) -> str | None:
        """See `Engine`: a layer, an end that does not go with the loss, or its size."""
        # Forward, gradients of weights, gradients of inputs.
        work = 3 * graph.parameters * len(self._rows.y_train) * self._epochs
        if work > _MOST_WORK:
            return "takes longer in NumPy, as it is so large"
        plan = Plan.of(graph)
        if plan is None:
            return f"has what the NumPy engine does not know: {unknown(graph)}"
        loss, y = self._terms.loss, self._rows.y_train
        after = LOSSES[loss].after
        last = plan.steps[-1] if plan.steps else None
        if (
            len(plan.inputs) != len(self._rows.x_train)
            or last is None
            or last.output != plan.output
            # Keras broadcasts, or complains.
            or y.size != len(y) * (1 if _is_sparse(loss) else last.size)
            or (after is not None and last.config.get("activation") != after)
        ):
            return f"does not end in what the NumPy engine takes with {loss}"
        return None

    def candidate(self, graph: LayerGraph, seed: int) -> ArrayCandidate:
        """See `Engine`."""
        return ArrayCandidate(graph, seed, self._rows, self._terms, self._batch_size)


def _is_sparse(name: str) -> bool:
    """Whether a loss or metric takes the numbers of classes."""
    return name.startswith("sparse_")


@dataclass(frozen=True)
class _Rows:
    """The data, inputs as float32."""

    x_train: list[Array]
    y_train: npt.NDArray[np.generic]
    x_valid: list[Array]
    y_valid: npt.NDArray[np.generic]
    w_train: Array | None

    @classmethod
    def of(cls, application: Application) -> _Rows:
        def floats(arrays: Arrays) -> list[Array]:
            return [np.ascontiguousarray(array, np.float32) for array in as_tuple(arrays)]

        data = application.data
        assert isinstance(data.y_train, np.ndarray) and isinstance(data.y_valid, np.ndarray)
        x_train, x_valid = floats(data.x_train), floats(data.x_valid)
        weights = None if data.w_train is None else np.asarray(data.w_train, np.float32)
        return cls(x_train, data.y_train, x_valid, data.y_valid, weights)


class ArrayCandidate(Candidate):
    """A network of NumPy arrays."""

    def __init__(
        self,
        graph: LayerGraph,
        seed: int,
        rows: _Rows,
        terms: Terms,
        batch_size: int,
    ) -> None:
        plan = Plan.of(graph)
        assert plan is not None
        self.graph = graph
        self._plan = plan
        self._rows = rows
        self._terms = terms
        self._batch_size = batch_size
        initial, self._rng = np.random.default_rng(seed).spawn(2)
        self._specs = {
            name: layer.spec
            for name, layer in zip(graph.names, graph.layers, strict=True)
            if layer.spec.weights
        }
        self._trainable: dict[str, list[bool]] = {}
        self._weights = {name: new_weights(spec, initial) for name, spec in self._specs.items()}
        largest = max((spec.parameters for spec in self._specs.values()), default=0)
        self._threads = 1 if largest * batch_size <= _ONE_THREAD else None

    def load(self, tensors: Tensors) -> None:
        """See `Candidate`."""
        for name, arrays in tensors.items():
            for weight, array in zip(self._weights[name], arrays, strict=True):
                weight[...] = array

    def tensors(self, names: Collection[str]) -> Tensors:
        """See `Candidate`."""
        return {name: self._weights[name] for name in names if name in self._weights}

    def training(
        self, frozen: Collection[str] = (), *, epochs: int, callbacks: Sequence[Any] = ()
    ) -> ArrayTraining | None:
        """See `Candidate`."""
        self._trainable = trainable = {
            name: [weight.trainable for weight in spec.weights]
            for name, spec in self._specs.items()
            if name not in frozen and not spec.frozen
        }
        if not any(any(flags) for flags in trainable.values()):
            return None
        with limited(self._threads):
            return ArrayTraining(
                self._plan,
                self._weights,
                trainable,
                self._rows.x_train,
                self._rows.y_train,
                self._rows.w_train,
                loss=LOSSES[self._terms.loss],
                optimizer=OPTIMIZERS[self._terms.optimizer],
                batch_size=self._batch_size,
                epochs=epochs,
                threads=self._threads,
                rng=self._rng,
            )

    def validate(self) -> dict[str, float]:
        """See `Candidate`."""
        y = self._rows.y_valid
        self.renew_statistics()
        with limited(self._threads):
            p = self._predict(self._rows.x_valid)
            judged = self._terms.outputs[0]
            metrics = {
                name: score(term, y, p) if term in SCORES else METRICS[term](y, p)
                for name, term in judged.metrics.items()
            }
            return {"loss": LOSSES[judged.loss].value(y, p), **metrics}

    def renew_statistics(self) -> None:
        """See `Candidate`."""
        training = {step.layer for step in self._plan.steps if step.kind is BatchNormalization}
        training &= self._trainable.keys()
        if not training:
            return
        x, weights = self._rows.x_train, self._weights
        gradients = {name: weights[name] for name in training}  # nobody writes to them
        program = Program(self._plan, self._plan.steps, weights, gradients, self._rng)
        seen = 0
        with limited(self._threads):
            for batch in statistics.batches(len(x[0]), _CHUNK):
                program.set_momentum(seen / (seen + len(batch)))
                given = dict(zip(self._plan.inputs, (rows[batch] for rows in x), strict=True))
                program.forward(given, training=False)
                seen += len(batch)

    def predict(self, rows: Arrays) -> Array:
        """See `Candidate`."""
        with limited(self._threads):
            return self._predict([np.asarray(array, np.float32) for array in as_tuple(rows)])

    def _predict(self, x: Sequence[Array]) -> Array:
        program = Program(self._plan, self._plan.steps, self._weights, {}, self._rng)
        predicted = []
        for begin in range(0, len(x[0]), _CHUNK):
            rows = slice(begin, begin + _CHUNK)
            inputs = zip(self._plan.inputs, x, strict=True)
            given = {value: array[rows] for value, array in inputs}
            predicted.append(program.forward(given, training=False)[self._plan.output])
        return np.concatenate(predicted)
