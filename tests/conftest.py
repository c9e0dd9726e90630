"""Fixtures of all tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MpiExec = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def runtime_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's own key for servers out of the tests, and theirs out of the user's way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        yield


@pytest.fixture
def mpiexec() -> MpiExec:
    """``mpiexec(ranks, program_or_-m, *arguments, timeout=seconds)`` runs Python on MPI ranks.

    Returns the completed process with its output as text, whatever its exit code. When time is up,
    every rank is killed and the output so far is in the failure.
    """
    launcher = Path(sys.executable).with_name("mpiexec")
    # Open MPI refuses more ranks than cores unless told; MPICH ignores these.
    environment = {
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }

    def run(
        ranks: int, *arguments: str | Path, timeout: float = 60.0, env: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        command = [str(launcher), "-n", str(ranks), sys.executable, *map(str, arguments)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | environment | (env or {}),
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"{' '.join(command)} took over {timeout:g} s\n{out}\n{err}")
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run


@dataclass
class SmallDisk:
    """A file system of its own, mounted at `path`."""

    path: Path

    def resize(self, size: str) -> None:
        """Give it so much room, for instance ``64m``; what is there stays."""
        options = f"remount,size={size}"
        subprocess.run(["mount", "-o", options, str(self.path)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of 64 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only an administrator may mount a file system")
    yield SmallDisk(path)
    subprocess.run(["umount", str(path)], check=True)
