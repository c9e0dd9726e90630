"""Chains of dense layers with optional skip connections, as DeepHyper and CANDLE search them."""

from __future__ import annotations

from collections.abc import Sequence

from graph_meta import layers
from graph_meta.graph import Edge, GraphBuilder, LayerGraph, Shape
from transfer_nas.errors import SpaceError
from transfer_nas.spaces._base import Activation, Gene, GeneSpace, Units


class DenseSkip(GeneSpace):
    """A chain of nodes; each may add the outputs of up to three earlier places to its own.

    Node i has a gene ``node_i``: ``identity``, or a width with an activation. A skip gene
    ``skip_i_k`` is 1 if the k-th last anchor before the node is added to its output, after a
    linear projection to the node's width where widths differ; a sum goes through relu. Anchors
    are the features and the outputs of the earlier nodes; k = 1 is the node's own input, which
    makes it a residual block.

    This is the space of "DenseSkipCo" in DeepHyper's architecture search (Balaprakash et al.,
    *Scalable reinforcement-learning-based neural architecture search for cancer deep learning
    research*, SC'19), which the CANDLE benchmarks were searched with.

    Parameters
    ----------
    input_shapes, output_units, output_activation
        See `Space`.
    nodes
        Number of nodes.
    units
        Widths to choose from.
    activations
        Keras names of the activations to choose from.
    max_skips
        Number of anchors that a node may reach back to.
    """

    name = "dense_skip"

    def __init__(
        self,
        input_shapes: Sequence[Sequence[int]],
        output_units: Units,
        output_activation: Activation = None,
        *,
        nodes: int = 6,
        units: Sequence[int] = (16, 32, 48, 64, 80, 96),
        activations: Sequence[str] = ("linear", "relu", "tanh", "sigmoid"),
        max_skips: int = 3,
    ) -> None:
        super().__init__(input_shapes, output_units, output_activation)
        if nodes < 1 or not units or not activations or max_skips < 0:
            raise SpaceError("space dense_skip: nothing to choose from")
        blocks = [(width, activation) for width in units for activation in activations]
        # Layers to choose from, by the value of a node's gene; None: no layer.
        self._dense = (None, *(layers.dense(width, activation=name) for width, name in blocks))
        choices = ("identity", *(f"{width}_{activation}" for width, activation in blocks))
        # Node i sees the features and the outputs of the i nodes before it.
        self._skips = tuple(min(i + 1, max_skips) for i in range(nodes))
        self.genes = tuple(
            gene
            for i, skips in enumerate(self._skips)
            for gene in (
                Gene(f"node_{i}", choices),
                *(Gene(f"skip_{i}_{k}", (0, 1)) for k in range(1, skips + 1)),
            )
        )

    def graph(self, genome: Sequence[int]) -> LayerGraph:
        """Return the layer graph of a genome; see `Space.graph`."""
        self.check(genome)
        builder = GraphBuilder()
        anchors = [self._features(builder)]
        position = 0
        for skips in self._skips:
            edge = anchors[-1]
            layer = self._dense[genome[position]]
            if layer is not None:
                edge = builder.add(layer, edge)
            shape = builder.shape(edge)
            terms = [edge] + [
                self._project(builder, anchors[-k], shape)
                for k in range(1, skips + 1)
                if genome[position + k]
            ]
            if len(terms) > 1:
                edge = builder.add(layers.activation("relu"), builder.add(layers.add(), *terms))
            anchors.append(edge)
            position += 1 + skips
        return self._head(builder, anchors[-1])

    @staticmethod
    def _project(builder: GraphBuilder, edge: Edge, shape: Shape) -> Edge:
        """Return the anchor as a tensor of `shape`: itself, or a linear layer on top of it."""
        if builder.shape(edge) == shape:
            return edge
        return builder.add(layers.dense(int(shape[-1] or 0)), edge)
