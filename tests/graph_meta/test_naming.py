"""Digests, occurrences and stable names: the properties of docs/formats.md on random graphs."""

import json
import os
import random
import re
import subprocess
import sys

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_meta import (
    Call,
    Edge,
    GraphBuilder,
    Layer,
    LayerGraph,
    LayerSpec,
    layers,
    prefix,
)
from tests.graph_meta import reference
from tests.graph_meta.random_graphs import KINDS, mutated, random_graph, reordered, with_spec

many = settings(max_examples=400, deadline=None)
some = settings(max_examples=150, deadline=None)
randoms = st.randoms(use_true_random=False)


@many
@given(randoms, st.integers(1, 14))
def test_the_compiled_names_are_those_of_the_reference(rng: random.Random, size: int) -> None:
    graph = random_graph(rng, layers=size)
    expected = reference.name_layers(graph)
    assert list(graph.digests) == expected.digests
    assert list(graph.occurrences) == expected.occurrences
    assert list(graph.names) == expected.names


@many
@given(randoms, st.integers(1, 14))
def test_the_order_in_which_a_graph_is_written_changes_no_name(
    rng: random.Random, size: int
) -> None:
    graph = random_graph(rng, layers=size)
    other = reordered(graph, rng)
    assert sorted(other.names) == sorted(graph.names)
    assert sorted(other.digests) == sorted(graph.digests)


@some
@given(randoms, st.integers(1, 12))
def test_a_change_changes_a_layer_and_its_descendants_and_no_other(
    rng: random.Random, size: int
) -> None:
    graph = random_graph(rng, layers=size)
    position = rng.choice([p for p, layer in enumerate(graph.layers) if layer.calls[0].inputs])
    spec = rng.choice([kind for kind in KINDS if kind != graph.layers[position].spec])
    changed = with_spec(graph, position, spec)
    concerned = nx.descendants(graph.to_networkx(), position) | {position}
    for p in range(len(graph)):
        assert (graph.digests[p] != changed.digests[p]) == (p in concerned)


@some
@given(randoms)
def test_equal_digests_mean_isomorphic_ancestors_and_the_reverse(rng: random.Random) -> None:
    a = random_graph(rng, layers=6, kinds=KINDS[:2])
    b = rng.choice((mutated(a, rng), random_graph(rng, layers=6, kinds=KINDS[:2])))
    for i in range(len(a)):
        for other, j in [(a, j) for j in range(i)] + [(b, j) for j in range(len(b))]:
            isomorphic = reference.ancestors_are_isomorphic(a, i, other, j)
            assert (a.digests[i] == other.digests[j]) == isomorphic


@many
@given(randoms, st.integers(1, 14))
def test_the_common_names_are_what_the_plain_matcher_finds(rng: random.Random, size: int) -> None:
    a = random_graph(rng, layers=size)
    b = reordered(mutated(mutated(a, rng), rng), rng)
    matched = reference.prefix(a, b)
    assert prefix(a, b) == [a.names[i] for i in sorted(matched)]
    for i, j in matched.items():
        assert a.names[i] == b.names[j]


@some
@given(randoms, st.integers(1, 14))
def test_a_prefix_is_closed_under_ancestors_and_the_same_graph_in_both(
    rng: random.Random, size: int
) -> None:
    a = random_graph(rng, layers=size)
    b = mutated(a, rng)
    shared = set(prefix(a, b))
    for graph in (a, b):
        for position, name in enumerate(graph.names):
            if name in shared:
                needed = {graph.names[p] for p in graph.table.requires[position]}
                assert needed <= shared
    where = {name: position for position, name in enumerate(b.names)}
    for position, name in enumerate(a.names):
        if name in shared:
            assert {a.names[p] for p in a.table.requires[position]} == {
                b.names[p] for p in b.table.requires[where[name]]
            }


@some
@given(randoms, st.integers(1, 14))
def test_names_are_unique_and_have_their_form(rng: random.Random, size: int) -> None:
    graph = random_graph(rng, layers=size)
    assert len(set(graph.names)) == len(graph)
    for layer, digest, name in zip(graph.layers, graph.digests, graph.names, strict=True):
        pattern = rf"{layer.spec.class_name}_{digest.hex()}(_[1-9]\d*)?"
        assert re.fullmatch(pattern, name)


def test_another_process_with_another_hash_seed_finds_the_same_names() -> None:
    code = """
import json, random
from tests.graph_meta.random_graphs import random_graph
rng = random.Random(7)
print(json.dumps([random_graph(rng, layers=12).names for _ in range(20)]))
"""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    ]
    rng = random.Random(7)
    here = [list(random_graph(rng, layers=12).names) for _ in range(20)]
    assert json.loads(outputs[0]) == json.loads(outputs[1]) == here


def test_names_of_a_known_graph_never_change() -> None:
    """A change here makes all stored models strangers: raise the version of the format with it."""
    builder = GraphBuilder()
    x = builder.input((64,))
    x = builder.add(layers.dense(8, activation="relu"), x)
    left = builder.add(layers.dense(4), x)
    right = builder.add(layers.dense(4), x)
    assert builder.build(builder.add(layers.add(), left, right)).names == (
        "InputLayer_d61162df6270f8aa43e8f125c0fdf2d0",
        "Dense_aa432ab686b3a3aaf36cc4a42baf363e",
        "Dense_4bc596a92664a939d5f5b8d89970df9e",
        "Dense_4bc596a92664a939d5f5b8d89970df9e_1",
        "Add_2e6e4a160aca1928bf6eeab7d1597c03",
    )


def twins(*heads: LayerSpec, reverse: bool = False) -> LayerGraph:
    """Two equal dense layers on one input; each head stands on the twin of its position."""
    made = [Layer(LayerSpec("InputLayer", {"batch_shape": [None, 4]}), (Call(()),))]
    made += [Layer(KINDS[0], (Call((Edge(0),)),))] * 2
    for i, head in enumerate(heads):
        made.append(Layer(head, (Call((Edge(2 - i if reverse else 1 + i),)),)))
    return LayerGraph(made, [Edge(0)], [Edge(len(made) - 1 - i) for i in range(len(heads))])


def test_twins_share_a_digest_and_are_counted() -> None:
    graph = twins(KINDS[1], KINDS[2])
    assert graph.digests[1] == graph.digests[2]
    assert {graph.names[1], graph.names[2]} == {
        f"Dense_{graph.digests[1].hex()}",
        f"Dense_{graph.digests[1].hex()}_1",
    }
    assert set(twins(KINDS[1], KINDS[2], reverse=True).names) == set(graph.names)


def test_what_stands_on_one_twin_twice_differs_from_what_stands_on_both() -> None:
    base = twins(KINDS[1], KINDS[2]).layers[:3]

    def joined(*on: int) -> LayerGraph:
        add = Layer(LayerSpec("Add", {}), (Call(tuple(Edge(p) for p in on)),))
        return LayerGraph((*base, add), [Edge(0)], [Edge(3)])

    assert joined(1, 2).digests[3] == joined(2, 1).digests[3]
    assert joined(1, 1).digests[3] != joined(1, 2).digests[3]
    assert joined(1, 2).names[3] == f"Add_{joined(1, 2).digests[3].hex()}"


def test_a_layer_never_inherits_from_one_that_stood_on_another_twin() -> None:
    """Heads on the same twin are no match for heads on one twin each, save for the first."""
    apart = twins(KINDS[1], KINDS[1])
    base = apart.layers[:3]
    head = Layer(KINDS[1], (Call((Edge(1),)),))
    together = LayerGraph((*base, head, head), [Edge(0)], [Edge(3), Edge(4)])
    assert len(prefix(apart, together)) == 4
    assert len(apart) == len(together) == 5


def test_the_first_input_is_not_the_second() -> None:
    """Towers that are exchanged between two inputs of one shape have learnt other things."""

    def towers(first: int, second: int) -> LayerGraph:
        builder = GraphBuilder()
        a, b = builder.input((4,)), builder.input((4,))
        left = builder.add(layers.dense(first), a)
        right = builder.add(layers.dense(second), b)
        return builder.build(builder.add(layers.concatenate(), left, right))

    assert len(prefix(towers(2, 3), towers(2, 5))) == 3
    assert prefix(towers(2, 3), towers(3, 2)) == list(towers(2, 3).names[:2])


@pytest.mark.parametrize("arguments", [None, '{"args":[{"tensor":1},{"tensor":0}],"kwargs":{}}'])
def test_arguments_and_the_order_of_inputs_count(arguments: str | None) -> None:
    def joined(*on: int, arguments: str | None = None) -> LayerGraph:
        made = [
            Layer(LayerSpec("InputLayer", {"batch_shape": [None, n]}), (Call(()),)) for n in (1, 2)
        ]
        call = Call(tuple(Edge(p) for p in on), arguments)
        made.append(Layer(LayerSpec("Concatenate", {}), (call,)))
        return LayerGraph(made, [Edge(0), Edge(1)], [Edge(2)])

    changed = joined(1, 0) if arguments is None else joined(0, 1, arguments=arguments)
    assert changed.digests[:2] == joined(0, 1).digests[:2]
    assert changed.digests[2] != joined(0, 1).digests[2]
