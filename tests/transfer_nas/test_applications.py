"""Applications: those that come along, a user's own, and everything that can be wrong with one."""

import math
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_meta import GraphBuilder, LayerGraph, layers
from transfer_nas import applications
from transfer_nas.applications import Application, Data
from transfer_nas.errors import ApplicationError
from transfer_nas.job import Job
from transfer_nas.spaces import Choices, DenseSkip, FeedForward
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
        "output_activation": "softmax",
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


@given(
    dtype=st.sampled_from(["f4", ">f4", "i8", "?", "U3", "c16", "O", "bfloat16", "float8_e5m2"]),
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple),
    how=st.sampled_from(["c", "fortran", "strided", "reversed"]),
)
@settings(derandomize=True, deadline=None)
def test_the_digest_is_that_of_the_values_however_they_lie(
    dtype: str, shape: tuple[int, ...], how: str
) -> None:
    values = np.arange(math.prod(shape)).reshape(shape) % 7
    array = values.astype(getattr(ml_dtypes, dtype, dtype))
    lying = {
        "c": array,
        "fortran": np.asfortranarray(array),
        "strided": np.repeat(array, 2, axis=0)[::2],
        "reversed": array[::-1].copy()[::-1],
    }[how]
    y = np.zeros(len(array), np.int32)
    assert Data(lying, y, array, y).digest == Data(array, y, lying, y).digest
    if array.size:
        other = array.copy()
        other.reshape(-1)[-1] = array.dtype.type(1) if array.dtype != object else "x"
        changed = other.tolist() != array.tolist()
        assert (Data(other, y, array, y).digest != Data(array, y, array, y).digest) == changed


def test_the_digest_copies_no_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2**20, 8), np.float32))  # 32 MiB
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    y = np.zeros(len(x), np.int32)
    tracemalloc.start()
    try:
        _ = Data(x, y, x[:3], y[:3]).digest
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


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
    np.savez("mine.npz", **{k: v for k, v in vars(mine).items() if isinstance(v, np.ndarray)})
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
        ("pictures", "Known: attn, .*, digits, .*none, nt3"),
        ("mnist", "did you mean .*fashion_mnist"),
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


def test_lists_the_applications_of_a_users_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import math\nfrom transfer_nas.applications.digits import application as a\nx = 1\n"
    )
    with pytest.raises(ApplicationError, match=r"no attribute 'b'; Known: a$"):
        applications.resolve(f"{file}:b")
    file.write_text("import math\n")
    with pytest.raises(ApplicationError, match=r"no attribute 'b'; it holds no Application$"):
        applications.resolve(f"{file}:b")


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


X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
CLASSES = np.array([0, 1, 2, 0, 1, 2])
SPARSE = {"output_units": 3}
REGRESSION = {
    "output_units": 1,
    "output_activation": None,
    "loss": "mse",
    "metric": "mae",
}
BINARY = {**REGRESSION, "output_activation": "sigmoid", "loss": "bce", "metric": "accuracy"}
ONE_HOT = {"output_units": 3, "loss": "CategoricalCrossentropy", "metric": "accuracy"}


def holding(x: Any, y: Any, **changed: Any) -> Application:
    return application(lambda: Data(x, y, x, y), **changed)


def spoilt(value: float, at: Any = (2, 1)) -> np.ndarray:
    x = X.astype(np.float64)
    x[at] = value
    return x


@pytest.mark.parametrize(
    ("x", "y", "changed", "message"),
    [
        (X, CLASSES + 1, SPARSE, r"y_train: labels 1\.\.3, expected 0\.\.2 .*number them from 0"),
        (X, CLASSES * 5, SPARSE, r"labels 0\.\.10, expected 0\.\.2"),
        (X, np.where(CLASSES, 1, -1), {}, r"labels -1\.\.1, expected 0\.\.1"),
        (X, CLASSES - 1.0, SPARSE, r"labels -1\.\.1, expected 0\.\.2"),
        (X, CLASSES / 2, SPARSE, r"holds 0\.5, and sparse_cat.* for regression use"),
        (
            X,
            [*"abcabc"],
            {"loss": "mse", "metric": "mae"},
            r"y_train holds strings \('a', 'b', …\), and mean_squared",
        ),
        (
            X,
            np.array([*"abcabc"], object),
            {"loss": "mse", "metric": "mae"},
            "y_train holds strings",
        ),
        (X, np.eye(3)[CLASSES], SPARSE, r"y_train is one-hot.*use y.argmax\(axis=1\), or loss="),
        (X, CLASSES % 2, {"output_units": 1}, r"expected 0\.\.0 .*binary_crossentropy"),
        (X, [None, 1, 2, 0, 1, 2], SPARSE, "y_train holds NaN.* in 1 of 6 rows"),
        (
            spoilt(np.nan),
            CLASSES,
            SPARSE,
            "x_train holds NaN, infinite or too large .* 1 of 6 rows",
        ),
        (spoilt(np.inf, 0), CLASSES, SPARSE, "x_train holds NaN.* in 1 of 6 rows"),
        (spoilt(1e200), CLASSES, SPARSE, "x_train holds NaN.* in 1 of 6 rows"),
        (X, CLASSES, ONE_HOT, r"takes one-hot rows of 3 .*numpy.eye\(3\)\[y\].*loss='sparse_"),
        (X, np.eye(4)[CLASSES], ONE_HOT, "takes one-hot rows of 3"),
        (
            X,
            np.where(CLASSES, 1, -1),
            BINARY,
            r"labels -1\.\.1, and binary_crossentropy takes 0, 1",
        ),
        (X, np.eye(3)[CLASSES], BINARY, "has 3 numbers a row.* output_units is 1"),
        (X, X, REGRESSION, "has 3 numbers a row"),
        (X, X[:, :1], {**REGRESSION, "output_units": 3}, "has 1 numbers a row.*output_units is 3"),
        (X, X[:, 0], {**REGRESSION, "output_activation": "sigmoid"}, "of sigmoid .* never reach"),
        (X, X[:, 0], {**REGRESSION, "metric": "accuracy"}, "counts classes.*use 'r2_score'"),
        (X, CLASSES, {**SPARSE, "metric": "mse"}, "'mse' takes as many targets"),
        (
            X,
            np.zeros(6, int),
            {**SPARSE, "output_units": 1, "metric": "accuracy"},
            "metric 'accuracy': with sparse_categorical_crossentropy and one output .* one class",
        ),
        (X, CLASSES, {**SPARSE, "metric": "precision"}, "'precision' takes as many targets as"),
        (X, X[:, 0], {**REGRESSION, "metric": "auc"}, "'auc' counts classes"),
        (X, X[:, 0], {**REGRESSION, "metric": "sparse_categorical_accuracy"}, "numbers of classes"),
        (X, CLASSES, {"loss": "sparse_categorial_crossentropy"}, "unknown loss .*did you mean"),
        (X, CLASSES, {"metric": "acuracy"}, "unknown metric 'acuracy'; did you mean 'accuracy'"),
        (X, CLASSES, {"optimizer": "adm"}, "unknown optimizer 'adm'; did you mean 'adam'"),
        (X, CLASSES, {"optimizer": 3}, "optimizer must be the name of a Keras optimizer"),
        (X, CLASSES, {"loss": 3}, "loss must be the name of a Keras loss, .* not 3"),
        (X, CLASSES, {"mode": "min"}, "would search for the worst, as more of .* is better"),
        (X, CLASSES, {"metric": len}, "metric 'len': is more of it better, or less"),
        (X.astype(complex), CLASSES, SPARSE, "x_train must hold numbers, found dtype complex128"),
        ({"a": X}, CLASSES, SPARSE, "x_train must be an array whose .* found dict"),
        (None, CLASSES, SPARSE, "x_train must be an array whose .* found NoneType"),
        ([[1, 2, 3], [4, 5]], CLASSES, SPARSE, "x_train makes no array, are its rows alike"),
        (scipy.sparse.csr_matrix(X), CLASSES, SPARSE, r"is a sparse matrix .*toarray\(\)"),
        (np.ma.masked_less(X, 0), CLASSES, SPARSE, "x_train has masked elements"),
        (
            pd.DataFrame({"age": [1.0] * 6, "sex": [*"mfmfmf"], "n": [2] * 6}),
            CLASSES,
            SPARSE,
            "x_train, column 'sex', must hold numbers, found 'm'",
        ),
        (X, (CLASSES, CLASSES[:5]), SPARSE, r"same number of rows.*found \[6, 6, 5\]"),
    ],
)
def test_says_what_does_not_go_together(
    x: Any, y: Any, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ApplicationError, match=f"application mine: .*{message}") as raised:
        _ = holding(x, y, **changed).data
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("x", "y", "changed", "dtypes"),
    [
        (X, CLASSES.astype(np.float64), SPARSE, ("f4", "i4")),
        (X, CLASSES > 0, {}, ("f4", "i4")),
        (X, CLASSES[:, None].astype(np.uint8), SPARSE, ("f4", "u1")),
        (X, CLASSES.tolist(), SPARSE, ("f4", "i8")),
        (X.tolist(), CLASSES, SPARSE, ("f8", "i8")),
        ([X], CLASSES, SPARSE, ("f4", "i8")),
        ((X,), CLASSES, SPARSE, ("f4", "i8")),
        (pd.DataFrame(X), pd.Series(CLASSES, index=range(3, 9)), SPARSE, ("f4", "i8")),
        (X.astype(object), CLASSES.astype(object), SPARSE, ("f8", "i8")),
        (np.array([*X, None], object)[:6], CLASSES, SPARSE, ("f4", "i8")),
        (X.astype(">f8"), CLASSES.astype(">i2"), SPARSE, ("f8", "i2")),
        (X > 0, CLASSES, SPARSE, ("u1", "i8")),
        (X.astype(ml_dtypes.bfloat16), CLASSES, SPARSE, ("f4", "i8")),
        (X[:, 0], CLASSES, {**SPARSE, "input_shapes": 1}, ("f4", "i8")),
        (X, X[:, 0], REGRESSION, ("f4", "f4")),
        (X, X[:, :1].astype(np.float64), REGRESSION, ("f4", "f8")),
        (X, np.eye(3, dtype=bool)[CLASSES], ONE_HOT, ("f4", "f4")),
        (X, CLASSES > 0, BINARY, ("f4", "f4")),
        (X, [*np.eye(3)[CLASSES]], ONE_HOT, ("f4", "f8")),
    ],
)
def test_what_means_one_thing_is_converted(
    x: Any, y: Any, changed: dict[str, Any], dtypes: tuple[str, str]
) -> None:
    data = holding(x, y, **changed).data
    assert [data.x_train.dtype, data.y_train.dtype] == [np.dtype(dtype) for dtype in dtypes]
    assert data.x_train.shape[0] == data.y_train.shape[0] == 6
    assert data.x_train.dtype.isnative and isinstance(data.x_train, np.ndarray)


def test_arrays_that_need_no_conversion_are_not_copied() -> None:
    data = holding(X, CLASSES, **SPARSE).data
    assert data.x_train is X and data.y_train is CLASSES


@pytest.mark.parametrize("given", [13, [13], (13,), [(13,)], [np.int64(13)], np.array([13])])
def test_a_width_is_the_shape_of_one_input(given: Any) -> None:
    assert application(input_shapes=given).input_shapes == ((13,),)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_shapes": [8, 8]}, r".* may mean one input or several: write \[\(8, 8\)\]"),
        ({"input_shapes": [(0,)]}, "expected the shapes of one input or more"),
        ({"input_shapes": "30"}, "expected the shapes of one input or more.* found '30'"),
        ({"input_shapes": [(None, 3)]}, "expected the shapes of one input or more"),
        ({"mode": "highest"}, "mode must be 'max' .* or 'min', not 'highest'"),
        ({"output_units": 0}, "output_units must be a whole number of at least 1, not 0"),
        ({"batch_size": 3.5}, "batch_size must be a whole number of at least 1, not 3.5"),
    ],
)
def test_says_what_is_wrong_with_a_field(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ApplicationError, match=f"^application mine: {message}"):
        application(**changed)


@pytest.mark.parametrize(
    ("metric", "mode", "direction"),
    [
        ("accuracy", None, "max"),
        ("AUC", None, "max"),
        ("r2_score", "maximize", "max"),
        ("MSE", None, "min"),
        ("sparse_categorical_crossentropy", "minimize", "min"),
        (len, "max", "max"),
        (len, "MIN", "min"),
    ],
)
def test_the_direction_is_that_of_the_metric(metric: Any, mode: Any, direction: str) -> None:
    found = application(metric=metric, mode=mode)
    assert found.direction == direction
    sign = 1 if direction == "max" else -1
    assert found.natural(0.25) == sign * 0.25 and found.natural(found.natural(0.5)) == 0.5
    assert math.copysign(1, found.natural(0.0)) == 1


def test_accuracy_is_the_one_that_goes_with_the_targets() -> None:
    assert holding(X, CLASSES, **SPARSE, metric="acc").terms.metric == "sparse_categorical_accuracy"
    assert holding(X, np.eye(3)[CLASSES], **ONE_HOT).terms.metric == "categorical_accuracy"
    terms = holding(X, CLASSES > 0, **BINARY).terms
    assert terms.outputs == (("binary_crossentropy", {"accuracy": "binary_accuracy"}, 1.0),)
    assert terms.optimizer == "adam"
    for y, loss in ((CLASSES, "sparse_"), (np.eye(3)[CLASSES], "")):
        found = holding(X, y, **{**ONE_HOT, "loss": "crossentropy"}).terms.loss
        assert found == f"{loss}categorical_crossentropy"


@pytest.mark.parametrize(
    ("units", "activation", "loss", "message"),
    [
        (3, None, "sparse_categorical_crossentropy", "end in a linear layer: set .*='softmax'"),
        (1, None, "bce", "end in a linear layer: set output_activation='sigmoid'"),
        (1, "softmax", "mse", "a softmax over one output is always 1"),
    ],
)
def test_outputs_have_to_go_with_the_loss(
    units: int, activation: str | None, loss: str, message: str
) -> None:
    wrong = application(output_units=units, output_activation=activation, loss=loss)
    with pytest.raises(ApplicationError, match=message):
        wrong.space("feed_forward")


def test_a_function_that_ends_otherwise_is_told_so_and_searched(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def linear(choices: Choices) -> LayerGraph:
        builder = GraphBuilder()
        edge = builder.add(layers.dense(choices.choose("units", [5, 6])), builder.input((3,)))
        return builder.build(builder.add(layers.dense(choices.output_units), edge))

    asked = application(
        output_units=3,
        output_activation="softmax",
        loss="sparse_categorical_crossentropy",
        metric="accuracy",
    )
    assert asked.space(linear).name == "linear"
    assert "let the last one have activation='softmax'" in caplog.text


def of_its_own(choices: Choices) -> LayerGraph:
    builder = GraphBuilder()
    edge = builder.input((4,))
    units = choices.choose("units", [5, 6])
    return builder.build(builder.add(layers.dense(units, activation="softmax"), edge))


def test_a_function_has_to_heed_inputs_and_outputs() -> None:
    for changed, message in (
        ({}, r"take inputs of shapes \[\(4,\)\], and input_shapes is \[\(3,\)\]"),
        ({"input_shapes": 4}, "networks of space of_its_own have [56] outputs, and output_units"),
    ):
        with pytest.raises(ApplicationError, match=message):
            application(**changed).space(of_its_own)


def test_a_file_with_one_application_needs_no_name(tmp_path: Path) -> None:
    text = "from transfer_nas.applications import digits\n"
    (tmp_path / "one.py").write_text(f"{text}mine = again = digits.application\n")
    assert applications.resolve(f"{tmp_path}/one.py").name == "digits"
    (tmp_path / "none.py").write_text(text)
    with pytest.raises(ApplicationError, match="expected a transfer_nas Application in it"):
        applications.resolve(f"{tmp_path}/none.py")
    other = "from transfer_nas.applications.nt3 import application as b\n"
    (tmp_path / "two.py").write_text(f"{text}{other}a = digits.application\n")
    with pytest.raises(ApplicationError, match=r"several of Application: b, a; name one, such as"):
        applications.resolve(f"{tmp_path}/two.py")
