"""Processes that the benchmark of the store measures against: run by store_contenders.py.

``stream BUFFERS`` takes and sends bytes over TCP. ``ray`` and ``keras`` do what lines of JSON on
standard input ask for, and answer with the seconds that it took.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, Protocol

from store_contenders import receive_all, set_buffers
from store_servers import Tensors, copy, empty_like, seconds, tensors_of


def stream(buffers: int) -> None:
    """Be the other side of `store_contenders.Stream`."""
    with socket.socket() as server:
        set_buffers(server, buffers)
        server.bind(("127.0.0.1", 0))
        server.listen()
        print(server.getsockname()[1], flush=True)
        connection = server.accept()[0]
    memory = bytearray()
    while asked := connection.recv(9, socket.MSG_WAITALL):
        size = int.from_bytes(asked[1:], "little")
        if asked[:1] == b"p":
            memory = bytearray()
            memory = bytearray(b"\1") * size
            connection.send(b"k")
        elif asked[:1] == b"w":
            receive_all(connection, memoryview(memory))
            connection.send(b"k")
        else:
            connection.sendall(memory)


class Peer(Protocol):
    """What answers. Times in seconds; None for what it cannot do."""

    def prepare(self, total: int, count: int) -> None: ...
    def write(self) -> float: ...
    def read(self) -> float | None: ...
    def view(self) -> float | None: ...
    def forget(self) -> None: ...


class Ray:
    """Ray's object store: one object for a model, a list of arrays."""

    def __init__(self) -> None:
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        self._ray = ray
        ray.init(
            address="local",
            num_cpus=1,
            object_store_memory=3 << 30,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )

    def prepare(self, total: int, count: int) -> None:
        self._tensors: Tensors = {}
        self._tensors = tensors_of(total, count)
        self._target: Tensors = {}
        self._target = empty_like(self._tensors)

    def write(self) -> float:
        def put() -> None:
            self._reference: Any = self._ray.put(self._tensors)

        return seconds(put)

    def read(self) -> float:
        return seconds(lambda: copy(self._ray.get(self._reference), self._target))

    def view(self) -> float:
        return seconds(lambda: self._ray.get(self._reference))

    def forget(self) -> None:
        self._reference = None


class Keras:
    """``Model.save_weights`` and ``load_weights``, to a file that is not synced."""

    def __init__(self) -> None:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        import keras

        self._keras = keras
        self._directory = tempfile.TemporaryDirectory(prefix="bench-")
        self._file = Path(self._directory.name) / "model.weights.h5"

    def prepare(self, total: int, count: int) -> None:
        keras = self._keras

        class Weights(keras.layers.Layer):  # type: ignore[misc]
            def __init__(self, shapes: list[tuple[int, ...]]) -> None:
                super().__init__()
                for shape in shapes:
                    self.add_weight(shape=shape, initializer="ones")

            def call(self, inputs: Any) -> Any:
                return inputs

        inputs = keras.Input((1,))
        shapes = [each[0].shape for each in tensors_of(total, count).values()]
        self._model = keras.Model(inputs, Weights(shapes)(inputs))

    def write(self) -> float:
        return seconds(lambda: self._model.save_weights(self._file))

    def read(self) -> float:
        return seconds(lambda: self._model.load_weights(self._file))

    def view(self) -> None:
        return None

    def forget(self) -> None:
        self._file.unlink()


def answer(peer: Peer, said: int) -> None:
    """Do what is asked until nobody asks any more."""
    answers = os.fdopen(said, "w")
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(peer, name)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "stream":
        stream(int(sys.argv[2]))
    else:
        # What libraries print goes elsewhere.
        own = os.dup(1)
        os.dup2(2, 1)
        answer({"ray": Ray, "keras": Keras}[sys.argv[1]](), own)
