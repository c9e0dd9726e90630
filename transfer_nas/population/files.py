"""Populations on disk: one Parquet file a rank and ``population.json``.

The JSON file is written last and names the others, so a directory without it holds no population.
Each Parquet file carries the population's identity: a file of another population in its place is an
error, not a mixture. Files are written under a temporary name and renamed when they are whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from transfer_nas.errors import InputError
from transfer_nas.searching.journal import write_new
from transfer_nas.spaces import GeneSpace

DESCRIPTION = "population.json"
FORMAT = 2  # 1: with the digests of version 1 of layer graphs

Integers = NDArray[np.int64]

_METADATA_KEY = b"transfer_nas.population"
_ROW_GROUP = 8192
# Tables are most of a file, and hold mostly digests, on which harder compression spends more time
# than generation does.
_COMPRESSION = {"table": "lz4"}
_TEMPORARY = ".part"

MEMBERS = re.compile(r"members-\d{5,}-of-\d{5,}\.parquet(\.part)?")
"""What files of a population are called."""

_SCHEMA = pa.schema(
    [
        pa.field("model", pa.int64(), nullable=False),
        pa.field("genome", pa.list_(pa.int32()), nullable=False),
        pa.field("digests", pa.list_(pa.binary(16)), nullable=False),
        pa.field("table", pa.binary(), nullable=False),
        pa.field("layers", pa.int32(), nullable=False),
        pa.field("parameters", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("parent", pa.int64()),
        pa.field("ancestor", pa.int64()),
        pa.field("layers_shared", pa.int32()),
        pa.field("bytes_shared", pa.int64()),
        pa.field("alive", pa.bool_(), nullable=False),
    ]
)


class PopulationError(InputError):
    """A population that is missing, damaged, or of another space or version."""


@dataclass(frozen=True)
class Rows:
    """Some models, one row each, in ascending order of their numbers.

    Attributes
    ----------
    model
        Numbers of the models, shape (n,), int64; a larger number is a younger model.
    genome
        Shape (n, genes), int32.
    digests
        16 bytes a layer, one model after the other.
    table
        Encoded layer tables: who reads them need not build the graphs again.
    layers, parameters, bytes
        Of each model, shape (n,).
    parent, ancestor, layers_shared, bytes_shared
        Shape (n,), -1 where there is none: whom it was mutated from; whose prefix it shares, and
        how much of it.
    alive
        Whether the model is a member of the population, shape (n,), bool.
    """

    model: Integers
    genome: NDArray[np.int32]
    digests: bytes
    table: list[bytes]
    layers: Integers
    parameters: Integers
    bytes: Integers
    parent: Integers
    ancestor: Integers
    layers_shared: Integers
    bytes_shared: Integers
    alive: NDArray[np.bool_]

    def to_arrow(self) -> pa.Table:
        """Return the rows as a table of this format's schema."""
        ends = np.concatenate([[0], np.cumsum(self.layers)]).astype(np.int32)
        digests = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), len(self.digests) // 16, [None, pa.py_buffer(self.digests)]
        )
        count, genes = self.genome.shape
        gene_ends = np.arange(0, count * genes + 1, genes, dtype=np.int32)
        return pa.table(
            [
                pa.array(self.model),
                pa.ListArray.from_arrays(pa.array(gene_ends), pa.array(self.genome.ravel())),
                pa.ListArray.from_arrays(pa.array(ends), digests),
                pa.array(self.table, pa.binary()),
                pa.array(self.layers.astype(np.int32)),
                pa.array(self.parameters),
                pa.array(self.bytes),
                pa.array(self.parent, mask=self.parent < 0),
                pa.array(self.ancestor, mask=self.ancestor < 0),
                pa.array(self.layers_shared.astype(np.int32), mask=self.layers_shared < 0),
                pa.array(self.bytes_shared, mask=self.bytes_shared < 0),
                pa.array(self.alive),
            ],
            schema=_SCHEMA,
        )


class MembersWriter:
    """Writes one rank's Parquet file; nothing is visible under its name before `close`.

    Parameters
    ----------
    directory
        Where to.
    rank, size
        Which of how many files this is.
    identity
        Of the population.
    """

    def __init__(self, directory: Path, rank: int, size: int, identity: str) -> None:
        self.path = directory / f"members-{rank:05d}-of-{size:05d}.parquet"
        self.rows = 0
        self._temporary = self.path.with_name(self.path.name + _TEMPORARY)
        metadata = {_METADATA_KEY: json.dumps({"format": FORMAT, "identity": identity}).encode()}
        self._schema = _SCHEMA.with_metadata(metadata)
        self._sink = pa.OSFile(os.fsencode(self._temporary), "w")  # its name need not be UTF-8
        self._file = pq.ParquetWriter(
            self._sink,
            self._schema,
            compression={name: _COMPRESSION.get(name, "zstd") for name in _leaves(self._schema)},
            use_dictionary=[name for name in _leaves(self._schema) if name != "table"],
            write_page_checksum=True,
        )

    def append(self, rows: Rows | pa.Table) -> None:
        """Write rows, in one row group or several."""
        table = rows.to_arrow() if isinstance(rows, Rows) else rows
        self._file.write_table(table.cast(self._schema), row_group_size=_ROW_GROUP)
        self.rows += table.num_rows

    def close(self) -> dict[str, Any]:
        """Finish the file; return its entry in ``population.json``."""
        self._file.close()
        self._sink.close()
        self._temporary.replace(self.path)
        return {"name": self.path.name, "rows": self.rows}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what an error left unfinished."""
        if kind is not None:
            self._file.close()
            self._sink.close()
            self._temporary.unlink(missing_ok=True)


def _leaves(schema: pa.Schema) -> list[str]:
    """Return the columns as Parquet calls them."""
    return [
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        for field in schema
    ]


def identity(description: Mapping[str, Any]) -> str:
    """Return 32 hex digits that tell populations apart that differ in anything described."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def write_description(directory: Path, description: Mapping[str, Any]) -> None:
    """Write ``population.json``, whole or not at all; from here on there is a population."""
    path = directory / DESCRIPTION
    try:
        write_new(path, json.dumps(description, indent=2) + "\n")
    except FileExistsError as cause:
        raise PopulationError(
            f"{path} was written by another run in the meantime; choose another directory"
        ) from cause


class Population:
    """The members of a population on disk, oldest first.

    Parameters
    ----------
    directory
        Where it was written to, by any number of ranks.
    space
        The space it must be of.

    Raises
    ------
    PopulationError
        Naming the file, and the row where it is one: it is missing, truncated or damaged, of
        another space, format or population, or a genome is none of the space.

    Attributes
    ----------
    description
        What ``population.json`` says.
    model
        Numbers of the members, ascending, shape (n,), int64.
    genome
        Shape (n, genes), int32.
    next_model
        The number of the next new model.
    """

    def __init__(self, directory: Path, space: GeneSpace) -> None:
        self.directory = directory
        self.description = _read_description(directory)
        _check_space(directory / DESCRIPTION, self.description, space)
        self._files = [
            _open(directory / entry["name"], entry["rows"], self.description["identity"])
            for entry in self.description["files"]
        ]
        models, genomes, files, rows = [], [], [], []
        for number, file in enumerate(self._files):
            table = file.read(["model", "genome", "alive"])
            genome = _genomes(file.path, table["genome"], space)
            alive = np.asarray(table["alive"])
            models.append(np.asarray(table["model"])[alive])
            genomes.append(genome[alive])
            rows.append(np.flatnonzero(alive))
            files.append(np.full(len(rows[-1]), number))
        order = np.argsort(model := np.concatenate(models))
        self.model: Integers = model[order]
        self.genome: NDArray[np.int32] = np.concatenate(genomes)[order]
        self._file_of = np.concatenate(files)[order]
        self._row_of = np.concatenate(rows)[order]
        self.next_model: int = self.description["next_model"]
        self._check_numbers()

    def __len__(self) -> int:
        return len(self.model)

    def read(self, begin: int, end: int) -> pa.Table:
        """Return the full rows of the members at positions `begin` to `end`, in order."""
        files, rows = self._file_of[begin:end], self._row_of[begin:end]
        parts, positions = [], []
        for number, file in enumerate(self._files):
            where = np.flatnonzero(files == number)
            if len(where):
                parts.append(file.take(rows[where]))
                positions.append(where)
        if not parts:
            return _SCHEMA.empty_table()
        if len(parts) == 1:
            return parts[0]
        return pa.concat_tables(parts).take(np.argsort(np.concatenate(positions)))

    def place(self, position: int) -> str:
        """Return file and row of a member, for messages; rows count from 0."""
        file = self._files[self._file_of[position]]
        return f"{file.path}, row {self._row_of[position]}"

    def _check_numbers(self) -> None:
        if len(self.model) == 0:
            raise PopulationError(f"{self.directory / DESCRIPTION}: the population has no members")
        if len(self.model) != self.description["population_size"]:
            raise PopulationError(
                f"{self.directory / DESCRIPTION}: expected {self.description['population_size']} "
                f"members, found {len(self.model)}"
            )
        twice = np.flatnonzero(np.diff(self.model) == 0)
        if len(twice):
            position = int(twice[0]) + 1
            raise PopulationError(
                f"{self.place(position)}: model {self.model[position]} is there twice"
            )
        if self.model[0] < 0 or self.model[-1] >= self.next_model:
            position = 0 if self.model[0] < 0 else len(self.model) - 1
            raise PopulationError(
                f"{self.place(position)}: model {self.model[position]}, expected 0 to "
                f"{self.next_model - 1}"
            )


class _File:
    """One Parquet file, with errors that name it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            source = pa.memory_map(os.fsencode(path))  # its name need not be UTF-8
            self._file = pq.ParquetFile(source, page_checksum_verification=True)
        except FileNotFoundError as error:
            raise PopulationError(f"{path}: the file is missing") from error
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path, error) from error
        self.schema = self._file.schema_arrow
        self.rows = self._file.metadata.num_rows

    def read(self, columns: Sequence[str]) -> pa.Table:
        try:
            return self._file.read(columns=list(columns))
        except (OSError, pa.ArrowException) as error:
            raise _damaged(self.path, error) from error

    def take(self, rows: Integers) -> pa.Table:
        """Return these rows in full, reading only the row groups that hold them."""
        metadata = self._file.metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        ends = np.cumsum(sizes)
        groups = np.unique(np.searchsorted(ends, rows, side="right"))
        starts = np.zeros(len(sizes), dtype=np.int64)
        starts[groups] = np.cumsum([0, *(sizes[group] for group in groups[:-1])])
        group_of = np.searchsorted(ends, rows, side="right")
        within = rows - (ends[group_of] - np.asarray(sizes)[group_of]) + starts[group_of]
        try:
            table = self._file.read_row_groups(groups.tolist())
            if within[-1] - within[0] + 1 == len(within):  # in a row: nothing to copy
                return table.slice(within[0], len(within))
            return table.take(within)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(self.path, error) from error


def space_name(directory: Path) -> str:
    """Return the name of the space that a population is of; raises as `Population` does."""
    return str(_read_description(directory)["space"].get("name"))


def read_members(directory: Path) -> pa.Table:
    """Return all rows of a population, dead models included, in ascending order of their numbers.

    Raises
    ------
    PopulationError
        As for `Population`, but whatever the space.
    """
    description = _read_description(directory)
    tables = [
        _open(directory / entry["name"], entry["rows"], description["identity"]).read(_SCHEMA.names)
        for entry in description["files"]
    ]
    return pa.concat_tables(tables).sort_by("model").replace_schema_metadata(None)


def _read_description(directory: Path) -> dict[str, Any]:
    path = directory / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PopulationError(
            f"{directory} holds no population: there is no {DESCRIPTION} in it"
        ) from error
    except (OSError, RecursionError, ValueError) as error:
        raise _damaged(path, error) from error
    version = description.get("format") if isinstance(description, dict) else None
    if version != FORMAT:
        raise PopulationError(
            f"{path}: format {version!r}, expected {FORMAT}; digests differ between the two: "
            "generate the population anew, or use the version of transfer-nas that did"
        )
    try:
        expected: dict[str, type] = {
            "identity": str,
            "space": dict,
            "population_size": int,
            "next_model": int,
            "files": list,
        }
        for key, kind in expected.items():
            if not isinstance(description[key], kind):
                raise TypeError(f"{key} is not of type {kind.__name__}")
        if not description["files"]:
            raise TypeError("files is empty")
        for entry in description["files"]:
            name, rows = entry["name"], entry["rows"]
            if not isinstance(name, str) or Path(name).name != name or not isinstance(rows, int):
                raise TypeError("files is not a list of names and rows")
    except (KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    assert isinstance(description, dict)
    return description


def _check_space(path: Path, description: Mapping[str, Any], space: GeneSpace) -> None:
    expected = json.loads(json.dumps(space.describe()))
    found = description["space"]
    if found == expected:
        return
    if found.get("name") != expected["name"]:
        raise PopulationError(
            f"{path}: the population is of space {found.get('name')!r}, expected "
            f"{expected['name']!r}"
        )
    differing = [key for key in expected if found.get(key) != expected[key]]
    raise PopulationError(
        f"{path}: the population is of a space {expected['name']!r} with other "
        f"{', '.join(differing) or 'options'}"
    )


def _open(path: Path, rows: int, identity: str) -> _File:
    file = _File(path)
    found = (file.schema.metadata or {}).get(_METADATA_KEY)
    if found is None:
        raise PopulationError(f"{path}: not a file of a population")
    metadata = json.loads(found)
    if metadata.get("format") != FORMAT:
        raise PopulationError(f"{path}: format {metadata.get('format')!r}, expected {FORMAT}")
    if metadata.get("identity") != identity:
        raise PopulationError(f"{path}: the file belongs to another population")
    if not file.schema.equals(_SCHEMA):
        raise PopulationError(f"{path}: the columns are not those of format {FORMAT}")
    if file.rows != rows:
        raise PopulationError(f"{path}: {file.rows} rows, expected {rows}")
    return file


def _genomes(path: Path, column: pa.ChunkedArray, space: GeneSpace) -> NDArray[np.int32]:
    """Return the genomes as one array, after checking that each is one of the space."""
    genes = len(space.genes)
    array = column.combine_chunks()
    lengths = np.diff(np.asarray(array.offsets))
    wrong = np.flatnonzero(lengths != genes)
    if len(wrong):
        row = int(wrong[0])
        raise PopulationError(
            f"{path}, row {row}: a genome of {lengths[row]} genes, expected {genes}"
        )
    genomes: NDArray[np.int32] = np.asarray(array.flatten()).reshape(-1, genes)
    choices = np.array([len(gene.values) for gene in space.genes])
    wrong = np.flatnonzero(((genomes < 0) | (genomes >= choices)).any(axis=1))
    if len(wrong):
        row = int(wrong[0])
        gene = int(np.flatnonzero((genomes[row] < 0) | (genomes[row] >= choices))[0])
        raise PopulationError(
            f"{path}, row {row}: gene {space.genes[gene].name} is {genomes[row, gene]}, "
            f"expected 0 to {choices[gene] - 1}"
        )
    return genomes


def _damaged(path: Path, error: Exception) -> PopulationError:
    reason = " ".join(str(error).split())
    return PopulationError(f"{path}: the file cannot be read ({reason})")
