"""The index answers as the plain scan with networkx does."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cpp_store
from graph_meta import GraphBuilder, layers
from graph_meta.index import PrefixIndex
from tests.graph_meta.random_graphs import family, mutated, random_graph
from tests.graph_meta.reference import Stored, best_matches

SCORES = (0.0, 0.0, 0.5, 1.0, -1.0, math.nan, -math.inf)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_answers_are_those_of_the_scan(rng: random.Random) -> None:
    graphs = family(rng, 10, layers=rng.choice((3, 8, 12))) + [random_graph(rng) for _ in range(2)]
    index, stored = PrefixIndex(), dict[str, Stored]()
    sequence = 0
    for _ in range(30):
        action = rng.random()
        if action < 0.5:
            model = f"m{rng.randrange(12)}"
            if model in stored:
                continue
            sequence += 1
            entry = Stored(rng.choice(graphs), rng.choice(SCORES), sequence, rng.choice("ab"))
            stored[model] = entry
            index.add(
                model,
                entry.graph,
                score=entry.score,
                namespace=entry.namespace,
                sequence=entry.sequence,
            )
        elif action < 0.7 and stored:
            model = rng.choice(sorted(stored))
            del stored[model]
            assert index.remove(model)
        else:
            query = rng.choice((rng.choice(graphs), mutated(rng.choice(graphs), rng)))
            options = {
                "namespace": rng.choice("ab"),
                "weight": rng.choice(("layers", "bytes")),
                "min_layers": rng.choice((1, 1, 2, 5)),
                "exclude": rng.sample(sorted(stored), k=min(len(stored), rng.choice((0, 0, 2)))),
                "count": rng.choice((1, 3, 20)),
            }
            found = index.best_matches(query, **options)
            expected = best_matches(query, stored, **options)
            assert [(m.model, m.layers, m.bytes, m.positions) for m in found] == expected
        assert len(index) == len(stored)


def test_a_table_will_do_and_ids_are_unique() -> None:
    builder = GraphBuilder()
    graph = builder.build(builder.add(layers.dense(2), builder.input((3,))))
    index = PrefixIndex()
    index.add("a", graph.table)
    with pytest.raises(cpp_store.AlreadyExists, match="a"):
        index.add("a", graph, namespace="other")
    match = index.best_match(graph)
    assert match is not None and (match.model, match.bytes) == ("a", 4 * 8)
    assert "a" in index and "b" not in index
    assert index.best_match(graph.table, exclude=["a"]) is None
    assert index.remove("a") and not index.remove("a")
    assert index.best_match(graph) is None
    assert index.stats()["models"] == 0
