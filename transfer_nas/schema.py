"""Settings as dataclasses: each field says all there is to say of a setting, once.

From the fields come flags and ``--help``, checks, what ``run.json`` keeps, what a settings file and
keywords of `transfer_nas.search` may hold. What is plugged in (an algorithm, say) brings such a
dataclass of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from cpp_store.ranges import FINITE, Range

from transfer_nas.errors import InputError, near_misses

_KEY = "setting"


class Dataclass(Protocol):
    """An instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


@dataclass(frozen=True)
class Setting:
    """What is known of a setting besides its name, its type and its default.

    Attributes
    ----------
    help
        What it means, for people, with units.
    otherwise
        What holds where the default is None.
    metavar
        What ``--help`` calls its value.
    numbers
        Which numbers it may be.
    choices
        Which texts it may be; empty: any.
    may_change
        Whether a resumed run may have another value than the run had before.
    only
        A setting and the value that it must have for this one to mean anything.
    repeats
        Whether it is a list: a text with commas, a flag that may be given several times.
    """

    help: str
    otherwise: str = ""
    metavar: str | None = None
    numbers: Range | None = None
    choices: tuple[str, ...] = ()
    may_change: bool = False
    only: tuple[str, str] | None = None
    repeats: bool = False


def setting(default: Any, help: str, **details: Any) -> Any:
    """Return a dataclass field for a setting; `details` are the fields of `Setting`."""
    return dataclasses.field(default=default, metadata={_KEY: Setting(help, **details)})


def settings_of(kind: type[Dataclass]) -> dict[str, Setting]:
    """Return the settings of a dataclass by name, in their order."""
    return {
        field.name: field.metadata[_KEY]
        for field in dataclasses.fields(kind)
        if _KEY in field.metadata
    }


def check(values: Dataclass) -> None:
    """Raise InputError, which names the flag, for a value that a setting cannot have."""
    kind = type(values)
    hints = typing.get_type_hints(kind)
    for name, known in settings_of(kind).items():
        complaint = _complaint(getattr(values, name), known, _types(hints[name]))
        if complaint:
            text = f"unknown --{name} {complaint[1:]}" if complaint[0] == "?" else ""
            raise InputError(text or f"--{name} {complaint}")


def _complaint(value: Any, known: Setting, kinds: tuple[type, ...]) -> str:
    """Return what is wrong with a value, to be put behind the flag's name; empty: nothing."""
    if value is None and type(None) in kinds:
        return ""
    if bool in kinds or isinstance(value, bool):
        return "" if isinstance(value, bool) and bool in kinds else f"must be {_name(kinds)}"
    if int in kinds or float in kinds:
        wanted = int | float if float in kinds else int
        if not isinstance(value, wanted):
            return f"must be {_name(kinds)}, not {value!r}"
        return (known.numbers or FINITE).complaint(value)
    if not isinstance(value, str):
        return f"must be {_name(kinds)}, not {value!r}"
    if known.choices and value not in known.choices:
        return f"?{value!r}; {near_misses(value, known.choices)}"
    return ""


def _types(hint: Any) -> tuple[type, ...]:
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _name(kinds: tuple[type, ...]) -> str:
    if bool in kinds:
        return "true or false"
    return "a number" if float in kinds else "a whole number" if int in kinds else "a text"


def add_flags(parser: argparse.ArgumentParser, kinds: Iterable[type[Dataclass]]) -> None:
    """Give a parser a flag for each setting; of equal names the first one stands for all."""
    taken: set[str] = set()
    for kind in kinds:
        hints = typing.get_type_hints(kind)
        for field, known in _fields(kind):
            if field.name in taken:
                continue
            taken.add(field.name)
            otherwise = known.otherwise or field.default
            kinds = _types(hints[field.name])
            if kinds == (bool,):
                parser.add_argument(f"--{field.name}", action="store_true", help=known.help)
                continue
            parser.add_argument(
                f"--{field.name}",
                action=_Joined if known.repeats else "store",
                metavar=known.metavar or field.name.upper(),
                type=known.numbers
                or (Range() if int in kinds else FINITE if float in kinds else str),
                help=f"{known.help} (default: {otherwise})".replace("%", "%%"),
            )


class _Joined(argparse.Action):
    """Puts a comma between the values of a flag that is given several times."""

    def __call__(self, parser: Any, namespace: Any, value: Any, flag: Any = None) -> None:
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, value if before is None else f"{before},{value}")


def _fields(kind: type[Dataclass]) -> Iterator[tuple[dataclasses.Field[Any], Setting]]:
    known = settings_of(kind)
    for field in dataclasses.fields(kind):
        if field.name in known:
            yield field, known[field.name]


def read_file(path: Path, known: Iterable[str] | None) -> dict[str, Any]:
    """Return what a settings file says: TOML, a line ``name = value`` for each setting.

    Parameters
    ----------
    path
        The file.
    known
        Names of the settings that there are; None: whatever it has.

    Raises
    ------
    InputError
        It cannot be read, or has something else in it.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise InputError(f"--config {path}: {cause.strerror}") from cause
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
        raise InputError(f"--config {path}: expected TOML, found {cause}") from cause
    if known is None:
        return found
    names = set(known)
    for name, value in found.items():
        if name not in names:
            raise InputError(f"--config {path}: no setting {name!r}; {near_misses(name, names)}")
        if isinstance(value, dict | list):
            raise InputError(f"--config {path}: {name} must be one value, not {value!r}")
    return found


def split(given: Mapping[str, Any], kind: type[Dataclass]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what belongs to the settings of a dataclass, and the rest."""
    known = settings_of(kind)
    mine = {name: value for name, value in given.items() if name in known}
    return mine, {name: value for name, value in given.items() if name not in known}
