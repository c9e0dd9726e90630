"""For users of DeepHyper: our search under its evaluators, and training with transfer under any.

`AgingEvolution` is a `deephyper.hpo.Search`; `TransferEvaluation` is a run function that trains the
architecture of a configuration from the weights of the stored model that shares its prefix. Each
works without the other. `docs/deephyper.md` has them at work.
"""

from __future__ import annotations

import csv
import fcntl
import functools
import hashlib
import math
import os
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ConfigSpace.hyperparameters as csh
import numpy as np
import pandas as pd
from deephyper.hpo import HpProblem, Search, _search

import cpp_store
from graph_meta import LayerGraph
from transfer_nas import applications, transfer
from transfer_nas.algorithms import evolution
from transfer_nas.applications import Application, SpaceChoice
from transfer_nas.errors import InputError, SpaceError
from transfer_nas.job import DONE, Evaluation, Job, Measure
from transfer_nas.searching.results import GeneCells
from transfer_nas.spaces import Gene, GeneSpace, Genome, Scalar, with_genes
from transfer_nas.trainer import TransferTrainer

__all__ = ["AgingEvolution", "TransferEvaluation", "genes_of", "problem_of"]

_CONNECT_TIMEOUT = 10.0  # seconds
_JOB_BITS = 32  # of a model's number; those above them tell its genome


def problem_of(space: GeneSpace) -> HpProblem:
    """Return the problem whose configurations are the genomes of a space.

    Numbers become ordinal hyperparameters, everything else categorical ones, a gene without a
    choice a constant. A configuration is what `Space.values` returns.
    """
    problem = HpProblem()
    for gene in space.genes:
        values = list(gene.values)
        if len(values) == 1:
            hyperparameter: Any = csh.Constant(gene.name, values[0])
        elif all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in values
        ):
            hyperparameter = csh.OrdinalHyperparameter(gene.name, values)
        else:
            hyperparameter = csh.CategoricalHyperparameter(gene.name, values)
        problem.add_hyperparameter(hyperparameter)
    return problem


def genes_of(problem: HpProblem, steps: int | None = None) -> tuple[Gene, ...]:
    """Return the genes that stand for the hyperparameters of a problem.

    Parameters
    ----------
    problem
        Without conditions and forbidden clauses: a genome has all its genes.
    steps
        From a range of more than so many values, take as many, evenly spread (in the logarithm, if
        the range is logarithmic). None: a range of integers is taken whole, and there is no gene
        for a range of real numbers.

    Raises
    ------
    InputError
        A hyperparameter has no such gene; names it.
    """
    if len(problem.space.conditions) or len(problem.space.forbidden_clauses):
        raise InputError("a problem with conditions or forbidden clauses has no genomes")
    return tuple(
        Gene(name, _values(problem.space[name], steps)) for name in problem.hyperparameter_names
    )


class AgingEvolution(Search):  # type: ignore[misc]
    """Aging evolution, the algorithm of `transfer_nas.evolve`, as a search of DeepHyper.

    Unlike DeepHyper's ``RegularizedEvolution``, a mutation always changes a value, asking costs
    microseconds whatever the size of the population, and with ``checkpoint_restart`` the
    population is what an earlier search left. If the run function is a `TransferEvaluation`,
    models leave the store when their members die.

    Parameters
    ----------
    problem
        See `genes_of` for what it may hold.
    random_state, log_dir, verbose, stopper, checkpoint_history_to_csv, solution_selection
        As of `deephyper.hpo.Search`.
    checkpoint_restart
        Start from ``results.csv`` in `log_dir`.
    population_size, sample_size
        Members, and how many of them compete to be a parent.
    steps
        See `genes_of`.
    """

    def __init__(
        self,
        problem: HpProblem,
        random_state: int | np.random.RandomState | None = None,
        log_dir: str = ".",
        verbose: int = 0,
        stopper: Any = None,
        checkpoint_history_to_csv: bool = True,
        solution_selection: Any = None,
        checkpoint_restart: bool = False,
        population_size: int = 100,
        sample_size: int = 10,
        steps: int | None = None,
    ) -> None:
        super().__init__(
            problem,
            random_state,
            log_dir,
            verbose,
            stopper,
            checkpoint_history_to_csv,
            solution_selection,
            checkpoint_restart,
        )
        self._space = _Configurations(genes_of(problem, steps))
        if self._space.size == 1:
            raise InputError("the problem has one configuration: there is nothing to search")
        seed = int(self._random_state.randint(2**31))
        self._evolution = evolution.AgingEvolution(self._space, population_size, sample_size, seed)
        self._waiting: dict[Genome, deque[Job]] = {}
        self._members: dict[int, Genome] = {}

    def reload_checkpoint(self) -> None:
        """Take up ``results.csv`` with the values that were chosen, not what pandas makes of them.

        DeepHyper lets pandas guess types: texts become numbers or nothing, and one failure makes
        texts of all objectives, so that no evaluation counts as one that worked.
        """
        original = _search.read_results_from_csv  # there is no other way in
        _search.read_results_from_csv = functools.partial(self._read_results, original)
        try:
            super().reload_checkpoint()
        finally:
            _search.read_results_from_csv = original

    def _read_results(self, read: Callable[[str], pd.DataFrame], path: str) -> pd.DataFrame:
        frame = read(path)
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for gene in self._space.genes:
            cells, column = GeneCells(gene.values), []
            for row in rows:
                position = cells.position(row[f"p:{gene.name}"])
                if position < 0:
                    raise InputError(
                        f"{path}, job {row['job_id']}: {gene.name} is {row[f'p:{gene.name}']!r}, "
                        f"expected one of {list(gene.values)}"
                    )
                column.append(gene.values[position])
            frame[f"p:{gene.name}"] = pd.Series(column, index=frame.index, dtype=object)
        if "objective" in frame:
            objectives = [_number_or_text(row["objective"]) for row in rows]
            frame["objective"] = pd.Series(objectives, index=frame.index, dtype=object)
        return frame

    def _ask(self, n: int = 1) -> list[dict[str, Scalar]]:
        jobs = self._evolution.ask(n)
        for job in jobs:
            self._waiting.setdefault(job.architecture, deque()).append(job)
        return [self._space.values(job.architecture) for job in jobs]

    def _tell(self, results: Sequence[tuple[Mapping[str, Any], Any]]) -> None:
        dead: list[Genome] = []
        for configuration, objective in results:
            if isinstance(objective, tuple | list):
                raise InputError(f"aging evolution has one objective, not {len(objective)}")
            job = self._job(genome_of(self._space, configuration))
            if isinstance(objective, str):
                evaluation = Evaluation(job, objective, math.nan)
            else:
                evaluation = Evaluation(job, DONE, float(objective))
                self._members[job.id] = job.architecture
            dead += [self._members.pop(id) for id in self._evolution.tell(evaluation)]
        evaluator = getattr(self, "_evaluator", None)  # none while a user asks and tells
        if dead and evaluator is not None:
            # `asynchronous` is a method of the run function.
            run = getattr(evaluator.run_function, "__self__", evaluator.run_function)
            if isinstance(run, TransferEvaluation):
                run.retire([self._space.values(genome) for genome in dead])

    def _job(self, genome: Genome) -> Job:
        """Return the job that a result belongs to; a new one if another search asked it."""
        waiting = self._waiting.get(genome)
        if not waiting:
            (job,) = self._evolution.ask()
            return replace(job, architecture=genome)
        job = waiting.popleft()
        if not waiting:
            del self._waiting[genome]
        return job


class TransferEvaluation:
    """A run function: trains what a configuration describes, starting from stored weights.

    Pass it to an evaluator as it is (thread, process, loky, ray, mpicomm), or its `asynchronous`
    to the serial one. It returns the objective and, as metadata, the measures of
    `transfer_nas.evolve`. In one process evaluations take turns, for Keras has one session.

    Models are kept by the servers of ``MODEL_SERVERS``; without them, by this process, which serves
    them to the processes that this object is sent to. Keep it until the search has ended.

    Parameters
    ----------
    application
        What `transfer_nas.applications.resolve` takes, or an `Application`.
    space
        What `Application.space` takes.
    data
        See `Application.with_data`.
    transfer
        ``store`` or ``noop`` (train from scratch).
    policy, epochs, batch_size
        See `TransferTrainer`.
    seed
        Of initial weights, order of rows and dropout.
    best_model
        File that always holds the best model so far (``.keras``); None: none does. All processes
        must see it.
    address, memory
        Of the server, if this process becomes one; see `cpp_store.serve`. The default serves this
        host only.

    Attributes
    ----------
    problem
        What a search searches: the space as an `HpProblem`.
    """

    def __init__(
        self,
        application: str | Application,
        space: SpaceChoice | None = None,
        *,
        data: str | None = None,
        transfer: str = "store",
        policy: str = "freeze",
        epochs: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        best_model: str | Path | None = None,
        address: str = "ofi+tcp://127.0.0.1:0",
        memory: int | str = "4GiB",
    ) -> None:
        if transfer not in ("store", "noop"):
            raise InputError(f"transfer must be store or noop, not {transfer!r}")
        self._application = application
        self._space = space
        self._data = data
        self._transfer = transfer
        self._training = {"policy": policy, "epochs": epochs, "batch_size": batch_size}
        self._seed = seed
        self._best_model = None if best_model is None else Path(best_model).absolute()
        self._address, self._memory = address, memory
        self._run = uuid.uuid4().hex[:12]
        self._servers = os.environ.get("MODEL_SERVERS", "").split()
        self._key = "" if self._servers else uuid.uuid4().hex
        self._server: cpp_store.Server | None = None
        _ = self.space  # what is wrong shall be known at once

    @functools.cached_property
    def application(self) -> Application:
        """What is trained for."""
        if isinstance(self._application, Application):
            return self._application
        return applications.resolve(self._application, self._data)

    @functools.cached_property
    def space(self) -> GeneSpace:
        """The architectures."""
        return with_genes(self.application.space(self._space), "DeepHyper")

    @property
    def problem(self) -> HpProblem:
        """The space as a problem of DeepHyper."""
        return problem_of(self.space)

    def __call__(self, job: Any) -> dict[str, Any]:
        """Evaluate a `deephyper.evaluator.RunningJob`."""
        genome = genome_of(self.space, job)
        number = int(job["job_id"])
        seed = int(np.random.SeedSequence((self._seed, number)).generate_state(1)[0])
        if _tensorflow_is_forked:
            raise RuntimeError(
                "TensorFlow was at work before this process was forked, and would hang in it: "
                "search before the main process builds a model, or use the evaluator 'loky'"
            )
        with _evaluating:
            trainer, _ = _worker(self)
            id = _genome_number(genome) << _JOB_BITS | number
            evaluation = trainer.evaluate(Job(id, genome, None, seed))
            if evaluation.done and self._best_model is not None:
                _keep_best(trainer, evaluation.objective, self._best_model)
        defaults: dict[str, Measure] = {"ancestor": "", "transfer_error": "", "error": ""}
        return {
            "objective": evaluation.objective if evaluation.done else evaluation.status,
            # The same columns in each row, which is what DeepHyper expects.
            "metadata": {**defaults, **evaluation.measures},
        }

    async def asynchronous(self, job: Any) -> dict[str, Any]:
        """Evaluate a job, for DeepHyper's serial evaluator, which takes coroutines only."""
        return self(job)

    def retire(self, configurations: Sequence[Mapping[str, Any]]) -> None:
        """Take a model of each configuration out of the candidates for ancestors, the oldest."""
        with _evaluating:
            trainer, store = _worker(self)
            if store is None:
                return
            prefix = f"{self._run}/"
            stored = sorted(
                int(name.removeprefix(prefix))
                for name in store.list(self.application.namespace)
                if name.startswith(prefix)
            )
            for configuration in configurations:
                number = _genome_number(genome_of(self.space, configuration))
                models = [model for model in stored if model >> _JOB_BITS == number]
                if models:  # a failed transfer may have left it out
                    trainer.retire(models[:1])
                    stored.remove(models[0])

    def close(self) -> None:
        """Stop serving; the models are gone then, unless others serve them."""
        _workers.pop((self._run, os.getpid()), None)
        if self._server is not None:
            self._server.stop()
            self._server = None

    def __enter__(self) -> TransferEvaluation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: among it, where this one serves."""
        self._store()
        state = vars(self) | {"_server": None}
        for name in ("application", "space"):  # they are made anew there
            state.pop(name, None)
        return state

    def _store(self) -> cpp_store.Store | None:
        """Return the store: this process's own, or a connection."""
        if self._transfer != "store":
            return None
        if self._server is not None:
            return self._server.store
        if not self._servers:
            self._server = cpp_store.serve(self._address, memory=self._memory, key=self._key)
            self._servers = [self._server.address]
            return self._server.store
        try:
            return cpp_store.connect(self._servers, timeout=_CONNECT_TIMEOUT, key=self._key)
        except cpp_store.StoreError as error:
            raise InputError(f"no store at {' '.join(self._servers)}: {error}") from error

    def _make_worker(self) -> tuple[TransferTrainer, cpp_store.Store | None]:
        store = self._store()
        method = transfer.get(self._transfer, self.application.namespace, store=store)
        options: dict[str, Any] = self._training
        trainer = TransferTrainer(self.application, self.space, method, run=self._run, **options)
        return trainer, store


# An evaluation reaches another process once with each job, but is to keep its data, its connection
# and its Keras session there.
_workers: dict[tuple[str, int], tuple[TransferTrainer, cpp_store.Store | None]] = {}
_evaluating = threading.RLock()


def _worker(evaluation: TransferEvaluation) -> tuple[TransferTrainer, cpp_store.Store | None]:
    # The process is part of the key: connections do not survive a fork.
    key = (evaluation._run, os.getpid())
    if key not in _workers:
        _workers[key] = evaluation._make_worker()
    return _workers[key]


def _note_tensorflow() -> None:
    """Remember, in a forked process, that its parent had used TensorFlow: it would hang here."""
    global _tensorflow_is_forked
    context = sys.modules.get("tensorflow.python.eager.context")
    _tensorflow_is_forked = context is not None and bool(
        getattr(context.context(), "_initialized", False)
    )


_tensorflow_is_forked = False
os.register_at_fork(after_in_child=_note_tensorflow)


def genome_of(space: GeneSpace, configuration: Mapping[str, Any]) -> Genome:
    """Return the genome whose values a configuration holds; the opposite of `Space.values`.

    Raises
    ------
    SpaceError
        A value is missing, or is none of its gene's.
    """
    genome = []
    for gene in space.genes:
        try:
            genome.append(gene.values.index(configuration[gene.name]))
        except KeyError:
            raise SpaceError(f"the configuration lacks a value for {gene.name}") from None
        except ValueError:
            raise SpaceError(
                f"{gene.name}: expected one of {list(gene.values)}, "
                f"found {configuration[gene.name]!r}"
            ) from None
    return tuple(genome)


class _Configurations(GeneSpace):
    """Genomes that need not be architectures."""

    name = "configurations"

    def __init__(self, genes: tuple[Gene, ...]) -> None:
        super().__init__([(1,)], 1)
        self.genes = genes

    def graph(self, genome: Sequence[int]) -> LayerGraph:
        raise SpaceError("configurations have no architecture")


def _number_or_text(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _values(hyperparameter: Any, steps: int | None) -> tuple[Scalar, ...]:
    values: list[Any]
    match hyperparameter:
        case csh.Constant():
            values = [hyperparameter.value]
        case csh.CategoricalHyperparameter():
            values = list(hyperparameter.choices)
        case csh.OrdinalHyperparameter():
            values = list(hyperparameter.sequence)
        case csh.UniformIntegerHyperparameter():
            lower, upper = hyperparameter.lower, hyperparameter.upper
            if steps is None or upper - lower < steps:
                values = list(range(lower, upper + 1))
            else:
                spread = _spread(lower, upper, steps, hyperparameter.log)
                values = sorted({round(value) for value in spread})
        case csh.UniformFloatHyperparameter() if steps is not None:
            values = _spread(hyperparameter.lower, hyperparameter.upper, steps, hyperparameter.log)
        case _:
            kind = type(hyperparameter).__name__
            raise InputError(
                f"hyperparameter {hyperparameter.name}: no gene for a {kind}; pass steps=N to take "
                "N values of a uniform range"
            )
    return tuple(value.item() if isinstance(value, np.generic) else value for value in values)


def _spread(lower: float, upper: float, steps: int, log: bool) -> list[float]:
    spread = np.geomspace if log else np.linspace
    values: list[float] = spread(lower, upper, steps).tolist()
    return values


def _genome_number(genome: Genome) -> int:
    """Return what the search and those who evaluate both know a genome by."""
    return int.from_bytes(hashlib.blake2b(repr(genome).encode(), digest_size=6).digest(), "little")


def _keep_best(trainer: TransferTrainer, objective: float, path: Path) -> None:
    """Write the model of the last evaluation unless a better one is there, by whatever process."""
    with path.with_name(path.name + ".objective").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        best = float(file.read() or "-inf")
        if objective > best:
            trainer.save_model(path)
            file.truncate(0)
            file.write(repr(objective))
