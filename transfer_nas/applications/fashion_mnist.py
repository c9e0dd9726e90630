"""Fashion-MNIST: grey images of 28x28 pixels, ten kinds of clothing (Xiao et al., 2017).

The 60,000 training and 10,000 test images of Debian's package ``dataset-fashion-mnist``. A sixth of
the training images validates; of the rest, 5,000 train and 2,000 of the others judge unless
``--rows`` says otherwise. Logistic regression on these 5,000: 0.819 of the test images.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transfer_nas.applications import _files
from transfer_nas.applications._base import Application
from transfer_nas.applications._data import Data
from transfer_nas.errors import ApplicationError

INSTALLED = Path("/usr/share/datasets/fashion-mnist")


def load() -> Data:
    """Return the images of the installed package; raises ApplicationError if there is none."""
    if not INSTALLED.is_dir():
        raise ApplicationError(
            f"application fashion_mnist: expected the data in {INSTALLED}: apt-get install "
            "dataset-fashion-mnist, or name a directory with its four files by --data"
        )
    return read(INSTALLED)


def read(directory: Path) -> Data:
    """Return the images of the original's four files, pixels scaled to [0, 1]."""
    parts: dict[str, Any] = {}
    for part, prefix in (("train", "train"), ("test", "t10k")):
        pixels = _idx(_files.find(directory, f"{prefix}-images-idx3-ubyte.gz"), 3)
        labels = _idx(_files.find(directory, f"{prefix}-labels-idx1-ubyte.gz"), 1)
        parts[f"x_{part}"] = pixels.astype(np.float32) / np.float32(255)
        parts[f"y_{part}"] = labels.astype(np.int32)
    return Data(**parts)


def _idx(path: Path, axes: int) -> npt.NDArray[np.uint8]:
    """Return the bytes of an IDX file: magic number, lengths of the axes, the elements."""
    try:
        content = gzip.decompress(path.read_bytes())
        magic, *shape = struct.unpack_from(f">{1 + axes}I", content)
        array = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
        if magic != 0x800 + axes:
            raise ValueError(f"it begins with {magic:#010x}, expected {0x800 + axes:#010x}")
        return array.reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as cause:
        raise ApplicationError(f"{path}: no IDX file of {axes} axes: {cause}") from cause


def mirrored() -> Any:
    """Return the layer that mirrors every second image in training: clothes have no side."""
    import keras  # with the first candidate, not with this module

    return keras.layers.RandomFlip("horizontal")


application = Application(
    name="fashion_mnist",
    load=load,
    read=read,
    input_shapes=[(28, 28)],
    output_units=10,
    output_activation="softmax",
    loss="sparse_categorical_crossentropy",
    metric="accuracy",
    learning_rate=2e-3,
    epochs=6,
    batch_size=64,
    validation=1 / 6,
    rows=(5_000, 2_000, 10_000),
    augment=mirrored,
    default_space="cell_cnn",
)
