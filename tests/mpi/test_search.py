"""The engine under MPI, with evaluations that cost nothing; the real ones are in end_to_end."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from transfer_nas.values import CORE

FAKE = Path(__file__).with_name("fake_search.py")
RANKS = [1, 2, 4]


def outcome(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return result


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("ranks", RANKS)
def test_every_job_is_evaluated_once_and_by_every_rank(
    mpiexec: Any, tmp_path: Path, ranks: int
) -> None:
    options = {"max_evals": 80, "seconds": 0.01, "fail_every": 7}
    result = outcome(mpiexec(ranks, FAKE, tmp_path, json.dumps(options)))
    found = rows(tmp_path)

    assert sorted(int(row["job_id"]) for row in found) == list(range(80))
    assert {row["job_id"] for row in found if row["job_status"] == "F_RuntimeError"} == {
        str(job) for job in range(0, 80, 7)
    }
    assert result["evaluations"] == 80 and result["failures"] == 12
    worked = Counter(int(row["m:rank"]) for row in found)
    assert set(worked) == set(range(ranks))
    assert min(worked.values()) >= 80 / ranks / 2
    # Whoever died did so in the order of arrival, failures never lived.
    alive = [int(row["job_id"]) for row in found if row["job_status"] == "DONE"]
    assert result["retired"] == alive[:-8]
    for row in found:
        assert 0 <= float(row["m:timestamp_submit"]) <= float(row["m:timestamp_gather"])


@pytest.mark.parametrize("ranks", RANKS)
def test_the_best_model_is_kept_though_it_was_retired(
    mpiexec: Any, tmp_path: Path, ranks: int
) -> None:
    result = outcome(mpiexec(ranks, FAKE, tmp_path, json.dumps({"max_evals": 60})))
    best = max(float(row["objective"]) for row in rows(tmp_path))
    assert result["best_objective"] == best
    kept = json.loads((tmp_path / "best.safetensors").read_text())
    assert kept["id"] == result["best"]
    assert not list(tmp_path.glob("candidate-*"))


def test_one_rank_under_mpiexec_does_what_one_process_does(mpiexec: Any, tmp_path: Path) -> None:
    options = json.dumps({"max_evals": 40})
    outcome(mpiexec(1, FAKE, tmp_path / "mpi", options))
    subprocess.run([sys.executable, FAKE, tmp_path / "plain", options], check=True, timeout=60)

    def without_times(path: Path) -> list[dict[str, str]]:
        return [{k: v for k, v in row.items() if "timestamp" not in k} for row in rows(path)]

    assert without_times(tmp_path / "mpi") == without_times(tmp_path / "plain")


def test_nobody_waits_for_a_slow_evaluation_and_waiting_costs_no_core(
    mpiexec: Any, tmp_path: Path
) -> None:
    slow = {"job": 1, "until_rows": 11, "then_seconds": 3.0}
    # Not so short that jobs are handed out in advance: none may be behind the slow one.
    options = {"max_evals": 12, "seconds": 0.25, "slow": slow}
    result = outcome(mpiexec(4, FAKE, tmp_path, json.dumps(options)))
    assert [row["job_id"] for row in rows(tmp_path)][-1] == "1"
    assert result["evaluations"] == 12
    # Three ranks and the manager wait for the fourth; who looks all the time takes a core.
    assert max(result["cpu"]) < 1.0


def most_in_flight(path: Path) -> int:
    """Return how many jobs were handed out and not yet reported, at most."""
    times = [
        (float(row["m:timestamp_submit"]), float(row["m:timestamp_gather"])) for row in rows(path)
    ]
    return max(sum(begun <= now < ended for begun, ended in times) for now, _ in times)


def test_only_short_evaluations_are_handed_out_in_advance(mpiexec: Any, tmp_path: Path) -> None:
    for name, options in {
        "long": {"max_evals": 10, "seconds": 0.3, "population": 100},
        "short": {"max_evals": 200, "seconds": 0.002, "population": 100},
        "few": {"max_evals": 200, "seconds": 0.002, "population": 2},
    }.items():
        result = outcome(mpiexec(2, FAKE, tmp_path / name, json.dumps(options)))
        assert result["evaluations"] == options["max_evals"]
    assert most_in_flight(tmp_path / "long") == 2  # they are asked when somebody has time for them
    assert most_in_flight(tmp_path / "short") > 2
    # Of a population of two, none is asked before all results are known.
    assert most_in_flight(tmp_path / "few") == 2


@pytest.mark.parametrize("ranks", RANKS)
def test_a_timeout_ends_it_with_what_was_finished(mpiexec: Any, tmp_path: Path, ranks: int) -> None:
    result = outcome(mpiexec(ranks, FAKE, tmp_path, json.dumps({"timeout": 1.0, "seconds": 0.2})))
    assert result["reason"] == "timeout"
    assert result["seconds"] >= 1.0
    assert len(rows(tmp_path)) == result["evaluations"] >= ranks


def test_an_evaluation_that_runs_at_the_timeout_is_done_again_by_a_resumed_search(
    mpiexec: Any, tmp_path: Path
) -> None:
    first = outcome(mpiexec(2, FAKE, tmp_path, json.dumps({"timeout": 0.5, "seconds": 3600})))
    assert first["evaluations"] == 0
    asked = [json.loads(line)["id"] for line in (tmp_path / "checkpoint").open()]
    assert sorted(asked) == [0, 1]
    outcome(mpiexec(2, FAKE, tmp_path, json.dumps({"resume": True, "max_evals": 10})))
    assert sorted(int(row["job_id"]) for row in rows(tmp_path)) == list(range(10))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_signal_ends_all_ranks_with_everything_on_disk(
    tmp_path: Path, ranks: int, number: signal.Signals
) -> None:
    launcher = Path(sys.executable).with_name("mpiexec")
    options = json.dumps({"seconds": 0.1})
    process = subprocess.Popen(
        [launcher, "-n", str(ranks), sys.executable, FAKE, tmp_path, options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        while "first evaluation" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    result = json.loads(out.splitlines()[-1])  # mpiexec has its own say before
    assert result["reason"] == "signal"
    assert len(rows(tmp_path)) == result["evaluations"] >= 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_evaluations_that_hang_or_crash_in_children_cost_only_themselves(
    mpiexec: Any, tmp_path: Path, ranks: int
) -> None:
    options = {"max_evals": 30, "evaluation_timeout": 1.5, "hang": [5, 17], "die": [3, 20, 21]}
    result = outcome(mpiexec(ranks, FAKE, tmp_path, json.dumps(options)))
    failed = {row["job_id"]: row for row in rows(tmp_path) if row["job_status"] != "DONE"}
    assert {job: row["job_status"] for job, row in failed.items()} == {
        **dict.fromkeys(("5", "17"), "F_timeout"),
        **dict.fromkeys(("3", "20", "21"), "F_lost"),
    }
    for row in failed.values():
        took = float(row["m:timestamp_end"]) - float(row["m:timestamp_start"])
        assert (took >= 1.5) == (row["job_status"] == "F_timeout")
    assert result["evaluations"] == 30 and not result["lost"]
    # They may have stored their models: nobody shall inherit from those.
    assert set(map(int, failed)) <= set(result["retired"])


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"max_evals": 12, "wide": True, "padding": 20_000, "population": 4, "seconds": 0.01},
        {"max_evals": 300, "synchronous": True, "padding": 20_000, "seconds": 0.002},
        # Orders meet last words on the way, and signs of life meet nobody who looks for them.
        {"timeout": 1.0, "synchronous": True, "lost_after": 0.3, "seconds": 0.001},
    ],
)
def test_messages_of_any_length_pass_each_other(
    mpiexec: Any, tmp_path: Path, ranks: int, options: dict[str, Any]
) -> None:
    result = outcome(mpiexec(ranks, FAKE, tmp_path, json.dumps(options)))
    assert result["lost"] == [] and result["failures"] == 0
    assert result["evaluations"] == options.get("max_evals", result["evaluations"]) > 0
    jobs = [line.split(",")[-len(CORE) - 2] for line in (tmp_path / "results.csv").open()]
    assert len(set(jobs[1:])) == result["evaluations"]


def test_without_thread_support_long_messages_pass_each_other_too(
    mpiexec: Any, tmp_path: Path
) -> None:
    options = json.dumps({"max_evals": 60, "synchronous": True, "padding": 20_000})
    done = mpiexec(3, FAKE, tmp_path, options, env={"MPI4PY_RC_THREAD_LEVEL": "funneled"})
    assert outcome(done)["evaluations"] == 60


@pytest.mark.parametrize(
    "options", [{"max_evals": 40, "seconds": 0.03}, {"timeout": 5.0, "seconds": [0.0, 0.0, 0.03]}]
)
def test_a_rank_that_shows_no_sign_of_life_is_given_up_however_busy_the_manager_is(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    launcher = Path(sys.executable).with_name("mpiexec")
    options |= {"lost_after": 2.0, "pids": str(tmp_path)}
    process = subprocess.Popen(
        [launcher, "-n", "3", sys.executable, FAKE, tmp_path / "run", json.dumps(options)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        while "first evaluation" not in process.stderr.readline():
            assert process.poll() is None
        os.kill(int((tmp_path / "2").read_text()), signal.SIGSTOP)
        out, err = process.communicate(timeout=60)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    # Of MPI_Abort(0), or 9 of the stopped rank that the launcher killed after it, whichever it sees
    # last; a run directory's `exit_code` says what the search meant.
    assert process.returncode in (0, 9), err
    result = json.loads(out.splitlines()[0])
    assert result["evaluations"] >= 40 and result["lost"] == [2]
    lost = [row["m:rank"] for row in rows(tmp_path / "run") if row["job_status"] == "F_lost"]
    assert lost and set(lost) == {"2"}


def test_an_error_of_the_manager_ends_all_ranks_whatever_they_are_doing(
    mpiexec: Any, tmp_path: Path
) -> None:
    options = {"seconds": [3600, 0.05, 0.05], "manager_error_at": 6}
    done = mpiexec(3, FAKE, tmp_path, json.dumps(options))
    # Of MPI_Abort(1), or 9 of a rank that the launcher killed after it, whichever it sees last.
    assert done.returncode in (1, 9)
    assert "disk full, as asked" in done.stderr
    assert len(rows(tmp_path)) == 6


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_finds_no_room_ends_all_of_them(
    mpiexec: Any, tmp_path: Path, rank: int
) -> None:
    seconds = [3600.0, 3600.0]
    seconds[rank] = 0.05
    done = mpiexec(2, FAKE, tmp_path, json.dumps({"seconds": seconds, "no_room": [6]}))
    assert done.returncode in (1, 9)
    assert "job 6 found no room on a disk" in done.stderr and "--resume" in done.stderr
    # Of jobs 0 to 5 one still ran; the last report may not have been taken.
    found = rows(tmp_path)
    assert 2 <= len(found) <= 5 and {row["job_status"] for row in found} == {"DONE"}
    result = outcome(mpiexec(2, FAKE, tmp_path, json.dumps({"resume": True, "max_evals": 20})))
    assert result["evaluations"] == 20 and result["failures"] == 0


def test_a_killed_job_is_taken_up_without_losing_or_repeating_anything(tmp_path: Path) -> None:
    launcher = Path(sys.executable).with_name("mpiexec")
    for start in range(3):
        options = json.dumps({"seconds": 0.05, "resume": start > 0})
        process = subprocess.Popen(
            [launcher, "-n", "2", sys.executable, FAKE, tmp_path, options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stderr is not None
        wanted = 5 * (start + 1)
        while not (tmp_path / "results.csv").exists() or len(rows(tmp_path)) < wanted:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        before = rows(tmp_path)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert rows(tmp_path)[: len(before)] == before
    options = json.dumps({"resume": True, "max_evals": 40})
    subprocess.run(
        [launcher, "-n", "2", sys.executable, FAKE, tmp_path, options],
        check=True,
        timeout=60,
        stdout=subprocess.DEVNULL,
    )
    jobs = [int(row["job_id"]) for row in rows(tmp_path)]
    assert sorted(jobs) == list(range(40))


def test_without_thread_support_rank_0_only_manages(mpiexec: Any, tmp_path: Path) -> None:
    result = outcome(
        mpiexec(
            3,
            FAKE,
            tmp_path,
            json.dumps({"max_evals": 30}),
            env={"MPI4PY_RC_THREAD_LEVEL": "funneled"},
        )
    )
    assert result["evaluations"] == 30
    assert {row["m:rank"] for row in rows(tmp_path)} == {"1", "2"}
