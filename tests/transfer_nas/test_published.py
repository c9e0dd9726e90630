"""CANDLE's benchmarks as published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import transfer_nas
from transfer_nas import applications
from transfer_nas.applications import ReduceLROnPlateau, as_tuple
from transfer_nas.errors import ApplicationError


def test_attn_with_all_that_is_published(tmp_path: Path) -> None:
    """On generated data of the published width, few rows of it: what was in effect is written."""
    run = transfer_nas.search(
        "attn:published",
        max_evals=2,
        epochs=2,
        rows="224,84",
        population_size=2,
        sample_size=2,
        seed=1,
        output_dir=tmp_path / "run",
        progress=False,
    )
    assert len(run) == 2 and run.done.all()
    said = json.loads((tmp_path / "run/run.json").read_text())
    assert said["objective"] == {
        "metric": "auc_pr",
        "mode": "max",
        "validation_rows": 84,
        "test_rows": 0,
        "split_seed": 0,
    }
    training = said["training"]
    assert training["class_weight"] == "balanced" and training["sample_weights"]
    assert training["learning_rate"] == 1e-5 and training["optimizer"] == "SGD"
    assert training["metrics"] == ["auc_pr", "accuracy", "auc", "f1"]
    plateau, stop = training["callbacks"]
    assert plateau["name"] == "ReduceLROnPlateau" and plateau["monitor"] == "val_auc"
    assert (plateau["factor"], plateau["patience"], plateau["cooldown"]) == (0.2, 40, 3)
    assert stop["name"] == "EarlyStopping" and stop["patience"] == 200
    header = (tmp_path / "run/results.csv").read_text().splitlines()[0]
    assert "m:auc_pr,m:accuracy,m:auc,m:f1" in header
    assert said["space"]["input_shapes"] == [[6212]]


def test_the_classes_of_attn_are_as_rare_as_in_the_original() -> None:
    data = applications.resolve("attn:published", "synthetic:40").data
    y, x = np.asarray(data.y_train), np.asarray(data.x_train)
    assert (y == 0).sum() / (y == 1).sum() == pytest.approx(27, rel=0.15)
    assert x.min() == 0 and x.max() == pytest.approx(1)
    np.testing.assert_allclose(data.w_train[y == 1].sum(), data.w_train[y == 0].sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "width", "inputs"), [("nt3", 60_483, 1), ("uno", 15_580, 7), ("combo", 8_582, 3)]
)
def test_the_others_have_the_published_widths(name: str, width: int, inputs: int) -> None:
    task = applications.resolve(f"{name}:published")
    assert sum(shape[0] for shape in task.input_shapes) == pytest.approx(width, abs=3)
    assert len(task.input_shapes) == inputs and task.synthetic
    small = task.with_data("synthetic:60")
    assert len(as_tuple(small.data.x_train)) == inputs
    assert small.batch_size == task.batch_size < 33
    plateaus = [each for each in small.watchers if isinstance(each, ReduceLROnPlateau)]
    assert len(plateaus) == (name == "nt3")


def test_says_what_forms_there_are() -> None:
    with pytest.raises(ApplicationError, match="attn has no form 'publised'; did you mean 'pub"):
        applications.resolve("attn:publised")
    assert applications.resolve("attn:application") is applications.resolve("attn")
