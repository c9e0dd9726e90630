"""Ways to keep the tensors of a model and to have them again, all measured alike.

A contender is given a model, writes it, reads it back into arrays that were written before, and,
where it can, looks at it without a copy. Those that need a library of their own, or that cannot
share a process with others, are in a process of their own (store_peers.py) and time themselves.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import figures
import numpy as np
from store_servers import MIB, Tensors, copy, empty_like, seconds, tensors_of, wait_until

import cpp_store

PEERS = Path(__file__).with_name("store_peers.py")


class Contender(ABC):
    """One way to keep a model. All times in seconds."""

    name: str
    largest = 1024 * MIB
    """Bytes of the largest model that it is measured with."""

    @abstractmethod
    def prepare(self, total: int, count: int) -> None:
        """Take the model that comes next: `count` tensors, `total` bytes together."""

    @abstractmethod
    def write(self) -> float:
        """Keep it; return how long that took."""

    @abstractmethod
    def read(self) -> float | None:
        """Copy it back into warm arrays; None where that is no question."""

    def view(self) -> float | None:
        """Look at it without a copy; None where that is impossible."""
        return None

    def forget(self) -> None:  # noqa: B027 - most write over it
        """Drop what was written. Not timed."""

    def close(self) -> None:  # noqa: B027 - most have nothing open
        """Let go of everything."""


class _Here(Contender):
    """One in this process: it shares the arrays with the others."""

    source: Tensors
    target: Tensors

    def prepare(self, total: int, count: int) -> None:
        if getattr(_Here, "size", None) != (total, count):
            _Here.source = {}  # before the new ones are made
            _Here.target = {}
            _Here.source = tensors_of(total, count)
            _Here.target = empty_like(_Here.source)
            _Here.size = (total, count)  # type: ignore[attr-defined]


class Memcpy(_Here):
    """NumPy's copy, tensor by tensor, both sides warm."""

    name = "memcpy"

    def write(self) -> float:
        return seconds(lambda: copy(self.source, self.target))

    def read(self) -> float:
        return self.write()


class StoreContender(_Here):
    """The store, in this process or on a server."""

    def __init__(self, name: str, store: cpp_store.Store) -> None:
        self.name, self.store = name, store

    def prepare(self, total: int, count: int) -> None:
        super().prepare(total, count)
        self.table = cpp_store.LayerTable(list(self.source))

    def write(self) -> float:
        return seconds(lambda: self.store.put(self.name, self.source, table=self.table))

    def read(self) -> float:
        return seconds(lambda: self.store.read_into(self.name, self.target))

    def view(self) -> float:
        return seconds(lambda: self.store.read(self.name))

    def forget(self) -> None:
        self.store.retire(self.name)

    def close(self) -> None:
        self.store.close()


class Stream(_Here):
    """One TCP stream over loopback, with the socket buffers that are fastest here."""

    name = "stream"

    def __init__(self) -> None:
        candidates = [0, 1 * MIB, 4 * MIB]
        times = []
        for buffers in candidates:
            self._open(buffers)
            self.prepare(64 * MIB, 1)
            times.append(min(self.write() + self.read() for _ in range(4)))
            self.close()
        self._open(candidates[times.index(min(times))])

    def _open(self, buffers: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PEERS), "stream", str(buffers)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._socket = socket.socket()
        set_buffers(self._socket, buffers)
        self._socket.connect(("127.0.0.1", int(self._process.stdout.readline())))

    def prepare(self, total: int, count: int) -> None:
        super().prepare(total, count)
        self._bytes = sum(each[0].nbytes for each in self.source.values())
        self._ask(b"p")

    def _ask(self, what: bytes) -> None:
        self._socket.sendall(what + self._bytes.to_bytes(8, "little"))
        if what == b"p":
            self._socket.recv(1)

    def write(self) -> float:
        def send() -> None:
            self._ask(b"w")
            for [array] in self.source.values():
                self._socket.sendall(memoryview(array).cast("B"))
            self._socket.recv(1)  # it has all of them

        return seconds(send)

    def read(self) -> float:
        def receive() -> None:
            self._ask(b"r")
            for [array] in self.target.values():
                receive_all(self._socket, memoryview(array).cast("B"))

        return seconds(receive)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(timeout=30)


def set_buffers(connection: socket.socket, size: int) -> None:
    """Set both buffers of a socket; 0 leaves them to Linux."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if size:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def receive_all(connection: socket.socket, into: memoryview) -> None:
    """Fill the buffer."""
    while into:
        received = connection.recv_into(into, len(into), socket.MSG_WAITALL)
        if not received:
            raise ConnectionError("the other side has gone")
        into = into[received:]


class Redis(_Here):
    """A Redis server over loopback TCP: SETs in one pipeline, one MGET; hiredis parses."""

    name = "redis"
    largest = 256 * MIB  # a value is at most 512 MB

    def __init__(self) -> None:
        import redis

        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        flags = ["--port", str(port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
        self._process = subprocess.Popen(
            [str(shutil.which("redis-server")), *flags], stdout=subprocess.DEVNULL
        )
        self._redis = redis.Redis(port=port)

        def answers() -> bool:
            with suppress(redis.ConnectionError):
                return bool(self._redis.ping())
            return False

        if not wait_until(answers):
            raise SystemExit("redis-server does not answer")

    def write(self) -> float:
        def send() -> None:
            pipeline = self._redis.pipeline(transaction=False)
            for name, [array] in self.source.items():
                pipeline.set(name, memoryview(array).cast("B"))  # type: ignore[arg-type]
            pipeline.execute()

        return seconds(send)

    def read(self) -> float:
        """Get values as bytes objects, which arrays can be views of."""

        def receive() -> None:
            values = self._redis.mget(list(self.source))
            assert isinstance(values, list)
            for value in values:
                np.frombuffer(value, np.float32)

        return seconds(receive)

    def forget(self) -> None:
        self._redis.flushall()

    def close(self) -> None:
        self._redis.close()
        self._process.terminate()
        self._process.wait(timeout=30)


class Safetensors(_Here):
    """A safetensors file, not synced: on tmpfs, or on a disk whose pages are cached."""

    def __init__(self, name: str, parent: Path) -> None:
        self.name = name
        self._directory = tempfile.TemporaryDirectory(prefix="bench-", dir=parent)
        self._file = Path(self._directory.name) / "model.safetensors"

    def write(self) -> float:
        from safetensors.numpy import save_file

        named = {name: arrays[0] for name, arrays in self.source.items()}
        return seconds(lambda: save_file(named, self._file))

    def read(self) -> float:
        from safetensors.numpy import load_file

        return seconds(lambda: load_file(self._file))

    def forget(self) -> None:
        self._file.unlink()

    def close(self) -> None:
        self._directory.cleanup()


class SharedMemory(_Here):
    """A block of multiprocessing.shared_memory for each model, made for it."""

    name = "mp_shm"

    def write(self) -> float:
        def fill() -> None:
            size = sum(arrays[0].nbytes for arrays in self.source.values())
            self._block = shared_memory.SharedMemory(create=True, size=size)
            copy(self.source, self._views(self._block))

        return seconds(fill)

    def read(self) -> float:
        def fetch() -> None:
            block = shared_memory.SharedMemory(self._block.name)
            views = self._views(block)
            copy(views, self.target)
            views.clear()
            block.close()

        return seconds(fetch)

    def view(self) -> float:
        opened = []

        def look() -> None:
            block = shared_memory.SharedMemory(self._block.name)
            opened.append((self._views(block), block))

        taken = seconds(look)
        views, block = opened.pop()
        views.clear()
        block.close()
        return taken

    def forget(self) -> None:
        self._block.close()
        self._block.unlink()

    def _views(self, block: shared_memory.SharedMemory) -> Tensors:
        views: Tensors = {}
        offset = 0
        for name, [array] in self.source.items():
            views[name] = [np.ndarray(array.shape, array.dtype, block.buf, offset)]
            offset += array.nbytes
        return views


class Elsewhere(Contender):
    """One in a process of its own, which times itself."""

    def __init__(self, name: str, largest: int) -> None:
        self.name, self.largest = name, largest
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, str(PEERS), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def started(self) -> str:
        """Wait until it is ready; return why it is not, or nothing."""
        try:
            return "" if self._answer() == "ready" else "it did not start"
        except ConnectionError as error:
            return str(error)

    def prepare(self, total: int, count: int) -> None:
        self._ask("prepare", total, count)

    def write(self) -> float:
        return float(self._ask("write"))

    def read(self) -> float | None:
        taken = self._ask("read")
        return None if taken is None else float(taken)

    def view(self) -> float | None:
        taken = self._ask("view")
        return None if taken is None else float(taken)

    def forget(self) -> None:
        self._ask("forget")

    def close(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=30)
        self._process.kill()
        self._errors.close()

    def _ask(self, *what: object) -> Any:
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines()
            raise ConnectionError(said[-1] if said else "it ended")
        return json.loads(line)


def open_peers(stack: ExitStack, directory: Path) -> list[Contender]:
    """Open whatever is installed; say what is missing."""
    sizes = {"ray": 1024 * MIB, "keras": 256 * MIB}
    slow = [Elsewhere(name, largest) for name, largest in sizes.items() if figures.has(name)]
    found: list[Contender] = [SharedMemory()]
    tmpfs = Path("/dev/shm")
    found += [Safetensors("safetensors_disk", directory)]
    if tmpfs.is_dir():
        found += [Safetensors("safetensors_tmpfs", tmpfs)]
    if shutil.which("redis-server") is None or importlib.util.find_spec("redis") is None:
        figures.lacks("redis", "apt-get install redis-server, pip install redis hiredis")
    else:
        found += [Redis()]
    for peer in slow:
        stack.callback(peer.close)
        why = peer.started()
        if why:
            figures.lacks(peer.name, why)
        else:
            found.append(peer)
    for each in found:
        if each not in slow:
            stack.callback(each.close)
    return found
