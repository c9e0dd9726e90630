"""``python -m transfer_nas.queue QUEUE add|take|list``: runs that wait for a job of a cluster.

A worker takes one run, does it, and leaves: its allocation is never idle, and no server has to be
looked after. ``QUEUE`` is a directory that all hosts see (taking is renaming a file) or, if its
name ends in ``.db`` or ``.sqlite``, an SQLite database, on a file system whose locks work.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cpp_store.ranges import Range

from cpp_store import command_line
from transfer_nas import exit_codes
from transfer_nas.command_line import Parser
from transfer_nas.errors import InputError

STATES = ("waiting", "running", "done", "failed")
_SECONDS = Range(0, 10**9, whole=False)
STALE = 300.0  # seconds without a sign of life, after which a worker is taken for dead
_SIGN_OF_LIFE = 20.0  # seconds
_LOOK = 1.0  # seconds between two looks at an empty queue


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that this worker has taken.

    Attributes
    ----------
    name
        Of the run.
    arguments
        Flags of `transfer_nas.evolve`.
    token
        Tells this claim from a later one of the same run.
    """

    name: str
    arguments: tuple[str, ...]
    token: str


class Queue(ABC):
    """Runs by name, each in one of `STATES`, for workers on any number of hosts."""

    @abstractmethod
    def add(self, name: str, arguments: Sequence[str]) -> None:
        """Let a run wait behind the others. InputError if there is one of that name."""

    @abstractmethod
    def take(self, stale: float = STALE) -> Claim | None:
        """Take the run that has waited longest; None if none waits.

        Runs whose workers have given no sign of life for `stale` seconds wait again first.
        """

    @abstractmethod
    def alive(self, claim: Claim) -> None:
        """Give a sign of life."""

    @abstractmethod
    def release(self, claim: Claim, state: str) -> bool:
        """Put a run that was taken into a state; False if another worker has it now."""

    @abstractmethod
    def runs(self) -> Iterator[tuple[str, str]]:
        """Yield name and state of each run."""


class DirectoryQueue(Queue):
    """A folder for each state; a run is a file, ``NAME.json``, with its arguments.

    A running one is called ``NAME@TOKEN.json`` and its modification time is its last sign of life.
    Renaming is atomic: of two workers that rename one file, one finds that it is gone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            for state in STATES:
                (path / state).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot use {path} as a queue: {error}") from error

    def add(self, name: str, arguments: Sequence[str]) -> None:
        """Write the file elsewhere and move it in, so that nobody sees half of it."""
        if any(name == known for known, _ in self.runs()):
            raise InputError(f"there is a run {name!r} in {self._path}; choose another name")
        temporary = self._path / f".{name}.{uuid.uuid4().hex[:8]}"
        temporary.write_text(json.dumps(list(arguments)))
        temporary.rename(self._path / "waiting" / f"{name}.json")

    def take(self, stale: float = STALE) -> Claim | None:
        """Rename the oldest file that no other worker renames first."""
        self._revive(stale)
        token = uuid.uuid4().hex[:12]
        for file in self._files("waiting"):
            mine = self._path / "running" / f"{file.stem}@{token}.json"
            try:
                os.utime(file)  # or it would be stale at once
                file.rename(mine)
            except FileNotFoundError:
                # Another worker's; or, on a network file system, this one's at the second try.
                if not mine.exists():
                    continue
            return Claim(file.stem, tuple(json.loads(mine.read_text())), token)
        return None

    def alive(self, claim: Claim) -> None:
        """Touch the file."""
        with contextlib.suppress(FileNotFoundError):  # another worker took it meanwhile
            os.utime(self._file(claim))

    def release(self, claim: Claim, state: str) -> bool:
        """Move the file."""
        try:
            self.alive(claim)  # to the end of those that wait
            self._file(claim).rename(self._path / state / f"{claim.name}.json")
        except FileNotFoundError:
            return False
        return True

    def runs(self) -> Iterator[tuple[str, str]]:
        """Look into the folders."""
        for state in STATES:
            for file in self._files(state):
                yield file.stem.partition("@")[0], state

    def _revive(self, stale: float) -> None:
        for file in self._files("running"):
            try:
                if time.time() - file.stat().st_mtime > stale:
                    name = file.stem.partition("@")[0]
                    file.rename(self._path / "waiting" / f"{name}.json")
            except FileNotFoundError:
                continue  # it ended, or another worker was quicker

    def _file(self, claim: Claim) -> Path:
        return self._path / "running" / f"{claim.name}@{claim.token}.json"

    def _files(self, state: str) -> list[Path]:
        """Return the files of a state, the oldest first."""
        aged = []
        for file in (self._path / state).glob("*.json"):
            try:
                aged.append((file.stat().st_mtime_ns, file.name, file))
            except FileNotFoundError:
                continue
        return [file for _, _, file in sorted(aged)]


class DatabaseQueue(Queue):
    """A table of an SQLite database; each step is one transaction."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._do(
                "CREATE TABLE IF NOT EXISTS runs (name TEXT PRIMARY KEY, arguments TEXT NOT NULL, "
                "state TEXT NOT NULL, token TEXT, seen REAL NOT NULL)"
            )
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"cannot use {path} as a queue: {error}") from error

    def add(self, name: str, arguments: Sequence[str]) -> None:
        """Insert a row."""
        row = (name, json.dumps(list(arguments)), time.time())
        try:
            self._do("INSERT INTO runs VALUES (?, ?, 'waiting', NULL, ?)", *row)
        except sqlite3.IntegrityError:
            raise InputError(
                f"there is a run {name!r} in {self._path}; choose another name"
            ) from None

    def take(self, stale: float = STALE) -> Claim | None:
        """Update the oldest row that waits."""
        token, now = uuid.uuid4().hex[:12], time.time()
        self._do(
            "UPDATE runs SET state = 'waiting' WHERE state = 'running' AND seen < ?", now - stale
        )
        taken = self._do(
            "UPDATE runs SET state = 'running', token = ?, seen = ? WHERE name = (SELECT name FROM "
            "runs WHERE state = 'waiting' ORDER BY seen, name LIMIT 1) RETURNING name, arguments",
            token,
            now,
        )
        return Claim(taken[0][0], tuple(json.loads(taken[0][1])), token) if taken else None

    def alive(self, claim: Claim) -> None:
        """Write down the time."""
        self._do("UPDATE runs SET seen = ? WHERE token = ?", time.time(), claim.token)

    def release(self, claim: Claim, state: str) -> bool:
        """Update the row, if it is still this claim's."""
        return bool(
            self._do(
                "UPDATE runs SET state = ?, token = NULL, seen = ? "
                "WHERE token = ? AND state = 'running' RETURNING name",
                state,
                time.time(),
                claim.token,
            )
        )

    def runs(self) -> Iterator[tuple[str, str]]:
        """Select them all."""
        yield from self._do("SELECT name, state FROM runs ORDER BY seen, name")

    def _do(self, statement: str, *values: str | float) -> list[tuple[str, str]]:
        # A connection each: workers wait for hours between two statements.
        with closing(sqlite3.connect(self._path, timeout=60)) as connection, connection:
            return connection.execute(statement, values).fetchall()


def open_queue(path: Path) -> Queue:
    """Return the queue at a path, made if it is not there."""
    return DatabaseQueue(path) if path.suffix in {".db", ".sqlite"} else DirectoryQueue(path)


def work(
    queue: Queue,
    *,
    launcher: Sequence[str] = (),
    wait: float = 0.0,
    stale: float = STALE,
    extra: Sequence[str] = (),
) -> int:
    """Take one run, do it, and say what became of it.

    Parameters
    ----------
    queue
        Where runs wait.
    launcher
        What starts the ranks, such as ``["srun"]``; none: one process.
    wait
        Seconds to wait for a run if there is none.
    stale
        See `Queue.take`.
    extra
        Further flags for `transfer_nas.evolve`, such as ``--max_wait``.

    Returns
    -------
    int
        The search's exit code; `exit_codes.NOTHING_TO_DO` if no run came.
    """
    deadline = time.monotonic() + wait
    while (claim := queue.take(stale)) is None:
        left = deadline - time.monotonic()
        if left <= 0:
            print("no run waits", flush=True)
            return exit_codes.NOTHING_TO_DO
        time.sleep(min(left, _LOOK))
    arguments = [*claim.arguments, *extra]
    directory = output_directory(arguments)
    exit_codes.forget(directory)
    if (directory / "run.json").exists():
        arguments.append("--resume")
    command = [*launcher, sys.executable, "-m", "transfer_nas.evolve", *arguments]
    print(f"{claim.name}: {shlex.join(command)}", flush=True)
    code = exit_codes.returned(directory, _do(command, queue, claim))
    if code in (exit_codes.DONE, exit_codes.NOTHING_TO_DO):
        state, code = "done", exit_codes.DONE
    else:
        state = "waiting" if exit_codes.resumable(code) else "failed"
    if not queue.release(claim, state):
        print(f"{claim.name}: another worker has taken it, as this one gave no sign of life")
    print(f"{claim.name}: exit code {code} on {socket.gethostname()}: {state}", flush=True)
    return code if code >= 0 else 128 - code


def _do(command: Sequence[str], queue: Queue, claim: Claim) -> int:
    """Run a command, handing on the signals that end a job; return its exit code."""
    with subprocess.Popen(command) as process:

        def hand_on(number: int, frame: FrameType | None) -> None:
            del frame
            process.send_signal(number)

        previous = {
            number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            while True:
                try:
                    return process.wait(_SIGN_OF_LIFE)
                except subprocess.TimeoutExpired:
                    queue.alive(claim)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def output_directory(arguments: Sequence[str]) -> Path:
    """Return what --output_dir says; InputError if it is not there, as a run goes on in its own."""
    for number, argument in enumerate(arguments):
        flag, equals, _ = argument.replace("-", "_").partition("=")
        if flag == "__output_dir":
            if equals:
                return Path(argument.partition("=")[2])
            if number + 1 < len(arguments):
                return Path(arguments[number + 1])
    raise InputError("a run in a queue needs --output_dir, where it goes on after an interruption")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; see `transfer_nas.exit_codes`."""
    return command_line.run("queue", lambda: _command(arguments))


def _command(arguments: Sequence[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    given, extra = _split(given)
    flags = _parser().parse_args(given)
    queue = open_queue(Path(flags.queue))
    if flags.action == "add":
        output_directory(extra)
        if not flags.name or set("/@") & set(flags.name) or flags.name.startswith("."):
            raise InputError(
                f"a run is called by letters and digits, without / and @: {flags.name!r}"
            )
        queue.add(flags.name, extra)
        return exit_codes.DONE
    if flags.action == "take":
        launcher = shlex.split(flags.launcher)
        return work(queue, launcher=launcher, wait=flags.wait, stale=flags.stale, extra=extra)
    for name, state in queue.runs():
        print(f"{state:<8} {name}")
    return exit_codes.DONE


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Separate the flags of `transfer_nas.evolve`, after ``--``."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m transfer_nas.queue",
        description="Runs that wait for a job of a cluster: a worker takes one and leaves.",
        epilog="Exit codes of take: 0 done, 1 failed, 2 bad input, 3 no run waits, 75, 130, "
        "137, 143: the run waits again, to be resumed. docs/clusters.md has batch scripts.",
    )
    parser.add_argument("queue", help="a directory, or an SQLite database NAME.db")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="let a run wait: add NAME -- FLAGS OF EVOLVE")
    add.add_argument("name", help="of the run, unique in the queue")
    take = actions.add_parser("take", help="do one run: take [FLAGS] [-- MORE FLAGS OF EVOLVE]")
    take.add_argument(
        "--launcher",
        default="",
        metavar="COMMAND",
        help='what starts the ranks: "srun", "mpiexec -n 4"',
    )
    take.add_argument(
        "--wait",
        type=_SECONDS,
        default=0.0,
        metavar="SECONDS",
        help="for a run to come (default: 0)",
    )
    take.add_argument(
        "--stale",
        type=_SECONDS,
        default=STALE,
        metavar="SECONDS",
        help="without a sign of life, after which a worker counts as dead (default: 300)",
    )
    actions.add_parser("list", help="every run and its state")
    return parser


if __name__ == "__main__":
    sys.exit(main())
