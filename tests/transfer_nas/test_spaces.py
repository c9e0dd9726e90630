"""The conformance suite of search spaces: every registered space must pass it.

A new space goes into `VARIANTS`; a space that is registered but not listed fails the suite.
"""

import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from graph_meta import LayerGraph, layers
from graph_meta.graph import GraphBuilder
from transfer_nas import spaces
from transfer_nas.errors import SpaceError
from transfer_nas.spaces import (
    Attn,
    CellCnn,
    Choices,
    Combo,
    DenseSkip,
    FeedForward,
    GeneSpace,
    Nt3,
    SeriesCnn,
    Uno,
    _function,
    from_function,
)
from transfer_nas.testing import check_space


def two_layers(choices: Choices) -> LayerGraph:
    builder = GraphBuilder()
    edge = builder.add(layers.flatten(), builder.input(choices.input_shapes[0]))
    for i in range(2):
        activation = choices.choose(f"activation_{i}", ["relu", "tanh"])
        units = choices.choose(f"units_{i}", [4, 8, 16])
        edge = builder.add(layers.dense(units, activation=activation), edge)
    return builder.build(builder.add(layers.dense(choices.output_units), edge))


FUNCTION = from_function(two_layers)

VARIANTS: dict[str, GeneSpace] = {
    "feed_forward": FeedForward([(8, 8)], 10, "softmax"),
    "feed_forward, two inputs": FeedForward([(5,), (2, 3)], 1, max_depth=3, units=(4, 8)),
    "dense_skip": DenseSkip([(8, 8)], 10, "softmax"),
    "dense_skip, two inputs": DenseSkip([(5,), (2, 3)], 1, nodes=5, units=(4, 8), max_skips=2),
    "dense_skip, twins": DenseSkip([(4,)], 2, nodes=4, units=(4, 5), activations=("linear",)),
    "nt3": Nt3([(8, 8)], 10, "softmax"),
    "nt3, a vector": Nt3([(60,)], 2, "softmax", conv_blocks=3, pool_sizes=(2,), padding="valid"),
    "uno": Uno([(1,), (12,), (9,), (7,), (9,), (7,)], 1),
    "uno, named kinds": Uno([(4,), (2, 2), (4,)], 2, kinds=("a", "b", "a"), tower_nodes=2),
    "combo": Combo([(12,), (9,), (9,)], 1),
    "combo, twins": Combo([(2, 2), (2, 2), (2, 2), (2, 2)], 1, cells=2, activations=("relu",)),
    "attn": Attn([(8, 8)], 10, "softmax"),
    "attn, two inputs": Attn([(5,), (2, 3)], 1, units=(4, 8), trunk_nodes=2),
    "function": FUNCTION([(8, 8)], 10),
    "cell_cnn": CellCnn([(8, 8)], 10, "softmax"),
    "cell_cnn, colours": CellCnn([(4, 6, 3)], 2, "softmax", depths=(4, 5), sizes=(8, 12)),
    "cell_cnn, large": CellCnn([(24, 28)], 10, "softmax"),
    "series_cnn": SeriesCnn([(40,)], 10, "softmax"),
    "series_cnn, channels": SeriesCnn([(25, 3)], 2, "softmax", depths=(8, 9)),
}


@pytest.fixture(params=VARIANTS, ids=lambda name: name.replace(", ", "-"))
def space(request: pytest.FixtureRequest) -> GeneSpace:
    return VARIANTS[request.param]


def genomes(space: GeneSpace, count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Both extremes, and random genomes."""
    rng = np.random.default_rng(seed)
    lowest = tuple(0 for _ in space.genes)
    highest = tuple(len(gene.values) - 1 for gene in space.genes)
    return [lowest, highest, *(space.sample(rng) for _ in range(count))]


def test_every_registered_space_is_tested() -> None:
    assert {type(space) for space in VARIANTS.values()} == {FUNCTION, *spaces.REGISTRY.values()}


def test_genes_have_unique_names_and_distinct_values(space: GeneSpace) -> None:
    names = [gene.name for gene in space.genes]
    assert len(set(names)) == len(names)
    for gene in space.genes:
        assert len(set(gene.values)) == len(gene.values) >= 1


def test_size_counts_the_genomes(space: GeneSpace) -> None:
    size = 1
    for gene in space.genes:
        size *= len(gene.values)
    assert space.size == size and isinstance(space.size, int)


def test_size_is_the_number_of_distinct_genomes() -> None:
    space = FeedForward([(2,)], 1, max_depth=2, units=(3,), activations=("relu",))
    rng = np.random.default_rng(0)
    assert len({space.sample(rng) for _ in range(2000)}) == space.size == 36


def test_samples_are_reproducible_and_cover_every_value(space: GeneSpace) -> None:
    first = [space.sample(np.random.default_rng(5)) for _ in range(2)]
    assert first[0] == first[1]
    rng = np.random.default_rng(0)
    samples = [space.sample(rng) for _ in range(600)]
    for position, gene in enumerate(space.genes):
        assert {genome[position] for genome in samples} == set(range(len(gene.values)))


def test_a_mutation_gives_one_gene_another_value(space: GeneSpace) -> None:
    rng = np.random.default_rng(1)
    mutated = set()
    for genome in genomes(space, 30):
        for _ in range(20):
            child = space.mutate(genome, rng)
            space.check(child)
            changed = [i for i, (a, b) in enumerate(zip(genome, child, strict=True)) if a != b]
            assert len(changed) == 1
            mutated.update(changed)
    assert mutated == {i for i, gene in enumerate(space.genes) if len(gene.values) > 1}


def test_a_mutation_changes_the_architecture(space: GeneSpace) -> None:
    rng = np.random.default_rng(2)
    for genome in genomes(space, 100):
        child = space.mutate(genome, rng)
        before, after = space.graph(genome), space.graph(child)
        assert before.names != after.names


def test_each_value_of_each_gene_is_another_architecture(space: GeneSpace) -> None:
    for genome in genomes(space, 2, seed=9):
        for position, gene in enumerate(space.genes):
            architectures = {
                frozenset(space.graph((*genome[:position], value, *genome[position + 1 :])).names)
                for value in range(len(gene.values))
            }
            assert len(architectures) == len(gene.values), gene.name


def test_values_name_what_each_gene_chooses(space: GeneSpace) -> None:
    for genome in genomes(space, 10):
        values = space.values(genome)
        assert list(values) == [gene.name for gene in space.genes]
        for gene, choice in zip(space.genes, genome, strict=True):
            assert values[gene.name] == gene.values[choice]


def test_refuses_genomes_that_are_not_its_own(space: GeneSpace) -> None:
    genome = genomes(space, 1)[-1]
    with pytest.raises(SpaceError, match="expected a genome of"):
        space.graph(genome[:-1])
    for wrong in (-1, len(space.genes[0].values)):
        with pytest.raises(SpaceError, match=space.genes[0].name):
            space.graph((wrong, *genome[1:]))


def test_a_graph_is_a_function_of_the_genome(space: GeneSpace) -> None:
    for genome in genomes(space, 10):
        assert space.graph(genome) == space.graph(genome)


def test_a_search_can_rely_on_it(space: GeneSpace) -> None:
    check_space(space)


def test_a_genome_comes_back_from_json_and_nothing_else_does(space: GeneSpace) -> None:
    for genome in genomes(space, 3):
        assert space.from_json([*genome]) == genome
        for wrong in (genome, [*genome, 0], [True, *genome[1:]], [0.0, *genome[1:]], None, "0"):
            with pytest.raises(SpaceError) as raised:
                space.from_json(wrong)
            assert "\n" not in str(raised.value)


def test_several_threads_may_use_a_space(space: GeneSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0's manager mutates while its worker builds: nobody may notice the other."""
    monkeypatch.setattr(_function, "_BUILT", 3)  # what is remembered shall be forgotten, too
    rng = np.random.default_rng(7)
    parents = [space.sample(rng) for _ in range(40)]
    expected = [(space.mutate(p, np.random.default_rng(0)), space.graph(p)) for p in parents]
    barrier = threading.Barrier(3)

    def use(turn: int) -> None:
        barrier.wait()
        for _ in range(3):
            for parent, (child, graph) in zip(parents[turn:], expected[turn:], strict=True):
                assert space.mutate(parent, np.random.default_rng(0)) == child
                assert space.graph(parent) == graph

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as threads:
            for done in [threads.submit(use, turn) for turn in range(3)]:
                done.result(60)
    finally:
        sys.setswitchinterval(before)


def test_graph_and_keras_model_are_the_same_network(space: GeneSpace) -> None:
    from graph_meta import keras_io

    for genome in genomes(space, 5, seed=3):
        graph, model = space.graph(genome), space.build(genome)
        found = keras_io.from_keras(model)
        assert sorted(graph.names) == sorted(found.names)
        assert graph.nbytes == found.nbytes == sum(math.prod(w.shape) * 4 for w in model.weights)
        shapes = {
            name: [weight.shape for weight in layer.spec.weights]
            for name, layer in zip(graph.names, graph.layers, strict=True)
        }
        assert shapes == {
            layer.name: [tuple(weight.shape) for weight in layer.weights] for layer in model.layers
        }
        assert [tuple(i.shape[1:]) for i in model.inputs] == list(space.input_shapes)
        assert tuple(model.output.shape[1:]) == (space.output_units,)


def test_every_space_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "spaces.md").read_text()
    for name in spaces.REGISTRY:
        assert f"| `{name}` |" in text


@pytest.mark.parametrize("name", spaces.REGISTRY)
def test_every_space_has_an_example(name: str) -> None:
    space = spaces.find(name).example()
    rng = np.random.default_rng(4)
    for _ in range(5):
        graph = space.graph(space.sample(rng))
        assert len(graph.inputs) == len(space.input_shapes)
        assert len(set(graph.names)) == len(graph)


def test_unknown_names_suggest_near_misses() -> None:
    with pytest.raises(SpaceError, match="did you mean 'dense_skip'"):
        spaces.find("denseskip")
    with pytest.raises(
        SpaceError,
        match="Known: attn, cell_cnn, combo, dense_skip, feed_forward, nt3, series_cnn, uno",
    ):
        spaces.find("resnet50")


def test_ones_own_space_is_found_by_module_and_attribute() -> None:
    assert spaces.find("transfer_nas.spaces.dense_skip:DenseSkip") is DenseSkip
    with pytest.raises(SpaceError, match="neither a subclass"):
        spaces.find("transfer_nas.spaces:REGISTRY")
    with pytest.raises(SpaceError, match=r"did you mean 'DenseSkip'\? Known: DenseSkip$"):
        spaces.find("transfer_nas.spaces.dense_skip:DenseSkp")


@pytest.mark.parametrize(("shapes", "units"), [([], 1), ([(0,)], 1), ([(4,)], 0)])
def test_refuses_shapes_that_make_no_sense(shapes: list[tuple[int, ...]], units: int) -> None:
    with pytest.raises(SpaceError):
        FeedForward(shapes, units)
