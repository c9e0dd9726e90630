"""One search from the first check to the summary, in every rank of a job."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from cpp_store.command_line import open_stream

from transfer_nas import exit_codes, tensorboard, tracing, trained_model
from transfer_nas.applications import Application
from transfer_nas.errors import writing
from transfer_nas.job import Evaluation
from transfer_nas.ranks import MPIRanks, Ranks, together
from transfer_nas.search import devices, serial, worker
from transfer_nas.search.algorithm import Algorithm
from transfer_nas.search.child import LOG_FORMAT
from transfer_nas.search.evaluation import Evaluate, InProcess
from transfer_nas.search.evolution import AgingEvolution
from transfer_nas.search.finalists import Finalists, retrain
from transfer_nas.search.halving import SuccessiveHalving
from transfer_nas.search.interruption import Interruption
from transfer_nas.search.isolation import InChild
from transfer_nas.search.journal import write_whole
from transfer_nas.search.manager import Manager, Status
from transfer_nas.search.progress import PlainProgress, Progress, TerminalProgress
from transfer_nas.search.random_search import RandomSearch
from transfer_nas.search.run_directory import RunDirectory
from transfer_nas.search.worker import Servers
from transfer_nas.settings import Settings
from transfer_nas.spaces import Space
from transfer_nas.trainer import TransferTrainer

_PACKAGES = ("transfer-nas", "numpy", "keras", "tensorflow", "mpi4py")
_log = logging.getLogger(__name__)


def run(settings: Settings, ranks: Ranks) -> int:
    """Search; collective.

    Parameters
    ----------
    settings
        The same in all ranks, with seed and output directory chosen.
    ranks
        The processes of the job.

    Returns
    -------
    int
        One of `transfer_nas.exit_codes`; 128 plus the number of the signal that ended the search.

    Raises
    ------
    InputError
        In all ranks, if a setting, a file or an environment variable is wrong in one of them.
    Unwritable
        In one rank: the run's files cannot be written. The others may be in the middle of anything.
    """
    devices.pin_threads(settings.threads_per_rank, ranks.local_size)
    gpu = devices.choose_gpu(ranks.local_rank, ranks.local_size)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    application, space = together(ranks, lambda: worker.resolve(settings))
    if settings.tensorboard:
        together(ranks, tensorboard.check)  # before anything is written
    if settings.trace is not None:
        trace = settings.trace
        together(ranks, lambda: tracing.start(trace, ranks.rank))
    provenance = _provenance(ranks, gpu)
    with contextlib.ExitStack() as stack:
        # Servers first: if they do not answer, nothing shall have been written.
        servers = stack.enter_context(worker.servers(settings, ranks))
        directory = together(
            ranks, lambda: _open(settings, application, space, provenance, ranks.rank)
        )
        if directory is not None:
            stack.enter_context(directory)
        terminal = stack.enter_context(_own_log(settings.directory, ranks.rank))
        if application.synthetic and ranks.rank == 0:
            print(f"{application.name}: the data is generated, not measured", file=terminal)
        identity = ranks.share(directory and directory.id)[0]
        method = together(ranks, lambda: worker.method(settings, application, servers))
        stack.callback(method.close)
        trainer = together(
            ranks,
            lambda: worker.trainer(settings, application, space, method, identity, ranks.rank),
        )
        evaluate = together(
            ranks, lambda: _evaluate(settings, trainer, servers, identity, ranks.rank, stack)
        )
        ranks.share(None)  # --timeout counts from here, the same moment for everybody
        interruption = stack.enter_context(Interruption(settings.timeout, settings.max_wait))
        with _progress(terminal, settings.timeout, ranks.rank) as progress:
            manager = None
            earlier = () if directory is None else directory.evaluations
            finalists = Finalists(settings.retrain, trainer.retire, earlier)
            if directory is not None:
                manager = Manager(
                    _algorithm(settings, space, trainer.epochs),
                    directory,
                    max_evals=settings.max_evals,
                    retire=finalists.retire,
                    report=progress.update,
                    warn=progress.warn,
                    observe=_observer(settings, directory, space, finalists, stack),
                )
            lost = _drive(ranks, manager, evaluate, interruption)
        if manager is not None:
            _write_best(settings.directory, application, terminal)
            if finalists.best and interruption.reason in (None, "timeout"):
                retrain(finalists.best, trainer, settings.directory)
            ended_by = interruption.reason or ("space" if manager.exhausted else None)
            summary = summarize(settings, ranks.size, manager.status, space, ended_by)
            text = json.dumps(summary, indent=2) + "\n"
            with writing(settings.directory):
                write_whole(settings.directory / "summary.json", text)
            _tell(summary, settings.json)
            if manager.status.failures == manager.status.evaluations > 0:
                print(f"every candidate failed; see {settings.directory}/logs", file=terminal)
            if lost:
                # They would never come to the end of the search, where all ranks meet.
                code = _exit_code(manager, interruption)
                exit_codes.leave(settings.directory, code)
                ranks.abort(code)
        tracing.stop()
        codes: list[int] = ranks.share(_exit_code(manager, interruption))
    if settings.trace is not None and ranks.rank == 0:
        tracing.merge(settings.trace, range(ranks.size))
    return max(codes)


def _write_best(directory: Path, application: Application, terminal: TextIO) -> None:
    """Write ``best.keras``; a model that Keras cannot take must not cost the user the search."""
    try:
        trained_model.finish(directory, application)
    except Exception as error:  # custom layers may do anything
        _log.exception("best.keras")
        kept = trained_model.best_path(directory)
        print(f"best.keras could not be written, {kept} is kept: {error}", file=terminal)


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

    genes = {gene.name: gene.values for gene in space.genes}
    file = EventFile(directory.path, directory.started, genes, directory.evaluations)
    write = stack.enter_context(file).write

    def observe(evaluation: Evaluation) -> None:
        finalists.observe(evaluation)
        write(evaluation)

    return observe


def _exit_code(manager: Manager | None, interruption: Interruption) -> int:
    if interruption.exit_code or manager is None:
        return interruption.exit_code
    status = manager.status
    if status.failures == status.evaluations > 0:
        return exit_codes.FAILED
    if interruption.reason == "max_wait":
        return exit_codes.RESUMABLE
    return exit_codes.DONE if status.fresh else exit_codes.NOTHING_TO_DO


def _drive(
    ranks: Ranks, manager: Manager | None, evaluate: Evaluate, interruption: Interruption
) -> frozenset[int]:
    """Search; return the ranks that were lost, in rank 0."""
    if isinstance(ranks, MPIRanks) and ranks.size > 1:
        from transfer_nas.search import mpi  # imports MPI

        return mpi.run(ranks.comm, manager, evaluate, interruption)
    assert manager is not None
    serial.run(manager, evaluate, interruption)
    return frozenset()


def _evaluate(
    settings: Settings,
    trainer: TransferTrainer,
    servers: Servers,
    identity: str,
    rank: int,
    stack: contextlib.ExitStack,
) -> Evaluate:
    """Return what evaluates in this rank, or in a child of it."""
    if not settings.isolated:
        return InProcess(trainer, settings.directory, _log.warning)
    child = InChild(
        "transfer_nas.search.worker:isolated_trainer",
        {
            "settings": settings.to_dict(),
            "addresses": servers.addresses,
            "key": servers.key,
            "run": identity,
            "rank": rank,
        },
        settings.directory,
        timeout=settings.evaluation_timeout,
        log=_log.warning,
    )
    return stack.enter_context(child)


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
    if settings.resume:
        directory = RunDirectory.resume(
            settings.directory, space, {**settings.fixed(), **namespace}, provenance
        )
        exit_codes.forget(settings.directory)
        return directory
    extra = {**provenance, "objective": application.objective()}
    return RunDirectory.create(
        settings.directory, space, {**settings.to_dict(), **namespace}, extra
    )


def _algorithm(settings: Settings, space: Space, epochs: int) -> Algorithm:
    """Return the search; `epochs` are those of a whole training."""
    assert settings.seed is not None
    if settings.search == "random":
        return RandomSearch(space, settings.population_size, settings.seed)
    if settings.search == "halving":
        return SuccessiveHalving(space, epochs, settings.seed)
    assert settings.sample_size is not None
    return AgingEvolution(
        space, settings.population_size, settings.sample_size, settings.seed, settings.beta
    )


@contextlib.contextmanager
def _own_log(directory: Path, rank: int) -> Iterator[TextIO]:
    """Send stderr to this rank's log; give the terminal to who asks for it.

    TensorFlow and the libraries under it write to file descriptor 2 as they like: hundreds of
    lines that bury the progress line. In the log they are there for who needs them.
    """
    sys.stderr.flush()
    terminal = open_stream(os.dup(2), forgives=True)
    with (directory / "logs" / f"rank-{rank}.log").open("a", buffering=1) as file:
        os.dup2(file.fileno(), 2)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logging.getLogger().addHandler(handler)
    try:
        yield terminal
    finally:
        logging.getLogger().removeHandler(handler)
        with contextlib.suppress(OSError):  # no room for it, as whoever it is about has said
            sys.stderr.flush()
        os.dup2(terminal.fileno(), 2)
        terminal.close()


def _progress(terminal: TextIO, timeout: float | None, rank: int) -> Progress:
    if rank == 0 and terminal.isatty():
        return TerminalProgress(terminal, timeout)
    return PlainProgress(terminal, timeout)


def summarize(
    settings: Settings, ranks: int, status: Status, space: Space, ended_by: str | None
) -> dict[str, Any]:
    """Return what came out of a search, as JSON values."""
    best = status.best
    return {
        "application": settings.application,
        "space": space.name,
        "search": settings.search,
        "transfer": settings.transfer,
        "policy": settings.policy,
        "seed": settings.seed,
        "ranks": ranks,
        "output_dir": settings.output_dir,
        "ended_by": ended_by or "max_evals",
        "evaluations": status.evaluations,
        "failures": status.failures,
        "seconds": round(status.seconds, 3),
        "evaluations_per_second": round(status.evaluations_per_second, 3),
        "best_objective": best and best.objective,
        "best_job": best and best.job.id,
        "best_values": best and space.values(best.job.genome),
        "layers": status.layers,
        "layers_transferred": status.layers_transferred,
        "share_transferred": round(status.share_transferred, 4),
        "bytes_transferred": status.bytes_transferred,
        "bytes_stored": status.bytes_stored,
        "bytes_whole_copies": status.bytes_whole_copies,
    }


def _tell(summary: dict[str, Any], as_json: bool) -> None:
    """Print what came out of a search."""
    if as_json:
        print(json.dumps(summary), flush=True)
        return
    rate = f"{summary['evaluations_per_second']:.2f} evaluations/s"
    print(f"{summary['evaluations']} evaluations in {summary['seconds']:.1f} s ({rate})")
    if summary["failures"]:
        print(f"{summary['failures']} failed; see {summary['output_dir']}/logs")
    if summary["best_job"] is not None:
        print(f"best {summary['best_objective']:.4f}: job {summary['best_job']}, best.keras")
    print(
        f"{summary['share_transferred']:.0%} of the children's layers transferred; stored "
        f"{summary['bytes_stored']:,} bytes, whole copies take {summary['bytes_whole_copies']:,}"
    )
    directory = summary["output_dir"]
    look = shlex.join(["python", "-m", "transfer_nas.report", directory])
    print(f"everything is in {directory}; to see it: {look}", flush=True)
