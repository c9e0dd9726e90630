"""What a model is: layer graphs, stable names, longest-shared-prefix queries.

Start reading at :class:`LayerGraph` (``graph.py``) and :mod:`graph_meta.naming`. Nothing here
imports Keras, save the functions of :mod:`graph_meta.keras_io` when they are called.
"""

from typing import TYPE_CHECKING, Any

from graph_meta.graph import (
    Call,
    Edge,
    GraphBuilder,
    GraphError,
    Layer,
    LayerGraph,
    LayerSpec,
    WeightSpec,
    prefix,
)

if TYPE_CHECKING:
    from graph_meta.service import PrefixService

__all__ = [
    "Call",
    "Edge",
    "GraphBuilder",
    "GraphError",
    "Layer",
    "LayerGraph",
    "LayerSpec",
    "PrefixService",
    "WeightSpec",
    "prefix",
]


def __getattr__(name: str) -> Any:
    """Import the service when it is asked for: it takes NumPy, and `--help` comes by here."""
    if name == "PrefixService":
        from graph_meta.service import PrefixService

        return PrefixService
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
