"""Augmentation of training rows by layers of Keras; a function on batches is `feeding.Feed`'s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transfer_nas.applications._terms import new

if TYPE_CHECKING:
    import keras


def layers_of(augment: Any) -> Sequence[Any] | None:
    """Return the layers of `Application.augment`; None if it is a function on batches."""
    augment = new(augment)
    if isinstance(augment, Sequence):
        return augment
    return getattr(augment, "layers", (augment,)) if hasattr(augment, "get_config") else None


def before(model: keras.Model, layers: Sequence[Any], seed: int) -> keras.Model:
    """Return a network for training that augments its inputs; it shares the layers with `model`.

    Parameters
    ----------
    model
        A model with one input.
    layers
        Layers of the user's. Those that draw random numbers are made anew with a seed of their
        own, the others are used as they are. Layers for images take those without an axis of
        channels, too.
    seed
        Of the candidate.
    """
    import keras

    (own,) = model.inputs
    given = keras.Input(own.shape[1:], dtype=own.dtype)
    x = given
    for number, layer in enumerate(layers):
        config = layer.get_config()
        if "seed" in config:
            config["seed"] = (seed + number) % 2**31
            layer = type(layer).from_config(config)
        flat = len(x.shape) == 3 and "image_preprocessing" in type(layer).__module__
        x = layer(keras.ops.expand_dims(x, -1)) if flat else layer(x)
        x = keras.ops.squeeze(x, -1) if flat else x
    return keras.Model(given, model(x))
