"""MNIST-1D as the package of that name makes it."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

import transfer_nas
from transfer_nas import applications
from transfer_nas.applications import mnist1d
from transfer_nas.errors import ApplicationError

is_missing = "pip install mnist1d"


def test_the_series_are_the_published_ones_and_nothing_else_is_seeded() -> None:
    pytest.importorskip("mnist1d", reason=is_missing)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    expected = np.random.random(), random.random()  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    data, again = mnist1d.load(), mnist1d.load()
    assert (np.random.random(), random.random()) == expected  # noqa: NPY002

    found = applications.resolve("mnist1d").data
    assert (found.x_train.shape, found.x_valid.shape) == ((3200, 40), (800, 40))  # type: ignore[union-attr]
    assert (data.x_train.shape, data.x_test.shape) == ((4000, 40), (1000, 40))  # type: ignore[union-attr]
    assert np.array_equal(data.x_train, again.x_train)  # type: ignore[arg-type]
    assert set(np.unique(data.y_test)) == set(range(10))  # type: ignore[arg-type]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mnist1d", None)
    with pytest.raises(ApplicationError, match="pip install mnist1d"):
        mnist1d.load()


def test_two_networks_train_on_it(tmp_path: Path) -> None:
    pytest.importorskip("mnist1d", reason=is_missing)
    run = transfer_nas.search(
        "mnist1d", max_evals=2, epochs=1, seed=1, progress=False, output_dir=tmp_path / "run"
    )
    assert run.done.all()
