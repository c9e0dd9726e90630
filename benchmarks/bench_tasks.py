"""How fast does a candidate train on data of each kind, beside Keras' own fit on the same?

``python benchmarks/bench_tasks.py [--json FILE] [--quick]`` prints a table and writes flat keys.

A small network of convolutions trains on images of 28 x 28 pixels: from arrays, from a memory map
that is too large to be read whole, and from sources of batches: a `keras.utils.PyDataset`, a
`tf.data.Dataset`, a function. ``KIND_rows_per_s`` is what an epoch of the trainer's takes,
``KIND_over_keras`` that over ``Model.fit`` on the same arrays or the same source. Keras reads the
memory map whole; the trainer reads it a part at a time. Epochs of both take turns; medians, after
a warm-up of one epoch each.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import figures
import numpy as np

from graph_meta import keras_io
from transfer_nas import applications
from transfer_nas.applications import Application, Batches, Data
from transfer_nas.training.keras_engine import KerasEngine

QUESTION = figures.Question(
    compares="epochs on arrays, a memory map, and sources of batches with Keras' fit on the same",
    seconds=120,
    quick_seconds=30,
)
TARGETS: figures.Targets = {
    "memory_map_over_keras": ("at least", 0.9),
    "py_dataset_over_keras": ("at least", 0.9),
    "tf_data_over_keras": ("at least", 0.9),
    "function_over_keras": ("at least", 0.9),
    "arrays_over_keras": ("at least", 0.9),
}
BATCH, SHAPE = 64, (28, 28, 1)


def main() -> None:
    given = figures.parser(__doc__, "fewer rows and epochs").parse_args()
    rows, epochs = (2_048, 5) if given.quick else (8_192, 9)
    warnings.filterwarnings("ignore", "Your input ran out|`shuffle=True` was passed")  # of Keras
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in sources(rows, Path(folder)):
            results |= measure(kind, sources(rows, Path(folder))[kind], rows, epochs)
    figures.finish("tasks", results, TARGETS, given)


def sources(rows: int, folder: Path) -> dict[str, Callable[[], tuple[Any, Any]]]:
    """Return what makes each kind of training data: x and y, or a source of batches and None."""
    rng = np.random.default_rng(0)
    x = rng.random((rows, *SHAPE), np.float32)
    y = rng.integers(10, size=rows).astype(np.int32)

    def memory_map() -> tuple[Any, Any]:
        np.save(folder / "x.npy", x)
        return np.load(folder / "x.npy", mmap_mode="r"), y

    def py_dataset() -> tuple[Any, Any]:
        import keras

        class Images(keras.utils.PyDataset):
            def __len__(self) -> int:
                return rows // BATCH

            def __getitem__(self, number: int) -> tuple[Any, Any]:
                batch = slice(number * BATCH, (number + 1) * BATCH)
                return x[batch], y[batch]

        return Images(), None

    def tf_data() -> tuple[Any, Any]:
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).prefetch(2), None

    def function() -> tuple[Any, Any]:
        def batches() -> Iterator[tuple[Any, Any]]:
            for begin in range(0, rows, BATCH):
                yield x[begin : begin + BATCH], y[begin : begin + BATCH]

        return Batches(batches, rows // BATCH), None

    return {
        "arrays": lambda: (x, y),
        "memory_map": memory_map,
        "py_dataset": py_dataset,
        "tf_data": tf_data,
        "function": function,
    }


def measure(
    kind: str, make: Callable[[], tuple[Any, Any]], rows: int, epochs: int
) -> dict[str, float]:
    """Train by turns with the trainer's loop and with Keras."""
    x, y = make()
    most = applications._disk.MOST_BYTES
    applications._disk.MOST_BYTES = 2**20  # the memory map is one that is not read whole
    task = application(lambda: Data(x, y, *VALID, version="1"))
    _ = task.data
    applications._disk.MOST_BYTES = most
    rng = np.random.default_rng(0)
    engine = KerasEngine(task, BATCH)
    candidate = engine.candidate(keras_io.from_keras(network()), 0)
    training = candidate.training(epochs=epochs)
    assert training is not None
    plain = network()
    fitted = {"x": x.source() if isinstance(x, Batches) else x, "y": y, "batch_size": None}
    if y is not None:
        fitted["batch_size"] = BATCH

    def ours() -> None:
        training.epoch(rng.permutation(task.data.ordered), 1e-3)

    def keras_fit() -> None:
        if isinstance(x, Batches):
            fitted["x"] = x.source()  # a generator is used up
        plain.fit(**fitted, epochs=1, verbose=0)

    seconds: dict[str, list[float]] = {"ours": [], "keras": []}
    for number in range(epochs + 1):
        for name, train in (("ours", ours), ("keras", keras_fit)):
            begin = time.perf_counter()
            train()
            if number:  # the first is warm-up
                seconds[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        f"{kind}_rows_per_s": rows / median["ours"],
        f"{kind}_over_keras": median["keras"] / median["ours"],
    }


VALID = np.zeros((2, *SHAPE), np.float32), np.zeros(2, np.int32)


def application(load: Callable[[], Data]) -> Application:
    return Application(
        name="images",
        load=load,
        input_shapes=[SHAPE],
        output_units=10,
        output_activation="softmax",
        loss="sparse_categorical_crossentropy",
        metric="accuracy",
    )


def network() -> Any:
    """Return a compiled network of convolutions."""
    import keras

    model = keras.Sequential(
        [
            keras.layers.Input(SHAPE),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, "softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


if __name__ == "__main__":
    main()
