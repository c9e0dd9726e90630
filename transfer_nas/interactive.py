"""`search` and `Search`: the ways in from a program and from a notebook."""

from __future__ import annotations

import dataclasses
import html
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cpp_store
from transfer_nas import applications, runs, trained_model
from transfer_nas import settings as settings_of
from transfer_nas.algorithms import ALGORITHMS, Algorithm
from transfer_nas.applications import Application, SpaceChoice
from transfer_nas.errors import InputError
from transfer_nas.plugins import named
from transfer_nas.ranks import Alone, Ranks, join
from transfer_nas.runs import Run
from transfer_nas.searching.run import Given
from transfer_nas.searching.run import run as run_search
from transfer_nas.settings import Settings
from transfer_nas.sharing import SHARINGS, Sharing
from transfer_nas.transfer import TRANSFERS, TransferMethod

if TYPE_CHECKING:
    import keras
    import pandas as pd
    from matplotlib.axes import Axes


def search(
    task: str | Application,
    *,
    space: SpaceChoice | None = None,
    algorithm: str | type[Algorithm] = "evolution",
    sharing: str | type[Sharing] = "prefix",
    transfer: str | type[TransferMethod] = "store",
    limits: str | Sequence[str] = (),
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Search for a network, as ``python -m transfer_nas.evolve`` does.

    Collective, where a launcher started this program on several ranks (``mpiexec``); else in this
    process.

    Parameters
    ----------
    task
        What `transfer_nas.applications.resolve` takes, or an `Application`.
    space
        The name of a space, a subclass of `Space`, a function that builds a network with `Choices`
        (see `transfer_nas.spaces.from_function`), or None: the application's.
    algorithm, sharing, transfer
        A name as on the command line, or a class that a module defines.
    limits
        What no candidate may exceed, such as ``["parameters<100000"]``; see `transfer_nas.limits`.
    progress
        Whether to show it.
    **settings
        Any of the command line's by its name (``max_evals=200``, ``population_size=32``,
        ``output_dir=…``, ``resume=True``), those of the algorithm and of the sharing too.

    Returns
    -------
    Run
        What the run directory holds in the end: evaluations, the best of them, settings.

    Raises
    ------
    InputError
        A setting or an object does not make sense.
    KeyboardInterrupt
        A signal ended the search; ``resume=True`` goes on with it.
    """
    application = None if isinstance(task, str) else _application(task, None)
    chosen = Settings.of(
        {
            "application": task if application is None else application.name,
            "space": space if isinstance(space, str) else None,
            "search": named(algorithm, ALGORITHMS),
            "sharing": named(sharing, SHARINGS),
            "transfer": named(transfer, TRANSFERS),
            "limit": (limits if isinstance(limits, str) else ",".join(limits)) or None,
            **settings,
        }
    )
    ranks = join()
    chosen = settings_of.with_drawn(chosen, ranks)
    given = Given(application, None if isinstance(space, str) else space)
    with ExitStack() as stack:
        if not progress:
            stream = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            given = Given(given.application, given.space, stream=stream, brief=True)
        _search(chosen, ranks, given)
    return runs.read(chosen.directory)


def _search(chosen: Settings, ranks: Ranks, given: Given) -> None:
    """Search; raises KeyboardInterrupt where a signal ended it."""
    if run_search(chosen, ranks, given) > 128:
        raise KeyboardInterrupt


class Search:
    """Searches for a network, each candidate starting from the weights of the best match.

    Runs in this process; `search` and ``python -m transfer_nas.evolve`` also run on many. The
    models stay in memory until `close`, so `run` can be called again to go on. A run directory
    holds everything else.

    Parameters
    ----------
    space
        As for `search`.
    application
        What `transfer_nas.applications.resolve` takes, or an `Application`.
    data
        See `Application.with_data`.
    transfer
        ``store``, or ``noop`` to train from scratch.
    memory
        The most that stored models may take, as for `cpp_store.embedded`.
    progress
        Whether to show it.
    **settings
        As for `search`, but for those that `run` has, and for what needs other processes.

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
        transfer: str = "store",
        memory: int | str = "4GiB",
        progress: bool = True,
        **settings: Any,
    ) -> None:
        self.application = _application(application, data)
        self.space = self.application.space(space)
        if transfer not in ("store", "noop"):
            raise InputError(f"transfer must be store or noop, not {transfer!r}")
        for name in settings.keys() & {"max_evals", "timeout", "max_wait", "resume", "isolate"}:
            raise InputError(f"Search has no setting {name!r}: run() has what ends it")
        chosen = Settings.of(
            {"application": self.application.name, "transfer": transfer, **settings}
        )
        self._settings = settings_of.with_drawn(chosen, Alone())
        self.output_dir = self._settings.directory
        self._resources = ExitStack()
        self._given = Given(
            self.application,
            space,
            store=self._resources.enter_context(cpp_store.embedded(memory=memory)),
            brief=True,
        )
        self._shows_progress = progress
        self._begun = False

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
        before = len(self._read()) if self._begun else 0
        chosen = dataclasses.replace(
            self._settings,
            max_evals=None if max_evals is None else before + max_evals,
            timeout=timeout,
            resume=self._begun,
        )
        with ExitStack() as stack:
            stream = sys.stdout
            if not self._shows_progress:
                stream = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            run_search(chosen, Alone(), dataclasses.replace(self._given, stream=stream))
        self._begun = True
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
        axes.set_ylabel(f"{self.application.objective_name}{better}")
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
            "transfer": self._settings.transfer,
            "directory": str(self.output_dir),
        }
        if not self._begun:
            return {**facts, "evaluations": "none yet"}
        run = self._read()
        failed = int((~run.done).sum())
        facts["evaluations"] = f"{len(run):,}" + (f", {failed:,} failed" if failed else "")
        if run.best is not None:
            better = "" if self.application.direction == "max" else ", lower is better"
            best = self.application.natural(run.objective[run.best])
            facts["best"] = (
                f"{self.application.objective_name} {best:.4f} (job {run.job[run.best]}){better}"
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
        if not self._begun:
            raise InputError("no evaluation has worked yet: run() first")
        return runs.read(self.output_dir)

    def _best_row(self) -> tuple[Run, int]:
        run = self._read()
        if run.best is None:
            raise InputError("no evaluation has worked yet: run() first")
        return run, run.best


def _application(application: str | Application, data: str | None) -> Application:
    if isinstance(application, str):
        return applications.resolve(application, data)
    if not isinstance(application, Application):
        raise InputError(f"expected an application or its name, found {application!r}")
    return application if data is None else application.with_data(data)
