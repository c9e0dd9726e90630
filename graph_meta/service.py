"""The prefix index over all ranks of an MPI job.

`PrefixService` hosts one shard of `cpp_store.PrefixIndex` on every rank; a model lives on the shard
that a stable hash of its id chooses. A query is answered by every shard on its own models and the
answers are reduced where it was asked, so the result is that of one index with all models.

There are two ways to use it, and they can be mixed:

* **one at a time** (`register`, `best_match`, `retire`): from any rank and thread at any moment,
  while the other ranks compute. Each rank runs a thread that serves its shard. Where MPI gives no
  ``THREAD_MULTIPLE`` (or with ``threaded=False``) there is no thread, and a rank answers whenever
  it calls `serve` or waits in this service itself.
* **in bulk** (the methods whose names end in ``_all``): collective, each rank passes its own list.
  What they return does not depend on the number of ranks.

Messages travel on a communicator of the service's own, whose waits sleep (`_patient_comm`); what
they hold is in `_messages`.
"""

from __future__ import annotations

import atexit
import itertools
import json
import math
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np

import cpp_store
from cpp_store import LayerTable, Match, PrefixIndex
from graph_meta._messages import (
    BEST_MATCHES,
    REGISTER,
    RETIRE,
    decode_answers,
    decode_batch,
    decode_error,
    decode_reply,
    decode_request,
    encode_answers,
    encode_batch,
    encode_error,
    encode_reply,
    encode_request,
    match_from_json,
    match_to_json,
)
from graph_meta._patient_comm import PatientComm, Pause

if TYPE_CHECKING:
    from mpi4py import MPI

    from graph_meta.graph import LayerGraph

__all__ = ["PrefixService"]

Graph: TypeAlias = "LayerGraph | LayerTable"
Weight: TypeAlias = Literal["layers", "bytes"]

# While a service has a thread, a thread that computes in pure Python yields to it this often.
_SWITCH_INTERVAL = 100e-6
# Items of one rank that travel in one round of a bulk exchange; bounds the size of a message.
_ROUND = 16_384

_REQUEST_TAG = 1
_FIRST_REPLY_TAG = 2


class PrefixService:
    """Longest-shared-prefix queries over the models of all ranks.

    Ties go to the higher score (NaN counts as lowest), then to the larger sequence number. One at a
    time, a registration's default number is the time in nanoseconds (or one more than the newest
    number that this rank has seen, if that is larger). In bulk, it continues the newest number that
    any rank has seen, in order of rank and position: the same models handed out to the ranks in
    contiguous blocks get the same numbers whatever the number of ranks. Pass ``sequence`` where
    "newer" must mean something else.

    All methods are thread-safe, but collective calls (``*_all``, :meth:`close`) must come from one
    thread in the same order on all ranks.

    Parameters
    ----------
    comm
        Communicator of all ranks that take part; it is duplicated, which makes this call
        collective. ``None`` is one rank without MPI.
    threaded
        Whether a thread of each rank serves its shard; ``None`` means if MPI provides
        ``THREAD_MULTIPLE``. The interpreter's switch interval is lowered to 0.1 ms while such a
        thread lives, so that a rank that computes in pure Python answers in time as well.
    timeout
        Seconds after which a question that a rank does not answer raises
        :class:`cpp_store.DeadlineExceeded`, naming the rank.

    Raises
    ------
    ValueError
        If ``threaded`` is asked for and MPI does not provide ``THREAD_MULTIPLE``.
    """

    def __init__(
        self,
        comm: MPI.Comm | None = None,
        *,
        threaded: bool | None = None,
        timeout: float = 300.0,
    ) -> None:
        self._index = PrefixIndex()
        self._clock = 0
        self._clock_lock = threading.Lock()
        self._timeout = timeout
        self._thread: threading.Thread | None = None
        self._closed = False
        self._serve_lock = threading.Lock()
        self._replies: list[tuple[MPI.Request, bytes]] = []
        self._stopping = False
        alone = comm is None or comm.Get_size() == 1
        if not alone:
            from mpi4py import MPI

            multiple = MPI.Query_thread() == MPI.THREAD_MULTIPLE
            if threaded and not multiple:
                raise ValueError(
                    "threaded=True needs an MPI library initialised with THREAD_MULTIPLE; "
                    "use threaded=None and call serve() from time to time"
                )
            threaded = multiple if threaded is None else threaded
        self._comm = PatientComm(None if alone else comm, while_waiting=self._serve_meanwhile)
        self.rank = self._comm.rank
        self.size = self._comm.size
        if alone:
            return
        tags = range(_FIRST_REPLY_TAG, min(self._comm.largest_tag, 1 << 20) + 1)
        self._reply_tags = itertools.cycle(tags)
        if threaded:
            self._old_switch_interval = sys.getswitchinterval()
            sys.setswitchinterval(min(_SWITCH_INTERVAL, self._old_switch_interval))
            self._thread = threading.Thread(
                target=self._serve_until_stopped, name="prefix-service", daemon=True
            )
            self._thread.start()
            # A thread inside MPI while MPI is finalised would crash an interpreter that exits.
            atexit.register(self._stop_thread)

    # -- one at a time ---------------------------------------------------------------------------

    def register(
        self,
        model: str,
        graph: Graph,
        *,
        score: float = 0.0,
        namespace: str = "",
        sequence: int | None = None,
    ) -> int:
        """Make a model findable; when this returns, every later question sees it.

        Returns
        -------
        int
            Its sequence number.

        Raises
        ------
        cpp_store.AlreadyExists
            If a model of that id is registered, in any namespace.
        """
        if sequence is None:
            sequence = self._tick()
        owner = self.shard_of(model)
        if owner == self.rank:
            self._add(model, _table(graph), score, namespace, sequence)
        else:
            header = {"model": model, "score": score, "namespace": namespace, "sequence": sequence}
            self._ask(REGISTER, [owner], header, _table(graph))
        return sequence

    def best_match(
        self,
        graph: Graph,
        *,
        namespace: str = "",
        weight: Weight = "layers",
        min_layers: int = 1,
        exclude: Sequence[str] = (),
    ) -> Match | None:
        """Find the registered model that shares the heaviest prefix with `graph`.

        Parameters
        ----------
        graph
            The layer graph, or its table.
        namespace
            Models of other namespaces never match.
        weight
            What makes a prefix heavy: its number of layers, or the bytes of its weights.
        min_layers
            Prefixes of fewer layers are no match.
        exclude
            Ids of models that are not to be returned.

        Returns
        -------
        Match or None
            With the positions of the prefix's layers in `graph`; ``None`` if no model shares
            `min_layers` layers.
        """
        matches = self.best_matches(
            graph,
            count=1,
            namespace=namespace,
            weight=weight,
            min_layers=min_layers,
            exclude=exclude,
        )
        return matches[0] if matches else None

    def best_matches(
        self,
        graph: Graph,
        *,
        count: int,
        namespace: str = "",
        weight: Weight = "layers",
        min_layers: int = 1,
        exclude: Sequence[str] = (),
    ) -> list[Match]:
        """Find the `count` best matches, best first; see :meth:`best_match`."""
        table = _table(graph)
        query: dict[str, Any] = {
            "count": count,
            "namespace": namespace,
            "weight": weight,
            "min_layers": min_layers,
            "exclude": list(exclude),
        }
        mine: list[Match] = []

        def answer_here() -> None:
            mine.extend(self._index.best_matches(table, **query))

        others = [rank for rank in range(self.size) if rank != self.rank]
        answers = self._ask(BEST_MATCHES, others, query, table, meanwhile=answer_here)
        found = mine + [match_from_json(item) for answer in answers for item in answer]
        found.sort(key=lambda match: _order(match, weight), reverse=True)
        return found[:count]

    def retire(self, model: str) -> bool:
        """Take a model out at once; returns whether it was registered."""
        owner = self.shard_of(model)
        if owner == self.rank:
            return self._index.remove(model)
        (removed,) = self._ask(RETIRE, [owner], {"model": model}, None)
        return bool(removed)

    def serve(self) -> int:
        """Answer the questions that have arrived; returns how many.

        Only needed without a thread: call it from time to time while computing.
        """
        if self.size == 1 or not self._serve_lock.acquire(blocking=False):
            return 0  # nobody to serve, or another thread is at it
        try:
            served = 0
            while arrived := self._comm.receive(_REQUEST_TAG):
                request, sender = arrived
                tag, reply = self._answer(request)
                send = self._comm.send(reply, sender, tag)
                self._replies.append((send, reply))  # keeps the bytes until they are sent
                served += 1
            if self._replies:
                self._replies = [pair for pair in self._replies if not pair[0].Test()]
            return served
        finally:
            self._serve_lock.release()

    # -- in bulk, collective ---------------------------------------------------------------------

    def register_all(
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
        numbers = self._number_all(0 if errors else len(models), sequences)
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
        self._raise_all(errors)

    def best_matches_all(
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
        namespace, weight, min_layers
            As for :meth:`best_match`.
        exclude
            Ids that are not to be returned, one sequence a graph.

        Returns
        -------
        list
            This rank's answers, in order.
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
        self._raise_all(errors)
        return found

    def advance_all(
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
            As for :meth:`register_all` and :meth:`best_match`.

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
            self._witness(steps[-1][0])
        found = self._reduce(answers, weight)
        self._raise_all(errors)
        return found

    def retire_all(self, models: Sequence[str]) -> list[bool]:
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

    # -- life ------------------------------------------------------------------------------------

    def shard_of(self, model: str) -> int:
        """Rank that keeps the model of that id; the same in every process and version."""
        return zlib.crc32(model.encode()) % self.size

    def stats(self) -> dict[str, Any]:
        """Count this rank's shard: models, layers, bytes of the index, namespaces."""
        return dict(self._index.stats())

    def close(self) -> None:
        """Stop serving once every rank has come here (collective); a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        # Nobody asks any more once all are here: a question ends with its last answer.
        self._comm.barrier()
        self._stop_thread()
        for send, _ in self._replies:
            self._comm.wait(send)
        self._replies.clear()
        self._comm.free()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; after an error only stop serving, as the other ranks may never come to close."""
        if kind is None:
            self.close()
        else:
            self._stop_thread()

    # -- serving ---------------------------------------------------------------------------------

    def _serve_until_stopped(self) -> None:
        pause = Pause()
        while not self._stopping:
            if self.serve():
                pause.reset()
            else:
                pause.wait()

    def _serve_meanwhile(self) -> bool:
        """Do, while this rank waits, what a thread would do."""
        return self._thread is None and self.serve() > 0

    def _stop_thread(self) -> None:
        if self._thread is None:
            return
        self._stopping = True
        self._thread.join()
        self._thread = None
        sys.setswitchinterval(self._old_switch_interval)
        atexit.unregister(self._stop_thread)

    def _answer(self, request: bytearray) -> tuple[int, bytes]:
        operation, tag, header, table = decode_request(request)
        # Whatever goes wrong is the asking rank's to hear: silence would leave it waiting.
        try:
            return tag, encode_reply(self._perform(operation, header, table))
        except Exception as error:
            return tag, encode_reply(error)

    def _perform(self, operation: int, header: dict[str, Any], table: bytes) -> object:
        if operation == BEST_MATCHES:
            found = self._index.best_matches(LayerTable.decode(table), **header)
            return [match_to_json(match) for match in found]
        if operation == REGISTER:
            self._add(table=LayerTable.decode(table), **header)
            return None
        if operation == RETIRE:
            return self._index.remove(header["model"])
        raise cpp_store.ProtocolError(f"unknown operation {operation} in a prefix-service message")

    def _add(
        self, model: str, table: LayerTable, score: float, namespace: str, sequence: int
    ) -> None:
        self._index.add(model, table, score=score, namespace=namespace, sequence=sequence)
        self._witness(sequence)

    # -- asking ----------------------------------------------------------------------------------

    def _ask(
        self,
        operation: int,
        ranks: Sequence[int],
        header: dict[str, Any],
        table: LayerTable | None,
        meanwhile: Callable[[], None] | None = None,
    ) -> list[Any]:
        """Send one request to `ranks`, do `meanwhile`, and return their answers in that order."""
        if not ranks:
            if meanwhile:
                meanwhile()
            return []
        with self._clock_lock:
            tag = next(self._reply_tags)
        request = encode_request(operation, tag, header, table)
        sends = [self._comm.send(request, rank, _REQUEST_TAG) for rank in ranks]
        failure: Exception | None = None
        try:
            if meanwhile:
                meanwhile()
        except Exception as error:
            failure = error  # raised below: the answers must be received in any case
        answers: dict[int, Any] = {}
        pause = Pause()
        deadline = time.monotonic() + self._timeout
        while len(answers) < len(ranks):
            arrived = self._comm.receive(tag)
            if arrived is None:
                if time.monotonic() > deadline:
                    missing = ", ".join(str(rank) for rank in ranks if rank not in answers)
                    raise cpp_store.DeadlineExceeded(
                        f"rank {missing} did not answer a prefix query in {self._timeout:g} s"
                    )
                self._comm.wait_a_little(pause)
                continue
            reply, sender = arrived
            answer = decode_reply(reply)
            if isinstance(answer, Exception):
                failure = failure or answer
            answers[sender] = answer
        for send in sends:
            self._comm.wait(send)
        if failure is not None:
            raise failure
        return [answers[rank] for rank in ranks]

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

    # -- sequence numbers ------------------------------------------------------------------------

    def _tick(self) -> int:
        with self._clock_lock:
            self._clock = max(self._clock + 1, time.time_ns())
            return self._clock

    def _witness(self, sequence: int) -> None:
        with self._clock_lock:
            self._clock = max(self._clock, sequence)

    def _number_all(self, count: int, sequences: Sequence[int] | None) -> list[int]:
        mine = np.array([count, self._clock], dtype=np.int64)
        every = self._comm.allgather(mine)
        if sequences is not None:
            return [int(number) for number in sequences]
        first = int(every[:, 1].max()) + 1 + int(every[: self.rank, 0].sum())
        self._witness(int(every[:, 1].max() + every[:, 0].sum()))
        return list(range(first, first + count))

    # -- what collective calls have in common ----------------------------------------------------

    def _rounds(self, count: int) -> int:
        most = int(self._comm.allgather(np.array([count], dtype=np.int64)).max())
        return -(-most // _ROUND)

    def _gather(
        self, header: dict[str, Any], tables: Sequence[LayerTable]
    ) -> list[memoryview | bytes]:
        if self.size == 1:
            return [b""]  # nobody else reads it
        return self._comm.allgather_bytes(encode_batch(header, tables))

    def _raise_all(self, errors: _Errors) -> None:
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
