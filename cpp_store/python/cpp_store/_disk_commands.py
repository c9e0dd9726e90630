"""``cpp-store check|export|import``: data directories, and models on their way between stores."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cpp_store import _core, _lineage
from cpp_store._core import InvalidArgument, NotFound
from cpp_store._server import connect
from cpp_store._store import Store, embedded

OK, FOUND_SOMETHING = 0, 1


def check(directory: str, repair: bool) -> tuple[dict[str, object], list[str], int]:
    """Check a data directory.

    Returns
    -------
    dict
        What was found, for programs.
    list[str]
        The same in lines for people.
    int
        The exit code: 0 if all is well, 1 if there is (or was) damage or a leak.
    """
    found = _core.check_directory(os.fsencode(directory), repair)
    lines = [
        f"{found['models']:,} models, {found['layers']:,} layers, {found['bytes']:,} bytes in "
        f"{found['segments']:,} segments; {found['dead_bytes']:,} bytes of them are dead"
    ]
    lines += [f"damage: {each}" for each in found["damage"]]
    lines += [f"leak: {each}" for each in found["leaks"]]
    lines += [f"dropped: {each}" for each in found["dropped"]]
    if found["damage"] and not repair:
        lines.append("--repair drops what is damaged, and the models that need it")
    if not found["damage"] and not found["leaks"]:
        lines.append("all is well")
        return found, lines, OK
    return found, lines, FOUND_SOMETHING


def connected(servers: str, given: argparse.Namespace) -> Store:
    """Open the store of servers as the arguments of a command say."""
    key = "" if given.key_file is None else _core.read_key_file(os.fsencode(given.key_file))
    return connect(servers, timeout=given.timeout, key=key, insecure=given.insecure)


@contextlib.contextmanager
def opened(place: str, given: argparse.Namespace, *, make: bool) -> Iterator[Store]:
    """Open the store in a data directory, or that of servers."""
    if "://" in place:
        with connected(place, given) as store:
            yield store
        return
    if not make and not (Path(place) / "catalogue.sqlite").exists():
        raise InvalidArgument(f"{place} is neither a data directory nor an address")
    # As much as there is: a whole file may be in memory at a time.
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with embedded(memory=memory, data_dir=place, durability="sync") as store:
        yield store


def export(given: argparse.Namespace) -> dict[str, object]:
    """Write models to a file. Returns what was done."""
    path = Path(given.file)
    with opened(given.place, given, make=False) as store:
        models = list(given.models)
        if missing := [model for model in models if model not in store]:
            raise NotFound(f"there is no model {', '.join(map(repr, missing))}")
        if given.lineage:
            models = _lineage.ancestors(store, models)
        nbytes = _lineage.write(path, store, models, replace=given.force)
    return {"models": models, "file": str(path), "bytes": nbytes}


def import_(given: argparse.Namespace) -> dict[str, object]:
    """Store the models of a file of :func:`export`. Returns what was done."""
    models = _lineage.read(Path(given.file))
    with opened(given.place, given, make=True) as store:
        nbytes = _lineage.put(store, models)
    return {"models": [each.model for each in models], "bytes": nbytes}
