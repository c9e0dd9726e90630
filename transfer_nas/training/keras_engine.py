"""Trains every Keras model. Keras and its backend are imported with the first candidate."""

from __future__ import annotations

import contextlib
import functools
import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graph_meta import LayerGraph
from transfer_nas.applications import Application, Arrays, Batches, Data, as_tuple
from transfer_nas.applications import _terms as terms_of
from transfer_nas.applications._terms import SCORES
from transfer_nas.training import augmentation, statistics
from transfer_nas.training._base import Candidate, Engine, Training
from transfer_nas.training.feeding import Feed
from transfer_nas.training.frozen_prefix import CACHE_BYTES, FrozenPrefixes
from transfer_nas.training.scores import score
from transfer_nas.transfer import Tensors

if TYPE_CHECKING:
    import keras

_VALIDATION_BYTES = 2**20
"""Bytes of inputs to judge at once, unless a training batch has more: larger batches save the
overhead of calls where rows are small, and cost memory where they are large."""


class KerasEngine(Engine):
    """Candidates that are Keras models.

    From the first candidate on the process belongs to it: Keras' session is cleared and its seed
    set for each.

    Parameters
    ----------
    application
        Data, loss, metric, optimizer.
    batch_size
        Rows a step.
    cache_bytes
        Most bytes of activations of frozen prefixes that are kept; 0: none is computed ahead.
    """

    name = "keras"
    is_slow_to_build = True
    has_models = True

    def __init__(
        self, application: Application, batch_size: int, *, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._application = application
        self._batch_size = batch_size
        self._cache_bytes = cache_bytes

    def obstacle(self, graph: LayerGraph) -> None:
        """See `Engine`: there is none, as Keras has built it."""

    def candidate(self, graph: LayerGraph, seed: int) -> KerasCandidate:
        """See `Engine`."""
        import keras

        loop = self._loop
        keras.utils.clear_session()
        keras.utils.set_random_seed(seed % 2**32)
        return KerasCandidate(graph, self._application, loop, self._batch_size, seed)

    @functools.cached_property
    def _loop(self) -> KerasLoop:
        """Return the loop for the backend that Keras uses."""
        import keras

        application, batch_size = self._application, self._batch_size
        data = application.data
        # Activations are those of rows that stay as they are, and fit into memory.
        kept = self._cache_bytes if data.in_memory("train") and application.augment is None else 0
        prefixes = FrozenPrefixes(data, validation_batch_size(data, batch_size), kept)
        if keras.backend.backend() == "tensorflow":
            from transfer_nas.training.tensorflow_loop import TensorFlowLoop

            loop: KerasLoop = TensorFlowLoop(application, batch_size, prefixes)
        else:
            loop = FitLoop(application, batch_size, prefixes)
        # Keras' objects are cycles, so each candidate's memory comes back by a collection. That of
        # a process with TensorFlow in it takes 0.2 s unless what stays is set apart.
        gc.collect()
        gc.freeze()
        return loop


class KerasLoop(ABC):
    """Trains and judges Keras models on one data set.

    Parameters
    ----------
    application
        Its training and validation rows, losses and metrics.
    batch_size
        Rows a step.
    prefixes
        Computes frozen prefixes of models for these rows.
    """

    def __init__(self, application: Application, batch_size: int, prefixes: FrozenPrefixes) -> None:
        self._application = application
        self._batch_size = batch_size
        self._prefixes = prefixes

    @abstractmethod
    def training(
        self, model: keras.Model, graph: LayerGraph, callbacks: Sequence[Any] = (), seed: int = 0
    ) -> Training:
        """Begin a training of `model`, which was compiled just before and has something to train.

        Parameters
        ----------
        model
            The model; its frozen layers are not trainable.
        graph
            What it is, by the stable names that its layers carry.
        callbacks
            What is to be told of single steps.
        seed
            Of augmentation, and of sources of batches that take one.
        """

    @property
    def _function(self) -> Any:
        """The function that augments batches; None if there is none."""
        augment = self._application.augment
        return None if augmentation.layers_of(augment) else augment

    @property
    def _is_fed(self) -> bool:
        """Whether an epoch is fed batch by batch."""
        return not self._application.data.in_memory("train") or self._function is not None

    def _rest(self, model: keras.Model, graph: LayerGraph, seed: int) -> tuple[keras.Model, Any]:
        """Return what is trained of a model, and its inputs if those are not the rows'.

        What is behind its frozen prefix; or all of it, behind layers that augment.
        """
        layers = augmentation.layers_of(self._application.augment)
        if layers:
            return augmentation.before(model, layers, seed), None
        rest = self._prefixes.rest(model, graph)
        return (model, None) if rest is None else rest

    @functools.cached_property
    def _valid_rows(self) -> tuple[Any, Any]:
        """Inputs and targets of the validation rows, on the device."""
        import keras

        data = self._application.data
        rows = (inputs(data.x_valid), inputs(data.y_valid))
        tensors: tuple[Any, Any] = keras.tree.map_structure(keras.ops.convert_to_tensor, rows)
        return tensors

    def validate(self, model: keras.Model) -> dict[str, float]:
        """Return ``loss`` and the application's metrics, on the validation rows."""
        import keras

        data = self._application.data
        size = validation_batch_size(data, self._batch_size)
        if data.in_memory("valid"):
            count, rows = data.count("valid"), self._valid_rows
            parts = (slice(begin, begin + size) for begin in range(0, count, size))
            batches: Iterator[Any] = (
                keras.tree.map_structure(lambda array, at=part: array[at], rows) for part in parts
            )
        else:
            batches = Feed(data, "valid", size).batches()
        return judge(model, self._application, batches)


def judge(
    model: keras.Model, application: Application, batches: Iterable[Sequence[Any]]
) -> dict[str, float]:
    """Return ``loss`` and the application's metrics, by their names.

    Calls the model batch by batch: a trace would cost more than it saves.

    Parameters
    ----------
    model
        Compiled.
    application
        Whose metrics.
    batches
        Inputs and targets as the model takes them, arrays or tensors; what comes behind them does
        not count.
    """
    import keras

    metrics = [
        (name, i, term if term in SCORES else _metric(term, name))
        for i, judged in enumerate(application.terms.outputs)
        for name, term in judged.metrics.items()
    ]
    keeps = any(isinstance(metric, str) for _, _, metric in metrics)
    total, count, kept = 0.0, 0, list[list[Any]]()
    for rows, targets, *_ in batches:
        with statistics.without_gradients():
            predicted = model(rows, training=False)
            loss = model.compute_loss(rows, targets, predicted, training=False)
            true, outputs = keras.tree.flatten(targets), keras.tree.flatten(predicted)
            total += float(loss) * len(true[0])
            count += len(true[0])
            for _, i, metric in metrics:
                if not isinstance(metric, str):
                    metric.update_state(true[i], outputs[i])
        if keeps:
            kept.append([keras.ops.convert_to_numpy(each) for each in (*true, *outputs)])
    whole = [np.concatenate(parts) for parts in zip(*kept, strict=True)]
    found = {"loss": total / count}
    for name, i, metric in metrics:
        if isinstance(metric, str):
            found[name] = score(metric, whole[i], whole[len(whole) // 2 + i])
        else:
            found[name] = float(metric.result())
    return found


def _metric(term: Any, name: str) -> Any:
    """Return a new Keras metric."""
    import keras

    found = keras.metrics.get(terms_of.new(term))
    if isinstance(found, keras.metrics.Metric):
        return found
    return keras.metrics.MeanMetricWrapper(found, name=name)


class KerasCandidate(Candidate):
    """A Keras model; its layers carry the stable names of `graph`."""

    def __init__(
        self,
        graph: LayerGraph,
        application: Application,
        loop: KerasLoop,
        batch_size: int,
        seed: int,
    ) -> None:
        from graph_meta import keras_io

        self.graph = graph
        self._seed = seed
        self._model = keras_io.to_keras(graph)
        self._frozen_inside = keras_io.frozen_inside(self._model)
        self._application = application
        self._loop = loop
        self._batch_size = batch_size
        for layer in self._model.layers if application.precision != "float32" else ():
            if layer.name not in self._model.output_names:  # the last ones keep their digits
                layer.dtype_policy = application.precision
        compile_model(self._model, application)

    def load(self, tensors: Tensors) -> None:
        """See `Candidate`."""
        from graph_meta import keras_io

        layers = {layer.name: layer for layer in self._model.layers}
        for name, arrays in tensors.items():
            keras_io.set_layer_weights(layers[name], arrays)

    def tensors(self, names: Collection[str]) -> Tensors:
        """See `Candidate`."""
        from graph_meta import keras_io

        return {
            layer.name: keras_io.layer_weights(layer)
            for layer in self._model.layers
            if layer.weights and layer.name in names
        }

    @property
    def model(self) -> keras.Model:
        """See `Candidate`."""
        return self._model

    def training(
        self, frozen: Collection[str] = (), *, epochs: int, callbacks: Sequence[Any] = ()
    ) -> Training | None:
        """See `Candidate`."""
        model = self.network(frozen, epochs)
        if not model.trainable_variables:
            return None
        return self._loop.training(model, self.graph, callbacks, self._seed)

    def network(self, frozen: Collection[str] = (), epochs: int | None = None) -> keras.Model:
        """See `Candidate`: compiled, with a new optimizer for so many epochs."""
        own = zip(self.graph.names, self.graph.layers, strict=True)
        frozen = {*frozen, *(name for name, layer in own if layer.spec.frozen)}
        for layer in self._model.layers:
            layer.trainable = layer.name not in frozen
        for part in self._frozen_inside:
            part.trainable = False
        if self._model.trainable_variables:
            compile_model(self._model, self._application, epochs, self._batch_size)
        return self._model

    def predict(self, rows: Arrays) -> npt.NDArray[Any]:
        """See `Candidate`: batch by batch, as a trace would cost more than it saves."""
        import keras

        arrays = as_tuple(rows)
        size = max(1, _VALIDATION_BYTES // max(1, sum(array[:1].nbytes for array in arrays)))
        predicted = []
        for begin in range(0, len(arrays[0]), size):
            batch = tuple(array[begin : begin + size] for array in arrays)
            outputs = self._model(inputs(batch), training=False)
            predicted.append(keras.tree.map_structure(keras.ops.convert_to_numpy, outputs))
        whole = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *predicted)
        alone: npt.NDArray[Any] = whole  # a list of arrays where there are several outputs
        return alone

    def validate(self) -> dict[str, float]:
        """See `Candidate`."""
        self.renew_statistics()
        return self._loop.validate(self._model)

    def renew_statistics(self) -> None:
        """See `Candidate`."""
        data = self._application.data
        size = validation_batch_size(data, self._batch_size)
        statistics.renew(self._model, as_tuple(data.x_train), size)


def compile_model(
    model: keras.Model,
    application: Application,
    epochs: int | None = None,
    batch_size: int | None = None,
) -> None:
    """Compile a model as the application says; its optimizer is new.

    Parameters
    ----------
    model
        The model.
    application
        Says losses, metrics and optimizer. Metrics that Keras does not have (`training.scores`) are
        left out.
    epochs, batch_size
        Of the training, for a schedule of the learning rate; None: the application's.
    """
    import keras

    terms = application.terms
    steps = application.data.steps(batch_size or application.batch_size)
    steps *= epochs or application.epochs
    losses = [terms_of.new(judged.loss) for judged in terms.outputs]
    metrics = [
        [terms_of.new(term) for term in judged.metrics.values() if term not in SCORES]
        for judged in terms.outputs
    ]
    alone = len(losses) == 1
    model.compile(
        optimizer=application.new_optimizer(steps),
        loss=losses[0] if alone else losses,
        loss_weights=None if alone else [judged.weight for judged in terms.outputs],
        metrics=metrics[0] if alone else metrics,
        jit_compile=keras.backend.backend() == "jax",  # it has no other way to run fast
    )


class FitLoop(KerasLoop):
    """Keras' own loop; any backend.

    Parameters
    ----------
    application, batch_size, prefixes
        See `KerasLoop`.
    around
        What each ``fit`` runs inside.
    """

    def __init__(
        self,
        application: Application,
        batch_size: int,
        prefixes: FrozenPrefixes,
        around: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        super().__init__(application, batch_size, prefixes)
        self._around = around

    def training(
        self, model: keras.Model, graph: LayerGraph, callbacks: Sequence[Any] = (), seed: int = 0
    ) -> Training:
        """See `KerasLoop`."""
        network, x = self._rest(model, graph, seed)
        if network is not model:
            network.compile(
                model.optimizer,
                model.loss,
                loss_weights=model._compile_loss._user_loss_weights,
                jit_compile=model.jit_compile,
            )
        data = self._application.data
        if self._is_fed:
            feed = Feed(data, "train", self._batch_size, self._function)
            return _FedTraining(model, network, feed, callbacks, self._around, seed)
        rows = (data.x_train if x is None else x, data.y_train, data.w_train)
        return _RowsTraining(model, network, rows, self._batch_size, callbacks, self._around)


class _FitTraining(Training):
    """Fits one epoch at a time.

    Parameters
    ----------
    model
        The model.
    network
        What is fitted: the model, or what `KerasLoop` makes of it, with the same optimizer.
    callbacks
        What is told of single steps.
    around
        What ``fit`` runs inside.
    """

    def __init__(
        self,
        model: keras.Model,
        network: keras.Model,
        callbacks: Sequence[Any],
        around: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self._model, self._network = model, network
        self._callbacks = callbacks
        self._around = around
        self._random = _random_state()
        model.optimizer.build(network.trainable_variables)

    @abstractmethod
    def _fed(
        self, order: npt.NDArray[np.integer]
    ) -> contextlib.AbstractContextManager[dict[str, Any]]:
        """Give what ``fit`` takes for an epoch."""

    def epoch(self, order: npt.NDArray[np.integer], learning_rate: float | None) -> float:
        """See `Training`."""
        import keras

        # Whatever draws between the epochs, and as the first one is prepared, leaves no trace.
        again = keras.callbacks.LambdaCallback(
            on_train_begin=lambda _: _set_random_state(self._random)
        )
        if learning_rate is not None:
            self._model.optimizer.learning_rate = learning_rate
        with self._fed(order) as fed, self._around():
            history = self._network.fit(
                **fed,
                shuffle=False,
                verbose=0,
                callbacks=[again, *map(self._steps_for, self._callbacks)],
            )
        self._random = _random_state()
        return float(history.history["loss"][-1])

    def _steps_for(self, callback: Any) -> Any:
        """Return what tells a callback of single steps, and ends the epoch if it says so."""
        import keras

        def end(batch: int, logs: Any) -> None:
            callback.on_train_batch_end(batch, logs)
            self._network.stop_training |= self._model.stop_training

        return keras.callbacks.LambdaCallback(
            on_train_batch_begin=callback.on_train_batch_begin, on_train_batch_end=end
        )

    def state(self) -> list[npt.NDArray[np.generic]]:
        """See `Training`."""
        return [*self._random, *state_of(self._model, self._network)]

    def restore(self, state: list[npt.NDArray[np.generic]]) -> None:
        """See `Training`."""
        own = len(self._random)
        self._random = [np.array(array) for array in state[:own]]
        restore_to(self._model, self._network, state[own:])


class _RowsTraining(_FitTraining):
    """Takes all rows from memory: inputs of the network, targets and weights."""

    def __init__(
        self,
        model: keras.Model,
        network: keras.Model,
        rows: tuple[Any, Any, Any],
        batch_size: int,
        callbacks: Sequence[Any],
        around: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        super().__init__(model, network, callbacks, around)
        x, y, self._weights = rows
        self._x, self._y = as_tuple(x), as_tuple(y)
        self._batch_size = batch_size

    @contextlib.contextmanager
    def _fed(self, order: npt.NDArray[np.integer]) -> Iterator[dict[str, Any]]:
        yield {
            "x": inputs(tuple(_ordered(x, order) for x in self._x)),
            "y": inputs(tuple(y[order] for y in self._y)),
            "sample_weight": None if self._weights is None else self._weights[order],
            "batch_size": self._batch_size,
        }


class _FedTraining(_FitTraining):
    """Is fed batch by batch."""

    def __init__(
        self,
        model: keras.Model,
        network: keras.Model,
        feed: Feed,
        callbacks: Sequence[Any],
        around: Callable[[], contextlib.AbstractContextManager[None]],
        seed: int,
    ) -> None:
        super().__init__(model, network, callbacks, around)
        self._feed, self._seed = feed, seed
        self._epochs = 0

    @contextlib.contextmanager
    def _fed(self, order: npt.NDArray[np.integer]) -> Iterator[dict[str, Any]]:
        seed = np.random.SeedSequence((self._seed, self._epochs)).generate_state(1)[0]
        self._epochs += 1
        with self._feed.epoch(order, int(seed)) as fed:
            yield fed

    def state(self) -> list[npt.NDArray[np.generic]]:
        """See `Training`."""
        return [np.array(self._epochs), *super().state()]

    def restore(self, state: list[npt.NDArray[np.generic]]) -> None:
        """See `Training`."""
        self._epochs = int(state[0])
        super().restore(state[1:])


def _ordered(rows: Any, order: npt.NDArray[np.integer]) -> Any:
    """Return rows, an array or a backend's tensor, in another order."""
    import keras

    return rows[order] if isinstance(rows, np.ndarray) else keras.ops.take(rows, order, axis=0)


def _random_state() -> list[npt.NDArray[np.generic]]:
    """Return copies of the states of the generators that are not variables of a model."""
    return [generator.get_state().numpy() for generator in _generators()]


def _set_random_state(state: Sequence[npt.NDArray[np.generic]]) -> None:
    for generator, array in zip(_generators(), state, strict=True):
        import torch

        generator.set_state(torch.from_numpy(array))


def _generators() -> list[Any]:
    """Return Torch's generators, one a device: Dropout of Keras on Torch draws from them."""
    import keras

    if keras.backend.backend() != "torch":
        return []
    import torch

    return [torch.default_generator, *torch.cuda.default_generators]


def state_of(model: keras.Model, network: keras.Model) -> list[npt.NDArray[np.generic]]:
    """Return weights, seeds and optimizer's variables of a model in training.

    Parameters
    ----------
    model
        The model.
    network
        What is trained in its place: it may have seeds of its own, of augmentation.
    """
    import keras

    variables = _variables(model, network)
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def restore_to(
    model: keras.Model, network: keras.Model, state: Sequence[npt.NDArray[np.generic]]
) -> None:
    """Undo what happened since `state_of`."""
    from graph_meta import keras_io

    for variable, array in zip(_variables(model, network), state, strict=True):
        variable.assign(array)
    keras_io.derive_state(model)


def _variables(model: keras.Model, network: keras.Model) -> list[Any]:
    own = {id(variable) for variable in model.variables}
    others = [variable for variable in network.variables if id(variable) not in own]
    # A network that was compiled counts the optimizer's among its own.
    optimizers = {id(variable) for variable in model.optimizer.variables}
    others = [variable for variable in others if id(variable) not in optimizers]
    return [*model.variables, *others, *model.optimizer.variables]


def inputs(x: Arrays) -> Any:
    """Return inputs as a Keras model takes them: one array or a list."""
    arrays = as_tuple(x)
    return arrays[0] if len(arrays) == 1 else list(arrays)


def validation_batch_size(data: Data, batch_size: int) -> int:
    """Return how many rows to judge at once."""
    if isinstance(data.x_valid, Batches):
        return batch_size
    row = sum(array[:1].nbytes for array in as_tuple(data.x_valid))
    return max(batch_size, _VALIDATION_BYTES // max(row, 1))
