"""The arguments that say which runs to show, and in which groups."""

from __future__ import annotations

from transfer_nas.command_line import Parser


def add_groups(parser: Parser) -> None:
    """Add ``RUN...``, ``--against``, ``--labels`` and ``--space``."""
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run directory, or run packed by transfer_nas.runs; several are shown together",
    )
    add(
        "--against",
        nargs="+",
        default=[],
        metavar="RUN",
        help="a second group of runs, to compare the first with",
    )
    add(
        "--labels",
        nargs=2,
        default=("first", "second"),
        metavar="NAME",
        help="what to call the two groups (default: first second)",
    )
    add(
        "--space",
        metavar="NAME",
        help="the runs' space if it is one's own, as package.module:attribute or "
        "path/to/file.py:attribute: needed to draw architectures",
    )
