"""Several objectives: names, fronts, hypervolumes, selection, what is kept, resumption."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import transfer_nas
from transfer_nas import applications, evolve, runs, trained_model
from transfer_nas.algorithms import AgingEvolution
from transfer_nas.best import Front, by_dominance, hypervolume
from transfer_nas.errors import InputError
from transfer_nas.job import DONE, Evaluation, Job
from transfer_nas.objectives import Objective, Objectives, parse
from transfer_nas.searching import serial
from transfer_nas.searching.evaluation import InProcess
from transfer_nas.searching.interruption import Interruption
from transfer_nas.searching.manager import Manager
from transfer_nas.searching.run_directory import RunDirectory
from transfer_nas.spaces import FeedForward

SPACE = FeedForward([(4,)], 2, max_depth=3)
BOTH = Objectives(
    (
        Objective("accuracy", "max"),
        Objective("parameters", "min", "parameters", logarithmic=True),
    )
)
POINTS = st.lists(st.tuples(*[st.integers(0, 4)] * 2), min_size=1, max_size=12)
POINTS3 = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=8)


def evaluation(id: int, accuracy: float, parameters: int) -> Evaluation:
    return Evaluation(Job(id, (0,)), DONE, accuracy, {"parameters": parameters})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters:min", "expected two or more"),
        ("accuracy:max,parameters", "expected NAME:max or NAME:min"),
        ("accuracy:maximum,parameters:min", "did you mean 'max'"),
        ("parameters:min,parameters:max", "parameters is there twice"),
        (":max,parameters:min", "expected NAME:max or NAME:min"),
    ],
)
def test_what_are_no_objectives_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        parse(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_unknown_objectives_have_near_misses(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--application", "digits", "--objectives", "val_acuracy:max,parameters:min"]
    assert evolve.main(flags) == 2
    said = capsys.readouterr().err.strip()
    assert "did you mean 'val_accuracy'" in said
    assert "\n" not in said


def test_names_mean_the_metric_costs_and_what_is_declared() -> None:
    digits = applications.resolve("digits")
    found = Objectives.of("val_accuracy:max,bytes:min,train_seconds:min", digits)
    assert [each.measure for each in found] == [None, "bytes_whole_copy", "train_seconds"]
    assert Objectives.from_json(json.loads(json.dumps(found.to_json()))) == found
    for field, wrong in (("name", 1), ("direction", "up"), ("measure", 2), ("negated", "x")):
        assert Objectives.from_json([{**each, field: wrong} for each in found.to_json()]) is None
    assert Objectives.from_json([{"name": "x"}] * 2) is Objectives.from_json({}) is None
    error = replace(digits, metric="mean_absolute_error", mode="min")
    objectives = Objectives.of("val_mean_absolute_error:min,layers:min", error)
    one = Evaluation(Job(0, ()), DONE, -0.25, {"layers": 3})
    assert objectives.values(one) == {"val_mean_absolute_error": 0.25, "layers": 3}
    assert objectives.scores(one) == (-0.25, -math.log(3))


@given(POINTS)
def test_a_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    front = Front(BOTH)
    for id, (accuracy, size) in enumerate(points):
        front.add(evaluation(id, accuracy, 2**size))

    def beaten(i: int) -> bool:
        a, s = points[i]
        return any(
            b >= a and t <= s and ((b, t) != (a, s) or j < i) for j, (b, t) in enumerate(points)
        )

    assert [*front.members] == [i for i in range(len(points)) if not beaten(i)]


def test_failures_and_what_lacks_a_number_are_on_no_front() -> None:
    front = Front(BOTH)
    assert front.add(Evaluation.failure(Job(0, ()), "nan")) is None
    assert front.add(Evaluation(Job(1, ()), DONE, 0.5)) is None
    assert front.hypervolume is None
    assert front.add(evaluation(2, 0.5, 100)) == []
    assert front.hypervolume == 0  # there is nothing to compare it with
    assert front.add(evaluation(3, 0.4, 200)) is None
    assert front.hypervolume == pytest.approx(1)
    assert front.add(evaluation(4, 0.6, 50)) == [2]


@given(st.one_of(POINTS, POINTS3))
def test_the_hypervolume_counts_the_unit_cubes_that_are_beaten(
    points: list[tuple[int, ...]],
) -> None:
    cubes = {
        cube
        for point in points
        for cube in itertools.product(*(range(coordinate) for coordinate in point))
    }
    assert hypervolume(points, np.zeros(len(points[0]))) == pytest.approx(len(cubes))
    shifted = np.array(points) - 2.5
    assert hypervolume(shifted, np.full(len(points[0]), -2.5)) == pytest.approx(len(cubes))


@given(POINTS)
def test_the_order_is_by_fronts_and_the_ends_of_each_come_first(
    points: list[tuple[int, int]],
) -> None:
    order = by_dominance(points)
    assert sorted(order) == [*range(len(points))]
    left = set(range(len(points)))
    while left:
        front = {
            i
            for i in left
            if not any(
                points[j][0] >= points[i][0]
                and points[j][1] >= points[i][1]
                and points[j] != points[i]
                for j in left
            )
        }
        mine, order = order[: len(front)], order[len(front) :]
        assert set(mine) == front
        if len(front) > 2 and len({points[i] for i in front}) == len(front):
            ends = {max(front, key=lambda i: points[i][0]), max(front, key=lambda i: points[i][1])}
            assert set(mine[:2]) == ends
        left -= front


def test_evolution_finds_small_and_good_ones_and_still_ages() -> None:
    def found(objectives: Objectives | None, seed: int) -> float:
        search = AgingEvolution(SPACE, 12, 4, seed)
        search.objectives = objectives
        front, members = Front(BOTH), []
        for _ in range(200):
            (job,) = search.ask()
            parameters = SPACE.graph(job.architecture).parameters
            accuracy = 1 - 300 / parameters - job.architecture[1] / 100
            told = evaluation(job.id, accuracy, parameters)
            told = replace(told, job=job)
            dead = search.tell(told)
            members.append(job.id)
            assert dead == ([members[-13]] if len(members) > 12 else [])
            front.add(told)
        scores = [BOTH.scores(each) for each in front.members.values()]
        return hypervolume(scores, (0, -math.log(1e5)))

    both, one = (sum(found(each, seed) for seed in range(5)) for each in (BOTH, None))
    assert both > 1.2 * one


class Evaluator:
    """Accuracy grows with the parameters, but for some jobs that are unlucky."""

    space = SPACE

    def evaluate(self, job: Job) -> Evaluation:
        parameters = SPACE.graph(job.architecture).parameters
        accuracy = 1 - 10 / parameters - (0.5 if job.id % 3 == 0 else 0)
        self.last = job.id
        return Evaluation(job, DONE, accuracy, {"parameters": parameters})

    def save_model(self, path: Path) -> None:
        path.write_text(str(self.last))


def search(path: Path, count: int, *, resume: bool = False) -> tuple[Manager, list[int]]:
    begin = RunDirectory.resume if resume else RunDirectory.create
    algorithm = AgingEvolution(SPACE, 4, 2, seed=1)
    algorithm.objectives = BOTH
    retired: list[int] = []
    extra = {} if resume else {"objectives": BOTH.to_json()}
    with begin(path, SPACE, {}, extra) as directory, Interruption() as interruption:
        manager = Manager(
            algorithm,
            directory,
            max_evals=count,
            retire=retired.extend,
            report=lambda _: None,
            warn=lambda _: None,
        )
        evaluate = InProcess(Evaluator(), path, lambda _: None)
        serial.run(manager, evaluate, interruption)
    return manager, retired


def test_the_models_of_the_front_are_kept_and_not_retired(tmp_path: Path) -> None:
    manager, retired = search(tmp_path / "run", 60)
    front = manager.status.front
    assert front is not None
    assert len(front.members) > 2
    kept = {path.stem: path.read_text() for path in (tmp_path / "run/front").iterdir()}
    assert kept == {str(job): str(job) for job in front.members}
    alive = set(range(56, 60))
    assert set(retired) == set(range(60)) - alive - front.members.keys()
    assert len(retired) == len(set(retired))
    assert [*runs.read(tmp_path / "run").front.members] == [*front.members]


def test_a_resumed_search_has_the_front_that_it_would_have_had(tmp_path: Path) -> None:
    whole, _ = search(tmp_path / "whole", 60)
    search(tmp_path / "parts", 23)
    (tmp_path / "parts/front/99.keras").write_text("what was not there when it was killed")
    resumed, retired = search(tmp_path / "parts", 60, resume=True)
    assert whole.status.front is not None
    assert resumed.status.front is not None
    assert [*resumed.status.front.members] == [*whole.status.front.members]
    assert not set(retired) & resumed.status.front.members.keys()
    names = {path.name for path in (tmp_path / "parts/front").iterdir()}
    assert names == {path.name for path in (tmp_path / "whole/front").iterdir()}


def test_a_search_for_several_objectives_says_its_front(tmp_path: Path) -> None:
    run = transfer_nas.search(
        "digits",
        objectives="val_accuracy:max,parameters:min,latency_ms:min",
        latency_rows=8,
        max_evals=10,
        epochs=1,
        population_size=4,
        seed=1,
        output_dir=tmp_path / "run",
    )
    assert (run.numbers("m:latency_ms") > 0).all()
    summary = run.summary
    assert {each["job"] for each in summary["front"]} == {*run.front.members}
    for each in summary["front"]:
        row = run.row_of[each["job"]]
        assert each["objectives"]["val_accuracy"] == run.objective[row]
        assert each["objectives"]["parameters"] == run.numbers("m:parameters")[row]
        assert each["architecture"] == run.architecture(row)
        assert (tmp_path / f"run/front/{each['job']}.keras").stat().st_size > 1000
    assert 0 < summary["hypervolume"] <= 1
    assert not [*(tmp_path / "run/front").glob(f"*{trained_model.SUFFIX}")]
