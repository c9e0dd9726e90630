"""Run directories without training: everything in them but the training is real.

Aging evolution, layer graphs, best matches, the files.
"""

from __future__ import annotations

import heapq
import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from graph_meta.index import PrefixIndex
from transfer_nas.algorithms.evolution import AgingEvolution
from transfer_nas.job import DONE, Evaluation, Job, Measure
from transfer_nas.logs import Log
from transfer_nas.objectives import Objectives
from transfer_nas.searching.run_directory import RunDirectory
from transfer_nas.spaces import DenseSkip, GeneSpace, Space

_BYTES_PER_SECOND = 1e9  # of the pretended store


def write_run(
    path: Path,
    evaluations: int,
    *,
    space: Space | None = None,
    ranks: int = 2,
    seed: int = 0,
    population_size: int = 16,
    transfer: bool = True,
    failures: float = 0.0,
    finished: bool = True,
    mode: str = "max",
    curves: bool = False,
    settings: dict[str, Any] | None = None,
    objectives: Objectives | None = None,
) -> None:
    """Write the run directory of a search whose trainings are made up.

    The objective is a smooth function of the genome with noise, a little better with transfer; of
    the number of layers, in a space without genes.

    Parameters
    ----------
    path
        Where; must not hold a run.
    evaluations
        Number of rows.
    space
        What is searched; default: `DenseSkip.example()`.
    ranks
        That share the evaluations, each at its own pace.
    seed
        Of the search, the objective and the times.
    population_size
        See `AgingEvolution`.
    transfer
        Whether candidates inherit; otherwise as with ``--transfer noop``.
    failures
        Share of the evaluations that fail.
    finished
        Whether the search came to its end; otherwise it stopped with jobs under way.
    mode
        ``min``: the objective is the negative of an error, which is what the run says.
    curves
        Whether the ranks log the epochs of each evaluation.
    settings
        Replace some of those in ``run.json``.
    objectives
        Of a search for several.
    """
    space = space or DenseSkip.example()
    rng = np.random.default_rng(seed)
    genes = space.genes if isinstance(space, GeneSpace) else ()
    weights = [rng.normal(size=len(gene.values)) for gene in genes]
    algorithm = AgingEvolution(space, population_size, max(1, population_size // 4), seed)
    algorithm.objectives = objectives
    index = PrefixIndex()
    chosen = {
        "application": "digits",
        "transfer": "store" if transfer else "noop",
        "population_size": population_size,
        "max_evals": evaluations,
        "seed": seed,
        **(settings or {}),
    }
    metric = "sparse_categorical_accuracy" if mode == "max" else "mean_absolute_error"
    extra: dict[str, Any] = {
        "versions": {},
        "ranks": [{"rank": rank, "host": "host", "threads": 1} for rank in range(ranks)],
        "objective": {"metric": metric, "mode": mode, "validation_rows": 450},
    }
    if objectives is not None:
        extra["objectives"] = objectives.to_json()
    directory = RunDirectory.create(path, space, chosen, extra)
    with directory, ExitStack() as stack:
        logs = [
            stack.enter_context(Log(path / "logs" / f"rank-{rank}.jsonl" if curves else None))
            for rank in range(ranks)
        ]
        running: list[tuple[float, int, float, Job]] = []
        # Each rank starts a little later than the one before.
        free = [(0.1 * (rank + 1), rank) for rank in range(ranks)]
        for _ in range(evaluations):
            for now, rank in free:
                (job,) = algorithm.ask()
                directory.asked(job)
                seconds = float(rng.gamma(8.0, 0.1))
                heapq.heappush(running, (now + seconds, rank, now, job))
            end, rank, begin, job = heapq.heappop(running)
            measures = _measures(job, space, index, directory.id, begin, end, rank, transfer)
            known = {name: value for name, value in measures.items() if name in directory.values}
            if rng.random() < failures:
                evaluation = Evaluation.failure(job, "nan", known)
            else:
                merit = _merit(job, weights) if genes else float(measures["layers"]) / 8 - 1
                objective = 1 / (1 + math.exp(-1.5 - 0.6 * merit)) + float(rng.normal(0, 0.004))
                objective += 0.01 * bool(measures.get("ancestor"))
                objective -= mode == "min"  # minus the error
                _log_epochs(logs[rank].section("evaluation", job.id), objective)
                evaluation = Evaluation(job, DONE, objective, known)
                index.add(
                    f"{directory.id}/{job.id}", space.graph(job.architecture), score=objective
                )
            directory.told(evaluation)
            for dead in algorithm.tell(evaluation):
                index.remove(f"{directory.id}/{dead}")
            free = [(end + float(rng.gamma(2.0, 0.004)), rank)]
    if finished:
        (path / "summary.json").write_text(json.dumps({"evaluations": evaluations}) + "\n")


def _log_epochs(log: Log, objective: float) -> None:
    """Write what a trainer logs of its epochs."""
    for epoch in range(1, 4):
        log.section("epoch", epoch).set(loss=1.5 / epoch, learning_rate=0.001)
    log.section("epoch", 3).set(val_loss=0.6, val_accuracy=objective)


def _merit(job: Job, weights: list[Any]) -> float:
    """Return how good a genome is: genes that come first count for more."""
    strengths = [1 / (1 + position) for position in range(len(weights))]
    pairs = zip(strengths, weights, job.architecture, strict=True)
    return float(sum(strength * values[value] for strength, values, value in pairs))


def _measures(
    job: Job,
    space: Space,
    index: PrefixIndex,
    run: str,
    begin: float,
    end: float,
    rank: int,
    transfer: bool,
) -> dict[str, Measure]:
    graph = space.graph(job.architecture)
    match = index.best_match(graph) if transfer else None
    moved = match.bytes if match is not None else 0
    seconds = end - begin
    load, store = moved / _BYTES_PER_SECOND, (graph.nbytes - moved) / _BYTES_PER_SECOND
    measures: dict[str, Measure] = {
        "layers": len(graph),
        "parameters": graph.parameters,
        "layers_transferred": 0 if match is None else match.layers,
        "bytes_transferred": moved,
        "bytes_stored": graph.nbytes - moved,
        "bytes_whole_copy": graph.nbytes,
        "match_seconds": 0.01 * seconds,
        "build_seconds": 0.12 * seconds,
        "load_seconds": load,
        "train_seconds": 0.8 * seconds,
        "store_seconds": 0.03 * seconds + store,
        "timestamp_submit": begin - 0.001,
        "timestamp_start": begin,
        "timestamp_end": end,
        "timestamp_gather": end + 0.001,
        "rank": rank,
    }
    if match is not None:
        measures["ancestor"] = match.model
    if job.parent is not None:
        measures["parent"] = job.parent
    return measures
