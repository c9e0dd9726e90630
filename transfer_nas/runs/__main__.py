"""``python -m transfer_nas.runs pack RUN FILE``, ``unpack FILE RUN``: a run as a Parquet file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cpp_store.command_line import OK

from cpp_store import command_line
from transfer_nas.command_line import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 for bad input."""
    return command_line.run("runs", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    source, target = Path(given.source), Path(given.target)

    from transfer_nas.runs import IN_PROGRESS, pack, read, unpack

    if given.command == "unpack":
        unpack(source, target)
        print(f"{target} holds the run again")
        return OK
    run = read(source)
    pack(run, target)
    print(f"{target}: {len(run):,} evaluations, {target.stat().st_size / 1e6:.2f} MB")
    if run.state == IN_PROGRESS:
        print(f"{source} is still in progress: that is as far as it has come")
    return OK


def _parser() -> Parser:
    parser = Parser(
        prog="python -m transfer_nas.runs",
        description="Make one Parquet file of a run directory, or the directory of the file.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    packing = commands.add_parser("pack", help="from a run directory to a file")
    packing.add_argument("source", metavar="RUN")
    packing.add_argument("target", metavar="FILE")
    unpacking = commands.add_parser("unpack", help="from a file to a run directory")
    unpacking.add_argument("source", metavar="FILE")
    unpacking.add_argument("target", metavar="RUN")
    return parser


if __name__ == "__main__":
    sys.exit(main())
