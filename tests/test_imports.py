"""Imports point downward, and TensorFlow stays out until a model is built."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "transfer_nas": ROOT / "transfer_nas",
    "graph_meta": ROOT / "graph_meta",
    "cpp_store": ROOT / "cpp_store" / "python" / "cpp_store",
}
MAY_IMPORT = {
    "transfer_nas": {"transfer_nas", "graph_meta", "cpp_store"},
    "graph_meta": {"graph_meta", "cpp_store"},
    "cpp_store": {"cpp_store"},
}
HEAVY = {"tensorflow", "keras", "jax", "torch"}


def imported_packages(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", sorted(FOLDERS))
def test_imports_point_downward(package: str) -> None:
    files = sorted(FOLDERS[package].rglob("*.py"))
    assert files
    for file in files:
        ours = set(imported_packages(ast.parse(file.read_text()))) & set(FOLDERS)
        assert ours <= MAY_IMPORT[package], f"{file.relative_to(ROOT)} imports {ours}"


@pytest.mark.parametrize("package", sorted(FOLDERS))
def test_no_module_imports_a_backend_at_its_top_level(package: str) -> None:
    # DeepHyper brings JAX along where that is installed; what it loads is not ours to keep out.
    code = f"""
import importlib, pkgutil, sys
import deephyper.hpo
theirs = set(sys.modules)
import {package}
for module in pkgutil.walk_packages({package}.__path__, "{package}."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
loaded = {HEAVY!r} & (set(sys.modules) - theirs)
assert not loaded, loaded
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
