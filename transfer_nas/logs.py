"""Logs that programs read: sections that nest, keys that overwrite, containers that append.

Each rank of a search writes ``logs/rank-N.jsonl``, a line at a time, so that it can be read while
it grows; the format is that of docs/formats.md, "Logs". The search is the root, ``evaluation/JOB``
are its sections, ``epoch/N`` are theirs:

>>> log = Log()  # of nothing; a path makes it one of a file
>>> with log.section("evaluation", 17) as evaluation:
...     evaluation.section("epoch", 1).set(loss=0.61)
...     evaluation.append(learning_rates=0.01)

``python -m transfer_nas.logs RUN --select 'evaluation/*/epoch/*/loss'`` makes a table of them.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from cpp_store.command_line import OK

from cpp_store import command_line, files
from transfer_nas.command_line import Parser
from transfer_nas.errors import InputError, RunDirectoryError
from transfer_nas.searching.results import row_text

if TYPE_CHECKING:
    import pandas

Tree = dict[str, Any]
"""A section as it is read: values by their keys, lists that were appended to, sections."""

_NAME = re.compile(r"[A-Za-z0-9_.:-]+")
_FILE = re.compile(r"rank-(\d+)\.jsonl")
_EPOCH = re.compile(rb'"in":"evaluation/(\d{1,18})(?:/epoch/(\d{1,9}))?"')


class Log:
    """A section that is written. One thread; several processes may append to one file.

    Parameters
    ----------
    path
        The file; made with the first line. None: nothing is written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._root = self
        self._section = ""

    def section(self, name: str, index: int | str | None = None, *, anew: bool = False) -> Log:
        """Return a section of this one; costs nothing until something is written.

        Parameters
        ----------
        name, index
            Letters, digits and ``_.:-``. Sections of one name differ by their index.
        anew
            Forget what the section holds: what a process wrote that was killed in it.
        """
        inner = Log.__new__(Log)
        inner._path, inner._file, inner._root = self._path, None, self._root
        steps = [name] if index is None else [name, str(index)]
        inner._section = "/".join([*([self._section] if self._section else []), *steps])
        if anew:
            inner._write({"anew": True})
        return inner

    def set(self, **values: Any) -> None:
        """Write numbers, texts, lists; each replaces what its key held. NaN becomes null."""
        self._write({"set": _finite(values)})

    def append(self, **values: Any) -> None:
        """Write numbers, texts, lists; each is added to the list of its key."""
        self._write({"append": _finite(values)})

    def close(self) -> None:
        """Close the file; what is written later opens it again."""
        if self._root._file is not None:
            self._root._file.close()
            self._root._file = None

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self is self._root:
            self.close()

    def _write(self, what: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        root = self._root
        if root._file is None:
            root._file = self._path.open("a", encoding="utf-8", buffering=1)
            if _is_torn(self._path):
                root._file.write("\n")
        # One write a line, at the end of the file: a reader sees whole lines, or none yet.
        line = {"at": round(time.time(), 6), "in": self._section, **what}
        root._file.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")


def read(file: Path) -> Tree:
    """Read the log of one rank.

    Lines that are no JSON are left out: one that is still being written, and those that a process
    was killed in.

    Raises
    ------
    RunDirectoryError
        A line is JSON, but not what a log says; names it.
    """
    root: Tree = {}
    content = file.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
        except (RecursionError, ValueError):
            continue
        try:
            if line.get("anew"):
                _remove(root, line["in"])
            section = _descend(root, line["in"])
            for key, value in line.get("set", {}).items():
                if isinstance(section.get(key), dict):
                    raise ValueError(f"{key} is a section")
                section[key] = value
            for key, value in line.get("append", {}).items():
                section.setdefault(key, []).append(value)
        except (AttributeError, KeyError, TypeError, ValueError) as cause:
            raise RunDirectoryError(f"{file}, line {number}: not a line of a log") from cause
    return root


def read_run(run: Path) -> dict[int, Tree]:
    """Read the logs of all ranks of a run, by rank.

    Raises
    ------
    RunDirectoryError
        There are none, or one is damaged.
    """
    files = {}
    for file in (run / "logs").glob("*.jsonl"):
        found = _FILE.fullmatch(file.name)
        if found:
            files[int(found[1])] = file
    if not files:
        what = "holds no logs/rank-N.jsonl: expected the --output_dir of a transfer_nas.evolve"
        if not run.is_dir():
            what = "there is no such directory"
        raise RunDirectoryError(f"{run}: {what}")
    return {rank: read(files[rank]) for rank in sorted(files)}


def epochs(
    files: Iterable[Iterable[bytes]], jobs: Collection[int]
) -> dict[int, list[dict[str, float]]]:
    """Read the epochs that the ranks of a run logged of some jobs, in their order.

    Looks into no other line, so that it is fast on the log of a long search.

    Parameters
    ----------
    files
        The lines of each rank's log, such as from `runs.open_files`.
    jobs
        Ids of the jobs.

    Returns
    -------
    dict
        By job; the keys of each epoch that are numbers, and ``epoch``. A job that logged none is
        not in it.
    """
    found: dict[int, dict[int, dict[str, float]]] = {}
    for text in chain.from_iterable(files):
        match = _EPOCH.search(text)
        if match is None or int(match[1]) not in jobs:
            continue
        job, epoch = int(match[1]), match[2]
        try:
            line = json.loads(text)
        except ValueError:
            continue  # still being written, or its process was killed in it
        if epoch is None:
            if isinstance(line, dict) and line.get("anew"):
                found.pop(job, None)
            continue
        values = line.get("set", {}) if isinstance(line, dict) else None
        if isinstance(values, dict):
            known = found.setdefault(job, {}).setdefault(int(epoch), {"epoch": int(epoch)})
            known |= {k: float(v) for k, v in values.items() if isinstance(v, int | float)}
    return {job: [of[epoch] for epoch in sorted(of)] for job, of in found.items()}


def select(logs: Mapping[int, Tree], pattern: str) -> tuple[list[str], list[list[Any]]]:
    """Return what a pattern finds, as a table.

    Parameters
    ----------
    logs
        By rank, from `read_run`.
    pattern
        Steps between slashes; ``*`` stands for any index of the name before it. The last step is
        a key, ``*`` for all, or several with commas between.

    Returns
    -------
    columns, rows
        ``rank``, a column a star, named as the step before it, and one a key; rows in the order of
        rank, then of indices (as numbers where they are). A key that a section lacks is None.

    Raises
    ------
    InputError
        The pattern is malformed, or there is no such key; then it names near misses.
    """
    steps = pattern.strip("/").split("/")
    if not all(steps):
        raise InputError(f"--select {pattern!r}: expected names between slashes")
    *sections, last = steps
    indices = [
        sections[i - 1] if i and sections[i - 1] != "*" else f"step_{i}"
        for i, step in enumerate(sections)
        if step == "*"
    ]
    found = [
        ([rank, *stars], section)
        for rank, tree in logs.items()
        for stars, section in _matches(tree, sections)
    ]
    known = {key: None for _, section in found for key, value in section.items() if _is_key(value)}
    wanted = list(known) if last == "*" else last.split(",")
    for key in wanted:
        if key not in known:
            path = "/".join([*sections, key])
            raise InputError(f"--select: there is no {path}{_advice(logs, path)}")
    found.sort(key=lambda row: [(isinstance(part, str), part) for part in row[0]])
    rows = [
        [*where, *(section.get(key) for key in wanted)]
        for where, section in found
        if any(key in section for key in wanted)
    ]
    return ["rank", *indices, *wanted], rows


def frame(run: str | Path, pattern: str) -> pandas.DataFrame:
    """Return what a pattern finds in the logs of a run as a frame; see `select`."""
    import pandas

    columns, rows = select(read_run(Path(run)), pattern)
    return pandas.DataFrame(rows, columns=columns)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 for bad input."""
    return command_line.run("logs", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    logs = read_run(Path(given.run))
    if given.select is None:
        print("\n".join(sorted({path for tree in logs.values() for path in _paths(tree)})))
        return OK
    columns, rows = select(logs, given.select)
    if given.output is None:
        sys.stdout.write(_csv(columns, rows))
        return OK
    import pyarrow as pa
    import pyarrow.parquet

    output = Path(given.output)
    try:
        if output.suffix == ".parquet":
            cells = [[row[i] for row in rows] for i in range(len(columns))]
            table = pa.table(cells, names=columns)
            # The file's name need not be UTF-8.
            with files.replacing(output) as fresh, pa.OSFile(os.fsencode(fresh), "w") as file:
                pyarrow.parquet.write_table(table, file)
        else:
            files.write_text(output, _csv(columns, rows))
    except OSError as cause:
        raise InputError(f"cannot write {output}: {cause.strerror or cause}") from cause
    except pa.ArrowInvalid as cause:
        raise InputError(f"{output}: a column holds values of several types; write CSV") from cause
    print(f"{output}: {len(rows):,} rows")
    return OK


def _matches(tree: Tree, steps: Sequence[str]) -> Iterator[tuple[list[int | str], Tree]]:
    """Yield the sections that steps lead to, each with what the stars stood for."""
    if not steps:
        yield [], tree
        return
    first, rest = steps[0], steps[1:]
    names = list(tree) if first == "*" else [first]
    for name in names:
        inner = tree.get(name)
        if isinstance(inner, dict):
            star: list[int | str] = [int(name) if name.isdecimal() else name]
            for stars, section in _matches(inner, rest):
                yield (star if first == "*" else []) + stars, section


def _is_torn(file: Path) -> bool:
    """Return whether a file's last line has no end."""
    with file.open("rb") as content:
        if content.seek(0, 2) == 0:
            return False
        content.seek(-1, 2)
        return content.read() != b"\n"


def _descend(tree: Tree, section: str) -> Tree:
    for step in section.split("/") if section else ():
        if not _NAME.fullmatch(step):
            raise ValueError(step)
        tree = tree.setdefault(step, {})
    return tree


def _remove(root: Tree, section: str) -> None:
    *above, last = section.split("/")
    _descend(root, "/".join(above)).pop(last, None)


def _is_key(value: Any) -> bool:
    return not isinstance(value, dict)


def _paths(tree: Tree, above: str = "") -> Iterator[str]:
    """Yield every path of keys, numbers as stars."""
    for name, value in tree.items():
        path = above + ("*" if name.isdecimal() else name)
        if isinstance(value, dict):
            yield from _paths(value, path + "/")
        else:
            yield path


def _advice(logs: Mapping[int, Tree], missing: str) -> str:
    paths = {path for tree in logs.values() for path in _paths(tree)}
    close = difflib.get_close_matches(missing, sorted(paths), n=2, cutoff=0.5)
    meant = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{meant} (without --select, all are listed)"


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    texts = ([json.dumps(c) if isinstance(c, list) else c for c in row] for row in rows)
    return "".join(map(row_text, (columns, *texts)))


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as JSON knows them: Python's numbers, and none that is not finite."""
    plain = {key: v.item() if hasattr(v, "item") else v for key, v in values.items()}
    return {
        key: None if isinstance(v, float) and not math.isfinite(v) else v
        for key, v in plain.items()
    }


def _parser() -> Parser:
    parser = Parser(
        prog="python -m transfer_nas.logs",
        description="Make a table of what the ranks of a search logged. Without --select: list "
        "what there is. Works while the search goes on.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="run directory")
    add(
        "--select",
        metavar="PATTERN",
        help="for instance 'evaluation/*/epoch/*/loss' or 'evaluation/*/objective,epochs'; "
        "* as the last step: all keys",
    )
    add("--output", metavar="FILE", help=".csv or .parquet (default: CSV on standard output)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
