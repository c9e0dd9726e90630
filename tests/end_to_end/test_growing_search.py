"""A space of one's own without genes, on three ranks, killed and taken up."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

OWN = f"{Path(__file__).parents[2] / 'examples' / 'growing.py'}:Growing"
LAUNCHER = Path(sys.executable).with_name("mpiexec")
SETTINGS = ["--application", "digits", "--space", OWN, "--population_size", "8"]
SETTINGS += ["--sample_size", "4", "--epochs", "2", "--seed", "1", "--max_evals", "60"]


def start(path: Path, *more: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            *(LAUNCHER, "-n", "3", sys.executable, "-m", "transfer_nas.evolve", *SETTINGS),
            *("--output_dir", path, "--json", *more),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"MODEL_SERVERS": ""},
    )


def rows(path: Path) -> list[dict[str, str]]:
    if not (path / "results.csv").exists():
        return []
    text = (path / "results.csv").read_text()
    return [*csv.DictReader(text[: text.rfind("\n") + 1].splitlines())]


def test_architectures_grow_over_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = start(path)
    try:
        while len(rows(path)) < 20:
            assert process.poll() is None, process.stderr
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=20)
    before = rows(path)
    assert len(before) < 60

    process = start(path, "--resume")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    found = rows(path)
    assert found[: len(before)] == before
    assert sorted(int(row["job_id"]) for row in found) == list(range(60))
    assert {row["job_status"] for row in found} == {"DONE"}

    jobs = [json.loads(line) for line in (path / "checkpoint").read_text().splitlines()]
    asked = {job["id"]: job["architecture"] for job in jobs}
    for row in found:
        # To the last digit, through MPI, the journal and the results.
        assert json.loads(row["p:architecture"]) == asked[int(row["job_id"])]
        assert int(row["p:depth"]) == len(asked[int(row["job_id"])])
    assert max(int(row["p:depth"]) for row in found) > 2  # drawn, it would be 1
    result = json.loads(out.splitlines()[-1])
    assert result["best_architecture"] == asked[result["best_job"]]
    assert result["layers_transferred"] > 0
    assert (path / "best.keras").exists()
