"""Limits that a candidate keeps before anything of it is trained: ``parameters<100000``.

What they bound is read off the layer graph. A space within limits (`within`) is the same space
whose `sample` and `mutate` draw again until a candidate fits, so no algorithm knows of limits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transfer_nas.errors import InputError, SpaceError, near_misses
from transfer_nas.job import one_line

if TYPE_CHECKING:
    from graph_meta import LayerGraph
    from transfer_nas.spaces import Randomness, Space

QUANTITIES: Mapping[str, Callable[[LayerGraph], float]] = {
    "parameters": lambda graph: graph.parameters,
    "flops": lambda graph: graph.flops,
    "bytes": lambda graph: graph.nbytes,
    "layers": len,
}
"""What can be limited."""

_TRIES = 1000  # candidates drawn, and then as many steps towards the limits
_MUTATIONS = 100  # of one parent
_FORM = re.compile(r"\s*(\w*)\s*(<=|<)\s*(\S+)\s*")


@dataclass(frozen=True)
class Limit:
    """An upper bound of one quantity.

    Attributes
    ----------
    name
        One of `QUANTITIES`.
    bound
        A positive number.
    inclusive
        Whether a candidate may have just that.
    """

    name: str
    bound: float
    inclusive: bool = False

    def excess(self, graph: LayerGraph) -> float:
        """Return by what factor a graph is too large; 0 if it fits."""
        found = QUANTITIES[self.name](graph)
        if found < self.bound or (self.inclusive and found == self.bound):
            return 0.0
        return found / self.bound

    def __str__(self) -> str:
        return f"{self.name}{'<=' if self.inclusive else '<'}{self.bound:.15g}"


def parse(text: str) -> tuple[Limit, ...]:
    """Return the limits in a text such as ``parameters<100000,layers<=12``.

    Raises
    ------
    InputError
        It says something else; names the flag.
    """
    limits = []
    for part in text.split(","):
        found = _FORM.fullmatch(part)
        if found is None:
            raise InputError(
                f"--limit {part.strip()!r}: expected NAME<NUMBER or NAME<=NUMBER, such as "
                "'parameters<100000' (in quotes: < means something to a shell)"
            )
        name, sign, number = found.groups()
        if name not in QUANTITIES:
            raise InputError(f"--limit {part.strip()}: {near_misses(name, QUANTITIES)}")
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if not 0 < bound < math.inf:
            raise InputError(
                f"--limit {part.strip()}: expected a positive number, found {number!r}"
            )
        limits.append(Limit(name, bound, sign == "<="))
    return tuple(limits)


def within(space: Space[Any], limits: Iterable[Limit]) -> Space[Any]:
    """Return a space that draws only what keeps all limits; everything else of it is as it was.

    A limit is of the graph without what no output comes from, which is what trains. What cannot be
    built at all keeps no limit.

    Raises
    ------
    InputError
        Nothing that keeps them was found; says how near the nearest came.
    """
    from transfer_nas.spaces import varied  # not for --help

    limited: Any = varied(space, _Within)
    limited.begin(space, tuple(limits))
    return limited  # type: ignore[no-any-return]


class _Within:
    """What `within` puts before a space's class."""

    _space: Space[Any]
    _limits: tuple[Limit, ...]
    _example: Any

    def begin(self, space: Space[Any], limits: tuple[Limit, ...]) -> None:
        import numpy as np  # not for --help

        self._space, self._limits = space, limits
        # For when luck is out: with this in hand, `sample` never fails.
        self._example, excess = self._search(np.random.default_rng(0))
        if excess:
            raise InputError(self._complaint(self._example))

    @property
    def whole(self) -> Space[Any]:
        """The space without limits."""
        return self._space

    @property
    def size(self) -> int | None:
        """One where there was one before; else nobody has counted them."""
        return 1 if self._space.size == 1 else None

    def sample(self, rng: Randomness) -> Any:
        """Draw until one fits; from the nearest, step by step, where that takes too long."""
        found, excess = self._search(rng)
        return self._example if excess else found

    def mutate(self, architecture: Any, rng: Randomness, *position: int) -> Any:
        """Mutate until the child fits; another gene if there is none with the one asked for."""
        for _ in range(_MUTATIONS):
            child = self._space.mutate(architecture, rng, *position)
            if not self._excess(child):
                return child
        if position:
            return self.mutate(architecture, rng)
        raise SpaceError(f"space {self._space.name}: no mutation of a candidate keeps the limits")

    def _excess(self, architecture: Any) -> float:
        """Return how far a candidate is from its limits: 0 if it keeps them."""
        try:
            graph = self._space.graph(architecture)
            # What no output comes from counts nothing; but nearly all that fit do so with it.
            if not any(limit.excess(graph) for limit in self._limits):
                return 0.0
            graph = graph.without_dead_ends()
        except Exception:  # a user's function may raise anything
            return math.inf
        return max(limit.excess(graph) for limit in self._limits)

    def _search(self, rng: Randomness) -> tuple[Any, float]:
        """Return a candidate that fits, or the nearest that was found; and its excess."""
        best, least = None, math.inf
        for number in range(2 * _TRIES):
            # Where few fit, the second half walks there instead of waiting to be lucky.
            try:
                found = (
                    self._space.sample(rng)
                    if number < _TRIES or best is None
                    else self._space.mutate(best, rng)
                )
            except SpaceError:  # the space has no mutation of it
                break
            excess = self._excess(found)
            if best is None or excess <= least:
                best, least = found, excess
            if not excess:
                break
        return best, least

    def _complaint(self, nearest: Any) -> str:
        wanted = " and ".join(map(str, self._limits))
        head = f"--limit: space {self._space.name} has nothing with {wanted}"
        try:
            graph = self._space.graph(nearest).without_dead_ends()
            found = [f"{QUANTITIES[each.name](graph):,} {each.name}" for each in self._limits]
        except Exception as cause:  # a user's function may raise anything
            return f"{head}: of {_TRIES:,} tried none could be measured ({one_line(cause)})"
        has = ", ".join(found)
        return f"{head}: the nearest of {2 * _TRIES:,} tried has {has}; raise the limit"
