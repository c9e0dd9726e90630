"""An application whose file breaks one rank, at one moment, for `test_breaking_rank.py`.

``BREAK`` is ``MOMENT RANK HOW``: a function of this file that is called at that moment, in the rank
of that number, raises the exception of that name or sends the process the signal of that name.
"""

import builtins
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cpp_store.command_line import expected_rank

from graph_meta.graph import LayerGraph
from transfer_nas.applications import Application, Data
from transfer_nas.spaces import FeedForward


def moment(name: str) -> None:
    wanted, rank, how = os.environ["BREAK"].split()
    if name != wanted or int(rank) != expected_rank():
        return
    if how.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[how])
        return
    error = getattr(builtins, how)(f"as asked: {name}")
    assert isinstance(error, BaseException)
    raise error


def begun() -> bool:
    """Whether jobs are handed out: a space is asked for networks before that, too."""
    journal = Path(os.environ["RUN"], "checkpoint")
    return journal.exists() and journal.stat().st_size > 0


def over() -> bool:
    """Whether the search is, and models are finished."""
    return Path(os.environ["RUN"], "summary.json").exists()


class Keras:
    """Notices that Keras is imported, which only `best.keras` needs here."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "keras" and over():
            moment("best.keras")


class Breaking(FeedForward):
    name = "breaking"

    def __init__(self, *arguments: Any) -> None:
        # As where values come from a set, whose order is another one in each process.
        turned = "UNORDERED" in os.environ and expected_rank() > 0
        super().__init__(*arguments, activations=("tanh", "relu") if turned else ("relu", "tanh"))

    def describe(self) -> dict[str, Any]:
        moment("opening")
        return super().describe()

    def sample(self, rng: Any) -> tuple[int, ...]:
        if begun():
            moment("asking")  # in the manager's thread
        return super().sample(rng)

    def graph(self, genome: Sequence[int]) -> LayerGraph:
        if begun():
            moment("retraining" if over() else "evaluating")
        return super().graph(genome)

    def values(self, genome: Sequence[int]) -> dict[str, Any]:
        moment("summary")
        return super().values(genome)


def load() -> Data:
    moment("loading")
    rng = np.random.default_rng(expected_rank() if "UNSEEDED" in os.environ else 0)
    x = rng.normal(size=(120, 4)).astype("f4")
    y = (x[:, 0] > 0).astype("i4")
    return Data(x[:80], y[:80], x[80:], y[80:])


sys.meta_path.insert(0, Keras())  # type: ignore[arg-type]
moment("importing")
application = Application(
    name="breaking",
    load=load,
    input_shapes=[(4,)],
    output_units=2,
    output_activation="softmax",
    loss="sparse_categorical_crossentropy",
    metric="sparse_categorical_accuracy",
    default_space=Breaking,
    epochs=2,
)
