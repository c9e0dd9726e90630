"""``python -m transfer_nas.dashboard RUN``: the report of a run, served as the run goes on.

A thread looks at the files; when they change it reads them and makes the page anew. Browsers are
told by server-sent events and fetch what changed. Nothing in the run directory is written.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cpp_store.command_line import OK
from cpp_store.ranges import Range

from cpp_store import command_line
from transfer_nas import runs
from transfer_nas.command_line import Parser
from transfer_nas.errors import InputError
from transfer_nas.report import page
from transfer_nas.report.arguments import add_groups

_FILES = ("run.json", "results.csv", "checkpoint", "summary.json")
_HEARTBEAT = 15.0  # seconds after which an idle connection is given a sign of life
_SHARE = 0.2  # of the time at most goes into making pages


@dataclass(frozen=True)
class Sources:
    """What a page is made of; see `report.page.content`."""

    runs: Sequence[Path]
    against: Sequence[Path] = ()
    labels: Sequence[str] = ("first", "second")
    own_space: str | None = None

    def read(self) -> tuple[page.Content, bool]:
        """Return the content of the moment, and whether all runs have ended.

        Raises
        ------
        InputError
            A run cannot be read.
        """
        found = [runs.read(path) for path in self.runs]
        against = [runs.read(path) for path in self.against]
        content = page.content(found, against, self.labels, self.own_space)
        return content, all(run.state == runs.FINISHED for run in (*found, *against))

    def missing(self) -> list[Path]:
        """Return the runs that have not begun: there is no directory, or no run in it yet."""
        return [path for path in (*self.runs, *self.against) if _may_begin(path)]

    def signature(self) -> object:
        """Return something that changes as the runs go on."""
        paths = [run / name for run in (*self.runs, *self.against) for name in _FILES]
        # What a killed run leaves does not change any more, but for its lock: the minute does.
        return [_stamp(path) for path in paths], int(time.time() // 60)


class Watcher:
    """Keeps the page of the moment. Thread-safe.

    Parameters
    ----------
    sources
        What to watch. It is read once at once.
    interval
        Seconds between two looks.
    complain
        Called with a line about files that cannot be read; the last page stays.
    """

    def __init__(
        self, sources: Sources, interval: float, complain: Callable[[str], None] = print
    ) -> None:
        self._sources = sources
        self._interval = interval
        self._complain = complain
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._signature = sources.signature()
        self._content, self._ended = sources.read()
        self._version = 1
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    def now(self) -> tuple[int, page.Content]:
        """Return the version and the content of the moment."""
        with self._changed:
            return self._version, self._content

    def wait(self, version: int, timeout: float) -> tuple[int, bool]:
        """Wait for another version than this one, or for the end; return it, and whether."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._version != version or self._ended or self._stop.is_set(), timeout
            )
            return self._version, self._ended or self._stop.is_set()

    def _watch(self) -> None:
        pause = self._interval
        while not self._stop.wait(pause):
            signature = self._sources.signature()
            pause = self._interval
            if signature == self._signature:
                continue
            begin = time.monotonic()
            try:
                content, ended = self._sources.read()
            except InputError as error:
                self._complain(" ".join(str(error).split()))
            else:
                with self._changed:
                    self._content, self._ended = content, ended
                    self._version += 1
                    self._changed.notify_all()
            self._signature = signature
            # A page of a long run takes a second: the search needs the core more.
            pause = max(self._interval, (time.monotonic() - begin) / _SHARE)


class Server(ThreadingHTTPServer):
    """Serves a watcher's page.

    Parameters
    ----------
    host, port
        Where; port 0: any that is free.

    Attributes
    ----------
    watcher
        What is served. Until it is set, nobody may call `serve_forever`: browsers wait.

    Raises
    ------
    InputError
        The port is in use, or the address is none of this host's.
    """

    daemon_threads = True
    watcher: Watcher

    def __init__(self, host: str, port: int) -> None:
        self.only_local = _is_loopback(host)
        try:
            super().__init__((host, port), _Handler)
        except OSError as cause:
            if cause.errno == errno.EADDRINUSE:
                raise InputError(
                    f"port {port} of {host} is in use: choose another with --port (0: any)"
                ) from cause
            raise InputError(f"cannot listen on {host}:{port}: {cause.strerror}") from cause

    @property
    def url(self) -> str:
        """Where a browser finds the page."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with the page, what changed of it, or events."""
        if self.server.only_local and not self._is_addressed_to_us():
            # A page of somebody else's, whose name leads here, must not read ours.
            self.send_error(HTTPStatus.FORBIDDEN, "not this host")
            return
        path = self.path.partition("?")[0]
        if path == "/":
            _, content = self.server.watcher.now()
            self._send(page.render(content, live=True), "text/html")
        elif path == "/now.json":
            _, content = self.server.watcher.now()
            now = {
                "charts": content.charts,
                "rows": content.rows,
                "main": page.render_fragment(content),
            }
            self._send(json.dumps(now, allow_nan=False), "application/json")
        elif path == "/events":
            self._send_events()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal belongs to the user."""

    def _is_addressed_to_us(self) -> bool:
        name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        return name == "localhost" or _is_loopback(name.strip("[]"))

    def _send(self, text: str, kind: str) -> None:
        body = text.encode(errors="backslashreplace")  # names of directories are any bytes
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def _send_events(self) -> None:
        self.close_connection = True
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        # The page was made a moment ago, perhaps of an older version: the first event is at once.
        version = 0
        try:
            while True:
                found, ended = self.server.watcher.wait(version, _HEARTBEAT)
                event = f"event: changed\ndata: {found}\n\n" if found != version else ": alive\n\n"
                version = found
                if ended:
                    event += "event: ended\ndata: \n\n"
                self.wfile.write(event.encode(errors="backslashreplace"))
                self.wfile.flush()
                if ended:
                    return
        except (BrokenPipeError, ConnectionResetError):
            pass  # the browser has gone


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command until Ctrl-C; returns 0, or 2 for bad input."""
    return command_line.run("dashboard", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    sources = Sources(
        [Path(path) for path in given.runs],
        [Path(path) for path in given.against],
        given.labels,
        given.space,
    )
    with Server(given.host, given.port) as server:
        try:
            wait_for(sources, given.interval)
            with Watcher(sources, given.interval, _complain) as server.watcher:
                print(f"{server.url} shows the run as it goes on; Ctrl-C ends", flush=True)
                if not server.only_local:
                    _complain(f"everybody who can reach {given.host} can read this")
                server.serve_forever()
        except KeyboardInterrupt:
            print()
    return OK


def wait_for(sources: Sources, interval: float) -> None:
    """Wait until all runs have begun; say for which. Looks every `interval` seconds."""
    said: list[Path] = []
    while missing := sources.missing():
        if missing != said:
            names = ", ".join(map(str, missing))
            print(f"waiting for a search to begin in {names}; Ctrl-C ends", flush=True)
            said = missing
        time.sleep(interval)


def _may_begin(path: Path) -> bool:
    """Tell whether a run is not here yet but may come: in a directory that is there, or within."""
    # A packed run is a file; a population is no run and never becomes one.
    if any((path / name).exists() for name in ("run.json", "population.json")):
        return False
    return next(each for each in (path, *path.absolute().parents) if each.exists()).is_dir()


def _complain(line: str) -> None:
    print(f"dashboard: {line}", file=sys.stderr, flush=True)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parser() -> Parser:
    parser = Parser(
        prog="python -m transfer_nas.dashboard",
        description="Serve the report of a run to browsers of this host, and follow the run.",
    )
    add_groups(parser)
    add = parser.add_argument
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen; 0.0.0.0: for everybody who can reach this host (default: 127.0.0.1)",
    )
    add(
        "--port", type=Range(0, 2**16 - 1), default=8640, help="0: any that is free (default: 8640)"
    )
    add(
        "--interval",
        type=Range(0.1, 10**6, whole=False),
        default=2.0,
        metavar="SECONDS",
        help="between two looks at the run (default: 2)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
