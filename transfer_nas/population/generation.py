"""Making and mutating models over all ranks, without training them.

What model number n looks like follows from the seed and n alone, so results do not depend on the
number of ranks. Random numbers are drawn for blocks of 1,024 models, block b from
``SeedSequence(seed, spawn_key=(stream, b))``: a generator of its own for each model would cost more
than the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cpp_store import LayerTable, StoreError
from graph_meta.service import PrefixService
from transfer_nas.errors import InputError, SpaceError
from transfer_nas.population.files import (
    Integers,
    MembersWriter,
    Population,
    PopulationError,
    Rows,
)
from transfer_nas.spaces import GeneSpace

if TYPE_CHECKING:
    from cpp_store import Match
    from graph_meta.graph import LayerGraph

#: Called from time to time with how many of this rank's models are done.
Report = Callable[[int], None]

_BLOCK = 1024
_GENOMES, _LINEAGE = 0, 1  # streams of random numbers
# Models of one rank between two calls of the service. The ranks wait for each other at each call:
# the more often, the more one that is held up holds up all.
_CHUNK = 16_384
_CHECKED_EVERY = 64  # of how many members read one is built again


@dataclass(frozen=True)
class Lineage:
    """Who descends from whom, oldest first: the initial members, then their descendants.

    Attributes
    ----------
    model
        Numbers, ascending, shape (members + children,), int64.
    genome
        Shape (members + children, genes), int32.
    parent
        Position of each child's parent in this list, shape (children,), int64.
    """

    model: Integers
    genome: NDArray[np.int32]
    parent: Integers


@dataclass
class Totals:
    """What one rank has made."""

    models: int = 0
    layers: int = 0
    parameters: int = 0
    bytes: int = 0
    layers_shared: int = 0
    bytes_shared: int = 0
    without_ancestor: int = 0


def draw_genomes(space: GeneSpace, seed: int, begin: int, end: int) -> NDArray[np.int32]:
    """Draw the genomes of models `begin` to `end`; all genomes are equally likely.

    Returns
    -------
    ndarray
        Shape (end - begin, genes), int32.
    """
    choices = np.array([len(gene.values) for gene in space.genes])
    blocks = [
        _generator(seed, _GENOMES, block).integers(choices, size=(_BLOCK, len(choices)))
        for block in range(begin // _BLOCK, -(-end // _BLOCK))
    ]
    first = begin // _BLOCK * _BLOCK
    drawn = np.concatenate([np.empty((0, len(choices)), dtype=np.int64), *blocks])
    return drawn[begin - first : end - first].astype(np.int32)


def draw_lineage(
    space: GeneSpace, seed: int, model: Integers, genome: NDArray[np.int32], count: int
) -> Lineage:
    """Draw `count` descendants, one after the other, by aging evolution without scores.

    Aging evolution (Real et al., *Regularized Evolution for Image Classifier Architecture Search*,
    AAAI'19) lets a tournament choose the parent, mutates one gene to another value, and lets the
    oldest member die. Without training nothing is better than anything else, so the parent is any
    living member with equal probability. The population keeps its size: at child i it consists of
    those at positions i to i + size - 1, descendants included.

    Parameters
    ----------
    space
        The space of the genomes.
    seed
        Of the descendants.
    model, genome
        Numbers (ascending) and genomes of the initial members.
    count
        Number of children; they get the numbers after the largest of `model`.

    Raises
    ------
    SpaceError
        If the space holds one genome: there is nothing to mutate.
    """
    size = len(model)
    choices = np.array([len(gene.values) for gene in space.genes])
    mutable = np.flatnonzero(choices > 1)
    if count and not len(mutable):
        raise SpaceError(f"space {space.name} holds one genome: there is nothing to mutate")
    genomes = np.concatenate([genome, np.empty((count, len(choices)), dtype=np.int32)])
    parents = np.empty(count, dtype=np.int64)
    for block, first in enumerate(range(0, count, _BLOCK)):
        last = min(first + _BLOCK, count)
        rng = _generator(seed, _LINEAGE, block)
        chosen = np.arange(first, first + _BLOCK) + rng.integers(size, size=_BLOCK)
        genes = mutable[rng.integers(len(mutable), size=_BLOCK)]
        # Adding 1 to n - 1 (modulo n) reaches each other value equally often.
        shifts = 1 + rng.integers(choices[genes] - 1)
        parents[first:last] = chosen[: last - first]
        rows = zip(chosen.tolist(), genes.tolist(), shifts.tolist(), strict=True)
        for child, (parent, gene, shift) in zip(range(first, last), rows, strict=False):
            genomes[size + child] = genomes[parent]
            genomes[size + child, gene] = (genomes[parent, gene] + shift) % choices[gene]
    numbers = np.concatenate([model, model[-1] + 1 + np.arange(count)])
    return Lineage(numbers, genomes, parents)


def generate(
    space: GeneSpace,
    seed: int,
    count: int,
    children: int,
    service: PrefixService,
    writer: MembersWriter | None,
    report: Report,
) -> Totals:
    """Make, name, register and write this rank's part of models 0 to `count`; collective.

    Parameters
    ----------
    space, seed
        What the models follow from.
    count
        Number of models of all ranks.
    children
        Number of models that will be evolved from them: as many of the oldest will have died.
    service
        Where they are registered, under their numbers as ids.
    writer
        Of this rank's file; ``None`` to write nothing.
    report
        See `Report`.
    """
    totals = Totals()
    for chunk in _chunks(count, service):
        genomes = draw_genomes(space, seed, chunk.start, chunk.stop)
        models = np.arange(chunk.start, chunk.stop)
        made = _Made(space, genomes)
        service.register(
            [str(number) for number in chunk], made.tables, sequences=[n + 1 for n in chunk]
        )
        nobody = np.full(len(chunk), -1)
        rows = made.rows(models, nobody, nobody, nobody, nobody, models >= children)
        _count(totals, rows)
        if writer is not None and len(chunk):
            writer.append(rows)
        report(totals.models)
    return totals


def register_members(
    space: GeneSpace,
    population: Population,
    children: int,
    service: PrefixService,
    writer: MembersWriter,
    report: Report,
) -> None:
    """Register this rank's part of the members and copy those that live on; collective.

    The layer tables are those on disk. Some members are built again, to see that this version and
    this space give the same.

    Parameters
    ----------
    space
        Of the members.
    population
        Where they are read from.
    children
        Number of models that will be evolved from them: as many of the oldest will have died.
    service
        Where they are registered, under their numbers as ids.
    writer
        Of this rank's file.
    report
        See `Report`.

    Raises
    ------
    PopulationError
        If a member is not what its genome says (file and row named). Other ranks do not hear of
        it: see `transfer_nas.ranks.together`.
    """
    wrong: PopulationError | None = None
    done = 0
    for chunk in _chunks(len(population), service):
        tables: list[LayerTable] = []
        try:
            rows = population.read(chunk.start, chunk.stop)
            tables = _tables(population, chunk, rows)
            _check_sample(space, population, chunk, rows, tables)
            writer.append(rows.slice(max(0, children - chunk.start)))
        except PopulationError as error:
            # The other ranks are on their way to registering: go there, then complain.
            wrong = wrong or error
        models = population.model[chunk.start : chunk.stop][: len(tables)].tolist()
        service.register(
            [str(number) for number in models], tables, sequences=[n + 1 for n in models]
        )
        done += len(chunk)
        report(done)
    if wrong is not None:
        raise wrong


def evolve(
    space: GeneSpace,
    lineage: Lineage,
    service: PrefixService,
    writer: MembersWriter,
    report: Report,
) -> Totals:
    """Match, register and write the children of a lineage; collective.

    Each child is matched with all members alive at its birth, exactly as if one process took one
    child after the other; then the oldest member is retired.
    """
    totals = Totals()
    count = len(lineage.parent)
    size = len(lineage.model) - count
    round_size = _CHUNK * service.size
    for begin in range(0, count, round_size):
        end = min(begin + round_size, count)
        first, last = _share(begin, end, service.rank, service.size)
        models = lineage.model[size + first : size + last]
        made = _Made(space, lineage.genome[size + first : size + last])
        matches = service.advance(
            [str(number) for number in models.tolist()],
            made.tables,
            sequences=(models + 1).tolist(),
            retire=[str(number) for number in lineage.model[first:last].tolist()],
        )
        rows = made.rows(
            models,
            lineage.model[lineage.parent[first:last]],
            _of_matches(matches, lambda match: int(match.model), -1),
            _of_matches(matches, lambda match: match.layers, 0),
            _of_matches(matches, lambda match: match.bytes, 0),
            np.arange(size + first, size + last) >= count,
        )
        _count(totals, rows)
        if len(models):
            writer.append(rows)
        report(totals.models)
    return totals


class _Made:
    """The layer graphs of some genomes, named."""

    def __init__(self, space: GeneSpace, genomes: NDArray[np.int32]) -> None:
        self.genomes = genomes
        self.tables: list[LayerTable] = []
        self.digests: list[bytes] = []
        sizes = np.empty((len(genomes), 3), dtype=np.int64)
        for i, genome in enumerate(genomes.tolist()):
            # A graph is let go at once: thousands of them would keep the garbage collector busy.
            graph = _graph(space, genome)
            table = graph.table
            self.tables.append(table)
            self.digests.append(b"".join(graph.digests))
            sizes[i] = len(table), graph.parameters, table.total_nbytes
        self.layers, self.parameters, self.bytes = sizes.T

    def rows(
        self,
        models: Integers,
        parent: Integers,
        ancestor: Integers,
        layers_shared: Integers,
        bytes_shared: Integers,
        alive: NDArray[np.bool_],
    ) -> Rows:
        return Rows(
            models,
            self.genomes,
            b"".join(self.digests),
            [table.encode() for table in self.tables],
            self.layers,
            np.ascontiguousarray(self.parameters),
            np.ascontiguousarray(self.bytes),
            parent,
            ancestor,
            layers_shared,
            bytes_shared,
            alive,
        )


def _graph(space: GeneSpace, genome: list[int]) -> LayerGraph:
    try:
        return space.graph(genome)
    except InputError as error:
        # Not bad input, which all ranks would find and end on together: the genome was drawn here.
        raise RuntimeError(f"space {space.name} refuses its own genome {genome}") from error


def _tables(population: Population, chunk: range, rows: pa.Table) -> list[LayerTable]:
    tables: list[LayerTable] = []
    for encoded in rows["table"].to_pylist():
        try:
            tables.append(LayerTable.decode(encoded))
        except StoreError as error:
            raise PopulationError(
                f"{population.place(chunk.start + len(tables))}: not a layer table ({error})"
            ) from error
    return tables


def _check_sample(
    space: GeneSpace,
    population: Population,
    chunk: range,
    rows: pa.Table,
    tables: Sequence[LayerTable],
) -> None:
    for i in range(0, len(chunk), _CHECKED_EVERY):
        graph = space.graph(population.genome[chunk.start + i].tolist())
        digests = rows["digests"][i].as_py()
        if tuple(digests) != graph.digests or tables[i] != graph.table:
            raise PopulationError(
                f"{population.place(chunk.start + i)}: the digests are not those of the genome; "
                "the population was written by another version, or was changed"
            )


def _generator(seed: int, stream: int, block: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, block)))


def _chunks(count: int, service: PrefixService) -> Iterator[range]:
    """Split this rank's part; all ranks get equally many chunks, the last one perhaps empty."""
    mine = range(*_share(0, count, service.rank, service.size))
    largest = -(-count // service.size)
    for begin in range(0, largest, _CHUNK):
        yield mine[begin : begin + _CHUNK]


def _share(begin: int, end: int, rank: int, size: int) -> tuple[int, int]:
    count = end - begin
    return begin + count * rank // size, begin + count * (rank + 1) // size


def _of_matches(
    matches: Sequence[Match | None], value: Callable[[Match], int], default: int
) -> Integers:
    return np.array([default if match is None else value(match) for match in matches], np.int64)


def _count(totals: Totals, rows: Rows) -> None:
    totals.models += len(rows.model)
    totals.layers += int(rows.layers.sum())
    totals.parameters += int(rows.parameters.sum())
    totals.bytes += int(rows.bytes.sum())
    totals.layers_shared += int(np.maximum(rows.layers_shared, 0).sum())
    totals.bytes_shared += int(np.maximum(rows.bytes_shared, 0).sum())
    totals.without_ancestor += int((rows.ancestor < 0).sum())
