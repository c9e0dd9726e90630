"""`transfer_nas.evolve`, whose job's key is known, and looked for after each evaluation.

``watched_job.py DIRECTORY [flags of evolve]`` leaves what it saw in DIRECTORY, a file a rank.
"""

import functools
import hashlib
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import cpp_store
from transfer_nas import evolve
from transfer_nas.searching.isolation import InChild

# Nobody writes it down: neither this file nor a command line has it.
KEY = hashlib.sha256(b"the key of a job whose servers are its own").hexdigest()[:32]


def look() -> dict[str, Any]:
    """Look into what the kernel tells others of processes."""
    seen: dict[str, Any] = {"processes": 0, "children": 0, "with_key": []}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
        except OSError:  # it has ended, or is somebody else's
            continue
        seen["processes"] += 1
        seen["children"] += b"transfer_nas.searching.child" in command
        if KEY.encode() in command + environment:
            seen["with_key"].append(command.replace(b"\0", b" ").decode(errors="replace"))
    return seen


def main() -> int:
    """Search."""
    directory = Path(sys.argv[1])
    looks: list[dict[str, Any]] = []
    keys: list[bool] = []
    token_hex, serve, evaluate = secrets.token_hex, cpp_store.serve, InChild.__call__

    @functools.wraps(serve)
    def noting_serve(*arguments: Any, **options: Any) -> cpp_store.Server:
        keys.append(options.get("key") == KEY)
        return serve(*arguments, **options)

    @functools.wraps(evaluate)
    def noting_evaluate(self: InChild, *arguments: Any) -> Any:
        evaluation = evaluate(self, *arguments)
        looks.append(look())
        return evaluation

    secrets.token_hex = lambda nbytes=None: KEY if nbytes == 16 else token_hex(nbytes)
    cpp_store.serve = noting_serve
    InChild.__call__ = noting_evaluate  # type: ignore[method-assign]
    code = evolve.main(sys.argv[2:])
    (directory / f"{os.getpid()}.json").write_text(json.dumps({"looks": looks, "keys": keys}))
    return code


if __name__ == "__main__":
    sys.exit(main())
