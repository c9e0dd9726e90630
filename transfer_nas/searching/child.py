"""The process that `isolation.InChild` starts: ``python -m transfer_nas.searching.child PIPE``."""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from transfer_nas.errors import InputError, Unwritable
from transfer_nas.job import Job
from transfer_nas.plugins import load_attribute
from transfer_nas.searching.evaluation import InProcess

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Make the evaluator and evaluate until the rank has no more to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the rank decides
    _die_with_the_rank()
    logging.basicConfig(format=LOG_FORMAT)
    answers = os.fdopen(int(sys.argv[1]), "wb", buffering=0)
    messages: SimpleQueue[dict[str, Any]] = SimpleQueue()
    stopped = set[int]()
    threading.Thread(target=_read, args=(messages, stopped), daemon=True).start()

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode() + b"\n")

    task = messages.get()
    try:
        evaluator = load_attribute(task["factory"], InputError)(**task["arguments"])
    except InputError as error:
        answer({"error": str(error)})
        return
    evaluate = InProcess(evaluator, Path(task["directory"]), logging.getLogger(__name__).warning)
    answer({"ready": True})
    while True:
        message = messages.get()
        best = -math.inf if message["best"] is None else message["best"]
        job = Job.from_dict(message["job"], evaluator.space.from_json)

        def report(step: int, values: Mapping[str, float], job: Job = job) -> bool:
            # NaN and infinity as texts: no line is anything but JSON.
            texts = {name: repr(float(value)) for name, value in values.items()}
            answer({"epoch": step, "values": texts})
            return job.id in stopped

        try:
            evaluation = evaluate(job, best, report if message["reports"] else None)
        except Unwritable as error:
            answer({"unwritable": error.what})
            return
        answer(evaluation.to_dict())


def _read(messages: SimpleQueue[dict[str, Any]], stopped: set[int]) -> None:
    """Hand on what the rank says; when it says no more, there is nothing left to live for."""
    # Not sys.stdin: its lock, held by this thread, would be in the way of an orderly exit.
    received = b""
    while part := os.read(0, 2**16):
        *lines, received = (received + part).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "stop" in message:
                stopped.add(message["stop"])
            else:
                messages.put(message)
    os._exit(0)


def _die_with_the_rank() -> None:
    """Ask Linux to end this process with its parent, even where it hangs in native code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
