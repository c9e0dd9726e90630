"""A dense network that weighs its features by a gate: the family of CANDLE's Attn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graph_meta import layers
from graph_meta.graph import Edge, GraphBuilder, LayerGraph
from graph_meta.layers import LayerTemplate
from transfer_nas.errors import SpaceError
from transfer_nas.spaces._base import Activation, Gene, GeneSpace, Units
from transfer_nas.spaces._dense import add_projected, node_choices, scaled

_NORMALIZATIONS: dict[str, LayerTemplate | None] = {
    "none": None,
    "batch": layers.batch_normalization(),
    "layer": layers.layer_normalization(),
}


class Attn(GeneSpace):
    """A stem, an attention block over its features, and a trunk of dense layers.

    The attention block computes values and a gate from the output of the stem, both by a dense
    layer of the same width (gene ``attention``), and multiplies them. Other genes: ``stem``, a
    width with an activation; ``value`` and ``gate``, their activations (a softmax gate spreads a
    weight of 1 over the features); ``bypass``, whether the stem's output is added to that of the
    block, joined with it, or neither; ``normalization`` after each dense layer but the gate's;
    ``layer_i``, ``none`` or a width with an activation, and ``dropout_i`` for place i of the trunk.
    A dropout layer stands there with or without a dense layer, so no gene is without effect.

    Attn classifies the response of cancer cells to drugs from 6,212 features (ECP-CANDLE
    Benchmarks, Pilot1/Attn: a stem and an attention block of 1,000 units, a trunk of 500, 250,
    125, 60 and 30 units, each with batch normalization and dropout). Its form of attention, a
    softmax gate on the features, is the benchmark's; the choices of width, activation and dropout
    are those of DeepHyper's dense spaces for its sister problems (Balaprakash et al., SC'19).

    Parameters
    ----------
    input_shapes, output_units, output_activation
        See `Space`.
    trunk_nodes
        Number of places of the trunk.
    units
        Widths to choose from. None: 60, 125, 250, 500 and 1,000, scaled to the number of features.
    activations
        Keras names of the activations to choose from.
    gates
        Keras names of the activations of the gate to choose from.
    dropout_rates
        Rates to choose from; 0 is no dropout layer.
    """

    name = "attn"

    def __init__(
        self,
        input_shapes: Sequence[Sequence[int]],
        output_units: Units,
        output_activation: Activation = None,
        *,
        trunk_nodes: int = 5,
        units: Sequence[int] | None = None,
        activations: Sequence[str] = ("relu", "tanh", "sigmoid"),
        gates: Sequence[str] = ("softmax", "sigmoid"),
        dropout_rates: Sequence[float] = (0.0, 0.1, 0.2, 0.3),
    ) -> None:
        super().__init__(input_shapes, output_units, output_activation)
        if units is None:
            features = sum(math.prod(shape) for shape in self.input_shapes)
            units = scaled((60, 125, 250, 500, 1000), features)
        if trunk_nodes < 0 or not units or not activations or not gates or not dropout_rates:
            raise SpaceError("space attn: nothing to choose from")
        choices = node_choices(units, activations)
        self._dense = tuple(choices.values())
        self._dropout = tuple(layers.dropout(rate) if rate else None for rate in dropout_rates)
        self._values = [
            [layers.dense(width, activation=name) for name in activations] for width in units
        ]
        self._gates = [[layers.dense(width, activation=name) for name in gates] for width in units]
        rates = tuple(float(rate) for rate in dropout_rates)
        self.genes = (
            Gene("normalization", tuple(_NORMALIZATIONS)),
            Gene("stem", tuple(name for name in choices if name != "none")),
            Gene("attention", tuple(units)),
            Gene("value", tuple(activations)),
            Gene("gate", tuple(gates)),
            Gene("bypass", ("none", "add", "concatenate")),
            *(
                gene
                for i in range(trunk_nodes)
                for gene in (Gene(f"layer_{i}", tuple(choices)), Gene(f"dropout_{i}", rates))
            ),
        )
        self._normalizations = tuple(_NORMALIZATIONS.values())

    @classmethod
    def example(cls) -> Attn:
        """Make this space for the features of the benchmark; see `Space.example`."""
        return cls([(6212,)], 2, "softmax")

    def graph(self, genome: Sequence[int]) -> LayerGraph:
        """Return the layer graph of a genome; see `Space.graph`."""
        self.check(genome)
        builder = GraphBuilder()
        normalization, stem, attention, value, gate, bypass, *trunk = genome
        normalize = self._normalizations[normalization]

        def add(template: LayerTemplate | None, edge: Edge) -> Edge:
            if template is not None:
                edge = builder.add(template, edge)
                if normalize is not None:
                    edge = builder.add(normalize, edge)
            return edge

        features = add(self._dense[stem + 1], self._features(builder))  # a stem is never none
        values = add(self._values[attention][value], features)
        gates = builder.add(self._gates[attention][gate], features)
        edge = builder.add(layers.multiply(), values, gates)
        if bypass == 1:
            edge = add_projected(builder, features, onto=edge)
        elif bypass == 2:
            edge = builder.add(layers.concatenate(), edge, features)
        for layer, rate in zip(trunk[::2], trunk[1::2], strict=True):
            edge = add(self._dense[layer], edge)
            dropout = self._dropout[rate]
            if dropout is not None:
                edge = builder.add(dropout, edge)
        return self._head(builder, edge)
