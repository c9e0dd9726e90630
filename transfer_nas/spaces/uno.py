"""Several kinds of input, each with its feature tower, then a residual network: CANDLE's Uno."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from graph_meta import layers
from graph_meta.graph import GraphBuilder, LayerGraph
from graph_meta.layers import LayerTemplate
from transfer_nas.errors import SpaceError
from transfer_nas.spaces._base import Activation, Gene, GeneSpace, Units
from transfer_nas.spaces._dense import add_projected, node_choices, scaled
from transfer_nas.spaces._towers import FeatureTowers


class Uno(GeneSpace):
    """Feature towers whose outputs are joined and go through a trunk with residual connections.

    Node j of the tower of kind k has the gene ``tower_k_j``: ``none``, a width with an activation,
    or a dropout rate. Inputs of one kind go through the same tower: its layers are shared, each
    with one call an input. Inputs of one feature (doses) join the rest as they are. Node i of the
    trunk has the gene ``trunk_i``: in addition, a layer may be ``residual``, which adds the node's
    input to its output, after a linear projection where the widths differ.

    Uno predicts how a tumour responds to a dose of one drug or two (ECP-CANDLE Benchmarks,
    Pilot1/Uno: seven inputs, towers and trunk of three dense layers of 1,000 units, the towers of
    descriptors and of fingerprints shared by both drugs). The decisions are those of DeepHyper's
    space for it (Balaprakash et al., *Scalable reinforcement-learning-based neural architecture
    search for cancer deep learning research*, SC'19).

    Parameters
    ----------
    input_shapes
        Two inputs or more; those of more than one axis are flattened.
    output_units, output_activation
        See `Space`.
    kinds
        Name of the kind of each input; inputs of one kind have one shape. None: inputs of equal
        shape are of one kind, called by the position of the first of them.
    tower_nodes, trunk_nodes
        Number of nodes of each tower and of the trunk.
    units
        Widths to choose from. None: 100, 500 and 1,000, scaled to the number of features.
    activations
        Keras names of the activations to choose from.
    dropout_rates
        Rates to choose from.
    """

    name = "uno"

    def __init__(
        self,
        input_shapes: Sequence[Sequence[int]],
        output_units: Units,
        output_activation: Activation = None,
        *,
        kinds: Sequence[str] | None = None,
        tower_nodes: int = 3,
        trunk_nodes: int = 3,
        units: Sequence[int] | None = None,
        activations: Sequence[str] = ("relu", "tanh", "sigmoid"),
        dropout_rates: Sequence[float] = (0.3, 0.4, 0.5),
    ) -> None:
        super().__init__(input_shapes, output_units, output_activation)
        if len(self.input_shapes) < 2:
            raise self._misfit("at least two inputs (for one, see attn, dense_skip, feed_forward)")
        self.kinds = self._kinds(kinds)
        if units is None:
            features = sum(math.prod(shape) for shape in self.input_shapes)
            units = scaled((100, 500, 1000), features)
        if tower_nodes < 0 or trunk_nodes < 1 or not units or not activations:
            raise SpaceError("space uno: nothing to choose from")
        choices = node_choices(units, activations, dropout_rates)
        self._towers = FeatureTowers(self.input_shapes, self.kinds, tower_nodes, choices)
        dense = node_choices(units, activations)
        trunk: dict[str, tuple[LayerTemplate | None, bool]] = {
            **{name: (template, False) for name, template in choices.items()},
            **{f"{name}_residual": (dense[name], True) for name in dense if name != "none"},
        }
        self._trunk = tuple(trunk.values())
        self.genes = (
            *self._towers.genes,
            *(Gene(f"trunk_{i}", tuple(trunk)) for i in range(trunk_nodes)),
        )

    def _kinds(self, kinds: Sequence[str] | None) -> tuple[str, ...]:
        if kinds is None:
            return tuple(str(self.input_shapes.index(shape)) for shape in self.input_shapes)
        if len(kinds) != len(self.input_shapes):
            raise self._misfit(f"one input for each of the {len(kinds)} kinds {', '.join(kinds)}")
        shapes: dict[str, tuple[int, ...]] = {}
        for kind, shape in zip(kinds, self.input_shapes, strict=True):
            if shapes.setdefault(kind, shape) != shape:
                raise self._misfit(f"inputs of one shape for the kind {kind!r}")
        return tuple(kinds)

    @classmethod
    def example(cls) -> Uno:
        """Make this space for the inputs of the benchmark; see `Space.example`."""
        return cls(
            [(1,), (1,), (942,), (5270,), (2048,), (5270,), (2048,)],
            1,
            kinds=(
                "dose",
                "dose",
                "rnaseq",
                "descriptors",
                "fingerprints",
                "descriptors",
                "fingerprints",
            ),
        )

    def graph(self, genome: Sequence[int]) -> LayerGraph:
        """Return the layer graph of a genome; see `Space.graph`."""
        self.check(genome)
        builder = GraphBuilder()
        values = iter(genome)
        _, features = self._towers.build(builder, values)
        edge = builder.add(layers.concatenate(), *features)
        for value in values:
            template, residual = self._trunk[value]
            if template is not None:
                anchor, edge = edge, builder.add(template, edge)
                if residual:
                    edge = add_projected(builder, anchor, onto=edge)
        return self._head(builder, edge)

    def describe(self) -> dict[str, Any]:
        """Return what makes this space this space; see `Space.describe`."""
        return super().describe() | {"kinds": list(self.kinds)}
