"""How candidates are trained and judged, once they have their weights.

`_base.py` says what an engine is. Two of them:

- `arrays` trains small networks in NumPy, as Keras would but without its start-up costs;
- `keras_engine` trains every Keras model: `tensorflow_loop.py` on TensorFlow,
  Keras' own `fit` on the other backends.

Others come by entry points of the group `transfer_nas.engines`, each a function that takes an
application and a batch size and returns an `Engine`. `program.py` says what a training is.

`transfer_nas.trainer` decides where weights come from, what is frozen and for how long.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points

from graph_meta import LayerGraph
from transfer_nas.applications import Application
from transfer_nas.errors import InputError, near_misses
from transfer_nas.training._base import Candidate, Engine, Training

ENGINES = ("auto", "keras")
"""``keras``: everything is trained by Keras; ``auto``: small networks in NumPy."""

_GROUP = "transfer_nas.engines"

__all__ = ["ENGINES", "Candidate", "Engine", "Training", "check_engine", "describe", "engines"]


def check_engine(which: str) -> None:
    """Raise InputError unless there is an engine of that name."""
    known = (*ENGINES, *entry_points(group=_GROUP).names)
    if which not in known:
        raise InputError(f"unknown engine {which!r}; {near_misses(which, known)}")


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
        One of `ENGINES`, or the name of an entry point, behind which Keras trains what it cannot.
    """
    from transfer_nas.training.arrays.engine import ArrayEngine
    from transfer_nas.training.keras_engine import KerasEngine

    keras = KerasEngine(application, batch_size)
    if which not in ENGINES:
        (found,) = entry_points(group=_GROUP, name=which)
        own: Engine = found.load()(application, batch_size)
        return (own, keras) if application.fit is None or own.has_models else (keras,)
    if application.fit is not None:
        return (keras,)
    if which == "auto" and ArrayEngine.misfit(application) is None:
        return (ArrayEngine(application, batch_size, epochs), keras)
    return (keras,)


def describe(
    application: Application, which: str, chosen: Sequence[Engine], graphs: Sequence[LayerGraph]
) -> str:
    """Return in one line which engine trains, and why.

    Parameters
    ----------
    application, which
        As for `engines`.
    chosen
        What `engines` returned.
    graphs
        Some networks, for what others of their space may need.
    """
    from transfer_nas.training.arrays.engine import ArrayEngine

    if which == "keras":
        return "Keras trains, as was asked for"
    first, *others = chosen
    if which not in ENGINES:
        return f"{first.name} trains, as was asked for{', and Keras the rest' if others else ''}"
    if application.fit is not None:
        return "Keras trains, as the application has a fit of its own, which takes a Keras model"
    if not others:
        misfit = ArrayEngine.misfit(application)
        return f"Keras trains, as the NumPy engine does not know {misfit}"
    obstacles = [why for graph in graphs if (why := first.obstacle(graph)) is not None]
    if not obstacles:
        return "NumPy trains, which is faster for networks as small as these"
    if len(obstacles) == len(graphs):
        return f"Keras trains, as a network of this space {obstacles[0]}"
    some = f"{len(obstacles)} of {len(graphs)} networks drawn"
    return f"NumPy trains; Keras trains {some}, one of which {obstacles[0]}"
