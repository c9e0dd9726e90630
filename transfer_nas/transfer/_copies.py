"""What the methods that keep whole copies say of a model, and what they keep of it."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from typing import Any

import cpp_store
from graph_meta import LayerGraph
from transfer_nas.transfer._base import Inheritance, Tensors


def whole_copy(
    tensors: Tensors,
    inheritance: Inheritance | None,
    inherited: Collection[str],
    kind: type[Inheritance],
) -> dict[str, Any]:
    """Return a model's own tensors by layer, and those that it inherits.

    Raises
    ------
    ValueError
        Layers are inherited, but not from an inheritance of this kind.
    """
    whole = dict(tensors)
    if inherited:
        if not isinstance(inheritance, kind):
            raise ValueError("inherited layers need the inheritance that they come from")
        ancestors = inheritance.read()
        whole.update((layer, ancestors[layer]) for layer in inherited if layer in ancestors)
    return whole


def describe(model: str, graph: LayerGraph, *, score: float, parent: str) -> dict[str, Any]:
    """Return the fields of a manifest, for JSON. docs/formats.md has them."""
    return {
        "model": model,
        "score": score,
        "parent": parent,
        "created_ns": time.time_ns(),
        "layers": {
            "names": graph.table.names,
            "requires": graph.table.requires,
            "nbytes": graph.table.nbytes,
        },
        "graph": json.loads(graph.to_json()),
    }


def table_of(fields: Mapping[str, Any]) -> cpp_store.LayerTable:
    """Return the layers that a manifest's fields describe."""
    layers = fields["layers"]
    return cpp_store.LayerTable(layers["names"], layers["requires"], layers["nbytes"])


def best_match(
    index: cpp_store.PrefixIndex,
    graph: LayerGraph,
    namespace: str,
    only: tuple[str, cpp_store.LayerTable] | None,
) -> cpp_store.Match | None:
    """Return the best match in an index, or what is shared with one model of it."""
    if only is None:
        match = index.best_match(graph.table, namespace=namespace)
    else:
        name, table = only
        known, nbytes = set(table.names), graph.table.nbytes
        shared = [place for place, layer in enumerate(graph.names) if layer in known]
        total = sum(nbytes[place] for place in shared)
        match = cpp_store.Match(name, 0.0, 0, len(shared), total, shared)
    return None if match is None or match.bytes == 0 else match


def version_of(fields: Mapping[str, Any]) -> object:
    """Return the version of the graph that a manifest's fields hold; None if they hold none."""
    graph = fields.get("graph")
    return graph.get("version") if isinstance(graph, dict) else None


def graph_of(fields: Mapping[str, Any]) -> LayerGraph:
    """Return the graph that a manifest's fields hold."""
    return LayerGraph.from_json(json.dumps(fields["graph"]))
