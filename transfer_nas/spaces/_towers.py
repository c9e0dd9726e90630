"""Feature towers: what the networks for several kinds of input begin with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from graph_meta import layers
from graph_meta.graph import Edge, GraphBuilder
from graph_meta.layers import LayerTemplate
from transfer_nas.spaces._base import Gene
from transfer_nas.spaces._dense import Choices


class FeatureTowers:
    """A chain of variable nodes for each kind of input; inputs of one kind share its layers.

    Sharing means one layer with several calls: the features of a first and of a second drug go
    through the same weights. An input of one feature, such as a dose, passes by as it is.

    Parameters
    ----------
    input_shapes
        Shape of each input without the batch axis; more than one axis is flattened.
    kinds
        Kind of each input; inputs of one kind have one shape.
    nodes
        Number of variable nodes of a tower.
    choices
        What may stand at a node.
    """

    def __init__(
        self,
        input_shapes: Sequence[tuple[int, ...]],
        kinds: Sequence[str],
        nodes: int,
        choices: Choices,
    ) -> None:
        self._shapes = tuple(input_shapes)
        self._nodes = nodes
        self._templates = tuple(choices.values())
        inputs_by_kind: dict[str, list[int]] = {}
        for position, (kind, shape) in enumerate(zip(kinds, input_shapes, strict=True)):
            if math.prod(shape) > 1:
                inputs_by_kind.setdefault(kind, []).append(position)
        # Positions of the inputs of each tower.
        self._towers = tuple(tuple(inputs) for inputs in inputs_by_kind.values())
        self.genes = tuple(
            Gene(f"tower_{kind}_{node}", tuple(choices))
            for kind in inputs_by_kind
            for node in range(nodes)
        )

    def build(
        self, builder: GraphBuilder, genome: Iterator[int]
    ) -> tuple[tuple[Edge, ...], list[Edge]]:
        """Add the inputs and their towers.

        Parameters
        ----------
        builder
            Empty.
        genome
            Yields the values of `genes` first.

        Returns
        -------
        inputs, features : tuple of Edge, list of Edge
            The inputs as vectors, and what comes out of their towers, both in the order of the
            inputs.
        """
        features = [builder.input(shape) for shape in self._shapes]
        for position, shape in enumerate(self._shapes):
            if len(shape) > 1:
                features[position] = builder.add(layers.flatten(), features[position])
        inputs = tuple(features)
        for positions in self._towers:
            for _ in range(self._nodes):
                template = self._templates[next(genome)]
                if template is not None:
                    self._share(builder, template, features, positions)
        return inputs, features

    @staticmethod
    def _share(
        builder: GraphBuilder,
        template: LayerTemplate,
        features: list[Edge],
        positions: Sequence[int],
    ) -> None:
        """Put one layer onto several tensors, in place."""
        first, *others = positions
        edge = features[first] = builder.add(template, features[first])
        for position in others:
            features[position] = builder.call(edge, template, features[position])
