"""Client processes of a server that all do something at the same moment, and servers to ask.

What ``bench_matches.py`` and ``bench_increments.py`` share. Clients are told what to do by lines on
their standard input, and answer each with a line.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import figures
from methods import redis_server
from store_servers import SHARED_MEMORY, connect


class Clients:
    """Processes of one script, numbered; each gets its number behind `arguments`.

    Parameters
    ----------
    script, arguments
        What each runs.
    count
        How many.
    stack
        Ends them.
    """

    def __init__(self, script: str, arguments: Sequence[str], count: int, stack: ExitStack) -> None:
        self._name = arguments[0]
        self._processes = []
        for number in range(count):
            process = subprocess.Popen(
                [sys.executable, script, *arguments, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            assert process.stdin is not None
            stack.callback(process.stdin.close)
            self._processes.append(process)

    def hear(self, number: int) -> str:
        """Return the next line of one of them."""
        stream = self._processes[number].stdout
        assert stream is not None
        line = stream.readline()
        if not line:
            raise SystemExit(f"a client of {self._name} ended")
        return line

    def tell(self, what: str, together: int | None = None) -> list[str]:
        """Tell so many of them, or all, the same; return what each answers."""
        chosen = range(len(self._processes) if together is None else together)
        for number in chosen:
            print(what, file=self._processes[number].stdin, flush=True)
        return [self.hear(number) for number in chosen]


def soon() -> float:
    """Return a moment at which all clients can begin."""
    return time.monotonic() + 0.02


def wait_for(moment: float) -> None:
    """Sleep until then."""
    time.sleep(max(0.0, moment - time.monotonic()))


def reached_by_memory(address: str) -> bool:
    """Tell whether clients here reach a server through shared memory; say so if not."""
    store = connect(address, SHARED_MEMORY)
    if store is None:
        figures.lacks("store", "shared memory: the same user and network namespace")
        return False
    store.close()
    return True


@contextmanager
def redis_socket() -> Iterator[str]:
    """Yield the socket of a Redis server that keeps everything in memory; "" if there is none."""
    try:
        import redis  # noqa: F401
    except ImportError:
        figures.lacks("redis", "pip install redis hiredis")
        yield ""
        return
    with (
        tempfile.TemporaryDirectory() as directory,
        redis_server(Path(directory), ["--save", ""]) as socket,
    ):
        yield socket
