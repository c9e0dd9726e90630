"""The stubs of the extension name what it has, and nothing else."""

import ast
import inspect
from pathlib import Path

import cpp_store
from cpp_store import _core

STUBS = ast.parse((Path(cpp_store.__file__).parent / "_core.pyi").read_text())


def public(names: object) -> set[str]:
    return {name for name in names if not name.startswith("_")}  # type: ignore[attr-defined]


def defined(body: list[ast.stmt]) -> set[str]:
    return public(node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef))


def test_the_module() -> None:
    assert public(vars(_core)) == defined(STUBS.body)


def test_its_classes() -> None:
    classes = [node for node in STUBS.body if isinstance(node, ast.ClassDef)]
    assert classes
    for node in classes:
        found = getattr(_core, node.name)
        assert inspect.isclass(found)
        assert public(vars(found)) == defined(node.body), node.name


def test_everything_public_is_documented() -> None:
    for name in cpp_store.__all__:
        assert inspect.getdoc(getattr(cpp_store, name)), name
