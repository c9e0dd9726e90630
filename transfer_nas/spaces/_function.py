"""A search space from a function that builds a network and chooses as it goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from graph_meta.graph import LayerGraph
from transfer_nas.errors import SpaceError
from transfer_nas.spaces._base import Gene, Genome, Randomness, Scalar, Space

if TYPE_CHECKING:
    import keras

S = TypeVar("S", bound=Scalar)

_BUILT = 256  # networks that a space remembers


class Choices:
    """What a function that builds networks may ask: each question is a gene of the space.

    Attributes
    ----------
    input_shapes, output_units, output_activation
        What the application needs; see `Space`.
    """

    def __init__(self, space: Space, given: Mapping[str, Scalar]) -> None:
        self.input_shapes = space.input_shapes
        self.output_units = space.output_units
        self.output_activation = space.output_activation
        self._given = given
        self._asked: dict[str, tuple[Scalar, ...]] = {}

    def choose(self, name: str, values: Sequence[S]) -> S:
        """Return one of `values`.

        Parameters
        ----------
        name
            Of the gene. Asked again, it gives the same answer.
        values
            Numbers, strings or booleans, none twice; the same whenever `name` is asked for.
        """
        offered = tuple(values)
        if not offered or len(set(offered)) != len(offered):
            raise SpaceError(f"choice {name!r}: expected different values, found {list(offered)}")
        value = self._given.get(name, offered[0])
        if self._asked.setdefault(name, offered) != offered or value not in offered:
            raise SpaceError(
                f"choice {name!r}: has the values {list(offered)} here and others elsewhere; "
                "give one of them another name"
            )
        return offered[offered.index(value)]

    def integer(self, name: str, low: int, high: int, step: int = 1) -> int:
        """Return an integer from `low` to `high`, both included, in steps."""
        return self.choose(name, range(low, high + 1, step))

    def boolean(self, name: str) -> bool:
        """Return False or True."""
        return self.choose(name, (False, True))


Build = Callable[[Choices], "LayerGraph | keras.Model"]


class FunctionSpace(Space):
    """The networks that a function builds; see `from_function`.

    The function is run with one choice after the other changed, so genes that only some answers
    bring up are found too: ``for i in range(choices.integer("layers", 1, 5))`` may ask for the
    width of each layer. A gene that comes up only when two unrelated answers meet is not found; ask
    for it in any case, then. Genes that a network was not asked for never mutate.

    Keeps the networks that it built last. Functions that return a Keras model build it to name its
    layers: with `graph_meta.layers` that takes microseconds, and no Keras.
    """

    build_function: Build

    def __init__(
        self,
        input_shapes: Sequence[Sequence[int]],
        output_units: int,
        output_activation: str | None = None,
    ) -> None:
        super().__init__(input_shapes, output_units, output_activation)
        self.genes = self._discover()
        self._built: dict[Genome, tuple[LayerGraph, tuple[int, ...]]] = {}

    def graph(self, genome: Sequence[int]) -> LayerGraph:
        """Return the layer graph of a genome; see `Space.graph`."""
        return self._network(tuple(genome))[0]

    def mutate(self, genome: Sequence[int], rng: Randomness, position: int | None = None) -> Genome:
        """Give a gene that the network was asked for another value; see `Space.mutate`."""
        _, active = self._network(tuple(genome))
        if not active:
            raise SpaceError(f"space {self.name}: there is nothing to mutate in {tuple(genome)}")
        if position not in active:
            position = active[rng.integers(len(active))]
        return super().mutate(genome, rng, position)

    def _network(self, genome: Genome) -> tuple[LayerGraph, tuple[int, ...]]:
        """Return the network and the positions of the genes that it was asked for and can vary."""
        found = self._built.pop(genome, None)
        if found is None:
            graph, asked = self._run(self.values(genome))
            known = {gene.name: gene for gene in self.genes}
            for name, values in asked.items():
                if name not in known or known[name].values != values:
                    raise SpaceError(
                        f"space {self.name}: choice {name!r} of {list(values)} comes up only where "
                        "several answers meet; ask for it in any case"
                    )
            active = tuple(
                position
                for position, gene in enumerate(self.genes)
                if gene.name in asked and len(gene.values) > 1
            )
            found = graph, active
        self._built[genome] = found  # as the last one
        if len(self._built) > _BUILT:
            self._built.pop(next(iter(self._built)))
        return found

    def _discover(self) -> tuple[Gene, ...]:
        genes: dict[str, tuple[Scalar, ...]] = {}
        pending: deque[dict[str, Scalar]] = deque([{}])
        while pending:
            given = pending.popleft()
            _, asked = self._run(given)
            taken = {name: given.get(name, values[0]) for name, values in asked.items()}
            for name, values in asked.items():
                if name not in genes:
                    genes[name] = values
                    pending += [taken | {name: value} for value in values[1:]]
                elif genes[name] != values:
                    raise SpaceError(
                        f"choice {name!r}: has the values {list(values)} here and others "
                        "elsewhere; give one of them another name"
                    )
        if not genes:
            raise SpaceError(f"space {self.name}: the function asked for no choice")
        return tuple(Gene(name, values) for name, values in genes.items())

    def _run(self, given: Mapping[str, Scalar]) -> tuple[LayerGraph, dict[str, tuple[Scalar, ...]]]:
        choices = Choices(self, given)
        built: Any = type(self).build_function(choices)
        if not isinstance(built, LayerGraph):
            from graph_meta import keras_io

            try:
                built = keras_io.from_keras(built)
            except AttributeError as cause:
                raise SpaceError(
                    f"space {self.name}: expected a LayerGraph or a Keras model, "
                    f"found {type(built).__name__}"
                ) from cause
        return built, choices._asked


def from_function(build: Build) -> type[FunctionSpace]:
    """Return the space of the networks that a function builds.

    Parameters
    ----------
    build
        Takes `Choices`; returns a `LayerGraph` or a Keras model, whose inputs and outputs are those
        that the application needs. Its name becomes the space's.

    Raises
    ------
    SpaceError
        It is no function.
    """
    if not callable(build) or isinstance(build, type):
        raise SpaceError(f"expected a function that builds a network, found {build!r}")
    name = getattr(build, "__name__", type(build).__name__)
    return type(
        name,
        (FunctionSpace,),
        {
            "name": name,
            "build_function": staticmethod(build),
            "__module__": build.__module__,
            "__doc__": build.__doc__,
        },
    )
