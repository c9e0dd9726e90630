"""``cpp-store ls|stat|get|put|rm ADDRESS ...``: looks at models on servers, gets and puts some.

``cpp-store keygen FILE`` makes a key for servers and their clients. ``check DIR`` looks at a data
directory, with exit code 1 if there is something; ``export`` and ``import`` move models.

ADDRESS is what the server printed; of several servers all addresses as one argument, with spaces
between them, as in MODEL_SERVERS. Tables are for people; ``--json`` is for programs. Exit code 2
and one line for whatever is wrong with the input, a server that does not answer included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cpp_store import _core, _disk_commands, _files, command_line, ranges
from cpp_store._core import ModelInfo, NotFound
from cpp_store._store import Store
from cpp_store.command_line import OK, InputError, Parser, print_json

PATIENCE = 2.0  # seconds that a call may take before a terminal is told how far it is


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit code."""
    return command_line.run("cpp-store", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    code: int = given.run(given)
    return code


def _on_servers(given: argparse.Namespace) -> int:
    with _disk_commands.connected(given.address, given) as store:
        code: int = given.command(store, given)
    return code


def keygen(given: argparse.Namespace) -> int:
    """Write a new key to a new file that only its owner can read."""
    _core.make_key_file(os.fsencode(given.file))
    return OK


def check(given: argparse.Namespace) -> int:
    """Say whether a data directory is what it should be, and repair it if asked."""
    found, lines, code = _disk_commands.check(given.directory, given.repair)
    if given.json:
        print_json(found)
    else:
        print("\n".join(map(_printable, lines)))
    return code


def move(given: argparse.Namespace) -> int:
    """Write models to a file, or store those of one, and say which."""
    with _progress(lambda: given.verb):
        done = given.move(given)
    if given.json:
        print_json(done)
    else:
        _print_rows([("models", f"{len(done['models']):,}"), ("bytes", _size(done["bytes"]))])
    return OK


def list_models(store: Store, given: argparse.Namespace) -> int:
    """Show a line for each model, oldest first."""
    found = list(_lookups(store, store.list(given.namespace)))
    if given.json:
        print_json([_described(info) for info in found])
        return OK
    now = time.time()
    _print_table(
        ("MODEL", "NAMESPACE", "SCORE", "LAYERS", "OWN", "INHERITED", "AGE"),
        [
            (
                _printable(info.model),
                _printable(info.namespace),
                f"{info.score:.6g}",
                str(len(info.table)),
                _size(info.bytes_own),
                _size(info.bytes_inherited),
                _duration(now - info.created),
            )
            for info in found
        ],
        right=(2, 3, 4, 5, 6),
    )
    return OK


def show(store: Store, given: argparse.Namespace) -> int:
    """Show the numbers of the servers, or all that is known of a model but its tensors."""
    if given.model is not None:
        return _show_model(store.lookup(given.model), given)
    stats = store.stats()
    if given.json:
        print_json(stats)
        return OK
    copies = stats["bytes_referenced"]
    saved = f", {copies / stats['bytes_stored']:.3g} times that as copies" if copies else ""
    rows = [
        ("server", f"{_printable(address)}, reached by {transport}")
        for address, transport in zip(stats["servers"], store.transport, strict=True)
    ]
    rows += [
        ("models", f"{stats['models']:,} of {stats['layers']:,} layers"),
        ("stored", f"{_size(stats['bytes_stored'])} in {stats['tensors']:,} tensors{saved}"),
        ("memory", f"{_size(stats['memory_used'])} of {_size(stats['memory_limit'])} used, "
                   f"{_size(stats['memory_high_water'])} at most so far"),
        ("leases", f"{stats['leases']:,} on {stats['retired']:,} retired models"),
        ("calls", f"{stats['puts']:,} puts, {stats['reads']:,} reads, "
                  f"{stats['matches']:,} best matches, {stats['retires']:,} retirements"),
        ("moved", f"{_size(stats['bytes_put'])} in, {_size(stats['bytes_read'])} out, "
                  f"{_size(stats['bytes_inherited'])} inherited"),
    ]  # fmt: skip
    _print_rows(rows)
    if stats["times"]:
        print()
        _print_table(
            ("CALL", "COUNT", "P50 US", "P99 US"),
            [
                (name, f"{of['count']:,}", f"{of['p50_us']:.3g}", f"{of['p99_us']:.3g}")
                for name, of in stats["times"].items()
            ],
            right=(1, 2, 3),
        )
    return OK


def _show_model(info: ModelInfo, given: argparse.Namespace) -> int:
    table = info.table
    if given.json:
        layers = [
            {"name": name, "nbytes": nbytes, "owner": info.owners.get(name), "requires": requires}
            for name, nbytes, requires in zip(
                table.names, table.nbytes, table.requires, strict=True
            )
        ]
        print_json(
            _described(info) | {"metadata": info.metadata, "graph": info.graph, "layers": layers}
        )
        return OK
    created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.created))
    _print_rows(
        [
            ("model", _printable(info.model)),
            ("namespace", _printable(info.namespace)),
            ("score", f"{info.score:.6g}"),
            ("parent", _printable(info.parent)),
            ("created", f"{created} ({_duration(time.time() - info.created)} ago)"),
            ("bytes", f"{_size(info.bytes_own)} own, {_size(info.bytes_inherited)} inherited"),
            ("metadata", json.dumps(info.metadata)),
        ]
    )
    print()
    _print_table(
        ("LAYER", "OWNER"),
        [(_printable(name), _printable(info.owners.get(name, "-"))) for name in table.names],
    )
    return OK


def get(store: Store, given: argparse.Namespace) -> int:
    """Write a model to a safetensors file."""
    path = Path(given.output)
    if path.exists() and not given.force:  # before anything is fetched
        raise _files.FileError(f"{path} exists already; --force replaces it")
    info = store.lookup(given.model)
    total = info.bytes_own + info.bytes_inherited
    with _progress(lambda: f"reading {_size(total)}"):
        tensors = store.read(given.model)
    written: list[Path] = []

    def how_far() -> str:
        size = written[0].stat().st_size if written and written[0].exists() else 0
        return f"writing, {_size(size)} of {_size(total)}"

    with _progress(how_far):
        _files.write(path, info, tensors, replace=given.force, started=written.append)
    if given.json:
        print_json({"model": info.model, "file": str(path), "bytes": total})
    return OK


def put(store: Store, given: argparse.Namespace) -> int:
    """Store the tensors of a safetensors file as a model."""
    contents = _files.read(Path(given.file))
    model = contents.model if given.model is None else given.model
    with _progress(lambda: f"putting {_size(contents.nbytes)}"):
        added = store.put(
            model,
            contents.tensors,
            table=contents.table,
            namespace=contents.namespace if given.namespace is None else given.namespace,
            score=contents.score if given.score is None else given.score,
            parent=contents.parent,
            graph=contents.graph,
            metadata=contents.metadata,
        )
    if given.json:
        print_json({"model": model, "bytes": added})
    else:
        print(_printable(model))
    return OK


def remove(store: Store, given: argparse.Namespace) -> int:
    """Retire models; those that are not there are named when the others are gone."""
    missing = []
    for model in given.models:
        try:
            store.retire(model)
        except NotFound:
            missing.append(model)
    if given.json:
        print_json({"retired": [each for each in given.models if each not in missing]})
    if missing:
        raise InputError(f"there is no model {', '.join(map(repr, missing))}")
    return OK


def _add_connection(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--timeout",
        type=ranges.SECONDS,
        default=10.0,
        metavar="SECONDS",
        help="for each call, besides the time for its bytes (default: 10)",
    )
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument(
        "--key_file",
        metavar="FILE",
        help="the servers' key (default: CPP_STORE_KEY, or the file of CPP_STORE_KEY_FILE, or the "
        "user's own key of this host)",
    )
    keys.add_argument(
        "--insecure", action="store_true", help="without a key, to servers that have none"
    )


def _parser() -> Parser:
    common = Parser(add_help=False)
    common.add_argument(
        "address", metavar="ADDRESS", help='as the server prints it; several: "ADDRESS ADDRESS"'
    )
    _add_connection(common)
    parser = Parser(prog="cpp-store", description="Look at models on servers, get and put some.")
    commands = parser.add_subparsers(
        required=True, metavar="ls|stat|get|put|rm|check|export|import|keygen"
    )

    def add(name: str, command: Callable[..., int], says: str) -> Parser:
        added = commands.add_parser(name, parents=[common], help=says, description=says)
        added.set_defaults(run=_on_servers, command=command)
        return added

    each = add("ls", list_models, "List models, their score, size in bytes, and age.")
    each.add_argument("--namespace", help="only models of this namespace (default: of all)")

    each = add("stat", show, "Show the numbers of the servers, or what is known of a model.")
    each.add_argument("model", metavar="MODEL", nargs="?", help="id of a model")

    each = add("get", get, "Write a model to a safetensors file, inherited layers included.")
    each.add_argument("model", metavar="MODEL", help="its id")
    each.add_argument("-o", "--output", metavar="FILE", required=True, help="the file to write")
    each.add_argument("--force", action="store_true", help="replace the file if it exists")

    each = add("put", put, "Store a safetensors file as a model, and print the model's id.")
    each.add_argument("file", metavar="FILE", help="of cpp-store get, or of any other program")
    each.add_argument("--model", metavar="ID", help="default: the file's, or its name")
    each.add_argument("--namespace", help="default: the file's, or the empty one")
    each.add_argument("--score", type=ranges.FINITE, help="default: the file's, or 0")

    each = add("rm", remove, "Retire models: their memory is free once no other inherits it.")
    each.add_argument("models", metavar="MODEL", nargs="+", help="ids")

    says = "Verify every checksum and reference of a data directory that no server has open."
    each = commands.add_parser("check", help=says, description=says)
    each.add_argument("directory", metavar="DIR")
    each.add_argument(
        "--repair",
        action="store_true",
        help="remove leaks, and what cannot be read, with the models that need it",
    )
    each.add_argument("--json", action="store_true", help="print JSON, for programs")
    each.set_defaults(run=check)

    says = "Write models to one safetensors file, each shared tensor once."
    each = commands.add_parser("export", help=says, description=says)
    each.add_argument("place", metavar="DIR|ADDRESS", help="data directory, or servers")
    each.add_argument("models", metavar="MODEL", nargs="+", help="ids")
    each.add_argument("file", metavar="FILE", help="to be written")
    each.add_argument("--lineage", action="store_true", help="their ancestors, too")
    each.add_argument("--force", action="store_true", help="replace the file if it exists")
    each.set_defaults(run=move, move=_disk_commands.export, verb="exporting")
    _add_connection(each)

    says = "Store the models of a file of cpp-store export."
    each = commands.add_parser("import", help=says, description=says)
    each.add_argument("file", metavar="FILE")
    each.add_argument("place", metavar="DIR|ADDRESS", help="data directory, or servers")
    each.set_defaults(run=move, move=_disk_commands.import_, verb="importing")
    _add_connection(each)

    says = "Write a new key to a new file that only its owner can read."
    each = commands.add_parser("keygen", help=says, description=says)
    each.add_argument("file", metavar="FILE", help="must not exist yet")
    each.set_defaults(run=keygen)
    return parser


def _lookups(store: Store, models: Sequence[str]) -> Iterator[ModelInfo]:
    """Look each model up, leaving out those that are retired meanwhile."""
    done = 0
    window = 256  # calls under way or waiting; the servers are asked several at a time
    with _progress(lambda: f"{done:,} of {len(models):,} models"):
        for start in range(0, len(models), window):
            asked = [store.submit.lookup(model) for model in models[start : start + window]]
            for each in asked:
                with contextlib.suppress(NotFound):
                    yield each.result()
                done += 1


def _described(info: ModelInfo) -> dict[str, Any]:
    return {
        "model": info.model,
        "namespace": info.namespace,
        "score": info.score,
        "parent": info.parent,
        "created": info.created,
        "layer_count": len(info.table),
        "bytes_own": info.bytes_own,
        "bytes_inherited": info.bytes_inherited,
    }


@contextlib.contextmanager
def _progress(say: Callable[[], str]) -> Iterator[None]:
    """Say on a terminal how far it is, once that takes long."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()

    def show_line() -> None:
        start = time.monotonic()
        if done.wait(PATIENCE):
            return
        shown = False
        while not shown or not done.wait(0.2):
            shown = True
            line = f"{say()}, {time.monotonic() - start:.0f} s"
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    shower = threading.Thread(target=show_line)
    shower.start()
    try:
        yield
    finally:
        done.set()
        shower.join()


def _print_rows(rows: Sequence[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"{name:<10} {value}")


def _print_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def _printable(text: str) -> str:
    """Return the text, quoted if it would break the line or be mistaken for something else."""
    return text if text.isprintable() and text == text.strip() else json.dumps(text)


def _size(nbytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} TiB"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


if __name__ == "__main__":
    sys.exit(main())
