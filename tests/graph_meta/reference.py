"""The plain way, with networkx: slow, simple, and the oracle of the tests.

`prefix` walks two graphs breadth-first and matches layer by layer; `best_match` scans every stored
model with it. `name_layers` is what `cpp_store/src/core/digest.cpp` computes, line for line as
docs/formats.md has it.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, NamedTuple

import networkx as nx

from cpp_store import _core
from graph_meta.graph import Call, Edge, LayerGraph

CALL_SEED = 1
LAYER_SEED = 2


def input_ordinals(graph: LayerGraph) -> list[int]:
    """Return for each layer how many earlier inputs of the model have its spec; 0 for the rest."""
    ordinals = [0] * len(graph)
    seen: Counter[bytes] = Counter()
    for position in dict.fromkeys(edge.layer for edge in graph.inputs):
        key = graph.layers[position].spec.key
        ordinals[position] = seen[key]
        seen[key] += 1
    return ordinals


def prefix(a: LayerGraph, b: LayerGraph) -> dict[int, int]:
    """Return the layers of `a` that `b` has as well, each with its position in `b`.

    Breadth-first from the inputs: a layer matches one of `b` that has the same class,
    configuration and weights, is the same of its twins, and is called with the same arguments on
    matching tensors. So the matched layers of either graph hold all their ancestors.
    """
    matched: dict[int, int] = {}
    # For each call of a matched layer of `a`, the first call of its partner that is the same.
    partner_calls: dict[tuple[int, int], int] = {}
    ordinals_a, ordinals_b = input_ordinals(a), input_ordinals(b)
    firsts_b = first_calls(b)
    kinds_b: dict[tuple[bytes, int, int], list[int]] = {}
    for j, layer in enumerate(b.layers):
        kinds_b.setdefault((layer.spec.key, ordinals_b[j], b.occurrences[j]), []).append(j)

    def translate(call: Call) -> Call:
        edges = [
            Edge(matched[e.layer], partner_calls[e.layer, e.call], e.tensor) for e in call.inputs
        ]
        return Call(tuple(edges), call.arguments or "")

    for generation in nx.topological_generations(a.to_networkx()):
        for i in sorted(generation):
            layer = a.layers[i]
            if any(edge.layer not in matched for call in layer.calls for edge in call.inputs):
                continue
            wanted = [translate(call) for call in layer.calls]
            for j in kinds_b.get((layer.spec.key, ordinals_a[i], a.occurrences[i]), []):
                found = [_with_first_calls(call, firsts_b) for call in b.layers[j].calls]
                if sorted(found) == sorted(wanted):
                    matched[i] = j
                    for c, call in enumerate(wanted):
                        partner_calls[i, c] = found.index(call)
                    break
    return matched


def first_calls(graph: LayerGraph) -> dict[tuple[int, int], int]:
    """Return for each call of each layer the first call of the layer with the same inputs.

    Calls of one layer on the same tensors with the same arguments cannot be told apart.
    """
    firsts: dict[tuple[int, int], int] = {}
    for position, layer in enumerate(graph.layers):
        calls = [_with_first_calls(call, firsts) for call in layer.calls]
        for c, call in enumerate(calls):
            firsts[position, c] = calls.index(call)
    return firsts


def _with_first_calls(call: Call, firsts: Mapping[tuple[int, int], int]) -> Call:
    edges = [Edge(e.layer, firsts[e.layer, e.call], e.tensor) for e in call.inputs]
    return Call(tuple(edges), call.arguments or "")


class Stored(NamedTuple):
    """A stored model, as the scan sees it."""

    graph: LayerGraph
    score: float = 0.0
    sequence: int = 0
    namespace: str = ""


class Found(NamedTuple):
    """A match of a scan; see `cpp_store.Match`."""

    model: str
    layers: int
    bytes: int
    positions: list[int]


def best_matches(
    query: LayerGraph,
    stored: Mapping[str, Stored],
    *,
    count: int = 1,
    namespace: str = "",
    weight: Literal["layers", "bytes"] = "layers",
    min_layers: int = 1,
    exclude: Collection[str] = (),
) -> list[Found]:
    """Return the stored models with the heaviest prefixes, best first, by looking at all of them.

    Ties go to the higher score (NaN is lowest), then to the larger sequence.
    """
    ranked = []
    for model, entry in stored.items():
        if entry.namespace != namespace or model in exclude:
            continue
        positions = sorted(prefix(query, entry.graph))
        if len(positions) < max(min_layers, 1):
            continue
        size = sum(query.layers[i].spec.nbytes for i in positions)
        found = Found(model, len(positions), size, positions)
        score = -math.inf if math.isnan(entry.score) else entry.score
        heaviness = found.layers if weight == "layers" else found.bytes
        number = not math.isnan(entry.score)
        ranked.append(((heaviness, score, number, entry.sequence), found))
    ranked.sort(key=lambda pair: pair[0], reverse=True)
    return [found for _, found in ranked[:count]]


def ancestors_are_isomorphic(a: LayerGraph, i: int, b: LayerGraph, j: int) -> bool:
    """Tell whether layer `i` of `a` and layer `j` of `b` are the same up to the names of layers.

    That is: there is a one-to-one map between them and all their ancestors that keeps classes,
    configurations, weights, calls (in any order), arguments and the order of inputs.
    """
    return bool(
        nx.is_isomorphic(
            _rooted_network(a, i),
            _rooted_network(b, j),
            node_match=lambda left, right: left == right,
            edge_match=lambda left, right: left == right,
        )
    )


def _rooted_network(graph: LayerGraph, root: int) -> nx.DiGraph:
    """Return a layer and its ancestors, with a node for each layer, call and input of a call."""
    ordinals, firsts = input_ordinals(graph), first_calls(graph)
    members = nx.ancestors(graph.to_networkx(), root) | {root}
    network = nx.DiGraph()
    for position in members:
        layer = graph.layers[position]
        network.add_node(position, kind=(layer.spec.key, ordinals[position], position == root))
        for c, call in enumerate(layer.calls):
            network.add_node((position, c), kind=("call", call.arguments))
            network.add_edge(position, (position, c))
            for k, edge in enumerate(call.inputs):
                network.add_node((position, c, k), kind=("input", k, edge.tensor))
                network.add_edge((position, c), (position, c, k))
                network.add_edge((position, c, k), (edge.layer, firsts[edge.layer, edge.call]))
    return network


class Names(NamedTuple):
    """What naming yields, layer by layer."""

    digests: list[bytes]
    occurrences: list[int]
    names: list[str]


class _Terms:
    """One assignment of digests to layers and calls."""

    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph
        self.ordinals = input_ordinals(graph)
        self.layers: dict[int, bytes] = {}
        self.calls: dict[tuple[int, int], bytes] = {}
        self.occurrences: Counter[int] = Counter()

    def hash_layer(self, position: int) -> None:
        layer = self.graph.layers[position]
        digests = []
        for c, call in enumerate(layer.calls):
            message = struct.pack("<I", len(call.inputs))
            for edge in call.inputs:
                message += self.layers[edge.layer]
                message += struct.pack("<I", self.occurrences[edge.layer])
                message += self.calls[edge.layer, edge.call]
                message += struct.pack("<I", edge.tensor)
            message += (call.arguments or "").encode()
            self.calls[position, c] = _core.xxh3_128(message, CALL_SEED)
            digests.append(self.calls[position, c])
        message = layer.spec.key + struct.pack("<II", self.ordinals[position], len(digests))
        self.layers[position] = _core.xxh3_128(message + b"".join(sorted(digests)), LAYER_SEED)


def name_layers(graph: LayerGraph) -> Names:
    """Return digests, occurrences and stable names, as `cpp_store/digest.hpp` defines them."""
    network = graph.to_networkx()
    plain = _Terms(graph)
    depths: dict[int, int] = {}
    for position in range(len(graph)):
        plain.hash_layer(position)
        depths[position] = max((depths[p] + 1 for p in network.predecessors(position)), default=0)

    whole = _told_apart(graph, plain, depths, range(len(graph)), graph.outputs)
    digests = []
    for position in range(len(graph)):
        members = sorted(nx.ancestors(network, position) | {position})
        digests.append(_told_apart(graph, plain, depths, members, ()).layers[position])

    names = []
    for position, layer in enumerate(graph.layers):
        name = f"{layer.spec.identity[1].decode()}_{digests[position].hex()}"
        occurrence = whole.occurrences[position]
        if whole.layers[position] != digests[position]:
            low = int.from_bytes(whole.layers[position][8:], "big")
            name += f"_{((low + occurrence) % 2**64) | 2**63}"
        elif occurrence:
            name += f"_{occurrence}"
        names.append(name)
    return Names(digests, [whole.occurrences[p] for p in range(len(graph))], names)


def _told_apart(
    graph: LayerGraph,
    plain: _Terms,
    depths: Mapping[int, int],
    members: Iterable[int],
    outputs: Iterable[Edge],
) -> _Terms:
    """Return digests of `members`, which hold their ancestors, with twins counted by rank."""
    members = list(members)
    ranks = _Walk(graph, plain).ranks(members, depths, outputs)
    terms = _Terms(graph)
    seen: Counter[bytes] = Counter()
    for position in sorted(members, key=lambda p: (depths[p], ranks[p])):
        terms.hash_layer(position)
        terms.occurrences[position] = seen[terms.layers[position]]
        seen[terms.layers[position]] += 1
    return terms


class _Walk:
    """Ranks layers in an order that does not depend on how the graph is written down."""

    def __init__(self, graph: LayerGraph, plain: _Terms) -> None:
        self.graph = graph
        self.plain = plain
        self.reached: dict[int, int] = {}
        self.visited: set[tuple[int, int]] = set()
        self.settled = 0
        self.finished = 0

    def ranks(
        self, members: list[int], depths: Mapping[int, int], outputs: Iterable[Edge]
    ) -> dict[int, int]:
        digests = self.plain.layers
        count = Counter(digests[p] for p in members)
        for position in sorted(members, key=lambda p: (depths[p], digests[p])):
            if count[digests[position]] == 1:
                self.reach(position)
                self.settle()
        for edge in outputs:
            self.reach(edge.layer)
            self.visit(edge.layer, edge.call)
            self.settle()
        self.finish()
        for position in members:
            if position not in self.reached:
                self.reach(position)
                self.settle()
                self.finish()
        return self.reached

    def reach(self, position: int) -> None:
        self.reached.setdefault(position, len(self.reached))

    def visit(self, position: int, call: int) -> None:
        if (position, call) in self.visited:
            return
        self.visited.add((position, call))
        for edge in self.graph.layers[position].calls[call].inputs:
            self.reach(edge.layer)
            self.visit(edge.layer, edge.call)

    def waiting(self, position: int) -> list[int]:
        """Return the layer's calls that are not visited, by digest, then as they are written."""
        calls = range(len(self.graph.layers[position].calls))
        return sorted(
            (c for c in calls if (position, c) not in self.visited),
            key=lambda c: self.plain.calls[position, c],
        )

    def settle(self) -> None:
        """Visit the waiting calls of the layers reached, save those that tie."""
        while self.settled < len(self.reached):
            position = list(self.reached)[self.settled]
            self.settled += 1
            calls = range(len(self.graph.layers[position].calls))
            count = Counter(self.plain.calls[position, c] for c in calls)
            for call in self.waiting(position):
                if count[self.plain.calls[position, call]] == 1:
                    self.visit(position, call)

    def finish(self) -> None:
        while self.finished < len(self.reached):
            position = list(self.reached)[self.finished]
            self.finished += 1
            while waiting := self.waiting(position):
                digest = self.plain.calls[position, waiting[0]]
                tied = [c for c in waiting if self.plain.calls[position, c] == digest]
                self.visit(position, min(tied, key=lambda c: self.outlook(position, c)))
                self.settle()

    def outlook(self, position: int, call: int) -> list[int]:
        """Return how often the call is made, and the ranks that visiting it would meet and give."""
        ranks = dict(self.reached)
        visited = set(self.visited)
        calls = self.graph.layers[position].calls
        met = [calls.count(calls[call])]

        def look(position: int, call: int) -> None:
            if (position, call) in visited:
                return
            visited.add((position, call))
            for edge in self.graph.layers[position].calls[call].inputs:
                met.append(ranks.setdefault(edge.layer, len(ranks)))
                look(edge.layer, edge.call)

        look(position, call)
        return met
