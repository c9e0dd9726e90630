"""Trainings that are ended early: who is stopped, by what, and what becomes of him."""

from pathlib import Path

import numpy as np
import pytest

import transfer_nas
from transfer_nas.errors import InputError
from transfer_nas.job import Job
from transfer_nas.settings import Settings
from transfer_nas.stopping import Asha, Median, Stopper, stopper


def told(
    stopping: Stopper, job: int, *objectives: float, parent: int | None = None, first: int = 1
) -> list[bool]:
    """Return what a stopper answers to each epoch of a job."""
    candidate = Job(job, (), parent)
    return [
        stopping.report(candidate, step, {"objective": value})
        for step, value in enumerate(objectives, first)
    ]


def test_asha_lets_the_best_third_go_on_at_each_rung() -> None:
    asha = Asha()
    for job in range(9):
        told(asha, job, job / 10)
    assert told(asha, 10, 0.9) == [False]
    assert told(asha, 11, 0.75) == [False]  # two of eleven are better
    assert told(asha, 12, 0.35) == [True]
    assert told(asha, 13, 0.9, 0.0, 0.9) == [False] * 3  # nothing is decided at epoch 2
    for job in range(20, 26):
        told(asha, job, 0.8, first=3)
    assert told(asha, 30, 0.1, first=3) == [True]


def test_asha_spares_those_who_come_before_there_is_a_comparison() -> None:
    asha = Asha()
    assert [told(asha, job, 1 - job / 10) for job in range(5)] == [[False]] * 5
    assert told(asha, 6, 0.0) == [True]


def test_the_median_of_the_others_means_stops_who_was_never_as_good() -> None:
    median = Median()
    for job in range(5):
        assert told(median, job, 0.2, 0.4, 0.6) == [False] * 3
    # Means up to each epoch are 0.2, 0.3, 0.4.
    assert told(median, 10, 0.2, 0.25, 0.3) == [False, True, True]
    assert told(median, 11, 0.5, 0.1, 0.1) == [False] * 3  # it was once
    median.forget(11)
    assert told(median, 11, 0.1) == [True]


@pytest.mark.parametrize("kind", [Asha, Median])
def test_heirs_are_compared_with_heirs(kind: type[Stopper]) -> None:
    stopping = kind()
    for job in range(20):
        told(stopping, job, 0.9, parent=0)
    assert told(stopping, 30, 0.1) == [False]  # a newcomer, the first
    assert told(stopping, 31, 0.1, parent=0) == [True]


@pytest.mark.parametrize("kind", [Asha, Median])
def test_without_an_objective_nothing_is_stopped(kind: type[Stopper]) -> None:
    stopping = kind()
    for job in range(20):
        told(stopping, job, 0.9)
    assert not stopping.report(Job(30, ()), 1, {"loss": 1e9})
    assert told(stopping, 31, float("nan")) == [False]


@pytest.mark.parametrize("kind", [Asha, Median])
def test_who_came_long_ago_is_no_measure(kind: type[Stopper]) -> None:
    stopping = kind()
    for job in range(100):
        told(stopping, job, 0.9)
    for job in range(100, 300):
        told(stopping, job, 0.1)
    assert told(stopping, 400, 0.2) == [False]


def test_names() -> None:
    assert stopper("none") is None
    with pytest.raises(InputError, match="did you mean 'median'"):
        stopper("medain")
    with pytest.raises(InputError, match="unknown --stop 'ahsa'; did you mean 'asha'"):
        Settings.of({"application": "digits", "stop": "ahsa"})
    both = {"stop": "asha", "objectives": "val_accuracy:max,parameters:min"}
    with pytest.raises(InputError, match="leave one of them out"):
        Settings.of({"application": "digits", **both})


@pytest.mark.parametrize("algorithm", ["evolution", "random"])
def test_a_search_stops_some_and_goes_on_from_them(tmp_path: Path, algorithm: str) -> None:
    run = transfer_nas.search(
        "digits",
        algorithm=algorithm,
        stop="asha",
        space="feed_forward",
        max_evals=40,
        epochs=5,
        child_epochs=5,
        population_size=4,
        seed=0,
        progress=False,
        output_dir=tmp_path / "run",
    )
    epochs = run.measure("epochs")
    assert run.done.all()
    assert (epochs[:5] == 5).all()
    stopped = set(run.job[epochs < 5].tolist())
    assert 5 < len(stopped) < 35
    assert np.nanmax(epochs) == 5
    assert stopped & set(run.ancestor.tolist())  # their weights are stored as what they are
    assert epochs[run.best] == 5
