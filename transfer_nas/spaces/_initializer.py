"""A space whose networks start from another initializer than Keras' default."""

from __future__ import annotations

from typing import Any

from graph_meta import layers
from graph_meta.graph import LayerGraph
from transfer_nas.errors import SpaceError, near_misses
from transfer_nas.spaces._base import Space, varied


def with_initializer(space: Space, name: str) -> Space:
    """Return a space of the same architectures whose kernels start from an initializer.

    Layers that have another one than Keras' default keep it.

    Parameters
    ----------
    space
        Stays what it is.
    name
        One of `graph_meta.layers.INITIALIZERS`.

    Raises
    ------
    SpaceError
        There is no such initializer.
    """
    if name not in layers.INITIALIZERS:
        raise SpaceError(f"unknown initializer {name!r}; {near_misses(name, layers.INITIALIZERS)}")
    changed: Any = varied(space, _Started)
    changed._initializer = name
    return changed  # type: ignore[no-any-return]


class _Started:
    """What `with_initializer` puts before a space's class."""

    _initializer: str

    def graph(self, architecture: Any) -> LayerGraph:
        """See `Space.graph`."""
        graph: LayerGraph = super().graph(architecture)  # type: ignore[misc]
        return layers.with_kernels(graph, self._initializer)

    def describe(self) -> dict[str, Any]:
        """See `Space.describe`."""
        return super().describe() | {"initializer": self._initializer}  # type: ignore[misc,no-any-return]
