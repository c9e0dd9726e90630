"""Applications: those that come along, a user's own, and everything that can be wrong with one."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transfer_nas import applications
from transfer_nas.applications import Application, Data
from transfer_nas.errors import ApplicationError
from transfer_nas.job import Job
from transfer_nas.spaces import DenseSkip, FeedForward
from transfer_nas.trainer import TransferTrainer
from transfer_nas.transfer import NoTransfer

ROOT = Path(__file__).parents[2]


def data(rows: int = 6, width: int = 3) -> Data:
    x, y = np.zeros((rows, width), np.float32), np.zeros(rows, np.int32)
    return Data(x, y, x[:2], y[:2])


def application(load: Callable[[], Any] = data, **changed: Any) -> Application:
    fields = {
        "name": "mine",
        "load": load,
        "input_shapes": [(3,)],
        "output_units": 2,
        "loss": "sparse_categorical_crossentropy",
        "metric": "sparse_categorical_accuracy",
    }
    return Application(**(fields | changed))


def test_digits_are_the_real_ones_split_by_class() -> None:
    from sklearn.datasets import load_digits

    digits = applications.resolve("digits").data
    x, labels = load_digits(return_X_y=True)
    images = np.concatenate([digits.x_train, digits.x_valid])
    assert images.shape == (1797, 8, 8) and images.dtype == np.float32
    # The same images, none twice on both sides.
    assert np.array_equal(
        np.sort(images.reshape(1797, 64) * 16, axis=0), np.sort(x.astype(np.float32), axis=0)
    )
    whole, valid = np.bincount(labels), np.bincount(np.asarray(digits.y_valid))
    assert len(np.asarray(digits.y_valid)) == 1797 // 4
    assert np.all(np.abs(valid - whole / 4) < 1)
    assert digits.digest == applications.digits.load().digest


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes"])
def test_tables_are_whole_and_split_alike(name: str) -> None:
    from sklearn import datasets

    found = applications.resolve(name)
    x, _ = getattr(datasets, f"load_{name}")(return_X_y=True)
    data = found.data
    assert len(data.y_train) + len(data.y_valid) == len(x)
    assert np.asarray(data.x_train).shape[1:] == found.input_shapes[0] == x.shape[1:]
    assert np.allclose(np.asarray(data.x_train).mean(axis=0), 0, atol=1e-5)
    # Classes and values are spread alike over both parts.
    spread = np.std(np.concatenate([data.y_train, data.y_valid]))
    assert abs(np.mean(data.y_train) - np.mean(data.y_valid)) < 0.03 * spread
    assert data.digest == found.load().digest


@pytest.mark.parametrize(
    ("name", "trivial"),
    [("diabetes", 0.0), ("nt3", 0.55), ("uno", 0.0), ("attn", 0.72), ("combo", 0.0)],
)
def test_there_is_something_to_learn(name: str, trivial: float) -> None:
    found = applications.resolve(name)
    space = found.space()
    genome = space.sample(np.random.default_rng(2))
    trainer = TransferTrainer(found, space, NoTransfer(), epochs=3)
    evaluation = trainer.evaluate(Job(0, genome, seed=1))
    assert evaluation.done and trivial < evaluation.objective < 1.0


def test_the_digest_tells_data_apart() -> None:
    digests = {
        data().digest,
        data(rows=7).digest,
        Data(
            np.ones((6, 3), np.float32), *([data().y_train, data().x_valid, data().y_valid])
        ).digest,
        Data(
            data().x_train.astype(np.float64), data().y_train, data().x_valid, data().y_valid
        ).digest,
    }
    assert len(digests) == 4
    assert data().digest == data().digest
    assert application().namespace == f"mine-{data().digest}"


def test_the_example_of_the_documentation_works(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "own_application.md").read_text()
    example = re.search(r"```python[^\n]*\n(.*?)```", text, re.DOTALL)
    assert example is not None
    assert len(example[1].splitlines()) <= 25
    (tmp_path / "cancer.py").write_text(example[1])
    found = applications.resolve(f"{tmp_path}/cancer.py:application")
    assert found.name == "cancer"
    assert np.asarray(found.data.x_train).shape == (400, 30)
    space = found.space()
    assert isinstance(space, DenseSkip) and space.input_shapes == ((30,),)


def test_ones_own_arrays_take_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "own_application.md").read_text()
    example = re.findall(r"```python[^\n]*\n(.*?)```", text, re.DOTALL)[1]
    assert len([line for line in example.splitlines() if line]) <= 10
    (tmp_path / "mine.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    mine = data(width=30)
    np.savez("mine.npz", **{name: getattr(mine, name) for name in vars(mine)})
    found = applications.resolve("mine.py:application")
    assert found.data.digest == mine.digest and found.space().input_shapes == ((30,),)


def test_ones_own_application_is_found_by_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_package_of_tests.py").write_text(
        "from transfer_nas.applications.digits import application\nclass Holder: a = application\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    assert applications.resolve("my_package_of_tests:application").name == "digits"
    assert applications.resolve("my_package_of_tests:Holder.a").name == "digits"


def test_the_space_can_be_chosen() -> None:
    assert isinstance(application().space("feed_forward"), FeedForward)
    assert isinstance(application(default_space=FeedForward).space(), FeedForward)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "unknown application 'digit'; did you mean 'digits'"),
        ("mnist", "Known: attn, .*, digits, none, nt3"),
        ("no_such_module_here:a", "cannot import no_such_module_here: ModuleNotFoundError"),
        ("transfer_nas.applications.digits:applicaton", "did you mean 'application'"),
        ("transfer_nas.applications.digits:load", "is not a transfer_nas.applications.Appl"),
        ("transfer_nas.applications:", "is neither package.module:attribute nor"),
        ("nowhere/file.py:a", "nowhere/file.py: no such file"),
    ],
)
def test_says_what_is_wrong_with_a_name(spec: str, message: str) -> None:
    with pytest.raises(ApplicationError, match=message):
        applications.resolve(spec)


def test_says_what_a_users_file_raises(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import json\njson.loads('{')\n")
    with pytest.raises(ApplicationError, match=r"cannot import .*broken.py: JSONDecodeError"):
        applications.resolve(f"{tmp_path}/broken.py:application")
    (tmp_path / "syntax.py").write_text("def\n")
    with pytest.raises(ApplicationError, match=r"syntax.py: SyntaxError"):
        applications.resolve(f"{tmp_path}/syntax.py:application")


def raising() -> Data:
    raise FileNotFoundError("train.csv")


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (raising, "loading the data failed with FileNotFoundError: train.csv"),
        (lambda: (1, 2), "must return transfer_nas.applications.Data, not tuple"),
        (lambda: data(width=4), r"x_train must hold inputs of shapes \[\(3,\)\].*found \[\(4,\)\]"),
        (
            lambda: Data(data().x_train, data().y_train[:5], data().x_valid, data().y_valid),
            r"same number of rows, at least one; found \[6, 5\]",
        ),
        (
            lambda: Data(data().x_train, data().y_train, data().x_valid[:0], data().y_valid[:0]),
            r"x_valid and y_valid must have the same number of rows, at least one; found \[0, 0\]",
        ),
    ],
)
def test_says_what_is_wrong_with_the_data(load: Callable[[], Any], message: str) -> None:
    with pytest.raises(ApplicationError, match=message):
        _ = application(load).data
