"""One client of ``bench_increments.py``: puts children of its model, when it is told to.

Run as ``store_increments.py WAY WHERE BYTES NUMBER``; puts the parent, says ``ready``, and takes
lines of ``START SHARE`` on standard input: when to begin, and how many per cent of the child's
bytes are its own.
"""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client_processes import wait_for
from store_servers import SHARED_MEMORY, Tensors, connect, copy, empty_like, tensors_of

import cpp_store

LAYERS = 64


class Keeper(ABC):
    """Keeps a parent, where children refer to it, and one child at a time."""

    def keep_parent(self, tensors: Tensors) -> None:  # noqa: B027 - most copy or know its keys
        """Keep what children will inherit from."""

    @abstractmethod
    def put(self, model: str, tensors: Tensors, own: Sequence[str]) -> None:
        """Keep a model, of whose layers the first ones are the parent's and `own` are new."""

    @abstractmethod
    def forget(self, model: str, own: Sequence[str]) -> None:
        """Drop a child. Not timed."""


class StoreKeeper(Keeper):
    """The store: what is not a child's own is a reference."""

    def __init__(self, way: str, where: str, number: str) -> None:
        store = connect(where, SHARED_MEMORY if way == "store" else "ofi")
        assert store is not None
        self._store, self._namespace = store, f"{way}-{number}"

    def keep_parent(self, tensors: Tensors) -> None:
        table = self._table(list(tensors), tensors)
        name = f"{self._namespace}-parent"
        self._store.put(name, tensors, table=table, namespace=self._namespace)

    def put(self, model: str, tensors: Tensors, own: Sequence[str]) -> None:
        names = [f"{name}-{model}" if name in own else name for name in tensors]
        new = {f"{name}-{model}": tensors[name] for name in own}
        table = self._table(names, tensors)
        called = f"{self._namespace}-{model}"
        if len(own) == len(tensors):
            self._store.put(called, new, table=table, namespace=self._namespace)
            return
        with self._store.best_match(table, namespace=self._namespace, lease=60) as match:
            inherited = names[: match.layers]
            assert len(inherited) + len(own) == len(names)
            self._store.put(
                called,
                new,
                table=table,
                namespace=self._namespace,
                inherited=dict.fromkeys(inherited, match),
            )

    @staticmethod
    def _table(names: Sequence[str], tensors: Tensors) -> cpp_store.LayerTable:
        """Return a chain of layers, so that a prefix is the first of them."""
        requires = [[position - 1] if position else [] for position in range(len(names))]
        nbytes = [tensor.nbytes for (tensor,) in tensors.values()]
        return cpp_store.LayerTable(names, requires, nbytes)

    def forget(self, model: str, own: Sequence[str]) -> None:
        self._store.retire(f"{self._namespace}-{model}")


class FileKeeper(Keeper):
    """A safetensors file for each model, whole."""

    def __init__(self, directory: str, number: str) -> None:
        from safetensors.numpy import save_file

        self._save, self._directory, self._number = save_file, Path(directory), number

    def put(self, model: str, tensors: Tensors, own: Sequence[str]) -> None:
        self._save({name: arrays[0] for name, arrays in tensors.items()}, self._path(model))

    def forget(self, model: str, own: Sequence[str]) -> None:
        self._path(model).unlink()

    def _path(self, model: str) -> Path:
        return self._directory / f"{self._number}-{model}.safetensors"


class RedisKeeper(Keeper):
    """A key for each tensor; a child's others are its parent's keys."""

    def __init__(self, socket: str, number: str) -> None:
        import redis

        self._redis: Any = redis.Redis(unix_socket_path=socket)
        self._number = number

    def put(self, model: str, tensors: Tensors, own: Sequence[str]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for name in own:
            pipeline.set(self._key(model, name), memoryview(tensors[name][0]).cast("B"))
        pipeline.execute()

    def forget(self, model: str, own: Sequence[str]) -> None:
        self._redis.delete(*(self._key(model, name) for name in own))

    def _key(self, model: str, name: str) -> str:
        return f"{self._number}:{model}:{name}"


class Memcpy(Keeper):
    """Copies between arrays, both warm."""

    def __init__(self, tensors: Tensors) -> None:
        self._target = empty_like(tensors)

    def put(self, model: str, tensors: Tensors, own: Sequence[str]) -> None:
        copy(tensors, {name: self._target[name] for name in own})

    def forget(self, model: str, own: Sequence[str]) -> None:
        pass


def main(way: str, where: str, nbytes: str, number: str) -> None:
    tensors = tensors_of(int(nbytes), LAYERS, seed=int(number))
    names = list(tensors)
    keeper: Keeper
    if way == "files":
        keeper = FileKeeper(where, number)
    elif way == "redis":
        keeper = RedisKeeper(where, number)
    elif way == "memcpy":
        keeper = Memcpy(tensors)
    else:
        keeper = StoreKeeper(way, where, number)
    keeper.keep_parent(tensors)
    print("ready", flush=True)
    for count, line in enumerate(sys.stdin):
        start, share = line.split()
        own = names[len(names) - len(names) * int(share) // 100 :]
        wait_for(float(start))
        keeper.put(f"child{count}", tensors, own)
        end = time.monotonic()
        keeper.forget(f"child{count}", own)
        total = sum(tensor.nbytes for (tensor,) in tensors.values())
        print(json.dumps({"end": end, "bytes": total}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
