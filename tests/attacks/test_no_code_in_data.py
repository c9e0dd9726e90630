"""Data runs no code: nothing is unpickled or evaluated, and Keras keeps its safe mode.

Looked for in the syntax tree of all that the distribution installs.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cpp_store/python/cpp_store", "graph_meta", "transfer_nas")
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "jsonpickle",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}


def forbidden(source: str) -> Iterator[str]:
    """Yield what a module does that it must not, with its line."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [(node.module or "").split(".")[0]]
        for name in MODULES.intersection(names):
            yield f"{node.lineno}: imports {name}"
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
            yield f"{node.lineno}: calls {node.func.id}"
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        if called == "enable_unsafe_deserialization":
            yield f"{node.lineno}: calls {called}"
        given = {
            keyword.arg: keyword.value.value
            for keyword in node.keywords
            if isinstance(keyword.value, ast.Constant)
        }
        if given.get("allow_pickle"):
            yield f"{node.lineno}: allows pickle"
        if given.get("safe_mode") is False:
            yield f"{node.lineno}: leaves Keras's safe mode"
        loads_keras = called in ("load_model", "deserialize_keras_object")
        if loads_keras and given.get("safe_mode") is not True:
            yield f"{node.lineno}: {called} without safe_mode=True"


FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def test_no_module_runs_code_of_data() -> None:
    assert len(FILES) > 50
    found = [
        f"{file.relative_to(ROOT)}:{what}"
        for file in FILES
        for what in forbidden(file.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "eval('1')",
        "keras.saving.load_model('x')",
        "keras.saving.load_model('x', safe_mode=False)",
        "keras.config.enable_unsafe_deserialization()",
    ],
)
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert list(forbidden(source))
