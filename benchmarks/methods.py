"""Ways to keep a model: in the store, in Redis, and in files of four formats.

What `writing.py` times for ``bench_writes*.py``, and ``save_bench.py`` and ``load_single.py``. A
model is layers of named tensors, as the store has them; every method gives them back bit by bit.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures
import numpy as np
import numpy.typing as npt
from mpi4py import MPI

import cpp_store

MIB = 1 << 20

Tensors = dict[str, list[npt.NDArray[np.float32]]]
"""Name of a layer -> its tensors."""


@dataclass(frozen=True)
class Places:
    """Where the methods keep what they are given; the same in all ranks of a host.

    Attributes
    ----------
    directory
        Of the files.
    store
        Addresses of the store's servers.
    redis
        Unix socket of the Redis server; empty if there is none.
    """

    directory: Path
    store: str
    redis: str


class Method(ABC):
    """One way to keep models, opened by one rank.

    Parameters
    ----------
    places
        Where.
    sync
        Whether `write` returns only when the medium has the bytes: ``fsync`` for files. The store
        keeps everything in memory; Redis is told to sync when it is started.
    """

    name: str

    def __init__(self, places: Places, *, sync: bool = False) -> None:
        self.directory, self.sync = places.directory, sync

    @abstractmethod
    def write(self, model: str, tensors: Tensors) -> None:
        """Keep a model, whole when this returns."""

    @abstractmethod
    def read_into(self, model: str, buffers: Tensors) -> None:
        """Copy the tensors of those layers into the caller's arrays."""

    @abstractmethod
    def remove(self, model: str) -> None:
        """Forget a model."""

    @abstractmethod
    def nbytes(self, model: str) -> int:
        """Return how many bytes a model takes where it is kept."""

    def close(self) -> None:  # noqa: B027 - most have nothing open
        """Let go of connections."""


class StoreMethod(Method):
    """The store: on servers, through whatever reaches them fastest."""

    name = "store"

    def __init__(self, places: Places, *, sync: bool = False) -> None:
        super().__init__(places, sync=sync)
        self.store = cpp_store.connect(places.store)

    def write(self, model: str, tensors: Tensors) -> None:
        """Put it."""
        self.store.put(model, tensors)

    def read_into(self, model: str, buffers: Tensors) -> None:
        """Read into the arrays."""
        self.store.read_into(model, buffers)

    def remove(self, model: str) -> None:
        """Retire it."""
        self.store.retire(model)

    def nbytes(self, model: str) -> int:
        """Return the bytes of its tensors, as the store counts them."""
        return sum(tensor.nbytes for layer in self.store.read(model).values() for tensor in layer)

    def close(self) -> None:
        """Close the connection."""
        self.store.close()


class RedisMethod(Method):
    """A Redis server: a hash for each model, a field for each tensor, one round trip a call."""

    name = "redis"

    def __init__(self, places: Places, *, sync: bool = False) -> None:
        super().__init__(places, sync=sync)
        import redis

        self._redis = redis.Redis(unix_socket_path=places.redis)

    def write(self, model: str, tensors: Tensors) -> None:
        """Set the fields, a command each, in one go: six times as fast as by one command."""
        pipeline = self._redis.pipeline(transaction=False)
        for key, array in _keyed(tensors):
            value: Any = memoryview(array).cast("B")
            pipeline.hset(model, key, value)
        pipeline.execute()

    def read_into(self, model: str, buffers: Tensors) -> None:
        """Get the fields in one go, and copy."""
        keyed = list(_keyed(buffers))
        pipeline = self._redis.pipeline(transaction=False)
        for key, _ in keyed:
            pipeline.hget(model, key)
        for (_, array), value in zip(keyed, pipeline.execute(), strict=True):
            np.copyto(array, np.frombuffer(value, array.dtype).reshape(array.shape))

    def remove(self, model: str) -> None:
        """Delete it."""
        self._redis.delete(model)

    def nbytes(self, model: str) -> int:
        """Return what Redis says that the model takes in memory."""
        return int(self._redis.memory_usage(model, samples=0) or 0)

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()


class _File(Method):
    """One file for each model."""

    ending: str

    def path(self, model: str) -> Path:
        return self.directory / f"{model}{self.ending}"

    def write(self, model: str, tensors: Tensors) -> None:
        """Write the file, and sync it if that was asked for."""
        self._write(self.path(model), tensors)
        if self.sync:
            for path, flags in ((self.path(model), os.O_RDWR), (self.directory, os.O_RDONLY)):
                descriptor = os.open(path, flags)
                os.fsync(descriptor)
                os.close(descriptor)

    @abstractmethod
    def _write(self, path: Path, tensors: Tensors) -> None: ...

    def remove(self, model: str) -> None:
        """Remove the file."""
        self.path(model).unlink()

    def nbytes(self, model: str) -> int:
        """Return the file's size."""
        return self.path(model).stat().st_size


class HDF5Method(_File):
    """HDF5: a group for each layer, a data set for each tensor."""

    name, ending = "hdf5", ".h5"

    def __init__(self, places: Places, *, sync: bool = False) -> None:
        super().__init__(places, sync=sync)
        import h5py

        self._open = h5py.File

    def _write(self, path: Path, tensors: Tensors) -> None:
        with self._open(path, "w") as file:
            for key, array in _keyed(tensors):
                file.create_dataset(key, data=array)

    def read_into(self, model: str, buffers: Tensors) -> None:
        """Read each data set straight into its array."""
        with self._open(self.path(model), "r", locking=False) as file:
            for key, array in _keyed(buffers):
                file[key].read_direct(array)


class SafetensorsMethod(_File):
    """safetensors: a header and the bytes, mapped when read."""

    name, ending = "safetensors", ".safetensors"

    def __init__(self, places: Places, *, sync: bool = False) -> None:
        super().__init__(places, sync=sync)
        import safetensors
        import safetensors.numpy

        self._save, self._open = safetensors.numpy.save_file, safetensors.safe_open

    def _write(self, path: Path, tensors: Tensors) -> None:
        self._save(dict(_keyed(tensors)), path)

    def read_into(self, model: str, buffers: Tensors) -> None:
        """Get the tensors, and copy."""
        with self._open(self.path(model), framework="numpy") as file:
            for key, array in _keyed(buffers):
                np.copyto(array, file.get_tensor(key))


class NpzMethod(_File):
    """NumPy's ``.npz``: a ZIP archive, not compressed."""

    name, ending = "npz", ".npz"

    def _write(self, path: Path, tensors: Tensors) -> None:
        named: dict[str, Any] = dict(_keyed(tensors))
        np.savez(path, **named)

    def read_into(self, model: str, buffers: Tensors) -> None:
        """Read the members, and copy."""
        with np.load(self.path(model)) as archive:
            for key, array in _keyed(buffers):
                np.copyto(array, archive[key])


class RawMethod(_File):
    """The bytes one after the other, and nothing else: what the file system itself can do."""

    name, ending = "raw", ".bin"

    def __init__(self, places: Places, *, sync: bool = False) -> None:
        super().__init__(places, sync=sync)
        self._offsets: dict[str, dict[str, int]] = {}  # of models that this rank wrote

    def _write(self, path: Path, tensors: Tensors) -> None:
        offsets: dict[str, int] = {}
        with path.open("wb", buffering=0) as file:
            for key, array in _keyed(tensors):
                offsets[key] = file.tell()
                file.write(memoryview(array).cast("B"))
        self._offsets[path.stem] = offsets

    def read_into(self, model: str, buffers: Tensors) -> None:
        """Read each tensor where it is, straight into its array."""
        with self.path(model).open("rb", buffering=0) as file:
            for key, array in _keyed(buffers):
                file.seek(self._offsets[model][key])
                file.readinto(memoryview(array).cast("B"))


METHODS: Sequence[type[Method]] = (
    StoreMethod,
    RedisMethod,
    HDF5Method,
    SafetensorsMethod,
    NpzMethod,
    RawMethod,
)


@contextlib.contextmanager
def opened_places(
    world: MPI.Comm, parent: Path, *, redis_flags: Sequence[str], memory: int
) -> Iterator[Places]:
    """Start what the methods need, in rank 0; a directory of its own under `parent` and servers.

    Parameters
    ----------
    world
        The ranks; they may be on several hosts if MODEL_SERVERS names the store's servers.
    parent
        Where files go.
    redis_flags
        For redis-server, besides where it listens: what it writes to disk, and when.
    memory
        Bytes that all models at a time take.
    """
    one_host = world.Split_type(MPI.COMM_TYPE_SHARED).size == world.size
    if not one_host and "MODEL_SERVERS" not in os.environ:
        raise SystemExit("ranks on several hosts need servers of the store: set MODEL_SERVERS")
    with contextlib.ExitStack() as stack:
        places = None
        if world.rank == 0:
            parent.mkdir(parents=True, exist_ok=True)
            directory = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=parent))
            )
            address = os.environ.get("MODEL_SERVERS") or stack.enter_context(store_server(memory))
            redis = ""
            if one_host:
                redis = stack.enter_context(redis_server(directory, redis_flags))
            else:
                figures.lacks("redis", "measured only where all ranks are on one host")
            places = Places(directory, address, redis)
        places = world.bcast(places)
        yield places
        world.Barrier()


def in_shared_memory(places: Places) -> int:
    """Return 1 if this rank reaches all servers of the store through shared memory, else 0."""
    with cpp_store.connect(places.store) as store:
        return int(set(store.transport) == {"shm"})


@contextlib.contextmanager
def store_server(memory: int) -> Iterator[str]:
    """Run a server of the store in a process of its own; yield its address when it is warm."""
    code = """if True:
        import cpp_store, sys, time
        limit = int(sys.argv[1])
        with cpp_store.serve("ofi+tcp://127.0.0.1:0", memory=2 * limit) as server:
            # Pages are touched in the background, as in a server that has been up for a while.
            deadline = time.monotonic() + 20
            while server.store.stats()["memory_touched"] < limit and time.monotonic() < deadline:
                time.sleep(0.01)
            print(server.address, flush=True)
            sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", code, str(memory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(timeout=30)


@contextlib.contextmanager
def redis_server(directory: Path, flags: Sequence[str]) -> Iterator[str]:
    """Run a Redis server on a Unix socket, its fastest way on a host; yield the socket, or ""."""
    program = shutil.which("redis-server")
    if program is None or importlib.util.find_spec("redis") is None:
        figures.lacks("redis", "apt-get install redis-server, pip install redis hiredis")
        yield ""
        return
    # Not below `directory`: a socket's path is short, and not every file system has sockets.
    with tempfile.TemporaryDirectory(prefix="redis-") as place:
        socket = f"{place}/socket"
        command = [program, "--port", "0", "--unixsocket", socket, "--dir", str(directory)]
        with subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL) as process:
            try:
                deadline = time.monotonic() + 20
                while not Path(socket).exists():
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit(f"redis-server did not start: {' '.join(command)}")
                    time.sleep(0.01)
                yield socket
            finally:
                process.terminate()


def available(places: Places) -> list[type[Method]]:
    """Return the methods whose packages and servers are there; say what the others need."""
    found = []
    for method in METHODS:
        if method is RedisMethod and not places.redis:
            continue
        package = {"hdf5": "h5py", "safetensors": "safetensors"}.get(method.name)
        if package is None or figures.has(package):
            found.append(method)
    return found


def store_views(method: Method, model: str, layers: Sequence[str]) -> None:
    """Read layers from the store without copying them, where it is on the same host."""
    assert isinstance(method, StoreMethod)
    method.store.read(model, layers)


def chain(nbytes: int, layers: int, seed: int) -> Tensors:
    """Return layers of one tensor each, `nbytes` together."""
    rng = np.random.default_rng(seed)
    elements = max(1, nbytes // layers // 4)
    return {f"layer_{i}": [rng.random(elements, np.float32)] for i in range(layers)}


def of_shapes(shapes: Mapping[str, Sequence[tuple[int, ...]]], seed: int) -> Tensors:
    """Return random tensors of these shapes."""
    rng = np.random.default_rng(seed)
    return {name: [rng.random(each, np.float32) for each in of] for name, of in shapes.items()}


def empty_like(tensors: Tensors) -> Tensors:
    """Return arrays to read into, their pages touched."""
    return {name: [np.zeros_like(each) for each in of] for name, of in tensors.items()}


def total(tensors: Tensors) -> int:
    """Return the bytes of all tensors."""
    return sum(array.nbytes for _, array in _keyed(tensors))


def _keyed(tensors: Tensors) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Give each tensor a name of its own."""
    for layer, arrays in tensors.items():
        for number, array in enumerate(arrays):
            yield f"{layer}.{number}", array
