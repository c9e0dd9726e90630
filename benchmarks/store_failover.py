"""How soon a model can be read again after a server that kept it was killed.

For `bench_durability.py`, which takes the figure from :func:`measure`. Two servers keep each model;
one of them is killed with SIGKILL, and what is timed is the next read of a model that it kept,
bytes checked, by a client that had it open: over shared memory and over TCP in turn.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import time

import figures
import numpy as np
from store_servers import MIB, server

import cpp_store

TARGETS: figures.Targets = {"failover_s": ("at most", 2)}


def measure(repetitions: int = 3) -> dict[str, float]:
    """Kill servers and read on.

    Parameters
    ----------
    repetitions
        How often, for each way to reach the servers.

    Returns
    -------
    dict
        ``failover_s``: the longest read after a kill, in seconds, over TCP or shared memory; and
        the median of each way, ``failover_tcp_s`` and ``failover_shm_s``.
    """
    seconds: dict[str, list[float]] = {"tcp": [], "shm": []}
    for _ in range(repetitions):
        for way, taken in seconds.items():
            taken.append(_read_after_kill(same_host=way == "shm"))
    results = {f"failover_{way}_s": statistics.median(taken) for way, taken in seconds.items()}
    return {"failover_s": max(max(taken) for taken in seconds.values()), **results}


def _read_after_kill(*, same_host: bool) -> float:
    tensor = np.arange(MIB // 4, dtype=np.float32)
    with contextlib.ExitStack() as stack:
        group = [stack.enter_context(server(256 * MIB)) for _ in range(2)]
        addresses = [each.address for each in group]
        store = stack.enter_context(cpp_store.connect(addresses, replicas=2, same_host=same_host))
        models = [f"m{number}" for number in range(8)]  # some of which ask the first server first
        for model in models:
            store.put(model, {"layer": [tensor]})
        os.kill(group[0].pid, signal.SIGKILL)
        begun = time.perf_counter()
        for model in models:
            if not (store.read(model)["layer"][0] == tensor).all():
                raise RuntimeError(f"{model} has wrong bytes")
        return time.perf_counter() - begun
