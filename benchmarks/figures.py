"""What every benchmark does with its figures: a table beside the targets, and a JSON file."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Scripts are run by their paths, and some take an oracle or made-up runs from the tests.
sys.path.append(str(Path(__file__).resolve().parent.parent))

Targets = Mapping[str, tuple[str, float]]
"""By key: "at least" or "at most", and the limit."""


@dataclass(frozen=True)
class Question:
    """What ``python -m benchmarks`` says of a script before it runs it.

    A script assigns one to ``QUESTION``, made of literals: it is read without importing the script.
    The question itself is the first line of the script's docstring.

    Attributes
    ----------
    compares
        What is measured beside what.
    seconds, quick_seconds
        How long it takes on two cores, as it is and with ``--quick``.
    ranks
        How many MPI ranks to run the script on.
    plots
        Title -> regular expression that the keys of one plot match, with the group ``series`` and,
        for a line over numbers, ``x``. Keys of no plot are drawn as bars, by their unit.
    """

    compares: str
    seconds: float
    quick_seconds: float
    ranks: int = 1
    plots: Mapping[str, str] = field(default_factory=dict)


missing: dict[str, str] = {}
"""Peers that could not be measured -> what to install; `write` puts it beside the figures."""


def lacks(peer: str, install: str) -> None:
    """Say, in one line, that a peer is missing, and go on without it."""
    if peer not in missing:
        missing[peer] = install
        print(f"{peer} is missing and is left out: {install}", file=sys.stderr, flush=True)


def program(name: str, install: str) -> str | None:
    """Return the path of a program, of this environment first; say so if there is none."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        lacks(name, install)
    return found


def has(package: str) -> bool:
    """Whether a Python package is installed, by the name that pip knows; say so if it is not."""
    found = importlib.util.find_spec(package) is not None
    if not found:
        lacks(package, f"pip install {package}")
    return found


def parser(description: str, quick: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every script; `quick` says what ``--quick`` spares."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", metavar="FILE", help="write the figures here")
    made.add_argument("--quick", action="store_true", help=quick)
    return made


def in_turn(contenders: Sequence[T], repetition: int) -> list[T]:
    """Return the contenders, another one first in each repetition."""
    first = repetition % len(contenders)
    return [*contenders[first:], *contenders[:first]]


def finish(
    benchmark: str, results: Mapping[str, float], targets: Targets, given: argparse.Namespace
) -> None:
    """Show the figures, and write them where `parser`'s arguments say."""
    show(results, targets)
    if given.json:
        write(given.json, benchmark, results, quick=given.quick)


def show(results: Mapping[str, float], targets: Targets) -> None:
    """Print each figure, and whether it meets its target where it has one."""
    for key, value in results.items():
        print(f"{key:<52} {value:>12.4g}   {verdict(value, targets.get(key))}")


def write(file: str | Path, benchmark: str, results: Mapping[str, float], *, quick: bool) -> None:
    """Write the figures as JSON, with what they were measured on."""
    document = {
        "benchmark": benchmark,
        "quick": quick,
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
            "python": platform.python_version(),
        },
        "missing": missing,
        "results": results,
    }
    Path(file).write_text(json.dumps(document, indent=2) + "\n")


def verdict(value: float, target: tuple[str, float] | None) -> str:
    """Say whether a figure meets its target; nothing if it has none."""
    if target is None:
        return ""
    return f"{'met' if meets(value, target) else 'MISSED'} ({target[0]} {target[1]:g})"


def meets(value: float, target: tuple[str, float]) -> bool:
    """Whether a figure is on the right side of its target."""
    word, limit = target
    return value <= limit if word == "at most" else value >= limit
