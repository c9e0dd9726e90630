"""Evaluates candidates: each starts from the weights of the stored model that shares its prefix."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graph_meta import LayerGraph
from graph_meta.graph import GraphError, Layer
from transfer_nas import tracing, trained_model, training
from transfer_nas.applications import Application, as_tuple
from transfer_nas.checkpoint import Checkpoint
from transfer_nas.errors import TransferError, TransferUnavailable
from transfer_nas.job import DONE, Evaluation, Job, Measure, Report
from transfer_nas.logs import Log
from transfer_nas.models import Models
from transfer_nas.sharing import LongestPrefix, Sharing
from transfer_nas.spaces import Space
from transfer_nas.training import Candidate, Engine, growth
from transfer_nas.training.policy import POLICIES, Phase, Policy
from transfer_nas.training.program import (
    LOSS,
    Context,
    Epochs,
    Fit,
    Outcome,
    Program,
    Trained,
)
from transfer_nas.training.resumption import SAVE_EVERY, Resumption
from transfer_nas.transfer import Inheritance, Tensors, TransferMethod
from transfer_nas.values import check_found, taken

__all__ = ["POLICIES", "TransferTrainer"]

_Weights = dict[str, Sequence[npt.NDArray[Any]]]

_WARM_UP, _FEWEST, _LATENCY_SECONDS = 3, 10, 0.05
"""Predictions to leave out, and to make at least; for how long."""
_DRAWN = 4  # networks of a space that tell which engine trains
_log = logging.getLogger(__name__)


class TransferTrainer:
    """Builds, trains, judges and stores the model of one candidate after the other.

    Small networks train in NumPy, others in Keras (`transfer_nas.training`). Keras and its backend
    are imported with the first that needs it. From then on the process belongs to evaluations:
    Keras' session is cleared and its seed set before each.

    One thread evaluates; `retire` may be called from another at any time.

    Parameters
    ----------
    application
        Data, loss, metric, optimizer.
    space
        Turns architectures into layer graphs.
    transfer
        Where models are put and found; it stays the caller's.
    policy
        What becomes of inherited layers, and how long their heirs train: a `Policy`, or its name.
    epochs, batch_size
        None: the application's.
    run
        Distinguishes the models of this search from those of others in the same place; see
        `Models`.
    sharing
        Which stored model a candidate starts from; None: that of the longest prefix.
    engine
        One of `transfer_nas.training.ENGINES`, or the name of an entry point.
    checkpoint
        Where trainings save how far they are, each in the section of its job's id, to go on from
        there when the job is evaluated again. Who knows that a job is finished removes its
        section. None: nowhere.
    save_every
        Seconds between two savings.
    log
        Gets a section for each evaluation, and one for each epoch in it.
    log_validation
        Validate after each epoch, for the log; otherwise only the last one has been.
    latency_rows
        Rows of the batch whose latency is measured, after training; None: it is not.

    Raises
    ------
    InputError
        Policy or engine is unknown.
    """

    def __init__(
        self,
        application: Application,
        space: Space,
        transfer: TransferMethod,
        *,
        policy: str | Policy = "freeze",
        epochs: int | None = None,
        batch_size: int | None = None,
        run: str = "",
        sharing: Sharing | None = None,
        engine: str = "auto",
        checkpoint: Checkpoint | None = None,
        save_every: float = SAVE_EVERY,
        log: Log | None = None,
        log_validation: bool = False,
        latency_rows: int | None = None,
    ) -> None:
        training.check_engine(engine)
        self.application = application
        self.space = space
        self.policy = policy if isinstance(policy, Policy) else Policy(policy)
        self.epochs = application.epochs if epochs is None else epochs
        self.batch_size = application.batch_size if batch_size is None else batch_size
        self._sharing = sharing or LongestPrefix()
        self._engine = engine
        self._checkpoint = checkpoint
        self._save_every = save_every
        self._log = log or Log()
        self._log_validation = log_validation
        self._latency_rows = latency_rows
        self._models = Models(transfer, run)
        self._transfer, self._run = transfer, run
        self._said: set[str] = set()
        self._unreported: dict[str, Measure] = {}  # what failed in `retire`: the next one says so
        self._last: Candidate | None = None

    def with_policy(self, policy: Policy, epochs: int) -> TransferTrainer:
        """Return a trainer of the same models, without checkpoints, that trains otherwise."""
        return TransferTrainer(
            self.application,
            self.space,
            self._transfer,
            policy=policy,
            epochs=epochs,
            batch_size=self.batch_size,
            run=self._run,
            sharing=self._sharing,
            engine=self._engine,
        )

    def describe(self) -> str:
        """Return in one line which engine trains and why: what a search says at its start.

        Looks at a few networks of the space. Loads the data; raises as `Application.data` does.
        """
        engines, rng = self._engines, np.random.default_rng(0)
        graphs = []
        for _ in range(_DRAWN if len(engines) > 1 else 0):
            with contextlib.suppress(Exception):  # one that cannot be built costs its candidate
                graphs.append(self.space.graph(self.space.sample(rng)))
        return training.describe(self.application, self._engine, engines, graphs)

    def evaluate(self, job: Job, report: Report | None = None) -> Evaluation:
        """Train the model of a job and judge it on the validation rows.

        Parameters
        ----------
        job
            Its seed decides on initial weights, order of rows and dropout: equal jobs that find
            equal ancestors have equal objectives.
        report
            Takes each epoch, with ``objective`` among its values where that is known, and says
            whether the training shall end with it; None: nobody wants to know.

        Returns
        -------
        Evaluation
            With the measures ``ancestor`` (model id), ``layers``, ``layers_transferred``,
            ``parameters``, ``flops``, ``bytes_transferred``, ``bytes_stored``, ``bytes_whole_copy``
            (what the model takes without sharing), ``match_seconds``, ``build_seconds``,
            ``load_seconds`` (reading and setting weights), ``train_seconds`` (with judging),
            ``store_seconds``, ``epochs``, ``engine``, ``layers_grown`` (with `Policy.grow`), and
            ``transfer_error`` where the transfer method failed (the candidate then goes without
            it), and what the application declares. ``F_nan`` if objective or loss is not a finite
            number; ``F_`` and the exception's name for whatever
            building or training raised. A failure's measure ``error`` says why, in one line.
            Nothing but what is no `Exception` is raised.
        """
        evaluation = self._try(job, report)
        self._log.section("evaluation", job.id).set(
            status=evaluation.status, objective=evaluation.objective, **evaluation.measures
        )
        return evaluation

    def _try(self, job: Job, report: Report | None) -> Evaluation:
        self._last = None  # its memory is needed now
        measures: dict[str, Measure] = {}
        try:
            candidate, objective = self._evaluate(job, measures, report)
        except Exception as error:  # a user's application may raise anything
            _log.exception("job %d failed", job.id)
            return Evaluation.failure(job, type(error).__name__, measures, error=error)
        if not math.isfinite(objective):
            why = "loss or objective is not a finite number"
            _log.warning("job %d failed: %s", job.id, why)
            return Evaluation.failure(job, "nan", measures, error=why)
        self._last = candidate
        return Evaluation(job, DONE, objective, measures)

    def save_model(self, path: Path) -> None:
        """Write the model of the last evaluation that worked.

        Parameters
        ----------
        path
            ``.safetensors``: layer graph and weights, in milliseconds (`trained_model.write`);
            otherwise ``.keras``, for plain Keras (`trained_model.write_keras`).
        """
        if self._last is None:
            raise ValueError("no evaluation has worked yet: there is no model to save")
        graph = self._last.graph
        tensors = self._last.tensors(graph.names)
        if path.suffix == trained_model.SUFFIX:
            trained_model.write(path, graph, tensors)
        else:
            trained_model.write_keras(path, graph, tensors, self.application)

    def tested(self) -> dict[str, float] | None:
        """Return loss and metric of the last evaluation that worked, on the test rows.

        For who has chosen: a search never calls it. None if there are no test rows.
        """
        if self._last is None:
            return None
        return Trained(self._last, self.application, self.epochs).tested()

    def retire(self, jobs: Iterable[int]) -> None:
        """Take the models of jobs out of the candidates for ancestors."""
        try:
            self._models.retire(jobs)
        except TransferError as error:
            self._without_transfer(error, self._unreported)

    def _evaluate(
        self, job: Job, measures: dict[str, Measure], report: Report | None
    ) -> tuple[Candidate, float]:
        """Return the trained candidate, stored unless it is worthless, and its objective."""
        graph = self.space.graph(job.architecture).without_dead_ends()
        measures |= self._known_before(graph)
        engine = next(each for each in self._engines if each.obstacle(graph) is None)
        measures["engine"] = engine.name
        with _timed(measures, "build_seconds"):
            # Before the candidate: it has the process to itself from its making on.
            given = self.space.start(job.architecture)
        resumption = self._resumption(job, engine)
        fetch = functools.partial(self._fetch, job, graph, resumption.task is None)
        with contextlib.ExitStack() as leases:
            fetched = self._started(fetch, leases, at_once=not engine.is_slow_to_build)
            with _timed(measures, "build_seconds"):
                candidate = engine.candidate(graph, job.seed)
                candidate.load(_completed(given, candidate))
            ancestry = fetched.result()
            measures |= ancestry.measures
            phases = self._prepare(job, candidate, ancestry, resumption, measures)
            with _timed(measures, "train_seconds"):
                context = self._context(job, resumption, report)
                outcome = self._program.run(candidate, phases, context)
            measures["epochs"] = outcome.epochs
            objective = self._objective(candidate, outcome, measures)
            if self._latency_rows is not None:
                with tracing.span("latency"):
                    x = self.application.data.x_valid
                    measures["latency_ms"] = _latency(candidate, x, self._latency_rows)
            if math.isfinite(objective):
                with _timed(measures, "store_seconds"):
                    self._put(job, candidate, objective, ancestry, phases, measures)
        return candidate, objective

    def _known_before(self, graph: LayerGraph) -> dict[str, Measure]:
        """Return what is known of a candidate before anything happens to it."""
        measures: dict[str, Measure] = {
            "layers": len(graph),
            "layers_transferred": 0,
            "parameters": graph.parameters,
            "bytes_transferred": 0,
            "bytes_stored": 0,
            "bytes_whole_copy": graph.nbytes,
        }
        with contextlib.suppress(GraphError):  # nobody knows what a layer of the user's own costs
            measures["flops"] = graph.flops
        if self._unreported:
            measures["transfer_error"] = self._unreported.popitem()[1]
        return measures

    def _prepare(
        self,
        job: Job,
        candidate: Candidate,
        ancestry: _Ancestry,
        resumption: Resumption,
        measures: dict[str, Measure],
    ) -> list[Phase]:
        """Set the weights that a candidate starts from; return the phases of its training."""
        graph = candidate.graph
        if resumption.task is not None:
            phases, inherited, earlier = resumption.task
            ancestry.loaded = dict(inherited)
            candidate.load(inherited)
            measures |= earlier
            inheritance = ancestry.inheritance
            if inheritance is not None and inheritance.ancestor != earlier.get("ancestor"):
                ancestry.is_shared = False
        elif ancestry.inheritance is None and job.parent is None:
            phases = self._phases(job, graph, (), ())
        else:
            with _timed(measures, "load_seconds"):
                loaded = ancestry.loaded
                grown = self._grown(job, graph, ancestry.parent, measures)
                phases = self._phases(job, graph, loaded, grown)
                candidate.load(self._starts(candidate, loaded, grown, phases[0].frozen))
        resumption.begin(phases, ancestry.loaded, measures)
        return phases

    def _context(self, job: Job, resumption: Resumption, report: Report | None) -> Context:
        return Context(
            application=self.application,
            policy=self.policy,
            seed=job.seed,
            batch_size=self.batch_size,
            resumption=resumption,
            log=self._log.section("evaluation", job.id, anew=resumption.task is None),
            log_validation=self._log_validation,
            report=report and functools.partial(self._tell, report),
        )

    def _tell(self, report: Report, epoch: int, values: Mapping[str, float]) -> bool:
        """Report an epoch, with what the search maximises if that is known."""
        application = self.application
        with contextlib.suppress(Exception):  # what is measured at the end only, or a user's error
            values = {**values, "objective": application.objective_of(_judged(values))}
        return report(epoch, values)

    @functools.cached_property
    def _program(self) -> Program:
        return Epochs() if self.application.fit is None else Fit(self.application.fit)

    @functools.cached_property
    def _engines(self) -> Sequence[Engine]:
        return training.engines(self.application, self.batch_size, self.epochs, self._engine)

    def _started(
        self, fetch: Callable[[], _Ancestry], leases: contextlib.ExitStack, *, at_once: bool
    ) -> Future[_Ancestry]:
        """Call `fetch`, at once or in a thread; `leases` will end what it leased, come what may."""
        if at_once:
            fetched: Future[_Ancestry] = Future()
            fetched.set_result(fetch())
        else:
            fetched = self._thread.submit(fetch)
        leases.callback(_end_lease, fetched)
        return fetched

    @functools.cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="transfer")

    def _fetch(self, job: Job, graph: LayerGraph, wanted: bool) -> _Ancestry:
        """Find a candidate's ancestor; read what it inherits, and its parent, if they are wanted.

        May run beside the making of the candidate.
        """
        measures: dict[str, Measure] = {}
        with _timed(measures, "match_seconds"):
            inheritance = self._ancestor(job, graph, measures)
        ancestry = _Ancestry(measures, inheritance)
        if not wanted or (inheritance is None and job.parent is None):
            return ancestry
        with contextlib.ExitStack() as lease:
            if inheritance is not None:
                lease.enter_context(inheritance)
            with _timed(measures, "load_seconds"):
                if inheritance is not None:
                    ancestry.loaded = self._read(inheritance, measures)
                ancestry.parent = self._parent(job, measures)
            lease.pop_all()  # it is the caller's now
        return ancestry

    def _ancestor(
        self, job: Job, graph: LayerGraph, measures: dict[str, Measure]
    ) -> Inheritance | None:
        try:
            return self._sharing.ancestor(job, graph, self._models)
        except TransferError as error:
            self._without_transfer(error, measures)
            return None

    def _read(self, inheritance: Inheritance, measures: dict[str, Measure]) -> _Weights:
        """Return the prefix's weights, none if they cannot be read."""
        try:
            tensors = dict(self._models.read(inheritance))
        except TransferError as error:
            self._without_transfer(error, measures)
            return {}
        measures["ancestor"] = inheritance.ancestor
        measures["layers_transferred"] = len(inheritance.layers)
        measures["bytes_transferred"] = inheritance.nbytes
        return tensors

    def _parent(self, job: Job, measures: dict[str, Measure]) -> tuple[LayerGraph, Tensors] | None:
        """Return a candidate's parent, if the policy lets it grow from there and it is stored."""
        if not (self.policy.grow and self._sharing.grows) or job.parent is None:
            return None
        try:
            return self._models.whole(job.parent)
        except TransferError as error:
            self._without_transfer(error, measures)
            return None

    def _grown(
        self,
        job: Job,
        graph: LayerGraph,
        parent: tuple[LayerGraph, Tensors] | None,
        measures: dict[str, Measure],
    ) -> _Weights:
        """Return what the layers of a candidate start from according to its parent.

        The best match has the longest prefix, and the policy decides whether that is kept as it
        is. What trains starts from the parent, all of it, since weights of two models do not go
        together; and the parent is the one that differs in a single gene.
        """
        if parent is None:
            return {}
        known, tensors = parent
        rng = np.random.default_rng(job.seed).spawn(1)[0]
        shared = {name: tensors[name] for name in graph.names if name in tensors}
        grown = {**growth.grow(graph, known, tensors, rng), **shared}
        measures["layers_grown"] = len(grown)
        return grown

    def _starts(
        self, candidate: Candidate, loaded: _Weights, grown: _Weights, frozen: Collection[str]
    ) -> _Weights:
        """Return what the candidate starts from; new weights mixed into those that train."""
        starts = loaded | {name: arrays for name, arrays in grown.items() if name not in frozen}
        part = np.float32(self.policy.shrink_perturb)
        if part:
            own = {
                name
                for name, layer in _named(candidate.graph)
                if layer.spec.frozen or layer.spec.frozen_parts
            }
            for name in starts.keys() - frozen - own:
                fresh: Sequence[npt.NDArray[Any]] = candidate.tensors([name])[name]
                starts[name] = [  # biases and statistics stay as they are
                    old if old.ndim < 2 else (old + part * (new - old)).astype(old.dtype)
                    for old, new in zip(starts[name], fresh, strict=True)
                ]
        return starts

    def _phases(
        self, job: Job, graph: LayerGraph, loaded: Collection[str], grown: Collection[str]
    ) -> list[Phase]:
        epochs = self.epochs if job.epochs is None else job.epochs
        if job.trained and all(
            name in loaded
            for name, layer in zip(graph.names, graph.layers, strict=True)
            if layer.spec.weights
        ):
            # It goes on with what it was: nothing is frozen.
            return [Phase(frozenset(), epochs - job.trained)]
        return self.policy.phases(graph, loaded, epochs, grown=grown)

    def _resumption(self, job: Job, engine: Engine) -> Resumption:
        section = self._checkpoint and self._checkpoint.section(str(job.id))
        program = "" if self.application.fit is None else f", {self._program.name}"
        return Resumption(
            section, job.to_dict(self.space.to_json), engine.name + program, self._save_every
        )

    def _objective(
        self, candidate: Candidate, outcome: Outcome, measures: dict[str, Measure]
    ) -> float:
        """Return what is maximised; NaN if loss or metric is not a finite number.

        Measures what the application has declared, once.

        Raises
        ------
        ValuesError
            What it measures is not what it declares.
        """
        application, metrics = self.application, outcome.metrics
        own_metrics = [metrics[n] for n in application.metric_names if n in metrics]
        if not all(map(math.isfinite, (*own_metrics, metrics.get(LOSS, 0.0)))):
            return math.nan
        found: dict[str, Any] = dict(metrics)
        if application.measure is not None:
            with tracing.span("measure"):
                returned = application.measure(Trained(candidate, application, outcome.epochs))
            found |= check_found("measure()", application.values, returned)
        measures |= taken(application.declared, found)
        return application.objective_of(found)

    def _put(
        self,
        job: Job,
        candidate: Candidate,
        objective: float,
        ancestry: _Ancestry,
        phases: Sequence[Phase],
        measures: dict[str, Measure],
    ) -> None:
        graph = candidate.graph
        inheritance = ancestry.inheritance if ancestry.is_shared else None
        inherited = set[str]()
        if inheritance is not None:
            trusted = self.application.fit is None  # a user's loop may change what is frozen
            inherited = _unchanged(candidate, ancestry.loaded, phases if trusted else ())
        try:
            measures["bytes_stored"] = self._models.put(
                job.id,
                graph,
                candidate.tensors([name for name in graph.names if name not in inherited]),
                score=objective,
                parent=job.parent,
                inheritance=inheritance if inherited else None,
                inherited=inherited,
            )
        except TransferError as error:
            self._without_transfer(error, measures)

    def _without_transfer(self, error: TransferError, measures: dict[str, Measure]) -> None:
        """Record a failure of the transfer method; if nothing answers it, say for how long."""
        measures["transfer_error"] = f"{type(error).__name__}: {error}"
        what = "the search goes on"
        if isinstance(error, TransferUnavailable):
            what += f" without transfer, and tries again in {self._models.pause:g} s"
        if what not in self._said:
            self._said.add(what)
            _log.warning("transfer failed, %s: %s", what, error)


@dataclass
class _Ancestry:
    """What a candidate has of other models.

    Attributes
    ----------
    measures
        Of finding and reading it.
    inheritance
        The best match, leased; None: there is none.
    loaded
        The weights of its prefix; empty if they were not wanted or cannot be read.
    parent
        The parent's graph and weights, if the candidate grows from them.
    is_shared
        Whether the candidate may share layers with the best match: it starts from that one.
    """

    measures: dict[str, Measure]
    inheritance: Inheritance | None
    loaded: _Weights = field(default_factory=dict)
    parent: tuple[LayerGraph, Tensors] | None = None
    is_shared: bool = True


def _judged(values: Mapping[str, float]) -> dict[str, float]:
    """Return what an epoch's report says of the validation rows."""
    judged = {name: value for name, value in values.items() if name != LOSS}
    return judged if "val_loss" not in judged else {**judged, LOSS: judged["val_loss"]}


def _latency(candidate: Candidate, x: Any, rows: int) -> float:
    """Return the median milliseconds of predicting so many rows, after warming up."""
    batch = tuple(np.take(array, range(rows), axis=0, mode="wrap") for array in as_tuple(x))
    given = batch if isinstance(x, tuple) else batch[0]
    taken_seconds: list[float] = []
    begin = time.perf_counter()
    while len(taken_seconds) < _FEWEST or time.perf_counter() - begin < _LATENCY_SECONDS:
        before = time.perf_counter()
        candidate.predict(given)
        taken_seconds.append(time.perf_counter() - before)
    return float(np.median(taken_seconds[_WARM_UP:])) * 1e3


def _named(graph: LayerGraph) -> Iterable[tuple[str, Layer]]:
    return zip(graph.names, graph.layers, strict=True)


def _completed(
    given: Mapping[str, Sequence[npt.NDArray[Any] | None]], candidate: Candidate
) -> _Weights:
    """Return all weights of the layers that start from given ones, some of them perhaps new."""
    completed: _Weights = {}
    for name, arrays in given.items():
        new: Sequence[npt.NDArray[Any]] = candidate.tensors([name])[name]
        completed[name] = [
            old if array is None else array for array, old in zip(arrays, new, strict=True)
        ]
    return completed


def _end_lease(fetched: Future[_Ancestry]) -> None:
    if fetched.exception() is None:
        inheritance = fetched.result().inheritance
        if inheritance is not None:
            inheritance.close()


def _unchanged(candidate: Candidate, loaded: Tensors, phases: Sequence[Phase]) -> set[str]:
    """Return the names of inherited layers whose tensors are still what they were, bit by bit.

    What was frozen in all `phases` can have changed only where a layer keeps statistics of its own
    accord; without any, all are compared.
    """
    specs = dict(zip(candidate.graph.names, candidate.graph.layers, strict=True))
    unchanged = set()
    for name, tensors in loaded.items():
        frozen = bool(phases) and all(name in phase.frozen for phase in phases)
        if (frozen and all(weight.trainable for weight in specs[name].spec.weights)) or _same_bits(
            tensors, candidate.tensors([name])[name]
        ):
            unchanged.add(name)
    return unchanged


def _same_bits(
    before: Iterable[npt.NDArray[np.generic]], after: Iterable[npt.NDArray[np.generic]]
) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(before, after, strict=True))


@contextlib.contextmanager
def _timed(measures: dict[str, Measure], name: str) -> Iterator[None]:
    """Add the seconds that the block takes, to what there is already."""
    begin = time.perf_counter()
    try:
        with tracing.span(name.removesuffix("_seconds")):
            yield
    finally:
        measures[name] = float(measures.get(name, 0.0)) + time.perf_counter() - begin
