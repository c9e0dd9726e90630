"""Evaluates in a child process, which can be ended without ending the rank.

An evaluation that hangs, crashes in native code or is killed for its memory takes its process with
it. Under MPI that would be the end of the whole job. So the process is a child of the rank: it
evaluates one job after the other, and when it has died or its time is up, the evaluation is
recorded as a failure and the next one gets a new child.

Messages are lines of JSON. The child reads its standard input: first how to make its evaluator,
``{"factory": …, "arguments": …, "directory": …}``, then ``{"job": …, "best": … or null,
"reports": bool}``, and ``{"stop": job id}`` while it trains. It answers on a pipe of its own:
``{"ready": true}`` or ``{"error": …}``, then evaluations, with ``{"epoch": …, "values": …}`` of
each epoch before if they are wanted, or
``{"unwritable": …}`` where the run's files cannot be written. What it prints goes where the rank's
output goes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transfer_nas.errors import InputError, Unwritable
from transfer_nas.job import Evaluation, Job, Report
from transfer_nas.ranks import environment_alone
from transfer_nas.spaces import Space


class InChild:
    """Lets an evaluator of a child process evaluate; an `Evaluate`, and a context manager.

    Parameters
    ----------
    factory
        ``package.module:attribute`` or ``path/to/file.py:attribute`` of a function that returns an
        `Evaluator` in the child.
    arguments
        Its arguments, by name, as JSON values.
    directory
        The run directory.
    space
        Turns the jobs' architectures into JSON; the evaluator's turns them back.
    timeout
        Seconds that an evaluation may take; None: any. The start of the child does not count.
    log
        Takes a line about each child that was lost.

    Raises
    ------
    InputError
        On entering: `factory` raised it.
    Unwritable
        On evaluating; the child has ended.
    RuntimeError
        On entering, and when a new child has to be started: the child ended before it was ready.
    """

    def __init__(
        self,
        factory: str,
        arguments: Mapping[str, Any],
        directory: Path,
        *,
        space: Space,
        timeout: float | None,
        log: Callable[[str], None],
    ) -> None:
        self._task = {"factory": factory, "arguments": arguments, "directory": str(directory)}
        self._space = space
        self._timeout = timeout
        self._log = log
        self._child: _Child | None = None

    def __enter__(self) -> InChild:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(
        self, job: Job, best_objective: float, report: Report | None = None, /
    ) -> Evaluation:
        """Evaluate; ``F_timeout`` if it took too long, ``F_lost`` if the child died of it."""
        child = self._child or self._start()
        start = time.time()
        try:
            best = best_objective if math.isfinite(best_objective) else None
            wanted = report is not None
            child.send({"job": job.to_dict(self._space.to_json), "best": best, "reports": wanted})
            end = math.inf if self._timeout is None else time.monotonic() + self._timeout
            while "epoch" in (answer := child.receive(end)):
                values = {name: float(value) for name, value in answer["values"].items()}
                if report is not None and report(answer["epoch"], values):
                    child.send({"stop": job.id})
        except TimeoutError:
            reason, what = "timeout", f"took more than {self._timeout:g} seconds"
        except _Died as death:
            reason, what = "lost", f"ended its process: {death}"
        except BaseException:  # an interruption: nobody wants the answer any more
            self._stop()
            raise
        else:
            if "unwritable" not in answer:
                return Evaluation.from_dict(answer, job)
            self._stop()
            raise Unwritable(answer["unwritable"])
        self._stop()
        self._log(f"job {job.id} {what}")
        times = {"timestamp_start": start, "timestamp_end": time.time()}
        return Evaluation.failure(job, reason, times, error=f"the evaluation {what}")

    def _start(self) -> _Child:
        self._child = child = _Child()
        try:
            child.send(self._task)
            answer = child.receive(math.inf)
        except BaseException as error:
            self._stop()
            if isinstance(error, _Died):
                raise RuntimeError(f"the evaluating process ended at its start: {error}") from error
            raise
        if "error" in answer:
            self._stop()
            raise InputError(answer["error"])
        return child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


class _Died(Exception):
    """The child ended; says how."""


class _Child:
    """A process that evaluates."""

    def __init__(self) -> None:
        self._answers, answers = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "transfer_nas.searching.child", str(answers)],
                stdin=subprocess.PIPE,
                pass_fds=[answers],
                env=environment_alone(),
            )
        finally:
            os.close(answers)
        self._received = b""

    def send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._death() from error

    def receive(self, end: float) -> dict[str, Any]:
        """Wait for an answer.

        Raises
        ------
        TimeoutError
            It is not there at `end`, by `time.monotonic`.
        _Died
            It will never come.
        """
        while b"\n" not in self._received:
            left = end - time.monotonic()
            wait = None if math.isinf(left) else max(0.0, left)
            if not select.select([self._answers], [], [], wait)[0]:
                raise TimeoutError
            part = os.read(self._answers, 2**16)
            if not part:
                raise self._death()
            self._received += part
        line, self._received = self._received.split(b"\n", 1)
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def kill(self) -> None:
        """End the process, whatever it is doing; may be called again."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        os.close(self._answers)

    def _death(self) -> _Died:
        code = self._process.wait()
        if code >= 0:
            return _Died(f"exit code {code}")
        hint = ", perhaps for its memory" if code == -signal.SIGKILL else ""
        return _Died(f"killed by {signal.Signals(-code).name}{hint}")
