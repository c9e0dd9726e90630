"""Servers and tensors for the benchmarks of the store."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import cpp_store

KIB, MIB = 1 << 10, 1 << 20

Tensors = dict[str, list[npt.NDArray[np.float32]]]

SHARED_MEMORY = "shm"
"""What `Store.transport` says of a server that is reached through shared memory."""


@dataclass(frozen=True)
class ServerProcess:
    """A server, and the numbers that Linux keeps of its process."""

    address: str
    pid: int

    def cpu_seconds(self) -> float:
        """Return the processor time that all its threads have used so far."""
        fields = Path(f"/proc/{self.pid}/schedstat").parent.joinpath("task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in fields) / 1e9

    def resident_bytes(self) -> int:
        """Return the memory that it occupies, shared memory included."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1]) << 10
        raise OSError(f"Linux does not say what process {self.pid} occupies")


@contextlib.contextmanager
def server(
    memory: int, *, touched: int = 0, key: str = "", flags: Sequence[str] = ()
) -> Iterator[ServerProcess]:
    """Run ``cpp-store-server``; yield it when it has touched that many bytes of its pool."""
    command = [_program(), "--json", "--log-level", "error", "--memory", str(memory), *flags]
    environment = os.environ | {"CPP_STORE_KEY": key}  # an empty one is none
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            started = ServerProcess(ready["address"], process.pid)
            with cpp_store.connect(started.address, key=key) as store:
                wait_until(lambda: store.stats()["memory_touched"] >= touched)
            yield started
        finally:
            process.terminate()


def _program() -> str:
    """Return the server of this environment, or of a checkout's build, or the one in PATH."""
    built = Path(__file__).resolve().parents[1] / "build" / "dev" / "cpp_store"
    for folder in (Path(sys.executable).parent, built):
        if (folder / "cpp-store-server").exists():
            return str(folder / "cpp-store-server")
    found = shutil.which("cpp-store-server")
    if found is None:
        raise SystemExit("there is no cpp-store-server: pip install . first")
    return found


def wait_until(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait for something; say whether it came in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def connect(address: str, transport: str) -> cpp_store.Store | None:
    """Connect by shared memory or by libfabric; None if shared memory cannot be had here."""
    if transport != SHARED_MEMORY:
        return cpp_store.connect(address, same_host=False)
    store = cpp_store.connect(address)
    if store.transport != [SHARED_MEMORY]:
        store.close()
        return None
    return store


def tensors_of(total: int, count: int, seed: int = 0) -> Tensors:
    """Return `count` layers of one float32 tensor each, `total` bytes together."""
    rng = np.random.default_rng(seed)
    elements = max(1, total // count // 4)
    return {f"layer{i}": [rng.random(elements, dtype=np.float32)] for i in range(count)}


def empty_like(tensors: Tensors) -> Tensors:
    """Return arrays to copy into, their pages touched."""
    return {name: [np.zeros_like(array) for array in arrays] for name, arrays in tensors.items()}


def copy(source: Any, target: Tensors) -> None:
    """Copy all tensors with NumPy: what every way to keep bytes is measured against."""
    for name, arrays in target.items():
        for array, other in zip(arrays, source[name], strict=True):
            np.copyto(array, other)


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
