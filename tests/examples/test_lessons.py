"""The short lessons run as they stand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(code: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_store_and_training() -> None:
    # In one process: TensorFlow takes seconds to import.
    names = ("load_single", "keras_freeze", "transfer_learn")
    files = [str(EXAMPLES / f"{name}.py") for name in names]
    out = run(f"import runpy\nfor f in {files}: runpy.run_path(f, run_name='__main__')")
    assert re.search(r"one layer: .* ms, all 64 MiB", out)
    # The input, and two dense layers.
    assert "3 of 5 layers are the parent's, unchanged" in out
    assert (
        len(re.findall(r"child \d: accuracy 0\.\d+, [1-9]\d* of \d+ layers from model", out)) == 3
    )


def test_tracing(tmp_path: Path) -> None:
    file, testing = tmp_path / "trace.json", str(EXAMPLES / "testing.py")
    out = run(f"import runpy; runpy.run_path({testing!r}, run_name='__main__')", file)
    assert re.search(r"^rank 0: .*train", out, re.MULTILINE)
    events = json.loads(file.read_text())["traceEvents"]
    steps = {"ask", "evaluate", "match", "build", "train", "store"}
    spans = [event for event in events if event["ph"] == "X"]
    for rank in (0, 1):
        assert steps <= {event["name"] for event in spans if event["pid"] == rank}
    assert "load" in {event["name"] for event in spans}  # of children, whoever trained them
    assert {"tell", "next jobs", "commit"} <= {e["name"] for e in spans if e["pid"] == 0}
    # Steps lie in the evaluation that they belong to.
    for step in spans:
        if step["name"] in {"match", "build", "load", "train", "store"}:
            assert any(
                whole["name"] == "evaluate"
                and (whole["pid"], whole["tid"]) == (step["pid"], step["tid"])
                and whole["ts"] <= step["ts"]
                and step["ts"] + step["dur"] <= whole["ts"] + whole["dur"] + 0.002
                for whole in spans
            )
    jobs = [event["args"]["job"] for event in spans if event["name"] == "evaluate"]
    assert sorted(jobs) == list(range(12))
