"""Draws images/prefixes.svg of what the code says: ``python docs/pictures.py``."""

from __future__ import annotations

from pathlib import Path

from graph_meta import drawing, layers
from graph_meta.graph import GraphBuilder, LayerGraph, prefix


def network(middle: int) -> LayerGraph:
    """Return a small network with a shortcut; `middle` is the width of its second dense layer."""
    builder = GraphBuilder()
    start = builder.add(layers.dense(32, activation="relu"), builder.input((64,)))
    side = builder.add(layers.dense(16, activation="tanh"), start)
    edge = builder.add(layers.dense(middle, activation="relu"), start)
    edge = builder.add(layers.dense(16, activation="relu"), edge)
    edge = builder.add(layers.concatenate(), edge, side)
    return builder.build(builder.add(layers.dense(10, activation="softmax"), edge))


def prefixes() -> str:
    """Return the picture of docs/prefixes.md."""
    a, b = network(24), network(48)
    return drawing.draw_pair(a, b, ("a stored model", "a new one"), prefix(a, b))


if __name__ == "__main__":
    Path(__file__).parent.joinpath("images", "prefixes.svg").write_text(prefixes())
