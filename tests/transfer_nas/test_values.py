"""Values of an application's own: declared, measured, written, read and searched for."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import transfer_nas
from transfer_nas import experiments, runs
from transfer_nas.applications import Application, resolve
from transfer_nas.best import beats, ranking
from transfer_nas.errors import ApplicationError, InputError, RunDirectoryError
from transfer_nas.job import DONE, Evaluation, Job
from transfer_nas.report.best import Architectures
from transfer_nas.report.explore import against
from transfer_nas.report.rows import rows
from transfer_nas.runs.packing import pack, unpack
from transfer_nas.searching.run_directory import RunDirectory
from transfer_nas.spaces import FeedForward
from transfer_nas.trainer import TransferTrainer
from transfer_nas.training import ENGINES
from transfer_nas.training.program import Trained
from transfer_nas.transfer import NoTransfer
from transfer_nas.values import CORE, Value, declared_in

TINY = Value("tiny", "ms", "min")
WORD, ROUNDS = Value("word", kind=str), Value("rounds", "epochs", "max", kind=int)


def application(measure: Callable[[Trained], Mapping[str, Any]] | None, **fields: Any) -> Any:
    """Return breast_cancer, measured."""
    fields = {"values": (TINY, WORD, ROUNDS), "epochs": 2, **fields}
    return dataclasses.replace(resolve("breast_cancer"), measure=measure, **fields)


def simple(trained: Trained) -> dict[str, Any]:
    # Far below what six decimals hold, and larger for larger networks.
    return {"tiny": np.float32(1e-9) * trained.graph.parameters, "word": "a,b", "rounds": 3}


def evaluate(task: Application, engine: str = "auto", job: int = 0) -> Evaluation:
    space = task.space()
    genome = space.sample(np.random.default_rng(0))
    return TransferTrainer(task, space, NoTransfer(), engine=engine).evaluate(Job(job, genome))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "two words"}, "identifier"),
        ({"name": "class"}, "keyword"),
        ({"direction": "up"}, "'up'"),
        ({"kind": bool}, "int, float or str"),
        ({"kind": str, "direction": "max"}, "direction max"),
    ],
)
def test_wrong_declarations_are_one_line(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        Value(**{"name": "latency", **fields})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"values": [Value("epochs")]}, "value epochs: the name is taken"),
        ({"values": [Value("objective")]}, "value objective: the name is taken"),
        ({"values": [TINY, TINY]}, "tiny is declared twice"),
        ({"values": ["tiny"]}, "expected transfer_nas.values.Value, found 'tiny'"),
        ({"values": 3}, "values: expected a sequence, found 3"),
        ({"values": ()}, "no values are declared"),
        ({"measure": None}, "tiny, word, rounds declared, and there is no function"),
        ({"measure": 7}, "expected a function, found 7"),
        ({"objective": "tyni"}, "objective 'tyni' is neither .*; did you mean 'tiny'"),
        ({"objective": "word"}, "objective word: is more of it better, or less"),
    ],
)
def test_what_does_not_go_together_is_said_early(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ApplicationError, match=says) as error:
        application(**{"measure": simple, **fields})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_trained_candidate_can_be_looked_at(engine: str) -> None:
    seen: dict[str, Any] = {}

    def measure(trained: Trained) -> dict[str, Any]:
        x = trained.data.x_valid
        seen["predicted"], seen["epochs"] = trained.predict(x), trained.epochs
        model = trained.model()
        seen["by Keras"] = model.predict(x, verbose=0)
        model.set_weights([0 * array for array in model.get_weights()])  # its own business
        seen["again"] = trained.predict(x)
        seen["layers"] = len(trained.graph)
        return simple(trained)

    found = evaluate(application(measure), engine)
    assert found.status == DONE and seen["layers"] == found.measures["layers"]
    np.testing.assert_allclose(seen["predicted"], seen["by Keras"], rtol=1e-4, atol=1e-5)
    assert (seen["predicted"] == seen["again"]).all()
    assert seen["epochs"] == found.measures["epochs"] == 2
    assert found.measures["word"] == "a,b" and found.measures["rounds"] == 3


def raises(_: Trained) -> dict[str, Any]:
    raise OverflowError("too\nmuch")


@pytest.mark.parametrize(
    ("measure", "says"),
    [
        (lambda t: {**simple(t), "wrod": 1}, "measure(): 'wrod' is not declared; did you mean 'wo"),
        (lambda t: {"tiny": 1.0, "word": ""}, "rounds is declared and was not measured; found"),
        (lambda t: {**simple(t), "tiny": math.nan}, "tiny: expected a finite number"),
        (lambda t: {**simple(t), "tiny": "1"}, "tiny: expected a finite number"),
        (lambda t: {**simple(t), "tiny": True}, "tiny: expected a finite number"),
        (lambda t: {**simple(t), "tiny": np.ones(2)}, "tiny: expected a finite number"),
        (lambda t: {**simple(t), "rounds": 1.5}, "rounds: expected a whole number"),
        (lambda t: {**simple(t), "word": 1}, "word: expected a text"),
        (lambda t: None, "measure(): expected a dict of declared values, found None"),
        (raises, "OverflowError: too much"),
    ],
)
def test_what_is_not_as_declared_fails_the_candidate(measure: Any, says: str) -> None:
    found = evaluate(application(measure))
    assert found.status in ("F_ValuesError", "F_OverflowError")
    assert says in str(found.measures["error"]) and "\n" not in str(found.measures["error"])
    assert found.measures["bytes_stored"] == 0 and found.measures["layers"] > 0


def test_a_search_shows_them_everywhere(tmp_path: Path) -> None:
    # Every third candidate is none; the objective is what is least, so the metric is a value too.
    calls: list[float] = []

    def measure(trained: Trained) -> dict[str, Any]:
        calls.append(time.time())
        return {} if len(calls) % 3 == 2 else simple(trained)

    task = application(measure, objective="tiny")
    path = tmp_path / "run"
    with transfer_nas.Search(None, task, epochs=1, seed=1, output_dir=path, progress=False) as s:
        frame = s.run(max_evals=9)
        best = frame.loc[frame["objective"].idxmax()]
    assert len(calls) == 9 and (frame["job_status"] == "F_ValuesError").sum() == 3
    done = frame[frame["job_status"] == DONE]
    assert done["m:tiny"].tolist() == (-done["objective"]).tolist()  # exact, though so small
    assert best["m:tiny"] == done["m:tiny"].min() < 1e-4
    assert done["m:rounds"].tolist() == [3] * 6 and set(done["m:word"]) == {"a,b"}
    assert (done[f"m:{task.metric_names[0]}"] > 0.3).all()  # the metric
    description = json.loads((path / "run.json").read_text())
    assert [value["name"] for value in description["values"]] == [
        *("tiny", "word", "rounds", task.metric_names[0])
    ]
    assert (
        description["objective"]["metric"] == "tiny" and description["objective"]["mode"] == "min"
    )

    run = runs.read(path)
    assert run.job[run.best] == best["job_id"]
    table = rows(run, Architectures(None, ""))
    shown = {column["name"]: column for column in table["columns"]}
    assert shown["m:tiny"]["label"] == "tiny (ms)" and shown["m:tiny"]["first"]
    (figure,) = against(run).figures
    assert figure.charts["tiny (ms)"]["x"] == "m:tiny"
    assert experiments.tabulate([run])["value:tiny"].to_pylist() == [best["m:tiny"]]
    grouped = experiments.aggregate(experiments.tabulate([run, run]), ["application"])
    assert grouped["value:tiny_mean"].to_pylist() == pytest.approx([best["m:tiny"]])

    pack(run, tmp_path / "run.parquet")
    packed = runs.read(tmp_path / "run.parquet")
    assert packed.table.equals(run.table) and packed.best == run.best
    unpack(tmp_path / "run.parquet", tmp_path / "again")
    assert (tmp_path / "again/results.csv").read_bytes() == (path / "results.csv").read_bytes()


def test_a_resumed_run_measures_what_it_measured(tmp_path: Path) -> None:
    space = FeedForward([(4,)], 2)
    RunDirectory.create(tmp_path, space, {}, {}, values=[TINY]).close()
    RunDirectory.resume(tmp_path, space, {}, {}, values=[TINY]).close()
    other = dataclasses.replace(TINY, unit="s")
    for now, says in {
        (): "declared values tiny, not none",
        (TINY, WORD): "declared values tiny, not tiny, word",
        (other,): "other values of the names tiny",
    }.items():
        with pytest.raises(RunDirectoryError, match=says) as error:
            RunDirectory.resume(tmp_path, space, {}, {}, values=now)
        assert "\n" not in str(error.value)


def test_declarations_survive_json() -> None:
    for value in (*CORE, TINY, WORD, ROUNDS):
        assert Value.from_dict(json.loads(json.dumps(value.to_dict()))) == value
    damaged = {"values": [TINY.to_dict(), {"name": "x"}, 3, {**TINY.to_dict(), "name": "layers"}]}
    assert list(declared_in(damaged)) == [*(value.name for value in CORE), "tiny"]
    assert declared_in({"values": "x"}) == {value.name: value for value in CORE}


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, math.nan, -math.inf])))
def test_one_answer_to_which_is_the_best(objectives: list[float]) -> None:
    told = [
        Evaluation(Job(id, ()), "F_x" if math.isnan(objective) else DONE, objective)
        for id, objective in enumerate(objectives)
    ]
    best: Evaluation | None = None
    for evaluation in told:
        best = evaluation if beats(evaluation, best) else best
    ranked = ranking(objectives).tolist()
    assert (best.job.id if best else None) == (ranked[0] if ranked else None)
    keys = [(-objectives[i], i) for i in ranked]
    assert keys == sorted(keys) and len(ranked) == sum(not math.isnan(o) for o in objectives)
    assert not beats(Evaluation(Job(0, ()), DONE, math.nan), None)
    assert not beats(Evaluation(Job(0, ()), "F_x", 3.0), None)
