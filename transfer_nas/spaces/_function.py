"""A search space from a function that builds a network and chooses as it goes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from graph_meta.graph import LayerGraph
from transfer_nas.errors import SpaceError
from transfer_nas.job import one_line
from transfer_nas.spaces import _start
from transfer_nas.spaces._base import (
    Activation,
    Gene,
    GeneSpace,
    Genome,
    Randomness,
    Scalar,
    Space,
    Units,
    check_ordered,
)

if TYPE_CHECKING:
    import keras
    from numpy.typing import NDArray

S = TypeVar("S", bound=Scalar)

_BUILT = 256  # networks that a space remembers

# Spaces are used by several threads, the manager's and a worker's; functions of users need not
# stand that. Reentrant, for a function that asks a space for another network.
_one_at_a_time = threading.RLock()


class _ChoiceError(SpaceError):
    """A question that makes no gene, whatever the answers."""


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
            Numbers, strings, booleans or None, none twice; the same whenever `name` is asked for.
            Numbers of NumPy come back as Python's.
        """
        try:
            check_ordered("choice", name, values)
            offered = Gene(name, tuple(values)).values
        except SpaceError as cause:
            raise _ChoiceError(str(cause)) from cause
        value = self._given.get(name, offered[0])
        asked = self._asked.setdefault(name, offered)
        if not _same(asked, offered) or value not in offered:
            raise _disagreement(name, offered)
        return cast(S, offered[offered.index(value)])

    def integer(self, name: str, low: int, high: int, step: int = 1) -> int:
        """Return an integer from `low` to `high`, both included, in steps."""
        return self.choose(name, range(low, high + 1, step))

    def boolean(self, name: str) -> bool:
        """Return False or True."""
        return self.choose(name, (False, True))


Build = Callable[[Choices], "LayerGraph | keras.Model"]


class FunctionSpace(GeneSpace):
    """The networks that a function builds; see `from_function`.

    The function is run with one choice after the other changed, so genes that only some answers
    bring up are found too: ``for i in range(choices.integer("layers", 1, 5))`` may ask for the
    width of each layer. A gene that comes up only when two unrelated answers meet is not found; ask
    for it in any case, then. Genes that a network was not asked for never mutate.

    Weights that it loads into a Keras model are what candidates start from, and layers that it
    freezes (``trainable = False``), and parts inside layers, stay frozen, in their heirs too.

    Where the function raises an exception, a candidate with those answers fails, and no other.

    Keeps the networks that it built last. The function runs in one thread at a time. Functions that
    return a Keras model build it to name its layers: with `graph_meta.layers` that takes
    microseconds, and no Keras.
    """

    build_function: Build

    def __init__(
        self,
        input_shapes: Sequence[Sequence[int]],
        output_units: Units,
        output_activation: Activation = None,
    ) -> None:
        super().__init__(input_shapes, output_units, output_activation)
        self.genes = self._discover()
        self._built: dict[Genome, tuple[LayerGraph, tuple[int, ...]]] = {}

    def graph(self, genome: Sequence[int]) -> LayerGraph:
        """Return the layer graph of a genome; see `Space.graph`."""
        return self._network(tuple(genome))[0]

    def start(self, genome: Sequence[int]) -> dict[str, list[NDArray[Any] | None]]:
        """Return the weights that the function loads for a genome; see `Space.start`."""
        graph = self.graph(genome)
        if not any(layer.spec.given for layer in graph.layers):
            return {}
        with _one_at_a_time:
            model: Any = type(self).build_function(Choices(self, self.values(genome)))
            return _start.weights(model, graph)

    def mutate(self, genome: Sequence[int], rng: Randomness, position: int | None = None) -> Genome:
        """Give a gene that the network was asked for another value; see `Space.mutate`."""
        try:
            _, active = self._network(tuple(genome))
        except Exception:  # who cannot be built can still have children
            active = self._mutable
        if not active:
            raise SpaceError(f"space {self.name}: there is nothing to mutate in {tuple(genome)}")
        if position not in active:
            position = active[rng.integers(len(active))]
        return super().mutate(genome, rng, position)

    def _network(self, genome: Genome) -> tuple[LayerGraph, tuple[int, ...]]:
        """Return the network and the positions of the genes that it was asked for and can vary."""
        with _one_at_a_time:
            return self._network_alone(genome)

    def _network_alone(self, genome: Genome) -> tuple[LayerGraph, tuple[int, ...]]:
        found = self._built.pop(genome, None)
        if found is None:
            choices = Choices(self, self.values(genome))
            graph, asked = self._run(choices), choices._asked
            known = {gene.name: gene for gene in self.genes}
            for name, values in asked.items():
                if name not in known or not _same(known[name].values, values):
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
        failure: Exception | None = None
        works = False
        while pending:
            choices = Choices(self, pending.popleft())
            try:
                with _one_at_a_time:
                    self._run(choices)
                works = True
            except _ChoiceError:
                raise
            except Exception as error:  # a user's function may raise anything for some answers
                failure = failure or error
            asked = choices._asked
            taken = {name: choices._given.get(name, values[0]) for name, values in asked.items()}
            for name, values in asked.items():
                if name not in genes:
                    genes[name] = values
                    pending += [taken | {name: value} for value in values[1:]]
                elif not _same(genes[name], values):
                    raise _disagreement(name, values)
        if not works:
            assert failure is not None
            raise self._broken(failure) from failure
        if not genes:
            raise SpaceError(f"space {self.name}: the function asked for no choice")
        return tuple(Gene(name, values) for name, values in genes.items())

    def _broken(self, failure: Exception) -> SpaceError:
        """Return the error for a function that builds nothing, given what it raised first."""
        if isinstance(failure, SpaceError):
            return failure
        return SpaceError(
            f"space {self.name}: the function builds no network, whatever is chosen: "
            f"{one_line(failure)}"
        )

    def _run(self, choices: Choices) -> LayerGraph:
        built: Any = type(self).build_function(choices)
        if isinstance(built, LayerGraph):
            return built
        if isinstance(built, type) or not hasattr(built, "layers"):
            raise SpaceError(
                f"space {self.name}: expected a LayerGraph or a Keras model, "
                f"found {type(built).__name__}"
            )
        given = choices._given

        def again() -> Any:
            return type(self).build_function(Choices(self, given))

        return _start.marked(built, again)


def _same(some: Sequence[Scalar], others: Sequence[Scalar]) -> bool:
    """Return whether values are equal and of equal types: 1 is not True here."""
    return some == others and [*map(type, some)] == [*map(type, others)]


def _disagreement(name: str, values: Sequence[Scalar]) -> _ChoiceError:
    return _ChoiceError(
        f"choice {name!r}: has the values {list(values)} here and others elsewhere; "
        "give one of them another name"
    )


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
