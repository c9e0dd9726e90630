"""What an application is: data, what goes in and out, and what a good model is."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from cpp_store.command_line import expected_rank

from graph_meta import LayerGraph
from transfer_nas.applications import _data, _network, _rows, _terms
from transfer_nas.applications._batches import Batches
from transfer_nas.applications._data import PARTS, Arrays, Data, as_tuple
from transfer_nas.applications._terms import Terms
from transfer_nas.errors import ApplicationError, InputError, SpaceError, near_misses
from transfer_nas.spaces import Choices, Space, find, from_function, shapes_of
from transfer_nas.values import Value, check_declared

if TYPE_CHECKING:
    from transfer_nas.training.program import FitContext, Trained

SpaceChoice = str | type[Space] | Callable[[Choices], Any]
"""The name of a space (`find`), a subclass of `Space`, or a function (`from_function`)."""

T = TypeVar("T")

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
        Keras name of the loss.
    metric
        Keras name of the metric that, on the validation rows, is the objective. ``accuracy`` is the
        one that goes with the targets, as in Keras.
    mode
        ``max`` if more of the metric is better, ``min`` if less is (the objective, which is
        maximised, is then the metric's negative). None: as is known of the metric (`direction`).
    optimizer
        Keras name of the optimizer.
    learning_rate
        Its learning rate.
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
        Changes inputs in training, and only there: layers of Keras for preprocessing (one, or a
        sequence), or a function ``augment(x, rng)`` that returns other inputs for those of a batch,
        with a NumPy generator. Random by the candidate's seed. None: nothing does.
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
        Name of the declared value that is the objective, in its direction; the metric is then a
        value like the others. None: the metric.
    fit
        Trains a Keras model instead of the usual loop: ``fit(model, data, context)`` returns the
        metrics on the validation rows, by name, the metric among them. `FitContext` says what it
        may use. The model has its inherited weights, and its frozen layers are not trainable. None:
        epochs with one optimizer.
    """

    name: str
    load: Callable[[], Data]
    input_shapes: Sequence[Sequence[int]] | Sequence[int] | int
    output_units: int
    loss: str
    metric: str
    output_activation: str | None = None
    mode: Literal["max", "min"] | None = None
    optimizer: str = "adam"
    learning_rate: float = 1e-3
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
    objective: str | None = None
    fit: Callable[[Any, Data, FitContext], Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "input_shapes", shapes_of(self.input_shapes))
        except SpaceError as wrong:
            raise self._error(str(wrong)) from wrong
        if self.mode is not None:
            object.__setattr__(self, "mode", self._saying(_terms.mode_of, self.mode))
        for name in ("output_units", "epochs", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise self._error(f"{name} must be a whole number of at least 1, not {value!r}")
        self._check_rows()
        self._check_values()

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
        unmeasured = [v.name for v in self.values if not measured and v.name != self.metric_name]
        if unmeasured:
            raise self._error(
                f"values: {', '.join(unmeasured)} declared, and there is no function `measure` "
                "that measures them"
            )
        if self.measure is not None and not self.values:
            raise self._error("measure() measures nothing, as no values are declared")
        if self.objective is None:
            return
        names = [value.name for value in self.values]
        if self.objective not in names:
            raise self._error(
                f"objective {self.objective!r} is not declared; "
                f"{near_misses(str(self.objective), names)}"
            )
        if self.values[names.index(self.objective)].direction is None:
            raise self._error(
                f"objective {self.objective}: is more of it better, or less? Declare it with "
                "direction 'max' or 'min'"
            )

    @functools.cached_property
    def declared(self) -> tuple[Value, ...]:
        """What each candidate is measured for: `values`, and the metric if it is no objective."""
        metric = self.metric_name
        if self.objective is None or metric in [value.name for value in self.values]:
            return tuple(self.values)
        way = self._saying(_terms.direction_of, self.metric, self.mode)
        return (*self.values, Value(metric, "", way, "on the validation rows"))

    @property
    def metric_name(self) -> str:
        """What the metric is called among values and metrics."""
        metric = self.metric if isinstance(self.metric, str) else type(self.metric).__name__
        return re.sub(r"\W", "_", _terms.plain_name(metric))

    @property
    def objective_name(self) -> str:
        """What is searched for, in words of `results.csv`: the metric, or a declared value."""
        return str(self.metric) if self.objective is None else self.objective

    @functools.cached_property
    def data(self) -> Data:
        """The data, loaded once, as arrays that all engines take alike, and checked.

        Raises
        ------
        ApplicationError
            `load` raises; what it returns does not fit the application; or loss, metric, optimizer,
            targets and outputs do not go together.
        """
        self._saying(_terms.check_names, self.loss, self.metric, self.optimizer)
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
        return self._saying(self._prepared, data)

    @functools.cached_property
    def terms(self) -> Terms:
        """Loss, metric and optimizer by the names that engines know; raises as `data`."""
        return self._terms_for(self.data)

    @property
    def direction(self) -> Literal["max", "min"]:
        """Which way of the objective is better, in its own numbers.

        Raises
        ------
        ApplicationError
            Nothing is known of the metric and `mode` does not say it, or it says the opposite.
        """
        for value in self.values:
            if value.name == self.objective and value.direction is not None:
                return value.direction
        return self._saying(_terms.direction_of, self.metric, self.mode)

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
        return {"metric": self.objective_name, "mode": self.direction, **rows}

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
            space = found(self.input_shapes, self.output_units, self.output_activation)
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
                self.loss,
                self.output_units,
                self.output_activation,
            )
        return space

    def _prepared(self, data: Data) -> Data:
        """Return data as engines take it; raises ApplicationError."""
        labels = _rows.Labels(self.loss)
        shapes = shapes_of(self.input_shapes)
        found = Data(**{**data.fields(), **_arrays_of(data, shapes, labels)})
        terms = self._terms_for(found)
        found = self._parted(found, terms)
        parts = found.fields()
        outputs = terms, self.output_units, self.output_activation, self.metric
        for part in PARTS:
            name, x = f"y_{part}", parts[f"x_{part}"]
            if isinstance(x, Batches):
                _rows.fit(f"the first batch of x_{part}: y", x.first.y, *outputs)
            elif parts[name] is not None and not isinstance(parts[name], tuple):
                parts[name] = _rows.fit(name, parts[name], *outputs)
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
        x, y, units = data.x_train, data.y_train, self.output_units
        y = x.first.y if isinstance(x, Batches) else y
        target = None if isinstance(y, tuple) else y.shape[1:]
        loss = _terms.resolved_loss(self.loss, units, target)
        metric = _terms.resolved_metric(self.metric, loss, units, target)
        optimizer = self.optimizer
        return Terms(loss, metric, optimizer.lower() if isinstance(optimizer, str) else optimizer)

    def _error(self, what: str) -> ApplicationError:
        return ApplicationError(f"application {self.name}: {what}")

    def _saying(self, check: Callable[..., T], *arguments: Any) -> T:
        """Call what may find something wrong, and say which application it is wrong with."""
        try:
            return check(*arguments)
        except ApplicationError as wrong:
            raise self._error(str(wrong)) from wrong


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
    _rows.targets_of(f"{name}: y", first.y, len(first.y), None)
    _rows.check_rows(f"{name}: x and y", (*first.x, first.y))
    return source


def _warn_of_shared_rows(name: str, data: Data) -> None:
    """Say how many test rows are no test, as the search sees them."""
    parts = data.x_test, data.x_train, data.x_valid
    hidden = any(isinstance(x, Batches) for x in parts) or (
        data.version is not None and data.is_streamed
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
