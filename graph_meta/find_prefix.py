"""``python -m graph_meta.find_prefix A B``: the layers that two models share.

A model is a ``.keras`` file, a layer graph as JSON, or ``space:genome``, which a package that knows
spaces answers: it declares an entry point ``genome`` of group ``graph_meta.graphs``, a function
from the text before and the numbers after the last colon to a `LayerGraph`. (Imports point from the
search to this package, never back.)
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpp_store.command_line import OK, InputError, Parser

from cpp_store import command_line, files
from graph_meta.drawing import draw_pair, summary
from graph_meta.graph import GraphError, LayerGraph, prefix

_GENOME = re.compile(r"(?P<space>.+):(?P<genome>\d+(,\d+)*)")
_ENTRY_POINTS = "graph_meta.graphs"


class ModelError(InputError):
    """A model that cannot be read; the message names it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return command_line.run("find_prefix", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    a, b = load(given.a), load(given.b)
    shared = prefix(a, b)
    if given.svg is not None:
        _write(given.svg, draw_pair(a, b, (given.a, given.b), shared))
    if given.json:
        command_line.print_json(_report(given.a, a, given.b, b, shared))
    else:
        _print(given.a, a, given.b, b, shared)
    return OK


def load(model: str) -> LayerGraph:
    """Return the layer graph of a model: a file, or ``space:genome``.

    Raises
    ------
    ModelError
        Naming the model, and what is wrong with it.
    """
    path = Path(model)
    genome = _GENOME.fullmatch(model)
    if genome is not None and not path.exists():
        numbers = [int(number) for number in genome["genome"].split(",")]
        return _from_genome(model, genome["space"], numbers)
    if path.suffix not in (".keras", ".json"):
        raise ModelError(f"{model}: expected a .keras file, a .json file or space:genome")
    if not path.is_file():
        raise ModelError(f"{model}: there is no such file")
    if path.suffix == ".keras":
        return _from_keras_file(path)
    try:
        return LayerGraph.from_json(path.read_bytes())
    except (GraphError, OSError) as error:
        raise ModelError(f"{model}: {error}") from error


def _from_keras_file(path: Path) -> LayerGraph:
    # Only here: whoever compares JSON or genomes does not wait for TensorFlow.
    import keras

    from graph_meta.keras_io import from_keras

    try:
        return from_keras(keras.saving.load_model(path, compile=False, safe_mode=True))
    except Exception as error:  # of a file from anywhere Keras raises what it meets
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{path}: {reason[0]}") from error


def _from_genome(model: str, space: str, genome: list[int]) -> LayerGraph:
    found = importlib.metadata.entry_points(group=_ENTRY_POINTS, name="genome")
    if not found:
        raise ModelError(f"{model}: no package that knows search spaces is installed")
    try:
        graph = next(iter(found)).load()(space, genome)
    except ValueError as error:  # as spaces raise it for what they do not know
        raise ModelError(f"{model}: {error}") from error
    if not isinstance(graph, LayerGraph):
        raise ModelError(f"{model}: the entry point returned no LayerGraph")
    return graph


def _report(
    name_a: str, a: LayerGraph, name_b: str, b: LayerGraph, shared: Sequence[str]
) -> dict[str, Any]:
    sizes = dict(zip(a.names, (layer.spec for layer in a.layers), strict=True))
    return {
        "models": [
            {
                "model": name,
                "layers": len(graph),
                "parameters": graph.parameters,
                "bytes": graph.nbytes,
            }
            for name, graph in ((name_a, a), (name_b, b))
        ],
        "prefix": {
            "layers": len(shared),
            "parameters": sum(sizes[name].parameters for name in shared),
            "bytes": sum(sizes[name].nbytes for name in shared),
            "names": list(shared),
        },
    }


def _print(name_a: str, a: LayerGraph, name_b: str, b: LayerGraph, shared: Sequence[str]) -> None:
    for name, graph in ((name_a, a), (name_b, b)):
        print(f"{name}: {len(graph)} layers, {graph.parameters:,} parameters")
    specs = dict(zip(a.names, (layer.spec for layer in a.layers), strict=True))
    parameters = sum(specs[name].parameters for name in shared)
    print(f"shared prefix: {len(shared)} layers, {parameters:,} parameters")
    for name in shared:
        print(f"  {name:<56} {specs[name].parameters:>12,}  {summary(specs[name])}".rstrip())


def _write(path: str, text: str) -> None:
    try:
        files.write_text(Path(path), text)
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror}") from error


def _parser() -> Parser:
    parser = Parser(
        prog="python -m graph_meta.find_prefix",
        description="Print the layers that two models share: those with the same configuration on "
        "top of the same layers.",
    )
    add = parser.add_argument
    help_text = "a .keras file, a layer graph as .json, or space:genome such as dense_skip:3,0,1"
    add("a", metavar="A", help=help_text)
    add("b", metavar="B", help="the same")
    add("--json", action="store_true", help="print what was found as JSON")
    add("--svg", metavar="FILE", help="draw both graphs with the shared layers marked")
    return parser


if __name__ == "__main__":
    sys.exit(main())
