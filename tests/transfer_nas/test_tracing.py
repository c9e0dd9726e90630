"""Traces: spans nest, threads and ranks are told apart, and what is torn is left out."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from transfer_nas import tracing
from transfer_nas.errors import InputError


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    yield
    tracing.stop()


def spans(path: Path) -> list[dict[str, Any]]:
    trace = json.loads(path.read_text())
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def assert_nested(events: list[dict[str, Any]]) -> None:
    """Of two spans of one thread, one contains the other or they do not meet."""
    for thread in {(event["pid"], event["tid"]) for event in events}:
        open_until: list[float] = []
        mine = [event for event in events if (event["pid"], event["tid"]) == thread]
        for event in sorted(mine, key=lambda event: (event["ts"], -event["dur"])):
            while open_until and open_until[-1] <= event["ts"]:
                open_until.pop()
            end = event["ts"] + event["dur"]
            assert not open_until or end <= open_until[-1] + 0.002, event
            open_until.append(end)


def test_without_a_start_nothing_is_recorded(tmp_path: Path) -> None:
    assert tracing.span("a") is tracing.span("b", job=1)
    with tracing.span("a"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_spans_of_threads_and_ranks_become_one_trace(tmp_path: Path) -> None:
    path = tmp_path / "new" / "trace.json"

    def work() -> None:
        with tracing.span("inside", job=7), tracing.span("deeper"):
            pass

    for rank in range(2):
        tracing.start(path, rank)
        with tracing.span("outside"):
            thread = threading.Thread(target=work, name="manager")
            thread.start()
            work()
            thread.join()
        tracing.stop()
    tracing.merge(path, range(2))
    assert [file.name for file in path.parent.iterdir()] == ["trace.json"]
    found = spans(path)
    assert_nested(found)
    for rank in range(2):
        names = sorted(event["name"] for event in found if event["pid"] == rank)
        assert names == ["deeper", "deeper", "inside", "inside", "outside"]
    assert {event["args"]["job"] for event in found if event["name"] == "inside"} == {7}
    named = json.loads(path.read_text())["traceEvents"]
    assert {event["args"]["name"] for event in named if event["ph"] == "M"} == {
        "rank 0", "rank 1", "worker", "manager",
    }  # fmt: skip


def test_a_span_ends_with_what_is_raised_in_it(tmp_path: Path) -> None:
    tracing.start(tmp_path / "t", 0)
    with pytest.raises(RuntimeError), tracing.span("fails"):
        raise RuntimeError
    tracing.stop()
    tracing.merge(tmp_path / "t", [0])
    assert [event["name"] for event in spans(tmp_path / "t")] == ["fails"]


def test_what_a_killed_search_left_can_be_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in (0, 3):
        tracing.start(tmp_path / "t", rank)
        with tracing.span("whole"):
            pass
        tracing.stop()
    with (tmp_path / "t.rank3").open("a") as file:
        file.write('{"name":"torn","ph":"X"')
    assert tracing.main([str(tmp_path / "t")]) == 0
    assert [event["pid"] for event in spans(tmp_path / "t")] == [0, 3]
    assert tracing.main([str(tmp_path / "u")]) == 2
    assert "there is no" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--trace: cannot write .*file/trace.rank0"):
        tracing.start(tmp_path / "file" / "trace", 0)
