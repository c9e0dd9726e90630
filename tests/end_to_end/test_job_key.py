"""The key that a job makes for servers of its own is nowhere to be seen."""

import json
from pathlib import Path
from typing import Any

from .watched_job import KEY

PROGRAM = Path(__file__).with_name("watched_job.py")
SMALL = [
    *("--application", "digits", "--space", "feed_forward", "--epochs", "1", "--seed", "1"),
    *("--population_size", "4", "--sample_size", "2", "--max_evals", "6", "--isolate"),
]


def test_nobody_sees_the_key_of_a_job(mpiexec: Any, tmp_path: Path) -> None:
    run, seen = tmp_path / "run", tmp_path / "seen"
    seen.mkdir()

    done = mpiexec(
        2, PROGRAM, seen, *SMALL, "--output_dir", run, timeout=200, env={"MODEL_SERVERS": ""}
    )

    assert done.returncode == 0, done.stderr
    ranks = [json.loads(file.read_text()) for file in seen.iterdir()]
    assert len(ranks) == 2
    assert sorted(rank["keys"] for rank in ranks) == [[], [True]]  # one server, of this key
    looks = [look for rank in ranks for look in rank["looks"]]
    assert len(looks) == 6  # while children and servers ran
    assert all(look["processes"] >= 4 and look["children"] >= 1 for look in looks)
    assert [look["with_key"] for look in looks] == [[]] * 6
    assert KEY not in done.stdout + done.stderr
    files = [file for file in run.rglob("*") if file.is_file()]
    assert len(files) > 3
    assert [file for file in files if KEY.encode() in file.read_bytes()] == []
