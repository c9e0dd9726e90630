"""How candidates are trained and judged, once they have their weights.

`_base.py` says what an engine is. Two of them:

- `arrays` trains small networks in NumPy, as Keras would but without its start-up costs;
- `keras_engine` trains every Keras model: `tensorflow_loop.py` on TensorFlow,
  Keras' own `fit` on the other backends.

`transfer_nas.trainer` decides where weights come from, what is frozen and for how long.
"""

from __future__ import annotations

from collections.abc import Sequence

from transfer_nas.applications import Application
from transfer_nas.training._base import Candidate, Engine, Training

ENGINES = ("auto", "keras")
"""``keras``: everything is trained by Keras; ``auto``: small networks in NumPy."""

__all__ = ["ENGINES", "Candidate", "Engine", "Training", "engines"]


def engines(
    application: Application, batch_size: int, epochs: int, which: str = "auto"
) -> Sequence[Engine]:
    """Make the engines for an application; the first that supports a graph is to train it.

    Parameters
    ----------
    application
        Data, loss, metric, optimizer.
    batch_size
        Rows a step.
    epochs
        Epochs of a training, more or less.
    which
        One of `ENGINES`.
    """
    from transfer_nas.training.arrays.engine import ArrayEngine
    from transfer_nas.training.keras_engine import KerasEngine

    keras = KerasEngine(application, batch_size)
    if which == "auto" and ArrayEngine.knows(application):
        return (ArrayEngine(application, batch_size, epochs), keras)
    return (keras,)
