"""Fashion-MNIST as Debian packages it."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

import transfer_nas
from transfer_nas import applications
from transfer_nas.applications import fashion_mnist
from transfer_nas.errors import ApplicationError

needs_data = pytest.mark.skipif(
    not fashion_mnist.INSTALLED.is_dir(), reason="apt-get install dataset-fashion-mnist"
)


def idx(path: Path, array: np.ndarray) -> None:
    head = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Files as the original's, of few images."""
    rng = np.random.default_rng(0)
    for prefix, rows in (("train", 60), ("t10k", 20)):
        idx(
            tmp_path / f"{prefix}-images-idx3-ubyte.gz",
            rng.integers(256, size=(rows, 28, 28)).astype(np.uint8),
        )
        idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(rows, dtype=np.uint8) % 10)
    return tmp_path


@needs_data
def test_it_is_the_original_in_three_parts() -> None:
    found = applications.resolve("fashion_mnist").data

    assert [found.count(part) for part in applications.PARTS] == [5_000, 2_000, 10_000]
    for part in applications.PARTS:
        x, y = getattr(found, f"x_{part}"), np.asarray(getattr(found, f"y_{part}"))
        assert x.shape[1:] == (28, 28) and x.dtype == np.float32
        assert x.min() == 0 and x.max() == 1
        assert set(np.bincount(y)) == {len(y) // 10}
    # The first of the test images, as everybody's first example shows: an ankle boot.
    assert found.y_test[0] == 9


def test_files_of_ones_own(directory: Path) -> None:
    found = applications.resolve("fashion_mnist", str(directory)).data

    assert [found.count(part) for part in applications.PARTS] == [50, 10, 20]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file of 3 axes"),
        (b"no gzip", "no IDX file of 3 axes"),
        (gzip.compress(b"\0\0\x08\x01" + bytes(20), mtime=0), "it begins with 0x00000801"),
        (
            gzip.compress(struct.pack(">4I", 0x803, 5, 28, 28) + bytes(99), mtime=0),
            "cannot reshape",
        ),
    ],
    ids=["empty", "text", "other axes", "cut off"],
)
def test_a_damaged_file_is_named(directory: Path, content: bytes, message: str) -> None:
    file = directory / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(content)
    with pytest.raises(ApplicationError, match=message) as error:
        applications.resolve("fashion_mnist", str(directory))
    assert file.name in str(error.value) and "\n" not in str(error.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "nothing")
    with pytest.raises(ApplicationError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist.load()


def test_two_networks_train_on_it(directory: Path, tmp_path: Path) -> None:
    run = transfer_nas.search(
        "fashion_mnist",
        data=str(directory),
        max_evals=2,
        epochs=1,
        seed=1,
        progress=False,
        output_dir=tmp_path / "run",
    )
    assert run.done.all()
