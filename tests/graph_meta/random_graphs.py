"""Random layer graphs, for tests and benchmarks.

Every function takes its randomness from the `random.Random` that it is given.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from graph_meta.graph import Call, Edge, Layer, LayerGraph, LayerSpec, WeightSpec

#: A few kinds of layers, so that random graphs have many twins.
KINDS = (
    *(
        LayerSpec("Dense", {"units": units}, [WeightSpec((4, units)), WeightSpec((units,))])
        for units in (1, 2, 3)
    ),
    LayerSpec("Add", {}),
    LayerSpec("Attention", {}),
)

_INPUTS = tuple(LayerSpec("InputLayer", {"batch_shape": [None, n]}) for n in (4, 5))
_KEYWORDS = '{"args":[{"tensor":0}],"kwargs":{"value":{"tensor":1}}}'


def random_graph(
    rng: random.Random, *, layers: int = 8, kinds: Sequence[LayerSpec] = KINDS
) -> LayerGraph:
    """Return a random connected-enough graph: one or two inputs, shared layers, several outputs.

    Parameters
    ----------
    rng
        Where the randomness comes from.
    layers
        How many layers there are besides the inputs.
    kinds
        What they are; few kinds make many twins.
    """
    made = [Layer(rng.choice(_INPUTS), (Call(()),)) for _ in range(rng.choice((1, 1, 2)))]
    inputs = [Edge(i) for i in range(len(made))]
    for _ in range(layers):
        calls = tuple(random_call(rng, made) for _ in range(rng.choice((1, 1, 1, 1, 2, 3))))
        made.append(Layer(rng.choice(kinds), calls))
    outputs = rng.sample(range(len(made)), k=min(len(made), rng.choice((1, 2))))
    return LayerGraph(made, inputs, [Edge(o) for o in outputs])


def random_call(rng: random.Random, layers: Sequence[Layer]) -> Call:
    """Return a call on one to three tensors of these layers, the latest ones most often."""
    edges = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
        back = min(rng.choice((1, 1, 1, 2, 2, 3, 4)), len(layers))
        position = len(layers) - back
        edges.append(Edge(position, rng.randrange(len(layers[position].calls))))
    keywords = len(edges) == 2 and rng.random() < 0.3
    return Call(tuple(edges), _KEYWORDS if keywords else None)


def reordered(graph: LayerGraph, rng: random.Random) -> LayerGraph:
    """Return the same graph written down otherwise: layers in another order, calls as well."""
    waiting = set(range(len(graph)))
    order: list[int] = []
    while waiting:
        ready = [
            position
            for position in sorted(waiting)
            if not any(e.layer in waiting for c in graph.layers[position].calls for e in c.inputs)
        ]
        order.append(rng.choice(ready))
        waiting.remove(order[-1])
    place = {position: i for i, position in enumerate(order)}
    calls = {
        position: rng.sample(range(n), k=n)
        for position in order
        for n in [len(graph.layers[position].calls)]
    }

    def move(edge: Edge) -> Edge:
        return Edge(place[edge.layer], calls[edge.layer].index(edge.call), edge.tensor)

    layers = []
    for position in order:
        spec, old = graph.layers[position]
        made = [Call(tuple(map(move, old[c].inputs)), old[c].arguments) for c in calls[position]]
        layers.append(Layer(spec, tuple(made)))
    return LayerGraph(layers, list(map(move, graph.inputs)), list(map(move, graph.outputs)))


def with_spec(graph: LayerGraph, position: int, spec: LayerSpec) -> LayerGraph:
    """Return the graph with one layer's class, configuration and weights exchanged."""
    layers = list(graph.layers)
    layers[position] = Layer(spec, layers[position].calls)
    return LayerGraph(layers, graph.inputs, graph.outputs)


def mutated(graph: LayerGraph, rng: random.Random) -> LayerGraph:
    """Return the graph with one layer (that is no input) replaced by another kind."""
    candidates = [p for p, layer in enumerate(graph.layers) if layer.calls[0].inputs]
    position = rng.choice(candidates)
    others = [kind for kind in KINDS if kind != graph.layers[position].spec]
    return with_spec(graph, position, rng.choice(others))


def family(
    rng: random.Random,
    size: int,
    *,
    layers: int = 12,
    grow: Callable[[LayerGraph, random.Random], LayerGraph] = mutated,
) -> list[LayerGraph]:
    """Return graphs of which each but the first is a small change of an earlier one."""
    members = [random_graph(rng, layers=layers)]
    while len(members) < size:
        members.append(grow(rng.choice(members), rng))
    return members
