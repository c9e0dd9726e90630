"""One client of ``bench_matches.py``: asks a server for best matches, as fast as it answers.

Run as ``store_matches.py WAY WHERE NUMBER``; takes a line for each thing to do on standard input:
``questions FILE``, ``answers``, ``ask START SPAN``.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client_processes import wait_for
from store_servers import SHARED_MEMORY, connect

from cpp_store import LayerTable, Store

Answer = tuple[int, int]
"""Position of the model, -1 for none; how many layers it shares."""


class Asker(ABC):
    """Asks one server in one way."""

    @abstractmethod
    def store(self, tables: Sequence[LayerTable], first: int) -> None:
        """Keep models named after their position."""

    @abstractmethod
    def ask(self, table: LayerTable) -> Answer:
        """Return the best match; of equal ones the newest."""


class StoreAsker(Asker):
    """Asks the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def store(self, tables: Sequence[LayerTable], first: int) -> None:
        for number, table in enumerate(tables, first):
            self._store.put(str(number), {}, table=table)

    def ask(self, table: LayerTable) -> Answer:
        match = self._store.best_match(table)
        return (int(match.model), match.layers) if match else (-1, 0)


class RedisAsker(Asker):
    """Asks Redis for the model that is in most of the sets of a question's layers.

    All ancestors of a shared layer are shared, so counting common layers is enough. Equal counts
    are ordered by name, so names are numbers of one length: the last one is the newest.
    """

    def __init__(self, socket: str, number: int) -> None:
        import redis

        self._redis: Any = redis.Redis(unix_socket_path=socket)
        self._union = f"union:{number}"

    def store(self, tables: Sequence[LayerTable], first: int) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for number, table in enumerate(tables, first):
            for name in table.names:
                pipeline.zadd(name, {f"{number:08}": 1})
            if number % 1000 == 999:
                pipeline.execute()
        pipeline.execute()

    def ask(self, table: LayerTable) -> Answer:
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.zunionstore(self._union, table.names)
        pipeline.zrevrange(self._union, 0, 0, withscores=True)
        best = pipeline.execute()[1]
        return (int(best[0][0]), int(best[0][1])) if best else (-1, 0)


@contextmanager
def opened(way: str, where: str, number: int = 0) -> Iterator[Asker]:
    """Yield an asker: `store`, `store_tcp` at an address, or `redis` at a Unix socket."""
    if way == "redis":
        yield RedisAsker(where, number)
        return
    store = connect(where, SHARED_MEMORY if way == "store" else "ofi")
    assert store is not None
    with store:
        yield StoreAsker(store)


def _ask_for(asker: Asker, tables: Sequence[LayerTable], start: float, span: float) -> list[float]:
    """Return the seconds of each answer, from one moment on for `span` seconds."""
    wait_for(start)
    taken: list[float] = []
    before = time.monotonic()
    end = before + span
    while before < end:
        asker.ask(tables[len(taken) % len(tables)])
        now = time.monotonic()
        taken.append(now - before)
        before = now
    return taken


def main(way: str, where: str, number: str) -> None:
    tables: list[LayerTable] = []
    with opened(way, where, int(number)) as asker:
        for line in sys.stdin:
            what, *rest = line.split(" ")
            if what == "questions":
                texts = json.loads(Path(rest[0].strip()).read_text())
                tables = [LayerTable.decode(bytes.fromhex(text)) for text in texts]
                # Not all clients begin with the same question.
                tables = [*tables[7 * int(number) :], *tables[: 7 * int(number)]]
                print("ready", flush=True)
            elif what.strip() == "answers":
                print(json.dumps([asker.ask(table) for table in tables]), flush=True)
            else:
                taken = _ask_for(asker, tables, float(rest[0]), float(rest[1]))
                print(json.dumps([len(taken) / sum(taken), statistics.median(taken)]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
