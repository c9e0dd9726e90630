"""What every benchmark does with its figures: a table beside the targets, and a JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

Targets = Mapping[str, tuple[str, float]]
"""By key: "at least" or "at most", and the limit."""


def show(results: Mapping[str, float], targets: Targets) -> None:
    """Print each figure, and whether it meets its target where it has one."""
    for key, value in results.items():
        print(f"{key:<52} {value:>12.4g}   {_verdict(value, targets.get(key))}")


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
        "results": results,
    }
    Path(file).write_text(json.dumps(document, indent=2) + "\n")


def _verdict(value: float, target: tuple[str, float] | None) -> str:
    if target is None:
        return ""
    word, limit = target
    met = value <= limit if word == "at most" else value >= limit
    return f"{'met' if met else 'MISSED'} ({word} {limit:g})"
