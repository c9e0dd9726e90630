"""``transfer-nas COMMAND …``, also ``python -m transfer_nas COMMAND …``: all commands by one name.

Each is a module that ``python -m`` runs, too.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence

from cpp_store import command_line
from transfer_nas import __version__
from transfer_nas.errors import InputError, near_misses

COMMANDS: Mapping[str, tuple[str, str]] = {
    "search": ("transfer_nas.evolve", "search for a network"),
    "generate": ("transfer_nas.evolve", "generate a population without training anything"),
    "report": ("transfer_nas.report.__main__", "a page that shows a run, or compares several"),
    "dashboard": ("transfer_nas.dashboard", "watch a run in the browser"),
    "retrain": ("transfer_nas.retrain", "train one model of a run fully, from new weights"),
    "finish": ("transfer_nas.trained_model", "make best.keras of best.safetensors"),
    "experiments": ("transfer_nas.experiments", "many runs as one table"),
    "runs": ("transfer_nas.runs.__main__", "pack a run into one file"),
    "queue": ("transfer_nas.queue", "runs that wait for a job of a cluster"),
    "logs": ("transfer_nas.logs", "what the ranks logged, for programs"),
    "trace": ("transfer_nas.tracing", "what each rank did when, for Perfetto and Chrome"),
    "birthday": ("transfer_nas.population.birthday", "how much of a new network a population has"),
    "gen-models": (
        "transfer_nas.population.gen_models",
        "how many networks a second can be made and found",
    ),
    "find-prefix": ("graph_meta.find_prefix", "what two networks share"),
    "patterns": ("transfer_nas.population.patterns", "what a run or a population reused"),
}
"""Module of each, and what it is for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    Parameters
    ----------
    arguments
        Instead of those of the command line, the command first.
    """
    name, *others = [*(sys.argv[1:] if arguments is None else arguments), ""]
    if name in COMMANDS:
        code: int = importlib.import_module(COMMANDS[name][0]).main(others[:-1])
        return code
    return command_line.run("transfer-nas", lambda: _answer(name))


def _answer(name: str) -> int:
    """Say what there is."""
    if name not in ("-h", "--help", "--version"):
        what = f"unknown command {name!r}; {near_misses(name, COMMANDS)}" if name else "no command"
        raise InputError(f"{what} (transfer-nas --help lists them)")
    if command_line.expected_rank() == 0:
        print(__version__ if name == "--version" else _help())
    return command_line.OK


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items())
    return "usage: transfer-nas COMMAND [--help] …\n\n" + "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
