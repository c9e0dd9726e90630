"""Convolutional networks by macro specification: cells, levels, downsampling, shape and size."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, TypeVar

from graph_meta import layers
from graph_meta.graph import Edge, GraphBuilder, LayerGraph
from graph_meta.layers import LayerTemplate
from transfer_nas.errors import SpaceError, near_misses
from transfer_nas.spaces._base import Activation, Gene, GeneSpace, Genome, Randomness, Units

if TYPE_CHECKING:
    import keras

logger = logging.getLogger(__name__)

T = TypeVar("T")
LevelType = Literal["stem", "cell", "downsample"]
Shape = Literal["rectangle", "trapezoid", "grow", "exponential"]

MIN_WIDTH = 4  # an inception cell splits its width into three
_MIN_SIZE = 8  # from here on the four shapes differ, whatever the depth
_MIN_SIDE = 2  # an image is not halved to less
_CACHE = 4096
_DRAWN = 4  # genomes of which the cheapest network is taken


@dataclass(frozen=True)
class MacroPlan:
    """What a genome of `CellCnn` comes down to; print it to read it.

    Attributes
    ----------
    cell, downsample
        How the cells and the downsampling levels are made.
    shape, size
        How the width changes across the levels, and from which width.
    level_types, widths
        Of each level, in order: what it is, and how many channels leave it.
    dense
        Widths of the dense layers before the output layer.
    layers, parameters
        Totals of the whole network, its output layer and frozen statistics included.
    """

    cell: str
    downsample: str
    shape: str
    size: int
    level_types: tuple[LevelType, ...]
    widths: tuple[int, ...]
    dense: tuple[int, ...]
    layers: int
    parameters: int

    @property
    def levels(self) -> int:
        """Number of levels: the stem, the cells and the downsamples."""
        return len(self.level_types)

    @property
    def cells(self) -> int:
        """Number of levels that are cells."""
        return self.level_types.count("cell")

    @property
    def downsamples(self) -> int:
        """Number of levels that halve the image."""
        return self.level_types.count("downsample")

    def __str__(self) -> str:
        return "\n".join(
            (
                f"{self.cell} cells, {self.downsample} downsampling, {self.shape} of {self.size}",
                f"level types: {' '.join(self.level_types)}",
                f"widths: {' '.join(map(str, self.widths))}",
                f"dense: {' '.join(map(str, self.dense)) or 'none'}",
                f"totals: {self.layers} layers, {self.cells} cells, {self.levels} levels, "
                f"{self.downsamples} downsamples, {self.parameters:,} parameters",
            )
        )


@lru_cache(_CACHE)
def level_types(depth: int, downsamples: int) -> tuple[LevelType, ...]:
    """Spread downsamples evenly over the levels.

    The first level is the stem. The cells between two downsamples are as many everywhere; those
    that are left over go one each to the last stacks, where images are small and cells cheap.

    Parameters
    ----------
    depth
        Number of levels, at least 2 `downsamples` + 2: one cell in each stack.
    downsamples
        Number of levels that halve the image.

    >>> " ".join(level_types(8, 2))
    'stem cell downsample cell cell downsample cell cell'
    """
    stacks = downsamples + 1
    fewest, left_over = divmod(depth - 1 - downsamples, stacks)
    types: list[LevelType] = ["stem"]
    for stack in range(stacks):
        if stack:
            types.append("downsample")
        types += ["cell"] * (fewest + (stack >= stacks - left_over))
    return tuple(types)


@lru_cache(_CACHE)
def level_widths(types: tuple[LevelType, ...], shape: Shape, size: int) -> tuple[int, ...]:
    """Derive the width of each level.

    Parameters
    ----------
    types
        From `level_types`.
    shape
        ``rectangle``: the same everywhere. ``trapezoid``: falls linearly to half at the last level.
        ``exponential``: falls by equal factors to a quarter. ``grow``: doubles at each downsample.
    size
        Width of the stem.

    Returns
    -------
    tuple of int
        None is below `MIN_WIDTH`.

    >>> level_widths(level_types(8, 2), "grow", 16)
    (16, 16, 32, 32, 32, 64, 64, 64)
    >>> level_widths(level_types(8, 2), "trapezoid", 16)
    (16, 15, 14, 13, 11, 10, 9, 8)
    """
    last = len(types) - 1
    widths: list[float] = []
    doubled = 1
    for level, kind in enumerate(types):
        doubled *= 1 + (kind == "downsample")
        factor = {
            "rectangle": 1.0,
            "trapezoid": 1 - level / last / 2,
            "grow": float(doubled),
            "exponential": 4 ** (-level / last),
        }[shape]
        widths.append(size * factor)
    return tuple(max(MIN_WIDTH, round(width)) for width in widths)


class Axes(NamedTuple):
    """What differs between networks on series (1 axis) and on images (2).

    Attributes
    ----------
    number
        Of axes beside that of the channels.
    large
        Size from which on the stem halves each axis. Otherwise the levels before the first
        downsample would cost four times as much, and they cost most.
    """

    number: int
    large: int
    convolution: Callable[..., LayerTemplate]
    max_pooling: Callable[..., LayerTemplate]
    average_pooling: Callable[..., LayerTemplate]
    #: From all places to a vector, by the value of gene ``pooling``.
    poolings: Mapping[str, LayerTemplate]


_IMAGES = Axes(
    2,
    24,
    layers.conv2d,
    layers.max_pooling2d,
    layers.average_pooling2d,
    {"average": layers.global_average_pooling2d(), "max": layers.global_max_pooling2d()},
)


class _Levels:
    """Adds the levels of one network, all with the same normalization and activation."""

    __slots__ = ("_activation", "_axes", "_builder", "_normalize")

    def __init__(
        self, axes: Axes, builder: GraphBuilder, *, normalize: bool, activation: str
    ) -> None:
        self._axes = axes
        self._builder = builder
        self._normalize = normalize
        self._activation = activation

    def convolution(
        self, edge: Edge, width: int, kernel: int, *, strides: int = 1, linear: bool = False
    ) -> Edge:
        """Add a convolution, its normalization and, unless `linear`, its activation."""
        # Batch normalization has a bias of its own, and goes before the activation.
        template = self._axes.convolution(
            width,
            kernel,
            strides=strides,
            padding="same",
            activation="linear" if linear or self._normalize else self._activation,
            use_bias=not self._normalize,
        )
        return self._finish(self._builder.add(template, edge), linear)

    def _finish(self, edge: Edge, linear: bool) -> Edge:
        if self._normalize:
            edge = self._builder.add(layers.batch_normalization(), edge)
            if not linear:
                edge = self._builder.add(layers.activation(self._activation), edge)
        return edge

    def conv3(self, edge: Edge, width: int) -> Edge:
        """One 3x3 convolution."""
        return self.convolution(edge, width, 3)

    def conv5(self, edge: Edge, width: int) -> Edge:
        """One 5x5 convolution."""
        return self.convolution(edge, width, 5)

    def separable(self, edge: Edge, width: int) -> Edge:
        """One depthwise separable 3x3 convolution (Chollet, *Xception*, 2017)."""
        template = layers.separable_conv2d(
            width,
            3,
            padding="same",
            activation="linear" if self._normalize else self._activation,
            use_bias=not self._normalize,
        )
        return self._finish(self._builder.add(template, edge), False)

    def residual(self, edge: Edge, width: int) -> Edge:
        """Two 3x3 convolutions around which the input is added (He et al., *ResNet*, 2016)."""
        inner = self.convolution(edge, width, 3)
        return self._around(edge, self.convolution(inner, width, 3, linear=True), width)

    def bottleneck(self, edge: Edge, width: int) -> Edge:
        """As `residual`, through a 3x3 convolution of a quarter of the width (He et al., 2016)."""
        inner = self.convolution(edge, width // 4, 1)
        inner = self.convolution(inner, width // 4, 3)
        return self._around(edge, self.convolution(inner, width, 1, linear=True), width)

    def _around(self, edge: Edge, inner: Edge, width: int) -> Edge:
        if self._builder.shape(edge)[-1] != width:
            edge = self.convolution(edge, width, 1, linear=True)
        total = self._builder.add(layers.add(), edge, inner)
        return self._builder.add(layers.activation(self._activation), total)

    def inverted(self, edge: Edge, width: int) -> Edge:
        """Depthwise 3x3 on twice the channels, linear at the end (Sandler et al., 2018)."""
        channels = int(self._builder.shape(edge)[-1] or 0)
        inner = self.convolution(edge, 2 * channels, 1)
        depthwise = layers.depthwise_conv2d(
            3,
            padding="same",
            activation="linear" if self._normalize else self._activation,
            use_bias=not self._normalize,
        )
        inner = self._finish(self._builder.add(depthwise, inner), False)
        inner = self.convolution(inner, width, 1, linear=True)
        return self._builder.add(layers.add(), edge, inner) if channels == width else inner

    def inception(self, edge: Edge, width: int) -> Edge:
        """1x1, 1x1 then 3x3, and pooling then 1x1, joined (Szegedy et al., *GoogLeNet*, 2015)."""
        third, left_over = divmod(width, 3)
        pooled = self._builder.add(self._axes.max_pooling(3, strides=1, padding="same"), edge)
        branches = (
            self.convolution(edge, third + left_over, 1),
            self.convolution(self.convolution(edge, third, 1), third, 3),
            self.convolution(pooled, third, 1),
        )
        return self._builder.add(layers.concatenate(), *branches)

    def max_pooling(self, edge: Edge, width: int) -> Edge:
        """Halve by the maximum of 2x2 places, then a 1x1 convolution to the new width."""
        return self.convolution(self._builder.add(self._axes.max_pooling(2), edge), width, 1)

    def average_pooling(self, edge: Edge, width: int) -> Edge:
        """Halve by the mean of 2x2 places, then a 1x1 convolution to the new width."""
        pooled = self._builder.add(self._axes.average_pooling(2), edge)
        return self.convolution(pooled, width, 1)

    def strided(self, edge: Edge, width: int) -> Edge:
        """Halve by a 3x3 convolution with strides of 2."""
        return self.convolution(edge, width, 3, strides=2)


Level = Callable[[_Levels, Edge, int], Edge]
_CELLS: dict[str, Level] = {
    "conv3": _Levels.conv3,
    "conv5": _Levels.conv5,
    "separable": _Levels.separable,
    "residual": _Levels.residual,
    "bottleneck": _Levels.bottleneck,
    "inverted": _Levels.inverted,
    "inception": _Levels.inception,
}
_DOWNSAMPLES: dict[str, Level] = {
    "max_pooling": _Levels.max_pooling,
    "average_pooling": _Levels.average_pooling,
    "strided": _Levels.strided,
}
_SHAPES: tuple[Shape, ...] = ("rectangle", "trapezoid", "grow", "exponential")


class CellCnn(GeneSpace):
    """A stem, stacks of equal cells with downsampling between them, pooling and dense layers.

    Eight genes say what the network is as a whole, not layer by layer: ``cell``, the type of all
    cells; ``depth``, the number of levels (stem, cells and downsamples); ``downsamples``, how many
    of them halve the image, spread evenly; ``downsample``, how; ``shape`` and ``size``, how the
    width changes from level to level and where it starts; ``normalization`` and ``activation`` of
    all convolutions. ``pooling`` then makes a vector of the image and ``dense_i``, a width or 0 for
    no layer, is place i of the dense section before the output. `plan` derives what follows.

    This is the macro specification of convolutional networks in NREL's empirical deep learning
    framework (BUTTER; Tripp et al., *An empirical deep dive into deep learning's driving
    dynamics*, 2022, has the shapes and sizes of dense networks), with size as the width of the
    stem rather than a number of parameters: so a change of depth keeps the widths of the levels
    before it, and their weights can be inherited.

    Parameters
    ----------
    input_shapes
        One image (rows, columns) or (rows, columns, channels) of at least 4 x 4. From 24 x 24 on
        the stem halves it, too.
    output_units, output_activation
        See `Space`.
    cells, downsampling, shapes, activations
        Names to choose from. No cells: all of them.
    sizes
        Widths of the stem to choose from, each at least 8.
    depths
        Numbers of levels to choose from. None: six numbers from the fewest that give each stack
        a cell.
    max_downsamples
        The most to choose from; fewer where that would leave less than 2 rows or columns.
    dense_layers, dense_units
        Places of the dense section, and widths to choose from.
    initializers
        Keras names of the initializers of kernels to choose from: gene ``initializer``. None: no
        such gene, and Keras' default.
    regularizers
        Factors of the sum of kernels' squares in the loss to choose from, 0 for none: gene
        ``regularizer``. None: no such gene, and none.
    """

    name = "cell_cnn"

    _axes: ClassVar[Axes] = _IMAGES
    _all_cells: ClassVar[Sequence[str]] = tuple(_CELLS)
    _expected: ClassVar[str] = (
        "one image (rows, columns) or (rows, columns, channels) of at least 4 x 4"
    )

    def __init__(
        self,
        input_shapes: Sequence[Sequence[int]],
        output_units: Units,
        output_activation: Activation = None,
        *,
        cells: Sequence[str] | None = None,
        downsampling: Sequence[str] = tuple(_DOWNSAMPLES),
        shapes: Sequence[Shape] = _SHAPES,
        sizes: Sequence[int] = (8, 16, 24, 32),
        depths: Sequence[int] | None = None,
        max_downsamples: int = 3,
        activations: Sequence[str] = ("relu", "swish"),
        dense_layers: int = 2,
        dense_units: Sequence[int] = (16, 32, 64, 128),
        initializers: Sequence[str] | None = None,
        regularizers: Sequence[float] | None = None,
    ) -> None:
        super().__init__(input_shapes, output_units, output_activation)
        axes, image = self._axes.number, self.input_shapes[0]
        side = min(image[:axes], default=0)
        if len(self.input_shapes) != 1 or len(image) not in (axes, axes + 1) or side < 4:
            raise self._misfit(self._expected)
        cells = self._all_cells if cells is None else cells
        self._stem = _Levels.conv3 if side < self._axes.large else _Levels.strided
        if self._stem is _Levels.strided:
            side = -(-side // 2)
        most = min(max_downsamples, (side // _MIN_SIDE).bit_length() - 1)
        fewest = 2 * most + 2
        depths = tuple(range(fewest, fewest + 6)) if depths is None else tuple(depths)
        self._check_options(most, depths, sizes, dense_layers)

        known = {name: _CELLS[name] for name in self._all_cells}
        self._cells = [self._named("cell", name, known) for name in cells]
        self._downsampling = [self._named("downsample", n, _DOWNSAMPLES) for n in downsampling]
        self._shapes = [self._named("shape", name, {n: n for n in _SHAPES}) for name in shapes]
        self._sizes = tuple(sizes)
        self._depths = depths
        self._activations = tuple(activations)
        self._pooling = tuple(self._axes.poolings.values())
        self._dense = [
            (None, *(layers.dense(units, activation=name) for units in dense_units))
            for name in activations
        ]
        self._dense_units = (0, *dense_units)
        self._reshape = layers.reshape((*image, 1)) if len(image) == axes else None
        self.genes = (
            Gene("cell", tuple(cells)),
            Gene("depth", depths),
            Gene("downsamples", tuple(range(1, most + 1))),
            Gene("downsample", tuple(downsampling)),
            Gene("shape", tuple(shapes)),
            Gene("size", tuple(sizes)),
            Gene("normalization", ("none", "batch")),
            Gene("activation", tuple(activations)),
            Gene("pooling", tuple(self._axes.poolings)),
            *(Gene(f"dense_{i}", self._dense_units) for i in range(dense_layers)),
        )
        if not all(gene.values for gene in self.genes):
            raise SpaceError(f"space {self.name}: nothing to choose from")
        self._kernel_genes = self._genes_of_kernels(initializers, regularizers)
        self.genes += self._kernel_genes

    def _genes_of_kernels(
        self, initializers: Sequence[str] | None, regularizers: Sequence[float] | None
    ) -> tuple[Gene, ...]:
        """Return the genes that say how kernels start, and what they cost; raises SpaceError."""
        genes = []
        if initializers is not None:
            known = {name: name for name in layers.INITIALIZERS}
            names = tuple(self._named("initializer", name, known) for name in initializers)
            genes.append(Gene("initializer", names))
        if regularizers is not None:
            factors = tuple(float(factor) for factor in regularizers)
            if any(not 0 <= factor < 1 for factor in factors):
                raise SpaceError(
                    f"space {self.name}: regularizers must be factors from 0 to 1, found {factors}"
                )
            genes.append(Gene("regularizer", factors))
        return tuple(genes)

    @classmethod
    def _check_options(
        cls, most: int, depths: Sequence[int], sizes: Sequence[int], dense_layers: int
    ) -> None:
        if most < 1 or dense_layers < 0:
            raise SpaceError(f"space {cls.name}: nothing to choose from")
        if any(depth < 2 * most + 2 for depth in depths):
            raise SpaceError(
                f"space {cls.name}: {most} downsamples need a depth of {2 * most + 2} levels or "
                f"more, found {min(depths)}"
            )
        if any(size < _MIN_SIZE for size in sizes):
            raise SpaceError(
                f"space {cls.name}: sizes must be at least {_MIN_SIZE}, found {min(sizes)}"
            )

    @classmethod
    def _named(cls, what: str, name: str, known: Mapping[str, T]) -> T:
        if name not in known:
            raise SpaceError(
                f"space {cls.name}: unknown {what} {name!r}; {near_misses(name, known)}"
            )
        return known[name]

    def sample(self, rng: Randomness) -> Genome:
        """Draw a genome; see `Space.sample`.

        The cheapest of a few, by floating-point operations: those of this space's networks differ
        by a factor of a hundred, and what an expensive one teaches, children of a cheap one do in a
        tenth of the time. Where more pays, mutation goes there.
        """
        drawn = [super(CellCnn, self).sample(rng) for _ in range(_DRAWN)]
        return min(drawn, key=lambda genome: self.graph(genome).flops)

    @classmethod
    def example(cls) -> CellCnn:
        """Make this space for small colour images in ten classes; see `Space.example`."""
        return cls([(32, 32, 3)], 10, "softmax")

    def graph(self, genome: Sequence[int]) -> LayerGraph:
        """Return the layer graph of a genome; see `Space.graph`."""
        self.check(genome)
        (
            cell,
            depth,
            downsamples,
            downsample,
            shape,
            size,
            normalization,
            activation,
            pooling,
            *dense,
        ) = genome[: len(genome) - len(self._kernel_genes)]
        builder = GraphBuilder()
        levels = _Levels(
            self._axes,
            builder,
            normalize=bool(normalization),
            activation=self._activations[activation],
        )
        types = level_types(self._depths[depth], downsamples + 1)
        widths = level_widths(types, self._shapes[shape], self._sizes[size])
        makers: dict[LevelType, Level] = {
            "stem": self._stem,
            "cell": self._cells[cell],
            "downsample": self._downsampling[downsample],
        }
        edge = builder.input(self.input_shapes[0])
        if self._reshape is not None:
            edge = builder.add(self._reshape, edge)
        for kind, width in zip(types, widths, strict=True):
            edge = makers[kind](levels, edge, width)
        edge = builder.add(self._pooling[pooling], edge)
        for units in dense:
            template = self._dense[activation][units]
            if template is not None:
                edge = builder.add(template, edge)
        graph = self._head(builder, edge)
        if self._kernel_genes:
            chosen = self.values(genome)
            name, factor = chosen.get("initializer"), chosen.get("regularizer") or 0.0
            graph = layers.with_kernels(graph, None if name is None else str(name), float(factor))
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("genome %s: %s", tuple(genome), self._plan(genome, graph))
        return graph

    def plan(self, genome: Sequence[int]) -> MacroPlan:
        """Derive levels, widths and totals from a genome.

        Raises
        ------
        SpaceError
            `genome` is not one of this space.
        """
        return self._plan(genome, self.graph(genome))

    def _plan(self, genome: Sequence[int], graph: LayerGraph) -> MacroPlan:
        cell, depth, downsamples, downsample, shape, size, _, _, _, *dense = genome[
            : len(genome) - len(self._kernel_genes)
        ]
        types = level_types(self._depths[depth], downsamples + 1)
        return MacroPlan(
            cell=str(self.genes[0].values[cell]),
            downsample=str(self.genes[3].values[downsample]),
            shape=self._shapes[shape],
            size=self._sizes[size],
            level_types=types,
            widths=level_widths(types, self._shapes[shape], self._sizes[size]),
            dense=tuple(self._dense_units[units] for units in dense if units),
            layers=len(graph),
            parameters=graph.parameters,
        )

    def build(self, genome: Sequence[int]) -> keras.Model:
        """Build the Keras model of a genome and log its plan; see `Space.build`."""
        logger.info("%s", self.plan(genome))
        return super().build(tuple(genome))
