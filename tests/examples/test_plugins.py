"""What users plug in, a file each, on three ranks: killed, taken up, and brought to its end."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from transfer_nas.__main__ import COMMANDS

EXAMPLES = Path(__file__).parents[2] / "examples"
PLUGINS = {
    "two objectives": ["--objectives", "val_accuracy:max,parameters:min", "--population_size", "6"],
    "own sharing": ["--sharing", f"{EXAMPLES}/own_sharing.py:WorthIt", "--population_size", "6"],
    "parent only": ["--sharing", "parent", "--population_size", "6"],
}
MEMBERS, EVALUATIONS = 6, 30


def search(path: Path, ranks: int, *arguments: str) -> "subprocess.Popen[str]":
    launcher = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks)]
    where = ["--output_dir", str(path), "--json"]
    return subprocess.Popen(
        [*launcher, sys.executable, "-m", "transfer_nas", "search", *arguments, *where],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={name: v for name, v in os.environ.items() if name != "MODEL_SERVERS"},
    )


def rows(path: Path) -> list[dict[str, str]]:
    file = path / "results.csv"
    return list(csv.DictReader(file.read_text().splitlines())) if file.exists() else []


@pytest.mark.parametrize("name", PLUGINS)
def test_a_file_of_ones_own_on_three_ranks(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run"
    task = ["--application", "digits", "--space", "feed_forward", "--epochs", "2", "--seed", "1"]
    process = search(path, 3, *task, *PLUGINS[name], "--max_evals", str(EVALUATIONS))
    until = time.monotonic() + 120
    while len(rows(path)) < EVALUATIONS // 2 and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    before = rows(path)
    assert len(before) >= EVALUATIONS // 2

    again = search(path, 3, "--resume")
    out, err = again.communicate(timeout=120)
    assert again.returncode in (0, 3), err
    found = rows(path)
    assert [row["job_id"] for row in found[: len(before)]] == [row["job_id"] for row in before]
    assert sorted(int(row["job_id"]) for row in found) == list(range(EVALUATIONS))
    assert {row["job_status"] for row in found} == {"DONE"}
    summary = json.loads(out)
    assert summary["evaluations"] == EVALUATIONS
    if name == "two objectives":
        models = {file.name for file in (path / "front").iterdir()}
        assert models == {f"{model['job']}.keras" for model in summary["front"]}
    children = [row for row in found if row["m:parent"]]
    assert children
    run = json.loads((path / "run.json").read_text())["id"]
    inherited = [row for row in children if row["m:ancestor"]]
    assert inherited
    if name == "parent only":
        assert all(row["m:ancestor"] == f"{run}/{int(float(row['m:parent']))}" for row in inherited)
    if name == "own sharing":
        shares = [int(row["m:bytes_transferred"]) / int(row["m:bytes_whole_copy"]) for row in found]
        assert all(share == 0 or share >= 0.5 for share in shares) and min(shares[6:]) == 0


def test_one_command_for_all() -> None:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "transfer_nas", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    listed = run("--help")
    assert listed.returncode == 0 and all(f"  {name} " in listed.stdout for name in COMMANDS)
    assert run("--version").stdout.strip().count(".") == 2
    for arguments, message in (
        (["serch"], "unknown command 'serch'; did you mean 'search'"),
        ([], "no command (transfer-nas --help lists them)"),
        (["search", "--epochs", "x"], "evolve: error: --epochs must be a whole number"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from transfer_nas.__main__ import main

    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0 and "usage:" in capsys.readouterr().out
