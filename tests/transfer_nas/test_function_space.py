"""Spaces from functions: what they ask for becomes genes, whatever brings it up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graph_meta import LayerGraph, layers
from graph_meta.graph import GraphBuilder
from transfer_nas import spaces
from transfer_nas.errors import SpaceError
from transfer_nas.spaces import Choices, Gene, Space, from_function


def tower(choices: Choices) -> LayerGraph:
    """As many layers as chosen, each of a width of its own; dropout has a rate if there is any."""
    builder = GraphBuilder()
    edge = builder.input(choices.input_shapes[0])
    for i in range(choices.integer("layers", 1, 3)):
        width = choices.choose(f"units_{i}", [8, 16, 32])
        edge = builder.add(layers.dense(width, activation="relu"), edge)
    if choices.boolean("dropout"):
        edge = builder.add(layers.dropout(choices.choose("rate", [0.1, 0.2])), edge)
    head = layers.dense(choices.output_units, activation=choices.output_activation or "linear")
    return builder.build(builder.add(head, edge))


@pytest.fixture
def space() -> Space:
    return from_function(tower)([(4,)], 2, "softmax")


def test_every_question_becomes_a_gene(space: Space) -> None:
    assert space.name == "tower"
    assert set(space.genes) == {
        Gene("layers", (1, 2, 3)),
        Gene("units_0", (8, 16, 32)),
        Gene("units_1", (8, 16, 32)),
        Gene("units_2", (8, 16, 32)),
        Gene("dropout", (False, True)),
        Gene("rate", (0.1, 0.2)),
    }
    again = from_function(tower)([(4,)], 2, "softmax")
    assert again.genes == space.genes  # in the same order, in every process


def test_a_genome_says_what_is_built(space: Space) -> None:
    values = {"layers": 2, "units_0": 16, "units_1": 8, "units_2": 32, "dropout": True, "rate": 0.2}
    genome = tuple(gene.values.index(values[gene.name]) for gene in space.genes)
    graph = space.graph(genome)
    assert [layer.spec.class_name for layer in graph.layers] == [
        "InputLayer", "Dense", "Dense", "Dropout", "Dense",
    ]  # fmt: skip
    assert graph.parameters == 4 * 16 + 16 + 16 * 8 + 8 + 8 * 2 + 2


def test_each_mutation_changes_the_network(space: Space) -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        parent = space.sample(rng)
        child = space.mutate(parent, rng)
        assert sum(a != b for a, b in zip(parent, child, strict=True)) == 1
        assert space.graph(parent).names != space.graph(child).names


def test_a_mutation_of_a_gene_without_effect_changes_another(space: Space) -> None:
    position = [gene.name for gene in space.genes].index("units_2")
    shallow = tuple(0 for _ in space.genes)
    child = space.mutate(shallow, np.random.default_rng(0), position)
    assert child[position] == 0 and child != shallow


def test_it_is_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from graph_meta import layers\nfrom graph_meta.graph import GraphBuilder\n"
        "def small(choices):\n"
        "    builder = GraphBuilder()\n"
        "    edge = builder.input(choices.input_shapes[0])\n"
        "    return builder.build(builder.add(layers.dense(choices.choose('n', [1, 2])), edge))\n"
    )
    found = spaces.get(f"{tmp_path}/mine.py:small", [(3,)], 1)
    assert found.name == "small" and found.size == 2
    with pytest.raises(SpaceError, match=r"neither a subclass of .* nor a function"):
        spaces.find(f"{tmp_path}/mine.py:layers")


def one_layer(choices: Choices, name: str, values: Any) -> LayerGraph:
    builder = GraphBuilder()
    width = choices.choose(name, values)
    return builder.build(builder.add(layers.dense(width), builder.input((3,))))


def meets(choices: Choices) -> LayerGraph:
    """Ask for a third thing where two unrelated answers meet."""
    both = choices.boolean("a") & choices.boolean("b")
    return one_layer(choices, "c" if both else "d", (1, 2))


def changes(choices: Choices) -> LayerGraph:
    return one_layer(choices, "n", (1, 2) if choices.boolean("a") else (3, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (changes, r"choice 'n': has the values \[1, 2\] here and others elsewhere"),
        (lambda choices: one_layer(choices, "n", []), r"expected different values, found \[\]"),
        (lambda choices: one_layer(choices, "n", [1, 1]), r"expected different values, found \[1"),
        (
            lambda choices: choices.choose("n", [1]) or one_layer(choices, "n", [2]),
            "expected a LayerGraph or a Keras model, found int",
        ),
        (lambda choices: LayerGraph, "expected a LayerGraph or a Keras model, found type"),
    ],
)
def test_says_what_is_wrong_with_a_function(build: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        from_function(build)([(3,)], 1)


def test_says_that_a_choice_came_up_too_late() -> None:
    space = from_function(meets)([(3,)], 1)
    assert {gene.name for gene in space.genes} == {"a", "b", "d"}
    genome = tuple(1 if gene.name in "ab" else 0 for gene in space.genes)
    with pytest.raises(SpaceError, match=r"choice 'c' of \[1, 2\] comes up only where several"):
        space.graph(genome)


def test_says_that_nothing_is_chosen() -> None:
    builder = GraphBuilder()
    graph = builder.build(builder.add(layers.dense(2), builder.input((3,))))
    with pytest.raises(SpaceError, match="asked for no choice"):
        from_function(lambda choices: graph)([(3,)], 1)
    with pytest.raises(SpaceError, match="expected a function that builds a network, found 7"):
        from_function(7)  # type: ignore[arg-type]
