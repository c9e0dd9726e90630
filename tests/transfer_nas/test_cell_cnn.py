"""The macro specification of convolutional networks: what is derived from a genome."""

import itertools
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import transfer_nas
from transfer_nas.errors import SpaceError
from transfer_nas.spaces import (
    REGISTRY,
    CellCnn,
    Choices,
    GeneSpace,
    Scalar,
    SeriesCnn,
    from_function,
    with_initializer,
)
from transfer_nas.spaces.cell_cnn import MIN_WIDTH, level_types, level_widths

SHAPES = ("rectangle", "trapezoid", "grow", "exponential")


def genome_of(space: CellCnn, **values: Scalar) -> tuple[int, ...]:
    """Return the genome with these values; the first choice where none is given."""
    return tuple(
        gene.values.index(values[gene.name]) if gene.name in values else 0 for gene in space.genes
    )


@pytest.mark.parametrize(
    ("depth", "downsamples", "expected"),
    [
        (4, 1, "s c d c"),
        (6, 1, "s cc d cc"),
        (7, 1, "s cc d ccc"),
        (6, 2, "s c d c d c"),
        (8, 2, "s c d cc d cc"),
        (9, 2, "s cc d cc d cc"),
        (13, 3, "s cc d cc d cc d ccc"),
    ],
)
def test_downsamples_are_evenly_spread(depth: int, downsamples: int, expected: str) -> None:
    types = level_types(depth, downsamples)
    assert "".join(kind[0] for kind in types) == expected.replace(" ", "")
    assert len(types) == depth


def test_widths_follow_the_shape() -> None:
    types = level_types(8, 2)
    assert level_widths(types, "rectangle", 16) == (16,) * 8
    assert level_widths(types, "trapezoid", 16) == (16, 15, 14, 13, 11, 10, 9, 8)
    assert level_widths(types, "grow", 16) == (16, 16, 32, 32, 32, 64, 64, 64)
    assert level_widths(types, "exponential", 64) == (64, 53, 43, 35, 29, 24, 20, 16)
    assert min(level_widths(types, "exponential", 8)) == MIN_WIDTH


def test_no_shape_is_another_whatever_the_depth_and_the_size() -> None:
    for downsamples, size in itertools.product(range(1, 6), (8, 9, 16, 33)):
        for depth in range(2 * downsamples + 2, 2 * downsamples + 12):
            types = level_types(depth, downsamples)
            assert len({level_widths(types, shape, size) for shape in SHAPES}) == 4  # type: ignore[arg-type]


def test_a_plan_says_what_the_network_is() -> None:
    space = CellCnn([(16, 16, 3)], 10, "softmax", depths=(8,), cells=("residual",))
    plan = space.plan(
        genome_of(
            space,
            **{"downsamples": 2, "shape": "grow", "size": 8, "downsample": "strided"},
            **{"dense_0": 32, "dense_1": 0},
        )
    )
    assert (plan.levels, plan.cells, plan.downsamples) == (8, 5, 2)
    assert plan.widths == (8, 8, 16, 16, 16, 32, 32, 32)
    assert plan.dense == (32,)
    # Input, stem, 5 cells of (2 convolutions, sum, activation), 2 downsamples, pooling, 2 dense.
    assert plan.layers == 1 + 1 + 5 * 4 + 2 + 1 + 2

    def convolution(inputs: int, width: int) -> int:
        return (9 * inputs + 1) * width

    assert plan.parameters == (
        convolution(3, 8)
        + 2 * convolution(8, 8)
        + convolution(8, 16)
        + 4 * convolution(16, 16)
        + convolution(16, 32)
        + 4 * convolution(32, 32)
        + 33 * 32
        + 33 * 10
    )
    assert str(plan) == (
        "residual cells, strided downsampling, grow of 8\n"
        "level types: stem cell downsample cell cell downsample cell cell\n"
        "widths: 8 8 16 16 16 32 32 32\n"
        "dense: 32\n"
        f"totals: 27 layers, 5 cells, 8 levels, 2 downsamples, {plan.parameters:,} parameters"
    )


def test_the_plan_in_the_documentation_is_the_plan() -> None:
    text = (Path(__file__).parents[2] / "docs" / "spaces.md").read_text()
    plan = CellCnn([(8, 8)], 10, "softmax").plan((3, 2, 1, 0, 2, 1, 1, 0, 0, 2, 0))
    assert str(plan) in text


@pytest.mark.parametrize(
    ("cell", "layers"),
    [
        ("conv3", {"Conv2D": 1}),
        ("conv5", {"Conv2D": 1}),
        ("separable", {"SeparableConv2D": 1}),
        ("residual", {"Conv2D": 2, "Add": 1, "Activation": 1}),
        ("bottleneck", {"Conv2D": 3, "Add": 1, "Activation": 1}),
        ("inverted", {"Conv2D": 2, "DepthwiseConv2D": 1, "Add": 1}),
        ("inception", {"Conv2D": 4, "MaxPooling2D": 1, "Concatenate": 1}),
    ],
)
def test_cells_of_each_type(cell: str, layers: dict[str, int]) -> None:
    space = CellCnn([(8, 8, 1)], 2, depths=(6, 7), sizes=(8,), shapes=("rectangle",))
    short, long = (
        Counter(
            layer.spec.class_name
            for layer in space.graph(genome_of(space, cell=cell, depth=depth)).layers
        )
        for depth in (6, 7)
    )
    assert long - short == Counter(layers)


def test_a_residual_cell_projects_where_the_width_changes() -> None:
    space = CellCnn([(8, 8, 1)], 2, cells=("residual",), depths=(6,))
    projections = {
        shape: [
            layer.spec.weights[0].shape
            for layer in space.graph(genome_of(space, shape=shape, size=16)).layers
            if layer.spec.config.get("kernel_size") == [1, 1]
        ]
        for shape in ("rectangle", "trapezoid")
    }
    # Max pooling is followed by a 1x1 convolution too.
    assert len(projections["rectangle"]) == 1
    assert (1, 1, 16, 14) in projections["trapezoid"]


def test_images_are_not_halved_to_nothing() -> None:
    def most(shape: tuple[int, ...], **options: int) -> Scalar:
        space = CellCnn([shape], 2, **options)
        return next(gene.values[-1] for gene in space.genes if gene.name == "downsamples")

    assert most((4, 9)) == 1
    assert most((8, 8)) == 2
    assert most((32, 32, 3)) == 3
    assert most((16, 16, 3), max_downsamples=9) == 3
    assert most((32, 32, 3), max_downsamples=9) == 3  # the stem is the fourth
    for downsample in ("max_pooling", "strided"):
        space = CellCnn([(9, 9, 3)], 2, downsampling=(downsample,))
        assert space.plan(genome_of(space, downsamples=2)).downsamples == 2


def test_a_deeper_network_keeps_the_levels_before_the_new_one() -> None:
    space = CellCnn([(8, 8)], 10, depths=(6, 7))
    genome = genome_of(space, cell="conv3", depth=6)
    deeper = genome_of(space, cell="conv3", depth=7)
    before, after = space.graph(genome).names, space.graph(deeper).names
    assert len(set(before) & set(after)) == len(before) - 2  # all but pooling and output


def test_plans_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    space = CellCnn([(8, 8)], 10)
    genome = genome_of(space)
    with caplog.at_level(logging.INFO, logger="transfer_nas.spaces.cell_cnn"):
        space.graph(genome)
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, logger="transfer_nas.spaces.cell_cnn"):
        space.graph(genome)
    (record,) = caplog.records
    text = record.getMessage()
    for part in ("level types: stem cell", "widths: 8 8", "totals:", "levels", "1 downsamples"):
        assert part in text


@pytest.mark.parametrize("shapes", [[(64,)], [(3, 8)], [(8, 8), (8, 8)], [(8, 8, 1, 1)]])
def test_takes_one_image(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(SpaceError, match=r"space cell_cnn: expected one image .*, found \("):
        CellCnn(shapes, 2)


def test_options_that_make_no_sense_are_clear_errors() -> None:
    with pytest.raises(SpaceError, match="unknown cell 'residul'; did you mean 'residual'"):
        CellCnn([(8, 8)], 2, cells=("residul",))
    with pytest.raises(SpaceError, match="2 downsamples need a depth of 6 levels or more, found 5"):
        CellCnn([(8, 8)], 2, depths=(5, 9))
    with pytest.raises(SpaceError, match="sizes must be at least 8, found 4"):
        CellCnn([(8, 8)], 2, sizes=(16, 4))


def test_the_stem_halves_large_images_and_long_series() -> None:
    def strides(space: CellCnn) -> list[int]:
        stem = next(
            x.spec for x in space.graph(genome_of(space)).layers if "strides" in x.spec.config
        )
        return list(stem.config["strides"])

    assert strides(CellCnn([(23, 28)], 2)) == [1, 1]
    assert strides(CellCnn([(24, 28)], 2)) == [2, 2]
    assert strides(SeriesCnn([(255, 3)], 2)) == [1]
    assert strides(SeriesCnn([(256, 3)], 2)) == [2]


def test_a_search_begins_with_cheap_networks_and_may_come_to_any() -> None:
    space = CellCnn([(28, 28)], 10, "softmax")
    rng = np.random.default_rng(0)
    uniform = [GeneSpace.sample(space, rng) for _ in range(60)]
    sampled = [space.sample(rng) for _ in range(60)]

    flops = [
        np.median([space.graph(genome).flops for genome in some]) for some in (uniform, sampled)
    ]

    assert flops[1] < flops[0] / 2
    assert len(set(sampled)) > 50
    costly = max(uniform, key=lambda genome: space.graph(genome).flops)
    assert space.mutate(costly, rng) != costly


def test_series_have_layers_of_one_axis_and_refuse_what_is_no_series() -> None:
    space = SeriesCnn([(40,)], 10, "softmax")
    rng = np.random.default_rng(1)
    classes = {
        layer.spec.class_name for _ in range(50) for layer in space.graph(space.sample(rng)).layers
    }
    assert {"Conv1D", "MaxPooling1D", "AveragePooling1D", "GlobalMaxPooling1D"} <= classes
    assert not any("2D" in name for name in classes)
    with pytest.raises(SpaceError, match=r"space series_cnn: expected one series .*, found \("):
        SeriesCnn([(8, 8, 3)], 2)
    with pytest.raises(SpaceError, match="space series_cnn: unknown cell 'separable'"):
        SeriesCnn([(8, 8)], 2, cells=("separable",))


def test_genes_of_initializers_and_regularizers() -> None:
    from graph_meta import keras_io

    space = CellCnn(
        [(8, 8)], 3, "softmax", initializers=("glorot_uniform", "he_normal"), regularizers=(0, 1e-4)
    )
    assert [gene.name for gene in space.genes[-2:]] == ["initializer", "regularizer"]
    for cell, initializer, regularizer in itertools.product(
        ("conv3", "separable", "inverted"), ("glorot_uniform", "he_normal"), (0.0, 1e-4)
    ):
        genome = genome_of(space, cell=cell, initializer=initializer, regularizer=regularizer)
        graph, model = space.graph(genome), space.build(genome)
        assert sorted(graph.names) == sorted(keras_io.from_keras(model).names)
        text = graph.to_json()
        assert ("HeNormal" in text) == (initializer == "he_normal")
        assert ("L2" in text) == (regularizer > 0) == (len(model.losses) > 0)
        assert space.plan(genome).layers == len(graph)
    plain = CellCnn([(8, 8)], 3, "softmax")
    assert plain.graph(genome_of(plain)) == space.graph(genome_of(space))
    for options in ({"initializers": ("he_norml",)}, {"regularizers": (-1.0,)}):
        with pytest.raises(SpaceError, match=r"space cell_cnn: (unknown initializer|regularizers)"):
            CellCnn([(8, 8)], 3, "softmax", **options)


@pytest.mark.parametrize("name", [*REGISTRY, "function"])
def test_any_space_starts_from_another_initializer(name: str) -> None:
    from graph_meta import keras_io

    def function(choices: Choices) -> Any:
        import keras

        inputs = keras.Input((12,))
        own = keras.layers.Dense(choices.integer("width", 4, 8), kernel_initializer="ones")
        return keras.Model(inputs, keras.layers.Dense(3)(own(inputs)))

    kind = from_function(function) if name == "function" else REGISTRY[name]
    space = kind([(12,)], 3) if name == "function" else kind.example()
    changed = with_initializer(space, "lecun_normal")
    genome = space.sample(np.random.default_rng(0))
    assert "LecunNormal" in changed.graph(genome).to_json()
    assert "GlorotUniform" not in changed.graph(genome).to_json()
    assert "LecunNormal" not in space.graph(genome).to_json()
    assert changed.describe() == space.describe() | {"initializer": "lecun_normal"}
    if name in ("dense_skip", "function"):  # the others are large
        names = keras_io.from_keras(changed.build(genome)).names
        assert sorted(names) == sorted(changed.graph(genome).names)
    with pytest.raises(SpaceError, match="unknown initializer 'lecun'; did you mean 'lecun_"):
        with_initializer(space, "lecun")


@pytest.mark.long
def test_a_search_with_an_initializer(tmp_path: Path) -> None:
    run = transfer_nas.search(
        "breast_cancer",
        max_evals=3,
        epochs=1,
        seed=1,
        initializer="he_normal",
        output_dir=tmp_path / "run",
        progress=False,
    )
    assert run.done.all() and run.description["space"]["initializer"] == "he_normal"
    assert "HeNormal" in (tmp_path / "run/best.safetensors").read_bytes()[:20_000].decode("latin")
