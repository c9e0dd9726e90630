"""The real search on the real digits, small: every way of transfer, servers, failures, resume."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from transfer_nas import logs, runs
from transfer_nas.report import page, storage
from transfer_nas.report.best import Architectures

from ..cpp_store import servers

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--application", "digits", "--space", "feed_forward", "--epochs", "4"),
    *("--population_size", "4", "--sample_size", "2", "--max_evals", "10", "--seed", "1", "--json"),
]


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "results.csv").open() as file:
        return list(csv.DictReader(file))


def processes_of(path: Path) -> list[str]:
    """Return the command lines of processes that were told of this directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended in the meantime
            continue
        if str(path) in command:
            found.append(command)
    return found


def summary(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize("method", ["noop", "hdf5", "store"])
def test_two_ranks_find_a_good_network(mpiexec: Any, tmp_path: Path, method: str) -> None:
    path = tmp_path / "run"
    evolve = ["-m", "transfer_nas.evolve", *SMALL, "--transfer", method, "--output_dir", path]
    done = mpiexec(2, *evolve, timeout=200, env={"MODEL_SERVERS": ""})
    result = summary(done)
    found = rows(path)

    assert sorted(int(row["job_id"]) for row in found) == list(range(10))
    assert {row["job_status"] for row in found} == {"DONE"}
    assert {row["m:rank"] for row in found} == {"0", "1"}
    best = max(found, key=lambda row: float(row["objective"]))
    assert result["best_objective"] == float(best["objective"]) > 0.85
    stored, whole = result["bytes_stored"], result["bytes_whole_copies"]
    if method == "noop":
        assert result["layers_transferred"] == stored == 0
    else:
        assert result["share_transferred"] > 0.1
        assert {row["m:ancestor"] for row in found} != {""}
    if method == "store":
        check_best_model(path, result["best_objective"])
        assert stored == whole - result["bytes_transferred"] < whole
    check_what_readers_find(path, found, shares=method == "store")
    # The terminal shows what goes on and nothing else; the noise is in the logs.
    lines = done.stderr.splitlines()
    assert lines[0].startswith("digits: 1,348 rows to train on, 449 to judge by"), done.stderr
    assert lines[1].startswith("2 ranks; space feed_forward of 12 genes; search evolution")
    assert lines[2].startswith("the objective is sparse_categorical_accuracy")
    assert lines[3].startswith("NumPy trains")
    assert lines[4] == f"everything goes to {path}"
    known = ("evaluation", "best.keras", "trained")
    assert all(any(word in line for word in known) for line in lines[5:]), done.stderr
    assert (path / "logs" / "rank-0.log").stat().st_size > 0  # Keras wrote the best model
    description = json.loads((path / "run.json").read_text())
    assert description["settings"]["seed"] == 1 and "keras" in description["versions"]
    assert [rank["rank"] for rank in description["ranks"]] == [0, 1]
    assert (path / "best.keras").exists()
    assert processes_of(path) == []


def check_what_readers_find(path: Path, found: list[dict[str, str]], *, shares: bool) -> None:
    """Logs hold what the results say, and a report can be made of both."""
    told = logs.frame(path, "evaluation/*/objective").set_index("evaluation").objective
    assert told.to_dict() == {int(row["job_id"]): float(row["objective"]) for row in found}
    epochs = logs.frame(path, "evaluation/*/epoch/*/loss")
    assert len(epochs) == sum(int(row["m:epochs"]) for row in found)
    assert epochs.loss.notna().all()
    run = runs.read(path)
    assert run.state == runs.FINISHED and len(run) == 10
    assert (storage.kept(run, Architectures.of(run)) is not None) == shares
    assert "data-chart" in page.render(page.content([run]))


def check_best_model(path: Path, objective: float) -> None:
    """Plain Keras opens the best model, and it predicts what the search said."""
    code = f"""
import sys
import keras
model = keras.models.load_model({str(path / "best.keras")!r})
assert "transfer_nas" not in sys.modules
from transfer_nas import applications
data = applications.resolve("digits").data
accuracy = (model.predict(data.x_valid, verbose=0).argmax(1) == data.y_valid).mean()
assert abs(accuracy - {objective}) < 1e-6, accuracy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def evolve(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "transfer_nas.evolve", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"MODEL_SERVERS": ""} | environment,
        check=False,
    )


def outcome(path: Path) -> list[tuple[str, ...]]:
    """Return genomes, parents and objectives of a run, in order."""
    columns = ("job_id", "objective", "m:parent", "m:layers_transferred")
    genes = [name for name in rows(path)[0] if name.startswith("p:")]
    return [tuple(row[name] for name in (*columns, *genes)) for row in rows(path)]


def test_the_same_seed_gives_the_same_search(tmp_path: Path) -> None:
    summary(evolve(*SMALL, "--output_dir", tmp_path / "a"))
    summary(evolve(*SMALL, "--output_dir", tmp_path / "b"))
    assert len(outcome(tmp_path / "a")) == 10
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")


def test_a_resumed_search_ends_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    # Without a store: its models would be gone, and objectives depend on what is inherited.
    without = ["--transfer", "noop", "--output_dir"]
    summary(evolve(*SMALL, *without, tmp_path / "straight"))
    stopped = tmp_path / "stopped"
    summary(evolve(*SMALL, "--max_evals", "6", *without, stopped))
    summary(evolve("--resume", "--output_dir", stopped, "--max_evals", "10", "--json"))
    assert outcome(stopped) == outcome(tmp_path / "straight")


@pytest.fixture
def group() -> Iterator[dict[str, "subprocess.Popen[str]"]]:
    """Two ``cpp-store-server`` processes by their addresses."""
    with servers.doomed(2, "--memory", "256MiB", "--log-level", "error") as group:
        yield group


def test_external_servers_keep_the_models(mpiexec: Any, tmp_path: Path, group: list[str]) -> None:
    import cpp_store

    environment = {"MODEL_SERVERS": " ".join(group)}
    run = ["-m", "transfer_nas.evolve", *SMALL, "--output_dir", tmp_path / "run"]
    result = summary(mpiexec(2, *run, timeout=200, env=environment))
    with cpp_store.connect(list(group)) as store:
        stats = store.stats()
        models = store.list()
    assert result["share_transferred"] > 0.1
    assert len(models) == 4  # the population; who died was retired
    assert stats["puts"] == 10 and stats["bytes_inherited"] == result["bytes_transferred"] > 0
    # Both hold some, and a later search of the same application finds ancestors at once.
    assert (
        summary(evolve(*SMALL, "--output_dir", tmp_path / "later", **environment))[
            "bytes_transferred"
        ]
        > result["bytes_transferred"] / 2
    )


def test_a_search_goes_on_when_its_servers_die_and_says_so(
    tmp_path: Path, group: dict[str, "subprocess.Popen[str]"]
) -> None:
    path = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "transfer_nas.evolve", *SMALL, "--output_dir", path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"MODEL_SERVERS": " ".join(group)},
    )
    while not (path / "results.csv").exists() or len(rows(path)) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    for server in group.values():
        server.kill()
    out, err = process.communicate(timeout=200)
    result = summary(subprocess.CompletedProcess([], process.returncode, out, err))
    assert result["evaluations"] == 10 and result["failures"] == 0
    assert err.count("went without transfer, the search goes on") == 1
    found = rows(path)
    errors = [row["m:transfer_error"] for row in found if row["m:transfer_error"]]
    assert errors and any(address in errors[0] for address in group), errors
    assert found[-1]["m:layers_transferred"] == "0"


APPLICATION = """
from transfer_nas.applications import Application, digits
from transfer_nas.spaces import FeedForward

class Moody(FeedForward):
    def graph(self, genome):
        if {fails}:
            raise MemoryError("no such network today")
        return super().graph(genome)

application = Application(
    name="moody", load=digits.load, input_shapes=[(8, 8)], output_units=10,
    output_activation="softmax", loss="sparse_categorical_crossentropy",
    metric="sparse_categorical_accuracy", learning_rate={rate}, epochs=1, default_space=Moody,
)
"""
FEW = ["--population_size", "3", "--sample_size", "1", "--max_evals", "6", "--seed", "3"]


def test_failures_are_recorded_and_the_search_goes_on(mpiexec: Any, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        APPLICATION.format(fails="genome[1] == 0", rate=1e-3)
    )  # of the first three, the second
    run = ["-m", "transfer_nas.evolve", "--application", tmp_path / "own.py:application"]
    done = mpiexec(2, *run, *FEW, "--json", "--output_dir", tmp_path / "run", timeout=200)
    result = summary(done)
    statuses = [row["job_status"] for row in rows(tmp_path / "run")]
    assert set(statuses) == {"DONE", "F_MemoryError"}
    assert result["failures"] == statuses.count("F_MemoryError") and result["evaluations"] == 6
    assert "no such network today" in "".join(
        log.read_text() for log in (tmp_path / "run" / "logs").iterdir()
    )


def test_crashes_and_hangs_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    # The first two of the three random genomes.
    crash = "{18: os.abort, 8: lambda: time.sleep(3600)}.get(genome[0], bool)()"
    source = "import os, time\n" + APPLICATION.format(fails=crash, rate=1e-3)
    (tmp_path / "own.py").write_text(source)
    own = ["--application", tmp_path / "own.py:application", "--evaluation_timeout", "6"]
    own += ["--threads_per_rank", "1"]
    result = summary(evolve(*own, *FEW, "--json", "--output_dir", tmp_path / "run"))
    found = rows(tmp_path / "run")
    statuses = {row["job_status"] for row in found}
    assert statuses == {"DONE", "F_timeout", "F_lost"} and result["evaluations"] == 6
    assert result["layers_transferred"] > 0  # children reach the store of the rank
    description = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [rank["threads"] for rank in description["ranks"]] == [1]
    assert processes_of(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("fails", "rate", "status"), [("True", 1e-3, "F_MemoryError"), ("False", "1e38", "F_nan")]
)
def test_every_candidate_failing(tmp_path: Path, fails: str, rate: Any, status: str) -> None:
    (tmp_path / "own.py").write_text(APPLICATION.format(fails=fails, rate=rate))
    own = ["--application", tmp_path / "own.py:application"]
    done = evolve(*own, *FEW, "--output_dir", tmp_path / "run")
    assert done.returncode == 1
    assert "every candidate failed" in done.stderr
    assert {row["job_status"] for row in rows(tmp_path / "run")} == {status}
    assert {row["objective"] for row in rows(tmp_path / "run")} == {status}
    assert not (tmp_path / "run" / "best.keras").exists()


def test_ctrl_c_in_the_middle_of_training(tmp_path: Path) -> None:
    path = tmp_path / "run"
    launcher = Path(sys.executable).with_name("mpiexec")
    command = [launcher, "-n", "2", sys.executable, "-m", "transfer_nas.evolve", *SMALL]
    process = subprocess.Popen(
        [*command, "--epochs", "100000", "--timeout", "120", "--output_dir", path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"MODEL_SERVERS": ""},
    )
    try:
        while not (path / "checkpoint").exists() or not (path / "checkpoint").read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 130, err
    assert json.loads(out.splitlines()[-1])["ended_by"] == "signal"
    assert "Traceback" not in err
    assert processes_of(path) == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("tcp//127.0.0.1", "tcp//127.0.0.1"),
        ("ofi+pigeon://127.0.0.1:1", "pigeon"),
        ("ofi+tcp://127.0.0.1:1", "127.0.0.1:1"),
    ],
)
def test_servers_that_cannot_be(mpiexec: Any, tmp_path: Path, address: str, message: str) -> None:
    run = ["-m", "transfer_nas.evolve", *SMALL, "--output_dir", tmp_path / "run"]
    done = mpiexec(2, *run, timeout=40, env={"MODEL_SERVERS": address})
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("evolve: error: MODEL_SERVERS") and message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
