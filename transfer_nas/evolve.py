"""``python -m transfer_nas.evolve``: search for a network, or generate a population.

Imports little before it knows that there is work to do: ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpp_store import command_line
from transfer_nas.command_line import Parser, on_ranks
from transfer_nas.errors import InputError
from transfer_nas.ranks import Ranks, together
from transfer_nas.settings import (
    BEHIND_PREFIX,
    POLICIES,
    RANGES,
    SCHEDULES,
    SEARCHES,
    TRANSFERS,
    Settings,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments
        Instead of those of the command line.

    Returns
    -------
    int
        One of `transfer_nas.exit_codes`; 128 plus the number of the signal that ended it (130 for
        Ctrl-C).
    """
    return command_line.run("evolve", lambda: _command(arguments))


def _command(arguments: Sequence[str] | None) -> int:
    given = _flags(arguments)
    if not given.get("resume"):
        Settings.checked(given)  # the same in all ranks: no need to meet for it
    return on_ranks("evolve", lambda ranks: _run(together(ranks, lambda: _settings(given)), ranks))


def parse(arguments: Sequence[str]) -> Settings:
    """Return the settings of a command line.

    Flags may be spelled with underscores or with hyphens.

    Raises
    ------
    InputError
        A flag is unknown or lacks its value, or the settings make no sense.
    """
    return _settings(_flags(arguments))


def _flags(arguments: Sequence[str] | None) -> dict[str, Any]:
    return vars(_parser().parse_args(arguments))


def _settings(given: dict[str, Any]) -> Settings:
    return _resumed(given) if given.get("resume") else Settings.checked(given)


def _resumed(given: dict[str, Any]) -> Settings:
    """Fill in what the run to resume was started with."""
    from transfer_nas.search.run_directory import compare_settings, load_description

    if "output_dir" not in given:
        raise InputError("--resume needs --output_dir: which run?")
    path = Path(given["output_dir"])
    before = load_description(path)["settings"]
    defaults = Settings().to_dict()
    kept = {n: value for n, value in before.items() if n in defaults and value != defaults[n]}
    asked = Settings(**given).fixed()
    compare_settings(path, before, {name: asked[name] for name in given if name in asked})
    for limit in ("timeout", "max_wait"):  # of one job, not of the run
        if limit not in given:
            kept.pop(limit, None)
    try:
        return Settings.checked({**kept, **given})
    except (AttributeError, TypeError) as cause:  # the file says anything
        raise InputError(f"{path}/run.json: a setting is of another type ({cause})") from cause


def _run(settings: Settings, ranks: Ranks) -> int:
    settings = _settle(settings, ranks)
    if settings.application == "none":
        from transfer_nas.population import run as generate

        return generate(settings, ranks)
    from transfer_nas.search.run import run as search

    return search(settings, ranks)


def _settle(settings: Settings, ranks: Ranks) -> Settings:
    """Choose in rank 0, for all, what the user left open."""
    name = settings.application.rpartition(":")[2] or "run"
    chosen = {
        "seed": int.from_bytes(os.urandom(4), "little"),
        "output_dir": f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}",
    }
    chosen = ranks.share(chosen)[0]
    return dataclasses.replace(
        settings,
        seed=chosen["seed"] if settings.seed is None else settings.seed,
        output_dir=settings.output_dir or chosen["output_dir"],
    )


def _modules(package: str) -> str:
    """Return the modules of a package, each a space or an application, without importing any."""
    folder = Path(__file__).with_name(package)
    return ", ".join(sorted(path.stem for path in folder.glob("[!_]*.py")))


def _parser() -> Parser:
    parser = Parser(
        prog="python -m transfer_nas.evolve",
        description="Search for a network, each candidate starting from the "
        "weights of the stored model that shares its longest prefix. Without an application: "
        "generate a population of architectures, and mutate it, without training anything.",
        epilog="Runs in one process as it is, and on N ranks under mpiexec -n N. Servers of the "
        "weight store are taken from MODEL_SERVERS; if that is not set, the job starts its own. "
        "Flags may also be spelled with hyphens. "
        "Exit codes: 0 done, 1 every candidate failed, 2 bad input, 3 nothing was left to do, "
        "75 stopped at --max_wait or for want of room on the disk (--resume goes on), 130 Ctrl-C.",
        argument_default=argparse.SUPPRESS,
    )

    def add(flag: str, **options: Any) -> None:
        numbers = RANGES.get(flag.removeprefix("--"))
        parser.add_argument(flag, **(options if numbers is None else {"type": numbers, **options}))

    add(
        "--application",
        metavar="NAME",
        help=f"what to search a network for: {_modules('applications')}, or one's own as "
        "package.module:attribute or path/to/file.py:attribute; none: train nothing (default: "
        "none)",
    )
    add(
        "--data",
        metavar="DIR",
        help="directory with the files of the application's original data set, or "
        "synthetic:FEATURES to make data of that many features up (default: what comes along)",
    )
    add(
        "--space",
        metavar="NAME",
        help=f"architectures to choose from: {_modules('spaces')}, or one's own as "
        "package.module:attribute or path/to/file.py:attribute (default: the application's)",
    )
    add(
        "--search",
        metavar="ALGORITHM",
        help=f"{SEARCHES[0]}: aging evolution; {SEARCHES[1]}: random genomes; {SEARCHES[2]}: "
        "random genomes for few epochs, the best third of them for three times as many, and so on "
        "up to --epochs (default: evolution)",
    )
    add(
        "--population_size",
        metavar="P",
        help="members of the population; with --search random: models kept to transfer from "
        "(default: 32)",
    )
    add(
        "--sample_size",
        metavar="S",
        help="members that compete to be a parent (default: a quarter of the population)",
    )
    add(
        "--beta",
        help="prefer mutations that leave most of the network as it is: a gene is chosen in "
        "proportion to exp(beta * share of the layers that its change keeps); 0: all alike, "
        "about 3: many more layers transferred, negative: more exploration (default: 0)",
    )
    add(
        "--max_evals",
        metavar="N",
        help="evaluations, failures included (default: 200; no limit with --timeout)",
    )
    add(
        "--timeout",
        metavar="SECONDS",
        help="end the search after that many seconds (default: no limit)",
    )
    add(
        "--max_wait",
        metavar="SECONDS",
        help="leave after that many seconds with exit code 75 if the search is not done: a queue "
        "with a wall-time limit starts it again with --resume (default: no limit)",
    )
    add("--epochs", metavar="N", help="epochs a candidate (default: the application's)")
    add("--batch_size", metavar="ROWS", help="rows a step (default: the application's)")
    add(
        "--transfer",
        metavar="METHOD",
        help=f"how weights reach children: {', '.join(TRANSFERS)} (default: store)",
    )
    add(
        "--replicas",
        metavar="N",
        help="store servers that keep each model, so that the search loses nothing when one dies; "
        "as many servers are needed (default: MODEL_REPLICAS, or 1)",
    )
    add(
        "--store_host",
        metavar="WHERE",
        help="where the job's own store servers listen, if it runs on several nodes: an interface "
        "(ib0) or a network (10.1.0.0/16) that all of them have, or the name or address of one of "
        "them (default: the interface by which they reach each other)",
    )
    add(
        "--policy",
        metavar="POLICY",
        help=f"what happens to transferred layers: {', '.join(POLICIES)} (default: freeze). With "
        "freeze the store holds each of them once; with finetune every child is stored whole",
    )
    add(
        "--behind_prefix",
        metavar="START",
        help=f"how layers behind the shared prefix start, {' or '.join(BEHIND_PREFIX)}: from the "
        "parent's, widened or cut where the mutation asks for it, or from new weights "
        "(default: grow)",
    )
    add(
        "--unfreeze_top",
        metavar="K",
        help="train the last K transferred layers again though the others are frozen (default: 0)",
    )
    add(
        "--child_epochs",
        metavar="N",
        help="epochs of a candidate all of whose parameters come from others; with a share of "
        "them, as many between N and --epochs (default: a fifth of the epochs if layers grow, "
        "else all)",
    )
    add(
        "--schedule",
        metavar="NAME",
        help=f"learning rate over the epochs of a candidate: {', '.join(SCHEDULES)} "
        "(default: constant)",
    )
    add(
        "--shrink_perturb",
        metavar="PART",
        help="mix so much of new weights into transferred ones that train, in [0, 1) (default: 0)",
    )
    add(
        "--retrain",
        metavar="K",
        help="at the end train the best K for the application's epochs, from the weights that they "
        "have: retrained-JOB.keras and retrained.json (default: 0)",
    )
    add(
        "--evaluation_timeout",
        metavar="SECONDS",
        help="record an evaluation that takes longer as F_timeout and go on; implies --isolate "
        "(default: no limit)",
    )
    add(
        "--isolate",
        action="store_true",
        help="evaluate in a child process of each rank: a crash, or being killed for its memory, "
        "is recorded as F_lost and the search goes on (default: in the rank itself)",
    )
    add(
        "--threads_per_rank",
        metavar="N",
        help="threads for training (default: cores of the node / its ranks, at least 1)",
    )
    add(
        "--output_dir",
        metavar="DIR",
        help="where everything is written; must not hold another run "
        "(default: runs/APPLICATION-TIME)",
    )
    add(
        "--initial_population_dir",
        metavar="DIR",
        help="with --application none: output directory of an earlier run to start from",
    )
    add(
        "--evolve_count",
        metavar="M",
        help="with --application none: mutations of members (default: 0)",
    )
    add("--seed", help="seed of everything random (default: drawn, and written down)")
    add(
        "--resume",
        action="store_true",
        help="continue the run in --output_dir; settings not given are those it was started with",
    )
    add(
        "--log_validation",
        action="store_true",
        help="validate after each epoch, for logs/rank-N.jsonl (see transfer_nas.logs); "
        "otherwise only after the last",
    )
    add(
        "--tensorboard",
        action="store_true",
        help="write event files for TensorBoard to DIR/tensorboard",
    )
    add(
        "--trace",
        metavar="FILE",
        help="record what each rank does when, for ui.perfetto.dev or chrome://tracing",
    )
    add("--json", action="store_true", help="print the summary at the end as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
