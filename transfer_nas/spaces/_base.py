"""What a search space is; `feed_forward.py` is the shortest example."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, SupportsIndex

import numpy as np

from graph_meta import layers
from graph_meta.graph import Edge, GraphBuilder, LayerGraph
from transfer_nas.errors import SpaceError
from transfer_nas.job import one_line

if TYPE_CHECKING:
    import keras
    from numpy.typing import NDArray
    from typing_extensions import TypeVar

    A = TypeVar("A", default=Any)
else:
    from typing import TypeVar

    A = TypeVar("A")

Scalar = int | float | str | bool | None
Genome = tuple[int, ...]
Units = int | Sequence[int]
"""Width of the last layer; of several outputs, those of all."""
Activation = str | None | Sequence[str | None]
"""Keras name of its activation, None for a linear one; of several outputs, those of all."""


@dataclass(frozen=True, slots=True)
class Gene:
    """One decision of a space.

    Attributes
    ----------
    name
        Unique in its space; the column ``p:name`` of the results.
    values
        What can be chosen, at least one value, no two of them equal (1, 1.0 and True are). Numbers
        of NumPy become Python's.

    Raises
    ------
    SpaceError
        The values are no such values, or a text cannot be written as UTF-8.
    """

    name: str
    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise SpaceError(f"gene {self.name!r}: expected a text as its name")
        check_ordered("gene", self.name, self.values)
        values = tuple(map(_plain, self.values))
        # Whatever is chosen is written down, and is to be read back as what it was.
        for value in (self.name, *values):
            if not isinstance(value, int | float | str | None) or value != value:
                raise SpaceError(
                    f"gene {self.name}: expected numbers, texts, booleans or None as values, found "
                    f"{value!r}; choose among names for such things, and look them up"
                )
            if isinstance(value, str) and not _is_utf8(value):
                raise SpaceError(f"gene {self.name!a}: {value!a} cannot be written as UTF-8")
        if not values or len(set(values)) < len(values):
            raise SpaceError(
                f"gene {self.name}: expected different values, found {list(self.values)}"
            )
        object.__setattr__(self, "values", values)


def check_ordered(what: str, name: str, values: object) -> None:
    """Raise SpaceError for values that each process would number otherwise."""
    if isinstance(values, set | frozenset):
        raise SpaceError(
            f"values of {what} {name!r} are a {type(values).__name__}, which has another order in "
            "each process; give a list or tuple"
        )


def _plain(value: Any) -> Any:
    """Return a value of NumPy, or of a subclass such as an enumeration's, as Python's own."""
    if isinstance(value, np.generic):
        value = value.item()
    match value:
        case bool():
            return value
        case int():
            return int(value)
        case float():
            return float(value)
        case str():
            return str.__str__(value)
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Randomness(Protocol):
    """Where random choices come from; `numpy.random.Generator` is one."""

    def integers(self, high: int, /) -> Any:
        """Return an integer in [0, `high`)."""

    def uniform(self) -> float:
        """Return a number in [0, 1)."""


class Space(ABC, Generic[A]):
    """The architectures among which a search chooses.

    An architecture is any JSON value, or what `to_json` turns into one: a list of layers, numbers
    of any kind, choices that only some architectures have. A subclass sets `name` and implements
    `sample`, `mutate` and `graph`. Where an architecture is one choice each of a fixed set of
    decisions, subclass `GeneSpace`: it has `sample` and `mutate`, and tools look into its genes.

    Spaces are immutable, and so are architectures: no method changes the one that it is given.
    Every method may be called from several threads. No method but `build` imports Keras.

    Parameters
    ----------
    input_shapes
        Shape of each input without the batch axis. Inputs of more than one axis are flattened,
        several are concatenated.
    output_units
        Width of the last layer; a sequence for several outputs.
    output_activation
        Keras name of its activation; None: linear. One for each output, or one for all.

    Attributes
    ----------
    heads
        Width and activation of each output.
    columns
        What `values` returns of each architecture: the ``p:*`` columns of the results. Without
        genes, the results have the architecture itself in another one, ``p:architecture``.

    Raises
    ------
    SpaceError
        The inputs or outputs make no sense, or the subclass lacks a method.
    """

    name: ClassVar[str]

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Refuse a subclass that lacks a method."""
        if missing := sorted(getattr(cls, "__abstractmethods__", ())):
            raise SpaceError(
                f"space {cls.__name__}: expected the methods {', '.join(missing)}; a space that "
                "sets `genes` is to subclass GeneSpace, and needs only graph"
            )
        return super().__new__(cls)

    def __init__(
        self,
        input_shapes: Sequence[Sequence[int]] | Sequence[int] | int,
        output_units: Units,
        output_activation: Activation = None,
    ) -> None:
        try:
            self.input_shapes = shapes_of(input_shapes)
        except SpaceError as wrong:
            raise SpaceError(f"space {self.name}: {wrong}") from wrong
        self.heads = self._ends(output_units, output_activation)
        several = isinstance(output_units, Sequence)
        units, activations = zip(*self.heads, strict=True)
        self.output_units: Units = units if several else units[0]
        self.output_activation: Activation = activations if several else activations[0]

    def _ends(self, units: Units, activation: Activation) -> tuple[tuple[int, str | None], ...]:
        """Return width and activation of each output; raises SpaceError."""
        widths = [int(each) for each in (units if isinstance(units, Sequence) else (units,))]
        if not widths or min(widths) < 1:
            raise SpaceError(f"space {self.name}: output_units must be positive, not {units}")
        if activation is None or isinstance(activation, str):
            return tuple((width, activation) for width in widths)
        if len(activation) != len(widths):
            raise SpaceError(
                f"space {self.name}: expected an activation for each of {len(widths)} outputs, "
                f"found {len(activation)}"
            )
        return tuple(zip(widths, activation, strict=True))

    @classmethod
    def example(cls) -> Space[A]:
        """Make this space for the data it is known from; for uses without an application.

        The default is that of the ``digits`` application: 8 x 8 images in ten classes.
        """
        found: Space[A] = cls([(8, 8)], 10, "softmax")
        return found

    @abstractmethod
    def sample(self, rng: Randomness) -> A:
        """Draw an architecture; everything random in it comes from `rng`."""

    @abstractmethod
    def mutate(self, architecture: A, rng: Randomness) -> A:
        """Return another architecture, a small change away.

        Raises
        ------
        SpaceError
            There is none. A search then draws one anew.
        """

    @abstractmethod
    def graph(self, architecture: A) -> LayerGraph:
        """Return the layer graph of an architecture, in microseconds.

        Raises
        ------
        SpaceError
            `architecture` is not one of this space.
        """

    @property
    def size(self) -> int | None:
        """Number of architectures, exactly; None: unknown, or without end."""
        return None

    @property
    def whole(self) -> Space[A]:
        """The space without the limits of a search (`transfer_nas.limits`)."""
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what `values` returns."""
        return ()

    def values(self, architecture: A) -> dict[str, Scalar]:
        """Return what there is to say of an architecture in a table, by the names in `columns`."""
        del architecture
        return {}

    def to_json(self, architecture: A) -> Any:
        """Return an architecture as a JSON value; lists, not tuples, are one."""
        return architecture

    def from_json(self, value: Any) -> A:
        """Undo `to_json`.

        Raises
        ------
        SpaceError
            It is no value that `check` takes.
        """
        try:
            self.check(value)
        except SpaceError:
            raise
        except Exception as error:  # such as KeyError: it may be any JSON value
            raise SpaceError(
                f"space {self.name}: expected an architecture of it, found {one_line(str(value))} "
                f"({one_line(error)})"
            ) from error
        found: A = value
        return found

    def check(self, architecture: A) -> None:
        """Raise SpaceError, or any other exception, unless `architecture` is one of this space.

        Looks at values from files. The default takes all; one that cannot be built fails when it
        is evaluated.
        """

    def build(self, architecture: A) -> keras.Model:
        """Build the Keras model of an architecture; its layers carry their stable names."""
        from graph_meta import keras_io  # imports Keras: only those who train pay for it

        model = keras_io.to_keras(self.graph(architecture))
        for name, given in self.start(architecture).items():
            layer = model.get_layer(name)
            arrays = keras_io.layer_weights(layer)
            whole = [old if new is None else new for old, new in zip(arrays, given, strict=True)]
            keras_io.set_layer_weights(layer, whole)
        return model

    def start(self, architecture: A) -> Mapping[str, Sequence[NDArray[Any] | None]]:
        """Return the weights that layers start from instead of their initializers'.

        By stable name: an array or None for each weight. The layers' specs say which
        (`LayerSpec.given`), so that layers of other starts have other names.
        """
        del architecture
        return {}

    def describe(self) -> dict[str, Any]:
        """Return what makes this space this space, as JSON values; kept with the results."""
        return {
            "name": self.name,
            "input_shapes": [list(shape) for shape in self.input_shapes],
            "output_units": _listed(self.output_units),
            "output_activation": _listed(self.output_activation),
            "columns": list(self.columns),
        }

    def _misfit(self, expected: str) -> SpaceError:
        """Return the error for inputs that this space cannot take."""
        found = ", ".join(map(str, self.input_shapes))
        return SpaceError(f"space {self.name}: expected {expected}, found {found}")

    def _features(self, builder: GraphBuilder) -> Edge:
        """Add the inputs; return one vector that holds them all."""
        edges = []
        for shape in self.input_shapes:
            edge = builder.input(shape)
            edges.append(edge if len(shape) == 1 else builder.add(layers.flatten(), edge))
        return edges[0] if len(edges) == 1 else builder.add(layers.concatenate(), *edges)

    def _head(self, builder: GraphBuilder, edge: Edge) -> LayerGraph:
        """Add the output layer, or one for each output, and return the finished graph."""
        heads = [layers.dense(width, activation=name or "linear") for width, name in self.heads]
        return builder.build(*(builder.add(head, edge) for head in heads))


def varied(space: Space[A], changes: type) -> Space[A]:
    """Return a space that is another one but for some methods; that one stays what it is.

    It is of a subclass of that one's own class: whoever asks for its genes, or for more, finds
    them.

    Parameters
    ----------
    space
        The space.
    changes
        A class with the methods, which may call those of the space by `super`.
    """
    kind = type(space)
    own = type(kind.__name__, (changes, kind), {"__module__": kind.__module__})
    changed: Any = object.__new__(own)
    vars(changed).update(vars(space))
    return changed  # type: ignore[no-any-return]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class GeneSpace(Space[Genome]):
    """A space whose architectures are genomes: one choice each of a fixed set of decisions.

    A genome holds one integer for each gene: the position of the chosen value in `Gene.values`.
    A subclass sets `name` and `genes` and implements `graph`. Genes should be such that each
    change of one gene changes the architecture: a mutation that changes nothing costs a training.
    """

    genes: tuple[Gene, ...]

    @classmethod
    def example(cls) -> GeneSpace:
        """Make this space for the data it is known from; see `Space.example`."""
        found: GeneSpace = cls([(8, 8)], 10, "softmax")
        return found

    @abstractmethod
    def graph(self, genome: Sequence[int]) -> LayerGraph:
        """Return the layer graph of a genome; see `Space.graph`."""

    @property
    def size(self) -> int:
        """Number of genomes, exactly."""
        return math.prod(len(gene.values) for gene in self.genes)

    def sample(self, rng: Randomness) -> Genome:
        """Draw a genome; all are equally likely."""
        return tuple([int(rng.integers(len(gene.values))) for gene in self.genes])

    def mutate(self, genome: Sequence[int], rng: Randomness, position: int | None = None) -> Genome:
        """Give one gene another value; all its other values are equally likely.

        Parameters
        ----------
        genome
            The parent's.
        rng
            Decides.
        position
            Which gene, one that has a choice; None: all that have one are equally likely.
        """
        if position is None:
            if not self._mutable:
                raise SpaceError(f"space {self.name} holds one genome: there is nothing to mutate")
            position = self._mutable[rng.integers(len(self._mutable))]
        value = int(rng.integers(len(self.genes[position].values) - 1))
        value += value >= genome[position]  # skips the present value
        return (*genome[:position], value, *genome[position + 1 :])

    @cached_property
    def _mutable(self) -> tuple[int, ...]:
        """Positions of the genes that have a choice."""
        return tuple(i for i, gene in enumerate(self.genes) if len(gene.values) > 1)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the genes."""
        return tuple(gene.name for gene in self.genes)

    def values(self, genome: Sequence[int]) -> dict[str, Scalar]:
        """Return what each gene chooses."""
        self.check(genome)
        return {
            gene.name: gene.values[value] for gene, value in zip(self.genes, genome, strict=True)
        }

    def to_json(self, genome: Sequence[int]) -> list[int]:
        """Return the genome as a list."""
        return [*genome]

    def from_json(self, value: Any) -> Genome:
        """Return a genome of JSON; see `Space.from_json`."""
        if not isinstance(value, list) or not set(map(type, value)) <= {int}:
            raise SpaceError(
                f"space {self.name}: expected a list of integers as genome, found "
                f"{one_line(str(value))}"
            )
        genome = tuple(value)
        self.check(genome)
        return genome

    def check(self, genome: Sequence[int]) -> None:
        """Raise SpaceError unless `genome` is one of this space."""
        if len(genome) != len(self.genes):
            raise SpaceError(
                f"space {self.name}: expected a genome of {len(self.genes)} genes, "
                f"found {len(genome)}"
            )
        for gene, value in zip(self.genes, genome, strict=True):
            if not 0 <= value < len(gene.values):
                raise SpaceError(
                    f"space {self.name}: gene {gene.name} has values 0 to {len(gene.values) - 1}, "
                    f"found {value}"
                )

    def describe(self) -> dict[str, Any]:
        """Return what makes this space this space; see `Space.describe`."""
        description = super().describe()
        del description["columns"]  # the names of the genes
        return description | {"genes": {gene.name: list(gene.values) for gene in self.genes}}


def with_genes(space: Space, what: str) -> GeneSpace:
    """Return a space for `what` needs its genes; raises SpaceError if it has none."""
    if isinstance(space, GeneSpace):
        return space
    raise SpaceError(f"{what} needs a space of genes, and {space.name} has none")


def shapes_of(given: Any) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of inputs, each without the batch axis, from what a user writes.

    A number, or one number in a list, is one input of that width.

    Raises
    ------
    SpaceError
        It is something else, or may mean two things.
    """
    whole = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    if len(whole) == 1 and _is_axis(whole[0]):
        whole = (whole,)
    if len(whole) > 1 and all(map(_is_axis, whole)):
        axes = ", ".join(map(str, whole))
        raise SpaceError(
            f"input_shapes={given!r} may mean one input or several: write [({axes})] for one of "
            f"these axes, or [{', '.join(f'({axis},)' for axis in whole)}] for {len(whole)} inputs"
        )
    shapes = [tuple(shape) if isinstance(shape, Iterable) else None for shape in whole]
    if not shapes or not all(
        shape is not None and all(_is_axis(axis) and axis > 0 for axis in shape) for shape in shapes
    ):
        raise SpaceError(
            "expected the shapes of one input or more, each without the batch axis, such as "
            f"[(8, 8)], found {given!r}"
        )
    return tuple(tuple(map(int, shape)) for shape in shapes if shape is not None)


def _is_axis(value: object) -> bool:
    return isinstance(value, SupportsIndex) and not isinstance(value, bool | np.ndarray)
