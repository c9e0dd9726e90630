"""``python -m transfer_nas.report RUN [RUN...]``: a page that shows what searches did."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cpp_store.command_line import OK

from cpp_store import command_line, files
from transfer_nas.command_line import Parser
from transfer_nas.errors import InputError
from transfer_nas.report.arguments import add_groups


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 for bad input."""
    return command_line.run("report", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    output = Path(given.output)
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: there is no directory {output.parent}")

    from transfer_nas import runs
    from transfer_nas.report import overview, page
    from transfer_nas.runs.reading import names

    found = [runs.read(path) for path in given.runs]
    against = [runs.read(path) for path in given.against]
    content = page.content(found, against, given.labels, given.space)
    text = page.render(content)
    try:
        files.write_text(output, text)
    except OSError as cause:
        raise InputError(f"cannot write {output}: {cause.strerror}") from cause
    everything = [*found, *against]
    for sentence in overview.states(everything, names(everything)):
        print(sentence)
    evaluations, size = sum(map(len, everything)), len(text.encode(errors="backslashreplace"))
    print(f"{output}: {evaluations:,} evaluations, {size / 1e6:.1f} MB")
    return OK


def _parser() -> Parser:
    parser = Parser(
        prog="python -m transfer_nas.report",
        description="Write one page of HTML that shows what searches did: objective, transfer and "
        "storage over time, the best models and their lineage, genes, ranks. It opens without a "
        "network. A run that is still in progress is shown as far as it has come.",
    )
    add_groups(parser)
    parser.add_argument(
        "--output", default="report.html", metavar="FILE", help="(default: report.html)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
