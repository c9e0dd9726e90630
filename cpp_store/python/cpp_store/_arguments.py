"""Checks what users pass, so that whatever cannot be right is an `InvalidArgument` in one line."""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from cpp_store._core import InvalidArgument, LayerTable

K = TypeVar("K")
V = TypeVar("V")

_LONGEST = 80  # characters of a value in a message


def text(value: object, what: str) -> str:
    """Return a text that UTF-8 can write."""
    if not isinstance(value, str):
        raise _other(what, "a str", value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgument(f"{what}: {_shown(value)} cannot be written as UTF-8") from error
    return value


def texts(values: Iterable[object], what: str) -> list[str]:
    """Return names or ids; one alone is not taken for a collection of its characters."""
    if isinstance(values, str | bytes):
        raise _other(what, "a collection of names", values)
    try:
        found = list(values)
    except TypeError as error:
        raise _other(what, "a collection of names", values) from error
    return [text(each, what) for each in found]


def mapping(values: Mapping[K, V], what: str) -> dict[K, V]:
    """Return a dict of names."""
    try:
        found = dict(values)
    except (TypeError, ValueError) as error:
        raise _other(what, "a dict", values) from error
    for name in found:
        text(name, what)
    return found


def number(value: object, what: str) -> float:
    """Return a float, which may be NaN or infinite."""
    if isinstance(value, float):
        return value
    if not isinstance(value, str | bytes | bytearray):
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            pass
    raise _other(what, "a number", value)


def whole(value: object, what: str, least: int, most: int) -> int:
    """Return an int within limits."""
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise _other(what, "a whole number", value) from error
    if not least <= found <= most:
        raise InvalidArgument(f"{what} is {_shown(found)}; it is {least} to {most}")
    return found


def flag(value: object, what: str) -> bool:
    """Return a bool."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise _other(what, "True or False", value)


def table(value: object) -> LayerTable:
    """Return a layer table."""
    if not isinstance(value, LayerTable):
        raise _other("table", "a LayerTable", value)
    return value


def directory(value: object, what: str) -> bytes:
    """Return a path as the system takes it, which need not be UTF-8."""
    try:
        path = os.fsencode(value)  # type: ignore[arg-type]
    except (TypeError, UnicodeError) as error:
        raise _other(what, "a path", value) from error
    if not path or b"\0" in path:
        raise _other(what, "a path", value)
    return path


def metadata(values: Mapping[str, Any] | None) -> str:
    """Return the user's own as JSON; nothing for nothing."""
    if values is None:
        return ""
    try:
        found = dict(values)
        return json.dumps(found, sort_keys=True, default=_plain_number) if found else ""
    except RecursionError as error:
        raise InvalidArgument("metadata is nested too deeply, or holds itself") from error
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"metadata cannot be written as JSON: {error}") from error


def seconds(value: object, what: str) -> float | None:
    """Return a number of seconds, or None."""
    if value is None:
        return None
    found = number(value, what)
    if math.isnan(found) or found < 0:
        raise InvalidArgument(
            f"{what} is {_shown(value)}; it is a number of seconds, 0 (no lease) or None"
        )
    return found


def _plain_number(value: object) -> object:
    """Scores and sizes are often NumPy scalars."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} {_shown(value)} has no form in JSON")


def _other(what: str, expected: str, found: object) -> InvalidArgument:
    return InvalidArgument(
        f"{what}: expected {expected}, found {type(found).__name__} {_shown(found)}"
    )


def _shown(value: object) -> str:
    """Return a value's repr in one line, however long it is, or broken."""
    try:
        shown = " ".join(ascii(value).split())
    except Exception:  # of a class of the user's; an int of more digits than Python prints
        return "of which Python can show nothing"
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 3] + "..."
