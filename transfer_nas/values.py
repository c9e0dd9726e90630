"""Named numbers that an evaluation has beside its objective, declared by whoever makes them.

What the core measures is declared here (`CORE`), what an application measures by the application
(`Application.values`). Each declared value is a column ``m:NAME`` of ``results.csv``.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from transfer_nas.errors import InputError, TransferNasError, near_misses
from transfer_nas.job import Measure

Direction = Literal["max", "min"]
Kind = type[int] | type[float] | type[str]

_KINDS: Mapping[str, Kind] = {"int": int, "float": float, "str": str}


class ValuesError(TransferNasError):
    """What a function of the user's returned is not what was declared; fails the candidate."""


@dataclass(frozen=True)
class Value:
    """One declared value.

    Attributes
    ----------
    name
        A Python identifier.
    unit
        For people, such as ``ms``.
    direction
        ``max`` or ``min``: which way is better; None: neither.
    help
        What it is, for people.
    kind
        `int`, `float` or `str`.

    Raises
    ------
    InputError
        A field makes no sense.
    """

    name: str
    unit: str = ""
    direction: Direction | None = None
    help: str = ""
    kind: Kind = float

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise InputError(f"value {self.name!r}: expected an identifier as name")
        if keyword.iskeyword(self.name):
            raise InputError(f"value {self.name!r}: expected a name that is no Python keyword")
        if self.direction not in ("max", "min", None):
            raise InputError(
                f"value {self.name}: expected max, min or None as direction, "
                f"found {self.direction!r}"
            )
        if self.kind not in _KINDS.values():
            raise InputError(
                f"value {self.name}: expected int, float or str as kind, found {self.kind!r}"
            )
        if self.kind is str and self.direction is not None:
            raise InputError(f"value {self.name}: a text has no direction {self.direction}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "name": self.name,
            "unit": self.unit,
            "direction": self.direction,
            "help": self.help,
            "kind": self.kind.__name__,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Value:
        """Undo `to_dict`; raises KeyError, TypeError or InputError for anything else."""
        texts = (str(fields["unit"]), fields["direction"], str(fields["help"]))
        return cls(fields["name"], *texts, kind=_KINDS[fields["kind"]])

    @property
    def label(self) -> str:
        """Name and unit, for people."""
        return f"{self.name.replace('_', ' ')}{f' ({self.unit})' if self.unit else ''}"

    def taken(self, found: object) -> Measure:
        """Return a value as its kind; raises ValuesError if it is none of that kind."""
        if self.kind is str:
            if isinstance(found, str):
                return found
        elif isinstance(found, int | float | np.generic | np.ndarray):
            array = np.asarray(found)
            kinds = "iu" if self.kind is int else "iuf"
            if array.ndim == 0 and array.dtype.kind in kinds and math.isfinite(array):
                return self.kind(array)
        what = {int: "a whole number", float: "a finite number", str: "a text"}[self.kind]
        raise ValuesError(f"value {self.name}: expected {what}, as declared; found {found!r:.60}")


CORE: tuple[Value, ...] = (
    Value("parent", help="job whose genome was mutated", kind=int),
    Value("ancestor", help="model that layers were inherited from", kind=str),
    Value("layers", kind=int),
    Value("layers_transferred", help="inherited layers", kind=int),
    Value("layers_grown", help="layers that started from the parent's", kind=int),
    Value("bytes_transferred", "bytes", help="of inherited weights", kind=int),
    Value("bytes_stored", "bytes", help="that the model's own weights took", kind=int),
    Value("bytes_whole_copy", "bytes", help="that all its weights take", kind=int),
    Value("match_seconds", "s", help="finding the best match"),
    Value("build_seconds", "s", help="making the model"),
    Value("load_seconds", "s", help="reading and setting inherited weights"),
    Value("train_seconds", "s", help="training and judging"),
    Value("store_seconds", "s", help="putting the model into the store"),
    Value("epochs", help="that were trained", kind=int),
    Value("engine", help="what trained", kind=str),
    Value("timestamp_submit", "s", help="since the run was started: when the job was asked"),
    Value("timestamp_start", "s", help="likewise: when its evaluation began"),
    Value("timestamp_end", "s", help="likewise: when it ended"),
    Value("timestamp_gather", "s", help="likewise: when the manager had the result"),
    Value("rank", help="that evaluated", kind=int),
    Value("parameters", help="of the model", kind=int),
    Value("flops", help="of one row's forward pass; a multiply-add counts as two", kind=int),
    Value("latency_ms", "ms", help="of a batch of --latency_rows rows, if it is an objective"),
    Value("transfer_error", help="why it went without transfer", kind=str),
    Value("error", help="why it failed", kind=str),
)
"""What every search measures; a column may be empty."""

CORE_NAMES = frozenset(value.name for value in CORE)
_OURS = {"loss", "objective", "job_id", "job_status"}


def check_declared(values: Sequence[object]) -> None:
    """Raise InputError unless these can be an application's values."""
    names = set[str]()
    for value in values:
        if not isinstance(value, Value):
            raise InputError(f"values: expected transfer_nas.values.Value, found {value!r:.60}")
        if value.name in CORE_NAMES or value.name in _OURS:
            raise InputError(f"value {value.name}: the name is taken by what every search measures")
        if value.name in names:
            raise InputError(f"value {value.name} is declared twice")
        names.add(value.name)


def taken(declared: Iterable[Value], found: Mapping[str, Any]) -> dict[str, Measure]:
    """Return all declared values; raises ValuesError if one is missing or not of its kind."""
    values = {}
    for value in declared:
        if value.name not in found:
            names = ", ".join(map(str, found)) or "nothing"
            raise ValuesError(f"value {value.name} is declared and was not measured; found {names}")
        values[value.name] = value.taken(found[value.name])
    return values


def check_found(whence: str, declared: Iterable[Value], found: object) -> Mapping[str, Any]:
    """Return what a user's function returned; raises ValuesError for anything undeclared."""
    if not isinstance(found, Mapping):
        raise ValuesError(f"{whence}: expected a dict of declared values, found {found!r:.60}")
    names = [value.name for value in declared]
    for name in found:
        if name not in names:
            known = near_misses(str(name), names) if names else "none is declared"
            raise ValuesError(f"{whence}: {name!r} is not declared; {known}")
    return found


def own(declared: Mapping[str, Value]) -> list[Value]:
    """Return the values of these that are not the core's."""
    return [value for name, value in declared.items() if name not in CORE_NAMES]


def declared_in(description: Mapping[str, Any]) -> dict[str, Value]:
    """Return what a run's description declares, the core's values first, by name.

    What makes no sense is left out: its column is read as texts.
    """
    found = {value.name: value for value in CORE}
    entries = description.get("values")
    for entry in entries if isinstance(entries, list) else ():
        try:
            value = Value.from_dict(entry)
        except (KeyError, TypeError, InputError):
            continue
        found.setdefault(value.name, value)
    return found
