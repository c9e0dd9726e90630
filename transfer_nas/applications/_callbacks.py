"""What looks at a training after each epoch: early stopping, plateaus, callbacks of Keras.

The two that nearly all trainings have are here in a form that any engine can do; objects of Keras'
classes of these names become them. Other callbacks of Keras need its model.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from transfer_nas.applications import _terms
from transfer_nas.errors import ApplicationError, near_misses

Arrays = list[npt.NDArray[Any]]
Direction = Literal["max", "min"]


class Running(ABC):
    """A phase of a training, as what watches it sees it.

    Attributes
    ----------
    scale
        By which the learning rate of the next epochs is multiplied.
    rate
        Learning rate of this epoch, `scale` included; None: an optimizer's schedule has it.
    stopped
        Whether the phase ends with this epoch.
    """

    scale: float = 1.0
    rate: float | None = None
    stopped: bool = False

    @abstractmethod
    def weights(self) -> Arrays:
        """Return copies of all weights."""

    @abstractmethod
    def restore(self, weights: Arrays) -> None:
        """Set all weights."""

    @property
    @abstractmethod
    def model(self) -> Any:
        """The Keras model, if an engine trains it that has one."""


class Watch:
    """One callback in one phase of one training; does nothing."""

    def begin(self, running: Running) -> None:
        """Take note that the phase begins, or goes on after its process was killed."""

    def before(self, epoch: int, running: Running) -> None:
        """Take note that an epoch begins, from 0."""

    def after(self, epoch: int, logs: Mapping[str, float], running: Running) -> None:
        """Take note of what came of an epoch."""

    def end(self, running: Running) -> None:
        """Take note that the phase is over."""

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """Return what the next epoch depends on, as JSON values and arrays."""
        return {}, []

    def set_state(self, values: Mapping[str, Any], arrays: Arrays) -> None:
        """Undo `state`."""


class Callback(ABC):
    """What an application asks for; makes a `Watch` for each training.

    Attributes
    ----------
    needs_model
        Whether it takes a Keras model.
    monitor
        What it looks at; None: who knows.
    """

    needs_model: ClassVar[bool] = False
    monitor: str | None

    @abstractmethod
    def watch(self, direction: Callable[[str], Direction]) -> Watch:
        """Return what watches a training, given which way of what is monitored is better."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what it is, as JSON values."""


@dataclass(frozen=True, kw_only=True)
class _Monitor(Callback):
    monitor: str = "val_loss"
    min_delta: float = 0.0
    mode: Literal["auto", "max", "min"] = "auto"
    patience: int = 0

    def __post_init__(self) -> None:
        what = type(self).__name__
        if self.mode not in ("auto", "max", "min"):
            raise ApplicationError(f"{what}: mode must be auto, max or min, not {self.mode!r}")
        if isinstance(self.patience, bool) or self.patience < 0:
            raise ApplicationError(f"{what}: patience must be at least 0, not {self.patience!r}")

    def describe(self) -> dict[str, Any]:
        """See `Callback`."""
        return {"name": type(self).__name__, **dataclasses.asdict(self)}

    def _way(self, direction: Callable[[str], Direction]) -> Direction:
        return direction(self.monitor) if self.mode == "auto" else self.mode


@dataclass(frozen=True, kw_only=True)
class EarlyStopping(_Monitor):
    """Ends a training that gets no better; as Keras' callback of this name.

    Attributes
    ----------
    monitor
        ``val_loss``, ``loss``, or ``val_`` and the name of a metric.
    min_delta
        What is no more of an improvement is none.
    mode
        Which way is better; ``auto``: as is known of the metric.
    patience
        So many epochs without improvement end it.
    baseline
        To be improved upon, too, before patience starts anew.
    restore_best_weights
        Whether the weights at the end are those of the best epoch.
    start_from_epoch
        Epochs that are not looked at, at the beginning.
    """

    baseline: float | None = None
    restore_best_weights: bool = False
    start_from_epoch: int = 0

    def watch(self, direction: Callable[[str], Direction]) -> Watch:
        """See `Callback`."""
        return _Stopping(self, self._way(direction))


@dataclass(frozen=True, kw_only=True)
class ReduceLROnPlateau(_Monitor):
    """Lowers the learning rate of a training that gets no better; as Keras' callback of this name.

    Attributes
    ----------
    monitor, min_delta, mode, patience
        As of `EarlyStopping`.
    factor
        By which the rate is multiplied.
    cooldown
        Epochs after that in which nothing is counted.
    min_lr
        The rate goes no lower.
    """

    min_delta: float = 1e-4
    patience: int = 10
    factor: float = 0.1
    cooldown: int = 0
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.factor < 1:
            raise ApplicationError(
                f"ReduceLROnPlateau: factor must be between 0 and 1, not {self.factor!r}"
            )

    def watch(self, direction: Callable[[str], Direction]) -> Watch:
        """See `Callback`."""
        return _Plateau(self, self._way(direction))


class _Best(Watch):
    """Remembers the best value so far, and for how many epochs there was none."""

    def __init__(self, callback: _Monitor, way: Direction) -> None:
        self._callback: Any = callback
        self._sign = 1 if way == "max" else -1
        self._best = -math.inf
        self._wait = 0

    def _improves(self, value: float, on: float) -> bool:
        return bool(self._sign * value - abs(self._callback.min_delta) > on)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """See `Watch`."""
        best = None if math.isinf(self._best) else self._best
        return {"best": best, "wait": self._wait}, []

    def set_state(self, values: Mapping[str, Any], arrays: Arrays) -> None:
        """See `Watch`."""
        self._best = -math.inf if values["best"] is None else values["best"]
        self._wait = values["wait"]


class _Stopping(_Best):
    """See `EarlyStopping`; the steps are those of Keras."""

    _weights: Arrays | None = None

    def after(self, epoch: int, logs: Mapping[str, float], running: Running) -> None:
        """See `Watch`."""
        callback, value = self._callback, logs[self._callback.monitor]
        if epoch < callback.start_from_epoch:
            return
        keeps = callback.restore_best_weights
        if keeps and self._weights is None:
            self._weights = running.weights()
        self._wait += 1
        if self._improves(value, self._best):
            self._best = self._sign * value
            if keeps:
                self._weights = running.weights()
            baseline = callback.baseline
            if baseline is None or self._improves(value, self._sign * baseline):
                self._wait = 0
        elif self._wait >= callback.patience and epoch > 0:
            running.stopped = True

    def end(self, running: Running) -> None:
        """See `Watch`."""
        if self._weights is not None:
            running.restore(self._weights)

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """See `Watch`."""
        values, _ = super().state()
        return values, list(self._weights or ())

    def set_state(self, values: Mapping[str, Any], arrays: Arrays) -> None:
        """See `Watch`."""
        super().set_state(values, arrays)
        self._weights = arrays or None


class _Plateau(_Best):
    """See `ReduceLROnPlateau`; the steps are those of Keras."""

    _rest = 0

    def after(self, epoch: int, logs: Mapping[str, float], running: Running) -> None:
        """See `Watch`."""
        callback, value = self._callback, logs[self._callback.monitor]
        if self._rest:
            self._rest -= 1
            self._wait = 0
        if self._improves(value, self._best):
            self._best = self._sign * value
            self._wait = 0
        elif not self._rest:
            self._wait += 1
            rate = running.rate or 0.0
            if self._wait >= callback.patience and rate > callback.min_lr:
                lower = max(rate * callback.factor, callback.min_lr)
                running.scale *= lower / rate
                running.rate = lower
                self._rest, self._wait = callback.cooldown, 0

    def state(self) -> tuple[dict[str, Any], Arrays]:
        """See `Watch`."""
        values, arrays = super().state()
        return values | {"rest": self._rest}, arrays

    def set_state(self, values: Mapping[str, Any], arrays: Arrays) -> None:
        """See `Watch`."""
        super().set_state(values, arrays)
        self._rest = values["rest"]


class KerasCallback(Callback):
    """Any callback of Keras.

    Parameters
    ----------
    make
        Makes a new one.
    """

    needs_model = True
    monitor = None

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._name = type(make()).__name__

    def watch(self, direction: Callable[[str], Direction]) -> KerasWatch:
        """See `Callback`."""
        return KerasWatch(self._make())

    def describe(self) -> dict[str, Any]:
        """See `Callback`."""
        return {"name": self._name}


class KerasWatch(Watch):
    """Tells a callback of Keras of epochs, and does what it asks for.

    Attributes
    ----------
    callback
        Of Keras.
    """

    def __init__(self, callback: Any) -> None:
        self.callback = callback

    @property
    def sees_batches(self) -> bool:
        """Whether it does anything at single steps."""
        from keras.callbacks import Callback

        names = ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end")
        kind = type(self.callback)
        own = any(getattr(kind, name) is not getattr(Callback, name) for name in names)
        return own or kind.__name__ == "LambdaCallback"

    def begin(self, running: Running) -> None:
        """See `Watch`."""
        running.model.stop_training = False
        self.callback.set_model(running.model)
        self.callback.on_train_begin({})

    def before(self, epoch: int, running: Running) -> None:
        """See `Watch`."""
        self._call("on_epoch_begin", epoch, {}, running)

    def after(self, epoch: int, logs: Mapping[str, float], running: Running) -> None:
        """See `Watch`."""
        self._call("on_epoch_end", epoch, dict(logs), running)
        running.stopped |= bool(running.model.stop_training)

    def end(self, running: Running) -> None:
        """See `Watch`."""
        self.callback.on_train_end({})

    def _call(self, hook: str, epoch: int, logs: dict[str, float], running: Running) -> None:
        """Call the callback, which finds the learning rate in the optimizer, and may change it."""
        optimizer = running.model.optimizer
        if running.rate is None:
            getattr(self.callback, hook)(epoch, logs)
            return
        optimizer.learning_rate = running.rate
        before = float(np.asarray(optimizer.learning_rate))
        getattr(self.callback, hook)(epoch, logs)
        after = float(np.asarray(optimizer.learning_rate))
        if after != before:
            running.scale *= after / before if before else 0.0
            running.rate = after


def found(given: Any) -> tuple[Callback, ...]:
    """Return an application's callbacks; raises ApplicationError."""
    several = given() if callable(given) else given
    if isinstance(several, str) or not isinstance(several, Sequence):
        raise ApplicationError(f"callbacks: expected a list, found {several!r:.60}")
    return tuple(_one(given, i, each) for i, each in enumerate(several))


def _one(given: Any, place: int, each: Any) -> Callback:
    if isinstance(each, Callback):
        return each
    made = _terms.new(each) if _terms.is_maker(each) else each
    if isinstance(made, Callback):
        return made
    if not hasattr(made, "on_epoch_end"):
        raise ApplicationError(
            f"callbacks: expected EarlyStopping, ReduceLROnPlateau, or a function that makes a "
            f"callback of Keras, found {each!r:.60}"
        )
    import keras

    for kind in (EarlyStopping, ReduceLROnPlateau):
        if type(made) is getattr(keras.callbacks, kind.__name__):
            return kind(
                **{field.name: getattr(made, field.name) for field in dataclasses.fields(kind)}
            )
    if callable(given):
        return KerasCallback(
            lambda: _terms.new(given()[place]) if made is not each else given()[place]
        )
    if made is each:
        raise ApplicationError(
            f"callbacks: a {type(each).__name__} serves one training only: give a function that "
            "makes it"
        )
    return KerasCallback(lambda: _terms.new(each))


def check(callbacks: Sequence[Callback], known: Sequence[str], scheduled: bool) -> None:
    """Raise ApplicationError unless what is monitored is measured.

    Parameters
    ----------
    callbacks
        All of an application.
    known
        What is measured after an epoch.
    scheduled
        Whether a schedule of Keras says the learning rate.
    """
    for callback in callbacks:
        what = type(callback).__name__
        if callback.monitor is not None and callback.monitor not in known:
            raise ApplicationError(
                f"{what}: nothing is called {callback.monitor!r}; "
                f"{near_misses(callback.monitor, known)}"
            )
        if scheduled and isinstance(callback, ReduceLROnPlateau):
            raise ApplicationError(
                f"{what} changes the learning rate, which is a schedule here: leave one of them out"
            )
