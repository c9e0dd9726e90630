"""Whole copies in a Redis server: the baseline of the literature. `REDIS_URL` says where it is.

A model is three entries, written and removed in one transaction: its tensors, a hash of their own
by layer; a manifest; and, by its id, the token that names the two. Each process finds the models of
the others by the tokens that are new to it. docs/formats.md has the fields.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes  # noqa: F401 - makes NumPy know bfloat16 and float8 by name
import numpy as np
import numpy.typing as npt

import cpp_store
from cpp_store import extras
from graph_meta import LayerGraph
from transfer_nas.errors import InputError, TransferError, TransferUnavailable
from transfer_nas.transfer._base import Inheritance, Tensors, TransferMethod
from transfer_nas.transfer._copies import (
    best_match,
    describe,
    graph_of,
    table_of,
    version_of,
    whole_copy,
)

_CONNECT_TIMEOUT = 5.0
_TIMEOUT = 60.0
_ALIGNMENT = 64

# Takes away the model of an id, if there is one.
_REMOVE = """
local token = redis.call('HGET', KEYS[1], ARGV[1])
if token then
    redis.call('HDEL', KEYS[1], ARGV[1])
    redis.call('HDEL', KEYS[2], token)
    redis.call('DEL', ARGV[2] .. token)
end
"""


class RedisTransfer(TransferMethod):
    """One hash for each model, with all its layers.

    Parameters
    ----------
    namespace
        Models of other namespaces on the server are left alone.
    url
        The server, as ``redis://host:6379/0`` or ``unix:///path/of/socket``.

    Raises
    ------
    InputError
        The package ``redis`` is missing, or this is no address of a server.
    """

    name: ClassVar[str] = "redis"

    def __init__(self, namespace: str, url: str) -> None:
        try:
            import redis
        except ImportError as error:
            raise InputError(
                f"transfer method redis needs the package redis: {extras.install('redis')}"
            ) from error
        try:
            self._client: Any = redis.Redis.from_url(
                url, socket_connect_timeout=_CONNECT_TIMEOUT, socket_timeout=_TIMEOUT
            )
        except ValueError as error:
            raise InputError(f"REDIS_URL: {url!r}: {error}") from error
        prefix = f"transfer-nas:1:{namespace}"
        self._tokens_key = f"{prefix}:tokens"
        self._manifests_key = f"{prefix}:manifests"
        self._tensors_prefix = f"{prefix}:tensors:"
        self._lock = threading.Lock()  # guards what follows: what this process knows of the models
        self._index = cpp_store.PrefixIndex()  # by token
        self._known: dict[str, _Manifest] = {}

    @classmethod
    def create(
        cls, namespace: str, *, directory: Path | None = None, store: cpp_store.Store | None = None
    ) -> RedisTransfer:
        """Make one; it needs a server that answers at `REDIS_URL`."""
        url = os.environ.get("REDIS_URL", "")
        if not url:
            raise InputError(
                "transfer method redis needs a server: set REDIS_URL, as redis://host:6379/0"
            )
        method = cls(namespace, url)
        try:
            with _failures():
                method._client.ping()
        except TransferError as error:
            raise InputError(f"REDIS_URL: {url}: {error}") from error
        return method

    def best_match(self, graph: LayerGraph, only: str = "") -> RedisInheritance | None:
        """Find the best match among the models that are there now, and fetch what is shared."""
        with self._lock:
            self._scan()
            while True:
                one = self._one(only) if only else None
                if only and one is None:
                    return None
                match = best_match(self._index, graph, "", one)
                if match is None:
                    return None
                manifest = self._known[match.model]
                layers = tuple(graph.names[position] for position in match.positions)
                wanted = [graph.names[p] for p in match.positions if graph.table.nbytes[p] > 0]
                # At once: nothing keeps a model that is retired.
                with _failures():
                    packed = self._client.hmget(self._tensors_prefix + match.model, wanted)
                if None in packed:
                    self._forget(match.model)
                    continue
                tensors = {layer: _unpack(each) for layer, each in zip(wanted, packed, strict=True)}
                return RedisInheritance(manifest, match, layers, tensors)

    def versions(self) -> set[object]:
        """Look at the manifests that Redis names first."""
        with _failures():
            _, manifests = self._client.hscan(self._manifests_key, count=16)
        found: set[object] = set()
        for text in manifests.values():
            with suppress(ValueError):  # `best_match` says so
                found.add(version_of(json.loads(text)))
        return found

    def whole(self, model: str) -> tuple[LayerGraph, Tensors] | None:
        """Fetch a model."""
        with _failures():
            token = self._client.hget(self._tokens_key, model)
            if token is None:
                return None
            pipeline = self._client.pipeline()
            pipeline.hget(self._manifests_key, token)
            pipeline.hgetall(self._tensors_prefix + token.decode())
            manifest, packed = pipeline.execute()
        if manifest is None:  # retired in between
            return None
        return graph_of(json.loads(manifest)), {
            layer.decode(): _unpack(each) for layer, each in packed.items()
        }

    def put(
        self,
        model: str,
        graph: LayerGraph,
        tensors: Tensors,
        *,
        score: float,
        parent: str = "",
        inheritance: Inheritance | None = None,
        inherited: Collection[str] = (),
    ) -> int:
        """Keep a whole copy, inherited layers included."""
        if not model:
            raise ValueError("a model's id must not be empty")
        whole = whole_copy(tensors, inheritance, inherited, RedisInheritance)
        token = uuid.uuid4().hex
        manifest = describe(model, graph, score=score, parent=parent)
        packed = {layer: _pack(arrays) for layer, arrays in whole.items()}
        pipeline = self._client.pipeline()  # a transaction
        self._remove(pipeline, model)
        if packed:
            pipeline.hset(self._tensors_prefix + token, mapping=packed)
        pipeline.hset(self._manifests_key, token, json.dumps(manifest))
        pipeline.hset(self._tokens_key, model, token)
        with _failures():
            pipeline.execute()
        return sum(array.nbytes for arrays in whole.values() for array in arrays)

    def retire(self, models: Iterable[str]) -> None:
        """Remove models."""
        pipeline = self._client.pipeline()
        for model in models:
            self._remove(pipeline, model)
        with _failures():
            pipeline.execute()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _remove(self, pipeline: Any, model: str) -> None:
        keys = (self._tokens_key, self._manifests_key)
        pipeline.eval(_REMOVE, len(keys), *keys, model, self._tensors_prefix)

    def _one(self, model: str) -> tuple[str, cpp_store.LayerTable] | None:
        """Return token and layers of a model; None if it is not there."""
        found = (token for token, manifest in self._known.items() if manifest.model == model)
        token = next(found, None)
        return None if token is None else (token, self._known[token].table)

    def _scan(self) -> None:
        """Take note of models that came or went since the last scan."""
        with _failures():
            present = {token.decode() for token in self._client.hvals(self._tokens_key)}
            fresh = sorted(present - self._known.keys())
            texts = self._client.hmget(self._manifests_key, fresh) if fresh else []
        for token in self._known.keys() - present:
            self._forget(token)
        for token, text in zip(fresh, texts, strict=True):
            if text is None:  # retired in between
                continue
            manifest = self._known[token] = _Manifest.read(text)
            self._index.add(
                token, manifest.table, score=manifest.score, sequence=manifest.created_ns
            )

    def _forget(self, token: str) -> None:
        del self._known[token]
        self._index.remove(token)


class RedisInheritance(Inheritance):
    """Tensors that were fetched with the match."""

    def __init__(
        self,
        manifest: _Manifest,
        match: cpp_store.Match,
        layers: tuple[str, ...],
        tensors: Tensors,
    ) -> None:
        self.ancestor = manifest.model
        self.score = manifest.score
        self.layers = layers
        self.nbytes = match.bytes
        self._tensors = tensors

    def read(self) -> Tensors:
        """Return what was fetched."""
        return self._tensors

    def close(self) -> None:
        """Let go of it."""
        self._tensors = {}


@dataclass(frozen=True, slots=True)
class _Manifest:
    """What a process keeps of a model."""

    model: str
    score: float
    created_ns: int
    table: cpp_store.LayerTable

    @classmethod
    def read(cls, text: bytes) -> _Manifest:
        try:
            fields = json.loads(text)
            return cls(
                model=str(fields["model"]),
                score=float(fields["score"]),
                created_ns=int(fields["created_ns"]),
                table=table_of(fields),
            )
        except (ValueError, LookupError, TypeError) as error:
            raise TransferError(f"Redis holds a manifest that is none: {error}") from error


@contextmanager
def _failures() -> Iterator[None]:
    """Turn what Redis raises into what `TransferMethod` promises."""
    import redis

    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise TransferUnavailable(f"Redis does not answer: {error}") from error
    except redis.RedisError as error:
        raise TransferError(f"Redis: {error}") from error


def _pack(tensors: Iterable[npt.NDArray[np.generic]]) -> bytes:
    """Return a line of JSON, dtypes and shapes, and the bytes, each tensor's aligned."""
    arrays = list(tensors)
    head = json.dumps([[array.dtype.name, array.shape] for array in arrays]).encode() + b"\n"
    packed = bytearray(head)
    for array in arrays:
        packed += b"\0" * (-len(packed) % _ALIGNMENT)
        packed += array.tobytes()
    return bytes(packed)


def _unpack(packed: bytes) -> list[npt.NDArray[np.generic]]:
    end = packed.index(b"\n") + 1
    tensors = []
    for dtype_name, shape in json.loads(packed[:end]):
        dtype = np.dtype(dtype_name)
        count = int(np.prod(shape, dtype=np.int64))
        end += -end % _ALIGNMENT
        # Read-only, as bytes are.
        tensors.append(np.frombuffer(packed, dtype, count, end).reshape(shape))
        end += count * dtype.itemsize
    return tensors
