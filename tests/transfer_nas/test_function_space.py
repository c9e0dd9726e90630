"""Spaces from functions: what they ask for becomes genes, whatever brings it up."""

from __future__ import annotations

import enum
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cpp_store
from graph_meta import GraphError, LayerGraph, keras_io, layers
from graph_meta.graph import GraphBuilder
from transfer_nas import spaces
from transfer_nas.algorithms.locality import gene_weights
from transfer_nas.applications import Application, Data
from transfer_nas.errors import SpaceError
from transfer_nas.job import Job
from transfer_nas.spaces import Choices, Gene, GeneSpace, from_function
from transfer_nas.trainer import TransferTrainer
from transfer_nas.training import ENGINES, engines
from transfer_nas.training.policy import Policy
from transfer_nas.transfer import StoreTransfer


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
def space() -> GeneSpace:
    return from_function(tower)([(4,)], 2, "softmax")


def test_every_question_becomes_a_gene(space: GeneSpace) -> None:
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


def test_a_genome_says_what_is_built(space: GeneSpace) -> None:
    values = {"layers": 2, "units_0": 16, "units_1": 8, "units_2": 32, "dropout": True, "rate": 0.2}
    genome = tuple(gene.values.index(values[gene.name]) for gene in space.genes)
    graph = space.graph(genome)
    assert [layer.spec.class_name for layer in graph.layers] == [
        "InputLayer", "Dense", "Dense", "Dropout", "Dense",
    ]  # fmt: skip
    assert graph.parameters == 4 * 16 + 16 + 16 * 8 + 8 + 8 * 2 + 2


def test_each_mutation_changes_the_network(space: GeneSpace) -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        parent = space.sample(rng)
        child = space.mutate(parent, rng)
        assert sum(a != b for a, b in zip(parent, child, strict=True)) == 1
        assert space.graph(parent).names != space.graph(child).names


def test_a_mutation_of_a_gene_without_effect_changes_another(space: GeneSpace) -> None:
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


def fragile(choices: Choices) -> LayerGraph:
    """Build nothing with the first width, nor with the last rate."""
    width = choices.choose("width", [0, 8, 16])
    if not width:
        raise RuntimeError("no layer has no units")
    builder = GraphBuilder()
    edge = builder.add(layers.dense(width), builder.input((3,)))
    if choices.choose("rate", [0.1, 0.2, 1.5]) > 1:
        raise ValueError("expected a rate below 1")
    return builder.build(edge)


def test_a_value_that_cannot_be_built_costs_its_candidates_and_no_others() -> None:
    space = from_function(fragile)([(3,)], 1)
    assert space.genes == (Gene("width", (0, 8, 16)), Gene("rate", (0.1, 0.2, 1.5)))
    assert len(space.graph((1, 0)).names) == 2
    with pytest.raises(RuntimeError, match="no units"):
        space.graph((0, 0))
    with pytest.raises(ValueError, match="a rate below 1"):
        space.graph((2, 2))
    # Who cannot be built can have children; and genes are weighed without them.
    assert space.mutate((0, 2), np.random.default_rng(0)) != (0, 2)
    assert gene_weights(space, 2.0).sum() == pytest.approx(1.0)


def test_a_function_runs_in_one_thread_at_a_time() -> None:
    running = threading.Lock()

    def alone(choices: Choices) -> LayerGraph:
        assert running.acquire(blocking=False), "another thread is in here"
        try:
            time.sleep(1e-4)  # lets another thread run
            return one_layer(choices, "n", range(1, 40))
        finally:
            running.release()

    space = from_function(alone)([(3,)], 1)
    with ThreadPoolExecutor(2) as threads:
        graphs = list(threads.map(lambda n: space.graph((n % 39,)), range(78)))
    assert [graph.parameters for graph in graphs[:39]] == [4 * n for n in range(1, 40)]


def test_a_function_that_builds_nothing_says_why() -> None:
    def broken(choices: Choices) -> LayerGraph:
        raise KeyError(choices.choose("key", ["a", "b"]))

    with pytest.raises(SpaceError, match=r"broken: the function builds no network.*KeyError: 'a'"):
        from_function(broken)([(3,)], 1)


class Size(enum.IntEnum):
    SMALL = 4


def test_values_become_those_of_python() -> None:
    given: list[Any] = [
        np.int64(8),
        np.float32(0.5),
        np.bool_(True),
        np.str_("x"),
        Size.SMALL,
        None,
    ]
    chosen = []

    def build(choices: Choices) -> LayerGraph:
        chosen.append(choices.choose("v", given))
        return one_layer(choices, "n", np.array([2, 3]))

    space = from_function(build)([(3,)], 1)
    assert space.genes == (Gene("v", (8, 0.5, True, "x", 4, None)), Gene("n", (2, 3)))
    types = [int, float, bool, str, int, type(None)]
    assert [type(value) for value in space.genes[0].values] == types
    assert [type(value) for value in chosen[:6]] == types
    json.dumps(space.describe())


@pytest.mark.parametrize("value", [(3, 3), float("nan"), {"a": 1}, 1j, "\ud800", [1]])
def test_values_that_cannot_be_written_down_are_refused(value: Any) -> None:
    with pytest.raises(SpaceError, match=r"gene '?n"):
        from_function(lambda choices: one_layer(choices, "n", [1, value]))([(3,)], 1)


@pytest.mark.parametrize("name", [None, 3, ["width"]])
def test_names_of_genes_are_texts(name: Any) -> None:
    message = f"gene {re.escape(repr(name))}: expected a text as its name"
    with pytest.raises(SpaceError, match=message):
        Gene(name, (4, 8))
    with pytest.raises(SpaceError, match=message):
        from_function(lambda choices: one_layer(choices, name, [4, 8]))([(3,)], 1)


@pytest.mark.parametrize("kind", [set, frozenset])
def test_values_without_an_order_are_refused(kind: Any) -> None:
    message = rf"values of {{}} 'width' are a {kind.__name__}, .* give a list or tuple"
    with pytest.raises(SpaceError, match=message.format("gene")):
        Gene("width", kind(["a", "b"]))
    with pytest.raises(SpaceError, match=message.format("choice")):
        from_function(lambda c: one_layer(c, "n", [c.choose("width", kind([4, 8]))]))([(3,)], 1)
    space = from_function(lambda c: one_layer(c, "width", {4: 0, 8: 0}.keys()))([(3,)], 1)
    assert space.genes == (Gene("width", (4, 8)),)


def test_a_boolean_is_not_the_number_that_equals_it() -> None:
    def build(choices: Choices) -> LayerGraph:
        return one_layer(choices, "n", (1, 2) if choices.boolean("a") else (True, 2))

    with pytest.raises(SpaceError, match=r"choice 'n': has the values"):
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


RNG = np.random.default_rng(3)
W = RNG.normal(size=(6, 8)).astype(np.float32)


def pretrained(choices: Choices) -> Any:
    """A first layer that was loaded, or not, and frozen, or not."""
    import keras

    first = keras.layers.Dense(8, activation="relu", use_bias=choices.boolean("bias"))
    given = keras.Input((6,))
    edge = keras.layers.Dense(choices.choose("width", [8, 12]), activation="relu")(first(given))
    if choices.boolean("loaded"):
        first.set_weights([W, *([np.ones(8)] if choices.boolean("bias") else [])])
    first.trainable = not choices.boolean("frozen")
    return keras.Model(given, keras.layers.Dense(3, activation="softmax")(edge))


def loaded(width: int, *, loaded: bool = True, frozen: bool = False) -> tuple[int, ...]:
    return SPACE.genome(bias=0, width=width, loaded=int(loaded), frozen=int(frozen))


class _Pretrained(from_function(pretrained)):  # type: ignore[misc]
    def genome(self, **values: int) -> tuple[int, ...]:
        return tuple(values[gene.name] for gene in self.genes)


SPACE = _Pretrained([(6,)], 3, "softmax")


def clusters() -> Data:
    rng = np.random.default_rng(7)
    labels = rng.integers(3, size=96).astype(np.int32)
    x = (rng.normal(size=(3, 6))[labels] + rng.normal(size=(96, 6))).astype(np.float32)
    return Data(x[:64], labels[:64], x[64:], labels[64:])


APPLICATION = Application(
    name="clusters",
    load=clusters,
    input_shapes=6,
    output_units=3,
    output_activation="softmax",
    loss="sparse_categorical_crossentropy",
    metric="accuracy",
    epochs=2,
)


def first_layer(trainer: TransferTrainer, path: Path) -> tuple[np.ndarray, bool]:
    """Return the first kernel of the last model, and whether it trains, as plain Keras has it."""
    import keras

    trainer.save_model(path)
    layer = next(layer for layer in keras.saving.load_model(path).layers if layer.weights)
    return layer.get_weights()[0], layer.trainable


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("policy", ["freeze", "finetune"])
def test_what_is_loaded_and_frozen_stays_so_in_heirs(
    engine: str, policy: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.keras"
    with cpp_store.embedded(memory="64MiB") as store:
        method = StoreTransfer("clusters", store)
        trains = TransferTrainer(APPLICATION, SPACE, method, engine=engine, policy=policy)

        def first_of(id: int, genome: tuple[int, ...], parent: int | None) -> tuple[Any, bool, Any]:
            evaluation = trains.evaluate(Job(id, genome, parent, seed=id))
            assert evaluation.done, evaluation.measures
            return *first_layer(trains, path), evaluation.measures

        random, trainable, _ = first_of(0, loaded(0, loaded=False, frozen=True), None)
        assert not trainable and not np.array_equal(random, W)
        # A random one of the same configuration is no ancestor of one that was loaded.
        kernel, trainable, measures = first_of(1, loaded(0, frozen=True), 0)
        assert np.array_equal(kernel, W) and not trainable
        assert measures["layers_transferred"] == 0
        kernel, trainable, measures = first_of(2, loaded(1, frozen=True), 1)
        assert np.array_equal(kernel, W) and not trainable
        assert measures["layers_transferred"] == 2 and measures["bytes_stored"] < W.nbytes * 5
        kernel, trainable, _ = first_of(3, loaded(0), 2)
        assert trainable and not np.array_equal(kernel, W)
        assert np.abs(kernel - W).max() < 0.1  # two epochs from there


def test_models_of_a_space_start_from_what_its_function_loads() -> None:
    genome = loaded(0, frozen=True)
    graph, model = SPACE.graph(genome), SPACE.build(genome)
    assert keras_io.from_keras(model) == graph == LayerGraph.from_json(graph.to_json())
    layer = model.get_layer(graph.names[1])
    assert np.array_equal(layer.get_weights()[0], W) and not layer.trainable
    names = {SPACE.graph(loaded(0, loaded=a, frozen=b)).names[1] for a in (0, 1) for b in (0, 1)}
    assert len(names) == 4


def shared_layer() -> Any:
    import keras

    layer = keras.layers.Dense(4)
    layer.build((None, 6))
    layer.kernel.assign(W[:, :4])
    return layer


SHARED: list[Any] = []
BUILDERS: dict[str, tuple[Callable[[Any], Any], list[bool]]] = {
    "nothing": (lambda k: k.layers.Dense(4), []),
    "a seed": (lambda k: k.layers.Dense(4, kernel_initializer=k.initializers.HeNormal(3)), []),
    "a generator": (
        lambda k: k.layers.Dense(
            4, kernel_initializer=k.initializers.HeNormal(k.random.SeedGenerator())
        ),
        [],
    ),
    "a constant": (lambda k: k.layers.Dense(4, kernel_initializer="ones"), []),
    "recurrent": (lambda k: k.Sequential([k.layers.Reshape((3, 2)), k.layers.LSTM(4)]), []),
    "several": (lambda k: k.layers.TimeDistributed(k.layers.Dense(4)), []),
    "a loaded layer from outside": (lambda k: SHARED[0], [True, False]),
    "a bias": (lambda k: k.layers.Dense(4), [False, True]),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_what_a_function_loads_is_told_from_new_weights(name: str) -> None:
    import keras

    SHARED[:] = [shared_layer()]
    make, expected = BUILDERS[name]

    def build(choices: Choices) -> Any:
        choices.boolean("some")
        given = keras.Input((3, 2) if name == "several" else (6,))
        layer = make(keras)
        model = keras.Model(given, layer(given))
        if name == "a bias":
            layer.bias.assign([1.0, 2.0, 3.0, 4.0])
        return model

    graph = from_function(build)([(6,)], 3).graph((0,))
    assert [digest is not None for digest in graph.layers[-1].spec.given] == expected
    assert graph == from_function(build)([(6,)], 3).graph((0,))


def test_a_function_that_loads_something_else_each_time_says_so() -> None:
    import keras

    count = itertools.count()

    def build(choices: Choices) -> Any:
        choices.boolean("some")
        layer = keras.layers.Dense(2, use_bias=False)
        given = keras.Input((3,))
        model = keras.Model(given, layer(given))
        layer.set_weights([np.full((3, 2), next(count) // 6)])
        return model

    space = from_function(build)([(3,)], 2)
    space.graph((1,))
    with pytest.raises(SpaceError, match="loads other weights into layer dense"):
        for _ in range(6):
            space.start((1,))


def in_part(choices: Choices) -> Any:
    """A network with parts inside layers that are loaded and frozen, as the answers say."""
    import keras

    given = keras.Input((6,))
    first = keras.layers.Dense(8, activation="relu")
    attention = keras.layers.MultiHeadAttention(2, 2)
    edge = keras.layers.Reshape((2, 4))(first(given))
    edge = keras.layers.Flatten()(attention(edge, edge))
    if choices.boolean("weight"):
        first.kernel.assign(W)
        first.kernel.trainable = False
    if choices.boolean("layer"):
        inside = attention._query_dense
        inside.set_weights([np.full(w.shape, 0.25) for w in inside.weights])
        inside.trainable = False
    if choices.boolean("mixed"):
        attention.trainable = False
        attention._key_dense.trainable = True
    edge = keras.layers.Dense(choices.choose("width", [8, 12]), activation="relu")(edge)
    return keras.Model(given, keras.layers.Dense(3, activation="softmax")(edge))


def parts_of(values: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(values.get(gene.name, 0)) for gene in IN_PART.genes)


IN_PART = from_function(in_part)([(6,)], 3, "softmax")


def test_parts_of_layers_that_are_frozen_are_other_layers() -> None:
    graphs = [
        IN_PART.graph(parts_of({"weight": weight, "layer": layer}))
        for weight in (0, 1)
        for layer in (0, 1)
    ]
    assert len({graph.names[1] for graph in graphs}) == 2
    assert len({graph.names[3] for graph in graphs}) == 4
    assert all(graph == LayerGraph.from_json(graph.to_json()) for graph in graphs)
    assert not any(layer.spec.frozen for graph in graphs for layer in graph.layers)
    assert graphs[3].layers[1].spec.frozen_parts == {"weights": [0]}
    assert keras_io.from_keras(IN_PART.build(parts_of({"weight": 1, "layer": 1}))) == graphs[3]
    with pytest.raises(GraphError, match=r"MultiHeadAttention\): it is frozen and some of its"):
        IN_PART.graph(parts_of({"mixed": 1}))


@pytest.mark.parametrize("policy", [Policy("freeze"), Policy("finetune", shrink_perturb=0.5)])
def test_frozen_parts_of_layers_stay_so_in_heirs(policy: Policy) -> None:
    genomes = [parts_of({"weight": 1, "layer": 1, "width": width}) for width in (0, 1)]
    first, attention = (IN_PART.graph(genomes[0]).names[i] for i in (1, 3))
    with cpp_store.embedded(memory="64MiB") as store:
        method = StoreTransfer("parts", store)
        trains = TransferTrainer(APPLICATION, IN_PART, method, engine="keras", policy=policy)
        for id, parent in ((0, None), (1, 0)):
            evaluation = trains.evaluate(Job(id, genomes[id], parent, seed=id))
            assert evaluation.done, evaluation.measures
            assert evaluation.measures["layers_transferred"] == (0 if parent is None else 5)
            tensors = trains._last.tensors([first, attention])
            assert np.array_equal(tensors[first][0], W)
            assert tensors[first][1].any()  # the bias trains
            assert all((array == 0.25).all() for array in tensors[attention][:2])
            assert tensors[attention][3].any()


def test_the_numpy_engine_leaves_layers_that_are_frozen_in_part_to_keras() -> None:
    import keras

    def build(choices: Choices) -> Any:
        given = keras.Input((6,))
        layer = keras.layers.Dense(8)
        edge = layer(given)
        layer.kernel.trainable = not choices.boolean("frozen")
        return keras.Model(given, keras.layers.Dense(3, activation="softmax")(edge))

    space = from_function(build)([(6,)], 3, "softmax")
    engine = next(e for e in engines(APPLICATION, 32, 1, "auto") if e.name == "numpy")
    assert engine.obstacle(space.graph((0,))) is None
    assert "a layer Dense of this configuration" in (engine.obstacle(space.graph((1,))) or "")
