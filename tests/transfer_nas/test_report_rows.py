"""What a page holds of every evaluation, against the run; how objectives read; time to targets."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.made_up_runs import write_run
from transfer_nas import judgement, logs, runs
from transfer_nas.errors import RunDirectoryError
from transfer_nas.report import explore, judged, page, rows, targets
from transfer_nas.report.best import Architectures, retrain_command
from transfer_nas.report.scale import Scale
from transfer_nas.runs import Run

Floats = np.ndarray[Any, np.dtype[np.float64]]


def unpacked(columns: list[dict[str, Any]], data: bytes) -> dict[str, Floats]:
    """Return the numbers of each column, as ``static/rows.js`` finds them."""
    found, start = {}, 0
    for about in columns:
        kind = np.dtype(f"<{about['type']}")
        size = about["length"] * kind.itemsize
        planes = np.frombuffer(data[start : start + size], np.uint8).reshape(kind.itemsize, -1)
        start += size
        raw = np.ascontiguousarray(planes.T).view(kind).ravel().astype(np.float64)
        if "base" in about:
            if about.get("steps"):
                raw = np.cumsum(np.where(raw % 2, -(raw + 1) / 2, raw / 2))
            raw = np.where(raw == 0, np.nan, (raw + about["base"]) / about["scale"])
        found[about["name"]] = raw
    assert start == len(data)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "run"
    write_run(path, 150, ranks=3, seed=5, failures=0.1, curves=True)
    return runs.read(path)


@pytest.fixture(scope="module")
def packed(run: Run) -> dict[str, Floats]:
    made = rows.rows(run, Architectures.of(run))
    return unpacked(made["columns"], zlib.decompress(base64.b64decode(made["data"])))


NUMBERS = st.one_of(
    st.just(float("nan")),
    st.integers(-(2**40), 2**40).map(float),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(0, 300).map(float),
)


@given(st.one_of(st.lists(NUMBERS), st.lists(st.integers(0, 99).map(float))))
def test_numbers_come_back(values: list[float]) -> None:
    given_values = np.array(values, dtype=np.float64)
    packing = rows._Packing()
    packing.add_numbers("x", given_values, None)
    found = unpacked(packing.columns, b"".join(packing.pieces))["x"]
    # Seven digits, as a float of four bytes has them, or all of them.
    np.testing.assert_allclose(found, given_values, rtol=1.2e-7)


@given(st.lists(st.floats(1e-30, 1e30)))
def test_seconds_come_back_in_four_digits(values: list[float]) -> None:
    packing = rows._Packing()
    packing.add_rounded("x", np.array([*values, np.nan]))
    found = unpacked(packing.columns, b"".join(packing.pieces))["x"]
    np.testing.assert_allclose(found, [*values, np.nan], rtol=1e-4)


def test_every_evaluation_is_there(run: Run, packed: dict[str, Floats]) -> None:
    made = rows.rows(run, Architectures.of(run))
    about = {one["name"]: one for one in made["columns"]}
    assert made["count"] == len(run) == 150
    np.testing.assert_array_equal(packed["job_id"], run.job)
    np.testing.assert_allclose(packed["objective"], run.objective, rtol=1e-6)
    np.testing.assert_array_equal(packed["m:parameters"], run.measure("parameters"))
    gathered = run.measure("timestamp_gather")
    np.testing.assert_allclose(packed["m:timestamp_gather"], gathered, atol=1e-3)
    for column, gene in enumerate(run.genes):
        np.testing.assert_array_equal(packed[f"p:{gene}"], run.genomes[:, column])
        assert about[f"p:{gene}"]["texts"] == [str(value) for value in run.genes[gene]]
    texts = np.array(about["job_status"]["texts"])[packed["job_status"].astype(int)]
    assert texts.tolist() == run.status.tolist()
    assert sum(one.get("first", False) for one in made["columns"]) <= 12


def test_layers_and_curves_lie_end_to_end(run: Run, packed: dict[str, Floats]) -> None:
    np.testing.assert_array_equal(packed["layer:count"], run.measure("layers"))
    row = int(np.flatnonzero(run.done & (run.ancestor >= 0))[-1])
    start = int(packed["layer:count"][:row].sum())
    own = packed["layer:inherited"][start : start + int(packed["layer:count"][row])]
    assert own.sum() == run.measure("layers_transferred")[row] > 0
    np.testing.assert_array_equal(packed["curve:count"], np.where(run.done, 3, 0))
    assert packed["curve:loss"][:3].tolist() == pytest.approx([1.5, 0.75, 0.5])
    accuracies = packed["curve:val_accuracy"][2::3]
    np.testing.assert_allclose(accuracies, run.objective[run.done], rtol=1e-6)


def test_long_runs_bring_the_curves_of_the_best(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_CURVES", (10, 2))
    made = rows.rows(run, Architectures(None))
    found = unpacked(made["columns"], zlib.decompress(base64.b64decode(made["data"])))
    with_curve = np.flatnonzero(found["curve:count"])
    good = np.flatnonzero(run.done)
    best = good[np.argsort(-run.objective[good], kind="stable")][:10]
    assert set(with_curve) == set(best) and "layer:count" not in found


def test_pages_of_too_many_evaluations_leave_tables_out(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "LIMIT", 200)
    content = page.content([run, run])
    assert [part.rows is not None for part in content.each] == [True, False]
    assert "at most 200 evaluations: show fewer runs" in page.render(content)


def test_epochs_are_read_as_they_were_logged_last(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with logs.Log(tmp_path / "logs" / "rank-0.jsonl") as log:
        log.section("evaluation", 3).section("epoch", 1).set(loss=9.0)
    with logs.Log(tmp_path / "logs" / "rank-1.jsonl") as log:
        # Another rank does the job again, from the beginning.
        again = log.section("evaluation", 3, anew=True)
        again.section("epoch", 2).set(loss=0.5, note="text")
        again.section("epoch", 1).set(loss=float("nan"))
        log.section("evaluation", 4).section("epoch", 1).set(loss=1.0)
    with (tmp_path / "logs" / "rank-1.jsonl").open("a") as file:
        file.write(
            '{"in":"evaluation/3/epoch/3","set":[1]}\n{"in":"evaluation/3/epoch/9","set":{"l'
        )
    files = runs.open_files(tmp_path, "logs/rank-*.jsonl")
    assert logs.epochs(files, {3, 8}) == {3: [{"epoch": 1}, {"epoch": 2, "loss": 0.5}]}
    with pytest.raises(RunDirectoryError, match="cannot read"):
        logs.epochs(runs.open_files(tmp_path / "nowhere", "*"), {3})


def test_a_packed_run_shows_what_its_directory_shows(run: Run, tmp_path: Path) -> None:
    content = {"format": 1, "rows": 4, "of": 4, "kind": "classes", "counts": [[1, 1], [0, 2]]}
    file = run.path / judgement.NAME
    file.write_text(json.dumps(content))
    runs.pack(run, tmp_path / "run.parquet")
    packed = runs.read(tmp_path / "run.parquet")
    own, other = (rows.rows(one, Architectures(None)) for one in (run, packed))
    assert own["columns"] == other["columns"] and own["data"] == other["data"]
    assert judged.read(packed) == judged.read(run) == content
    runs.unpack(tmp_path / "run.parquet", tmp_path / "again")
    assert (tmp_path / "again" / judgement.NAME).read_bytes() == file.read_bytes()
    file.unlink()


def test_a_metric_to_minimise_is_shown_as_it_is(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 40, mode="min")
    run = runs.read(tmp_path / "run")
    scale = Scale.of(run)
    assert run.best is not None and run.objective[run.best] < 0
    content = page.content([run])
    text = page.render(content)
    assert content.tiles[0].name == "best mean absolute error"
    assert content.tiles[0].figures[0].value == f"{-run.objective[run.best]:.4f}"
    assert "lower is better" in content.tiles[0].figures[0].remark
    assert f"{run.objective[run.best]:.4f}" not in text  # nowhere the negative
    objective = next(
        c for c in rows.rows(run, Architectures(None))["columns"] if c["name"] == "objective"
    )
    assert objective["export"] == scale.name == "mean absolute error"


def test_the_interval_of_an_accuracy_is_wilsons() -> None:
    scale = Scale("accuracy", 1, 450)
    oracle = stats.binomtest(439, 450).proportion_ci(method="wilson")
    assert scale.interval(439 / 450) == pytest.approx((oracle.low, oracle.high), rel=1e-6)
    assert scale.deviation(439 / 450) == pytest.approx(0.0073, abs=1e-4)
    assert Scale("r2 score", 1, 450).interval(0.5) is None
    assert Scale("accuracy", 1, 0).interval(0.5) is None


def test_time_to_a_target_is_when_the_best_was_first_that_good() -> None:
    best = np.array([np.nan, 0.2, 0.2, 0.5, 0.9])
    when = np.array([1.0, 2.0, 3.0, 4.0, np.nan])
    found = targets.first_reached(best, when, np.array([0.1, 0.2, 0.3, 0.5, 0.6]))
    assert found.tolist() == [2.0, 2.0, 4.0, 4.0, np.inf]


@pytest.mark.parametrize("seed", range(5))
def test_rank_correlation_is_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 9, 60).astype(float), rng.normal(size=60).round(1)
    b[::7] = np.nan
    good = np.isfinite(b)
    oracle = stats.spearmanr(a[good], b[good]).statistic
    assert explore.rank_correlation(a, b) == pytest.approx(oracle)


def test_classes_are_counted_true_by_predicted() -> None:
    outputs = np.eye(3)[[0, 1, 1, 2]]
    sparse = "sparse_categorical_crossentropy"
    found = judgement.judge(np.array([0, 1, 2, 2]), outputs, sparse, "accuracy")
    assert found == {"kind": "classes", "counts": [[1, 0, 0], [0, 1, 0], [0, 1, 1]]}
    one_hot = np.eye(3)[[0, 1, 2, 2]]
    assert judgement.judge(one_hot, outputs, "categorical_crossentropy", "accuracy") == found
    answers = np.array([[0.2], [0.9], [0.4]])
    found = judgement.judge(np.array([0, 1, 1]), answers, "binary_crossentropy", "accuracy")
    assert found == {"kind": "classes", "counts": [[1, 0], [1, 1]]}
    # Labels that the outputs do not have, and targets of another shape, are for others to judge.
    assert judgement.judge(np.array([1, 2, 3, 3]), outputs, sparse, "accuracy") is None
    assert judgement.judge(np.zeros((4, 2)), outputs, sparse, "accuracy") is None


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        true, predicted = np.zeros((80, 1)), rng.normal(size=(80, 1))
        low, high = judgement.bootstrap(true, predicted, judgement._METRICS["mean_absolute_error"])
        covered += low <= np.sqrt(2 / np.pi) <= high
    assert 88 <= covered <= 99


def test_residuals_are_kept_with_an_interval_of_the_metric() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(3000, 2))
    predicted = true + rng.normal(scale=0.5, size=true.shape)
    found = judgement.judge(true, predicted, "mean_squared_error", "r2_score")
    assert found is not None and len(found["true"]) == len(found["predicted"]) == 2000
    low, high = found["interval"]
    assert low < 0.75 < high and high - low < 0.05


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"format": 2}',
        '{"format": 1, "rows": 3, "of": 3, "kind": "classes", "counts": [[1, 2], [3]]}',
        '{"format": 1, "rows": 3, "of": 3, "kind": "classes", "counts": [[-1, 2], [3, 4]]}',
        '{"format": 1, "rows": 3, "of": 3, "kind": "values", "outputs": 1, "true": [1],'
        ' "predicted": [null]}',
        '{"format": 1, "rows": 3, "of": 3, "kind": "values", "outputs": 1, "true": [1],'
        ' "predicted": [1], "interval": ["a", 2]}',
    ],
)
def test_what_the_best_predicts_is_left_out_if_damaged(tmp_path: Path, content: str) -> None:
    write_run(tmp_path / "run", 5)
    (tmp_path / "run" / judgement.NAME).write_text(content)
    assert judged.view(runs.read(tmp_path / "run")) is None


def test_what_an_earlier_best_predicts_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 5)
    content = {"format": 1, "rows": 4, "of": 4, "kind": "classes", "counts": [[1, 1], [0, 2]]}
    (tmp_path / "run" / judgement.NAME).write_text(json.dumps(content))
    found = judged.view(runs.read(tmp_path / "run"))
    assert found is not None and "3 of 4 validation rows are right" in found.figures[0].label
    (tmp_path / "run" / "best.safetensors").touch()
    assert judged.view(runs.read(tmp_path / "run")) is None


def test_the_command_trains_no_shorter_than_the_search(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 5, settings={"epochs": 40})
    assert retrain_command(runs.read(tmp_path / "run"), 3).endswith("--job 3 --epochs 40")
    write_run(tmp_path / "other", 5)
    assert "--epochs" not in retrain_command(runs.read(tmp_path / "other"), 3)
