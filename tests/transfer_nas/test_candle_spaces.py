"""The spaces of the CANDLE problems: the benchmarks' own networks are among their genomes.

Numbers of parameters are those that the READMEs of ECP-CANDLE/Benchmarks print.
"""

import re

import numpy as np
import pytest

import cpp_store
from graph_meta import prefix
from graph_meta.graph import LayerGraph
from transfer_nas.applications import Application, Data
from transfer_nas.errors import SpaceError
from transfer_nas.job import Job
from transfer_nas.spaces import Attn, Combo, GeneSpace, Nt3, Scalar, Uno
from transfer_nas.trainer import TransferTrainer
from transfer_nas.transfer import StoreTransfer


def genome_of(space: GeneSpace, default: Scalar | None = None, **values: Scalar) -> tuple[int, ...]:
    """Return the genome with these values; `default` where none is given."""
    unknown = values.keys() - {gene.name for gene in space.genes}
    assert not unknown
    return tuple(gene.values.index(values.get(gene.name, default)) for gene in space.genes)


def classes(graph: LayerGraph) -> list[str]:
    return [layer.spec.class_name for layer in graph.layers]


def shared(graph: LayerGraph) -> list[int]:
    """Number of calls of each layer that is called more than once."""
    return [len(layer.calls) for layer in graph.layers if len(layer.calls) > 1]


# nt3


def test_nt3_holds_the_network_of_the_benchmark() -> None:
    space = Nt3(
        [(60483,)],
        2,
        "softmax",
        filters=(128,),
        kernel_sizes=(10, 20),
        pool_sizes=(10,),
        dense_units=(20, 200),
        padding="valid",
    )
    graph = space.graph(
        genome_of(
            space,
            **{"conv_0": "128x20", "activation_0": "relu", "pool_0": 0},
            **{"conv_1": "128x10", "activation_1": "relu", "pool_1": 10},
            **{"dense_0": 200, "dense_activation_0": "relu", "dropout_0": 0.1},
            **{"dense_1": 20, "dense_activation_1": "relu", "dropout_1": 0.1},
        )
    )
    assert graph.parameters == 154_922_918
    assert classes(graph) == [
        "InputLayer",
        "Reshape",
        *("Conv1D", "Activation", "Conv1D", "Activation", "MaxPooling1D"),
        "Flatten",
        *("Dense", "Activation", "Dropout", "Dense", "Activation", "Dropout"),
        "Dense",
    ]


def test_nt3_without_convolutions_is_a_dense_network() -> None:
    space = Nt3([(8, 8)], 10)
    assert classes(space.graph((0,) * len(space.genes))) == ["InputLayer", "Flatten", "Dense"]


def test_nt3_leaves_out_windows_that_are_longer_than_the_input() -> None:
    space = Nt3([(4, 3)], 1, filters=(8,))
    values = {gene.name: gene.values for gene in space.genes}
    assert values["conv_0"] == ("none", "8x3", "8x4")
    assert values["pool_0"] == (0, 2, 3, 4)


# uno

_UNO_INPUTS = {
    "dose1": (1,),
    "dose2": (1,),
    "cell.rnaseq": (942,),
    "drug1.descriptors": (5270,),
    "drug1.fingerprints": (2048,),
    "drug2.descriptors": (5270,),
    "drug2.fingerprints": (2048,),
}


@pytest.mark.parametrize(
    ("inputs", "parameters", "calls"),
    [
        (list(_UNO_INPUTS), 21_275_001, [2] * 6),
        (
            ["dose1", "cell.rnaseq", "drug1.descriptors", "drug1.fingerprints"],
            21_275_001 - (1 + 2 * 1000) * 1000,  # without the second drug's columns
            [],
        ),
    ],
)
def test_uno_holds_the_networks_of_the_benchmark(
    inputs: list[str], parameters: int, calls: list[int]
) -> None:
    space = Uno([_UNO_INPUTS[name] for name in inputs], 1)
    graph = space.graph(genome_of(space, "1000_relu"))
    assert graph.parameters == parameters
    assert shared(graph) == calls
    assert classes(graph).count("Dense") == 3 * 3 + 3 + 1


def test_uno_shares_the_tower_of_inputs_of_one_kind() -> None:
    kinds = ("cell", "drug", "drug", "dna")
    space = Uno([(6,), (9,), (9,), (9,)], 1, kinds=kinds, tower_nodes=2, units=(8,))
    graph = space.graph(genome_of(space, "none", tower_drug_0="8_relu", tower_drug_1="dropout_0.3"))
    assert [gene.name for gene in space.genes if gene.name.startswith("tower")] == [
        f"tower_{kind}_{node}" for kind in ("cell", "drug", "dna") for node in range(2)
    ]
    dense, dropout = graph.layers[4:6]
    assert classes(graph)[4:6] == ["Dense", "Dropout"]
    assert [call.inputs for call in dense.calls] == [((1, 0, 0),), ((2, 0, 0),)]
    assert [call.inputs for call in dropout.calls] == [((4, 0, 0),), ((4, 1, 0),)]


def test_uno_takes_inputs_of_equal_shape_as_one_kind_unless_told() -> None:
    shapes = [(1,), (4,), (6,), (4,)]
    assert Uno(shapes, 1).kinds == ("0", "1", "2", "1")
    assert shared(_all_dense(Uno(shapes, 1))) == [2, 2, 2]
    assert shared(_all_dense(Uno(shapes, 1, kinds=("a", "b", "c", "d")))) == []


def _all_dense(space: GeneSpace) -> LayerGraph:
    return space.graph((1,) * len(space.genes))


def test_uno_projects_a_residual_connection_only_where_widths_differ() -> None:
    space = Uno([(3,), (5,)], 1, tower_nodes=0, units=(8, 16), trunk_nodes=2)
    equal = space.graph(genome_of(space, trunk_0="8_relu", trunk_1="8_relu_residual"))
    other = space.graph(genome_of(space, trunk_0="8_relu", trunk_1="16_relu_residual"))
    assert classes(equal)[3:] == ["Dense", "Dense", "Add", "Dense"]
    assert classes(other)[3:] == ["Dense", "Dense", "Dense", "Add", "Dense"]


# combo


def test_combo_holds_the_network_of_the_benchmark() -> None:
    space = Combo([(942,), (3820,), (3820,)], 1, cells=1)
    graph = space.graph(genome_of(space, "1000_relu", cell_0_skip="none"))
    assert graph.parameters == 13_772_001
    assert shared(graph) == [2, 2, 2]


def test_combo_skips_reach_inputs_towers_and_earlier_cells() -> None:
    space = Combo([(12,), (9,), (9,)], 1, tower_nodes=1, cells=2, cell_nodes=1, units=(8,))
    skips = {gene.name: gene.values for gene in space.genes if gene.name.endswith("skip")}
    places = ("none", "inputs", "cell", "drug_1", "drug_2", "towers")
    assert skips == {"cell_0_skip": places, "cell_1_skip": (*places, "cell_0")}
    widths = {"none": 8, "inputs": 38, "cell": 20, "drug_1": 17, "drug_2": 17, "towers": 32}
    for place, width in {**widths, "cell_0": 16}.items():
        graph = space.graph(genome_of(space, "8_relu", cell_0_skip="none", cell_1_skip=place))
        assert graph.layers[-1].spec.weights[0].shape == (width, 1)


# attn


def test_attn_holds_the_network_of_the_benchmark() -> None:
    space = Attn(
        [(6212,)], 2, "softmax", units=(30, 60, 125, 250, 500, 1000), activations=("relu",)
    )
    trunk = {f"layer_{i}": f"{n}_relu" for i, n in enumerate((500, 250, 125, 60, 30))}
    graph = space.graph(
        genome_of(
            space,
            **{"normalization": "batch", "stem": "1000_relu", "bypass": "none"},
            **{"attention": 1000, "value": "relu", "gate": "softmax"},
            **trunk,
            **{f"dropout_{i}": 0.2 for i in range(5)},
        )
    )
    assert graph.parameters == 8_893_437
    block = classes(graph)[1:8]
    assert sorted(block) == sorted(
        ["Dense", "BatchNormalization"] * 2 + ["Dense", "Multiply", "Dense"]
    )
    assert classes(graph)[-4:] == ["Dense", "BatchNormalization", "Dropout", "Dense"]


@pytest.mark.parametrize(
    ("bypass", "width", "extra"),
    [("none", 4, []), ("add", 4, ["Dense", "Add"]), ("concatenate", 12, ["Concatenate"])],
)
def test_attn_bypasses_the_attention_block(bypass: str, width: int, extra: list[str]) -> None:
    space = Attn([(6,)], 1, units=(4, 8), trunk_nodes=0)
    graph = space.graph(
        genome_of(
            space,
            **{"normalization": "none", "stem": "8_relu", "attention": 4, "bypass": bypass},
            **{"value": "tanh", "gate": "sigmoid"},
        )
    )
    assert classes(graph) == ["InputLayer", "Dense", "Dense", "Dense", "Multiply", *extra, "Dense"]
    assert graph.layers[-1].spec.weights[0].shape == (width, 1)


# all


def test_default_widths_follow_the_size_of_the_data() -> None:
    def widths(space: GeneSpace, gene: str) -> set[int]:
        values = next(g.values for g in space.genes if g.name == gene)
        return {int(found[0]) for value in values if (found := re.match(r"[1-9]\d*", str(value)))}

    assert widths(Combo([(942,), (3820,), (3820,)], 1), "tower_cell_0") == {100, 500, 1000}
    assert widths(Combo([(40,), (30,), (30,)], 1), "tower_cell_0") == {10, 50, 100}
    assert widths(Uno([(1,), (3,)], 1), "tower_1_0") == {4}
    assert max(widths(Nt3([(8, 8)], 1), "dense_0")) == 64
    assert max(widths(Attn([(8, 8)], 1), "attention")) == 64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Nt3([(4, 4, 1)], 1), r"space nt3: expected one input of shape \(steps,\) or"),
        (lambda: Nt3([(9,), (9,)], 1), r"space nt3: expected one input .*, found \(9,\), \(9,\)$"),
        (lambda: Nt3([(2,)], 1), "space nt3: expected an input that is longer"),
        (lambda: Nt3([(20,)], 1, padding="valid"), "space nt3: .* choose padding='same'"),
        (lambda: Uno([(64,)], 1), r"space uno: expected at least two inputs .*, found \(64,\)$"),
        (lambda: Uno([(4,), (4,)], 1, kinds=("a",)), "space uno: expected one input for each"),
        (
            lambda: Uno([(4,), (5,)], 1, kinds=("a", "a")),
            "space uno: expected inputs of one shape for the kind 'a'",
        ),
        (lambda: Combo([(4,), (5,)], 1), "space combo: expected the features of a cell line"),
        (lambda: Combo([(4,), (5,), (6,)], 1), "space combo: .* all of one shape, found"),
        (lambda: Attn([(4,)], 1, units=()), "space attn: nothing to choose from"),
    ],
)
def test_inputs_that_do_not_fit_are_one_clear_line(make: object, message: str) -> None:
    with pytest.raises(SpaceError, match=message) as raised:
        make()  # type: ignore[operator]
    assert "\n" not in str(raised.value)


def test_options_that_are_no_genes_are_part_of_the_description() -> None:
    assert Uno([(4,), (4,)], 1).describe()["kinds"] == ["0", "0"]
    assert Nt3([(8,)], 1).describe()["padding"] == "same"


def test_a_late_mutation_keeps_the_layers_before_it() -> None:
    rng = np.random.default_rng(0)
    for space in (Nt3([(8, 8)], 10), Uno([(4,), (6,)], 1), Combo([(6,), (4,), (4,)], 1)):
        genome = space.sample(rng)
        child = (*genome[:-1], (genome[-1] + 1) % len(space.genes[-1].values))
        shared_names = set(space.graph(genome).names) & set(space.graph(child).names)
        assert len(shared_names) >= len(space.input_shapes) + 1


def responses() -> Data:
    """What two doses of drugs do to a cell line, made up."""
    rng = np.random.default_rng(3)
    cell, one, two = (rng.normal(size=(120, n)).astype(np.float32) for n in (6, 4, 4))
    growth = np.tanh(one[:, :1] + two[:, :1]) * cell[:, :1]
    x, y = (cell, one, two), growth.astype(np.float32)
    return Data(tuple(a[:90] for a in x), y[:90], tuple(a[90:] for a in x), y[90:])


def test_a_child_inherits_a_shared_tower() -> None:
    application = Application(
        name="responses",
        load=responses,
        input_shapes=[(6,), (4,), (4,)],
        output_units=1,
        loss="mse",
        metric="mse",
        mode="min",
        epochs=1,
    )
    space = Uno(application.input_shapes, 1, units=(8, 12), dropout_rates=())
    parent = genome_of(space, "8_relu")
    child = genome_of(space, "8_relu", trunk_2="12_relu")
    graph = space.graph(child)
    inherited = prefix(space.graph(parent), graph)
    assert shared(graph) == [2, 2, 2] and len(inherited) == len(graph) - 2

    with cpp_store.embedded(memory="16MiB") as store:
        trainer = TransferTrainer(application, space, StoreTransfer("responses", store))
        first = trainer.evaluate(Job(0, parent, seed=1))
        second = trainer.evaluate(Job(1, child, parent=0, seed=2))

    assert (first.status, second.status) == ("DONE", "DONE")
    assert second.measures["layers_transferred"] == len(inherited)
    new = sum(layer.spec.nbytes for layer in graph.layers[-2:])
    assert second.measures["bytes_stored"] == new
    assert second.measures["bytes_transferred"] == graph.nbytes - new
