"""``python -m transfer_nas.evolve``: search for a network, or generate a population.

Imports little before it knows that there is work to do: ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpp_store import command_line
from transfer_nas import schema, settings
from transfer_nas.command_line import Parser, on_ranks
from transfer_nas.errors import InputError
from transfer_nas.ranks import Ranks, together
from transfer_nas.settings import GenerationSettings, Settings

AnySettings = Settings | GenerationSettings


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
        settings.settled(given)  # the same in all ranks: no need to meet for it
    return on_ranks("evolve", lambda ranks: _run(together(ranks, lambda: _settled(given)), ranks))


def parse(arguments: Sequence[str]) -> AnySettings:
    """Return the settings of a command line.

    Flags may be spelled with underscores or with hyphens.

    Raises
    ------
    InputError
        A flag is unknown or lacks its value, or the settings make no sense.
    """
    return _settled(_flags(arguments))


def _flags(arguments: Sequence[str] | None) -> dict[str, Any]:
    """Return the settings of the command line, and of the file that it names."""
    # What flags there are depends on the algorithm.
    first = Parser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for flag in ("--config", "--search", "--sharing", "--output_dir"):
        first.add_argument(flag, nargs="?")
    early = vars(first.parse_known_args(arguments)[0])
    kinds = settings.kinds({**_named_elsewhere(early), **early})
    given = vars(_parser(kinds).parse_args(arguments))
    if (config := given.pop("config", None)) is not None:
        known = [name for kind in kinds for name in schema.settings_of(kind)]
        given = {**schema.read_file(Path(config), known), **given}
    return given


def _named_elsewhere(early: dict[str, Any]) -> dict[str, Any]:
    """Return what a settings file says, and the run in the output directory."""
    named: dict[str, Any] = {}
    if early.get("output_dir"):
        with contextlib.suppress(
            OSError, ValueError, LookupError, TypeError, RecursionError
        ):  # later
            run = json.loads((Path(early["output_dir"]) / "run.json").read_bytes())
            named.update(run["settings"])
    if early.get("config"):
        named.update(schema.read_file(Path(early["config"]), None))
    return named


def _settled(given: dict[str, Any]) -> AnySettings:
    return _resumed(given) if given.get("resume") else settings.settled(given)


def _resumed(given: dict[str, Any]) -> Settings:
    """Fill in what the run to resume was started with."""
    from transfer_nas.searching.run_directory import compare_settings, load_description

    if "output_dir" not in given:
        raise InputError("--resume needs --output_dir: which run?")
    path = Path(given["output_dir"])
    before = load_description(path)["settings"]
    try:
        known = settings.kinds({"search": "evolution", "sharing": "prefix", **before})[:3]
        names = {name: each for kind in known for name, each in schema.settings_of(kind).items()}
        fixed = {name: given[name] for name in given if name in names}
        compare_settings(
            path, before, {n: value for n, value in fixed.items() if not names[n].may_change}
        )
        kept = {name: value for name, value in before.items() if name in names}
        kept = {name: value for name, value in kept.items() if value is not None}
        kept.pop("max_wait", None)  # of one job, not of the run
        if "max_evals" in {**kept, **given}:  # so is this; but something shall end the search
            kept.pop("timeout", None)
        return Settings.of({**_meant(kept), **given})
    except (AttributeError, TypeError) as cause:  # the file says anything
        raise InputError(f"{path}/run.json: a setting is of another type ({cause})") from cause


def _meant(kept: dict[str, Any]) -> dict[str, Any]:
    """Leave out what means nothing beside the other settings, as it was not given then."""
    meant = {}
    for name, value in kept.items():
        known = schema.settings_of(Settings).get(name)
        if known is None or known.only is None or kept.get(known.only[0]) == known.only[1]:
            meant[name] = value
    return meant


def _run(chosen: AnySettings, ranks: Ranks) -> int:
    if isinstance(chosen, GenerationSettings):
        from transfer_nas.population import run as generate

        return generate(settings.with_drawn(chosen, ranks), ranks)
    from transfer_nas.searching.run import run as search

    return search(settings.with_drawn(chosen, ranks), ranks)


def _parser(kinds: Sequence[type[Any]]) -> Parser:
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
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="settings from a TOML file, a line name = value for each; flags overrule it "
        "(default: none)",
    )
    schema.add_flags(parser, kinds)
    return parser


if __name__ == "__main__":
    sys.exit(main())
