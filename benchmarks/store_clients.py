"""Several client processes of one server at a time: how much do they read and write together?

Run as ``store_clients.py ADDRESS TRANSPORT NUMBER TOTAL COUNT`` it is one of them.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from contextlib import ExitStack

from store_servers import connect, empty_like, tensors_of

CLIENTS = (1, 2, 4)


def rates(
    address: str, transport: str, total: int, count: int, repetitions: int, span: float
) -> dict[str, float]:
    """Return GB/s of all clients together, by ``read_N`` and ``write_N``; medians.

    Parameters
    ----------
    address, transport
        Of the server, and how to reach it.
    total, count
        Bytes and tensors of a model. Each client writes its own, and reads it.
    repetitions
        How often each number of clients has its turn.
    span
        Seconds of a turn.
    """
    measured: dict[str, list[float]] = {}
    with ExitStack() as stack:
        clients = []
        for number in range(max(CLIENTS)):
            command = [
                sys.executable,
                __file__,
                address,
                transport,
                *map(str, (number, total, count)),
            ]
            client = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(client)
            stack.callback(client.stdin.close)  # type: ignore[union-attr]
            clients.append(client)
        for client in clients:
            assert client.stdout is not None and client.stdout.readline() == "ready\n"
        for _ in range(repetitions):
            for what in ("read", "write"):
                for together in CLIENTS:
                    rate = _turn(clients[:together], what, span)
                    measured.setdefault(f"{what}_{together}", []).append(rate)
    return {key: statistics.median(values) for key, values in measured.items()}


def _turn(clients: list[subprocess.Popen[str]], what: str, span: float) -> float:
    start = time.monotonic() + 0.02
    for client in clients:
        print(what, start, start + span, file=client.stdin, flush=True)
    answers = [client.stdout.readline() for client in clients if client.stdout]
    return sum(map(float, answers)) / 1e9


def _be_client(address: str, transport: str, number: str, total: int, count: int) -> None:
    store = connect(address, transport)
    assert store is not None
    source = tensors_of(total, count)
    target = empty_like(source)
    nbytes = sum(arrays[0].nbytes for arrays in source.values())
    mine = f"client{number}"
    store.put(mine, source)
    print("ready", flush=True)
    for line in sys.stdin:
        what, start, end = line.split()
        time.sleep(max(0.0, float(start) - time.monotonic()))
        begun = time.monotonic()
        done = 0
        while time.monotonic() < float(end):
            if what == "read":
                store.read_into(mine, target)
            else:
                store.retire(mine)
                store.put(mine, source)
            done += 1
        print(done * nbytes / (time.monotonic() - begun), flush=True)
    store.retire(mine)


if __name__ == "__main__":
    _be_client(*sys.argv[1:4], *map(int, sys.argv[4:]))  # type: ignore[arg-type]
