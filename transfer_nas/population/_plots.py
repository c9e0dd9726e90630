"""Plots of the commands of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cpp_store import extras, files
from transfer_nas.command_line import Parser
from transfer_nas.errors import InputError


def add_flag(parser: Parser) -> None:
    """Add ``--output`` to a command."""
    parser.add_argument("--output", metavar="FILE", help="draw a plot, as .svg, .png or .pdf")


def matplotlib() -> Any:
    """Return ``matplotlib.pyplot``, drawing to files only; raises InputError without it."""
    try:
        import matplotlib
    except ImportError as error:
        raise InputError(
            f"--output needs matplotlib, which is not installed: {extras.install('plots')}"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format of the file's suffix, and close it; raises InputError."""
    try:
        with files.replacing(path) as fresh:
            figure.savefig(fresh, format=path.suffix[1:] or "png")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {error}") from error
    finally:
        matplotlib().close(figure)
