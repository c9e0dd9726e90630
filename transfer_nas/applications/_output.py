"""One of the outputs of an application's networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transfer_nas.applications import _terms
from transfer_nas.errors import ApplicationError


@dataclass(frozen=True)
class Output:
    """What one of several outputs is, and how it is trained and judged.

    Attributes
    ----------
    units
        Width of its last layer.
    activation
        Keras name of its activation; None: linear.
    loss
        As `Application.loss`.
    weight
        Of its loss in the sum that is minimised.
    metrics
        As `Application.metrics`; results call them ``NAME_METRIC``, the loss apart.
    name
        An identifier; None: ``output_0`` and so on.
    """

    units: int
    activation: str | None = None
    loss: Any = None
    weight: float = 1.0
    metrics: Sequence[Any] = ()
    name: str | None = None

    def __post_init__(self) -> None:
        if not is_count(self.units):
            raise ApplicationError(
                f"output: units must be a whole number of at least 1, not {self.units!r}"
            )
        if self.loss is None:
            raise ApplicationError("output: expected a loss for each output, found none")
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float | np.number):
            raise ApplicationError(f"output: weight must be a number, not {self.weight!r}")
        if self.name is not None and not str(self.name).isidentifier():
            raise ApplicationError(f"output {self.name!r}: expected an identifier as name")
        if isinstance(self.metrics, str) or not isinstance(self.metrics, Sequence):
            raise ApplicationError(f"output: metrics must be a list, not {self.metrics!r}")


def is_count(value: object) -> bool:
    """Whether something is a whole number of at least 1."""
    return not isinstance(value, bool) and isinstance(value, int | np.integer) and int(value) > 0


def names(outputs: Sequence[Output]) -> list[str]:
    """Return what outputs are called; raises ApplicationError if two are called alike."""
    found = [output.name or f"output_{i}" for i, output in enumerate(outputs)]
    if len(set(found)) < len(found):
        raise ApplicationError(f"outputs: expected different names, found {', '.join(found)}")
    return found


def metrics_of(outputs: Sequence[Output]) -> dict[str, tuple[int, Any]]:
    """Return output and metric by what results call it; raises ApplicationError.

    A single output's metrics are called by their names alone.
    """
    found: dict[str, tuple[int, Any]] = {}
    for i, (name, output) in enumerate(zip(names(outputs), outputs, strict=True)):
        for metric in output.metrics:
            own = _terms.name_of(metric)
            own = own if len(outputs) == 1 else f"{name}_{own}"
            if own in found:
                raise ApplicationError(f"metric {own} is asked for twice")
            found[own] = (i, metric)
    return found
