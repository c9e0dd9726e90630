"""The batch scripts of examples/, run by stand-ins for the queues (tests/clusters/stand-ins).

The stand-ins set the variables that the scripts read and start them again when they are requeued;
everything on one host. What only a real cluster shows is in docs/clusters.md.
"""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
STAND_INS = Path(__file__).parent / "stand-ins"
SERVERS = [  # the installed one, or that of a build folder
    Path(sys.executable).with_name("cpp-store-server"),
    ROOT / "build/dev/cpp_store/cpp-store-server",
]
SERVER = next(path for path in SERVERS if path.exists())


@pytest.fixture
def submit(tmp_path: Path):
    """``submit(queue, script, *flags, VARIABLE=value)`` in a copy of the examples."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "cpp-store-server").symlink_to(SERVER)
    folders = [programs, STAND_INS, Path(sys.executable).parent]
    path = os.pathsep.join([*map(str, folders), os.environ["PATH"]])

    def run(queue: str, script: str, *flags: str, **variables: str) -> tuple[int, str]:
        done = subprocess.run(
            [
                queue,
                *flags[: flags.index("--")],
                f"examples/{script}",
                *flags[flags.index("--") + 1 :],
            ],
            cwd=tmp_path,
            env=os.environ
            | {"PATH": path, "PYTHON": sys.executable, "ADDRESS": "127.0.0.1", "MEMORY": "256MiB"}
            | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
            | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=200,
        )
        return done.returncode, done.stdout

    return run


def test_a_search_with_servers_of_its_own_is_requeued_until_it_is_done(submit, tmp_path) -> None:
    """The first start has no time to evaluate anything, the second has enough, a third nothing."""
    digits = ["--application", "digits", "--max_evals", "100", "--epochs", "5", "--seed", "1"]
    search = ["--nodes", "3", "--", *digits, "--population_size", "8"]
    variables = {"RUN": "runs/it", "SERVERS": "2", "MARGIN": "10", "STAND_IN_LIMITS": "11 3600"}
    code, output = submit("sbatch", "slurm/servers_and_ranks.sbatch", *search, **variables)
    assert code == 0, output
    assert "stand-in: requeued, start 2" in output and "start 3" not in output
    assert "runs/it: done" in output
    with (tmp_path / "runs/it/results.csv").open() as file:
        assert [row["job_status"] for row in csv.DictReader(file)] == ["DONE"] * 100
    assert not list(tmp_path.glob(".servers-*"))

    code, output = submit("sbatch", "slurm/servers_and_ranks.sbatch", *search, **variables)
    assert code == 0 and "runs/it: nothing was left to do" in output, output


@pytest.mark.parametrize(
    ("queue", "script", "flags"),
    [
        ("sbatch", "slurm/search.sbatch", ["--", "--nonsense"]),
        ("qsub", "pbs/search.pbs", ["-v", "FLAGS=--nonsense", "--"]),
        ("qsub", "pbs/servers_and_ranks.pbs", ["-v", "FLAGS=--nonsense", "--"]),
    ],
)
def test_a_search_that_fails_is_not_started_again(submit, queue, script, flags) -> None:
    code, output = submit(
        queue, script, *flags, RUN="runs/it", STAND_IN_NODES="localhost 127.0.0.1"
    )
    assert code == 2, output
    assert output.count("unrecognized arguments: --nonsense") == 1
    assert "runs/it: failed with exit code 2" in output


@pytest.mark.parametrize(
    ("queue", "script", "launcher"),
    [("sbatch", "slurm/worker.sbatch", "srun"), ("qsub", "pbs/worker.pbs", "mpiexec")],
)
def test_a_worker_does_one_run_of_the_queue_and_leaves(
    submit, queue, script, launcher, tmp_path
) -> None:
    """What it launches is replaced: the first run ends well, the second leaves at --max_wait."""
    place = tmp_path / "queue"
    for number in (1, 2):
        command = [sys.executable, "-m", "transfer_nas.queue", place, "add", f"r{number}"]
        subprocess.run([*command, "--", f"--output_dir=runs/r{number}"], check=True)
    instead = tmp_path / "programs" / launcher
    flags = ["--"] if queue == "sbatch" else ["-v", f"QUEUE={place}", "--"]
    for number, ends, state in ((1, 0, "done"), (2, 75, "waiting")):
        instead.write_text(f"#!/bin/sh\nexit {ends}\n")
        instead.chmod(0o755)
        code, output = submit(queue, script, *flags, QUEUE=str(place))
        assert code == 0, output
        assert f"transfer_nas.evolve --output_dir=runs/r{number} --max_wait " in output
        assert f"r{number}: exit code {ends}" in output
        assert (place / state / f"r{number}.json").exists()
    (place / "waiting" / "r2.json").unlink()
    code, output = submit(queue, script, *flags, QUEUE=str(place))
    assert code == 0 and "no run waits" in output, output


def test_too_few_nodes_are_a_line(submit) -> None:
    code, output = submit("sbatch", "slurm/servers_and_ranks.sbatch", "--nodes", "1", "--")
    assert code == 2 and output.startswith("1 nodes are too few: SERVERS=1 of them serve"), output
