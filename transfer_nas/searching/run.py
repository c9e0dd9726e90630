"""One search from the first check to the summary, in every rank of a job."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib.metadata
import json
import logging
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from cpp_store.command_line import open_stream

import cpp_store
from cpp_store import files
from transfer_nas import exit_codes, stopping, tensorboard, tracing, trained_model
from transfer_nas.algorithms import ALGORITHMS, Algorithm
from transfer_nas.applications import Application, SpaceChoice
from transfer_nas.ending import Ending
from transfer_nas.errors import InputError, writing
from transfer_nas.job import Evaluation, one_line
from transfer_nas.objectives import Objectives
from transfer_nas.ranks import MPIRanks, Ranks, together
from transfer_nas.searching import devices, serial, worker
from transfer_nas.searching.child import LOG_FORMAT
from transfer_nas.searching.evaluation import Evaluate, InProcess
from transfer_nas.searching.finalists import Finalists, retrain
from transfer_nas.searching.interruption import Interrupted, Interruption
from transfer_nas.searching.isolation import InChild
from transfer_nas.searching.manager import GIVE_UP_AFTER, Manager
from transfer_nas.searching.progress import PlainProgress, Progress, TerminalProgress, patience
from transfer_nas.searching.run_directory import RunDirectory
from transfer_nas.searching.telling import command, goal_of, opening, summarize, tell, tell_failure
from transfer_nas.searching.worker import Servers
from transfer_nas.settings import Settings
from transfer_nas.spaces import Space
from transfer_nas.trainer import TransferTrainer
from transfer_nas.transfer import TransferMethod
from transfer_nas.values import own

_PACKAGES = ("transfer-nas", "numpy", "keras", "tensorflow", "mpi4py")
_UNLESS_REFUSED = 10.0
"""Seconds without a word, outside of a terminal, while the start may still be refused: programs
that read it find one line then."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Given:
    """What a program hands over that a command line cannot.

    Attributes
    ----------
    application, space
        Objects instead of the names in the settings.
    store
        An open weight store instead of servers; it stays the caller's.
    stream
        Where progress is shown; None: on standard error, and what came out on standard output.
    brief
        Show progress only, and leave ``best.keras`` to be made later.
    """

    application: Application | None = None
    space: SpaceChoice | None = None
    store: cpp_store.Store | None = None
    stream: TextIO | None = None
    brief: bool = False


def run(settings: Settings, ranks: Ranks, given: Given | None = None) -> int:
    """Search; collective.

    Parameters
    ----------
    settings
        The same in all ranks, with seed and output directory chosen.
    ranks
        The processes of the job.
    given
        Objects of the calling program; None: none.

    Returns
    -------
    int
        One of `transfer_nas.exit_codes`; 128 plus the number of the signal that ended the search.

    Raises
    ------
    Refused
        In all ranks, if a setting, a file or an environment variable is wrong in one of them.
    Exception
        In the only rank. What goes wrong in one of many ends all of them (`Ending`).
    """
    given = given or Given()
    if settings.isolated and (given.application is not None or given.space is not None):
        raise InputError(
            "--isolate and --evaluation_timeout need application and space by name, as "
            "package.module:attribute: another process has to find them"
        )
    with (
        _terminal(given.stream) as terminal,
        contextlib.ExitStack() as stack,
        Ending("evolve", ranks, terminal) as ending,
    ):
        return _Search(settings, ranks, given, terminal, stack, ending).run()


class _Search:
    """The steps of `run`, in this rank."""

    def __init__(
        self,
        settings: Settings,
        ranks: Ranks,
        given: Given,
        terminal: TextIO,
        stack: contextlib.ExitStack,
        ending: Ending,
    ) -> None:
        self._settings = settings
        self._ranks = ranks
        self._given = given
        self._terminal = terminal
        self._stack = stack
        self._ending = ending
        self._manager: Manager | None = None  # in rank 0
        self._directory: RunDirectory | None = None  # in rank 0

    def run(self) -> int:
        """Do all of them; return the exit code."""
        settings, ranks = self._settings, self._ranks
        gpu = self._share_the_node()
        with self._patience("loading the application and its data", _UNLESS_REFUSED):
            application, space = together(ranks, self._resolved)
            worker.same_task(application, space, ranks)
        if settings.tensorboard:
            together(ranks, tensorboard.check)
        with self._patience("connecting to the weight store", _UNLESS_REFUSED):
            # Servers before files: if they do not answer, nothing shall have been written.
            servers = (
                self._stack.enter_context(worker.servers(settings, ranks))
                if self._given.store is None
                else Servers(self._given.store)
            )
        self._application, self._space, self._goal = application, space, goal_of(application)
        trainer, evaluate = self._begin(servers, gpu)
        ranks.share(None)  # --timeout counts from here, the same moment for everybody
        interruption = self._stack.enter_context(Interruption(settings.timeout, settings.max_wait))
        finalists = Finalists(
            settings.retrain, trainer.retire, self._directory.evaluations if self._directory else ()
        )
        with self._progress() as progress:
            if self._directory is not None:
                self._manager = Manager(
                    _algorithm(
                        settings, space, trainer.epochs, worker.objectives(settings, application)
                    ),
                    self._directory,
                    max_evals=settings.max_evals,
                    retire=finalists.retire,
                    report=progress.update,
                    warn=progress.warn,
                    observe=_observer(settings, self._directory, space, finalists, self._stack),
                    stopper=stopping.stopper(settings.stop),
                    give_up_after=max(GIVE_UP_AFTER, 2 * ranks.size),
                )
            lost = self._drive(evaluate, interruption)
        code = interruption.exit_code
        if self._manager is not None:
            code = self._conclude(self._manager, finalists, trainer, interruption)
            if lost:
                # They would never come to the end of the search, where all ranks meet.
                exit_codes.leave(settings.directory, code)
                ranks.abort(code)
        tracing.stop()
        codes: list[int] = ranks.share(code)
        if settings.trace is not None and ranks.rank == 0:
            tracing.merge(settings.trace, range(ranks.size))
        return max(codes)

    def _resolved(self) -> tuple[Application, Space]:
        """Return what is searched, and where, in this rank."""
        return worker.resolve(self._settings, self._given.application, self._given.space)

    def _share_the_node(self) -> str | None:
        """Take this rank's cores and GPU; return the GPU."""
        ranks = self._ranks
        chosen = self._settings.threads_per_rank
        threads = together(ranks, lambda: devices.pin_threads(chosen, ranks.local_size))
        devices.limit_threads(threads)
        gpu = devices.choose_gpu(ranks.local_rank, ranks.local_size)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        return gpu

    def _begin(self, servers: Servers, gpu: str | None) -> tuple[TransferTrainer, Evaluate]:
        """Open what this rank evaluates with, and in rank 0 the run directory."""
        settings, ranks, application = self._settings, self._ranks, self._application
        provenance = _provenance(ranks, gpu)

        def method() -> TransferMethod:
            return worker.method(settings, application, servers)

        # Before the run directory, as it may be refused; but hdf5 keeps its files in there.
        early = together(ranks, method) if settings.transfer != "hdf5" else None
        self._directory = together(
            ranks, lambda: _open(settings, application, self._space, provenance, ranks.rank)
        )
        self._ending.directory = settings.directory
        if self._directory is not None:
            self._stack.enter_context(self._directory)  # takes itself away if the start is refused
        if settings.trace is not None:
            trace = settings.trace
            together(ranks, lambda: tracing.start(trace, ranks.rank))
        log = settings.directory / "logs" / f"rank-{ranks.rank}.log"
        self._stack.enter_context(
            _own_log(log, self._terminal) if self._given.stream is None else _log_file(log)
        )
        identity = ranks.share(self._directory and self._directory.id)[0]
        transfer = early or together(ranks, method)
        self._stack.callback(transfer.close)
        trainer = together(
            ranks,
            lambda: worker.trainer(
                settings, application, self._space, transfer, identity, ranks.rank
            ),
        )
        if ranks.rank == 0 and not self._given.brief:
            hosts = [rank["host"] for rank in provenance["ranks"]]
            for line in opening(
                settings,
                application,
                self._space,
                trainer.describe(),
                hosts,
                servers,
            ):
                print(line, file=self._terminal)
        with self._patience("starting the processes that evaluate"):
            evaluate = together(ranks, lambda: self._evaluate(trainer, servers, identity))
        return trainer, evaluate

    def _evaluate(self, trainer: TransferTrainer, servers: Servers, identity: str) -> Evaluate:
        """Return what evaluates in this rank, or in a child of it."""
        settings = self._settings
        if not settings.isolated:
            return InProcess(trainer, settings.directory, _log.warning)
        child = InChild(
            "transfer_nas.searching.worker:isolated_trainer",
            {
                "settings": settings.to_dict(),
                "addresses": servers.addresses,
                "key": servers.key,
                "namespace": self._application.namespace,
                "run": identity,
                "rank": self._ranks.rank,
            },
            settings.directory,
            space=self._space,
            timeout=settings.evaluation_timeout,
            log=_log.warning,
        )
        return self._stack.enter_context(child)

    def _drive(self, evaluate: Evaluate, interruption: Interruption) -> frozenset[int]:
        """Search; return the ranks that were lost, in rank 0."""
        ranks, manager = self._ranks, self._manager
        if isinstance(ranks, MPIRanks) and ranks.size > 1:
            from transfer_nas.searching import mpi  # imports MPI

            return mpi.run(
                ranks.comm, self._space, manager, evaluate, interruption, fail=self._ending.fail
            )
        assert manager is not None
        serial.run(manager, evaluate, interruption)
        return frozenset()

    def _conclude(
        self,
        manager: Manager,
        finalists: Finalists,
        trainer: TransferTrainer,
        interruption: Interruption,
    ) -> int:
        """Write down what came of it, and tell; return the exit code."""
        settings, status, ended_by = self._settings, manager.status, interruption.reason
        summary = summarize(
            settings,
            self._ranks.size,
            status,
            self._space,
            self._goal,
            ended_by or self._ended_by(manager),
        )
        _write_summary(settings.directory, summary)
        code = _exit_code(manager, interruption)
        if self._given.brief:
            return code
        in_time = ended_by in (None, "timeout")
        if in_time and (signalled := self._finish_models(finalists, trainer, summary)):
            in_time, code = False, signalled
        if not in_time and trained_model.best_path(settings.directory).exists():
            finish = command("transfer_nas.trained_model", str(settings.directory))
            print(f"to make best.keras of best.safetensors: {finish}", file=self._terminal)
        tell(summary, settings.json)
        if status.failures == status.evaluations > 0:
            tell_failure(status, settings, manager.hopeless, self._terminal)
        return code

    @staticmethod
    def _ended_by(manager: Manager) -> str | None:
        if manager.hopeless:
            return "failures"
        return "space" if manager.exhausted else None

    def _finish_models(
        self, finalists: Finalists, trainer: TransferTrainer, summary: dict[str, Any]
    ) -> int:
        """Write ``best.keras`` and retrain the finalists; return the exit code if a signal came."""
        directory = self._settings.directory
        with Interruption() as late, contextlib.suppress(Interrupted), late.evaluating():
            if trained_model.best_path(directory).exists():
                print(f"writing {directory}/best.keras", file=self._terminal)
            with self._patience("Keras is being imported to write best.keras"):
                _write_best(directory, self._application, self._terminal)
            if finalists.best:
                say = functools.partial(print, file=self._terminal)
                summary["retrained"] = retrain(
                    finalists.best, trainer, directory, say, summary["evaluations"]
                )
                _write_summary(directory, summary)
        return late.exit_code

    def _patience(self, what: str, silent: float = 2.0) -> contextlib.AbstractContextManager[None]:
        if self._ranks.rank != 0:
            return contextlib.nullcontext()
        return patience(self._terminal, what, 2.0 if self._terminal.isatty() else silent)

    def _progress(self) -> contextlib.AbstractContextManager[Progress]:
        terminal, timeout = self._terminal, self._settings.timeout
        if self._ranks.rank != 0:
            return contextlib.nullcontext(PlainProgress(terminal, timeout))  # nobody tells it
        kind = TerminalProgress if terminal.isatty() else PlainProgress
        return kind(terminal, timeout, self._goal)


def _write_summary(directory: Path, summary: dict[str, Any]) -> None:
    with writing(directory):
        files.write_text(directory / "summary.json", json.dumps(summary, indent=2) + "\n")


def _write_best(directory: Path, application: Application, terminal: TextIO) -> None:
    """Write ``best.keras``; a model that Keras cannot take must not cost the user the search."""
    try:
        trained_model.finish(directory, application)
    except Exception as error:  # custom layers may do anything
        _log.exception("best.keras")
        kept = trained_model.best_path(directory)
        print(
            f"best.keras could not be written: {one_line(error)}; {kept} is kept, and "
            f"{command('transfer_nas.trained_model', str(directory))} makes it once that is mended",
            file=terminal,
        )


def _observer(
    settings: Settings,
    directory: RunDirectory,
    space: Space,
    finalists: Finalists,
    stack: contextlib.ExitStack,
) -> Callable[[Evaluation], None] | None:
    """Return who else wants to see evaluations."""
    if not settings.tensorboard:
        return finalists.observe if settings.retrain else None
    from transfer_nas.tensorboard import EventFile

    values = own(directory.values)
    file = EventFile(directory.path, directory.started, space, directory.evaluations, values)
    write = stack.enter_context(file).write

    def observe(evaluation: Evaluation) -> None:
        finalists.observe(evaluation)
        write(evaluation)

    return observe


def _exit_code(manager: Manager, interruption: Interruption) -> int:
    if interruption.exit_code:
        return interruption.exit_code
    status = manager.status
    if manager.hopeless or status.failures == status.evaluations > 0:
        return exit_codes.FAILED
    if interruption.reason == "max_wait":
        return exit_codes.RESUMABLE
    return exit_codes.DONE if status.fresh else exit_codes.NOTHING_TO_DO


def _provenance(ranks: Ranks, gpu: str | None) -> dict[str, Any]:
    """Return what ``run.json`` says besides the settings; collective."""
    here = {
        "rank": ranks.rank,
        "host": socket.gethostname(),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "gpu": gpu,
    }
    layout = ranks.share(here)
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"versions": versions, "ranks": layout}


def _open(
    settings: Settings,
    application: Application,
    space: Space,
    provenance: dict[str, Any],
    rank: int,
) -> RunDirectory | None:
    if rank != 0:
        return None
    # The data, by its digest, is as much a setting as the application's name.
    namespace = {"namespace": application.namespace}
    values = application.declared
    goal = None if application.objective is None else application.objective_name
    if settings.resume:
        chosen = {**settings.fixed(), **namespace, "objective": goal}
        directory = RunDirectory.resume(
            settings.directory, space, chosen, provenance, values=values
        )
        exit_codes.forget(settings.directory)
        return directory
    extra = {
        **provenance,
        "objective": application.describe_objective(),
        "training": application.describe_training(),
    }
    chosen = {**settings.to_dict(), **namespace}
    if goal is not None:
        chosen["objective"] = goal
    after = worker.objectives(settings, application)
    if after is not None:
        extra["objectives"] = after.to_json()
    return RunDirectory.create(settings.directory, space, chosen, extra, values=values)


def _algorithm(
    settings: Settings, space: Space, epochs: int, after: Objectives | None = None
) -> Algorithm:
    """Return the search for some objectives; `epochs` are those of a whole training."""
    assert settings.seed is not None
    kind = ALGORITHMS.find(settings.search)
    algorithm = kind.create(space, settings.seed, settings.of_search, epochs)
    algorithm.objectives = after
    return algorithm


@contextlib.contextmanager
def _terminal(stream: TextIO | None) -> Iterator[TextIO]:
    """Give a stream, or what stderr is now, whatever becomes of stderr."""
    if stream is not None:
        yield stream
        return
    sys.stderr.flush()
    with open_stream(os.dup(2), forgives=True) as terminal:
        yield terminal


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Write what modules log to a file; the standard streams are the calling program's."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def _own_log(path: Path, terminal: TextIO) -> Iterator[None]:
    """Send stderr to this rank's log; a crash in native code says on the terminal where it was.

    TensorFlow and the libraries under it write to file descriptor 2 as they like: hundreds of
    lines that bury the progress line. In the log they are there for who needs them.
    """
    with path.open("a", buffering=1) as file:
        os.dup2(file.fileno(), 2)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logging.getLogger().addHandler(handler)
    faulthandler.enable(terminal)
    try:
        yield
    finally:
        faulthandler.disable()
        logging.getLogger().removeHandler(handler)
        with contextlib.suppress(OSError):  # no room for it, as whoever it is about has said
            sys.stderr.flush()
        os.dup2(terminal.fileno(), 2)
