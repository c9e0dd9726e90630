"""Trains Keras models on TensorFlow: one compiled function an epoch.

What ``Model.fit`` spends on a candidate that trains for seconds is overhead: it traces each step
twice (once because optimizer and metrics make their variables inside), and each weight's update by
itself, keeps the bookkeeping of metrics that nobody reads, and feeds batches from Python. It also
leaks: what has a gradient of its own in TensorFlow - ``silu`` as an activation, the reduction over
replicas in ``Optimizer.apply`` - leaves that in a registry at each trace, and with it the graph:
10 to 30 MB a candidate. Here it is taken out again, and the reduction is not traced.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from graph_meta import LayerGraph
from transfer_nas.applications import Application, as_tuple
from transfer_nas.training._base import Training
from transfer_nas.training.frozen_prefix import FrozenPrefixes
from transfer_nas.training.keras_engine import (
    FitLoop,
    KerasLoop,
    inputs,
    restore_to,
    state_of,
)

if TYPE_CHECKING:
    import keras

_SMALL_WEIGHT = 2**16
"""Elements of a weight that is updated together with others: the copies that this takes cost more
than they save from about four times as many on."""

_ELEMENTWISE = (
    "SGD",
    "RMSprop",
    "Adam",
    "Adamax",
    "Nadam",
    "Adagrad",
    "Adadelta",
    "Lion",
)
"""Optimizers that treat each element of a weight by itself, whatever the weight's shape."""


class TensorFlowLoop(KerasLoop):
    """The rows stay on the device."""

    def __init__(self, application: Application, batch_size: int, prefixes: FrozenPrefixes) -> None:
        import tensorflow as tf

        super().__init__(application, batch_size, prefixes)
        # Equal seeds shall give equal weights.
        tf.config.experimental.enable_op_determinism()
        data = application.data
        if self._is_fed:
            return
        self._x_train, self._y_train = _tensors((inputs(data.x_train), inputs(data.y_train)))
        self._w_train = None if data.w_train is None else _tensors(data.w_train)
        self._rows = len(as_tuple(data.x_train)[0])

    def training(
        self, model: keras.Model, graph: LayerGraph, callbacks: Sequence[Any] = (), seed: int = 0
    ) -> Training:
        """See `KerasLoop`.

        What is not in memory, or told of single steps, has Keras' own loop.
        """
        if callbacks or self._is_fed:
            own = self._application, self._batch_size, self._prefixes
            return FitLoop(*own, _gradients_unregistered).training(model, graph, callbacks, seed)
        network, x = self._rest(model, graph, seed)
        rows = Rows(self._x_train if x is None else x, self._y_train, self._w_train)
        return _TensorFlowTraining(model, network, rows, self._rows, self._batch_size)


class Rows(NamedTuple):
    """What is trained on, as tensors: inputs of a network, targets, and weights or None."""

    x: Any
    y: Any
    w: Any


class _TensorFlowTraining(Training):
    """One trace, run once an epoch.

    Parameters
    ----------
    model
        Compiled just before.
    network
        What computes its outputs from the rows: the model, or what is left of it.
    rows
        What it is trained on; inputs are those of `network`.
    count
        Number of rows.
    batch_size
        Rows a step.
    """

    def __init__(
        self, model: keras.Model, network: keras.Model, rows: Rows, count: int, batch_size: int
    ) -> None:
        self._model, self._network = model, network
        self._update = _Update(model.optimizer, model.trainable_variables)
        with _gradients_unregistered():
            self._epoch = _epoch(model, network, self._update, rows, count, batch_size)

    def epoch(self, order: npt.NDArray[np.integer], learning_rate: float | None) -> float:
        """See `Training`."""
        if learning_rate is not None:
            self._model.optimizer.learning_rate = learning_rate
        return float(self._epoch(_tensors(order.astype(np.int32))))

    def state(self) -> list[npt.NDArray[np.generic]]:
        """See `Training`."""
        return state_of(self._model, self._network)

    def restore(self, state: list[npt.NDArray[np.generic]]) -> None:
        """See `Training`."""
        restore_to(self._model, self._network, state)
        self._update.read()


def _epoch(
    model: keras.Model,
    network: keras.Model,
    update: _Update,
    rows: Rows,
    count: int,
    batch_size: int,
) -> Any:
    """Trace what trains once on rows in a given order; it returns the mean loss."""
    import keras
    import tensorflow as tf

    weights = model.trainable_variables

    def step(batch: Any) -> Any:
        x, y = keras.tree.map_structure(lambda array: tf.gather(array, batch), (rows.x, rows.y))
        w = None if rows.w is None else tf.gather(rows.w, batch)
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, network(x, training=True), w, training=True)
            scaled = model.optimizer.scale_loss(loss)
        gradients = tape.gradient(
            scaled, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        tf.distribute.get_replica_context().merge_call(lambda _: update.apply(gradients))
        return tf.cast(loss, tf.float32)

    def epoch(order: Any) -> Any:
        def body(begin: Any, total: Any) -> Any:
            batch = order[begin : begin + batch_size]
            total += step(batch) * tf.cast(tf.size(batch), tf.float32)
            return begin + batch_size, total

        _, total = tf.while_loop(
            lambda begin, _: begin < count,
            body,
            (tf.constant(0), tf.constant(0.0)),
            parallel_iterations=1,
        )
        return total / count

    # Layers that need no AutoGraph get none from Keras' own loop either.
    signature = [tf.TensorSpec([count], tf.int32)]
    return tf.function(epoch, input_signature=signature, autograph=False).get_concrete_function()


@contextlib.contextmanager
def _gradients_unregistered() -> Iterator[None]:
    """Forget the gradients that tracing registers: nobody differentiates a training step again."""
    from tensorflow.python.framework import ops

    # Where TensorFlow keeps them today is its own affair: kept elsewhere, they only take memory.
    registered = getattr(getattr(ops, "gradient_registry", None), "_registry", {})
    before = set(registered)
    try:
        yield
    finally:
        for name in set(registered) - before:
            if name.startswith("CustomGradient-"):
                del registered[name]


class _Update:
    """An optimizer that sees many small weights as one long vector.

    Tracing an update takes some 10 ms a weight, and running it some ten kernels, however small the
    weight is. Where the optimizer treats each element by itself, the vector's update is the same
    bit for bit. Large weights are updated one by one, and so is everything where more than the
    element counts: clipping to a norm, weight decay, constraints.

    Parameters
    ----------
    optimizer
        Not built yet; it is built here, since variables that are made while tracing cost a second
        trace.
    weights
        All that are to be trained.
    """

    def __init__(self, optimizer: Any, weights: list[Any]) -> None:
        import keras

        self._optimizer = optimizer
        elementwise = _is_elementwise(optimizer)
        self._is_small = [elementwise and _is_small(weight) for weight in weights]
        self._small, self._large = self._parted(weights)
        self._sizes = [math.prod(weight.shape) for weight in self._small]
        self._vectors = [keras.Variable(_joined(self._small))] if self._small else []
        optimizer.build([*self._vectors, *self._large])

    def apply(self, gradients: list[Any]) -> None:
        """Change all weights by their gradients."""
        import tensorflow as tf

        small, large = self._parted(gradients)
        vectors = [_joined(small)] if small else []
        self._optimizer.apply([*vectors, *large], [*self._vectors, *self._large])
        for vector in self._vectors:
            parts = tf.split(vector, self._sizes)
            for weight, part in zip(self._small, parts, strict=True):
                weight.assign(tf.reshape(part, weight.shape))

    def read(self) -> None:
        """Take up weights that were changed from outside."""
        for vector in self._vectors:
            vector.assign(_joined(self._small))

    def _parted(self, values: list[Any]) -> tuple[list[Any], list[Any]]:
        """Return what belongs to small weights, and what to large ones."""
        each = list(zip(values, self._is_small, strict=True))
        return [value for value, small in each if small], [v for v, small in each if not small]


def _is_elementwise(optimizer: Any) -> bool:
    import keras

    return (
        type(optimizer) in {getattr(keras.optimizers, name) for name in _ELEMENTWISE}
        and optimizer.clipnorm is None
        and optimizer.global_clipnorm is None
        and optimizer.weight_decay is None
        and not optimizer.use_ema
    )


def _is_small(weight: Any) -> bool:
    return (
        math.prod(weight.shape) <= _SMALL_WEIGHT
        and weight.dtype == "float32"
        and weight.constraint is None
    )


def _joined(tensors: list[Any]) -> Any:
    import tensorflow as tf

    return tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)


def _tensors(arrays: Any) -> Any:
    import keras

    return keras.tree.map_structure(keras.ops.convert_to_tensor, arrays)
