"""Keras' optimizers, with the defaults of their names, on one vector that holds all weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from transfer_nas.training.arrays.layers import Array

_BLOCK = 2**14
"""Elements to update at once: few enough that all passes over them stay in the core's cache."""


class Optimizer:
    """Changes a vector by its gradient; each element by itself.

    Parameters
    ----------
    size
        Number of elements.

    Attributes
    ----------
    slots
        What it keeps from step to step, each a vector.
    steps
        Number of steps taken.
    """

    count: ClassVar[int] = 0

    def __init__(self, size: int) -> None:
        self.slots = [np.zeros(size, np.float32) for _ in range(self.count)]
        self.steps = 0
        self._room = np.empty(min(size, _BLOCK), np.float32)

    def apply(self, values: Array, gradient: Array, learning_rate: float) -> None:
        """Change `values`; overwrites `gradient`."""
        self.steps += 1
        for begin in range(0, len(values), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            slots = [slot[block] for slot in self.slots]
            self._apply(values[block], gradient[block], slots, learning_rate)

    @abstractmethod
    def _apply(
        self, values: Array, gradient: Array, slots: list[Array], learning_rate: float
    ) -> None: ...


class SGD(Optimizer):
    """Plain gradient descent."""

    def _apply(
        self, values: Array, gradient: Array, slots: list[Array], learning_rate: float
    ) -> None:
        gradient *= np.float32(learning_rate)
        values -= gradient


class RMSprop(Optimizer):
    """A step divided by the root of the mean square of recent gradients."""

    count = 1

    def _apply(
        self, values: Array, gradient: Array, slots: list[Array], learning_rate: float
    ) -> None:
        (velocity,) = slots
        room = np.multiply(gradient, gradient, out=self._room[: len(values)])
        room *= np.float32(0.1)
        velocity *= np.float32(0.9)
        velocity += room
        np.add(velocity, np.float32(1e-7), out=room)
        np.sqrt(room, out=room)
        gradient *= np.float32(learning_rate)
        gradient /= room
        values -= gradient


class Adam(Optimizer):
    """Kingma and Ba, *Adam*, ICLR'15, with the "epsilon hat" of its section 2.1, as in Keras."""

    count = 2
    weight_decay: ClassVar[float] = 0.0

    def _apply(
        self, values: Array, gradient: Array, slots: list[Array], learning_rate: float
    ) -> None:
        if self.weight_decay:
            values *= np.float32(1 - self.weight_decay * learning_rate)
        mean, square = slots
        alpha = learning_rate * (1 - 0.999**self.steps) ** 0.5 / (1 - 0.9**self.steps)
        room = np.subtract(gradient, mean, out=self._room[: len(values)])
        room *= np.float32(0.1)
        mean += room
        gradient *= gradient
        gradient -= square
        gradient *= np.float32(0.001)
        square += gradient
        np.sqrt(square, out=room)
        room += np.float32(1e-7)
        np.divide(mean, room, out=room)
        room *= np.float32(alpha)
        values -= room


class AdamW(Adam):
    """Adam with decoupled weight decay."""

    weight_decay = 0.004


OPTIMIZERS: Mapping[str, type[Optimizer]] = {
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "sgd": SGD,
}
"""By Keras name, in lower case."""
