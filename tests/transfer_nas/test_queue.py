"""Both queues, by one contract; and the worker that takes one run and leaves."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from transfer_nas.errors import InputError
from transfer_nas.queue import Queue, open_queue, output_directory, work


@pytest.fixture(params=["directory", "queue.db"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


@pytest.fixture
def queue(place: Path) -> Queue:
    return open_queue(place)


def test_runs_are_taken_in_the_order_of_adding(queue: Queue) -> None:
    for name in ("b", "a", "c"):
        queue.add(name, ["--output_dir", name])
    taken = [queue.take() for _ in range(4)]
    assert [claim and claim.name for claim in taken] == ["b", "a", "c", None]
    assert taken[0] and taken[0].arguments == ("--output_dir", "b")
    assert set(queue.runs()) == {("a", "running"), ("b", "running"), ("c", "running")}


def test_a_name_is_used_once(queue: Queue) -> None:
    queue.add("a", [])
    queue.take()
    with pytest.raises(InputError, match="there is a run 'a'"):
        queue.add("a", [])


def test_what_is_put_back_waits_behind_the_others(queue: Queue) -> None:
    for name in ("a", "b"):
        queue.add(name, [])
    first = queue.take()
    assert first and queue.release(first, "waiting")
    assert [claim and claim.name for claim in (queue.take(), queue.take())] == ["b", "a"]


def test_each_run_goes_to_one_of_many_workers(place: Path) -> None:
    queue = open_queue(place)
    for number in range(40):
        queue.add(f"run{number}", [])
    taken: list[str] = []
    start = threading.Barrier(8)

    def take_all() -> None:
        mine = open_queue(place)
        start.wait()
        while claim := mine.take():
            taken.append(claim.name)
            assert mine.release(claim, "done")

    workers = [threading.Thread(target=take_all) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(taken) == sorted(f"run{number}" for number in range(40))
    assert {state for _, state in queue.runs()} == {"done"}


def test_a_dead_workers_run_is_taken_again_and_is_no_longer_its_own(queue: Queue) -> None:
    queue.add("a", [])
    dead = queue.take()
    assert dead and queue.take(stale=60) is None
    time.sleep(0.05)  # of age, not for another thread
    again = queue.take(stale=0.01)
    assert again and again.name == "a" and again.token != dead.token
    queue.alive(dead)
    assert not queue.release(dead, "failed")
    assert list(queue.runs()) == [("a", "running")]
    assert queue.release(again, "done")


def test_a_sign_of_life_keeps_a_run(queue: Queue) -> None:
    queue.add("a", [])
    claim = queue.take()
    assert claim
    time.sleep(0.3)
    queue.alive(claim)
    assert queue.take(stale=0.25) is None


@pytest.mark.parametrize(
    ("ends", "returns", "state"),
    [
        ("exit 0", 0, "done"),
        ("exit 3", 0, "done"),
        ("exit 1", 1, "failed"),
        ("exit 75", 75, "waiting"),
        ("kill -TERM $$", 143, "waiting"),
        ("kill -SEGV $$", 139, "failed"),
        # A launcher that killed ranks at the search's own wish.
        ("echo 0 > {}/exit_code; exit 9", 0, "done"),
        ("echo 75 > {}/exit_code; exit 9", 75, "waiting"),
        ("exit 9", 9, "failed"),
    ],
)
def test_the_exit_code_says_what_becomes_of_a_run(
    ends: str, returns: int, state: str, tmp_path: Path
) -> None:
    queue = open_queue(tmp_path / "queue.db")
    queue.add("a", [f"--output_dir={tmp_path}"])
    (tmp_path / "exit_code").write_text("0\n")  # of an earlier start: no matter any more
    ends = ends.format(tmp_path)
    assert work(queue, launcher=["sh", "-c", ends, "stand-in"]) == returns
    assert list(queue.runs()) == [("a", state)]


def test_a_run_that_has_begun_is_resumed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text("{}")
    queue = open_queue(tmp_path / "queue")
    queue.add("a", ["--output_dir", str(tmp_path)])
    work(queue, launcher=["echo"], extra=["--max_wait", "60"])
    said = capfd.readouterr().out
    assert f"transfer_nas.evolve --output_dir {tmp_path} --max_wait 60 --resume" in said


def test_a_worker_waits_for_a_run_to_come(tmp_path: Path) -> None:
    queue = open_queue(tmp_path / "queue")
    add = threading.Timer(0.2, queue.add, ("late", [f"--output_dir={tmp_path}"]))
    add.start()
    assert work(queue, launcher=["true"], wait=30) == 0
    assert list(queue.runs()) == [("late", "done")]


@pytest.mark.parametrize("arguments", [["--output_dir", "a"], ["--x", "--output-dir=a"]])
def test_the_output_directory_is_found_in_either_spelling(arguments: list[str]) -> None:
    assert output_directory(arguments) == Path("a")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "a", "--", "--seed", "1"], "needs --output_dir"),
        (["add", "a/b", "--", "--output_dir", "x"], "without / and @"),
        (["take", "--wait=-1"], "--wait must be at least 0"),
        (["nonsense"], "invalid choice"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "transfer_nas.queue", str(tmp_path / "queue"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_place_that_cannot_be_a_queue(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "text.db").write_text("this is no database" * 100)
    for name in ("file", "text.db"):
        with pytest.raises(InputError, match="as a queue"):
            open_queue(tmp_path / name)


def test_what_add_and_list_print(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "transfer_nas.queue", str(tmp_path / "queue")]
    subprocess.run([*command, "add", "a", "--", "--output_dir", "x"], check=True, timeout=60)
    listed = subprocess.run(
        [*command, "list"], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert listed.stdout == "waiting  a\n"
