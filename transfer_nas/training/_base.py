"""What an engine is: it makes candidates out of layer graphs, trains and judges them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from graph_meta import LayerGraph
from transfer_nas.applications import Arrays
from transfer_nas.transfer import Tensors


class Training(ABC):
    """The training of one candidate, epoch by epoch; the optimizer starts anew with it.

    Between two epochs, `state` holds all that the next one depends on.
    """

    @abstractmethod
    def epoch(self, order: npt.NDArray[np.integer], learning_rate: float | None) -> float:
        """Train once on the training rows.

        Parameters
        ----------
        order
            Their numbers in the order of training, each once. The last step takes those that are
            left over from full batches.
        learning_rate
            Of this epoch. None: what the optimizer has, or the schedule that it was made with.

        Returns
        -------
        float
            Mean loss of the rows, each at its step and multiplied by its weight; not finite if the
            training has diverged.
        """

    @abstractmethod
    def state(self) -> list[npt.NDArray[np.generic]]:
        """Return copies of weights, optimizer's variables and the state of what is random."""

    @abstractmethod
    def restore(self, state: list[npt.NDArray[np.generic]]) -> None:
        """Go back to a state of a training of the same candidate with the same layers frozen."""


class Candidate(ABC):
    """A network with weights of its own: new ones from its layers' initializers at first.

    Layers go by their stable names, as in `graph`. One thread at a time may use a candidate, and
    the last that an engine made is the only one that may train.
    """

    graph: LayerGraph

    @abstractmethod
    def load(self, tensors: Tensors) -> None:
        """Set the weights of some layers; copies the arrays."""

    @abstractmethod
    def tensors(self, names: Collection[str]) -> Tensors:
        """Return the weights of some layers, in the order of the Keras layer's ``weights``.

        They may be views that the next epoch changes.
        """

    @abstractmethod
    def training(
        self, frozen: Collection[str] = (), *, epochs: int, callbacks: Sequence[Any] = ()
    ) -> Training | None:
        """Begin a training.

        Parameters
        ----------
        frozen
            Layers that do not train, beside those that never do (`LayerSpec.frozen`). Their
            statistics stay as they are, as in Keras.
        epochs
            How many are planned: what is computed once for all has to pay.
        callbacks
            Of Keras, which are to be told of single steps; only if `Engine.has_models`.

        Returns
        -------
        Training or None
            None if there is nothing to train.
        """

    @abstractmethod
    def validate(self) -> Mapping[str, float]:
        """Return ``loss`` and `Application.metric_names`, on the validation rows.

        Renews the running statistics before, see `renew_statistics`.
        """

    @abstractmethod
    def renew_statistics(self) -> None:
        """Make the running statistics of layers that train those of the weights (`statistics`)."""

    @abstractmethod
    def predict(self, rows: Arrays) -> npt.NDArray[Any]:
        """Return the outputs for rows of inputs, as when it is judged."""

    @property
    def model(self) -> Any:
        """The Keras model itself; only if `Engine.has_models`."""
        raise NotImplementedError

    def network(self, frozen: Collection[str] = ()) -> Any:
        """Return the model itself, for a program of the user's; only if `Engine.has_models`.

        Its frozen layers are not trainable; what is done to its weights is done to the candidate.
        """
        raise NotImplementedError


class Engine(ABC):
    """Makes candidates for one application.

    Attributes
    ----------
    name
        For the record.
    is_slow_to_build
        Whether making a candidate takes so long that its weights had better be fetched meanwhile.
    has_models
        Whether candidates have a `Candidate.network`.
    """

    name: ClassVar[str]
    is_slow_to_build: ClassVar[bool] = False
    has_models: ClassVar[bool] = False

    @abstractmethod
    def obstacle(self, graph: LayerGraph) -> str | None:
        """Return why this engine cannot train that network as Keras would; None: it can."""

    @abstractmethod
    def candidate(self, graph: LayerGraph, seed: int) -> Candidate:
        """Make a candidate.

        Parameters
        ----------
        graph
            One that the engine supports.
        seed
            Seed of the initial weights and of all that is random in the layers.
        """
