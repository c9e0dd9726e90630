"""Canonical configurations, and from them digests and stable names.

The digest of a layer identifies the layer and everything before it; docs/formats.md specifies its
bytes. The computation is C++ (`cpp_store/src/core/digest.cpp`); `reference.py` has the same in
plain Python, as the oracle.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from cpp_store.command_line import InputError

JSON = None | bool | int | float | str | list[Any] | dict[str, Any]

_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_]")


class GraphError(InputError):
    """A layer graph that cannot be right, or cannot be named. The message names the layer."""


def plain(value: Any, where: str) -> JSON:
    """Return `value` as plain JSON data: tuples become lists, NumPy scalars Python numbers.

    Parameters
    ----------
    value
        What a layer's configuration or a call's arguments hold.
    where
        Which layer and key this is, for the message.

    Raises
    ------
    GraphError
        For what has no stable form: functions, objects, bytes, NaN, keys that are no strings,
        strings that hold the address of an object.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        if _ADDRESS.search(value):
            raise GraphError(
                f"{where}: {value!r} holds the address of an object and differs in every process; "
                "give the object's class a get_config() and register it with "
                "@keras.saving.register_keras_serializable()"
            )
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise GraphError(f"{where}: {value!r} is not a number that JSON can hold")
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise GraphError(f"{where}: the key {key!r} is not a string")
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy scalar
        return plain(value.item(), where)
    if hasattr(value, "tolist"):  # a NumPy array
        return plain(value.tolist(), where)
    if callable(value):
        raise GraphError(
            f"{where}: a function ({getattr(value, '__qualname__', value)!s}) cannot be hashed "
            "stably; register it with @keras.saving.register_keras_serializable() and refer to it "
            "by its name"
        )
    raise GraphError(
        f"{where}: an object of class {type(value).__qualname__} cannot be hashed stably; give the "
        "class a get_config() and register it with @keras.saving.register_keras_serializable()"
    )


def canonical_json(value: JSON) -> str:
    """Return the one JSON text of plain data: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def label(class_name: str) -> str:
    """Return what a stable name starts with: the class without its package, in letters and digits.

    A leading underscore goes as well: TensorFlow takes no such names.

    >>> label("Dense"), label("my.package>_Gate")
    ('Dense', 'Gate')
    """
    return _NOT_IN_A_NAME.sub("_", class_name.rpartition(">")[2]).lstrip("_") or "Layer"
