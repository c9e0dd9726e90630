"""The prefix index over all ranks of an MPI job.

`PrefixService` hosts one shard of `cpp_store.PrefixIndex` on every rank; a model lives on the shard
that a stable hash of its id chooses. All calls are collective: each rank passes its own list, every
shard answers all questions on its own models, and the answers are reduced where they were asked.
What they return does not depend on the number of ranks.

Who wants to ask one question at a time, from any rank at any moment, asks servers of the store
(`cpp_store.connect`): they hold the same index.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np

import cpp_store
from cpp_store import LayerTable, Match, PrefixIndex
from graph_meta._collectives import Collectives
from graph_meta._messages import (
    decode_answers,
    decode_batch,
    decode_error,
    encode_answers,
    encode_batch,
    encode_error,
)

if TYPE_CHECKING:
    from mpi4py import MPI

    from graph_meta.graph import LayerGraph

__all__ = ["PrefixService"]

Graph: TypeAlias = "LayerGraph | LayerTable"
Weight: TypeAlias = Literal["layers", "bytes"]

# Items of one rank that travel in one round of a bulk exchange; bounds the size of a message.
_ROUND = 16_384


class PrefixService:
    """Longest-shared-prefix queries over the models of all ranks.

    Ties go to the higher score (NaN counts as lowest), then to the larger sequence number. The
    default numbers continue the newest that any rank has seen, in order of rank and position: the
    same models handed out to the ranks in contiguous blocks get the same numbers whatever the
    number of ranks. Pass ``sequences`` where "newer" must mean something else.

    All methods but `shard_of` and `stats` are collective: they must be called in the same order on
    all ranks, by one thread of each.

    Parameters
    ----------
    comm
        Communicator of all ranks that take part; it is duplicated. ``None`` is one rank without
        MPI.
    """

    def __init__(self, comm: MPI.Comm | None = None) -> None:
        self._index = PrefixIndex()
        self._newest = 0  # sequence number
        self._comm = Collectives(comm)
        self.rank, self.size = self._comm.rank, self._comm.size

    def register(
        self,
        models: Sequence[str],
        graphs: Sequence[Graph],
        *,
        scores: Sequence[float] | None = None,
        sequences: Sequence[int] | None = None,
        namespace: str = "",
    ) -> None:
        """Register the models that all ranks pass.

        Parameters
        ----------
        models, graphs
            This rank's models; a rank may have none.
        scores
            One number a model; 0 if left out.
        sequences
            One number a model; consecutive numbers in order of rank and position if left out (on
            all ranks or on none).
        namespace
            Of this rank's models.

        Raises
        ------
        cpp_store.AlreadyExists, cpp_store.InvalidArgument, ValueError
            On every rank, with the first error of any. All models without an error are registered.
        """
        errors = _Errors()
        with errors:
            _check_lengths(models=models, graphs=graphs, scores=scores, sequences=sequences)
        numbers = self._numbered(0 if errors else len(models), sequences)
        rounds = self._rounds(0 if errors else len(models))
        for begin in range(0, rounds * _ROUND, _ROUND):
            chosen = [] if errors else range(begin, min(begin + _ROUND, len(models)))
            shards: list[list[int]] = [[] for _ in range(self.size)]
            for position in chosen:
                shards[self.shard_of(models[position])].append(position)
            batches = [
                encode_batch(
                    {
                        "namespace": namespace,
                        "models": [models[i] for i in shard],
                        "scores": [0.0 if scores is None else float(scores[i]) for i in shard],
                        "sequences": [numbers[i] for i in shard],
                    },
                    [_table(graphs[i]) for i in shard],
                )
                if rank != self.rank
                else b""
                for rank, shard in enumerate(shards)
            ]
            for i in shards[self.rank]:
                with errors:
                    score = 0.0 if scores is None else float(scores[i])
                    self._add(models[i], _table(graphs[i]), score, namespace, numbers[i])
            for rank, batch in enumerate(self._comm.exchange(batches)):
                if rank == self.rank:
                    continue
                header, tables = decode_batch(batch)
                rows = zip(
                    header["models"], tables, header["scores"], header["sequences"], strict=True
                )
                for model, table, score, number in rows:
                    with errors:
                        self._add(model, table, score, header["namespace"], number)
        self._raise_together(errors)

    def best_matches(
        self,
        graphs: Sequence[Graph],
        *,
        namespace: str = "",
        weight: Weight = "layers",
        min_layers: int = 1,
        exclude: Sequence[Sequence[str]] | None = None,
    ) -> list[Match | None]:
        """Find the best match of each graph that any rank passes.

        Parameters
        ----------
        graphs
            This rank's questions; a rank may have none.
        namespace
            Models of other namespaces never match.
        weight
            What makes a prefix heavy: its number of layers, or the bytes of its weights.
        min_layers
            Prefixes of fewer layers are no match.
        exclude
            Ids that are not to be returned, one sequence a graph.

        Returns
        -------
        list
            This rank's answers, in order: with the positions of the prefix's layers in the graph;
            None where no model shares `min_layers` layers.
        """
        errors = _Errors()
        with errors:
            _check_lengths(graphs=graphs, exclude=exclude)
            _check_weight(weight)
        found: list[Match | None] = []
        rounds = self._rounds(0 if errors else len(graphs))
        for begin in range(0, rounds * _ROUND, _ROUND):
            part = [] if errors else [_table(graph) for graph in graphs[begin : begin + _ROUND]]
            header = {
                "namespace": namespace,
                "weight": weight,
                "min_layers": min_layers,
                "exclude": [list(ids) for ids in exclude[begin : begin + _ROUND]]
                if exclude is not None and not errors
                else [[]] * len(part),
            }
            answers = []
            for rank, batch in enumerate(self._gather(header, part)):
                asked, tables = (header, part) if rank == self.rank else decode_batch(batch)
                answers.append(
                    [self._answer_one(t, asked, i, errors) for i, t in enumerate(tables)]
                )
            found.extend(self._reduce(answers, weight))
        self._raise_together(errors)
        return found

    def advance(
        self,
        models: Sequence[str],
        graphs: Sequence[Graph],
        *,
        sequences: Sequence[int],
        retire: Sequence[str] | None = None,
        scores: Sequence[float] | None = None,
        namespace: str = "",
        weight: Weight = "layers",
        min_layers: int = 1,
    ) -> list[Match | None]:
        """Match, register and retire one model after the other, as one serial evolution would.

        The steps of all ranks are taken in ascending order of their sequence numbers: find the best
        match of the step's graph, register it as the step's model, retire the step's oldest. Every
        shard takes all steps in that order on its own models, so that no step waits for another
        rank, and yet each sees exactly the models registered and not retired before it.

        Parameters
        ----------
        models, graphs
            This rank's new models, in any order.
        sequences
            One number a model, distinct over all ranks.
        retire
            The model to take out after each step, or ``""`` for none; nobody if left out.
        scores, namespace, weight, min_layers
            As for :meth:`register` and :meth:`best_match`.

        Returns
        -------
        list
            The best match of each of this rank's models.

        Raises
        ------
        cpp_store.AlreadyExists, cpp_store.InvalidArgument, ValueError
            On every rank, with the first error of any.
        """
        errors = _Errors()
        with errors:
            _check_lengths(
                models=models, graphs=graphs, sequences=sequences, retire=retire, scores=scores
            )
            _check_weight(weight)
        count = 0 if errors else len(models)
        part = [_table(graph) for graph in graphs[:count]]
        header: dict[str, Any] = {
            "models": list(models[:count]),
            "sequences": [int(number) for number in sequences[:count]],
            "retire": [""] * count if retire is None else list(retire[:count]),
            "scores": [0.0] * count if scores is None else [float(s) for s in scores[:count]],
            "exclude": [[]] * count,
            "namespace": namespace,
            "weight": weight,
            "min_layers": min_layers,
        }
        steps: list[tuple[int, int, int, LayerTable]] = []
        headers: list[dict[str, Any]] = []
        answers: list[list[Match | None]] = []
        for rank, batch in enumerate(self._gather(header, part)):
            asked, tables = (header, part) if rank == self.rank else decode_batch(batch)
            headers.append(asked)
            answers.append([None] * len(tables))
            steps.extend(
                (number, rank, i, table)
                for i, (number, table) in enumerate(zip(asked["sequences"], tables, strict=True))
            )
        steps.sort(key=lambda step: step[:3])
        for number, rank, i, table in steps:
            asked = headers[rank]
            answers[rank][i] = self._answer_one(table, asked, i, errors)
            model, oldest = asked["models"][i], asked["retire"][i]
            if self.shard_of(model) == self.rank:
                with errors:
                    self._add(model, table, asked["scores"][i], asked["namespace"], number)
            if oldest and self.shard_of(oldest) == self.rank:
                self._index.remove(oldest)
        if steps:
            self._newest = max(self._newest, steps[-1][0])
        found = self._reduce(answers, weight)
        self._raise_together(errors)
        return found

    def retire(self, models: Sequence[str]) -> list[bool]:
        """Take out the models that all ranks pass.

        Returns
        -------
        list
            For each of this rank's models whether it was registered.
        """
        shards: list[list[int]] = [[] for _ in range(self.size)]
        for position, model in enumerate(models):
            shards[self.shard_of(model)].append(position)
        batches = [json.dumps([models[i] for i in shard]).encode() for shard in shards]
        removed = [
            bytes(self._index.remove(model) for model in json.loads(bytes(batch)))
            for batch in self._comm.exchange(batches)
        ]
        result = [False] * len(models)
        for shard, answer in zip(shards, self._comm.exchange(removed), strict=True):
            for position, was_registered in zip(shard, bytes(answer), strict=True):
                result[position] = bool(was_registered)
        return result

    def shard_of(self, model: str) -> int:
        """Rank that keeps the model of that id; the same in every process and version."""
        return zlib.crc32(model.encode()) % self.size

    def stats(self) -> dict[str, Any]:
        """Count this rank's shard: models, layers, bytes of the index, namespaces."""
        return dict(self._index.stats())

    def close(self) -> None:
        """Leave together; a second call does nothing."""
        self._comm.free()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close, but not after an error: the other ranks may never come to close."""
        if kind is None:
            self.close()

    def _add(
        self, model: str, table: LayerTable, score: float, namespace: str, sequence: int
    ) -> None:
        self._index.add(model, table, score=score, namespace=namespace, sequence=sequence)
        self._newest = max(self._newest, sequence)

    def _answer_one(
        self, table: LayerTable, asked: dict[str, Any], position: int, errors: _Errors
    ) -> Match | None:
        with errors:
            return self._index.best_match(
                table,
                namespace=asked["namespace"],
                weight=asked["weight"],
                min_layers=asked["min_layers"],
                exclude=asked["exclude"][position],
            )
        return None

    def _reduce(self, answers: list[list[Match | None]], weight: Weight) -> list[Match | None]:
        """Send each rank its answers and choose the best of what all shards say."""
        mine = answers[self.rank]
        if self.size == 1:
            return mine
        batches = [
            b"" if rank == self.rank else encode_answers(matches)
            for rank, matches in enumerate(answers)
        ]
        columns = [
            mine if rank == self.rank else decode_answers(batch, len(mine))
            for rank, batch in enumerate(self._comm.exchange(batches))
        ]
        return [
            max(
                (match for match in matches if match is not None),
                key=lambda match: _order(match, weight),
                default=None,
            )
            for matches in zip(*columns, strict=True)
        ]

    def _numbered(self, count: int, sequences: Sequence[int] | None) -> list[int]:
        mine = np.array([count, self._newest], dtype=np.int64)
        every = self._comm.allgather(mine)
        if sequences is not None:
            return [int(number) for number in sequences]
        first = int(every[:, 1].max()) + 1 + int(every[: self.rank, 0].sum())
        self._newest = int(every[:, 1].max() + every[:, 0].sum())
        return list(range(first, first + count))

    def _rounds(self, count: int) -> int:
        most = int(self._comm.allgather(np.array([count], dtype=np.int64)).max())
        return -(-most // _ROUND)

    def _gather(
        self, header: dict[str, Any], tables: Sequence[LayerTable]
    ) -> list[memoryview | bytes]:
        if self.size == 1:
            return [b""]  # nobody else reads it
        return self._comm.allgather_bytes(encode_batch(header, tables))

    def _raise_together(self, errors: _Errors) -> None:
        mine = b"" if errors.first is None else encode_error(errors.first)
        for description in self._comm.allgather_bytes(mine):
            if description:
                raise decode_error(bytes(description))


class _Errors:
    """Remembers the first error of a collective call, to be raised by all ranks at its end.

    Raising at once would leave the other ranks waiting in the next exchange.
    """

    def __init__(self) -> None:
        self.first: Exception | None = None

    def __bool__(self) -> bool:
        return self.first is not None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, cpp_store.StoreError | ValueError):
            return False
        self.first = self.first or error
        return True


def _table(graph: Graph) -> LayerTable:
    return graph if isinstance(graph, LayerTable) else graph.table


def _order(match: Match, weight: Weight) -> tuple[int, bool, float, int, str]:
    """Return what best matches are sorted by; the id only matters if sequence numbers are equal."""
    heaviness = match.bytes if weight == "bytes" else match.layers
    is_number = not math.isnan(match.score)
    return heaviness, is_number, match.score if is_number else 0.0, match.sequence, match.model


def _check_weight(weight: str) -> None:
    if weight not in ("layers", "bytes"):
        raise ValueError(f'weight is {weight!r}, expected "layers" or "bytes"')


def _check_lengths(**lists: Sequence[Any] | None) -> None:
    given = {name: len(items) for name, items in lists.items() if items is not None}
    if len(set(given.values())) > 1:
        found = ", ".join(f"{count} {name}" for name, count in given.items())
        raise ValueError(f"expected lists of equal length, found {found}")
