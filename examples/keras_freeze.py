"""Freeze what two Keras models share.

``python examples/keras_freeze.py``: a model is trained; another, that begins with the same layers,
takes over their weights, keeps them as they are and trains the rest. Which layers are the same,
`graph_meta` finds by itself: names do not matter.
"""

import keras
import numpy as np

from graph_meta import keras_io, prefix
from transfer_nas.applications import resolve


def network(*widths: int) -> keras.Model:
    hidden = [keras.layers.Dense(width, activation="relu") for width in widths]
    head = keras.layers.Dense(2, activation="softmax")
    model = keras.Sequential([keras.Input((30,)), *hidden, head])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    keras.utils.set_random_seed(1)
    data = resolve("breast_cancer").data

    parent = network(64, 32)
    parent.fit(data.x_train, data.y_train, epochs=8, verbose=0)

    child = network(64, 32, 16)
    parent_graph, child_graph = keras_io.from_keras(parent), keras_io.from_keras(child)
    shared = prefix(parent_graph, child_graph)

    weights = keras_io.get_weights(parent)
    inherited = {name: weights[name] for name in shared if name in weights}
    keras_io.set_weights(child, inherited)
    layers = keras_io.layers_by_name(child)
    for name in inherited:
        layers[name].trainable = False
    child.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    child.fit(data.x_train, data.y_train, epochs=8, verbose=0)

    for name, tensors in inherited.items():
        for before, after in zip(tensors, layers[name].get_weights(), strict=True):
            assert np.array_equal(before, after)
    for model, who in ((parent, "parent"), (child, "child")):
        _, accuracy = model.evaluate(data.x_valid, data.y_valid, verbose=0)
        print(f"{who}: accuracy {accuracy:.3f}")
    print(f"{len(shared)} of {len(child_graph)} layers are the parent's, unchanged")


if __name__ == "__main__":
    main()
