"""Reads the files of original data sets, and says in one line what is wrong with one."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpp_store import extras
from transfer_nas.errors import ApplicationError

Matrix = npt.NDArray[np.float32]


def find(directory: Path, *names: str) -> Path:
    """Return the first of some files that is in a directory.

    Raises
    ------
    ApplicationError
        None is, or there is no such directory.
    """
    if not directory.is_dir():
        raise ApplicationError(f"--data {directory}: no such directory")
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise ApplicationError(f"--data {directory}: expected a file {' or '.join(names)} there")


def numbers(path: Path, columns: int | None = None) -> Matrix:
    """Return a table of comma-separated numbers without a header, ``(rows, columns)``.

    Parameters
    ----------
    path
        The file.
    columns
        How many it must have; None: as many as its first line.

    Raises
    ------
    ApplicationError
        A line has another number of columns, or something that is not a number.
    """
    import pyarrow as pa
    from pyarrow import csv

    with path.open("rb") as file:
        first = file.readline()
    found = first.count(b",") + 1 if first.strip() else 0
    if not found or columns not in (None, found):
        expected = "at least one column" if columns is None else f"{columns:,} columns"
        raise ApplicationError(f"{path}, line 1: expected {expected}, found {found:,}")
    names = [str(column) for column in range(1, found + 1)]
    try:
        table = csv.read_csv(
            path,
            # A block holds many rows, however wide they are. One thread: errors name their row.
            csv.ReadOptions(
                column_names=names, block_size=max(1 << 20, 64 * len(first)), use_threads=False
            ),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.float32()), null_values=[]
            ),
        )
    except pa.ArrowInvalid as cause:
        raise ApplicationError(f"{path}: expected {found:,} numbers a line: {_short(cause)}") from (
            cause
        )
    return np.column_stack([column.to_numpy() for column in table.columns])


def table(path: Path, columns: Sequence[str], **options: Any) -> Any:
    """Return a table with a header as a pandas frame.

    Parameters
    ----------
    path
        The file.
    columns
        Columns that it must have; it may have more.
    options
        Of ``pandas.read_csv``.

    Raises
    ------
    ApplicationError
        A column is missing, or the file is no such table.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(path, na_values=["na", "-", ""], **options)
    except (ValueError, pd.errors.ParserError) as cause:
        raise ApplicationError(f"{path}: not a table: {_short(cause)}") from cause
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        found = ", ".join(map(str, frame.columns[:6]))
        raise ApplicationError(f"{path}: expected a column {missing[0]!r}, found {found} …")
    return frame


class Frames:
    """The numbers in the frames that pandas wrote to an HDF5 file.

    Read without pandas and PyTables: those would run what the file's pickled attributes say, and
    PyTables' wheels cannot decompress what CANDLE publishes (Blosc with snappy).

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ApplicationError
        It is no HDF5 file.
    """

    def __init__(self, path: Path) -> None:
        import h5py

        with contextlib.suppress(ImportError):  # only compressed files need it
            import hdf5plugin  # noqa: F401 - registers filters
        self._path = path
        try:
            self._file = h5py.File(path, "r")
        except OSError as cause:
            raise ApplicationError(f"{path}: not an HDF5 file: {_short(cause)}") from cause

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def numbered(self, prefix: str) -> list[str]:
        """Return the frames ``prefix0``, ``prefix1``, … as far as there are."""
        count = 0
        while f"{prefix}{count}" in self._file:
            count += 1
        return [f"{prefix}{number}" for number in range(count)]

    def read(self, key: str) -> Matrix:
        """Return the numbers of a frame, ``(rows, columns)``, without columns of text.

        Raises
        ------
        ApplicationError
            There is no such frame, it holds no numbers, or it cannot be decompressed.
        """
        group = self._file.get(key)
        if group is None:
            found = ", ".join(self._file) or "nothing"
            raise ApplicationError(f"{self._path}: expected a table {key!r}, found {found}")
        try:
            if "table" in group:  # appended piece by piece
                rows = group["table"][()]
                names = [name for name in rows.dtype.names if name.startswith("values_block_")]
                blocks = [rows[name] for name in names]
            else:  # written whole
                names = [name for name in group if name.endswith("_values")]
                blocks = [group[name][()] for name in names]
        except OSError as cause:
            raise ApplicationError(
                f"{self._path}: cannot read table {key!r} (is it compressed? "
                f"{extras.install('candle')}): {_short(cause)}"
            ) from cause
        numeric = [block.reshape(len(block), -1) for block in blocks if block.dtype.kind in "fiub"]
        if not numeric:
            raise ApplicationError(f"{self._path}: expected numbers in table {key!r}, found none")
        return np.hstack(numeric).astype(np.float32, copy=False)

    def target(self, key: str) -> Matrix:
        """Return the only column of numbers of a frame, ``(rows,)``; see `read`."""
        numbers = self.read(key)
        if numbers.shape[1] != 1:
            raise ApplicationError(
                f"{self._path}: expected one column of numbers in table {key!r}, "
                f"found {numbers.shape[1]}"
            )
        return numbers[:, 0]


def scaled(features: Matrix, known: npt.NDArray[np.integer]) -> Matrix:
    """Return columns of mean 0 and deviation 1; what is missing gets its column's mean.

    Parameters
    ----------
    features
        Shape (rows, columns).
    known
        Numbers of the rows that say what mean and deviation are: those that train.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column that no such row has: mean 0
        mean, deviation = (of(features[known], axis=0) for of in (np.nanmean, np.nanstd))
    scaled = (features - np.nan_to_num(mean)) / np.where(deviation > 0, deviation, 1.0)
    return np.asarray(np.nan_to_num(scaled), np.float32)


def _short(cause: BaseException) -> str:
    text = " ".join(str(cause).split())
    return text if len(text) <= 160 else f"{text[:159]}…"
