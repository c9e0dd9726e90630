"""The three questions of ``bench_writes*.py``: every rank writes models, by each method in turn."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import figures
from methods import MIB, Method, Places, Tensors, available, chain, in_shared_memory, opened_places
from mpi4py import MPI

from cpp_store import ranges

LAYERS = 50


@dataclass(frozen=True)
class Experiment:
    """How one of the scripts writes.

    Attributes
    ----------
    name
        Of the script.
    directory
        Where files go unless the user says otherwise.
    set_up
        Whether the time begins before the method is opened: its import, its connection.
    sync
        Whether each task ends only when the medium has its bytes; else they are left to the
        operating system, and to Redis, as usual.
    redis_flags
        What Redis writes to disk, and when.
    """

    name: str
    directory: Path
    set_up: bool
    sync: bool
    redis_flags: Sequence[str]


def main(experiment: Experiment, description: str, targets: figures.Targets) -> int:
    """Run the script of an experiment."""
    parser = figures.parser(description, "smaller models, fewer of them")
    parser.add_argument("--directory", type=Path, default=experiment.directory, metavar="DIR",
                        help="the file system to write to (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--tasks", type=ranges.COUNT, help="models that each rank writes (default: 8)"
    )
    given = parser.parse_args()
    world = MPI.COMM_WORLD
    sizes = (1, 16) if given.quick else (1, 16, 64)
    tasks = given.tasks or (3 if given.quick else 8)
    repetitions = 3 if given.quick else 5
    results: dict[str, float] = {"ranks": world.size, "tasks_per_rank": tasks}
    memory = world.size * (tasks + 1) * max(sizes) * MIB
    with opened_places(
        world, given.directory, redis_flags=experiment.redis_flags, memory=memory
    ) as places:
        methods = available(places)
        results["store_in_shared_memory"] = in_shared_memory(places)
        for size in sizes:
            tensors = chain(size * MIB, LAYERS, world.rank)
            taken = alternate(experiment, methods, places, tensors, tasks, repetitions, world)
            for method, seconds in taken.items():
                results[f"{method}_ms_{size}mb"] = 1e3 * seconds / tasks
                results[f"{method}_gb_per_s_{size}mb"] = (
                    world.size * tasks * size * MIB / seconds / 1e9
                )
            for method, seconds in taken.items():
                if method != "store":
                    results[f"{method}_over_store_{size}mb"] = seconds / taken["store"]
    if world.rank == 0:
        figures.finish(experiment.name, results, targets, given)
    return 0


def alternate(
    experiment: Experiment,
    methods: Sequence[type[Method]],
    places: Places,
    tensors: Tensors,
    tasks: int,
    repetitions: int,
    world: MPI.Comm,
) -> dict[str, float]:
    """Let methods take turns; return the median seconds that the slowest rank took."""
    taken: dict[str, list[float]] = {method.name: [] for method in methods}
    for repetition in range(repetitions + 1):
        for method in figures.in_turn(methods, repetition):
            seconds = write(experiment, method, places, tensors, tasks, world)
            if repetition:  # the first one warms up
                taken[method.name].append(world.allreduce(seconds, MPI.MAX))
    return {name: statistics.median(times) for name, times in taken.items()}


def write(
    experiment: Experiment,
    method: type[Method],
    places: Places,
    tensors: Tensors,
    tasks: int,
    world: MPI.Comm,
) -> float:
    """Write a rank's models at the same time as the other ranks; return the seconds."""
    models = [f"rank{world.rank}-task{number}" for number in range(tasks)]
    opened = None if experiment.set_up else method(places, sync=experiment.sync)
    world.Barrier()
    begin = time.perf_counter()
    if opened is None:
        opened = method(places, sync=experiment.sync)
    for model in models:
        opened.write(model, tensors)
    seconds = time.perf_counter() - begin
    world.Barrier()
    for model in models:
        opened.remove(model)
    opened.close()
    return seconds


def script(experiment: Experiment, description: str | None, targets: figures.Targets) -> None:
    """End the process with what `main` returns."""
    sys.exit(main(experiment, description or "", targets))
