"""A space of architectures that grow: lists of dense layers, of any length.

``python -m transfer_nas.evolve --application digits --space examples/growing.py:Growing``

A child has one layer more than its parent, or one less, or another dropout in its last one. What
changes is behind all else, so that a child inherits what it has in common with its parent.
"""

from graph_meta import layers
from graph_meta.graph import GraphBuilder
from transfer_nas.errors import SpaceError
from transfer_nas.spaces import Space

ACTIVATIONS = ("relu", "tanh", "swish")


class Growing(Space):
    """Architectures are JSON: ``[{"units": 32, "activation": "relu", "dropout": 0.13}, ...]``."""

    name = "growing"
    columns = ("depth", "last_dropout")  # what the results say beside the architecture itself

    def sample(self, rng):
        return [self._layer(rng)]

    def mutate(self, architecture, rng):
        *before, last = architecture
        match int(rng.integers(3)):
            case 0 if before:
                return before
            case 1:
                return [*before, {**last, "dropout": 0.5 * rng.uniform()}]
        return [*architecture, self._layer(rng)]

    def graph(self, architecture):
        builder = GraphBuilder()
        edge = self._features(builder)  # the inputs, flattened and joined
        for layer in architecture:
            dense = layers.dense(layer["units"], activation=layer["activation"])
            edge = builder.add(layers.dropout(layer["dropout"]), builder.add(dense, edge))
        return self._head(builder, edge)  # the output layer

    def values(self, architecture):
        return {"depth": len(architecture), "last_dropout": architecture[-1]["dropout"]}

    def check(self, architecture):
        for layer in architecture:
            if layer["activation"] not in ACTIVATIONS or not 0 <= layer["dropout"] < 1:
                raise SpaceError(f"space {self.name}: no such layer: {layer}")

    @staticmethod
    def _layer(rng):
        return {
            "units": 8 * (1 + int(rng.integers(8))),
            "activation": ACTIVATIONS[int(rng.integers(3))],
            "dropout": 0.5 * rng.uniform(),
        }
