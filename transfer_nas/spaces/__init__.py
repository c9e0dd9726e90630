"""Search spaces: what an architecture is, and the layer graph that it stands for.

`_base.py` states the contract; `tests/transfer_nas/test_spaces.py` holds every registered space
to it. Nothing here imports Keras until a model is built.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from graph_meta.graph import LayerGraph
from transfer_nas.errors import SpaceError, near_misses
from transfer_nas.plugins import is_plugin, load_attribute
from transfer_nas.spaces._base import (
    Activation,
    Gene,
    GeneSpace,
    Genome,
    Randomness,
    Scalar,
    Space,
    Units,
    shapes_of,
    varied,
    with_genes,
)
from transfer_nas.spaces._function import Choices, from_function
from transfer_nas.spaces._initializer import with_initializer
from transfer_nas.spaces.attn import Attn
from transfer_nas.spaces.cell_cnn import CellCnn
from transfer_nas.spaces.combo import Combo
from transfer_nas.spaces.dense_skip import DenseSkip
from transfer_nas.spaces.feed_forward import FeedForward
from transfer_nas.spaces.nt3 import Nt3
from transfer_nas.spaces.series_cnn import SeriesCnn
from transfer_nas.spaces.uno import Uno

REGISTRY: Mapping[str, type[GeneSpace]] = {
    space.name: space
    for space in (Attn, CellCnn, Combo, DenseSkip, FeedForward, Nt3, SeriesCnn, Uno)
}

__all__ = [
    "REGISTRY",
    "Attn",
    "CellCnn",
    "Choices",
    "Combo",
    "DenseSkip",
    "FeedForward",
    "Gene",
    "GeneSpace",
    "Genome",
    "Nt3",
    "Randomness",
    "Scalar",
    "SeriesCnn",
    "Space",
    "Uno",
    "find",
    "from_function",
    "get",
    "graph_of_genome",
    "shapes_of",
    "varied",
    "with_genes",
    "with_initializer",
]


def find(name: str) -> type[Space]:
    """Return the class of a space.

    Parameters
    ----------
    name
        A registered name, or ``package.module:attribute`` or ``path/to/file.py:attribute`` of a
        subclass of `Space`, or of a function for `from_function`.

    Raises
    ------
    SpaceError
        There is none; the message names near misses.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    if not is_plugin(name):
        raise SpaceError(f"unknown space {name!r}; {near_misses(name, REGISTRY)}")
    found = load_attribute(name, SpaceError, "Space and no function", _is_own)
    if isinstance(found, type) and issubclass(found, Space):
        return found
    if inspect.isfunction(found):
        return from_function(found)
    raise SpaceError(
        f"{name} is neither a subclass of transfer_nas.spaces.Space nor a function: {found!r}"
    )


def _is_own(value: Any, module: str) -> bool:
    """Whether a value is a space, or a function for one, that a module defines, not imports."""
    space = isinstance(value, type) and issubclass(value, Space)
    return (space or inspect.isfunction(value)) and value.__module__ == module


def get(
    name: str,
    input_shapes: Sequence[Sequence[int]],
    output_units: Units,
    output_activation: Activation = None,
    **options: Any,
) -> Space:
    """Make the space called `name` for these inputs and outputs; see `find` and `Space`."""
    return find(name)(input_shapes, output_units, output_activation, **options)


def graph_of_genome(name: str, genome: Sequence[int]) -> LayerGraph:
    """Return a layer graph for ``space:genome`` on a command line; see `Space.example`.

    `graph_meta.find_prefix` finds this function as an entry point (pyproject.toml).

    Raises
    ------
    SpaceError
        There is no such space, it has no genes, or it has no such genome.
    """
    return with_genes(find(name).example(), "space:genome").graph(tuple(genome))
