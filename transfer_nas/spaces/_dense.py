"""Decisions of dense networks that the spaces of the CANDLE problems share.

A *variable node*, in the words of DeepHyper's architecture search, is a place in a network at
which one of several layers stands, or none.
"""

from __future__ import annotations

from collections.abc import Sequence

from graph_meta import layers
from graph_meta.graph import Edge, GraphBuilder
from graph_meta.layers import LayerTemplate

#: What may stand at a variable node, by the name of the choice; None: nothing.
Choices = dict[str, LayerTemplate | None]


def node_choices(
    units: Sequence[int], activations: Sequence[str], dropout_rates: Sequence[float] = ()
) -> Choices:
    """Return what a variable node chooses from: ``none``, a dense layer, or dropout.

    Since each choice but ``none`` adds one layer, whatever stands at the other nodes, no node is
    ever without effect.
    """
    choices: Choices = {"none": None}
    for width in units:
        for name in activations:
            choices[f"{width}_{name}"] = layers.dense(width, activation=name)
    choices |= {f"dropout_{rate}": layers.dropout(rate) for rate in dropout_rates}
    return choices


def scaled(widths: Sequence[int], features: int) -> tuple[int, ...]:
    """Return a benchmark's widths in proportion to smaller data.

    Parameters
    ----------
    widths
        Widths made for data of thousands of features.
    features
        Number of features of the data at hand.

    Returns
    -------
    tuple of int
        `widths` if the widest is no wider than the data; else scaled down until it is no wider,
        none below 4, no width twice.
    """
    factor = min(1.0, features / max(widths))
    return tuple(sorted({max(4, round(width * factor)) for width in widths}))


def add_projected(builder: GraphBuilder, edge: Edge, onto: Edge) -> Edge:
    """Return the sum of two vectors; `edge` goes through a linear layer if the widths differ."""
    shape = builder.shape(onto)
    if builder.shape(edge) != shape:
        edge = builder.add(layers.dense(int(shape[-1] or 0)), edge)
    return builder.add(layers.add(), onto, edge)
