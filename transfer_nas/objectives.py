"""Several things that a search is after at once: ``val_accuracy:max,parameters:min``.

Each is the application's own objective or something that is measured of every candidate. For
algorithms, the front and hypervolumes an evaluation is a vector of *scores*, of all of which more
is better; scores of costs are logarithmic, as half the parameters are worth the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from transfer_nas.errors import InputError, near_misses
from transfer_nas.job import Evaluation

if TYPE_CHECKING:
    from transfer_nas.applications import Application
    from transfer_nas.values import Direction  # imports NumPy, which is not for --help

COSTS: Mapping[str, str] = {
    "parameters": "parameters",
    "flops": "flops",
    "bytes": "bytes_whole_copy",
    "layers": "layers",
    "latency_ms": "latency_ms",
    "train_seconds": "train_seconds",
}
"""What every search can be after beside its application's values: the measure of each."""

_DIRECTIONS: Mapping[str, Direction] = {"max": "max", "min": "min"}
_LEAST = 1e-12  # of a cost, to have a logarithm
_WORST = -math.inf


def parse(text: str) -> list[tuple[str, Direction]]:
    """Return names and directions in a text such as ``val_accuracy:max,parameters:min``.

    Raises
    ------
    InputError
        It says something else; names the flag.
    """
    found: list[tuple[str, Direction]] = []
    for part in text.split(","):
        name, _, direction = part.strip().partition(":")
        if direction not in _DIRECTIONS or not name:
            why = f"; {near_misses(direction, _DIRECTIONS)}" if direction else ""
            raise InputError(
                f"--objectives {part.strip()!r}: expected NAME:max or NAME:min, such as "
                f"parameters:min{why}"
            )
        if name in dict(found):
            raise InputError(f"--objectives: {name} is there twice")
        found.append((name, _DIRECTIONS[direction]))
    if len(found) < 2:
        raise InputError(
            f"--objectives {text}: expected two or more; one alone is what the application declares"
        )
    return found


@dataclass(frozen=True)
class Objective:
    """One thing that a search is after.

    Attributes
    ----------
    name
        As the user says it.
    direction
        Which way of it is better.
    measure
        Which one it is, without the ``m:``; None: the application's objective.
    negated
        Whether the application's objective is its negative.
    logarithmic
        Whether ratios of it count, not differences.
    """

    name: str
    direction: Direction
    measure: str | None = None
    negated: bool = False
    logarithmic: bool = False

    def value(self, evaluation: Evaluation) -> float:
        """Return its own number of an evaluation; NaN if that has none."""
        if self.measure is None:
            return -evaluation.objective if self.negated else evaluation.objective
        return float(evaluation.measures.get(self.measure, math.nan))

    def score(self, value: float) -> float:
        """Return the score of a number of it; minus infinity for what is no number."""
        if not math.isfinite(value):
            return _WORST
        if self.logarithmic:
            value = math.log(max(value, _LEAST))
        return value if self.direction == "max" else -value

    def text(self, value: float) -> str:
        """Return a number of it, for people."""
        whole = value.is_integer() and abs(value) >= 1
        return f"{value:,.0f}" if whole else f"{value:.4g}"


@dataclass(frozen=True)
class Objectives(Sequence[Objective]):
    """All that a search is after."""

    each: tuple[Objective, ...]

    def __len__(self) -> int:
        return len(self.each)

    def __getitem__(self, index: Any) -> Any:
        return self.each[index]

    @classmethod
    def of(cls, text: str, application: Application) -> Objectives:
        """Return what a text names, for an application; raises InputError for unknown names."""
        goal = application.objective_name
        values = {
            short_name(each.name): each.name
            for each in application.declared
            if each.kind is not str
        }
        found = []
        for name, direction in parse(text):
            plain = short_name(name.removeprefix("val_"))
            if plain == short_name(goal):
                found.append(Objective(name, direction, negated=application.direction == "min"))
            elif name in COSTS:
                found.append(Objective(name, direction, COSTS[name], logarithmic=True))
            elif plain in values:
                found.append(Objective(name, direction, values[plain]))
            else:
                known = [*COSTS, *values, f"val_{short_name(goal)}"]
                raise InputError(f"--objectives {name}: {near_misses(name, known)}")
        return cls(tuple(found))

    def scores(self, evaluation: Evaluation) -> tuple[float, ...]:
        """Return the scores of an evaluation: of each, more is better."""
        return tuple(each.score(each.value(evaluation)) for each in self.each)

    def values(self, evaluation: Evaluation) -> dict[str, float]:
        """Return the numbers of an evaluation, as the user knows them."""
        return {each.name: each.value(evaluation) for each in self.each}

    def to_json(self) -> list[dict[str, Any]]:
        """Return the objectives as JSON values, for ``run.json``."""
        return [asdict(each) for each in self.each]

    @classmethod
    def from_json(cls, found: object) -> Objectives | None:
        """Undo `to_json`; None for anything else, as a file may hold anything."""
        names = {each.name for each in fields(Objective)}
        if not isinstance(found, list) or len(found) < 2:
            return None
        for each in found:
            if not (
                isinstance(each, dict)
                and each.keys() == names
                and isinstance(each["name"], str)
                and each["direction"] in _DIRECTIONS
                and isinstance(each["measure"], str | None)
                and isinstance(each["negated"], bool)
                and isinstance(each["logarithmic"], bool)
            ):
                return None
        return cls(tuple(Objective(**each) for each in found))


def short_name(name: str) -> str:
    """Return a metric's name as Keras' history has it: ``accuracy`` stands for several."""
    return "accuracy" if name.endswith("_accuracy") else name
