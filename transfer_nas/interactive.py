"""`Search`: a search in this process, for notebooks and scripts."""

from __future__ import annotations

import html
import importlib.metadata
import logging
import os
import platform
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cpp_store
from transfer_nas import applications, runs, trained_model, transfer
from transfer_nas.applications import Application, SpaceChoice
from transfer_nas.errors import InputError
from transfer_nas.runs import Run
from transfer_nas.search import serial
from transfer_nas.search.evaluation import InProcess
from transfer_nas.search.evolution import AgingEvolution
from transfer_nas.search.interruption import Interruption
from transfer_nas.search.manager import GIVE_UP_AFTER, Manager, Status
from transfer_nas.search.progress import PlainProgress, Progress, TerminalProgress
from transfer_nas.search.run_directory import RunDirectory
from transfer_nas.search.telling import goal_of
from transfer_nas.trainer import TransferTrainer

if TYPE_CHECKING:
    import keras
    import pandas as pd
    from matplotlib.axes import Axes

_log = logging.getLogger(__name__)


class Search:
    """Searches for a network, each candidate starting from the weights of the best match.

    Runs in this process; `python -m transfer_nas.evolve` runs on many. The models stay in memory
    until `close`, so `run` can be called again to go on. A run directory holds everything else.

    Parameters
    ----------
    space
        The name of a space, a subclass of `Space`, a function that builds a network with `Choices`
        (see `transfer_nas.spaces.from_function`), or None: the application's.
    application
        What `transfer_nas.applications.resolve` takes, or an `Application`.
    data
        See `Application.with_data`.
    population_size, sample_size
        Members of the population, and how many of them compete to be a parent (None: a quarter).
    beta
        See `AgingEvolution`.
    epochs, batch_size, policy
        See `TransferTrainer`.
    transfer
        ``store``, or ``noop`` to train from scratch.
    seed
        Of everything random; None: drawn.
    output_dir
        A directory without a run; None: ``runs/APPLICATION-TIME``.
    memory
        The most that stored models may take, as for `cpp_store.embedded`.
    progress
        Whether to show it.

    Attributes
    ----------
    output_dir
        The run directory.
    """

    def __init__(
        self,
        space: SpaceChoice | None,
        application: str | Application,
        *,
        data: str | None = None,
        population_size: int = 32,
        sample_size: int | None = None,
        beta: float = 0.0,
        epochs: int | None = None,
        batch_size: int | None = None,
        policy: str = "freeze",
        transfer: str = "store",
        seed: int | None = None,
        output_dir: str | Path | None = None,
        memory: int | str = "4GiB",
        progress: bool = True,
    ) -> None:
        self.application = _application(application, data)
        self.space = self.application.space(space)
        if transfer not in ("store", "noop"):
            raise InputError(f"transfer must be store or noop, not {transfer!r}")
        seed = int.from_bytes(os.urandom(4), "little") if seed is None else seed
        self._evolution = {
            "population_size": population_size,
            "sample_size": sample_size or max(1, population_size // 4),
            "seed": seed,
            "beta": beta,
        }
        self._settings = {
            "application": self.application.name,
            "namespace": self.application.namespace,
            "transfer": transfer,
            "policy": policy,
            "epochs": epochs,
            "batch_size": batch_size,
            **self._evolution,
        }
        self._algorithm()  # what is wrong shall be known at once
        name = self.application.name
        self.output_dir = Path(output_dir or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
        self._shows_progress = progress
        self._resources = ExitStack()
        self._store = self._resources.enter_context(cpp_store.embedded(memory=memory))
        self._training = {"policy": policy, "epochs": epochs, "batch_size": batch_size}
        self._transfer = transfer
        self._trainer: TransferTrainer | None = None

    def run(self, max_evals: int | None = 100, timeout: float | None = None) -> pd.DataFrame:
        """Search, or search on; return `results`.

        An interrupted kernel (or Ctrl-C) ends it in good order.

        Parameters
        ----------
        max_evals
            Evaluations of this call; None: no limit.
        timeout
            Seconds that it may take; None: no limit.
        """
        if max_evals is None and timeout is None:
            raise InputError("run() needs max_evals or timeout: when shall it end?")
        with self._directory() as directory:
            trainer = self._trainer or self._make_trainer(directory.id)
            before = len(directory.evaluations)
            with self._progress(timeout) as progress, Interruption(timeout) as interruption:
                manager = Manager(
                    self._algorithm(),
                    directory,
                    max_evals=None if max_evals is None else before + max_evals,
                    retire=trainer.retire,
                    report=progress.update,
                    warn=progress.warn,
                    give_up_after=GIVE_UP_AFTER,
                )
                self._trainer = trainer  # from here on there is a run to go on with
                evaluate = InProcess(trainer, self.output_dir, _log.warning)
                serial.run(manager, evaluate, interruption)
        return self.results

    @property
    def results(self) -> pd.DataFrame:
        """A row for each evaluation, in DeepHyper's columns; failures have NaN as objective.

        Values of genes are what the space declares; measures that are missing are NaN or None.

        Raises
        ------
        InputError
            There was no `run` yet.
        """
        return self._read().frame()

    @property
    def best(self) -> dict[str, Any]:
        """What the best network chose: the values of its genes; else ``architecture``, and columns.

        Raises
        ------
        InputError
            No evaluation has worked yet.
        """
        run, row = self._best_row()
        values = run.values(row)
        return values if run.genes else {"architecture": run.architecture(row), **values}

    def best_model(self) -> keras.Model:
        """Return the best network, trained and compiled; write it to ``best.keras``, too.

        Raises
        ------
        InputError
            No evaluation has worked yet.
        """
        import keras

        self._best_row()
        model: keras.Model = keras.saving.load_model(
            trained_model.finish(self.output_dir, self.application), safe_mode=True
        )
        return model

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the objective of each evaluation and the best so far; return the axes.

        Of a metric of which less is better, the metric itself is drawn.

        Parameters
        ----------
        axes
            Where to draw; None: on a new figure, which a notebook shows.

        Raises
        ------
        InputError
            There was no `run` yet, or matplotlib is not installed.
        """
        run, sign = self._read(), 1 if self.application.direction == "max" else -1
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise InputError(
                "plot() needs matplotlib, which is not installed: pip install matplotlib"
            ) from error
        axes = plt.figure(figsize=(8, 4)).add_subplot() if axes is None else axes
        count = range(1, len(run) + 1)
        axes.plot(count, sign * run.objective, ".", alpha=0.5, label="evaluations")
        axes.step(count, sign * run.running_best, where="post", label="best so far")
        axes.set_xlabel("evaluations that ended")
        better = "" if sign > 0 else " (lower is better)"
        axes.set_ylabel(f"{self.application.metric}{better}")
        axes.legend()
        return axes

    def __repr__(self) -> str:
        return f"Search({', '.join(f'{name}: {text}' for name, text in self._facts().items())})"

    def _repr_html_(self) -> str:
        """Return the same as a table, which notebooks show."""
        rows = "".join(
            f"<tr><th style='text-align: left'>{html.escape(name)}</th>"
            f"<td style='text-align: left'>{html.escape(text)}</td></tr>"
            for name, text in self._facts().items()
        )
        return f"<table><caption>Search</caption>{rows}</table>"

    def _facts(self) -> dict[str, str]:
        """Return how far the search is, for people."""
        facts = {
            "application": self.application.name,
            "space": self.space.name,
            "transfer": self._transfer,
            "directory": str(self.output_dir),
        }
        if self._trainer is None:
            return {**facts, "evaluations": "none yet"}
        run = self._read()
        failed = int((~run.done).sum())
        facts["evaluations"] = f"{len(run):,}" + (f", {failed:,} failed" if failed else "")
        if run.best is not None:
            better = "" if self.application.direction == "max" else ", lower is better"
            best = self.application.natural(run.objective[run.best])
            facts["best"] = (
                f"{self.application.metric} {best:.4f} (job {run.job[run.best]}){better}"
            )
        return facts

    def close(self) -> None:
        """Forget the models; the run directory stays."""
        self._resources.close()

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> Run:
        if self._trainer is None:
            raise InputError("no evaluation has worked yet: run() first")
        return runs.read(self.output_dir)

    def _best_row(self) -> tuple[Run, int]:
        run = self._read()
        if run.best is None:
            raise InputError("no evaluation has worked yet: run() first")
        return run, run.best

    def _algorithm(self) -> AgingEvolution:
        options: dict[str, Any] = self._evolution
        return AgingEvolution(self.space, **options)

    def _directory(self) -> RunDirectory:
        if self._trainer is not None:
            return RunDirectory.resume(self.output_dir, self.space, self._settings, {})
        versions = {"python": platform.python_version()}
        for package in ("transfer-nas", "keras"):
            versions[package] = _version(package)
        return RunDirectory.create(
            self.output_dir,
            self.space,
            self._settings,
            {"versions": versions, "objective": self.application.objective()},
        )

    def _make_trainer(self, run: str) -> TransferTrainer:
        method = transfer.get(self._transfer, self.application.namespace, store=self._store)
        self._resources.callback(method.close)
        options: dict[str, Any] = self._training
        return TransferTrainer(self.application, self.space, method, run=run, **options)

    def _progress(self, timeout: float | None) -> Progress:
        if not self._shows_progress:
            return _Silence()
        goal = goal_of(self.application)
        if sys.stdout.isatty():
            return TerminalProgress(sys.stdout, timeout, goal)
        return PlainProgress(sys.stdout, timeout, goal)


class _Silence(Progress):
    """Shows nothing but warnings, which go to the log."""

    def update(self, status: Status) -> None:
        del status

    def warn(self, text: str) -> None:
        _log.warning(text)

    def __exit__(self, *_: object) -> None:
        pass


def _application(application: str | Application, data: str | None) -> Application:
    if isinstance(application, str):
        return applications.resolve(application, data)
    if not isinstance(application, Application):
        raise InputError(f"expected an application or its name, found {application!r}")
    return application if data is None else application.with_data(data)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
