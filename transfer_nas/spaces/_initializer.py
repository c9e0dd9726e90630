"""A space whose networks start from another initializer than Keras' default."""

from __future__ import annotations

import copy
from typing import Any

from graph_meta import layers
from graph_meta.graph import LayerGraph
from transfer_nas.errors import SpaceError, near_misses
from transfer_nas.spaces._base import Space


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
    kind = type(space)

    def graph(self: Any, architecture: Any) -> LayerGraph:
        return layers.with_kernels(kind.graph(self, architecture), name)

    def describe(self: Any) -> dict[str, Any]:
        return kind.describe(self) | {"initializer": name}

    changed = copy.copy(space)
    methods = {"graph": graph, "describe": describe, "__module__": kind.__module__}
    changed.__class__ = type(kind.__name__, (kind,), methods)
    return changed
