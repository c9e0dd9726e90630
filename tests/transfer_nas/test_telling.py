"""What a search tells: commands that can be typed, numbers that people can read."""

import errno
import io
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from transfer_nas import trained_model
from transfer_nas.applications import resolve
from transfer_nas.searching import telling
from transfer_nas.searching.run import _write_best


@pytest.mark.parametrize("where", ["path", "here", "beside", "elsewhere"])
def test_the_command_that_is_told_runs_this_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    running = tmp_path / "an environment" / "bin" / "python"
    running.parent.mkdir(parents=True)
    running.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(running))
    monkeypatch.setenv("PATH", str(running.parent) if where == "path" else str(tmp_path))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir({"here": tmp_path, "beside": running.parent}.get(where, tmp_path / "other"))
    told = telling.command("platform", "--no such flag")
    expected = {
        "path": "python",
        "here": "an environment/bin/python",
        "beside": "./python",
        "elsewhere": str(running),
    }
    assert shlex.split(told) == [expected[where], "-m", "platform", "--no such flag"]
    done = subprocess.run(told, shell=True, executable="/bin/sh", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_model_that_keras_cannot_write_says_what_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trained_model, "finish", full)
    terminal = io.StringIO()
    _write_best(tmp_path, resolve("digits"), terminal)
    [line] = terminal.getvalue().splitlines()
    assert line.startswith("best.keras could not be written: OSError: [Errno 28] No space left")
    assert f"{tmp_path}/best.safetensors is kept" in line
    assert f"-m transfer_nas.trained_model {tmp_path} makes it" in line
