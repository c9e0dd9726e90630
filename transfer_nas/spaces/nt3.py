"""Convolutions and pooling over one axis, then dense layers: the family of CANDLE's NT3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from graph_meta import layers
from graph_meta.graph import GraphBuilder, LayerGraph
from graph_meta.layers import LayerTemplate, Padding
from transfer_nas.errors import SpaceError
from transfer_nas.spaces._base import Activation, Gene, GeneSpace, Scalar, Units
from transfer_nas.spaces._dense import scaled

#: What a gene chooses from, by its value; None: no layer.
_Choices = dict[Scalar, LayerTemplate | None]


class Nt3(GeneSpace):
    """Blocks of convolution, activation and pooling, then blocks of dense, activation and dropout.

    Convolution block i has the genes ``conv_i`` (``none``, or filters x kernel size),
    ``activation_i`` and ``pool_i`` (0: no pooling); dense block i has ``dense_i`` (0: no layer),
    ``dense_activation_i`` and ``dropout_i``. As in the benchmark, each is a layer of its own that
    stands there whatever its neighbours are, so no gene is without effect.

    NT3 tells tumour from normal tissue by 60,483 gene expressions (ECP-CANDLE Benchmarks,
    Pilot1/NT3: two convolutions of 128 filters, then dense layers of 200 and 20 units). The
    decisions are those of DeepHyper's space for it (Balaprakash et al., *Scalable
    reinforcement-learning-based neural architecture search for cancer deep learning research*,
    SC'19).

    Parameters
    ----------
    input_shapes
        One input of shape (steps,) or (steps, channels).
    output_units, output_activation
        See `Space`.
    conv_blocks, dense_blocks
        Number of blocks of each sort.
    filters, kernel_sizes, pool_sizes
        To choose from; kernels and pools that are longer than the input are left out.
    dense_units
        Widths to choose from. None: those of DeepHyper's space, scaled to the size of the input.
    activations
        Keras names of the activations to choose from; ``linear`` is none.
    dropout_rates
        Rates to choose from; 0 is no dropout layer.
    padding
        ``same`` fits every input. ``valid``, as in the benchmark, needs an input that is longer
        than all the largest windows together.
    """

    name = "nt3"

    def __init__(
        self,
        input_shapes: Sequence[Sequence[int]],
        output_units: Units,
        output_activation: Activation = None,
        *,
        conv_blocks: int = 2,
        dense_blocks: int = 2,
        filters: Sequence[int] = (8, 16, 32),
        kernel_sizes: Sequence[int] = (3, 4, 5, 6),
        pool_sizes: Sequence[int] = (2, 3, 4, 5, 6),
        dense_units: Sequence[int] | None = None,
        activations: Sequence[str] = ("linear", "relu", "tanh", "sigmoid"),
        dropout_rates: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
        padding: Padding = "same",
    ) -> None:
        super().__init__(input_shapes, output_units, output_activation)
        if len(self.input_shapes) != 1 or len(self.input_shapes[0]) > 2:
            raise self._misfit("one input of shape (steps,) or (steps, channels)")
        shape = self.input_shapes[0]
        kernel_sizes = [size for size in kernel_sizes if size <= shape[0]]
        pool_sizes = [size for size in pool_sizes if size <= shape[0]]
        if not kernel_sizes or not pool_sizes:
            raise self._misfit("an input that is longer than the smallest kernel and pool")
        if conv_blocks < 1 or dense_blocks < 0 or not filters or not activations:
            raise SpaceError("space nt3: nothing to choose from")
        if dense_units is None:
            dense_units = scaled((10, 50, 100, 200, 250, 500, 750, 1000), math.prod(shape))
        self.padding = padding
        if padding == "valid":
            self._check_length(conv_blocks, max(kernel_sizes), max(pool_sizes))

        self._reshape = layers.reshape((*shape, 1)) if len(shape) == 1 else None
        convolutions: _Choices = {"none": None}
        for count in filters:
            for size in kernel_sizes:
                convolutions[f"{count}x{size}"] = layers.conv1d(count, size, padding=padding)
        functions: _Choices = {
            name: None if name == "linear" else layers.activation(name) for name in activations
        }
        pools: _Choices = {0: None}
        pools |= {size: layers.max_pooling1d(size, padding=padding) for size in pool_sizes}
        dense: _Choices = {0: None}
        dense |= {units: layers.dense(units) for units in dense_units}
        dropouts: _Choices = {
            float(rate): layers.dropout(rate) if rate else None for rate in dropout_rates
        }
        blocks = (
            {"conv": convolutions, "activation": functions, "pool": pools},
            {"dense": dense, "dense_activation": functions, "dropout": dropouts},
        )
        counts = (conv_blocks, dense_blocks)
        self.genes = tuple(
            Gene(f"{name}_{i}", tuple(choices))
            for block, count in zip(blocks, counts, strict=True)
            for i in range(count)
            for name, choices in block.items()
        )
        #: Of each gene, the layers to choose from.
        self._templates = tuple(
            tuple(choices.values())
            for block, count in zip(blocks, counts, strict=True)
            for _ in range(count)
            for choices in block.values()
        )
        self._flatten_at = 3 * conv_blocks  # the gene before which the axes become one

    def _check_length(self, blocks: int, kernel_size: int, pool_size: int) -> None:
        steps = self.input_shapes[0][0]
        for _ in range(blocks):
            steps = (steps - kernel_size + 1) // pool_size
        if steps < 1:
            raise self._misfit(
                f"an input that is long enough for {blocks} block(s) of a kernel of {kernel_size} "
                f"and a pool of {pool_size} without padding; choose padding='same'"
            )

    @classmethod
    def example(cls) -> Nt3:
        """Make this space for the gene expressions of the benchmark; see `Space.example`."""
        return cls([(60483,)], 2, "softmax")

    def graph(self, genome: Sequence[int]) -> LayerGraph:
        """Return the layer graph of a genome; see `Space.graph`."""
        self.check(genome)
        builder = GraphBuilder()
        edge = builder.input(self.input_shapes[0])
        if self._reshape is not None:
            edge = builder.add(self._reshape, edge)
        for position, (templates, value) in enumerate(zip(self._templates, genome, strict=True)):
            if position == self._flatten_at:
                edge = builder.add(layers.flatten(), edge)
            template = templates[value]
            if template is not None:
                edge = builder.add(template, edge)
        return self._head(builder, edge)

    def describe(self) -> dict[str, Any]:
        """Return what makes this space this space; see `Space.describe`."""
        return super().describe() | {"padding": self.padding}
