"""Running statistics of normalizations: made those of the weights that a training has come to.

BatchNormalization judges by moving averages. With Keras' momentum of 0.99 they are those of the
last hundreds of steps, and a candidate's whole training has few more: its score would say how far
the averages have come, and heirs would inherit them frozen. So before a network is judged, and with
that before it is stored, they are computed anew over training rows (as stochastic weight averaging
does, Izmailov et al., *Averaging weights leads to wider optima and better generalization*, UAI'18,
section 3.2), all other layers as they are when it is judged: without dropout.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from transfer_nas.applications import Batches

if TYPE_CHECKING:
    import keras

_MOST_ROWS = 2048
"""Of the training rows, spread evenly: a variance of so many is exact to some three percent."""


def batches(rows: int, size: int) -> list[npt.NDArray[np.int64]]:
    """Return the numbers of the rows to compute statistics over, in equal batches of about a size.

    Each batch goes through all rows in long steps, as they may be sorted.
    """
    chosen = np.linspace(0, rows, min(rows, _MOST_ROWS), endpoint=False).astype(np.int64)
    count = max(1, round(len(chosen) / size))
    return [chosen[begin::count] for begin in range(count)]


def renew(model: keras.Model, x: Sequence[Any], size: int) -> None:
    """Compute the statistics of a model's trainable layers anew.

    A layer that has a ``momentum``, as BatchNormalization does, gets the average over all batches;
    any other that changes weights of its own while it trains is shown the batches, and does what it
    does. Frozen layers stay as they are.

    Parameters
    ----------
    model
        The model.
    x
        Training rows, an array for each input; or the one source of batches.
    size
        Rows at a time, about.
    """
    import keras

    layers = [layer for layer in model._flatten_layers() if _keeps_statistics(layer)]
    if not layers:
        return
    seen = 0
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_as_in_training(layer))
        for rows in _chosen(x, size):
            count = len(rows[0])
            for layer in layers:
                if hasattr(layer, "momentum"):
                    layer.momentum = seen / (seen + count)
            given = [keras.ops.convert_to_tensor(array) for array in rows]
            with without_gradients():
                model(given[0] if len(given) == 1 else given, training=False)
            seen += count


def _chosen(x: Sequence[Any], size: int) -> Iterator[Sequence[npt.NDArray[Any]]]:
    """Yield the inputs to compute statistics over; of a source of batches, the first ones."""
    if not isinstance(x[0], Batches):
        yield from ([array[batch] for array in x] for batch in batches(len(x[0]), size))
        return
    seen = 0
    for given in x[0]:
        yield given.x
        seen += len(given.x[0])
        if seen >= _MOST_ROWS:
            return


@contextlib.contextmanager
def without_gradients() -> Iterator[None]:
    """Let a backend keep nothing for gradients: for who only judges."""
    import keras

    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    with torch.no_grad():
        yield


def _keeps_statistics(layer: keras.Layer) -> bool:
    """Whether a layer changes weights of its own, and not those of layers inside, in training."""
    return bool(
        layer.trainable
        and not layer._layers
        and layer.non_trainable_weights
        and "training" in inspect.signature(layer.call).parameters
    )


@contextlib.contextmanager
def _as_in_training(layer: keras.Layer) -> Iterator[None]:
    """Let one layer train though its model does not; its momentum is what it was afterwards."""
    call, momentum = layer.call, getattr(layer, "momentum", None)

    def trained(*arguments: Any, **named: Any) -> Any:
        return call(*arguments, **{**named, "training": True})

    layer.call = trained
    try:
        yield
    finally:
        del layer.call
        if momentum is not None:
            layer.momentum = momentum
