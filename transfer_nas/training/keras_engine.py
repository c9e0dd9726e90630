"""Trains every Keras model. Keras and its backend are imported with the first candidate."""

from __future__ import annotations

import functools
import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graph_meta import LayerGraph
from transfer_nas.applications import Application, Arrays, Batches, Data, as_tuple
from transfer_nas.training import augmentation, statistics
from transfer_nas.training._base import Candidate, Engine, Training
from transfer_nas.training.feeding import Feed
from transfer_nas.training.frozen_prefix import CACHE_BYTES, FrozenPrefixes
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

        data, batch_size, augment = (
            self._application.data,
            self._batch_size,
            self._application.augment,
        )
        is_fed = data.is_streamed or (augment is not None and not augmentation.layers_of(augment))
        # Activations are those of rows that stay as they are, and fit into memory.
        cached = self._cache_bytes if augment is None and not is_fed else 0
        prefixes = FrozenPrefixes(data, validation_batch_size(data, batch_size), cached)
        loop: KerasLoop
        if keras.backend.backend() != "tensorflow":
            loop = (FedLoop if is_fed else FitLoop)(data, batch_size, prefixes, augment)
        else:
            from transfer_nas.training import tensorflow_loop

            kind = tensorflow_loop.TensorFlowFedLoop if is_fed else tensorflow_loop.TensorFlowLoop
            loop = kind(data, batch_size, prefixes, augment)
        # Keras' objects are cycles, so each candidate's memory comes back by a collection. That of
        # a process with TensorFlow in it takes 0.2 s unless what stays is set apart.
        gc.collect()
        gc.freeze()
        return loop


class KerasLoop(ABC):
    """Trains and judges Keras models on one data set.

    Parameters
    ----------
    data
        Training and validation rows.
    batch_size
        Rows a step.
    prefixes
        Computes frozen prefixes of models for these rows.
    augment
        See `Application`.
    """

    def __init__(
        self, data: Data, batch_size: int, prefixes: FrozenPrefixes, augment: Any = None
    ) -> None:
        self._data = data
        self._batch_size = batch_size
        self._prefixes = prefixes
        self._augment = augment

    @abstractmethod
    def training(self, model: keras.Model, graph: LayerGraph, seed: int = 0) -> Training:
        """Begin a training of `model`, which was compiled just before and has something to train.

        Parameters
        ----------
        model
            The model; its frozen layers are not trainable.
        graph
            What it is, by the stable names that its layers carry.
        seed
            Of augmentation, and of sources of batches that take one.
        """

    def augmented(self, model: keras.Model, seed: int) -> keras.Model:
        """Return the model, behind the layers that augment its inputs if there are any."""
        layers = None if self._augment is None else augmentation.layers_of(self._augment)
        return augmentation.before(model, layers, seed) if layers else model

    @abstractmethod
    def validate(self, model: keras.Model) -> dict[str, float]:
        """Return ``loss`` and the compiled metrics by name, on the validation rows."""


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

    def training(self, frozen: Collection[str] = (), *, epochs: int) -> Training | None:
        """See `Candidate`."""
        model = self.network(frozen)
        if not model.trainable_variables:
            return None
        return self._loop.training(model, self.graph, self._seed)

    def network(self, frozen: Collection[str] = ()) -> keras.Model:
        """See `Candidate`: compiled, with a new optimizer."""
        own = zip(self.graph.names, self.graph.layers, strict=True)
        frozen = {*frozen, *(name for name, layer in own if layer.spec.frozen)}
        for layer in self._model.layers:
            layer.trainable = layer.name not in frozen
        for part in self._frozen_inside:
            part.trainable = False
        if self._model.trainable_variables:
            compile_model(self._model, self._application)
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
        return np.asarray(
            keras.tree.map_structure(lambda *parts: np.concatenate(parts), *predicted)
        )

    def validate(self) -> dict[str, float]:
        """See `Candidate`."""
        self.renew_statistics()
        return self._loop.validate(self._model)

    def renew_statistics(self) -> None:
        """See `Candidate`."""
        data = self._application.data
        size = validation_batch_size(data, self._batch_size)
        statistics.renew(self._model, as_tuple(data.x_train), size)


def compile_model(model: keras.Model, application: Application) -> None:
    """Compile a model as the application says; its optimizer is new."""
    import keras

    terms = application.terms
    optimizer = keras.optimizers.get(terms.optimizer)
    optimizer.learning_rate = application.learning_rate
    model.compile(
        optimizer=optimizer,
        loss=terms.loss,
        metrics=[terms.metric],
        jit_compile=keras.backend.backend() == "jax",  # it has no other way to run fast
    )


class FitLoop(KerasLoop):
    """Keras' own loop; any backend."""

    def training(self, model: keras.Model, graph: LayerGraph, seed: int = 0) -> Training:
        """See `KerasLoop`."""
        rest = self._prefixes.rest(model, graph)
        network, x = (self.augmented(model, seed), self._data.x_train) if rest is None else rest
        if network is not model:
            network.compile(model.optimizer, model.loss, jit_compile=model.jit_compile)
        return _FitTraining(model, network, x, self._data, self._batch_size)

    def validate(self, model: keras.Model) -> dict[str, float]:
        """See `KerasLoop`."""
        size = validation_batch_size(self._data, self._batch_size)
        return evaluate(model, self._data, "valid", size)


class FedLoop(FitLoop):
    """The same for what is not in memory, or changed by a function for each epoch."""

    def training(self, model: keras.Model, graph: LayerGraph, seed: int = 0) -> Training:
        """See `KerasLoop`."""
        network = self.augmented(model, seed)
        if network is not model:
            network.compile(model.optimizer, model.loss, jit_compile=model.jit_compile)
        function = self._augment if network is model else None
        feed = Feed(self._data, "train", self._batch_size, function)
        return _FedTraining(model, network, feed, seed, self.fit)

    def fit(self, network: keras.Model, *, steps: int, **fed: Any) -> Any:
        """Fit once through what is fed; return Keras' history."""
        return network.fit(**fed, steps_per_epoch=steps, shuffle=False)


def evaluate(model: keras.Model, data: Data, part: str, size: int) -> dict[str, float]:
    """Return ``loss`` and the compiled metrics by name, on the rows of a part."""
    x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
    if all(isinstance(array, np.ndarray) for array in as_tuple(x)):
        logs = model.evaluate(inputs(x), inputs(y), batch_size=size, verbose=0, return_dict=True)
    else:
        with Feed(data, part, size).epoch() as fed:
            logs = model.evaluate(**fed, return_dict=True)
    return {name: float(value) for name, value in logs.items()}


class _FitTraining(Training):
    """Fits one epoch at a time.

    Parameters
    ----------
    model
        The model.
    network
        What is fitted: the model, or what is left of it, with the same optimizer.
    x
        Inputs of `network` for all rows.
    data
        Targets and weights.
    batch_size
        Rows a step.
    """

    def __init__(
        self, model: keras.Model, network: keras.Model, x: Any, data: Data, batch_size: int
    ) -> None:
        self._model, self._network = model, network
        self._x, self._y, self._w = as_tuple(x), as_tuple(data.y_train), data.w_train
        self._batch_size = batch_size
        self._random = _random_state()
        model.optimizer.build(network.trainable_variables)

    def epoch(self, order: npt.NDArray[np.integer], learning_rate: float) -> float:
        """See `Training`."""
        import keras

        # Whatever draws between the epochs, and as the first one is prepared, leaves no trace.
        again = keras.callbacks.LambdaCallback(
            on_train_begin=lambda _: _set_random_state(self._random)
        )
        self._model.optimizer.learning_rate = learning_rate
        history = self._network.fit(
            inputs(tuple(x[order] for x in self._x)),
            inputs(tuple(y[order] for y in self._y)),
            sample_weight=None if self._w is None else self._w[order],
            batch_size=self._batch_size,
            shuffle=False,
            verbose=0,
            callbacks=[again],
        )
        self._random = _random_state()
        return float(history.history["loss"][-1])

    def state(self) -> list[npt.NDArray[np.generic]]:
        """See `Training`."""
        return [*self._random, *state_of(self._model, self._network)]

    def restore(self, state: list[npt.NDArray[np.generic]]) -> None:
        """See `Training`."""
        own = len(self._random)
        self._random = [np.array(array) for array in state[:own]]
        restore_to(self._model, self._network, state[own:])


class _FedTraining(Training):
    """Fits one epoch at a time, fed batch by batch; see `_FitTraining`."""

    def __init__(
        self,
        model: keras.Model,
        network: keras.Model,
        feed: Feed,
        seed: int,
        fit: Callable[..., Any],
    ) -> None:
        self._model, self._network, self._feed = model, network, feed
        self._seed, self._fit = seed, fit
        self._epochs = 0
        self._random = _random_state()
        model.optimizer.build(network.trainable_variables)

    def epoch(self, order: npt.NDArray[np.integer], learning_rate: float) -> float:
        """See `Training`."""
        import keras

        again = keras.callbacks.LambdaCallback(
            on_train_begin=lambda _: _set_random_state(self._random)
        )
        self._model.optimizer.learning_rate = learning_rate
        seed = int(np.random.SeedSequence((self._seed, self._epochs)).generate_state(1)[0])
        with self._feed.epoch(order, seed) as fed:
            history = self._fit(self._network, callbacks=[again], **fed)
        self._epochs += 1
        self._random = _random_state()
        return float(history.history["loss"][-1])

    def state(self) -> list[npt.NDArray[np.generic]]:
        """See `Training`."""
        epochs = np.array(self._epochs)
        return [epochs, *self._random, *state_of(self._model, self._network)]

    def restore(self, state: list[npt.NDArray[np.generic]]) -> None:
        """See `Training`."""
        own = 1 + len(self._random)
        self._epochs = int(state[0])
        self._random = [np.array(array) for array in state[1:own]]
        restore_to(self._model, self._network, state[own:])


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
