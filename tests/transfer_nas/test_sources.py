"""Data that is not in memory, or comes a batch at a time, and rows that are augmented."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transfer_nas import test_data
from transfer_nas.applications import Application, Batches, Data, OnDisk, _disk, shuffled
from transfer_nas.errors import ApplicationError
from transfer_nas.job import Evaluation, Job
from transfer_nas.spaces import Choices
from transfer_nas.trainer import TransferTrainer
from transfer_nas.training import engines
from transfer_nas.transfer import NoTransfer

RNG = np.random.default_rng(1)
LABELS = RNG.integers(3, size=320).astype(np.int32)
POINTS = (3 * RNG.normal(size=(3, 4))[LABELS] + RNG.normal(size=(320, 4))).astype(np.float32)
TRAIN, VALID = slice(0, 240), slice(240, 320)
BATCH = 16


def small(choices: Choices) -> Any:
    import keras

    (shape,) = choices.input_shapes
    given = keras.Input(shape)
    x = keras.layers.Dense(choices.choose("units", [12, 16]), "relu")(given)
    x = keras.layers.Dropout(0.1)(keras.layers.BatchNormalization()(x))
    return keras.Model(given, keras.layers.Dense(choices.output_units, "softmax")(x))


def application(load: Callable[[], Any], **changed: Any) -> Application:
    return test_data.application(load, **{"batch_size": BATCH, "default_space": small, **changed})


def evaluated(task: Application, epochs: int = 3, seed: int = 5) -> Evaluation:
    space = task.space()
    genome = space.sample(np.random.default_rng(0))
    trainer = TransferTrainer(task, space, NoTransfer(), epochs=epochs)
    return trainer.evaluate(Job(0, genome, None, seed))


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_disk, "MOST_BYTES", 256)


def opened(kind: str, folder: Path, array: np.ndarray) -> Any:
    if kind == "npy":
        np.save(folder / "x.npy", array)
        return np.load(folder / "x.npy", mmap_mode="r")
    file = h5py.File(folder / "x.h5", "w")
    return file.create_dataset("x", data=array, chunks=(7, *array.shape[1:]))


def points(x: Any = POINTS, **more: Any) -> Data:
    return Data(x[TRAIN], LABELS[TRAIN], POINTS[VALID], LABELS[VALID], **more)


class Numbered:
    """Batches by number, as a `PyDataset` gives them."""

    def __init__(self, rows: slice, shapes: tuple[int, ...] = (4,)) -> None:
        self.x, self.y = POINTS[rows].reshape(-1, *shapes), LABELS[rows]
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.y) // BATCH

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        self.asked.append(number)
        rows = slice(number * BATCH, (number + 1) * BATCH)
        return self.x[rows], self.y[rows]


def source_of(kind: str, rows: slice) -> Any:
    numbered = Numbered(rows)
    if kind == "numbered":
        return numbered
    if kind == "iterated":  # as a DataLoader
        return Again(rows)
    if kind == "function":
        return Batches(lambda: iter(map(numbered.__getitem__, range(len(numbered)))), len(numbered))
    import keras

    if kind == "PyDataset":
        return type("Own", (Numbered, keras.utils.PyDataset), {"workers": 2})(rows)
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((numbered.x, numbered.y)).batch(BATCH)


class Again:
    def __init__(self, rows: slice) -> None:
        self._numbered = Numbered(rows)

    def __len__(self) -> int:
        return len(self._numbered)

    def __iter__(self) -> Iterator[Any]:
        return map(self._numbered.__getitem__, range(len(self)))


SOME, OTHERS = ("PyDataset", "function", "tf.data"), ("numbered", "iterated")


def long(kind: str) -> Any:
    return pytest.param(kind, marks=pytest.mark.long)


@pytest.mark.parametrize("kind", ["npy", "hdf5"])
def test_rows_on_disk_are_those_of_the_array(kind: str, tmp_path: Path, small_memory: None) -> None:
    given = opened(kind, tmp_path, POINTS)
    assert OnDisk.is_needed(given) and not OnDisk.is_needed(POINTS)

    rows = OnDisk(given)

    assert (rows.shape, rows.dtype, rows.nbytes) == (POINTS.shape, POINTS.dtype, POINTS.nbytes)
    order = RNG.permutation(320)
    assert np.array_equal(rows[order], POINTS[order])
    assert np.array_equal(rows[5:300], POINTS[5:300])
    picked = rows.taking(np.arange(0, 320, 2))
    assert isinstance(picked, OnDisk)
    assert np.array_equal(picked[order[order < 160]], POINTS[::2][order[order < 160]])
    assert np.array_equal(picked[3:7], POINTS[6:14:2])
    few = rows.taking(np.array([3, 9]))
    assert isinstance(few, np.ndarray) and np.array_equal(few, POINTS[[3, 9]])


@settings(deadline=None)
@given(
    rows=st.integers(1, 3000),
    block=st.integers(1, 40),
    most=st.integers(1, 4000),
    seed=st.integers(0, 9),
)
def test_neighbours_on_disk_are_near_each_other(
    rows: int, block: int, most: int, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(rows)

    found = shuffled(order, block, 1, most)

    assert np.array_equal(np.sort(found), np.arange(rows))
    blocks = max(16, most // block)
    if -(-rows // block) <= blocks:  # everything fits into memory
        assert np.array_equal(found, order)
    step = blocks * block
    windows = [found[begin : begin + step] for begin in range(0, rows, step)]
    # A short last block of rows shifts those behind it by less than a block of rows.
    assert all(len(np.unique(window // block)) <= blocks + block for window in windows)


@pytest.mark.parametrize("kind", ["npy", long("hdf5")])
def test_data_on_disk_is_the_same_data(kind: str, tmp_path: Path, small_memory: None) -> None:
    given = opened(kind, tmp_path, POINTS[TRAIN])
    whole = application(points)
    task = application(lambda: Data(given, LABELS[TRAIN], POINTS[VALID], LABELS[VALID]))

    assert isinstance(task.data.x_train, OnDisk)
    assert task.namespace == whole.namespace
    assert [engine.name for engine in engines(task, BATCH, 3)] == ["keras"]
    found, again = evaluated(task), evaluated(task)
    assert found.objective > 0.8
    assert found.objective == again.objective


def test_rows_on_disk_may_be_parted_and_bounded(tmp_path: Path, small_memory: None) -> None:
    given = opened("npy", tmp_path, POINTS)
    task = application(lambda: Data(given, LABELS, version="1"), validation=0.25, rows=(200, 8))
    whole = application(lambda: Data(POINTS, LABELS), validation=0.25, rows=(200, 8))

    assert isinstance(task.data.x_train, OnDisk)
    assert isinstance(task.data.x_valid, np.ndarray)
    assert np.array_equal(task.data.x_train[:], whole.data.x_train)
    assert np.array_equal(task.data.x_valid, whole.data.x_valid)


def test_what_is_wrong_on_disk_is_found(tmp_path: Path, small_memory: None) -> None:
    wrong = POINTS.copy()
    wrong[[3, 200], 1] = np.nan, np.inf
    task = application(lambda: Data(opened("npy", tmp_path, wrong), LABELS))
    with pytest.raises(ApplicationError, match=r"x_train holds NaN.* in 2 of 320 rows"):
        _ = task.data


def test_a_version_stands_for_what_is_not_read(tmp_path: Path, small_memory: None) -> None:
    given = opened("npy", tmp_path, POINTS[TRAIN])

    def digest(version: str | None, rows: Any = given) -> str:
        task = application(lambda: points_of(rows, version))
        return task.data.digest

    def points_of(rows: Any, version: str | None) -> Data:
        return Data(rows, LABELS[TRAIN], POINTS[VALID], LABELS[VALID], version=version)

    assert digest("a") == digest("a", -POINTS[TRAIN])
    assert len({digest("a"), digest("b"), digest(None)}) == 3


@pytest.mark.parametrize("kind", [*SOME, *map(long, OTHERS)])
def test_sources_of_batches_train_and_judge(kind: str) -> None:
    def load() -> Data:
        train, valid = (source_of(kind, rows) for rows in (TRAIN, VALID))
        return Data(train, x_valid=valid, version="1")

    task = application(load)

    assert (task.data.count("train"), task.data.count("valid"), task.data.ordered) == (240, 80, 15)
    found, again = evaluated(task), evaluated(application(load))
    assert found.done, found.measures
    assert found.objective > 0.9
    assert found.objective == again.objective


@pytest.mark.parametrize("kind", SOME)
def test_a_training_on_batches_goes_on_from_its_state(kind: str) -> None:
    load = lambda: Data(source_of(kind, TRAIN), None, POINTS[VALID], LABELS[VALID], version="1")  # noqa: E731
    assert_goes_on(application(load))


def assert_goes_on(task: Application) -> None:
    engine = engines(task, BATCH, 4, "keras")[0]
    space = task.space()
    graph = space.graph(space.sample(np.random.default_rng(0)))
    orders = [np.random.default_rng(n).permutation(task.data.ordered) for n in range(2)]

    def trained(state: Any = None) -> tuple[Any, list[Any]]:
        candidate = engine.candidate(graph, 3)
        training = candidate.training(epochs=2)
        assert training is not None
        if state is None:
            training.epoch(orders[0], 0.01)
            state = training.state()
        else:
            training.restore(state)
        training.epoch(orders[1], 0.01)
        return state, candidate.tensors(graph.names)

    state, weights = trained()
    _, again = trained(state)
    for name, arrays in weights.items():
        for one, other in zip(arrays, again[name], strict=True):
            assert np.array_equal(one, other), name


def test_batches_come_in_another_order_each_epoch() -> None:
    train = Numbered(TRAIN)
    task = application(lambda: Data(train, None, POINTS[VALID], LABELS[VALID], version="1"))
    _ = task.data
    train.asked.clear()

    assert evaluated(task, epochs=2).done

    epochs = train.asked[:15], train.asked[15:30]
    assert [sorted(asked) for asked in epochs] == [list(range(15))] * 2
    assert epochs[0] != epochs[1] != list(range(15))


def test_a_function_gets_a_seed_for_each_epoch() -> None:
    seeds: list[int] = []

    def batches(seed: int) -> Iterator[Any]:
        seeds.append(seed)
        for rows in np.array_split(np.random.default_rng(seed).permutation(240), 15):
            yield POINTS[rows], LABELS[rows]

    source = Batches(batches, 15)
    task = application(lambda: Data(source, None, POINTS[VALID], LABELS[VALID], version="1"))
    _ = task.data
    seeds.clear()

    one, other = evaluated(task, epochs=2), evaluated(task, epochs=2)

    # The last is that of the statistics of normalizations.
    assert len(seeds) == 6 and seeds[:3] == seeds[3:] and len(set(seeds)) == 3
    assert one.objective == other.objective


def ends_early() -> Iterator[Any]:
    yield POINTS[:BATCH], LABELS[:BATCH]


def changes_shapes() -> Iterator[Any]:
    yield POINTS[:BATCH], LABELS[:BATCH]
    yield POINTS[:BATCH, :3], LABELS[:BATCH]


def loses_targets() -> Iterator[Any]:
    yield POINTS[:BATCH], LABELS[:BATCH]
    yield POINTS[:BATCH], LABELS[:3]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (ends_early, "ended before its 3 batches"),
        (changes_shapes, r"changes its shapes: x of the first batch has \(4,\).* one \(3,\)"),
        (loses_targets, r"x and y of a batch must have as many rows, found \[16, 3\]"),
    ],
)
def test_a_source_that_fails_fails_the_candidate(function: Any, message: str) -> None:
    source = Batches(function, 3)
    task = application(lambda: Data(source, None, POINTS[VALID], LABELS[VALID], version="1"))

    found = evaluated(task)

    assert not found.done
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found.measures["error"])


def test_a_dataset_that_ends_early_fails_the_candidate() -> None:
    source = Batches(source_of("tf.data", TRAIN), 20)
    task = application(lambda: Data(source, None, POINTS[VALID], LABELS[VALID], version="1"))

    found = evaluated(task)

    assert not found.done and "ended before its 20 batches" in str(found.measures["error"])


def endless() -> Any:
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensors((POINTS[:BATCH], LABELS[:BATCH])).repeat()


GOOD = POINTS[VALID], LABELS[VALID]


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (lambda: Data(Numbered(TRAIN), None, *GOOD), "x_train is a source of batches.*version="),
        (lambda: Data(ends_early, None, *GOOD, version="1"), "x_train: .* has no length"),
        (lambda: Data(endless(), None, *GOOD, version="1"), "has no length"),
        (lambda: Data(Numbered(TRAIN), version="1"), "no rows can be set aside"),
        (lambda: Data(Numbered(TRAIN), LABELS, *GOOD, version="1"), "y_train: a source"),
        (lambda: Data(Numbered(TRAIN, (2, 2)), None, *GOOD, version="1"), r"of shapes \[\(4,\)\]"),
        (
            lambda: Data(Batches(lambda: iter(()), 4), None, *GOOD, version="1"),
            "ended before its 4",
        ),
        (
            lambda: Data(Batches(lambda: iter([POINTS]), 1), None, *GOOD, version="1"),
            r"must give \(x, y\)",
        ),
    ],
)
def test_a_source_that_makes_no_sense_is_one_line(load: Any, message: str) -> None:
    with pytest.raises(ApplicationError, match=message) as raised:
        _ = application(load).data
    assert "\n" not in str(raised.value)


def test_a_function_augments_in_training_only() -> None:
    seen: list[np.ndarray] = []

    def augment(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        seen.append(x)
        return (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)

    task = application(points, augment=augment)

    found, again = evaluated(task, epochs=2), evaluated(task, epochs=2)

    assert found.objective == again.objective > 0.8
    assert sum(map(len, seen)) == 2 * 2 * 240
    valid = {row.tobytes() for row in POINTS[VALID]}
    assert not any(row.tobytes() in valid for x in seen for row in x)
    assert_goes_on(task)


def test_layers_augment_in_training_only() -> None:
    import keras

    noise = keras.layers.Dropout(0.95)
    plain, task = application(points), application(points, augment=noise)

    assert [engine.name for engine in engines(task, BATCH, 3)] == ["keras"]
    drowned = evaluated(task)
    assert drowned.objective < evaluated(plain).objective - 0.1
    assert drowned.objective == evaluated(task).objective
    assert drowned.objective != evaluated(task, seed=6).objective
    assert_goes_on(task)


def test_images_without_channels_can_be_augmented() -> None:
    import keras

    from transfer_nas.training import augmentation

    model = keras.Sequential([keras.layers.Input((4, 4)), keras.layers.Flatten()])
    images = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    network = augmentation.before(model, [keras.layers.RandomFlip("horizontal", seed=1)], 7)

    def flipped(training: bool) -> np.ndarray:
        return np.asarray(network(images, training=training)).reshape(2, 4, 4)

    assert np.array_equal(flipped(False), images)
    drawn = [flipped(True) for _ in range(8)]
    ways = {way for x in drawn for way in (np.array_equal(x[0], images[0]), "flipped")}
    assert ways == {True, False, "flipped"}
    assert all(
        np.array_equal(row, image) or np.array_equal(row, image[:, ::-1])
        for x in drawn
        for row, image in zip(x, images, strict=True)
    )


def test_what_augments_nothing_is_one_line() -> None:
    with pytest.raises(ApplicationError, match="augment: expected layers of Keras or a function"):
        application(points, augment="flip")
