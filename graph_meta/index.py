"""The longest shared prefix among stored models: `cpp_store.PrefixIndex` for layer graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import cpp_store
from cpp_store import LayerTable, Match
from graph_meta.graph import LayerGraph

__all__ = ["Match", "PrefixIndex"]


class PrefixIndex:
    """Finds the registered model whose prefix with a given one is heaviest.

    Exact: the answers are those of `reference.best_matches`, in time that does not grow with the
    number of models on the families that searches make. Thread-safe. Wherever a graph is taken, its
    `LayerGraph.table` will do as well.

    >>> from graph_meta import GraphBuilder, layers
    >>> def network(*widths):
    ...     builder = GraphBuilder()
    ...     x = builder.input((4,))
    ...     for width in widths:
    ...         x = builder.add(layers.dense(width), x)
    ...     return builder.build(x)
    >>> index = PrefixIndex()
    >>> index.add("a", network(8, 8, 1))
    >>> index.add("b", network(8, 16, 1), score=0.9)
    >>> match = index.best_match(network(8, 16, 2))
    >>> match.model, match.layers, match.positions
    ('b', 3, [0, 1, 2])
    """

    def __init__(self) -> None:
        self._index = cpp_store.PrefixIndex()

    def add(
        self,
        model: str,
        graph: LayerGraph | LayerTable,
        *,
        score: float = 0.0,
        namespace: str = "",
        sequence: int = 0,
    ) -> None:
        """Register a model.

        Parameters
        ----------
        model
            Its id.
        graph
            Its layers.
        score
            Of two equally heavy matches the one of higher score wins; NaN is lowest.
        namespace
            Models of different namespaces never match.
        sequence
            Of two matches of equal weight and score the one of larger sequence wins. 0: newer than
            all so far.

        Raises
        ------
        cpp_store.AlreadyExists
            If a model of that id is registered, in any namespace.
        """
        self._index.add(model, _table(graph), score=score, namespace=namespace, sequence=sequence)

    def remove(self, model: str) -> bool:
        """Take a model out at once; False if there is none of that id."""
        return self._index.remove(model)

    def best_match(
        self,
        graph: LayerGraph | LayerTable,
        *,
        namespace: str = "",
        weight: Literal["layers", "bytes"] = "layers",
        min_layers: int = 1,
        exclude: Sequence[str] = (),
    ) -> Match | None:
        """Return the model with the heaviest prefix, or None.

        Parameters
        ----------
        graph
            What to match.
        namespace
            Where to look.
        weight
            Whether prefixes weigh by layers or by bytes of their weights.
        min_layers
            Prefixes of fewer layers are no match.
        exclude
            Models that are not to be returned.
        """
        return self._index.best_match(
            _table(graph),
            namespace=namespace,
            weight=weight,
            min_layers=min_layers,
            exclude=exclude,
        )

    def best_matches(
        self,
        graph: LayerGraph | LayerTable,
        *,
        count: int,
        namespace: str = "",
        weight: Literal["layers", "bytes"] = "layers",
        min_layers: int = 1,
        exclude: Sequence[str] = (),
    ) -> list[Match]:
        """Return up to `count` models with the heaviest prefixes, best first; see `best_match`."""
        return self._index.best_matches(
            _table(graph),
            count=count,
            namespace=namespace,
            weight=weight,
            min_layers=min_layers,
            exclude=exclude,
        )

    def __contains__(self, model: str) -> bool:
        return model in self._index

    def __len__(self) -> int:
        return len(self._index)

    def stats(self) -> dict[str, Any]:
        """Return counts: models, layers (distinct ones), bytes of memory, namespaces."""
        return self._index.stats()


def _table(graph: LayerGraph | LayerTable) -> LayerTable:
    return graph.table if isinstance(graph, LayerGraph) else graph
