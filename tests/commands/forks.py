"""Runs commands, each in a fork of a process that has imported them all: hundreds take seconds.

Reads a case a line from standard input: ``{"command", "arguments", "out", "err", "encoding"}``, and
answers with a line ``{"code", "out", "err"}``. ``out`` and ``err`` say what the command has for
standard output and error: "kept", "closed", "full" (``/dev/full``), or "gone" (nobody reads).
"""

import importlib
import io
import json
import os
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Any

LIMIT = 30.0  # seconds that a command may take
LATE = (
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "rich.table",
    "transfer_nas.population",
    "transfer_nas.report.page",
    "transfer_nas.runs",
    "transfer_nas.searching.run",
)

MODULES = {
    "benchmarks": "benchmarks.__main__",
    "birthday": "transfer_nas.population.birthday",
    "cpp-store": "cpp_store.command",
    "dashboard": "transfer_nas.dashboard",
    "evolve": "transfer_nas.evolve",
    "experiments": "transfer_nas.experiments",
    "find_prefix": "graph_meta.find_prefix",
    "gen_models": "transfer_nas.population.gen_models",
    "logs": "transfer_nas.logs",
    "patterns": "transfer_nas.population.patterns",
    "queue": "transfer_nas.queue",
    "report": "transfer_nas.report.__main__",
    "retrain": "transfer_nas.retrain",
    "runs": "transfer_nas.runs.__main__",
    "tracing": "transfer_nas.tracing",
    "trained_model": "transfer_nas.trained_model",
}


def main() -> None:
    """Serve until standard input ends."""
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        name: importlib.import_module(module).main for name, module in MODULES.items()
    }
    for module in LATE:  # what they import when they know that there is work
        importlib.import_module(module)
    print(flush=True)  # ready
    for line in sys.stdin:
        case = json.loads(line)
        print(json.dumps(run(commands[case["command"]], case)), flush=True)


def run(command: Callable[[Sequence[str]], int], case: dict[str, Any]) -> dict[str, Any]:
    """Return what a command does in a process of its own."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os._exit(_run(command, case, out.fileno(), err.fileno()))
        code = _wait(child)
        out.seek(0), err.seek(0)
        return {
            "code": code,
            "out": out.read().decode(errors="surrogateescape"),
            "err": err.read().decode(errors="surrogateescape"),
        }


def _run(command: Callable[[Sequence[str]], int], case: dict[str, Any], out: int, err: int) -> int:
    """Do what ``python -m`` does with a command and with its exit."""
    for descriptor, kind, kept in ((1, case["out"], out), (2, case["err"], err)):
        if kind == "closed":
            os.close(descriptor)
        elif kind == "gone":
            reads, writes = os.pipe()
            os.close(reads)
            os.dup2(writes, descriptor)
        else:
            os.dup2(os.open("/dev/full", os.O_WRONLY) if kind == "full" else kept, descriptor)
    streams = [
        None
        if case[name] == "closed"
        else io.TextIOWrapper(
            io.FileIO(descriptor, "w"), case["encoding"], errors, write_through=True
        )
        for descriptor, name, errors in ((1, "out", "strict"), (2, "err", "backslashreplace"))
    ]
    sys.stdout, sys.stderr = streams  # type: ignore[assignment]
    sys.__stdout__, sys.__stderr__ = streams  # type: ignore[assignment,misc]
    code: int | str | None
    try:
        code = command(case["arguments"])
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        code = 1
        if case["err"] == "kept":
            os.write(2, traceback.format_exc().encode(errors="surrogateescape"))
    return code if isinstance(code, int) else 0 if code is None else 1


def _wait(child: int) -> int:
    descriptor = os.pidfd_open(child)
    ended, _, _ = select.select([descriptor], [], [], LIMIT)
    os.close(descriptor)
    if not ended:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    main()
