"""What a run leaves on disk: written, refused, torn, damaged, taken up."""

import codecs
import contextlib
import csv
import dataclasses
import errno
import json
import math
import re
import resource
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from graph_meta import LayerGraph, layers
from graph_meta.graph import FORMAT_VERSION, GraphBuilder
from transfer_nas import runs
from transfer_nas.errors import RunDirectoryError, SpaceError, Unwritable
from transfer_nas.job import DONE, Evaluation, Job
from transfer_nas.searching import results
from transfer_nas.searching.clock import Clock
from transfer_nas.searching.journal import claim
from transfer_nas.searching.run_directory import RunDirectory
from transfer_nas.spaces import Choices, FeedForward, Scalar, Space, from_function
from transfer_nas.values import CORE

SPACE = FeedForward([(4,)], 2, max_depth=2)
SETTINGS = {"population_size": 4, "epochs": 3}
JOBS = [Job(0, (0, 1, 2, 0), None, 11), Job(1, (3, 1, 2, 0), 0, 12), Job(2, (3, 1, 2, 1), 1, 13)]
DONE_0 = Evaluation(
    JOBS[0],
    DONE,
    0.1 + 0.2,
    {"ancestor": "m,1", "layers": 5, "match_seconds": 0.25, "rank": 1},
)
FAILED_1 = Evaluation.failure(JOBS[1], "ValueError", {"parent": 0})


def begin(path: Path) -> RunDirectory:
    directory = RunDirectory.create(path, SPACE, SETTINGS, {"versions": {}})
    for job in JOBS:
        directory.asked(job)
    directory.told(DONE_0)
    directory.told(FAILED_1)
    directory.flush()
    return directory


def resume(path: Path, space: Space = SPACE, **changed: Any) -> RunDirectory:
    return RunDirectory.resume(path, space, {**SETTINGS, **changed}, {"versions": {}})


def test_results_have_the_columns_of_deephyper(tmp_path: Path) -> None:
    directory = begin(tmp_path / "run")
    # Flushed: another process sees it while the run is open.
    with (tmp_path / "run" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    directory.close()
    assert list(rows[0]) == [
        *("p:layer_0", "p:dropout_0", "p:layer_1", "p:dropout_1"),
        *("objective", "job_id", "job_status"),
        *(f"m:{value.name}" for value in CORE),
    ]
    assert rows[0]["p:layer_0"] == "none" and rows[0]["p:dropout_0"] == "0.1"
    assert float(rows[0]["objective"]) == 0.1 + 0.2
    assert rows[0]["job_status"] == "DONE" and rows[0]["m:ancestor"] == "m,1"
    assert rows[1]["objective"] == rows[1]["job_status"] == "F_ValueError"
    assert rows[1]["m:parent"] == "0" and rows[1]["m:ancestor"] == ""


def test_a_later_process_finds_everything(tmp_path: Path) -> None:
    begin(tmp_path).close()
    with resume(tmp_path) as directory:
        assert directory.jobs == JOBS
        assert directory.evaluations[0] == DONE_0
        assert directory.evaluations[1].job == JOBS[1]
        assert directory.evaluations[1].status == "F_ValueError"
        assert math.isnan(directory.evaluations[1].objective)
        directory.told(Evaluation(JOBS[2], DONE, 0.5))
    with resume(tmp_path) as directory:
        assert [e.job.id for e in directory.evaluations] == [0, 1, 2]
    assert len(json.loads((tmp_path / "run.json").read_text())["resumed"]) == 2


@pytest.mark.parametrize("name", ["results.csv", "checkpoint"])
def test_a_torn_last_line_is_dropped_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    begin(tmp_path).close()
    whole = (tmp_path / name).read_bytes()
    lines = whole.splitlines(keepends=True)
    last = len(lines[-1])
    # Jobs are written down before they are handed out: the last one has no result yet.
    expected = ([0, 1], [0, 1]) if name == "checkpoint" else ([0, 1, 2], [0])
    for cut in range(1, last + 1):
        (tmp_path / name).write_bytes(whole[: len(whole) - cut])
        with resume(tmp_path) as directory:
            found = (
                [job.id for job in directory.jobs],
                [evaluation.job.id for evaluation in directory.evaluations],
            )
            assert found == expected
            if name == "results.csv":  # goes on where the whole lines end
                directory.told(FAILED_1)
        if name == "results.csv":
            assert (tmp_path / name).read_bytes() == whole


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes; what is written across the limit is cut off there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["results.csv", "checkpoint"])
def test_without_room_nothing_is_half_written_and_later_everything_is(
    tmp_path: Path, name: str
) -> None:
    directory = begin(tmp_path)
    written = (tmp_path / name).read_bytes()
    job = Job(3, (1, 1, 2, 1), None, 14)
    directory.asked(job)
    directory.told(Evaluation(JOBS[2], DONE, 0.5))
    with (
        room_for(len(written) + 5),
        pytest.raises(Unwritable, match=f"cannot write to {tmp_path}: .*; nothing that was fin"),
    ):
        directory.flush()
    assert (tmp_path / name).read_bytes() == written
    directory.flush()
    directory.close()
    with resume(tmp_path) as again:
        assert again.damage == []
        assert [e.job.id for e in again.evaluations] == [0, 1, 2]
        assert again.jobs == [*JOBS, job]


def test_a_run_that_cannot_be_taken_up_for_want_of_room_is_as_it_was(tmp_path: Path) -> None:
    begin(tmp_path).close()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    with room_for(10), pytest.raises(RunDirectoryError, match=f"cannot write to {tmp_path}"):
        resume(tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.is_file()} == before
    resume(tmp_path).close()  # nobody holds it


def test_a_run_of_a_newer_version_says_what_to_do(tmp_path: Path) -> None:
    begin(tmp_path).close()
    description = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(RunDirectoryError, match="found 99; a newer transfer-nas wrote it: update"):
        resume(tmp_path)


def test_a_run_with_other_digests_is_not_taken_up(tmp_path: Path) -> None:
    begin(tmp_path).close()
    description = json.loads((tmp_path / "run.json").read_text())
    del description["layer_graphs"]  # as before there were two versions of them
    before = json.dumps(description)
    (tmp_path / "run.json").write_text(before)
    with pytest.raises(RunDirectoryError, match="expected version 2 of layer graphs, found 1"):
        resume(tmp_path)
    assert (tmp_path / "run.json").read_text() == before


def test_a_run_killed_before_its_first_line_can_be_taken_up(tmp_path: Path) -> None:
    begin(tmp_path).close()
    (tmp_path / "results.csv").unlink()
    (tmp_path / "checkpoint").unlink()
    with resume(tmp_path) as directory:
        assert directory.jobs == [] and directory.evaluations == []
    assert (tmp_path / "results.csv").read_text().startswith("p:layer_0,")


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("checkpoint", b"{]", r"checkpoint, line 2: .*; it is left out"),
        ("checkpoint", b'{"id":1}', r"checkpoint, line 2: 'parent'"),
        ("checkpoint", b"\xff", r"checkpoint, line 2: .*decode"),
        (
            "checkpoint",
            b'{"id":1,"architecture":[0,0,0,99],"parent":null,"seed":1}',
            r"checkpoint, line 2: .*dropout_1 has values 0 to 2, found 99",
        ),
        ("results.csv", b"a,b", r"results.csv, line 3: expected \d+ columns, found 2"),
        ("results.csv", b"", r"results.csv, line 3: expected \d+ columns, found 0"),
        (
            "results.csv",
            b"none,0.0,none,0.0,0.5,77777,DONE" + b"," * len(CORE),
            r"results.csv, line 3: job 77777 is not in the checkpoint",
        ),
        (
            "results.csv",
            b"none,0.0,none,0.0,0.5,0,DONE" + b"," * len(CORE),
            r"results.csv, line 3: job 0 is there twice",
        ),
        (
            "results.csv",
            b"none,0.0,none,0.0,0.5,1,DUNE" + b"," * len(CORE),
            r"results.csv, line 3: expected DONE or F_. as status, found 'DUNE'",
        ),
    ],
)
def test_a_damaged_line_is_left_out_and_said(
    tmp_path: Path, name: str, line: bytes, message: str
) -> None:
    begin(tmp_path).close()
    lines = (tmp_path / name).read_bytes().split(b"\n")
    lines[1 if name == "checkpoint" else 2] = line
    damaged = b"\n".join(lines)
    (tmp_path / name).write_bytes(damaged)
    rebuilt = dataclasses.replace(JOBS[1], seed=0)
    evaluations = [DONE_0, dataclasses.replace(FAILED_1, job=rebuilt)]

    with resume(tmp_path) as directory:
        assert re.search(message, directory.damage[0]), directory.damage
        assert [job.id for job in directory.jobs] == [0, 1, 2]
        if name == "checkpoint":  # what job 1 was, its row says
            assert directory.evaluations == evaluations
            assert re.search("checkpoint lacks 1 jobs that are finished", directory.damage[1])
        else:
            assert [evaluation.job.id for evaluation in directory.evaluations] == [0]
            directory.told(FAILED_1)
        assert len(directory.damage) == (2 if name == "checkpoint" else 1)
    assert (tmp_path / f"{name}.damaged").read_bytes() == damaged
    with resume(tmp_path) as directory:
        assert directory.damage == []
        assert [evaluation.job.id for evaluation in directory.evaluations] == [0, 1]
        (tmp_path / name).write_bytes(damaged)
    with resume(tmp_path):  # the first damage is not forgotten over the second
        assert (tmp_path / f"{name}.damaged-2").read_bytes() == damaged


def test_finished_evaluations_outlive_the_checkpoint(tmp_path: Path) -> None:
    begin(tmp_path).close()
    (tmp_path / "checkpoint").unlink()
    with resume(tmp_path) as directory:
        assert [e.job.architecture for e in directory.evaluations] == [
            JOBS[0].architecture,
            JOBS[1].architecture,
        ]
        assert [e.job.parent for e in directory.evaluations] == [None, 0]
        assert directory.damage == [
            f"{tmp_path}/checkpoint lacks 2 jobs that are finished; they are taken from results.csv"
        ]
    with resume(tmp_path) as directory:
        assert directory.damage == [] and [job.id for job in directory.jobs] == [0, 1]


@pytest.mark.parametrize("lost", [False, True], ids=["checkpoint", "no checkpoint"])
def test_what_pandas_and_excel_make_of_the_results_is_read(tmp_path: Path, lost: bool) -> None:
    path = tmp_path / "run"
    begin(path).close()
    file = path / "results.csv"
    pd.read_csv(file).to_csv(file, index=False)
    text = file.read_text()
    assert ",0.0," in text  # the parent: the other job has none
    file.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert len(runs.read(path)) == 2 and runs.read(path).damaged == 0
    if lost:
        (path / "checkpoint").unlink()
    directory = resume(path)
    assert directory.evaluations[0].job.architecture == JOBS[0].architecture
    assert directory.evaluations[1].measures["parent"] == 0
    assert [evaluation.job.id for evaluation in directory.evaluations] == [0, 1]
    assert directory.evaluations[1].job.parent == 0
    directory.close()
    assert not file.read_bytes().startswith(codecs.BOM_UTF8)
    assert not list(path.glob("*.damaged"))


@pytest.mark.parametrize("cell", ["4.5", "1e3", "nan", "4.", ".0", "", "x.0"])
def test_a_cell_that_is_no_integer_is_not_taken_for_one(cell: str) -> None:
    assert (results.integer("4"), results.integer("-4.00")) == (4, -4)
    with pytest.raises(ValueError, match="invalid literal"):
        results.integer(cell)


def test_other_columns_are_not_damage(tmp_path: Path) -> None:
    begin(tmp_path).close()
    content = (tmp_path / "results.csv").read_text()
    (tmp_path / "results.csv").write_text(content.replace("m:rank", "m:tank"))
    with pytest.raises(RunDirectoryError, match=r"missing \['m:rank'\], surplus \['m:tank'\]"):
        resume(tmp_path)


def test_refuses_a_directory_that_holds_another_run(tmp_path: Path) -> None:
    begin(tmp_path).close()
    with pytest.raises(RunDirectoryError, match=r"holds another run \(run.json\).*--resume"):
        RunDirectory.create(tmp_path, SPACE, SETTINGS, {})
    (tmp_path / "run.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"holds another run \(results.csv\)"):
        RunDirectory.create(tmp_path, SPACE, SETTINGS, {})


def test_refuses_a_path_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="is a file"):
        RunDirectory.create(tmp_path / "file", SPACE, SETTINGS, {})
    with pytest.raises(RunDirectoryError, match="cannot write to"):
        RunDirectory.create(tmp_path / "file" / "run", SPACE, SETTINGS, {})


def test_refuses_to_work_on_a_run_that_another_works_on(tmp_path: Path) -> None:
    with begin(tmp_path), pytest.raises(RunDirectoryError, match="another process works on"):
        resume(tmp_path)


def test_a_resumed_run_keeps_its_settings(tmp_path: Path) -> None:
    begin(tmp_path).close()
    with pytest.raises(RunDirectoryError, match="started with epochs 3, not 4"):
        resume(tmp_path, epochs=4)
    with pytest.raises(RunDirectoryError, match="another space: genes"):
        resume(tmp_path, FeedForward([(4,)], 2, max_depth=3))


def test_resume_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"nothing to resume: .*run.json"):
        resume(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunDirectoryError, match=r"run.json: not a run's description"):
        resume(tmp_path)


def test_measures_without_a_column_are_a_mistake(tmp_path: Path) -> None:
    with begin(tmp_path) as directory, pytest.raises(ValueError, match="loss"):
        directory.told(Evaluation(JOBS[2], DONE, 0.5, {"loss": 1.0}))


def odd(choices: Choices) -> LayerGraph:
    """Build what tests/data/run_1 searched, by the version before there was `m:error`."""
    units = choices.choose("units, first", [8, 16, 32])
    choices.choose('the "scale"', [0.1, 1e-05, 2.5])
    texts = ["None", "one\ntwo", 'say "so", she said', "16", " ü\u2028", "cr\rlf"]
    choices.choose("text", texts)
    mixed: list[Scalar] = [True, 2, "no"]
    choices.choose("mixed", mixed)
    builder = GraphBuilder()
    edge = builder.add(layers.dense(units), builder.input((4,)))
    return builder.build(builder.add(layers.dense(2), edge))


def test_a_run_of_an_earlier_version_is_read_and_taken_up(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[1] / "data" / "run_1", tmp_path / "run")
    space = from_function(odd)([(4,)], 2)
    expected = [
        space.values(Job.from_dict(json.loads(line), space.from_json).architecture)
        for line in (tmp_path / "run" / "checkpoint").open()
    ]
    before = runs.read(tmp_path / "run")
    assert (len(before), before.damaged, before.best) == (14, 0, 7)  # 7 and 12 are as good
    description = json.loads((tmp_path / "run" / "run.json").read_text())
    settings = description["settings"]
    with pytest.raises(RunDirectoryError, match=r"version \d of layer graphs, found 1"):
        RunDirectory.resume(tmp_path / "run", space, settings, {})
    # Its layers have other digests now; a run whose layers have not is taken up.
    description["layer_graphs"] = FORMAT_VERSION
    (tmp_path / "run" / "run.json").write_text(json.dumps(description))
    with RunDirectory.resume(tmp_path / "run", space, settings, {}) as directory:
        assert directory.damage == [] and len(directory.evaluations) == 14
        unfinished = directory.jobs[14]
        directory.told(Evaluation.failure(unfinished, "ValueError", error="no, not\nso"))
    after = runs.read(tmp_path / "run")
    assert [after.values(row) for row in range(15)] == expected
    types = [type(value) for value in after.values(0).values()]
    assert types == [type(value) for value in expected[0].values()]
    assert list(after.frame()["p:text"]) == [values["text"] for values in expected]
    assert after.texts("m:error")[14] == "no, not so"
    assert not (tmp_path / "run" / "results.csv.damaged").exists()


def test_numbers_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    with begin(tmp_path) as directory:
        measures: dict[str, Any] = {"layers": np.int64(3), "train_seconds": np.float64(0.5)}
        directory.told(Evaluation(JOBS[2], DONE, np.float64(0.25), measures))
    with resume(tmp_path) as directory:
        found = directory.evaluations[2]
        assert (found.objective, found.measures["layers"]) == (0.25, 3)
        assert found.measures["train_seconds"] == 0.5


def without_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "no locks")


@pytest.mark.parametrize("locks", [True, False])
def test_of_several_starts_in_one_directory_one_wins_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    if not locks:
        monkeypatch.setattr("fcntl.flock", without_locks)
    starters = 4
    barrier = threading.Barrier(starters)

    def start(path: Path, seed: int) -> RunDirectory | str:
        barrier.wait()
        try:
            return RunDirectory.create(path, SPACE, {"seed": seed}, {})
        except RunDirectoryError as refused:
            return str(refused)

    with ThreadPoolExecutor(starters) as threads:
        for turn in range(40):
            path = tmp_path / str(turn)
            outcomes = list(threads.map(start, [path] * starters, range(starters)))
            winners = [(n, one) for n, one in enumerate(outcomes) if not isinstance(one, str)]
            assert len(winners) == 1, outcomes
            seed, winner = winners[0]
            description = json.loads((path / "run.json").read_text())
            assert (description["id"], description["settings"]["seed"]) == (winner.id, seed)
            for line in outcomes:
                assert not isinstance(line, str) or re.search("another (run|process)", line)
            winner.asked(JOBS[0])
            winner.close()
            names = {"run.json", "checkpoint", "results.csv", "logs"}
            assert {file.name for file in path.iterdir()} == names


def test_a_start_that_fails_before_it_began_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with (
        pytest.raises(RuntimeError, match="no such server"),
        RunDirectory.create(path, SPACE, SETTINGS, {}),
    ):
        (path / "logs" / "rank-0.log").write_text("no such server")
        raise RuntimeError("no such server")
    assert not path.exists()
    path.mkdir()
    (path / "notes").write_text("mine")
    with pytest.raises(RuntimeError), RunDirectory.create(path, SPACE, SETTINGS, {}) as directory:
        directory.flush()
        raise RuntimeError
    assert [file.name for file in path.iterdir()] == ["notes"]
    # But nothing that was begun goes.
    with pytest.raises(RuntimeError), RunDirectory.create(path, SPACE, SETTINGS, {}) as directory:
        directory.asked(JOBS[0])
        raise RuntimeError
    with pytest.raises(RunDirectoryError, match="nothing in it is finished: remove it to begin"):
        RunDirectory.create(path, SPACE, SETTINGS, {})
    with resume(path) as directory:
        assert directory.jobs == JOBS[:1]


def test_a_population_is_not_searched_over(tmp_path: Path) -> None:
    (tmp_path / "population.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match="holds a population"):
        RunDirectory.create(tmp_path, SPACE, SETTINGS, {})
    with claim(tmp_path / "."), pytest.raises(RunDirectoryError, match="another process works on"):
        RunDirectory.create(tmp_path, SPACE, SETTINGS, {})
    assert [file.name for file in tmp_path.iterdir()] == ["population.json"]


def test_the_clock_leaves_pauses_out() -> None:
    # Three processes: results until 10 s; killed before any result; from 200 s on.
    clock = Clock([100.0, 200.0], [4.0, 10.0, 205.0, math.nan])
    moments = [4.0, 10.0, 50.0, 100.0, 103.0, 199.0, 200.0, 205.0]
    assert clock(moments).tolist() == [4.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 15.0]
    assert math.isnan(clock(math.nan)) and Clock([], [])(7.0) == 7.0


def test_two_genes_of_one_name_are_refused(tmp_path: Path) -> None:
    space = FeedForward([(4,)], 2, max_depth=2)
    space.genes = (*space.genes, space.genes[0])
    with pytest.raises(SpaceError, match="two genes have one name"):
        RunDirectory.create(tmp_path / "run", space, {}, {})
    assert not (tmp_path / "run").exists()


def test_a_space_that_makes_other_networks_under_the_same_choices_is_refused(
    tmp_path: Path,
) -> None:
    def space(width: int) -> Space:
        def build(choices: Choices) -> LayerGraph:
            builder = GraphBuilder()
            edge = builder.input((4,))
            for _ in range(choices.integer("depth", 1, 3)):
                edge = builder.add(layers.dense(width), edge)
            return builder.build(edge)

        return from_function(build)([(4,)], 2)

    RunDirectory.create(tmp_path, space(8), SETTINGS, {}).close()
    RunDirectory.resume(tmp_path, space(8), SETTINGS, {}).close()
    with pytest.raises(RunDirectoryError, match="the same choices make other networks now"):
        RunDirectory.resume(tmp_path, space(9), SETTINGS, {})
