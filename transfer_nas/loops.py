"""Training loops: a compiled Keras model, some epochs over the training rows, one judgement.

Keras and its backend are imported when a loop is made (`make`), not before.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer_nas.applications import Arrays, Data, as_tuple

if TYPE_CHECKING:
    import keras

_VALIDATION_BYTES = 2**20
"""Bytes of inputs to judge at once, unless a training batch has more: larger batches save the
overhead of calls where rows are small, and cost memory where they are large."""

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


class TrainingLoop(ABC):
    """Trains and judges models on one data set.

    The same seed (``keras.utils.set_random_seed``), generator and model give the same weights.

    Parameters
    ----------
    data
        Training and validation rows.
    batch_size
        Rows a step; the last step of an epoch takes those that are left.
    """

    @abstractmethod
    def __init__(self, data: Data, batch_size: int) -> None: ...

    @abstractmethod
    def train(self, model: keras.Model, epochs: int, rng: np.random.Generator) -> None:
        """Train `model`, which was compiled just before, and has something to train.

        Ends early when the loss of an epoch is not a finite number: nothing good comes after it.
        To train again, compile again.
        """

    @abstractmethod
    def validate(self, model: keras.Model) -> dict[str, float]:
        """Return ``loss`` and the compiled metrics by name, on the validation rows."""


def make(data: Data, batch_size: int) -> TrainingLoop:
    """Make the loop for the backend that Keras uses; imports both."""
    import keras

    if keras.backend.backend() == "tensorflow":
        return TensorFlowLoop(data, batch_size)
    return FitLoop(data, batch_size)


class FitLoop(TrainingLoop):
    """Keras' own loop; any backend."""

    def __init__(self, data: Data, batch_size: int) -> None:
        self._train_rows = (_inputs(data.x_train), data.y_train)
        self._valid_rows = (_inputs(data.x_valid), data.y_valid)
        self._batch_size = batch_size
        self._valid_batch_size = _validation_batch_size(data, batch_size)

    def train(self, model: keras.Model, epochs: int, rng: np.random.Generator) -> None:
        """Fit; rows are shuffled by Keras' seed."""
        import keras

        x, y = self._train_rows
        model.fit(
            x,
            y,
            batch_size=self._batch_size,
            epochs=epochs,
            verbose=0,
            callbacks=[keras.callbacks.TerminateOnNaN()],
        )

    def validate(self, model: keras.Model) -> dict[str, float]:
        """Evaluate."""
        x, y = self._valid_rows
        logs = model.evaluate(x, y, batch_size=self._valid_batch_size, verbose=0, return_dict=True)
        return {name: float(value) for name, value in logs.items()}


class TensorFlowLoop(TrainingLoop):
    """One compiled function an epoch, over rows that stay on the device.

    What ``Model.fit`` spends on a candidate that trains for seconds is overhead: it traces each
    step twice (once because optimizer and metrics make their variables inside), and each weight's
    update by itself, keeps the bookkeeping of metrics that nobody reads, and feeds batches from
    Python. It also leaks: each trace leaves its graph in TensorFlow's registry of gradients,
    through the reduction over replicas in ``Optimizer.apply``, which therefore is called across
    replicas here.
    """

    def __init__(self, data: Data, batch_size: int) -> None:
        import tensorflow as tf

        # Equal seeds shall give equal weights.
        tf.config.experimental.enable_op_determinism()
        self._train_rows = _tensors((_inputs(data.x_train), data.y_train))
        self._valid_rows = _tensors((_inputs(data.x_valid), data.y_valid))
        self._rows = _count(data.x_train)
        self._batch_size = batch_size
        size = _validation_batch_size(data, batch_size)
        self._valid_batches = [
            slice(begin, begin + size) for begin in range(0, _count(data.x_valid), size)
        ]
        self._valid_count = _count(data.x_valid)

    def train(self, model: keras.Model, epochs: int, rng: np.random.Generator) -> None:
        """Trace one epoch and run it for each order of the rows that `rng` draws."""
        epoch = self._epoch(model)
        for _ in range(epochs):
            loss = float(epoch(rng.permutation(self._rows).astype(np.int32)))
            if not math.isfinite(loss):
                return

    def _epoch(self, model: keras.Model) -> Any:
        """Return a function that trains once on rows in a given order; it returns the mean loss."""
        import keras
        import tensorflow as tf

        weights = model.trainable_variables
        update = _Update(model.optimizer, weights)

        def step(batch: Any) -> Any:
            x, y = keras.tree.map_structure(lambda rows: tf.gather(rows, batch), self._train_rows)
            with tf.GradientTape() as tape:
                loss = model.compute_loss(x, y, model(x, training=True), training=True)
                scaled = model.optimizer.scale_loss(loss)
            gradients = tape.gradient(
                scaled, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            tf.distribute.get_replica_context().merge_call(lambda _: update.apply(gradients))
            return tf.cast(loss, tf.float32)

        def epoch(order: Any) -> Any:
            def body(begin: Any, total: Any) -> Any:
                batch = order[begin : begin + self._batch_size]
                total += step(batch) * tf.cast(tf.size(batch), tf.float32)
                return begin + self._batch_size, total

            _, total = tf.while_loop(
                lambda begin, _: begin < self._rows,
                body,
                (tf.constant(0), tf.constant(0.0)),
                parallel_iterations=1,
            )
            return total / self._rows

        # Layers that need no AutoGraph get none from Keras' own loop either.
        return tf.function(
            epoch,
            input_signature=[tf.TensorSpec([self._rows], tf.int32)],
            autograph=False,
        )

    def validate(self, model: keras.Model) -> dict[str, float]:
        """Call the model batch by batch: a trace would cost more than it saves."""
        import keras

        model.reset_metrics()
        total = 0.0
        for batch in self._valid_batches:
            x, y = keras.tree.map_structure(lambda rows, at=batch: rows[at], self._valid_rows)
            predicted = model(x, training=False)
            loss = model.compute_loss(x, y, predicted, training=False)
            total += float(loss) * len(keras.tree.flatten(y)[0])
            metrics = model.compute_metrics(x, y, predicted)
        logs = {name: float(value) for name, value in metrics.items()}
        return logs | {"loss": total / self._valid_count}


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


def _inputs(x: Arrays) -> Any:
    """Return inputs as a Keras model takes them: one array or a list."""
    return list(x) if isinstance(x, tuple) else x


def _count(arrays: Arrays) -> int:
    return len(as_tuple(arrays)[0])


def _tensors(arrays: Any) -> Any:
    import keras

    return keras.tree.map_structure(keras.ops.convert_to_tensor, arrays)


def _validation_batch_size(data: Data, batch_size: int) -> int:
    row = sum(array[:1].nbytes for array in as_tuple(data.x_valid))
    return max(batch_size, _VALIDATION_BYTES // max(row, 1))
