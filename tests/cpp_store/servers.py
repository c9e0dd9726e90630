"""Real `cpp-store-server` processes for tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cpp_store

_ROOT = Path(__file__).resolve().parents[2]
_IN_TREE = _ROOT / "cpp_store" in Path(cpp_store.__file__).resolve().parents
PROGRAM = (
    _ROOT / "build" / "dev" / "cpp_store" if _IN_TREE else Path(sys.prefix) / "bin"
) / "cpp-store-server"
# What a server says on standard error as it starts.
MEMORY_ONLY = (
    "cpp-store-server: models are kept in memory only; --data_dir DIR keeps them on disk\n"
)


def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server and wait until it is ready. Returns it and its address."""
    process = subprocess.Popen(
        [str(PROGRAM), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    if not address:
        _, errors = process.communicate(timeout=10)
        raise RuntimeError(f"cpp-store-server ended with {process.returncode}: {errors}")
    return process, address


def freeze(process: "subprocess.Popen[str]") -> None:
    """Stop it, as if it hung, and wait until it stands still."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Ask a server to end. Returns its exit code and what it logged."""
    process.terminate()
    _, errors = process.communicate(timeout=20)
    return process.returncode, errors


class Group:
    """Servers that make one store."""

    def __init__(self, count: int = 1, *arguments: str) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self.addresses: list[str] = []
        try:
            for _ in range(count):
                process, address = start(*arguments)
                self._processes.append(process)
                self.addresses.append(address)
        except BaseException:
            self.kill()
            raise

    @property
    def by_address(self) -> dict[str, "subprocess.Popen[str]"]:
        """The processes, for tests that do something to them."""
        return dict(zip(self.addresses, self._processes, strict=True))

    def finish(self) -> None:
        """End them; each must end cleanly."""
        try:
            for process in self._processes:
                code, errors = finish(process)
                assert code == 0, errors
        finally:
            self.kill()

    def kill(self) -> None:
        """End whatever still runs."""
        for process in self._processes:
            process.kill()
            process.communicate(timeout=10)


@contextmanager
def doomed(count: int = 1, *arguments: str) -> Iterator[dict[str, "subprocess.Popen[str]"]]:
    """As many servers by their addresses, for tests that kill them; the others are killed, too."""
    group = Group(count, *arguments)
    try:
        yield group.by_address
    finally:
        group.kill()


@contextmanager
def running(count: int = 1, *arguments: str) -> Iterator[list[str]]:
    """Addresses of as many servers; they must end cleanly afterwards."""
    group = Group(count, *arguments)
    try:
        yield group.addresses
        group.finish()
    finally:
        group.kill()
