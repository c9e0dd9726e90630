"""A search on data larger than memory is to be used for, and what it has resident.

``python -m tests.transfer_nas.soak_disk`` is part of ``make soak``: it makes up a file of 12 GB,
trains two candidates on it and tells the most that the process had resident. Returns 1 if that was
more than 4 GB. ``test_soak_disk.py`` does it with a small one.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from transfer_nas.applications import Application, Data, OnDisk, _disk
from transfer_nas.job import Job
from transfer_nas.spaces import Choices
from transfer_nas.trainer import TransferTrainer
from transfer_nas.transfer import NoTransfer

SHAPE = (64, 64, 3)


def main() -> int:
    """Run with the size that the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m tests.transfer_nas.soak_disk")
    parser.add_argument("--gigabytes", type=float, default=12.0, help="of the file")
    parser.add_argument("--most", type=float, default=4.0, help="gigabytes resident")
    parser.add_argument("--folder", help="where the file is made up (default: a temporary one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        found = run(Path(folder), given.gigabytes)
    print(json.dumps(found, indent=2))
    return 1 if found["most_gb"] > given.most or found["failed"] else 0


def run(folder: Path, gigabytes: float, candidates: int = 2) -> dict[str, Any]:
    """Train candidates on a file of that size; return what was seen."""
    rows = int(gigabytes * 1e9 / np.prod(SHAPE))
    file = folder / "x.npy"
    y = write(file, rows)
    mapped = np.load(file, mmap_mode="r")
    task = Application(
        name="large",
        load=lambda: Data(mapped, y, np.array(mapped[-512:]), y[-512:]),
        input_shapes=[SHAPE],
        output_units=2,
        output_activation="softmax",
        loss="sparse_categorical_crossentropy",
        metric="accuracy",
        batch_size=256,
        default_space=small,
    )
    on_disk = isinstance(task.data.x_train, OnDisk)
    trainer = TransferTrainer(task, task.space(), NoTransfer(), epochs=1)
    digest = task.namespace
    with Watch() as watch:
        space = task.space()
        seeds = range(candidates)
        genomes = [space.sample(np.random.default_rng(seed)) for seed in seeds]
        done = [trainer.evaluate(Job(s, g, None, s)) for s, g in zip(seeds, genomes, strict=True)]
    most = max(watch.most, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return {
        "rows": rows,
        "file_gb": file.stat().st_size / 1e9,
        "on_disk": on_disk,
        "most_bytes_read_whole": _disk.MOST_BYTES,
        "most_gb": most / 1e9,
        "failed": sum(not each.done for each in done),
        "objectives": [each.objective for each in done],
        "namespace": digest,
    }


def write(file: Path, rows: int) -> np.ndarray:
    """Write rows of two classes, a piece at a time; return their labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=rows).astype(np.int32)
    with file.open("wb") as out:
        header = {"descr": "|u1", "fortran_order": False, "shape": (rows, *SHAPE)}
        np.lib.format.write_array_header_1_0(out, header)
        noise = rng.integers(0, 128, size=(512, *SHAPE), dtype=np.uint8)
        for begin in range(0, rows, 512):
            some = labels[begin : begin + 512]
            out.write((noise[: len(some)] + 100 * some.astype(np.uint8)[:, None, None, None]).data)
    return labels


def small(choices: Choices) -> Any:
    """Return a small network of convolutions."""
    import keras

    given = keras.Input(choices.input_shapes[0])
    x = keras.layers.Rescaling(1 / 255)(given)
    x = keras.layers.Conv2D(choices.choose("filters", [4, 8]), 3, strides=4, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(given, keras.layers.Dense(choices.output_units, "softmax")(x))


class Watch:
    """The most bytes that this process had resident, looked at ten times a second."""

    def __init__(self) -> None:
        self.most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.1):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.most = max(self.most, 4096 * pages)


if __name__ == "__main__":
    sys.exit(main())
