"""How fast do N clients put models of 1 GB of which a part is inherited?

``python benchmarks/bench_increments.py [--json FILE] [--quick]``: client processes of one server
put children of models that they put before, all at the same time; 25, 50, 75 or 100 per cent of the
bytes are a child's own, the rest is inherited by reference. `store` goes through shared memory,
`store_tcp` over libfabric. Files on tmpfs (safetensors, whole copies, as they know no inheritance)
and Redis (a key a tensor, only a child's own, through a Unix socket) keep the same children;
`memcpy` copies a child's own tensors between warm arrays of the client, which is this machine's
limit. The store's memory was touched before, as in a server that has been up for a while; the pages
of a new file are new each time.

Keys: ``WAY_gb_per_s_OWNpct_CLIENTSc``: bytes of the children, inherited ones included, a second of
all clients together, so that what is not moved counts as speed; medians over turns.
``store_over_PEER_…`` and ``store_over_memcpy_…`` are ratios of these.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import figures
import store_increments
from client_processes import Clients, reached_by_memory, redis_socket, soon
from methods import MIB
from store_servers import server

QUESTION = figures.Question(
    compares="the store, through shared memory and over libfabric, with safetensors files on tmpfs "
    "and Redis",
    seconds=300,
    quick_seconds=3,
    plots={
        "GB/s of two clients, against the per cent that is a child's own": r"(?P<series>.+)"
        r"_gb_per_s_(?P<x>\d+)pct_2c",
    },
)
TARGETS: figures.Targets = {
    "store_over_files_25pct_2c": ("at least", 4),
    "store_over_files_100pct_2c": ("at least", 1),
    "store_over_redis_50pct_2c": ("at least", 2),
    "store_over_memcpy_100pct_2c": ("at least", 0.5),
}
SHARES = (25, 50, 75, 100)  # per cent that are a child's own


def main() -> int:
    parser = figures.parser(__doc__, "models of 16 MB, two clients, one turn")
    parser.add_argument("--megabytes", type=int, help="of a model (default: 1024)")
    given = parser.parse_args()
    size = (given.megabytes or (16 if given.quick else 1024)) * MIB
    clients = (2,) if given.quick else (1, 2, 4)
    shares = (25, 100) if given.quick else SHARES
    turns = 1 if given.quick else 5
    results: dict[str, float] = {"model_bytes": size}
    with opened(max(clients), size) as ways:
        for together in clients:
            for share in shares:
                compare(ways, together, share, turns, results)
    figures.finish("increments", results, TARGETS, given)
    return 0


class Way:
    """Clients, each a process, that put models in one way. Warm: each has put its parent."""

    def __init__(self, name: str, where: str, count: int, size: int, stack: ExitStack) -> None:
        self.name = name
        script = store_increments.__file__
        self._clients = Clients(script, [name, where, str(size)], count, stack)
        for number in range(count):
            self._clients.hear(number)

    def turn(self, together: int, share: int) -> float:
        """Let so many clients put a child each; return GB/s, from the first to the last."""
        start = soon()
        spans = [json.loads(line) for line in self._clients.tell(f"{start} {share}", together)]
        nbytes = sum(span["bytes"] for span in spans)
        return float(nbytes / (max(span["end"] for span in spans) - start) / 1e9)


@contextmanager
def opened(count: int, size: int) -> Iterator[list[Way]]:
    """Yield the ways that can be had here, each with so many clients."""
    with ExitStack() as stack:
        # A parent and a child of each client, for both ways through which the server is reached.
        started = stack.enter_context(server(5 * count * size, touched=2 * count * size))
        places = {"store_tcp": started.address, "memcpy": "memory"}
        if reached_by_memory(started.address):
            places = {"store": started.address, **places}
        tmpfs = Path("/dev/shm")
        if tmpfs.is_dir():
            places["files"] = stack.enter_context(tempfile.TemporaryDirectory(dir=tmpfs))
        else:
            figures.lacks("files", "a tmpfs at /dev/shm")
        if socket := stack.enter_context(redis_socket()):
            places["redis"] = socket
        yield [Way(name, where, count, size, stack) for name, where in places.items()]


def compare(
    ways: Sequence[Way], together: int, share: int, turns: int, results: dict[str, float]
) -> None:
    """Let the ways take turns; the first turn warms up."""
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    for repetition in range(turns + 1):
        for way in figures.in_turn(ways, repetition):
            rate = way.turn(together, share)
            if repetition:
                rates[way.name].append(rate)
    key = f"{share}pct_{together}c"
    for name, measured in rates.items():
        results[f"{name}_gb_per_s_{key}"] = statistics.median(measured)
    for name in rates.keys() - {"store", "store_tcp"}:
        for ours in ("store", "store_tcp"):
            if ours in rates:
                peer = results[f"{name}_gb_per_s_{key}"]
                results[f"{ours}_over_{name}_{key}"] = results[f"{ours}_gb_per_s_{key}"] / peer


if __name__ == "__main__":
    sys.exit(main())
