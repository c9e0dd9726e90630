"""Which rows are trained on, judged by, and tested with; what counts how much."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import transfer_nas
from transfer_nas import runs
from transfer_nas.applications import Application, Data, _data
from transfer_nas.errors import ApplicationError, InputError
from transfer_nas.job import Job
from transfer_nas.trainer import TransferTrainer
from transfer_nas.training import ENGINES
from transfer_nas.transfer import NoTransfer

RNG = np.random.default_rng(1)
LABELS = RNG.choice(3, size=300, p=[0.1, 0.3, 0.6])
POINTS = (3 * RNG.normal(size=(3, 4))[LABELS] + RNG.normal(size=(300, 4))).astype(np.float32)


def application(load: Callable[[], Any], **changed: Any) -> Application:
    fields = {
        "name": "mine",
        "load": load,
        "input_shapes": 4,
        "output_units": 3,
        "output_activation": "softmax",
        "loss": "sparse_categorical_crossentropy",
        "metric": "accuracy",
        "learning_rate": 0.01,
    }
    return Application(**(fields | changed))


def rows_of(x: Any) -> set[bytes]:
    return {row.tobytes() for row in np.asarray(x)}


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_of_each_class_its_share_is_chosen(sizes: list[int], share: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    count = round(share * len(labels))

    found = _data.chosen(count, len(labels), labels, seed)

    assert len(found) == count and (np.diff(found) > 0).all()
    assert np.array_equal(found, _data.chosen(count, len(labels), labels, seed))
    taken = np.bincount(labels[found], minlength=len(sizes))
    assert (np.abs(taken - count / len(labels) * np.array(sizes)) < 2).all()


def test_rows_to_judge_by_are_set_aside_where_there_are_none() -> None:
    task = application(lambda: Data(POINTS, LABELS), validation=0.25)

    found = task.data

    assert (found.count("train"), found.count("valid"), found.count("test")) == (225, 75, 0)
    assert rows_of(found.x_train) | rows_of(found.x_valid) == rows_of(POINTS)
    whole, valid = np.bincount(LABELS), np.bincount(np.asarray(found.y_valid))
    assert (np.abs(valid - whole / 4) <= 1).all()
    other = application(lambda: Data(POINTS, LABELS), validation=0.25, split_seed=1)
    assert rows_of(other.data.x_valid) != rows_of(found.x_valid)
    assert task.namespace != other.namespace


def test_targets_that_are_no_classes_are_parted_at_random() -> None:
    y = POINTS @ np.ones(4, np.float32)
    task = application(
        lambda: Data(POINTS, y), loss="mse", metric="mae", output_units=1, output_activation=None
    )

    found = task.data

    assert found.count("valid") == 60
    np.testing.assert_allclose(np.asarray(found.x_valid) @ np.ones(4), found.y_valid, rtol=1e-5)


def test_fewer_rows_may_be_taken_of_each_part() -> None:
    parts = Data(POINTS[:200], LABELS[:200], POINTS[200:], LABELS[200:], POINTS, LABELS)
    task = application(lambda: parts, rows=(50, 1000, 30))

    found = task.data

    assert [found.count(part) for part in ("train", "valid", "test")] == [50, 100, 30]
    assert rows_of(found.x_train) <= rows_of(POINTS[:200])
    assert [task.with_rows("20").data.count(part) for part in ("train", "valid", "test")] == [
        *(20, 100, 30)
    ]
    assert task.with_rows("20,10,5").data.count("test") == 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"validation": 0.0}, "validation must be a share between 0 and 1, not 0.0"),
        ({"validation": 1.5}, "validation must be a share"),
        ({"validation": 0.001}, r"validation=0\.001 of 300 training rows leaves none"),
        ({"rows": ()}, "rows: expected one to three numbers"),
        ({"rows": (3, 0)}, "rows: expected one to three numbers"),
        ({"class_weight": "even"}, "class_weight: expected 'balanced' or a weight"),
        (
            {"class_weight": {0: 1, 1: 2}},
            "class_weight has no weight for the label '2'; it has 0, 1",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ApplicationError, match=message) as error:
        _ = application(lambda: Data(POINTS, LABELS), **changed).data
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rows", ["", "5,", "-1", "1,2,3,4", "x", "0"])
def test_rows_on_the_command_line_are_numbers(rows: str) -> None:
    with pytest.raises(InputError):
        _ = application(lambda: Data(POINTS, LABELS)).with_rows(rows).data


def test_test_rows_change_no_search_and_no_namespace() -> None:
    parts = (POINTS[:200], LABELS[:200], POINTS[200:250], LABELS[200:250])
    without = application(lambda: Data(*parts))
    having = application(lambda: Data(*parts, POINTS[250:], LABELS[250:]))

    assert having.namespace == without.namespace
    assert having.describe_objective()["test_rows"] == 50


def test_test_rows_that_were_trained_on_are_told(caplog: pytest.LogCaptureFixture) -> None:
    parts = (POINTS[:200], LABELS[:200], POINTS[200:250], LABELS[200:250])
    with caplog.at_level(logging.WARNING):
        _ = application(lambda: Data(*parts, POINTS[240:], LABELS[240:])).data
    (record,) = caplog.records
    assert "10 of 60 test rows stand among the training or validation rows" in record.getMessage()


def test_images_with_channels_first_are_told_of() -> None:
    images = np.zeros((300, 3, 8, 8), np.float32)
    task = application(lambda: Data(images, LABELS), input_shapes=[(8, 8, 3)])
    with pytest.raises(ApplicationError, match=r"\[\(3, 8, 8\)\], channels first: numpy.moveaxis"):
        _ = task.data


def test_labels_may_be_strings() -> None:
    names = np.array(["cat", "dog", "ant"])[LABELS]
    parts = Data(POINTS[:200], names[:200].tolist(), POINTS[200:], names[200:].astype(object))

    found = application(lambda: parts).data

    assert np.array_equal(found.y_train, np.array([1, 2, 0])[LABELS[:200]])
    assert np.array_equal(found.y_valid, np.array([1, 2, 0])[LABELS[200:]])
    strange = Data(POINTS[:200], names[:200], POINTS[200:], np.where(LABELS[200:], "cow", "cat"))
    with pytest.raises(ApplicationError, match="y_valid holds the label 'cow', which no training"):
        _ = application(lambda: strange).data


def test_classes_count_by_their_weights() -> None:
    names = np.array(["cat", "dog", "ant"])[LABELS]
    parts = (POINTS, names, POINTS[:9], names[:9])
    own = np.linspace(0.5, 2.0, 300)

    balanced = application(lambda: Data(*parts), class_weight="balanced").data
    chosen = application(
        lambda: Data(*parts, w_train=own), class_weight={"cat": 1, "dog": 2.5, "ant": 0}
    ).data

    totals = [balanced.w_train[balanced.y_train == label].sum() for label in range(3)]
    np.testing.assert_allclose(totals, 100, rtol=1e-5)
    np.testing.assert_allclose(chosen.w_train, own * np.array([1, 2.5, 0])[LABELS], rtol=1e-5)
    plain = application(lambda: Data(*parts)).data
    assert len({balanced.digest, chosen.digest, plain.digest}) == 3


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(7), r"w_train must hold a number a row, shape \(300,\), found \(7,\)"),
        (-np.ones(300), "w_train must not be negative"),
        (np.zeros(300), "nor all 0"),
        (np.full(300, np.nan), "w_train holds NaN"),
    ],
)
def test_weights_are_checked(weights: Any, message: str) -> None:
    with pytest.raises(ApplicationError, match=message):
        _ = application(lambda: Data(POINTS, LABELS, w_train=weights)).data


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_reach_the_training(engine: str) -> None:
    """Of two labels for the same points, the heavier one is learnt."""
    x, y = np.concatenate([POINTS, POINTS]), np.repeat(np.int32([0, 2]), 300)
    for heavy in (0, 2):
        parts = Data(x, y, x, np.full(600, heavy), w_train=np.where(y == heavy, 1.0, 0.05))
        task = application(lambda parts=parts: parts, epochs=4, learning_rate=0.02)
        trainer = TransferTrainer(task, task.space("feed_forward"), NoTransfer(), engine=engine)
        job = Job(0, task.space("feed_forward").sample(np.random.default_rng(1)), None, seed=1)

        found = trainer.evaluate(job)

        assert found.objective == 1.0, found
        assert found.measures["engine"] == ("keras" if engine == "keras" else "numpy")


def test_finalists_are_tested_with_rows_that_no_search_saw(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    parts = (POINTS[:200], LABELS[:200], POINTS[200:250], LABELS[200:250])
    # Test rows with other labels, so that no model is right on many of them.
    task = application(lambda: Data(*parts, POINTS[250:], (LABELS[250:] + 1) % 3), epochs=5)

    run = transfer_nas.search(
        task,
        space="feed_forward",
        max_evals=6,
        population_size=3,
        sample_size=2,
        seed=1,
        retrain=2,
        output_dir=tmp_path / "run",
    )

    assert len(run.summary["retrained"]) == 2
    for each in run.summary["retrained"]:
        assert each["objective"] > 0.8 and each["chosen_from"] == 6
        assert each["test"]["accuracy"] < 0.3
    assert json.loads((tmp_path / "run" / "retrained.json").read_text()) == run.summary["retrained"]
    said = capfd.readouterr()
    assert (
        "on the validation rows, by which it is the best of 6; accuracy 0." in said.err + said.out
    )
    assert "on 50 test rows that no search saw" in said.err + said.out
    objective = runs.read(tmp_path / "run").description["objective"]
    assert (objective["test_rows"], objective["split_seed"]) == (50, 0)


def test_the_report_sets_validation_and_test_side_by_side(tmp_path: Path) -> None:
    from tests.made_up_runs import write_run
    from transfer_nas.report import best

    write_run(tmp_path / "run", 12)
    finalist = {"job": 3, "objective_in_search": 0.9, "objective": 0.95, "chosen_from": 12}
    finalist |= {"test": {"loss": 0.3, "accuracy": 0.8125}, "epochs": 30}
    failed = {"job": 4, "objective_in_search": 0.9, "objective": None, "test": None}
    file = tmp_path / "run" / "summary.json"
    summary = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(summary | {"retrained": [finalist, failed]}))
    run = runs.read(tmp_path / "run")

    tested, _ = best.view(run, best.Architectures.of(run)).tables

    assert tested.rows[0] == ["job 3", "0.9000", "0.9500", "accuracy 0.8125", "12", "30"]
    assert tested.rows[1][2:4] == ["–", "no test rows"]
    assert tested.jobs == {0: [3, 4]}
