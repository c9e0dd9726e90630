"""Logs: what is written is found again, by patterns, while it is written."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_nas import logs
from transfer_nas.errors import InputError, RunDirectoryError
from transfer_nas.logs import Log, main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two ranks, three evaluations of two epochs."""
    (tmp_path / "run" / "logs").mkdir(parents=True)
    for rank, jobs in ((0, (0, 10)), (1, (2,))):
        with Log(tmp_path / "run" / "logs" / f"rank-{rank}.jsonl") as log:
            log.set(host="here")
            for job in jobs:
                evaluation = log.section("evaluation", job, anew=True)
                for epoch in (1, 2):
                    evaluation.section("epoch", epoch).set(loss=1 / epoch, val_accuracy=job / 10)
                evaluation.set(objective=job / 10)
    return tmp_path / "run"


def test_a_pattern_makes_a_table(run: Path) -> None:
    columns, rows = logs.select(logs.read_run(run), "evaluation/*/epoch/*/val_accuracy,loss")
    assert columns == ["rank", "evaluation", "epoch", "val_accuracy", "loss"]
    assert rows == [
        *([0, 0, 1, 0.0, 1.0], [0, 0, 2, 0.0, 0.5]),
        *([0, 10, 1, 1.0, 1.0], [0, 10, 2, 1.0, 0.5]),
        *([1, 2, 1, 0.2, 1.0], [1, 2, 2, 0.2, 0.5]),
    ]


def test_a_frame_has_the_columns(run: Path) -> None:
    frame = logs.frame(run, "evaluation/*/*")
    assert list(frame.columns) == ["rank", "evaluation", "objective"]
    assert frame.objective.tolist() == [0.0, 1.0, 0.2]


def test_keys_overwrite_and_containers_append(tmp_path: Path) -> None:
    with Log(tmp_path / "log") as log:
        for value in (1, 2):
            log.section("s").set(key=value)
            log.section("s").append(all=value)
    assert logs.read(tmp_path / "log") == {"s": {"key": 2, "all": [1, 2]}}


def test_a_section_that_begins_anew_forgets_its_inner_ones(tmp_path: Path) -> None:
    with Log(tmp_path / "log") as log:
        log.section("evaluation", 1).set(kept=True)
        first = log.section("evaluation", 2)
        first.section("epoch", 9).set(loss=0.1)
        log.section("evaluation", 2, anew=True).set(objective=1)
    found = logs.read(tmp_path / "log")
    assert found == {"evaluation": {"1": {"kept": True}, "2": {"objective": 1}}}


def test_is_readable_while_written(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    log.set(a=1)
    assert logs.read(tmp_path / "log") == {"a": 1}
    with (tmp_path / "log").open("a") as file:
        file.write('{"at":1,"in":"","set":{"a"')
    assert logs.read(tmp_path / "log") == {"a": 1}
    log.close()


def test_a_line_that_a_process_was_killed_in_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log").write_text('{"at":1,"in":"","set":{"a":1}}\n{"at":2,"in":"","se')
    with Log(tmp_path / "log") as log:
        log.set(b=2)
    assert logs.read(tmp_path / "log") == {"a": 1, "b": 2}


def test_numbers_of_numpy_and_those_that_are_none(tmp_path: Path) -> None:
    with Log(tmp_path / "log") as log:
        log.set(a=np.float32(0.5), b=np.int64(3), c=math.nan, d=np.float64(math.inf))
    assert logs.read(tmp_path / "log") == {"a": 0.5, "b": 3, "c": None, "d": None}


def test_a_log_of_nothing_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Log().section("evaluation", 1).set(a=1)
    assert list(tmp_path.iterdir()) == []


NAMES = st.sampled_from(["a", "b", "0", "1", "c.d"])
STEPS = st.lists(
    st.tuples(st.lists(NAMES, max_size=3), st.sampled_from(["set", "append"]), st.integers()),
    max_size=20,
)


@given(STEPS)
def test_reading_is_replaying(steps: list[tuple[list[str], str, int]]) -> None:
    import tempfile

    expected: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        with Log(Path(folder) / "log") as log:
            for names, what, value in steps:
                section, tree = log, expected
                for name in names:
                    section, tree = section.section(name), tree.setdefault(name, {})
                if what == "set":
                    section.set(key=value)
                    tree["key"] = value
                else:
                    section.append(list=value)
                    tree.setdefault("list", []).append(value)
        file = Path(folder) / "log"
        assert (logs.read(file) if file.exists() else {}) == expected


def test_the_command_lists_and_selects(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    listed = capsys.readouterr().out.split()
    assert listed == [
        *("evaluation/*/epoch/*/loss", "evaluation/*/epoch/*/val_accuracy"),
        *("evaluation/*/objective", "host"),
    ]
    assert main([str(run), "--select", "evaluation/*/objective"]) == 0
    assert capsys.readouterr().out == "rank,evaluation,objective\n0,0,0.0\n0,10,1.0\n1,2,0.2\n"


def test_the_command_writes_parquet(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "losses.parquet"
    assert main([str(run), "--select", "evaluation/*/epoch/*/loss", "--output", str(output)]) == 0
    assert pyarrow.parquet.read_table(output)["loss"].to_pylist() == [1.0, 0.5] * 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["run", "--select", "evaluation/*/los"],
            "there is no evaluation/*/los; did you mean evaluation/*/epoch/*/loss",
        ),
        (["run", "--select", "evaluation//loss"], "expected names between slashes"),
        (["nowhere"], "nowhere: there is no such directory"),
        (["."], "holds no logs/rank-N.jsonl"),
        (["run", "--select", "host", "--output", "no/such/file.csv"], "cannot write no/such"),
    ],
)
def test_bad_input_is_one_line(
    run: Path,
    arguments: list[str],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(run.parent)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("logs: error: ") and error.count("\n") == 1 and complaint in error


@pytest.mark.parametrize("line", ["[]", "7", '{"set":{}}', '{"in":"a/b c","set":{}}'])
def test_a_damaged_line_is_named(run: Path, line: str) -> None:
    file = run / "logs" / "rank-1.jsonl"
    count = len(file.read_text().splitlines())
    file.write_text(file.read_text() + line + "\n" + json.dumps({"in": "", "set": {}}) + "\n")
    with pytest.raises(RunDirectoryError, match=rf"rank-1.jsonl, line {count + 1}: not a line"):
        logs.read_run(run)


def test_a_key_that_is_a_section_is_damage(tmp_path: Path) -> None:
    with Log(tmp_path / "log") as log:
        log.set(a=1)
        log.section("a").set(b=2)
    with pytest.raises(RunDirectoryError, match="line 2"):
        logs.read(tmp_path / "log")


def test_a_pattern_without_a_match_says_what_there_is(run: Path) -> None:
    with pytest.raises(InputError, match=r"there is no xyz \(without --select, all are listed\)"):
        logs.select(logs.read_run(run), "xyz")
    with pytest.raises(InputError, match=r"there is no evaluation/.*/val_los; did you mean"):
        logs.select(logs.read_run(run), "evaluation/*/epoch/*/loss,val_los")
