"""Chains of dense layers: depth, widths, activations and dropout vary."""

from __future__ import annotations

from collections.abc import Sequence

from graph_meta import layers
from graph_meta.graph import GraphBuilder, LayerGraph
from transfer_nas.errors import SpaceError
from transfer_nas.spaces._base import Activation, Gene, GeneSpace, Units


class FeedForward(GeneSpace):
    """Up to `max_depth` dense layers one after the other, each perhaps followed by dropout.

    Block i has two genes: ``layer_i``, which is ``none`` or a width with an activation, and
    ``dropout_i``, a rate at which 0 means no dropout layer. A block without a layer is how the
    depth varies; so no gene is ever without effect.

    Parameters
    ----------
    input_shapes, output_units, output_activation
        See `Space`.
    max_depth
        Number of blocks.
    units
        Widths to choose from.
    activations
        Keras names of the activations to choose from.
    dropout_rates
        Rates to choose from, each in [0, 1).
    """

    name = "feed_forward"

    def __init__(
        self,
        input_shapes: Sequence[Sequence[int]],
        output_units: Units,
        output_activation: Activation = None,
        *,
        max_depth: int = 6,
        units: Sequence[int] = (32, 48, 64, 96, 128, 192),
        activations: Sequence[str] = ("relu", "tanh", "swish"),
        dropout_rates: Sequence[float] = (0.0, 0.1, 0.2),
    ) -> None:
        super().__init__(input_shapes, output_units, output_activation)
        if max_depth < 1 or not units or not activations or not dropout_rates:
            raise SpaceError("space feed_forward: nothing to choose from")
        blocks = [(width, activation) for width in units for activation in activations]
        # Layers to choose from, by the value of a gene; None: no layer.
        self._dense = (None, *(layers.dense(width, activation=name) for width, name in blocks))
        self._dropout = tuple(layers.dropout(rate) if rate else None for rate in dropout_rates)
        choices = ("none", *(f"{width}_{activation}" for width, activation in blocks))
        rates = tuple(float(rate) for rate in dropout_rates)
        self.genes = tuple(
            gene
            for i in range(max_depth)
            for gene in (Gene(f"layer_{i}", choices), Gene(f"dropout_{i}", rates))
        )

    def graph(self, genome: Sequence[int]) -> LayerGraph:
        """Return the layer graph of a genome; see `Space.graph`."""
        self.check(genome)
        builder = GraphBuilder()
        edge = self._features(builder)
        for block, rate in zip(genome[::2], genome[1::2], strict=True):
            for layer in (self._dense[block], self._dropout[rate]):
                if layer is not None:
                    edge = builder.add(layer, edge)
        return self._head(builder, edge)
