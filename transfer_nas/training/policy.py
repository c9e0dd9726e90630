"""What becomes of inherited layers, and for how long a candidate trains."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from graph_meta import LayerGraph
from transfer_nas.errors import InputError, near_misses

POLICIES = ("freeze", "finetune", "freeze_then_finetune")
SCHEDULES = ("constant", "cosine")


class Phase(NamedTuple):
    """A part of a training.

    Attributes
    ----------
    frozen
        Stable names of the layers that do not train.
    epochs
        How long.
    """

    frozen: frozenset[str]
    epochs: int


@dataclass(frozen=True)
class Policy:
    """How candidates with inherited layers train.

    Attributes
    ----------
    name
        ``freeze``: inherited layers stay as they are, and only the others train. ``finetune``: all
        train; the model shares with its ancestor what did not change. ``freeze_then_finetune``:
        the first half of the epochs (the larger, of an odd number) frozen, then all.
    unfreeze_top
        So many of the inherited layers with weights, the last ones in the order of the graph, are
        not frozen. A candidate in which nothing else would train (a genome that is stored already)
        trains at least the last one.
    child_epochs
        Epochs of a candidate that inherits all its parameters; one that inherits a share of them
        trains as many between these and the epochs of one that inherits none. None: a fifth of
        them with `grow`, as many without.
    schedule
        Of the learning rate over the epochs of a phase: ``constant``; ``cosine``: from the
        application's down to a tenth of it, by half a cosine wave.
    grow
        Start the layers behind the prefix, too, from those of the parent (`training.growth`).
    shrink_perturb
        What part of the inherited weights that train gives way to new ones: a weight starts as
        ``(1 - part) * inherited + part * new``. Zheng et al., *PBT-NAS* (2023), after Ash and
        Adams, *On warm-starting neural network training*, NeurIPS'20.

    Raises
    ------
    InputError
        A value makes no sense.
    """

    name: str = "freeze"
    unfreeze_top: int = 0
    child_epochs: int | None = None
    schedule: str = "constant"
    grow: bool = True
    shrink_perturb: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in POLICIES:
            raise InputError(f"unknown policy {self.name!r}; {near_misses(self.name, POLICIES)}")
        if self.schedule not in SCHEDULES:
            raise InputError(
                f"unknown schedule {self.schedule!r}; {near_misses(self.schedule, SCHEDULES)}"
            )
        if not 0 <= self.shrink_perturb < 1:
            raise InputError(f"shrink_perturb must be in [0, 1), not {self.shrink_perturb}")
        if self.unfreeze_top < 0:
            raise InputError(f"unfreeze_top must not be negative: {self.unfreeze_top}")
        if self.child_epochs is not None and self.child_epochs < 1:
            raise InputError(f"child_epochs must be at least 1, not {self.child_epochs}")

    def phases(
        self,
        graph: LayerGraph,
        inherited: Collection[str],
        epochs: int,
        *,
        grown: Collection[str] = (),
    ) -> list[Phase]:
        """Return how a candidate trains.

        Parameters
        ----------
        graph
            Its layers.
        inherited
            Stable names of those that have an ancestor's weights.
        epochs
            Epochs of a candidate that inherits nothing.
        grown
            Stable names of those that start from an ancestor's weights in another form.
        """
        epochs = self._epochs(graph, {*inherited, *grown}, epochs)
        nothing: frozenset[str] = frozenset()
        if not inherited or self.name == "finetune":
            return [Phase(nothing, epochs)]
        frozen = self._frozen(graph, inherited)
        if self.name == "freeze":
            return [Phase(frozen, epochs)]
        return [Phase(frozen, epochs - epochs // 2), Phase(nothing, epochs // 2)]

    def learning_rate(self, base: float, epoch: int, epochs: int) -> float:
        """Return the learning rate of an epoch of a phase, the first being 0."""
        if self.schedule == "constant":
            return base
        return base * (0.55 + 0.45 * math.cos(math.pi * epoch / epochs))

    def _epochs(self, graph: LayerGraph, inherited: Collection[str], epochs: int) -> int:
        if not inherited:
            return epochs
        least = self.child_epochs
        if least is None:
            least = max(1, epochs // 5) if self.grow else epochs
        layers = zip(graph.names, graph.layers, strict=True)
        parameters = sum(layer.spec.parameters for name, layer in layers if name in inherited)
        share = parameters / graph.parameters
        found = round(epochs + share * (min(least, epochs) - epochs))
        return max(found, min(epochs, 1 + (self.name == "freeze_then_finetune")))  # for each phase

    def _frozen(self, graph: LayerGraph, inherited: Collection[str]) -> frozenset[str]:
        trainable = [
            name
            for name, layer in zip(graph.names, graph.layers, strict=True)
            if any(weight.trainable for weight in layer.spec.weights)
        ]
        known = [name for name in trainable if name in inherited]
        top = max(self.unfreeze_top, int(len(known) == len(trainable)))
        return frozenset(inherited) - frozenset(known[len(known) - top :] if top else ())
