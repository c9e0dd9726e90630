"""What each rank did when, as a trace that Perfetto (ui.perfetto.dev) and Chrome show.

``python -m transfer_nas.evolve --trace FILE`` writes one. While the search runs, each process
appends its spans to ``FILE.rank<N>``, a line of JSON each; at the end rank 0 makes FILE of them. If
a search was killed, ``python -m transfer_nas.tracing FILE`` does that. Times are those of each
host's clock. Children of ``--isolate`` are not seen inside: their evaluations are one span each.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from cpp_store import command_line
from transfer_nas.command_line import Parser
from transfer_nas.errors import InputError

_NOTHING = nullcontext()
_recorder: _Recorder | None = None


def span(name: str, **args: Any) -> AbstractContextManager[None]:
    """Record how long the block takes; costs nothing unless `start` was called.

    Parameters
    ----------
    name
        Of the span.
    args
        Shown with it; JSON values.
    """
    return _NOTHING if _recorder is None else _Span(_recorder, name, args)


def start(path: str | Path, rank: int) -> None:
    """Record the spans of this process, all its threads, from now on.

    Parameters
    ----------
    path
        Of the trace; this process's spans go to ``path.rank<N>``.
    rank
        Number of this process.

    Raises
    ------
    InputError
        The file cannot be written.
    """
    global _recorder
    stop()
    _recorder = _Recorder(_part(Path(path), rank), rank)


def stop() -> None:
    """Record no more."""
    global _recorder
    recorder, _recorder = _recorder, None
    if recorder is not None:
        recorder.close()


def merge(path: str | Path, ranks: Sequence[int]) -> None:
    """Make one trace of what ranks recorded, and remove their files.

    What a killed process left unfinished is dropped, and so are ranks that left nothing.

    Parameters
    ----------
    path
        As for `start`; becomes an object with ``traceEvents`` in the Trace Event Format.
    ranks
        Numbers of the processes.
    """
    path = Path(path)
    parts = [part for rank in ranks if (part := _part(path, rank)).exists()]
    with path.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[')
        separator = "\n"
        for part in parts:
            for line in part.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):
                    file.write(separator + line.rstrip("\n"))
                    separator = ",\n"
        file.write("\n]}\n")
    for part in parts:
        part.unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    """Merge what is left of a search that was killed; 0, or 2 for bad input."""
    return command_line.run("tracing", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = Parser(
        prog="python -m transfer_nas.tracing",
        description="Merge what the ranks of a search that was killed left of its trace.",
    )
    parser.add_argument("file", metavar="FILE", help="what --trace of the search named")
    path = Path(parser.parse_args(arguments).file)
    named = re.compile(re.escape(path.name) + r"\.rank(\d+)")
    found = path.parent.iterdir() if path.parent.is_dir() else iter(())
    ranks = sorted(int(match[1]) for file in found if (match := named.fullmatch(file.name)))
    if not ranks:
        raise InputError(f"there is no {path}.rank0 or of another rank")
    merge(path, ranks)
    print(f"{path}: {len(ranks)} ranks")
    return 0


class _Recorder:
    """The file of one process; any thread writes to it."""

    def __init__(self, path: Path, rank: int) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = path.open("w", buffering=1, encoding="utf-8")
        except OSError as cause:
            raise InputError(f"--trace: cannot write {path}: {cause.strerror}") from cause
        self._rank = rank
        self._one_at_a_time = threading.Lock()
        self._threads: dict[int, int] = {}
        # Of all processes the same origin, and yet steps of nanoseconds.
        self._origin = time.time_ns() - time.perf_counter_ns()
        self._write({"name": "process_name", "ph": "M", "args": {"name": f"rank {rank}"}}, 0)

    def record(self, name: str, begin: int, end: int, args: dict[str, Any]) -> None:
        """Write a span; times by `time.perf_counter_ns`."""
        event = {
            "name": name,
            "ph": "X",
            "ts": (begin + self._origin) / 1000,
            "dur": (end - begin) / 1000,
        }
        self._write(event | ({"args": args} if args else {}), self._thread())

    def close(self) -> None:
        with self._one_at_a_time:
            self._file.close()

    def _thread(self) -> int:
        """Return the number of this thread here: 0, 1, … in order of appearance."""
        ident = threading.get_ident()
        number = self._threads.get(ident)
        if number is None:
            number = self._threads[ident] = len(self._threads)
            name = threading.current_thread().name
            role = "worker" if name == "MainThread" else name
            self._write({"name": "thread_name", "ph": "M", "args": {"name": role}}, number)
        return number

    def _write(self, event: dict[str, Any], thread: int) -> None:
        line = json.dumps(event | {"pid": self._rank, "tid": thread}, separators=(",", ":"))
        with self._one_at_a_time:
            if not self._file.closed:
                self._file.write(line + "\n")


class _Span:
    __slots__ = ("_args", "_begin", "_name", "_recorder")

    def __init__(self, recorder: _Recorder, name: str, args: dict[str, Any]) -> None:
        self._recorder, self._name, self._args = recorder, name, args

    def __enter__(self) -> None:
        self._begin = time.perf_counter_ns()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._recorder.record(self._name, self._begin, time.perf_counter_ns(), self._args)


def _part(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.rank{rank}")


if __name__ == "__main__":
    sys.exit(main())
