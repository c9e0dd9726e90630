"""What an application is: data, what goes in and out, and what a good model is."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from cpp_store.command_line import expected_rank

from graph_meta import LayerGraph
from transfer_nas.applications import _callbacks, _data, _network, _output, _rows, _terms
from transfer_nas.applications._batches import Batches
from transfer_nas.applications._data import PARTS, Arrays, Data, as_tuple
from transfer_nas.applications._output import Output
from transfer_nas.applications._terms import Judged, Terms
from transfer_nas.errors import ApplicationError, InputError, SpaceError, near_misses
from transfer_nas.spaces import Choices, Space, find, from_function, shapes_of
from transfer_nas.values import Value, check_declared, taken

if TYPE_CHECKING:
    from transfer_nas.training.program import FitContext, Trained

SpaceChoice = str | type[Space] | Callable[[Choices], Any]
"""The name of a space (`find`), a subclass of `Space`, or a function (`from_function`)."""

T = TypeVar("T")

LOSS = "loss"
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
_SYNTHETIC = "synthetic"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Application:
    """A task to find a network for.

    Attributes
    ----------
    name
        Short; part of the namespace of the stored models. Ends in ``-synthetic`` if the data is
        generated and not measured.
    load
        Returns the data; called once in each process that trains. Same data at each call.
    input_shapes
        Shape of each input without the batch axis; for one input of one axis its width will do.
    output_units
        Width of the model's last layer.
    output_activation
        Keras name of its activation; None: linear.
    loss
        Keras name of the loss, a loss object, a function of targets and predictions, or a function
        without arguments that makes one of these.
    metric
        The metric that, on the validation rows, is the objective unless `objective` says otherwise:
        what `loss` may be, of metrics. ``accuracy`` is the one that goes with the targets, as in
        Keras; ``auc``, ``auc_pr``, ``f1`` and ``mcc`` are `training.scores`.
    metrics
        Others that are measured, too: columns ``m:NAME`` of the results, as is then the first.
    mode
        ``max`` if more of what is searched for is better, ``min`` if less is (the objective, which
        is maximised, is then its negative). None: as is known of the metric (`direction`).
    outputs
        Instead of `output_units`, `output_activation`, `loss`, `metric` and `metrics`, for networks
        with several outputs.
    optimizer
        Keras name of the optimizer, its configuration, an optimizer (each candidate has a copy), or
        a function that makes one.
    learning_rate
        Its learning rate; or a Keras schedule; or a function of the number of steps that a training
        is planned for, which returns a schedule. None: the optimizer's own; 0.001 for one that was
        given by name.
    warmup_epochs
        For so many epochs the learning rate rises linearly to what it is.
    precision
        Keras' dtype policy of all layers but the last: ``mixed_bfloat16``; weights are float32.
    callbacks
        What looks at a training after each epoch and may end it: `EarlyStopping`,
        `ReduceLROnPlateau`, Keras callbacks or functions that make them, or a function that returns
        a list of these. Each training has its own.
    epochs
        Epochs that a candidate trains unless the user says otherwise.
    batch_size
        Rows a step unless the user says otherwise.
    default_space
        The space to search unless the user names one.
    validation
        Share of the training rows that are set aside to judge by, where `load` returns no
        validation rows; of each class alike, where there are classes.
    rows
        The most rows to take for training, validation and testing, as far as they are said; of each
        class alike. None: all.
    split_seed
        Decides which rows these are.
    class_weight
        How much rows of each class count in the loss, by label; ``balanced``: all classes count
        alike. None: all rows do.
    augment
        Changes inputs in training, and only there: layers of Keras for preprocessing (one, a
        sequence, or a function without arguments that makes them), or a function
        ``augment(x, rng)`` that returns other inputs for those of a batch, with a NumPy generator.
        Random by the candidate's seed. None: nothing does.
    read
        Returns the data of the files in a directory, for `with_data`: the full-size original of a
        data set that does not come along. None: there are none to read.
    generate
        Returns made-up data of about as many features, all inputs together, for `with_data`. None:
        there is none to make up.
    values
        What is measured of each candidate beside the core's values: columns of ``results.csv``.
    measure
        Returns the declared values, by name, of a trained candidate (`Trained`). Called once for
        each that was judged, before it is stored.
    objective
        What is searched for: the name of a metric or of a declared value, ``loss``, or a function
        of the dictionary of all of these (`mode` then says which way is better). None: the metric;
        the loss where there is none.
    fit
        Trains a Keras model instead of the usual loop: ``fit(model, data, context)`` returns the
        metrics on the validation rows, by name, the metric among them. `FitContext` says what it
        may use. The model has its inherited weights, and its frozen layers are not trainable. None:
        epochs with one optimizer.
    """

    name: str
    load: Callable[[], Data]
    input_shapes: Sequence[Sequence[int]] | Sequence[int] | int
    output_units: int | None = None
    loss: Any = None
    metric: Any = None
    output_activation: str | None = None
    metrics: Sequence[Any] = ()
    mode: Literal["max", "min"] | None = None
    outputs: Sequence[Output] = ()
    optimizer: Any = "adam"
    learning_rate: Any = None
    warmup_epochs: int = 0
    precision: str = "float32"
    callbacks: Sequence[Any] | Callable[[], Sequence[Any]] = ()
    epochs: int = 10
    batch_size: int = 32
    default_space: SpaceChoice = "dense_skip"
    validation: float = 0.2
    rows: Sequence[int] | None = None
    split_seed: int = 0
    class_weight: Mapping[Any, float] | Literal["balanced"] | None = None
    augment: Any = None
    read: Callable[[Path], Data] | None = None
    generate: Callable[[int], Data] | None = None
    values: Sequence[Value] = ()
    measure: Callable[[Trained], Mapping[str, Any]] | None = None
    objective: str | Callable[[Mapping[str, Any]], float] | None = None
    fit: Callable[[Any, Data, FitContext], Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "input_shapes", shapes_of(self.input_shapes))
        except SpaceError as wrong:
            raise self._error(str(wrong)) from wrong
        if self.mode is not None:
            object.__setattr__(self, "mode", self._saying(_terms.mode_of, self.mode))
        for name in ("epochs", "batch_size", *(() if self.outputs else ("output_units",))):
            value = getattr(self, name)
            if not _output.is_count(value):
                raise self._error(f"{name} must be a whole number of at least 1, not {value!r}")
        self._check_training()
        self._check_rows()
        self._check_values()

    def _check_training(self) -> None:
        """Raise ApplicationError unless outputs, losses and what trains them make sense."""
        alone = ("output_units", "output_activation", "loss", "metric", "metrics")
        given = [name for name in alone if getattr(self, name)]
        if self.outputs and given:
            raise self._error(f"outputs says what {', '.join(given)} would say: leave those out")
        if not self.outputs and self.loss is None:
            raise self._error("expected a loss, found none")
        if not self.outputs and self.metric is None and self.metrics:
            raise self._error("metrics are those beside the metric, and there is no metric")
        if isinstance(self.metrics, str) or not isinstance(self.metrics, Sequence):
            raise self._error(f"metrics: expected a list, found {self.metrics!r:.60}")
        if not all(isinstance(output, Output) for output in self.outputs):
            raise self._error(f"outputs: expected a list of Output, found {self.outputs!r:.60}")
        if not isinstance(self.warmup_epochs, int) or self.warmup_epochs < 0:
            raise self._error(
                f"warmup_epochs must be a whole number of at least 0, not {self.warmup_epochs!r}"
            )
        if self.precision not in PRECISIONS:
            raise self._error(
                f"unknown precision {self.precision!r}; "
                f"{near_misses(str(self.precision), PRECISIONS)}"
            )
        _ = self._metrics

    def _check_rows(self) -> None:
        """Raise ApplicationError unless what is said of rows can be done."""
        if not 0 < self.validation < 1:
            raise self._error(f"validation must be a share between 0 and 1, not {self.validation}")
        if self.rows is not None:
            rows = tuple(self.rows)
            if not 0 < len(rows) <= len(PARTS) or any(not most > 0 for most in rows):
                raise self._error(
                    f"rows: expected one to three numbers of at least 1 (of training, validation "
                    f"and test rows), found {self.rows!r}"
                )
            object.__setattr__(self, "rows", rows)
        given = self.augment if isinstance(self.augment, Sequence) else (self.augment,)
        if self.augment is not None and not all(map(callable, given)):
            raise self._error(
                f"augment: expected layers of Keras or a function, found {self.augment!r:.60}"
            )
        weight = self.class_weight
        if weight is not None and weight != "balanced" and not isinstance(weight, Mapping):
            raise self._error(
                f"class_weight: expected 'balanced' or a weight for each label, found {weight!r}"
            )

    def _check_values(self) -> None:
        """Raise ApplicationError unless what is declared can be measured and searched for."""
        for name in ("measure", "fit"):
            function = getattr(self, name)
            if function is not None and not callable(function):
                raise self._error(f"{name}: expected a function, found {function!r:.60}")
        try:
            object.__setattr__(self, "values", tuple(self.values))
            check_declared(self.values)
        except TypeError:
            raise self._error(f"values: expected a sequence, found {self.values!r:.60}") from None
        except InputError as wrong:
            raise self._error(str(wrong)) from wrong
        measured = self.measure is not None or self.fit is not None
        unmeasured = [
            v.name for v in self.values if not measured and v.name not in self.metric_names
        ]
        if unmeasured:
            raise self._error(
                f"values: {', '.join(unmeasured)} declared, and there is no function `measure` "
                "that measures them"
            )
        if self.measure is not None and not self.values:
            raise self._error("measure() measures nothing, as no values are declared")
        goal, known = self.objective, {value.name: value for value in self.values}
        if callable(goal):
            if self.mode is None:
                raise self._error(
                    f"objective {self.objective_name}(): is more of it better, or less? Say "
                    "mode='max' or mode='min'"
                )
        elif goal is not None and self.objective_name not in known:
            names = (*known, *self.metric_names, LOSS)
            if self.objective_name not in names:
                raise self._error(
                    f"objective {goal!r} is neither a metric, the loss nor a declared value; "
                    f"{near_misses(str(goal), names)}"
                )
        elif goal is not None and known[self.objective_name].direction is None:
            raise self._error(
                f"objective {goal}: is more of it better, or less? Declare it with "
                "direction 'max' or 'min'"
            )

    @functools.cached_property
    def heads(self) -> tuple[Output, ...]:
        """The outputs, also where there is but one."""
        if self.outputs:
            return tuple(self.outputs)
        metrics = () if self.metric is None else (self.metric, *self.metrics)
        units, activation = self.output_units, self.output_activation
        return (Output(units or 1, activation, self.loss, metrics=metrics),)

    @functools.cached_property
    def declared(self) -> tuple[Value, ...]:
        """What each candidate is measured for: `values`, and metrics beside the objective.

        A single metric that is the objective is not among them.
        """
        names = {value.name for value in self.values}
        if [*self._metrics] == [self.objective_name]:
            return tuple(self.values)
        found = list(self.values)
        for name, (_, metric) in self._metrics.items():
            if name not in names:
                way = _terms.known_direction(metric)
                if name == self.objective_name or (self.mode and not callable(self.objective)):
                    way = self._saying(_terms.direction_of, metric, None if way else self.mode)
                found.append(Value(name, "", way, "on the validation rows"))
        return tuple(found)

    @functools.cached_property
    def _metrics(self) -> dict[str, tuple[int, Any]]:
        """Output and metric by what results call it."""
        return self._saying(_output.metrics_of, self.heads)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What the metrics are called among values."""
        return tuple(self._metrics)

    @functools.cached_property
    def objective_name(self) -> str:
        """What is searched for, in words of `results.csv`: a metric, a value, or the loss."""
        goal = self.objective
        if callable(goal):
            name = getattr(goal, "__name__", "objective")
            return name if name.isidentifier() else "objective"
        if goal is None:
            return self.metric_names[0] if self.metric_names else LOSS
        names = (*self.metric_names, LOSS, *(value.name for value in self.values))
        plain = _terms.name_of(goal)
        return plain if goal not in names and plain in names else str(goal)

    @property
    def tested_name(self) -> str:
        """What is told of test rows: the objective if it is a metric, else the first, or loss."""
        known = (*self.metric_names, LOSS)
        return self.objective_name if self.objective_name in known else known[0]

    def objective_of(self, found: Mapping[str, Any]) -> float:
        """Return what is maximised, of loss, metrics and values by name.

        Raises
        ------
        ValuesError
            What is searched for is not among them, or is no number.
        """
        name, goal = self.objective_name, self.objective
        if callable(goal):
            value = Value(name).taken(goal(found))
        else:
            (value,) = taken([Value(name)], found).values()
        return self.natural(float(value))

    @functools.cached_property
    def data(self) -> Data:
        """The data, loaded once, as arrays that all engines take alike, and checked.

        Raises
        ------
        ApplicationError
            `load` raises; what it returns does not fit the application; or loss, metric, optimizer,
            targets and outputs do not go together.
        """
        losses = [head.loss for head in self.heads]
        metrics = [metric for head in self.heads for metric in head.metrics]
        self._saying(_terms.check_names, losses, metrics, self.optimizer)
        _ = self.direction, self.declared
        try:
            data = self.load()
        except ApplicationError:
            raise  # says it all
        except Exception as cause:  # a user's function may raise anything
            raise ApplicationError(
                f"application {self.name}: loading the data failed with "
                f"{type(cause).__name__}: {cause}"
            ) from cause
        if not isinstance(data, Data):
            raise ApplicationError(
                f"application {self.name}: load() must return transfer_nas.applications.Data, "
                f"not {type(data).__name__}"
            )
        prepared = self._saying(self._prepared, data)
        vars(self)["data"] = prepared  # where the next line looks
        _ = self.watchers
        return prepared

    @functools.cached_property
    def terms(self) -> Terms:
        """Loss, metric and optimizer by the names that engines know; raises as `data`."""
        return self._terms_for(self.data)

    @functools.cached_property
    def direction(self) -> Literal["max", "min"]:
        """Which way of the objective is better, in its own numbers.

        Raises
        ------
        ApplicationError
            Nothing is known of the metric and `mode` does not say it, or it says the opposite.
        """
        goal, name = self.objective, self.objective_name
        if callable(goal):
            return self.mode or "max"
        for value in self.values:
            if value.name == name and value.direction is not None:
                return value.direction
        if name in self._metrics:
            return self._saying(_terms.direction_of, self._metrics[name][1], self.mode)
        return "min"  # the loss

    @functools.cached_property
    def watchers(self) -> tuple[_callbacks.Callback, ...]:
        """What `callbacks` asks for; raises ApplicationError."""
        watchers = self._saying(_callbacks.found, self.callbacks)
        if watchers and self.fit is not None:
            raise self._error("callbacks have no meaning with a fit of its own, which may have any")
        known = (LOSS, f"val_{LOSS}", *(f"val_{name}" for name in self.metric_names))
        if watchers:
            self._saying(_callbacks.check, watchers, known, self.initial_rate is None)
            for watcher in watchers:
                watcher.watch(self.direction_of)
        return watchers

    def direction_of(self, monitor: str) -> Literal["max", "min"]:
        """Return which way of what callbacks monitor is better."""
        name = monitor.removeprefix("val_")
        if name == self.objective_name:
            return self.direction
        if name in self._metrics:
            return self._saying(_terms.direction_of, self._metrics[name][1], None)
        return "min"  # the loss

    @functools.cached_property
    def initial_rate(self) -> float | None:
        """Learning rate before anything changes it; None: a schedule says it for each step."""
        rate = self._rate
        if rate is None:
            rate = self.new_optimizer(1)._learning_rate
        if isinstance(rate, bool) or not isinstance(rate, int | float | np.number):
            if hasattr(rate, "get_config") or callable(rate) or isinstance(rate, dict):
                return None
            try:
                rate = float(np.asarray(rate))  # a variable of Keras
            except (TypeError, ValueError):
                rate = -1.0
        if not 0 <= rate < np.inf:
            raise self._error(
                f"learning_rate must be a number of at least 0, or a schedule, "
                f"not {self.learning_rate!r}"
            )
        return float(rate)

    def new_optimizer(self, steps: int) -> Any:
        """Return a Keras optimizer for one training of so many steps; imports Keras."""
        import keras

        optimizer = keras.optimizers.get(_terms.new(self.terms_optimizer))
        rate = self._rate
        if callable(rate) and not hasattr(rate, "get_config"):
            rate = rate(steps)
        if isinstance(rate, dict):
            rate = keras.optimizers.schedules.deserialize(rate)
        if rate is not None and self.initial_rate is not None:
            config = optimizer.get_config()  # that may have a schedule
            optimizer = type(optimizer).from_config(config | {"learning_rate": rate})
        elif rate is not None:
            optimizer.learning_rate = rate
        return optimizer

    @property
    def _rate(self) -> Any:
        named = self.learning_rate is None and isinstance(self.optimizer, str)
        return 1e-3 if named else self.learning_rate

    @property
    def terms_optimizer(self) -> Any:
        """The optimizer, by its one name if it was given by name."""
        return self.optimizer.lower() if isinstance(self.optimizer, str) else self.optimizer

    def natural(self, value: float) -> float:
        """Return the own value of what is searched for, of an objective; and the reverse."""
        return value if self.direction == "max" else 0.0 - value  # no negative zero

    def __getstate__(self) -> dict[str, object]:
        """Leave the data behind: the process that this is sent to loads it again."""
        return {name: value for name, value in vars(self).items() if name != "data"}

    @property
    def synthetic(self) -> bool:
        """Whether the data is generated: fit for trying things out, not for findings."""
        return self.name.endswith(f"-{_SYNTHETIC}")

    def with_data(self, source: str) -> Application:
        """Return the same task on other data.

        Parameters
        ----------
        source
            A directory with the files of the original data set, or ``synthetic:FEATURES``: made up,
            with about that many features.

        Raises
        ------
        ApplicationError
            The application has no such data, or the files are not what they should be.
        """
        kind, colon, size = source.partition(":")
        if kind == _SYNTHETIC and colon:
            return self._synthetic(size)
        if self.read is None:
            raise ApplicationError(
                f"application {self.name} reads no files: --data has no meaning for it"
            )
        name = self.name.removesuffix(f"-{_SYNTHETIC}")
        return self._on(name, functools.partial(self.read, Path(source)))

    def with_rows(self, most: str) -> Application:
        """Return the same task on fewer rows.

        Parameters
        ----------
        most
            ``TRAIN[,VALID[,TEST]]``: how many of each at most.

        Raises
        ------
        ApplicationError
            It says something else.
        """
        parts = most.split(",")
        if not all(part.isascii() and part.isdigit() and len(part) < 12 for part in parts):
            raise ApplicationError(
                f"--rows {most[:40]}: expected TRAIN, TRAIN,VALID or TRAIN,VALID,TEST as whole "
                "numbers of at least 1"
            )
        rows = [*map(int, parts), *(self.rows or ())[len(parts) :]]
        return replace(self, rows=rows)

    def with_scaled_rate(self, batch_size: int | None) -> Application:
        """Return the same task with a learning rate in proportion to the batch size; None: its own.

        The linear scaling rule of Goyal et al., *Accurate, large minibatch SGD* (2017), by which
        the searches of CANDLE's benchmarks scale, too.

        Raises
        ------
        ApplicationError
            Its learning rate is a schedule.
        """
        if self.initial_rate is None:
            raise self._error("--scale_learning_rate scales a number, not a schedule")
        factor = (batch_size or self.batch_size) / self.batch_size
        return replace(self, learning_rate=self.initial_rate * factor)

    def _synthetic(self, size: str) -> Application:
        if self.generate is None:
            raise ApplicationError(f"application {self.name}: there is no synthetic data for it")
        if not (size.isascii() and size.isdigit() and len(size) < 8 and int(size) >= 16):
            raise ApplicationError(
                f"--data synthetic:FEATURES: expected a number of features from 16 to 9999999, "
                f"found {size[:20]!r}"
            )
        return self._on(self.name, functools.partial(self.generate, int(size)))

    def _on(self, name: str, load: Callable[[], Data]) -> Application:
        """Return the same task on data whose shapes only the data tells."""
        data = load()
        shapes = [array.shape[1:] for array in as_tuple(data.x_train)]
        found = replace(self, name=name, load=load, input_shapes=shapes)
        # Where `functools.cached_property` looks first.
        vars(found)["data"] = found._saying(found._prepared, data)
        return found

    @property
    def namespace(self) -> str:
        """Name and digest of the data: models of different namespaces never match."""
        return f"{self.name}-{self.data.digest}"

    def describe_objective(self) -> dict[str, str | int]:
        """Return what an objective is here, for the record: metric, mode, validation rows."""
        rows = {"validation_rows": self.data.count("valid"), "test_rows": self.data.count("test")}
        rows["split_seed"] = self.split_seed
        return {"metric": self.objective_name, "mode": self.direction, **rows}

    def describe_training(self) -> dict[str, Any]:
        """Return how candidates are trained, for the record, as JSON values."""
        weights: Any = self.class_weight
        if isinstance(weights, Mapping):
            weights = {str(label): float(weight) for label, weight in weights.items()}
        augment = self.augment if isinstance(self.augment, Sequence) else (self.augment,)
        return {
            "losses": [_shown(head.loss) for head in self.heads],
            "metrics": list(self.metric_names),
            "optimizer": _shown(self.optimizer),
            "learning_rate": self.initial_rate or _shown(self._rate),
            "warmup_epochs": self.warmup_epochs,
            "precision": self.precision,
            "class_weight": weights,
            "sample_weights": self.data.w_train is not None,
            "callbacks": [callback.describe() for callback in self.watchers],
            "augment": [_shown(each) for each in augment if each is not None],
        }

    def space(self, chosen: SpaceChoice | None = None) -> Space:
        """Make a space for this application's shapes; None: the default space."""
        chosen = self.default_space if chosen is None else chosen
        if isinstance(chosen, str):
            found = find(chosen)
        elif isinstance(chosen, type) and issubclass(chosen, Space):
            found = chosen
        else:
            found = from_function(chosen)
        try:
            space = found(self.input_shapes, *self._ends)
        except SpaceError as misfit:
            raise SpaceError(f"application {self.name}: {misfit}") from misfit
        graph = _drawn(space)
        if graph is not None:
            shapes = shapes_of(self.input_shapes)
            self._saying(
                _network.check,
                space.name,
                graph,
                shapes,
                self.heads,
            )
        return space

    @property
    def _ends(self) -> tuple[Any, Any]:
        """Widths and activations of the outputs, as spaces take them."""
        if not self.outputs:
            return self.output_units, self.output_activation
        return tuple(head.units for head in self.heads), tuple(h.activation for h in self.heads)

    def _prepared(self, data: Data) -> Data:
        """Return data as engines take it; raises ApplicationError."""
        labels = _rows.Labels(self.heads[0].loss)
        shapes = shapes_of(self.input_shapes)
        found = Data(**{**data.fields(), **_arrays_of(data, shapes, labels)})
        terms = self._terms_for(found)
        found = self._parted(found, terms)
        parts = found.fields()
        for part in PARTS:
            name, x = f"y_{part}", parts[f"x_{part}"]
            if isinstance(x, Batches):
                self._targets(f"the first batch of x_{part}: y", x.first.y, terms)
            elif parts[name] is not None:
                parts[name] = self._targets(name, parts[name], terms)
        if self.class_weight is not None and isinstance(found.x_train, Batches):
            raise ApplicationError(
                "class_weight: a source of batches gives weights itself, as (x, y, weights)"
            )
        if self.class_weight is not None:
            weights = _rows.class_weights(self.class_weight, parts["y_train"], terms, labels)
            given = parts["w_train"]
            parts["w_train"] = weights if given is None else weights * given
        prepared = Data(**parts)
        _warn_of_shared_rows(self.name, prepared)
        return prepared

    def _targets(self, name: str, y: Arrays, terms: Terms) -> Arrays:
        """Return targets as the losses take them; raises ApplicationError."""
        targets = as_tuple(y)
        if len(targets) != len(self.heads):
            if not self.outputs:
                return y  # a function's networks may end in anything
            raise ApplicationError(
                f"{name} must be a tuple of targets for {len(self.heads)} outputs, found "
                f"{len(targets)}"
            )
        found = []
        for i, (target, judged, head) in enumerate(
            zip(targets, terms.outputs, self.heads, strict=True)
        ):
            own = name if len(targets) == 1 else f"{name}[{i}]"
            found.append(_rows.fit(own, target, judged, head.units, head.activation, head.metrics))
        return _alone(tuple(found))

    def _parted(self, data: Data, terms: Terms) -> Data:
        """Set validation rows aside if there are none, and leave out rows that are too many."""
        parts = data.fields()
        if data.count("valid") == 0:
            if isinstance(data.x_train, Batches):
                raise ApplicationError(
                    "no rows can be set aside of a source of batches: give x_valid, too"
                )
            rows = data.count("train")
            count = round(self.validation * rows)
            if not 0 < count < rows:
                raise ApplicationError(
                    f"validation={self.validation:g} of {rows} training rows leaves none to train "
                    "on or to judge by"
                )
            valid = _data.chosen(count, rows, _rows.classes(data.y_train, terms), self.split_seed)
            train = np.setdiff1d(np.arange(rows), valid)
            parts |= data.taking("valid", valid, "train") | data.taking("train", train)
        data = Data(**parts)
        for part, most in zip(PARTS, self.rows or (), strict=False):
            rows = data.count(part)
            if isinstance(getattr(data, f"x_{part}"), Batches):
                raise ApplicationError(
                    f"rows: a source of batches (x_{part}) has all of its own: say a shorter length"
                )
            if most < rows:
                labels = _rows.classes(getattr(data, f"y_{part}"), terms)
                taken = _data.chosen(most, rows, labels, self.split_seed)
                parts |= data.taking(part, taken)
        if data.version is not None:  # the shapes say how many were taken
            parts["version"] = f"{data.version}, {self.split_seed}"
        return Data(**parts)

    def _terms_for(self, data: Data) -> Terms:
        y = data.x_train.first.y if isinstance(data.x_train, Batches) else data.y_train
        several = not self.outputs and isinstance(y, tuple)
        targets = as_tuple(y)
        names = iter(self._metrics)
        outputs = []
        for i, head in enumerate(self.heads):
            target = None if several or i >= len(targets) else targets[i].shape[1:]
            loss = _terms.resolved_loss(head.loss, head.units, target)
            metrics = {
                next(names): _terms.resolved_metric(metric, loss, head.units, target)
                for metric in head.metrics
            }
            outputs.append(Judged(loss, metrics, head.weight))
        return Terms(tuple(outputs), self.terms_optimizer)

    def _error(self, what: str) -> ApplicationError:
        return ApplicationError(f"application {self.name}: {what}")

    def _saying(self, check: Callable[..., T], *arguments: Any) -> T:
        """Call what may find something wrong, and say which application it is wrong with."""
        try:
            return check(*arguments)
        except ApplicationError as wrong:
            raise self._error(str(wrong)) from wrong


def _shown(given: Any) -> Any:
    """Return what was given for a loss, an optimizer and the like, as a JSON value."""
    if given is None or isinstance(given, str | int | float):
        return given
    name = getattr(given, "__name__", None) or type(given).__name__
    if isinstance(given, dict):
        name = str(given.get("class_name", given))
    config = getattr(given, "get_config", None)
    if config is None or isinstance(given, type):
        return name
    plain = {k: v for k, v in config().items() if v is None or isinstance(v, str | int | float)}
    return {"name": name, **plain}


def _arrays_of(
    data: Data, shapes: Sequence[tuple[int, ...]], labels: _rows.Labels
) -> dict[str, Any]:
    """Return the parts of data as arrays, checked one by one."""
    found: dict[str, Any] = {}
    for part in PARTS:
        given = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
        if part != "train" and given[0] is None and given[1] is None:
            continue
        if Batches.is_source(given[0]):
            found[f"x_{part}"] = _source_of(part, *given, data.version, shapes)
            continue
        x = _rows.inputs_of(f"x_{part}", given[0], shapes, whole=data.version is None)
        y = _rows.targets_of(f"y_{part}", given[1], len(x[0]), labels)
        _rows.check_rows(f"x_{part} and y_{part}", (*x, *y))
        found |= {f"x_{part}": _alone(x), f"y_{part}": _alone(y)}
    if data.w_train is not None:
        if isinstance(found["x_train"], Batches):
            raise ApplicationError("w_train: a source of batches gives weights, (x, y, weights)")
        found["w_train"] = _rows.weights_of(
            "w_train", data.w_train, len(as_tuple(found["x_train"])[0])
        )
    return found


def _source_of(
    part: str, given: Any, y: object, version: str | None, shapes: Sequence[tuple[int, ...]]
) -> Batches:
    """Return a source of batches, checked by its first batch."""
    if version is None:
        raise ApplicationError(
            f"x_{part} is a source of batches, and nobody can tell what is in it: give "
            "Data(…, version=…), another one for other data, as stored models are found by it"
        )
    if y is not None:
        raise ApplicationError(f"y_{part}: a source of batches (x_{part}) gives the targets, too")
    try:
        source = given if isinstance(given, Batches) else Batches(given)
    except ApplicationError as wrong:
        raise ApplicationError(f"x_{part}: {wrong}") from None
    name = f"the first batch of x_{part}"
    first = source.first
    _rows.inputs_of(f"{name}: x", first.x if len(shapes) > 1 else first.x[0], shapes)
    targets = _rows.targets_of(f"{name}: y", first.y, len(first.x[0]), None)
    _rows.check_rows(f"{name}: x and y", (*first.x, *targets))
    return source


def _warn_of_shared_rows(name: str, data: Data) -> None:
    """Say how many test rows are no test, as the search sees them."""
    parts = data.x_test, data.x_train, data.x_valid
    hidden = any(isinstance(x, Batches) for x in parts) or (
        data.version is not None and not (data.in_memory("train") and data.in_memory("valid"))
    )
    if data.x_test is None or hidden or expected_rank() != 0:
        return
    shared = _data.shared_rows(data.x_test, iter((data.x_train, data.x_valid)))
    if shared:
        _log.warning(
            "application %s: %s of %s test rows stand among the training or validation rows, too",
            *(name, f"{shared:,}", f"{data.count('test'):,}"),
        )


def _alone(arrays: tuple[npt.NDArray[Any], ...]) -> Arrays:
    return arrays[0] if len(arrays) == 1 else arrays


def _drawn(space: Space) -> LayerGraph | None:
    """Return a network of a space; None if that one cannot be built, others may be."""
    try:
        return space.graph(space.sample(np.random.default_rng(0)))
    except Exception:  # a user's function may raise anything
        return None
