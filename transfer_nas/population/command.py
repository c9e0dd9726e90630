"""One generation of a population from the first check to the summary, in every rank of a job."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graph_meta.service import PrefixService
from transfer_nas import spaces
from transfer_nas.errors import RunDirectoryError
from transfer_nas.population import files, generation
from transfer_nas.population.files import MembersWriter, Population
from transfer_nas.population.generation import Totals
from transfer_nas.ranks import MPIRanks, Ranks, together
from transfer_nas.searching.journal import claim
from transfer_nas.settings import GenerationSettings
from transfer_nas.spaces import GeneSpace

DEFAULT_SPACE = "dense_skip"

_PACKAGES = ("transfer-nas", "numpy", "pyarrow", "mpi4py")
_REPORT_EVERY = 2.0  # seconds


def run(settings: GenerationSettings, ranks: Ranks) -> int:
    """Generate a population, or evolve an earlier one, and write it; collective.

    With ``initial_population_dir`` the members are those of that directory; without it,
    ``population_size`` new models. Then ``evolve_count`` children are made from them. The output
    directory holds every model made and every member still alive: it is a population to start from
    in turn, and complete without the directory that it came from.

    Parameters
    ----------
    settings
        The same in all ranks, with seed and output directory chosen.
    ranks
        The processes of the job.

    Returns
    -------
    int
        Exit code 0.

    Raises
    ------
    InputError
        In all ranks, if a setting or a file is wrong.
    """
    started = time.perf_counter()
    space = together(ranks, lambda: _space(settings))
    population = None
    if settings.initial_population_dir is not None:
        source = Path(settings.initial_population_dir)
        population = together(ranks, lambda: Population(source, space))
    description = _describe(settings, space, population)
    comm = ranks.comm if isinstance(ranks, MPIRanks) else None
    with contextlib.ExitStack() as stack:
        together(ranks, lambda: _prepare(settings.directory, ranks.rank, stack))
        # Only bulk calls: a serving thread would have nothing to do.
        service = stack.enter_context(PrefixService(comm))
        identity = description["identity"]
        writer = stack.enter_context(
            MembersWriter(settings.directory, ranks.rank, ranks.size, identity)
        )
        made = _make(settings, space, population, service, writer, ranks)
        entries = ranks.share(writer.close())
        summary = _summarize(settings, space, made, ranks, time.perf_counter() - started)
        if ranks.rank == 0:
            description["models"] = sum(entry["rows"] for entry in entries)
            description["next_model"] = made.next_model
            files.write_description(
                settings.directory, {**description, "files": entries, "summary": summary}
            )
    if ranks.rank == 0:
        print(json.dumps(summary) if settings.json else _in_words(summary), flush=True)
    return 0


def default_space(name: str | None) -> GeneSpace:
    """Return a space for which no application says what goes in and comes out.

    Inputs and outputs are those the space is known for; see `Space.example`.

    Raises
    ------
    SpaceError
        If there is no such space, or it has no genes.
    """
    return spaces.with_genes(spaces.find(name or DEFAULT_SPACE).example(), "a population")


@dataclass(frozen=True)
class _Outcome:
    generated: Totals
    evolved: Totals
    next_model: int


def _make(
    settings: GenerationSettings,
    space: GeneSpace,
    population: Population | None,
    service: PrefixService,
    writer: MembersWriter,
    ranks: Ranks,
) -> _Outcome:
    seed, children = settings.seed or 0, settings.evolve_count
    generated = Totals()
    if population is None:
        size = settings.population_size
        generated = generation.generate(
            space, seed, size, children, service, writer, _Progress("generated", size, ranks)
        )
        model, genome = np.arange(size), generation.draw_genomes(space, seed, 0, size)
    else:
        progress = _Progress("read", len(population), ranks)
        together(
            ranks,
            lambda: generation.register_members(
                space, population, children, service, writer, progress
            ),
        )
        model, genome = population.model, population.genome
    lineage = generation.draw_lineage(space, seed, model, genome, children)
    progress = _Progress("evolved", children, ranks)
    evolved = generation.evolve(space, lineage, service, writer, progress)
    return _Outcome(generated, evolved, int(lineage.model[-1]) + 1)


def _space(settings: GenerationSettings) -> GeneSpace:
    """Return the space that was asked for, else that of the initial population."""
    name = settings.space
    if name is None and settings.initial_population_dir is not None:
        name = files.space_name(Path(settings.initial_population_dir))
    return default_space(name)


def _prepare(directory: Path, rank: int, stack: contextlib.ExitStack) -> None:
    """Make the output directory in rank 0, and keep others out of it; refuse one in use."""
    if rank != 0:
        return
    made = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if made:
            stack.callback(_remove_empty, directory)
        stack.enter_context(claim(directory))
        for name in (files.DESCRIPTION, "run.json"):
            if (directory / name).exists():
                raise RunDirectoryError(
                    f"output directory {directory} holds another run ({name}); choose another "
                    "directory"
                )
        # A run that was killed leaves files of perhaps another number of ranks.
        for path in directory.iterdir():
            if files.MEMBERS.fullmatch(path.name):
                path.unlink()
    except OSError as error:
        raise RunDirectoryError(f"cannot write to {directory}: {error.strerror}") from error


def _remove_empty(directory: Path) -> None:
    """Remove a directory that was made for what then was not written."""
    with contextlib.suppress(OSError):
        directory.rmdir()


def _describe(
    settings: GenerationSettings, space: GeneSpace, population: Population | None
) -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    description = {
        "format": files.FORMAT,
        "space": space.describe(),
        "seed": settings.seed,
        "population_size": settings.population_size if population is None else len(population),
        "evolve_count": settings.evolve_count,
        "initial": None if population is None else population.description["identity"],
        "versions": versions,
    }
    return {**description, "identity": files.identity(description)}


def _summarize(
    settings: GenerationSettings, space: GeneSpace, made: _Outcome, ranks: Ranks, seconds: float
) -> dict[str, Any]:
    """Add up what all ranks made; collective."""
    parts = ranks.share([asdict(made.generated), asdict(made.evolved)])
    generated, evolved = (
        {key: sum(part[i][key] for part in parts) for key in parts[0][i]} for i in (0, 1)
    )
    summary: dict[str, Any] = {
        "output_dir": str(settings.directory),
        "space": space.name,
        "ranks": ranks.size,
        "seconds": round(seconds, 3),
        "generated": generated["models"],
        "evolved": evolved["models"],
        "models_per_second": round((generated["models"] + evolved["models"]) / seconds, 1),
        "layers": generated["layers"] + evolved["layers"],
        "bytes": generated["bytes"] + evolved["bytes"],
    }
    if evolved["models"]:
        summary["share_of_layers_shared"] = evolved["layers_shared"] / evolved["layers"]
        summary["share_of_bytes_shared"] = evolved["bytes_shared"] / max(1, evolved["bytes"])
        summary["without_ancestor"] = evolved["without_ancestor"]
    return summary


def _in_words(summary: Mapping[str, Any]) -> str:
    made = []
    if summary["generated"]:
        made.append(f"generated {summary['generated']:,}")
    if summary["evolved"]:
        made.append(f"evolved {summary['evolved']:,}")
    lines = [
        f"{' and '.join(made) or 'copied the'} models of space {summary['space']} in "
        f"{summary['seconds']:.1f} s ({summary['models_per_second']:,.0f} a second): "
        f"{summary['output_dir']}"
    ]
    if summary["evolved"]:
        lines.append(
            f"of the evolved ones {summary['share_of_layers_shared']:.1%} of the layers and "
            f"{summary['share_of_bytes_shared']:.1%} of the bytes would transfer from an ancestor; "
            f"{summary['without_ancestor']:,} have none"
        )
    return "\n".join(lines)


class _Progress:
    """Says every few seconds on standard error how far rank 0 is, which is how far all are."""

    def __init__(self, verb: str, total: int, ranks: Ranks) -> None:
        self._verb = verb
        self._total = total
        self._size = ranks.size
        self._shows = ranks.rank == 0
        self._started = self._shown = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if not self._shows or now - self._shown < _REPORT_EVERY:
            return
        self._shown = now
        done = min(done * self._size, self._total)
        left = (now - self._started) * (self._total - done) / max(1, done)
        print(
            f"{self._verb} {done:,} of {self._total:,} models, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
