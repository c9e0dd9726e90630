"""``python -m transfer_nas.experiments aggregate PATH...``: many runs as one table.

Runs with the same values of some settings make a group: the repetitions of an experiment, of other
seeds. A row a group, with means over its runs and their spread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from cpp_store.command_line import OK

from cpp_store import command_line, files
from transfer_nas import runs
from transfer_nas.command_line import Parser
from transfer_nas.errors import InputError, RunDirectoryError, near_misses
from transfer_nas.runs import Run

_GROUP_BY = ("application", "space", "search", "transfer", "policy", "population_size")
_NOT_KEYS = {"output_dir", "resume", "json", "namespace"}
_FIGURES = (
    *("evaluations", "failures", "seconds", "evaluations_per_second", "best_objective"),
    *("evaluations_to_best", "share_transferred", "bytes_stored", "bytes_whole_copies"),
)


_VALUE = "value:"  # begins the column of what an application measured of the best model


def find(paths: Iterable[Path]) -> list[Path]:
    """Return the run directories and packed runs at and below some paths, in order.

    Raises
    ------
    InputError
        A path is not there, or has none below it.
    """
    found = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: there is no such file or directory")
        below = {file.parent for file in path.rglob("run.json")} | set(path.rglob("*.parquet"))
        if path.is_file():
            below = {path}
        if not below:
            raise InputError(f"{path}: there is no run in it")
        found += sorted(below)
    return list(dict.fromkeys(found))


def tabulate(some: Sequence[Run]) -> pa.Table:
    """Return a row a run: path, id, state, settings, its figures, and what an application measured.

    The latter of the best evaluation, as ``value:NAME``.
    """
    names = dict.fromkeys(
        name for run in some for name in run.settings if name not in _NOT_KEYS | {"space"}
    )
    columns: dict[str, list[object]] = {
        "run": [os.fsencode(run.path).decode(errors="backslashreplace") for run in some],
        "id": [run.id for run in some],
        "state": [run.state for run in some],
        "space": [_scalar(run.description["space"].get("name")) for run in some],
        **{name: [_scalar(run.settings.get(name)) for run in some] for name in names},
    }
    table = {name: _column(values) for name, values in columns.items()}
    rows = [run.figures for run in some]
    for name in _FIGURES:
        table[name] = pa.array([row[name] for row in rows], pa.float64(), from_pandas=True)
    values = dict.fromkeys(v.name for run in some for v in run.own_values if v.kind is not str)
    for name in values:
        of_best = [
            None if run.best is None else float(run.numbers(f"m:{name}")[run.best]) for run in some
        ]
        table[_VALUE + name] = pa.array(of_best, pa.float64(), from_pandas=True)
    return pa.table(table)


def aggregate(table: pa.Table, keys: Sequence[str]) -> pa.Table:
    """Summarise runs by groups.

    Parameters
    ----------
    table
        From `tabulate`.
    keys
        Columns whose values make a group.

    Returns
    -------
    pyarrow.Table
        The keys, ``runs``, and of each figure ``FIGURE_mean``, ``FIGURE_std`` (of a sample; null
        for one run), likewise of each ``value:NAME``, and of the best objective also ``_min``,
        ``_median``, ``_max``.

    Raises
    ------
    InputError
        There is no such column.
    """
    for key in keys:
        if key not in table.column_names:
            raise InputError(f"--by {key}: {near_misses(key, table.column_names)}")
    sample = pa.compute.VarianceOptions(ddof=1)
    wanted: list[tuple[str, str, object]] = []
    for name in (*_FIGURES, *(n for n in table.column_names if n.startswith(_VALUE))):
        wanted += [(name, "mean", None), (name, "stddev", sample)]
    wanted += [("best_objective", kind, None) for kind in ("min", "approximate_median", "max")]
    renamed = {"stddev": "std", "approximate_median": "median"}
    grouped = table.group_by(list(keys), use_threads=False)
    found = grouped.aggregate([("run", "count"), *wanted])
    columns = {key: found[key] for key in keys} | {"runs": found["run_count"]}
    for name, kind, _ in wanted:
        columns[f"{name}_{renamed.get(kind, kind)}"] = found[f"{name}_{kind}"]
    order = ("best_objective_mean", "descending")
    return pa.table(columns).sort_by([order])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 for bad input."""
    return command_line.run("experiments", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    some, left_out = [], []
    for path in find(Path(path) for path in given.paths):
        try:
            some.append(runs.read(path))
        except RunDirectoryError as error:
            left_out.append(error)
    if not some:
        raise InputError(f"there is no run that can be read: {left_out[0]}")
    for reason in left_out:
        print(f"experiments: left out: {reason}", file=sys.stderr)
    table = tabulate(some)
    if given.each:
        result = table
    else:
        keys = given.by or [key for key in _GROUP_BY if key in table.column_names]
        result = aggregate(table, keys)
    if given.output is None:
        _print(result)
        return OK
    output = Path(given.output)
    write = pyarrow.parquet.write_table if output.suffix == ".parquet" else pyarrow.csv.write_csv
    try:
        # The file's name need not be UTF-8.
        with files.replacing(output) as fresh, pa.OSFile(os.fsencode(fresh), "w") as file:
            write(result, file)
    except OSError as cause:
        raise InputError(f"cannot write {output}: {cause.strerror or cause}") from cause
    print(f"{output}: {result.num_rows} rows of {len(some)} runs")
    return OK


def _print(table: pa.Table) -> None:
    """Print a table as wide as it is when it goes into a file, else as the terminal allows."""
    import rich.console
    import rich.table

    wide = None if sys.stdout.isatty() else 10_000
    shown = rich.table.Table(box=None)
    for name, kind in zip(table.column_names, table.schema.types, strict=True):
        numeric = pa.types.is_floating(kind) or pa.types.is_integer(kind)
        shown.add_column(name, justify="right" if numeric else "left")
    for row in table.to_pylist():
        shown.add_row(*(_text(value) for value in row.values()))
    rich.console.Console(width=wide, markup=False, highlight=False).print(shown)


def _text(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _scalar(value: object) -> object:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()  # as a file may say anything
    return value if isinstance(value, bool | int | float | None) else str(value)


def _column(values: Sequence[object]) -> pa.Array:
    try:
        return pa.array(values)
    except (OverflowError, pa.ArrowInvalid, pa.ArrowTypeError):  # of several types in several runs
        return pa.array([None if value is None else str(value) for value in values])


def _parser() -> Parser:
    parser = Parser(
        prog="python -m transfer_nas.experiments", description="Summarise many runs in one table."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    aggregate = commands.add_parser("aggregate", help="a row for each group of like runs")
    add = aggregate.add_argument
    add("paths", nargs="+", metavar="PATH", help="runs, or directories with runs below them")
    add(
        "--by",
        nargs="+",
        metavar="SETTING",
        help=f"what the runs of a group have in common (default: {' '.join(_GROUP_BY)})",
    )
    add("--each", action="store_true", help="a row a run, without groups")
    add("--output", metavar="FILE", help=".csv or .parquet (default: print)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
