"""Whatever breaks a rank, and whenever: all ranks end at once, and the terminal says why."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from transfer_nas import exit_codes

APPLICATION = Path(__file__).with_name("breaking.py")


def search(mpiexec: Any, path: Path, broken: str, *more: str, ranks: int = 2, **env: str) -> Any:
    """Let a search run that would take an hour if nothing broke it."""
    return mpiexec(
        *(ranks, "-m", "transfer_nas.evolve", "--application", f"{APPLICATION}:application"),
        *("--output_dir", path, "--seed", "1", "--population_size", "4", *more),
        env={"BREAK": broken, "RUN": str(path), "MODEL_SERVERS": "", **env},
        timeout=60,
    )


def running(path: Path) -> list[str]:
    """Return the processes that were told of this directory."""
    found = subprocess.run(["pgrep", "-f", str(path)], capture_output=True, text=True, check=False)
    return found.stdout.split()


LONG, SHORT = ("--timeout", "3600"), ("--max_evals", "6")


@pytest.mark.parametrize(
    ("broken", "flags", "code"),
    [
        ("importing 1 RuntimeError", LONG, exit_codes.BAD_INPUT),  # as of any file with an error
        ("importing 1 SystemExit", LONG, exit_codes.FAILED),
        ("importing 0 KeyboardInterrupt", LONG, 130),
        ("loading 1 OSError", LONG, exit_codes.BAD_INPUT),
        ("loading 1 SystemExit", LONG, exit_codes.FAILED),
        ("opening 0 RuntimeError", LONG, exit_codes.FAILED),
        ("asking 0 RuntimeError", LONG, exit_codes.FAILED),
        ("evaluating 0 SystemExit", LONG, exit_codes.FAILED),
        ("evaluating 1 SystemExit", LONG, exit_codes.FAILED),
        ("evaluating 1 GeneratorExit", (*LONG, "--transfer", "hdf5"), exit_codes.FAILED),
        ("summary 0 RuntimeError", SHORT, exit_codes.FAILED),
        ("best.keras 0 SystemExit", SHORT, exit_codes.FAILED),
        ("retraining 0 SystemExit", (*SHORT, "--retrain", "1"), exit_codes.FAILED),
    ],
)
def test_an_exception_in_one_rank_ends_all_and_says_why(
    mpiexec: Any, tmp_path: Path, broken: str, flags: tuple[str, ...], code: int
) -> None:
    path = tmp_path / "run"
    done = search(mpiexec, path, broken, *flags)
    moment, rank, error = broken.split()
    assert exit_codes.returned(path, done.returncode) == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("evolve: error: ")]
    if code == 130:  # whoever typed it knows
        assert lines == []
        return
    [line] = lines
    if code == exit_codes.BAD_INPUT:
        assert f"{error}: as asked: {moment}" in line and "Traceback" not in done.stderr
        assert not path.exists()
    elif code == exit_codes.FAILED:
        assert line == f"evolve: error: rank {rank}: {error}: as asked: {moment}"
    assert running(path) == []


@pytest.mark.parametrize(("name", "rank"), [("SIGKILL", 0), ("SIGKILL", 2), ("SIGSEGV", 1)])
def test_a_signal_that_kills_one_rank_ends_all(
    mpiexec: Any, tmp_path: Path, name: str, rank: int
) -> None:
    path = tmp_path / "run"
    done = search(mpiexec, path, f"evaluating {rank} {name}", *LONG, ranks=3)
    assert done.returncode in (9, 128 + signal.Signals[name], signal.Signals[name])
    if name == "SIGSEGV":  # of SIGKILL only the launcher can tell
        assert "Segmentation fault" in done.stderr and "breaking.py" in done.stderr
    assert running(path) == []


@pytest.mark.parametrize(
    ("moment", "rank", "flags", "reason"),
    [
        ("evaluating", 0, LONG, "signal"),
        ("evaluating", 1, LONG, "signal"),
        ("best.keras", 0, SHORT, "max_evals"),
    ],
)
def test_a_signal_that_asks_one_rank_to_end_ends_all_in_good_order(
    mpiexec: Any, tmp_path: Path, moment: str, rank: int, flags: tuple[str, ...], reason: str
) -> None:
    path = tmp_path / "run"
    done = search(mpiexec, path, f"{moment} {rank} SIGTERM", *flags)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((path / "summary.json").read_text())["ended_by"] == reason
    # Keras is not imported for `best.keras`: a batch system does not wait that long.
    assert not (path / "best.keras").exists()
    kept = (path / "best.safetensors").exists()
    assert (f"-m transfer_nas.trained_model {path}" in done.stderr) == kept
    assert kept or moment == "evaluating"
    assert running(path) == []


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("UNSEEDED", ("ranks 1, 2: other data than in rank 0", "random_state")),
        ("UNORDERED", ("space breaking: ranks 1, 2: other genes than in rank 0", "not a set")),
    ],
)
def test_ranks_with_different_tasks_are_refused(
    mpiexec: Any, tmp_path: Path, what: str, says: tuple[str, ...]
) -> None:
    path = tmp_path / "run"
    done = search(mpiexec, path, "never 0 never", *LONG, ranks=3, **{what: "1"})
    assert done.returncode == exit_codes.BAD_INPUT
    [line] = done.stderr.splitlines()
    assert all(part in line for part in says)
    assert not path.exists()
