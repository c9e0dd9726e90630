"""Objects that users name: ``package.module:attribute``, ``path/to/file.py:attribute``."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from transfer_nas.errors import InputError, near_misses

T = TypeVar("T")


class Registry(Generic[T], Mapping[str, type[T]]):
    """Classes of one kind that users name: our own, and what installed packages bring along.

    A package brings a class with an entry point of the registry's group. Users also name one as
    ``package.module:Class`` or ``path/to/file.py:Class``; such are found, and are not in here.

    Parameters
    ----------
    what
        What to call one in complaints.
    kind
        What they derive from.
    group
        Of the entry points.
    own
        Ours; each has its name as `name`.
    error
        What `find` raises.
    """

    def __init__(
        self,
        what: str,
        kind: type[T],
        group: str,
        own: tuple[type[T], ...],
        error: type[InputError] = InputError,
    ) -> None:
        self._what = what
        self._kind = kind
        self._group = group
        self._own: dict[str, type[T]] = {str(vars(each)["name"]): each for each in own}
        self._error = error
        self.own = own

    def find(self, name: str) -> type[T]:
        """Return a class.

        Raises
        ------
        InputError
            There is none of that name (the message has near misses), or it is something else.
        """
        if name in self._own:
            return self._own[name]
        if is_plugin(name):
            kind = self._kind.__name__
            return self._checked(name, load_attribute(name, self._error, kind, self._is_own))
        entry = self._entry_points().get(name)
        if entry is None:
            known = near_misses(name, self)
            raise self._error(f"unknown {self._what} {name!r}; {known}")
        try:
            return self._checked(name, entry.load())
        except InputError:
            raise
        except Exception as cause:  # an installed package may raise anything
            raise self._error(f"cannot import {entry.value}: {_one_line(cause)}") from cause

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._own and name not in self._entry_points():
            raise KeyError(name)
        return self.find(name)

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys([*self._own, *self._entry_points()])

    def __len__(self) -> int:
        return len(set(self))

    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        return {each.name: each for each in importlib.metadata.entry_points(group=self._group)}

    def _checked(self, name: str, found: Any) -> type[T]:
        if isinstance(found, type) and issubclass(found, self._kind):
            return found
        expected = f"{self._kind.__module__.partition('._')[0]}.{self._kind.__name__}"
        raise self._error(f"{name}: expected a subclass of {expected}, found {found!r}")

    def _is_own(self, value: Any, module: str) -> bool:
        """Whether a value is one that a module defines, not imports."""
        own = isinstance(value, type) and issubclass(value, self._kind)
        return own and value.__module__ == module


def named(chosen: str | type[T], registry: Registry[T]) -> str:
    """Return the name by which a registry finds a class; of a name the name.

    Raises
    ------
    InputError
        No process could find the class, as it is not at the top of a module.
    """
    if isinstance(chosen, str):
        return chosen
    if any(each is chosen for each in registry.own):
        return str(vars(chosen)["name"])
    if not isinstance(chosen, type) or "<" in chosen.__qualname__:
        raise InputError(f"expected a name or a class at the top of a module, found {chosen!r}")
    return f"{chosen.__module__}:{chosen.__qualname__}"


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
