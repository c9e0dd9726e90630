"""What a candidate's training is: a program that runs its phases and judges it.

`Epochs` is the usual one; `Fit` calls the function of an application that trains in its own way
(`Application.fit`). The trainer decides where weights come from and what is frozen, whichever runs.
"""

from __future__ import annotations

import functools
import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from graph_meta import LayerGraph
from transfer_nas.applications import Application, Arrays, Data
from transfer_nas.applications._callbacks import KerasWatch, Running, Watch
from transfer_nas.job import Report
from transfer_nas.logs import Log
from transfer_nas.objectives import short_name
from transfer_nas.training._base import Candidate
from transfer_nas.training.policy import Phase, Policy
from transfer_nas.training.resumption import Resumption
from transfer_nas.values import ValuesError

if TYPE_CHECKING:
    import keras

LOSS = "loss"
_TESTED = 256  # rows at a time


class Outcome(NamedTuple):
    """What came of a training.

    Attributes
    ----------
    metrics
        On the validation rows; `Application.metric_names` are among them.
    epochs
        How many were trained.
    """

    metrics: Mapping[str, float]
    epochs: int


@dataclass(frozen=True)
class Context:
    """What a program may use.

    Attributes
    ----------
    application
        Data, metric, learning rate.
    policy
        Says the learning rate of each epoch.
    seed
        Of everything random.
    batch_size
        Rows a step.
    resumption
        Where it saves how far it is.
    log
        The section of the evaluation.
    log_validation
        Whether to validate after each epoch, for the log.
    report
        Takes what there is to say of each epoch; None: nobody wants to know.
    """

    application: Application
    policy: Policy
    seed: int
    batch_size: int
    resumption: Resumption
    log: Log
    log_validation: bool
    report: Report | None


class Program(ABC):
    """Trains candidates and judges them; one for all candidates of a trainer.

    Attributes
    ----------
    name
        A checkpoint of another program is not taken.
    """

    name: ClassVar[str]

    @abstractmethod
    def run(self, candidate: Candidate, phases: Sequence[Phase], context: Context) -> Outcome:
        """Train a candidate, which has the weights that it starts from, and judge it."""


class Epochs(Program):
    """Epochs over all training rows with one optimizer a phase."""

    name = "epochs"

    def run(self, candidate: Candidate, phases: Sequence[Phase], context: Context) -> Outcome:
        """See `Program`; ends early when a loss is not finite, as nothing good comes after it."""
        rng = np.random.default_rng(context.seed)
        before = context.resumption.ran
        for number, phase in enumerate(phases):
            if not context.resumption.is_over(number):
                done, over = self._phase(candidate, number, phase, before, context, rng)
                before += done
                if over:
                    break
        return self._judged(candidate, before, context)

    def _phase(
        self,
        candidate: Candidate,
        number: int,
        phase: Phase,
        before: int,
        context: Context,
        rng: np.random.Generator,
    ) -> tuple[int, bool]:
        """Train for a phase; return its epochs, and whether nothing shall come after them."""
        application, resumption = context.application, context.resumption
        watches = [each.watch(application.direction_of) for each in application.watchers]
        training = candidate.training(
            phase.frozen,
            epochs=phase.epochs,
            callbacks=[
                each.callback
                for each in watches
                if isinstance(each, KerasWatch) and each.sees_batches
            ],
        )
        if training is None:
            return phase.epochs, False
        phase_of = _Phase(candidate, watches, context.policy, application, phase.epochs)
        first = resumption.first_epoch(number, training, rng, phase_of.set_state)
        for watch in watches:
            watch.begin(phase_of)
        ordered = application.data.ordered
        done, over = first, False
        while done < phase.epochs and not (phase_of.stopped or over):
            phase_of.begin_epoch(done)
            loss = training.epoch(rng.permutation(ordered), phase_of.rate)
            done += 1
            step = before + done
            section = context.log.section("epoch", step)
            section.set(loss=loss, learning_rate=phase_of.rate)
            if not math.isfinite(loss):
                return done, True
            said: dict[str, float] = {LOSS: loss}
            if context.log_validation or context.report is not None or watches:
                judged = candidate.validate()
                _log_validated(section, judged)
                said |= {"val_loss": judged[LOSS]} | {
                    name: value for name, value in judged.items() if name != LOSS
                }
                phase_of.end_epoch(done - 1, loss, judged)
            resumption.after(number, done, training, rng, ran=before, more=phase_of.state)
            if context.report is not None and context.report(step, said):
                over = True
        for watch in watches:
            watch.end(phase_of)
        return done, over

    @staticmethod
    def _judged(candidate: Candidate, epochs: int, context: Context) -> Outcome:
        judged = candidate.validate()
        _log_validated(context.log.section("epoch", epochs), judged)
        return Outcome(judged, epochs)


class _Phase(Running):
    """A phase of `Epochs`: its learning rate, and what watches it."""

    def __init__(
        self,
        candidate: Candidate,
        watches: Sequence[Watch],
        policy: Policy,
        application: Application,
        epochs: int,
    ) -> None:
        self._candidate, self._watches = candidate, watches
        self._policy, self._application, self._epochs = policy, application, epochs

    def begin_epoch(self, epoch: int) -> None:
        """Set the learning rate of an epoch, from 0, and tell what watches."""
        base, warm = self._application.initial_rate, self._application.warmup_epochs
        if base is not None:
            rate = self._policy.learning_rate(base, epoch, self._epochs)
            self.rate = rate * min(1.0, (epoch + 1) / (warm + 1)) * self.scale
        for watch in self._watches:
            watch.before(epoch, self)

    def end_epoch(self, epoch: int, loss: float, judged: Mapping[str, float]) -> None:
        """Tell what watches what came of an epoch."""
        logs = {LOSS: loss, **{f"val_{name}": value for name, value in judged.items()}}
        for watch in self._watches:
            watch.after(epoch, logs, self)

    def state(self) -> tuple[dict[str, Any], list[npt.NDArray[Any]]]:
        """Return what the next epoch depends on beside the training."""
        states = [watch.state() for watch in self._watches]
        values = {
            "scale": self.scale,
            "stopped": self.stopped,
            "watches": [[values, len(arrays)] for values, arrays in states],
        }
        return values, [array for _, arrays in states for array in arrays]

    def set_state(self, values: Mapping[str, Any], arrays: Sequence[npt.NDArray[Any]]) -> None:
        """Undo `state`."""
        self.scale, self.stopped = values["scale"], values["stopped"]
        left = iter(arrays)
        for watch, (own, count) in zip(self._watches, values["watches"], strict=True):
            watch.set_state(own, [next(left) for _ in range(count)])

    def weights(self) -> list[npt.NDArray[Any]]:
        """See `Running`."""
        return _all_weights(self._candidate)

    def restore(self, weights: list[npt.NDArray[Any]]) -> None:
        """See `Running`."""
        _restore(self._candidate, weights)

    @property
    def model(self) -> Any:
        """See `Running`."""
        return self._candidate.model


class Fit(Program):
    """Calls a user's function once a phase."""

    name = "fit"

    def __init__(self, function: Callable[[Any, Data, FitContext], Mapping[str, Any]]) -> None:
        self._function = function

    def run(self, candidate: Candidate, phases: Sequence[Phase], context: Context) -> Outcome:
        """See `Program`.

        Raises
        ------
        ValuesError
            The function does not return what it should.
        Exception
            Whatever it raises.
        """
        resumption = context.resumption
        before, metrics = resumption.ran, dict[str, float]()
        for number, phase in enumerate(phases):
            if resumption.is_over(number):
                continue
            saved = resumption.start_of(number)
            if saved is not None:
                _restore(candidate, saved)
            with ExitStack() as stack:
                own = FitContext(candidate, number, phase, before, context, stack)
                model = candidate.network(phase.frozen)
                found = self._function(model, context.application.data, own)
                metrics = _returned(context.application, found)
            before += own.ran
            _log_validated(context.log.section("epoch", before), metrics)
            if own.stopped:
                break
        return Outcome(metrics, before)


class FitContext:
    """What a user's `fit` may use; one for each call.

    Attributes
    ----------
    epochs
        For how many the candidate shall train in this phase: its budget.
    seed
        Of everything random in it.
    batch_size, learning_rate
        Of the application, or what the command says.
    phase
        0, or 1 in the second phase of the policy ``freeze_then_finetune``.
    stopped
        Whether `report` has said so.
    """

    def __init__(
        self,
        candidate: Candidate,
        number: int,
        phase: Phase,
        before: int,
        context: Context,
        stack: ExitStack,
    ) -> None:
        self.epochs = phase.epochs
        self.seed = context.seed
        self.batch_size = context.batch_size
        self.learning_rate = context.application.initial_rate
        self.phase = number
        self.stopped = False
        self._reported = 0
        self._before = before
        self._candidate = candidate
        self._context = context
        self._stack = stack
        # Before the function changes them; saved if it saves anything itself.
        self._start = _all_weights(candidate)

    @property
    def ran(self) -> int:
        """How many epochs were reported so far, or else `epochs`."""
        return self._reported or self.epochs

    @functools.cached_property
    def directory(self) -> Path:
        """A directory for checkpoints.

        When the search is killed and resumed, the job is called again with the same model, weights
        and frozen layers, and finds here what it wrote. Removed when the job is finished.
        """
        kept = self._context.resumption.directory(self.phase, self._before, self._start)
        if kept is not None:
            return kept
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fit-")))

    def renew_statistics(self) -> None:
        """Make running statistics of normalizations those of the weights, before judging them."""
        self._candidate.renew_statistics()

    def validate(self) -> dict[str, float]:
        """Return loss and metrics on the validation rows, by their names; renews statistics.

        Those that `compile` of Keras does not take are among them (`training.scores`).
        """
        return dict(self._candidate.validate())

    def report(self, epoch: int, values: Mapping[str, float]) -> bool:
        """Say what came of an epoch; return whether to stop now.

        Parameters
        ----------
        epoch
            From 1, in this phase.
        values
            Numbers by name. Under the name of the application's metric, that on the validation
            rows: it goes to the algorithm as ``objective``, too.
        """
        numbers = {str(name): float(value) for name, value in values.items()}
        self._reported = max(self._reported, int(epoch))
        step = self._before + int(epoch)
        self._context.log.section("epoch", step).set(**numbers)
        if self._context.report is not None and self._context.report(step, numbers):
            self.stopped = True
        return self.stopped


class Trained:
    """A trained candidate, as `Application.measure` sees it: nothing done to it changes it.

    Attributes
    ----------
    graph
        Its layers.
    data
        The application's.
    epochs
        How many it was trained.
    """

    def __init__(self, candidate: Candidate, application: Application, epochs: int) -> None:
        self.graph: LayerGraph = candidate.graph
        self.data: Data = application.data
        self.epochs = epochs
        self._candidate = candidate
        self._application = application

    def predict(self, inputs: Arrays) -> npt.NDArray[Any]:
        """Return the outputs for rows, by the engine that trained it."""
        return self._candidate.predict(inputs)

    def tested(self) -> dict[str, float] | None:
        """Return loss and metrics on the test rows; None if there are none. Imports Keras."""
        from transfer_nas.training.feeding import Feed
        from transfer_nas.training.keras_engine import judge

        if self.data.x_test is None:
            return None
        batches = Feed(self.data, "test", _TESTED).batches()
        return judge(self.model(), self._application, batches)

    def model(self) -> keras.Model:
        """Return a compiled Keras model with its weights; imports Keras."""
        from graph_meta import keras_io
        from transfer_nas.training.keras_engine import compile_model

        model = keras_io.to_keras(self.graph)
        keras_io.set_weights(model, self._candidate.tensors(self.graph.names))
        compile_model(model, self._application)
        return model


def _all_weights(candidate: Candidate) -> list[npt.NDArray[Any]]:
    return [
        np.array(array)
        for arrays in candidate.tensors(candidate.graph.names).values()
        for array in arrays
    ]


def _restore(candidate: Candidate, saved: Sequence[npt.NDArray[Any]]) -> None:
    arrays = iter(saved)
    own = candidate.tensors(candidate.graph.names)
    candidate.load({name: [next(arrays) for _ in known] for name, known in own.items()})


def _returned(application: Application, found: object) -> dict[str, float]:
    """Return what a user's `fit` returned; raises ValuesError."""
    if not isinstance(found, Mapping):
        raise ValuesError(f"fit(): expected a dict of metrics, found {found!r:.60}")
    metrics = {}
    for name, value in found.items():
        try:
            metrics[str(name)] = float(value)
        except (TypeError, ValueError):
            raise ValuesError(f"fit(): expected a number as {name}, found {value!r:.60}") from None
    for judged in application.terms.outputs:
        for own, term in judged.metrics.items():
            if own not in metrics and isinstance(term, str) and term in metrics:
                metrics[own] = metrics.pop(term)
    wanted = application.metric_names if application.outputs else application.metric_names[:1]
    goal = application.objective
    if isinstance(goal, str) and application.objective_name in (*application.metric_names, LOSS):
        wanted = (application.objective_name,)
    names = ", ".join(metrics) or "nothing"
    for own in wanted:
        if own not in metrics:
            raise ValuesError(
                f"fit(): expected the metric {own} among what it returns, found {names}"
            )
    return metrics


def _log_validated(section: Log, judged: Mapping[str, float]) -> None:
    section.set(**{f"val_{short_name(name)}": value for name, value in judged.items()})
