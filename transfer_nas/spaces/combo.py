"""A cell line and several drugs, then cells with skip connections: the family of CANDLE's Combo."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graph_meta import layers
from graph_meta.graph import Edge, GraphBuilder, LayerGraph
from graph_meta.layers import LayerTemplate
from transfer_nas.errors import SpaceError
from transfer_nas.spaces._base import Activation, Gene, GeneSpace, Units
from transfer_nas.spaces._dense import node_choices, scaled
from transfer_nas.spaces._towers import FeatureTowers


class Combo(GeneSpace):
    """Two feature towers, one shared by all drugs, and a chain of cells that may look back.

    Node j of a tower has the gene ``tower_cell_j`` or ``tower_drug_j``; node j of cell i of the
    trunk has ``cell_i_node_j``. Their values are a width with an activation, a dropout rate, and,
    but at the first node of a cell, ``none``. The gene ``cell_i_skip`` names what is joined to the
    output of the cell: nothing, all ``inputs``, the one called ``cell`` or ``drug_n``, the joined
    outputs of the ``towers``, or an earlier cell (``cell_n``). Since each cell holds at least one
    layer, these are all different tensors and no gene is without effect.

    Combo predicts the growth of a tumour cell line under a pair of drugs (ECP-CANDLE Benchmarks,
    Pilot1/Combo: expressions of 942 genes, 3,820 descriptors of each drug, towers and trunk of
    three dense layers of 1,000 units). The decisions are those of DeepHyper's space for it
    (Balaprakash et al., *Scalable reinforcement-learning-based neural architecture search for
    cancer deep learning research*, SC'19), in which the drugs' tower is shared by
    mirror nodes.

    Parameters
    ----------
    input_shapes
        The cell line, then two drugs or more, all of one shape. More than one axis is flattened.
    output_units, output_activation
        See `Space`.
    tower_nodes
        Number of nodes of each tower.
    cells, cell_nodes
        Number of cells of the trunk, and of nodes of each.
    units
        Widths to choose from. None: 100, 500 and 1,000, scaled to the number of features.
    activations
        Keras names of the activations to choose from.
    dropout_rates
        Rates to choose from.
    """

    name = "combo"

    def __init__(
        self,
        input_shapes: Sequence[Sequence[int]],
        output_units: Units,
        output_activation: Activation = None,
        *,
        tower_nodes: int = 3,
        cells: int = 3,
        cell_nodes: int = 3,
        units: Sequence[int] | None = None,
        activations: Sequence[str] = ("relu", "tanh", "sigmoid"),
        dropout_rates: Sequence[float] = (0.05, 0.1, 0.2),
    ) -> None:
        super().__init__(input_shapes, output_units, output_activation)
        drugs = self.input_shapes[1:]
        if len(drugs) < 2 or any(shape != drugs[0] for shape in drugs):
            raise self._misfit(
                "the features of a cell line, then those of two drugs or more, all of one shape"
            )
        if units is None:
            features = sum(math.prod(shape) for shape in self.input_shapes)
            units = scaled((100, 500, 1000), features)
        if tower_nodes < 0 or cells < 1 or cell_nodes < 1 or not units or not activations:
            raise SpaceError("space combo: nothing to choose from")
        choices = node_choices(units, activations, dropout_rates)
        kinds = ("cell", *("drug" for _ in drugs))
        self._towers = FeatureTowers(self.input_shapes, kinds, tower_nodes, choices)
        first = tuple(name for name in choices if name != "none")
        inputs = ("inputs", "cell", *(f"drug_{n}" for n in range(1, len(drugs) + 1)))
        genes = list(self._towers.genes)
        for i in range(cells):
            genes += [
                Gene(f"cell_{i}_node_{j}", tuple(choices) if j else first)
                for j in range(cell_nodes)
            ]
            earlier = (f"cell_{n}" for n in range(i))
            genes.append(Gene(f"cell_{i}_skip", ("none", *inputs, "towers", *earlier)))
        self.genes = tuple(genes)
        self._templates = tuple(choices.values())
        self._cells, self._cell_nodes = cells, cell_nodes

    @classmethod
    def example(cls) -> Combo:
        """Make this space for the cell lines and drugs of the benchmark; see `Space.example`."""
        return cls([(942,), (3820,), (3820,)], 1)

    def graph(self, genome: Sequence[int]) -> LayerGraph:
        """Return the layer graph of a genome; see `Space.graph`."""
        self.check(genome)
        builder = GraphBuilder()
        values = iter(genome)
        inputs, features = self._towers.build(builder, values)
        join = layers.concatenate()
        edge = builder.add(join, *features)
        # What each value of a skip gene joins to the output of its cell.
        anchors: list[tuple[Edge, ...]] = [(), inputs, *((each,) for each in inputs), (edge,)]
        for _ in range(self._cells):
            template: LayerTemplate | None = self._templates[next(values) + 1]  # never none
            for j in range(self._cell_nodes):
                if j:
                    template = self._templates[next(values)]
                if template is not None:
                    edge = builder.add(template, edge)
            skip = anchors[next(values)]
            if skip:
                edge = builder.add(join, edge, *skip)
            anchors.append((edge,))
        return self._head(builder, edge)
