"""What a search says at its start and at its end, on the terminal and in ``summary.json``."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, TextIO

from transfer_nas import trained_model
from transfer_nas.applications import PARTS, Application
from transfer_nas.searching.manager import Status, explain
from transfer_nas.searching.progress import Goal
from transfer_nas.searching.worker import Servers
from transfer_nas.settings import Settings
from transfer_nas.spaces import GeneSpace, Space
from transfer_nas.values import CORE_NAMES

_SHOWN = 12  # models on the front, on the terminal


def goal_of(application: Application) -> Goal:
    """Return what is better for an application."""
    return Goal(application.objective_name, application.direction == "min")


def opening(
    settings: Settings,
    application: Application,
    space: Space,
    engine: str,
    hosts: list[str],
    servers: Servers,
) -> list[str]:
    """Return lines that say what is about to be searched, where and how.

    Parameters
    ----------
    settings, application, space
        Of the search.
    engine
        Which one trains, and why.
    hosts
        Of each rank.
    servers
        Of the weight store.
    """
    data, goal = application.data, goal_of(application)
    train, valid, test = (data.count(part) for part in PARTS)
    nodes = len(set(hosts))
    ranks = f"{_some(len(hosts), 'rank')}{f' on {nodes} nodes' if nodes > 1 else ''}"
    limits = [
        f"at most {settings.max_evals:,} evaluations" if settings.max_evals is not None else "",
        f"at most {settings.timeout:g} s" if settings.timeout is not None else "",
    ]
    genes = f" of {_some(len(space.genes), 'gene')}" if isinstance(space, GeneSpace) else ""
    transfer = settings.transfer
    if transfer == "store":
        count = len(servers.addresses)
        kept = _some(count, "server") if count else "in this process"
        if servers.memory is not None:
            kept += f" of {servers.memory / 2**30:.3g} GiB{' each' if count > 1 else ''}"
        transfer += f" ({kept})"
    several = settings.objectives is not None
    where = " on those rows" if application.objective is None else ""
    return [
        f"{application.name}: {train:,} rows to train on, {valid:,} to judge by"
        f"{f', {test:,} to test finalists with' if test and settings.retrain else ''}"
        f"{'; the data is generated, not measured' if application.synthetic else ''}",
        f"{ranks}; space {space.name}{genes}; "
        f"search {settings.search}, {', '.join(filter(None, limits))}; transfer {transfer}",
        f"the objective is {goal.metric}{where}: {goal.direction}"
        f"{', so its negative is maximised' if goal.minimized else ''}",
        *([f"the search is after several at once: {settings.objectives}"] if several else []),
        engine,
        f"everything goes to {settings.directory}",
    ]


def summarize(
    settings: Settings, ranks: int, status: Status, space: Space, goal: Goal, ended_by: str | None
) -> dict[str, Any]:
    """Return what came out of a search, as JSON values."""
    best, failure = status.best, status.first_failure
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
        "first_failure": failure
        and {"job": failure.job.id, "status": failure.status, "error": explain(failure)},
        "seconds": round(status.seconds, 3),
        "evaluations_per_second": round(status.evaluations_per_second, 3),
        "metric": goal.metric,
        "mode": "min" if goal.minimized else "max",
        "best_objective": best and best.objective,
        "best_value": best and goal.value(best.objective),
        "best_measures": best
        and {name: value for name, value in best.measures.items() if name not in CORE_NAMES},
        "best_job": best and best.job.id,
        "best_values": best and space.values(best.job.architecture),
        "best_architecture": best and space.to_json(best.job.architecture),
        **_front(status, space),
        "layers": status.layers,
        "layers_transferred": status.layers_transferred,
        "share_transferred": round(status.share_transferred, 4),
        "bytes_transferred": status.bytes_transferred,
        "bytes_stored": status.bytes_stored,
        "bytes_whole_copies": status.bytes_whole_copies,
    }


def _front(status: Status, space: Space) -> dict[str, Any]:
    """Return what a search for several objectives found; nothing for one."""
    if status.front is None:
        return {}
    objectives = status.front.objectives
    members = sorted(status.front.members.values(), key=objectives.scores, reverse=True)
    return {
        "objectives": {each.name: each.direction for each in objectives},
        "hypervolume": status.front.hypervolume,
        "front": [
            {
                "job": member.job.id,
                "objectives": objectives.values(member),
                "values": space.values(member.job.architecture),
                "architecture": space.to_json(member.job.architecture),
            }
            for member in members
        ],
    }


def tell(summary: dict[str, Any], as_json: bool) -> None:
    """Print what came out of a search."""
    if as_json:
        print(json.dumps(summary), flush=True)
        return
    rate = f"{summary['evaluations_per_second']:.2f} evaluations/s"
    print(f"{summary['evaluations']} evaluations in {summary['seconds']:.1f} s ({rate})")
    directory = Path(summary["output_dir"])
    if summary["failures"]:
        first = summary["first_failure"]
        print(
            f"{summary['failures']} failed, the first with: {first['error']}; see {directory}/logs"
        )
    if summary["best_job"] is not None:
        goal = Goal(summary["metric"], summary["mode"] == "min")
        kept = [directory / "best.keras", trained_model.best_path(directory)]
        files = [path.name for path in kept if path.exists()]
        where = f", {files[0]}" if files else ""
        means = " (lower is better; the objective is its negative)" if goal.minimized else ""
        print(f"{goal.best(summary['best_objective'])}{means}: job {summary['best_job']}{where}")
    if front := summary.get("front"):
        print(f"{_some(len(front), 'model')} on the front, {directory}/front/JOB.keras:")
        for model in front[:_SHOWN]:
            found = ", ".join(f"{name} {value:.6g}" for name, value in model["objectives"].items())
            print(f"  job {model['job']}: {found}")
        if len(front) > _SHOWN:
            print(f"  and {len(front) - _SHOWN} more in summary.json")
    print(
        f"{summary['share_transferred']:.0%} of the children's layers transferred; stored "
        f"{summary['bytes_stored']:,} bytes, whole copies take {summary['bytes_whole_copies']:,}"
    )
    look = command("transfer_nas.report", summary["output_dir"])
    print(f"everything is in {directory}; to see it: {look}", flush=True)


def tell_failure(status: Status, settings: Settings, hopeless: bool, terminal: TextIO) -> None:
    """Say why nothing worked."""
    assert status.first_failure is not None
    what = (
        f"the first {status.failures} candidates failed for one reason, so the search ends"
        if hopeless
        else "every candidate failed"
    )
    print(f"{what}: {explain(status.first_failure)}; see {settings.directory}/logs", file=terminal)


def command(module: str, *arguments: str) -> str:
    """Return what to type to run a module with the interpreter that runs this."""
    return shlex.join([_interpreter(), "-m", module, *arguments])


def _interpreter() -> str:
    """Return the shortest name by which a shell in this directory finds the interpreter."""
    running = Path(sys.executable or "python")
    for name in ("python", "python3"):
        found = shutil.which(name)
        if found is not None and Path(found) == running:
            return name
    if not running.is_relative_to(here := Path.cwd()):
        return str(running)
    name = str(running.relative_to(here))
    return name if "/" in name else f"./{name}"


def _some(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
