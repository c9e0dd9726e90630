"""Many runs as one table: the same figures as pandas finds."""

from pathlib import Path

import pandas
import pyarrow.parquet
import pytest

from tests.made_up_runs import write_run
from transfer_nas import runs
from transfer_nas.experiments import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(3):
        for name, transfer in (("store", True), ("noop", False)):
            write_run(
                tmp_path / "all" / name / str(seed), 40, seed=seed, transfer=transfer, failures=0.05
            )
    return tmp_path / "all"


def test_groups_have_the_means_of_their_runs(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "summary.csv"
    assert main(["aggregate", str(folder), "--by", "transfer", "--output", str(output)]) == 0
    found = pandas.read_csv(output).set_index("transfer")
    assert found.runs.to_dict() == {"store": 3, "noop": 3}
    for transfer in ("store", "noop"):
        frames = [
            pandas.read_csv(folder / transfer / str(seed) / "results.csv") for seed in range(3)
        ]
        bests = pandas.Series(
            [frame.objective[frame.job_status == "DONE"].astype(float).max() for frame in frames]
        )
        row = found.loc[transfer]
        assert row.best_objective_mean == pytest.approx(bests.mean())
        assert row.best_objective_std == pytest.approx(bests.std())
        assert row.best_objective_max == pytest.approx(bests.max())
        children = [frame[frame["m:parent"].notna()] for frame in frames]
        shares = [c["m:layers_transferred"].sum() / c["m:layers"].sum() for c in children]
        assert row.share_transferred_mean == pytest.approx(sum(shares) / 3)
    assert found.share_transferred_mean["noop"] == 0 < found.share_transferred_mean["store"]


def test_a_row_a_run_with_its_settings(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "runs.parquet"
    runs.pack(runs.read(folder / "store" / "0"), tmp_path / "packed.parquet")
    paths = [str(folder / "store" / "1"), str(tmp_path / "packed.parquet")]
    assert main(["aggregate", *paths, "--each", "--output", str(output)]) == 0
    table = pyarrow.parquet.read_table(output)
    assert table["seed"].to_pylist() == [1, 0] and table["evaluations"].to_pylist() == [40, 40]
    assert "best_objective" in table.column_names


def test_prints_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["aggregate", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "best_objective_mean" in lines[0]
    assert {"store", "noop"} == {line.split()[2] for line in lines[1:]}


def test_runs_that_cannot_be_read_are_named_and_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "noop" / "1" / "run.json").write_text("{")
    assert main(["aggregate", str(folder), "--each"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 6
    assert captured.err.startswith("experiments: left out: ") and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["aggregate", "nowhere"], "there is no such file or directory"),
        (["aggregate", "EMPTY"], "there is no run in it"),
        (["aggregate", "ALL", "--by", "transfr"], "did you mean 'transfer'"),
        (["aggregate", "ALL", "--output", "no/such.csv"], "cannot write no/such.csv"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.parent / "empty").mkdir()
    names = {"ALL": str(folder), "EMPTY": str(folder.parent / "empty")}
    assert main([names.get(argument, argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("experiments: error: ") and error.count("\n") == 1
    assert complaint in error
