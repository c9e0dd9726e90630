"""Objects that users name: ``package.module:attribute``, ``path/to/file.py:attribute``."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transfer_nas.errors import InputError, near_misses

T = TypeVar("T")


def is_plugin(spec: str) -> bool:
    """Whether `spec` names an attribute of a module or of a file, and not something registered."""
    return ":" in spec


def load_attribute(
    spec: str,
    error: type[InputError],
    what: str = "such thing",
    meant: Callable[[Any, str], bool] = lambda *_: True,
) -> Any:
    """Import what ``package.module:attribute`` or ``path/to/file.py:attribute`` names.

    Modules are looked for in the working directory too, as ``python -m`` does.

    Parameters
    ----------
    spec
        What the user wrote.
    error
        What to raise.
    what
        What kind of thing is looked for, for the message.
    meant
        Whether a value, in the module of a name, can be what the user means: where there is nothing
        called like that, the message lists such ones.

    Raises
    ------
    error
        The file or the attribute does not exist, or the import raises; with what to do.
    """
    source, _, attribute = spec.rpartition(":")
    if not source or not attribute:
        raise error(f"{spec!r} is neither package.module:attribute nor path/to/file.py:attribute")
    module = _load_file(Path(source), error) if source.endswith(".py") else _import(source, error)
    value = module
    for name in attribute.split("."):
        if not hasattr(value, name):
            public = [
                known
                for known, each in vars(module).items()
                if not known.startswith("_") and meant(each, module.__name__)
            ]
            known = near_misses(name, public) if public else f"it holds no {what}"
            raise error(f"{source} has no attribute {name!r}; {known}")
        value = getattr(value, name)
    return value


def load_only(path: Path, kind: type[T], error: type[InputError]) -> T:
    """Import a file and return the only object of a kind that is in it.

    Raises
    ------
    error
        There is none or there are several (the message names them), or as `load_attribute`.
    """
    module = _load_file(path, error)
    found = {name: value for name, value in vars(module).items() if isinstance(value, kind)}
    if not found:
        raise error(f"{path}: expected a transfer_nas {kind.__name__} in it, found none")
    if len({id(value) for value in found.values()}) > 1:
        first = next(iter(found))
        raise error(
            f"{path} holds several of {kind.__name__}: {', '.join(found)}; name one, such as "
            f"{path}:{first}"
        )
    return next(iter(found.values()))


def _import(name: str, error: type[InputError]) -> Any:
    directory = str(Path.cwd())
    if "" not in sys.path and directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        return importlib.import_module(name)
    except Exception as cause:  # a user's module may raise anything
        raise error(f"cannot import {name}: {_one_line(cause)}") from cause


def _load_file(path: Path, error: type[InputError]) -> Any:
    if not path.is_file():
        raise error(f"{path}: no such file")
    name = f"transfer_nas_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise error(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # classes defined there must be found again by name
    try:
        spec.loader.exec_module(module)
    except Exception as cause:  # a user's file may raise anything
        del sys.modules[name]
        raise error(f"cannot import {path}: {_one_line(cause)}") from cause
    return module


def _one_line(cause: BaseException) -> str:
    return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
