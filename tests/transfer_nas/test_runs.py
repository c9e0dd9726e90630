"""Reading run directories: whole, half-written, damaged, of another version."""

import csv
import fcntl
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.made_up_runs import write_run
from transfer_nas import runs
from transfer_nas.errors import RunDirectoryError
from transfer_nas.runs.reading import names
from transfer_nas.spaces import FeedForward


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", 60, seed=3, failures=0.1)
    return tmp_path / "run"


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_columns_are_those_of_the_file(run: Path) -> None:
    found, expected = runs.read(run), rows(run)
    assert len(found) == len(expected) == 60
    failed = [row["job_status"] != "DONE" for row in expected]
    assert 0 < sum(failed) < 60
    assert found.done.tolist() == [not f for f in failed]
    for row, objective, job, parent in zip(
        expected, found.objective, found.job, found.parent, strict=True
    ):
        assert row["job_id"] == str(job)
        assert (int(row["m:parent"]) if row["m:parent"] else -1) == parent
        if row["job_status"] == "DONE":
            assert float(row["objective"]) == objective
        else:
            assert math.isnan(objective)
    objectives = [float(row["objective"]) for row in expected if row["job_status"] == "DONE"]
    assert found.best is not None and found.objective[found.best] == max(objectives)
    assert found.running_best[-1] == max(objectives)
    assert np.all(np.diff(found.running_best[1:]) >= 0)


def test_ancestors_are_jobs(run: Path) -> None:
    found = runs.read(run)
    expected = [row["m:ancestor"].removeprefix(f"{found.id}/") or "-1" for row in rows(run)]
    assert found.ancestor.tolist() == [int(text) for text in expected]
    assert (found.ancestor >= 0).any()


def test_a_model_of_another_run_is_no_job_of_this_one(run: Path) -> None:
    found = runs.read(run)
    text = (run / "results.csv").read_text().replace(f"{found.id}/", "0123456789ab/")
    (run / "results.csv").write_text(text)
    assert set(runs.read(run).ancestor.tolist()) == {-1, -2}


def test_genomes_are_those_of_the_journal(run: Path) -> None:
    jobs = {
        job["id"]: job["architecture"]
        for job in map(json.loads, (run / "checkpoint").read_text().splitlines())
    }
    found = runs.read(run)
    assert found.genomes.tolist() == [jobs[job] for job in found.job.tolist()]


def test_genes_of_several_types_are_told_apart(tmp_path: Path) -> None:
    space = FeedForward([(4,)], 2, max_depth=2)  # numbers and texts
    write_run(tmp_path / "run", 20, space=space)
    found = runs.read(tmp_path / "run")
    assert found.genomes.min() >= 0
    assert {len(space.genes)} == {found.genomes.shape[1]}


def test_a_torn_last_line_is_left_out_and_left_alone(run: Path) -> None:
    with (run / "results.csv").open("a") as file:
        file.write("48_tanh,0,64_ta")
    before = (run / "results.csv").read_bytes()
    assert len(runs.read(run)) == 60
    assert (run / "results.csv").read_bytes() == before


def test_a_run_without_results_has_none(run: Path) -> None:
    (run / "results.csv").unlink()
    found = runs.read(run)
    assert len(found) == 0 and found.best is None and found.genomes.shape == (0, 21)


def test_columns_of_later_versions_are_kept_as_texts(run: Path) -> None:
    lines = (run / "results.csv").read_text().splitlines()
    lines = [lines[0] + ",m:mood", *(line + ",good" for line in lines[1:])]
    (run / "results.csv").write_text("\n".join(lines) + "\n")
    assert set(runs.read(run).texts("m:mood")) == {"good"}


def test_state_tells_finished_running_and_stopped(tmp_path: Path) -> None:
    write_run(tmp_path / "done", 20)
    assert runs.read(tmp_path / "done").state == runs.FINISHED
    write_run(tmp_path / "open", 20, finished=False)
    assert runs.read(tmp_path / "open").state == runs.IN_PROGRESS  # it has just written
    long_ago = 1_000_000_000
    os.utime(tmp_path / "open" / "results.csv", (long_ago, long_ago))
    assert runs.read(tmp_path / "open").state == runs.STOPPED
    with (tmp_path / "open" / "checkpoint").open("a") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        assert runs.read(tmp_path / "open").state == runs.IN_PROGRESS
        assert runs.read(tmp_path / "open").asked == 21


def change_format(run: Path) -> None:
    description = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**description, "format": 99}))


def tear_description(run: Path) -> None:
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text[: len(text) // 2])


def shorten_a_row(run: Path) -> None:
    lines = (run / "results.csv").read_text().splitlines()
    lines[5] = lines[5][:30]
    (run / "results.csv").write_text("\n".join(lines) + "\n")


def name_no_number(run: Path) -> None:
    text = (run / "results.csv").read_text().splitlines()
    header = text[0].split(",")
    cells = text[1].split(",")
    cells[header.index("m:layers")] = "many"
    (run / "results.csv").write_text("\n".join([text[0], ",".join(cells), *text[2:]]) + "\n")


def write_no_text(run: Path) -> None:
    lines = (run / "results.csv").read_bytes().split(b"\n")
    lines[3] = lines[3].replace(b"DONE", b"D\xffNE").replace(b",0.9", b",\xff0.9")
    (run / "results.csv").write_bytes(b"\n".join(lines))


def make_population(run: Path) -> None:
    (run / "run.json").unlink()
    (run / "population.json").write_text("{}")


def remove_description(run: Path) -> None:
    (run / "run.json").unlink()


def other_table(run: Path) -> None:
    (run / "results.csv").write_text("a,b\n1,2\n")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (change_format, "found 99; a newer transfer-nas wrote it: update this one"),
        (tear_description, "not a run's description"),
        (make_population, "holds a population"),
        (remove_description, "holds no run.json"),
        (other_table, "no column job_id, job_status, objective"),
    ],
)
def test_what_is_wrong_is_said(run: Path, damage: Callable[[Path], None], complaint: str) -> None:
    damage(run)
    with pytest.raises(RunDirectoryError, match=complaint):
        runs.read(run)


@pytest.mark.parametrize("damage", [shorten_a_row, name_no_number, write_no_text])
def test_damaged_lines_are_left_out_and_counted(run: Path, damage: Callable[[Path], None]) -> None:
    whole = runs.read(run)
    damage(run)
    found = runs.read(run)
    assert (len(found), found.damaged) == (59, 1)
    assert set(found.job.tolist()) < set(whole.job.tolist())


def test_a_directory_that_is_empty_or_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="is empty: expected the --output_dir"):
        runs.read(tmp_path)
    with pytest.raises(RunDirectoryError, match="no such directory"):
        runs.read(tmp_path / "nowhere")


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "first", tmp_path / "b" / "first", tmp_path / "b" / "second"]
    for path in paths:
        write_run(path, 3)
    found = [runs.read(path) for path in paths]
    assert names(found[1:]) == ["first", "second"]
    assert names(found) == ["a/first", "b/first", "b/second"]
