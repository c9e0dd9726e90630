"""What a search tells: commands that can be typed, numbers that people can read."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from transfer_nas.search import telling


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
