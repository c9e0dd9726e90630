"""A network as a list of NumPy calls: forward, backward, and what need not be computed twice."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

from transfer_nas.training._base import Training
from transfer_nas.training.arrays.layers import Activated, Array, BatchNormalization, Operation
from transfer_nas.training.arrays.losses import Loss
from transfer_nas.training.arrays.optimizers import Optimizer
from transfer_nas.training.arrays.plan import Plan, Step

CACHE_BYTES = 2**28
"""Most bytes of activations that are computed ahead for a training."""

Weights = Mapping[str, Sequence[Array]]
"""By stable name of the layer."""


class Program:
    """The steps of a plan, ready to run.

    Parameters
    ----------
    plan
        What to compute.
    steps
        The steps of the plan to be done, in order.
    weights
        Of all layers.
    gradients
        Of the trainable weights of those layers that train: where their gradients go.
    rng
        For all that is random.
    """

    def __init__(
        self,
        plan: Plan,
        steps: Sequence[Step],
        weights: Weights,
        gradients: Weights,
        rng: np.random.Generator,
    ) -> None:
        self.plan = plan
        self._calls = [
            (
                step.kind(
                    step.config,
                    weights.get(step.layer, ()),
                    gradients.get(step.layer, ()),
                    adds=step.shared,
                    rng=rng,
                ),
                step.inputs,
                step.output,
            )
            for step in steps
        ]
        derived: set[int] = set()  # values that the gradient passes
        for operation, inputs, output in self._calls:
            if operation.gradients or not derived.isdisjoint(inputs):
                derived.add(output)
        self._backward: list[tuple[Operation, tuple[int, ...], int, list[bool]]] = [
            (operation, inputs, output, [value in derived for value in inputs])
            for operation, inputs, output in reversed(self._calls)
            if output in derived
        ]

    @property
    def last(self) -> Operation:
        """What computes the output."""
        return self._calls[-1][0]

    def forward(self, given: Mapping[int, Array], *, training: bool) -> list[Array]:
        """Return all values, those given among them."""
        values: list[Array] = [_NOTHING] * self.plan.values
        for value, array in given.items():
            values[value] = array
        for operation, inputs, output in self._calls:
            values[output] = operation.forward([values[value] for value in inputs], training)
        return values

    def set_momentum(self, momentum: float) -> None:
        """Let normalizations that train average by this momentum, also when nothing trains."""
        for operation, _, _ in self._calls:
            if isinstance(operation, BatchNormalization):
                operation.momentum = momentum

    def backward(self, gradient: Array) -> None:
        """Write the gradients of the weights, from that of the output; overwrites it."""
        gradients: dict[int, Array] = {self.plan.output: gradient}
        for operation, inputs, output, wanted in self._backward:
            arrived = gradients.pop(output, None)
            if arrived is None:  # nothing that counts comes of it
                continue
            passed = operation.backward(arrived, wanted)
            for value, needed, array in zip(inputs, wanted, passed, strict=True):
                if not needed or array is None:
                    continue
                if value in gradients:
                    gradients[value] += array
                else:
                    gradients[value] = array


_NOTHING = np.empty(0, np.float32)


class ArrayTraining(Training):
    """Trains a network's weights, which live in one vector meanwhile.

    What no training changes is computed once, before the first epoch, if that takes less than
    `CACHE_BYTES`: the outputs of frozen layers and of layers without weights, as far as nothing
    before them trains or is random. BatchNormalization is among them, as a frozen one normalizes
    by what it has learnt. The results may differ in the last digits from those computed batch by
    batch, since matrix products of other sizes add up in another order.

    Parameters
    ----------
    plan
        The network.
    weights
        Of all layers; those that train become views of the vector.
    trainable
        By layer that trains: whether each of its weights is trained (or is a statistic).
    x, y, row_weights
        Inputs in the network's order, targets, and weights of the rows, None if all are equal.
    loss
        What is minimised.
    optimizer
        Makes one for a vector of a size.
    batch_size
        Rows a step.
    epochs
        How many are planned.
    threads
        Of matrix products; None: as many as the library likes.
    rng
        For all that is random.

    Attributes
    ----------
    steps
        What each batch computes.
    """

    def __init__(
        self,
        plan: Plan,
        weights: dict[str, list[Array]],
        trainable: Mapping[str, Sequence[bool]],
        x: Sequence[Array],
        y: npt.NDArray[np.generic],
        row_weights: Array | None,
        *,
        loss: Loss,
        optimizer: type[Optimizer],
        batch_size: int,
        epochs: int,
        threads: int | None,
        rng: np.random.Generator,
    ) -> None:
        self._y, self._loss, self._rng, self._threads = y, loss, rng, threads
        self._row_weights = row_weights
        self._batch_size = batch_size
        self._vector, self._gradient, gradients = _one_vector(weights, trainable)
        self._statistics = [
            array
            for layer, flags in trainable.items()
            for array, is_trained in zip(weights[layer], flags, strict=True)
            if not is_trained
        ]
        self._adds = any(step.shared for step in plan.steps if step.layer in gradients)
        self._optimizer = optimizer(len(self._vector))
        given = dict(zip(plan.inputs, x, strict=True))
        settled, rest = _settled(plan, gradients, len(y), epochs)
        self.steps = tuple(rest)
        if settled:
            values = Program(plan, settled, weights, {}, rng).forward(given, training=True)
            needed = {value for step in rest for value in step.inputs}
            given |= {step.output: values[step.output] for step in settled}
            given = {value: array for value, array in given.items() if value in needed}
        self._given = given
        self._program = Program(plan, rest, weights, gradients, rng)
        last = self._program.last
        if loss.after is not None:
            assert isinstance(last, Activated)
            last.skip_activation()

    def epoch(self, order: npt.NDArray[np.integer], learning_rate: float | None) -> float:
        """See `Training`."""
        assert learning_rate is not None  # `ArrayEngine.misfit`
        with limited(self._threads):
            return self._epoch(order, learning_rate)

    def _epoch(self, order: npt.NDArray[np.integer], learning_rate: float) -> float:
        output = self._program.plan.output
        total = 0.0
        for begin in range(0, len(order), self._batch_size):
            batch = order[begin : begin + self._batch_size]
            given = {value: array.take(batch, axis=0) for value, array in self._given.items()}
            y = self._y[batch]
            predicted = self._program.forward(given, training=True)[output]
            row_weights = None if self._row_weights is None else self._row_weights[batch]
            total += self._loss.value(y, predicted, row_weights) * len(batch)
            if self._adds:
                self._gradient.fill(0)
            self._program.backward(self._loss.weighted_gradient(y, predicted, row_weights))
            self._optimizer.apply(self._vector, self._gradient, learning_rate)
        return total / len(order)

    def state(self) -> list[npt.NDArray[np.generic]]:
        """See `Training`."""
        random = json.dumps(self._rng.bit_generator.state).encode()
        arrays = [self._vector, *self._statistics, *self._optimizer.slots]
        return [
            *(array.copy() for array in arrays),
            np.array(self._optimizer.steps),
            np.frombuffer(random, np.uint8),
        ]

    def restore(self, state: list[npt.NDArray[np.generic]]) -> None:
        """See `Training`."""
        *saved, steps, random = state
        arrays = [self._vector, *self._statistics, *self._optimizer.slots]
        for array, before in zip(arrays, saved, strict=True):
            array[...] = before
        self._optimizer.steps = int(steps)
        self._rng.bit_generator.state = json.loads(random.tobytes())


@contextlib.contextmanager
def limited(threads: int | None) -> Iterator[None]:
    """Let matrix products use no more threads, and say nothing when numbers overflow.

    Whoever trains looks at the loss; a search meets networks that diverge.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(np.errstate(all="ignore"))
        if threads is not None:
            stack.enter_context(_libraries().limit(limits=threads, user_api="blas"))
        yield


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def _one_vector(
    weights: dict[str, list[Array]], trainable: Mapping[str, Sequence[bool]]
) -> tuple[Array, Array, Weights]:
    """Move the trained weights into one vector; return it, its gradient, and views of that."""
    moved = [
        (layer, position)
        for layer, flags in trainable.items()
        for position, is_trained in enumerate(flags)
        if is_trained
    ]
    size = sum(weights[layer][position].size for layer, position in moved)
    vector, gradient = np.empty(size, np.float32), np.zeros(size, np.float32)
    gradients: dict[str, list[Array]] = {}
    begin = 0
    for layer, position in moved:
        before = weights[layer][position]
        place = slice(begin, begin + before.size)
        vector[place] = before.reshape(-1)
        weights[layer][position] = vector[place].reshape(before.shape)
        gradients.setdefault(layer, []).append(gradient[place].reshape(before.shape))
        begin += before.size
    return vector, gradient, gradients


def _settled(
    plan: Plan, training: Collection[str], rows: int, epochs: int
) -> tuple[list[Step], list[Step]]:
    """Part the steps: those whose outputs stay what they are, if it pays to keep them; others."""
    fixed = set(plan.inputs)
    settled: list[Step] = []
    for step in plan.steps:
        is_random = step.kind.random and step.config.get("rate") != 0
        if fixed.issuperset(step.inputs) and step.layer not in training and not is_random:
            fixed.add(step.output)
            settled.append(step)
    if epochs < 2 or rows * sum(step.size for step in settled) * 4 > CACHE_BYTES:
        kept: set[int] = set(plan.inputs)
        free = []
        for step in settled:
            if step.kind.view and kept.issuperset(step.inputs):
                kept.add(step.output)
                free.append(step)
        settled = free
    done = {step.output for step in settled}
    return settled, [step for step in plan.steps if step.output not in done]
