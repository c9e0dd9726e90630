"""What a model is: layer graphs, stable names, longest-shared-prefix queries.

Start reading at :class:`LayerGraph` (``graph.py``) and :mod:`graph_meta.naming`. Nothing here
imports Keras, save the functions of :mod:`graph_meta.keras_io` when they are called.
"""

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
