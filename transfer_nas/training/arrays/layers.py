"""What layers do, and the derivatives: NumPy versions of Keras' layers for small networks.

An `Operation` is one call of one layer. `OPERATIONS` has the class for each Keras layer that is
known here; `Operation.knows` says whether a configuration is. Whatever is not known is left to
Keras: an unknown key of a configuration is enough.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Shape = tuple[int, ...]
"""Of a weight, or of one row: without the batch axis."""


class Operation:
    """One call of a layer.

    Parameters
    ----------
    config
        The layer's.
    weights
        The layer's arrays, which the operation reads at each call and statistics are written to.
    gradients
        Where the gradients of trainable weights go; empty if the layer is frozen.
    adds
        Whether to add to what is there already: the layer's later calls.
    rng
        Of this layer.
    """

    #: Keys that a configuration may have besides ``dtype``.
    keys: ClassVar[frozenset[str]] = frozenset()
    #: Keys of the initializers of the weights, in order.
    initializers: ClassVar[tuple[str, ...]] = ()
    #: Whether a call may differ from the one before though inputs and weights are the same.
    random: ClassVar[bool] = False
    #: Whether the output is the input in another shape, which costs nothing.
    view: ClassVar[bool] = False

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Sequence[Array],
        gradients: Sequence[Array],
        *,
        adds: bool,
        rng: np.random.Generator,
    ) -> None:
        self.config = config
        self.weights = weights
        self.gradients = gradients
        self._adds = adds
        self._rng = rng

    @classmethod
    def knows(cls, config: Mapping[str, Any]) -> bool:
        """Tell whether all of a configuration is known here."""
        return config.get("dtype") == "float32" and config.keys() <= cls.keys | {"dtype"}

    @classmethod
    def infer(cls, config: Mapping[str, Any], shapes: Sequence[Shape]) -> Shape | None:
        """Return the output's shape without the batch axis; None: not known for these inputs."""
        return shapes[0] if len(shapes) == 1 else None

    @abstractmethod
    def forward(self, inputs: Sequence[Array], training: bool) -> Array:
        """Return the output; keep what `backward` needs."""
        raise NotImplementedError

    @abstractmethod
    def backward(self, gradient: Array, wanted: Sequence[bool]) -> Sequence[Array | None]:
        """Write the gradients of the weights; return those of the inputs that are wanted.

        `gradient` may be overwritten; what is returned may be (or be a view of) it, for one input.
        """
        raise NotImplementedError

    def _give(self, position: int, gradient: Array) -> None:
        if self._adds:
            self.gradients[position][...] += gradient
        else:
            self.gradients[position][...] = gradient


class Activated(Operation):
    """A layer whose output goes through an activation function."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._activate: Activation = ACTIVATIONS[self.config["activation"]]()

    @classmethod
    def knows(cls, config: Mapping[str, Any]) -> bool:
        """See `Operation`."""
        return super().knows(config) and _is_activation(config["activation"])

    def skip_activation(self) -> None:
        """Let `backward` take the gradient of what goes into the activation."""
        self._activate.derived = False


class Dense(Activated):
    """A product with a kernel, a bias, an activation."""

    initializers = ("kernel_initializer", "bias_initializer")
    keys = frozenset({"units", "activation", "use_bias", *initializers})

    @classmethod
    def infer(cls, config: Mapping[str, Any], shapes: Sequence[Shape]) -> Shape | None:
        """Take one vector."""
        return (config["units"],) if [len(shape) for shape in shapes] == [1] else None

    def forward(self, inputs: Sequence[Array], training: bool) -> Array:
        """See `Operation`."""
        self._input = inputs[0]
        output: Array = self._input @ self.weights[0]
        if len(self.weights) > 1:
            output += self.weights[1]
        return self._activate.forward(output)

    def backward(self, gradient: Array, wanted: Sequence[bool]) -> Sequence[Array | None]:
        """See `Operation`."""
        gradient = self._activate.backward(gradient)
        if self.gradients and not self._adds:
            np.matmul(self._input.T, gradient, out=self.gradients[0])
            if len(self.gradients) > 1:
                np.add.reduce(gradient, axis=0, out=self.gradients[1])
        elif self.gradients:
            self._give(0, self._input.T @ gradient)
            if len(self.gradients) > 1:
                self._give(1, gradient.sum(0))
        return (gradient @ self.weights[0].T,) if wanted[0] else (None,)


class ActivationLayer(Activated):
    """An activation function alone."""

    keys = frozenset({"activation"})

    def forward(self, inputs: Sequence[Array], training: bool) -> Array:
        """See `Operation`."""
        return self._activate.forward(np.array(inputs[0]))

    def backward(self, gradient: Array, wanted: Sequence[bool]) -> Sequence[Array | None]:
        """See `Operation`."""
        return (self._activate.backward(gradient),)


class Dropout(Operation):
    """Zeros, at random, while training; what is left grows to keep the sum."""

    keys = frozenset({"rate"})
    random = True

    def forward(self, inputs: Sequence[Array], training: bool) -> Array:
        """See `Operation`."""
        rate = self.config["rate"]
        if not training or rate == 0:
            self._mask = None
            return inputs[0]
        kept = self._rng.random(inputs[0].shape, np.float32) >= rate
        self._mask = kept * np.float32(1 / (1 - rate))
        output: Array = inputs[0] * self._mask
        return output

    def backward(self, gradient: Array, wanted: Sequence[bool]) -> Sequence[Array | None]:
        """See `Operation`."""
        if self._mask is not None:
            gradient *= self._mask
        return (gradient,)


class Reshape(Operation):
    """Flatten and Reshape: the same numbers in another shape."""

    keys = frozenset({"data_format", "target_shape"})
    view = True

    @classmethod
    def knows(cls, config: Mapping[str, Any]) -> bool:
        """See `Operation`."""
        return super().knows(config) and config.get("data_format") in (None, "channels_last")

    @classmethod
    def infer(cls, config: Mapping[str, Any], shapes: Sequence[Shape]) -> Shape | None:
        """Take one input of any shape."""
        if len(shapes) != 1:
            return None
        size = math.prod(shapes[0])
        target = tuple(config.get("target_shape", (-1,)))
        known = math.prod(axis for axis in target if axis != -1)
        return tuple(size // known if axis == -1 else axis for axis in target)

    def forward(self, inputs: Sequence[Array], training: bool) -> Array:
        """See `Operation`."""
        self._shape = inputs[0].shape
        return inputs[0].reshape(self._shape[0], *self.config.get("target_shape", (-1,)))

    def backward(self, gradient: Array, wanted: Sequence[bool]) -> Sequence[Array | None]:
        """See `Operation`."""
        return (gradient.reshape(self._shape),)


class Identity(Operation):
    """Nothing."""

    view = True

    def forward(self, inputs: Sequence[Array], training: bool) -> Array:
        """See `Operation`."""
        return inputs[0]

    def backward(self, gradient: Array, wanted: Sequence[bool]) -> Sequence[Array | None]:
        """See `Operation`."""
        return (gradient,)


class Add(Operation):
    """A sum of several inputs of one shape."""

    @classmethod
    def infer(cls, config: Mapping[str, Any], shapes: Sequence[Shape]) -> Shape | None:
        """Take two or more inputs; broadcasting is left to Keras."""
        return shapes[0] if len(shapes) > 1 and len(set(shapes)) == 1 else None

    def forward(self, inputs: Sequence[Array], training: bool) -> Array:
        """See `Operation`."""
        output = inputs[0] + inputs[1]
        for other in inputs[2:]:
            output += other
        return output

    def backward(self, gradient: Array, wanted: Sequence[bool]) -> Sequence[Array | None]:
        """See `Operation`."""
        # Each gets an array of its own, as each may be overwritten.
        return [gradient.copy() if needed else None for needed in wanted]


class Average(Add):
    """The mean of several inputs of one shape."""

    def forward(self, inputs: Sequence[Array], training: bool) -> Array:
        """See `Operation`."""
        output = super().forward(inputs, training)
        output *= np.float32(1 / len(inputs))
        return output

    def backward(self, gradient: Array, wanted: Sequence[bool]) -> Sequence[Array | None]:
        """See `Operation`."""
        gradient *= np.float32(1 / len(wanted))
        return super().backward(gradient, wanted)


class Multiply(Add):
    """The product of several inputs of one shape."""

    def forward(self, inputs: Sequence[Array], training: bool) -> Array:
        """See `Operation`."""
        self._inputs = inputs
        output = inputs[0] * inputs[1]
        for other in inputs[2:]:
            output *= other
        return output

    def backward(self, gradient: Array, wanted: Sequence[bool]) -> Sequence[Array | None]:
        """See `Operation`."""
        found: list[Array | None] = []
        for position, needed in enumerate(wanted):
            if not needed:
                found.append(None)
                continue
            product = gradient.copy()
            for other, factor in enumerate(self._inputs):
                if other != position:
                    product *= factor
            found.append(product)
        return found


class Concatenate(Operation):
    """Inputs side by side, along the last axis."""

    keys = frozenset({"axis"})

    @classmethod
    def infer(cls, config: Mapping[str, Any], shapes: Sequence[Shape]) -> Shape | None:
        """Take two or more inputs, joined along their last axis."""
        axis = config.get("axis", -1)
        if len({shape[:-1] for shape in shapes}) != 1 or axis not in (-1, len(shapes[0])):
            return None
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def forward(self, inputs: Sequence[Array], training: bool) -> Array:
        """See `Operation`."""
        self._ends = np.cumsum([array.shape[-1] for array in inputs]).tolist()
        return np.concatenate(inputs, axis=-1)

    def backward(self, gradient: Array, wanted: Sequence[bool]) -> Sequence[Array | None]:
        """See `Operation`."""
        begins = [0, *self._ends[:-1]]
        return [
            np.ascontiguousarray(gradient[..., begin:end]) if needed else None
            for begin, end, needed in zip(begins, self._ends, wanted, strict=True)
        ]


class BatchNormalization(Operation):
    """Normalization over all axes but the last; statistics of all batches when not training.

    A frozen layer takes those while training, too, as in Keras.

    Attributes
    ----------
    momentum
        Instead of the configuration's, also when not training; None: the configuration's.
    """

    momentum: float | None = None

    initializers = (
        "gamma_initializer",
        "beta_initializer",
        "moving_mean_initializer",
        "moving_variance_initializer",
    )
    keys = frozenset(
        {"axis", "momentum", "epsilon", "center", "scale", "synchronized", *initializers}
    )

    @classmethod
    def knows(cls, config: Mapping[str, Any]) -> bool:
        """See `Operation`."""
        return (
            super().knows(config)
            and bool(config["center"] and config["scale"])
            and not config["synchronized"]
        )

    @classmethod
    def infer(cls, config: Mapping[str, Any], shapes: Sequence[Shape]) -> Shape | None:
        """Take one input, normalized for each position of its last axis."""
        return shapes[0] if len(shapes) == 1 and config["axis"] in (-1, len(shapes[0])) else None

    def forward(self, inputs: Sequence[Array], training: bool) -> Array:
        """See `Operation`."""
        gamma, beta, moving_mean, moving_variance = self.weights
        (x,) = inputs
        self._training = (training or self.momentum is not None) and bool(self.gradients)
        if self._training:
            axes = tuple(range(x.ndim - 1))
            mean, variance = x.mean(axes), x.var(axes)
            momentum = np.float32(
                self.config["momentum"] if self.momentum is None else self.momentum
            )
            for moving, now in ((moving_mean, mean), (moving_variance, variance)):
                moving *= momentum
                moving += now * (1 - momentum)
        else:
            mean, variance = moving_mean, moving_variance
        self._inverse = 1 / np.sqrt(variance + np.float32(self.config["epsilon"]))
        self._normalized = (x - mean) * self._inverse
        output: Array = self._normalized * gamma + beta
        return output

    def backward(self, gradient: Array, wanted: Sequence[bool]) -> Sequence[Array | None]:
        """See `Operation`."""
        axes = tuple(range(gradient.ndim - 1))
        if self.gradients:
            self._give(0, (gradient * self._normalized).sum(axes))
            self._give(1, gradient.sum(axes))
        if not wanted[0]:
            return (None,)
        gradient *= self.weights[0]
        if self._training:
            means = gradient.mean(axes), (gradient * self._normalized).mean(axes)
            gradient -= means[0] + self._normalized * means[1]
        gradient *= self._inverse
        return (gradient,)


class Activation:
    """An activation function; keeps what its derivative needs.

    Attributes
    ----------
    derived
        Whether `backward` multiplies by the derivative.
    """

    derived = True

    def forward(self, x: Array) -> Array:
        """Return the function's value; may overwrite `x`."""
        return x

    def backward(self, gradient: Array) -> Array:
        """Return the gradient times the derivative; may overwrite `gradient`."""
        return self._times_derivative(gradient) if self.derived else gradient

    def _times_derivative(self, gradient: Array) -> Array:
        return gradient


class _Linear(Activation):
    pass


class _Relu(Activation):
    def forward(self, x: Array) -> Array:
        self._y = np.maximum(x, 0, out=x)
        return self._y

    def _times_derivative(self, gradient: Array) -> Array:
        gradient *= self._y > 0
        return gradient


class _Tanh(Activation):
    def forward(self, x: Array) -> Array:
        self._y = np.tanh(x, out=x)
        return self._y

    def _times_derivative(self, gradient: Array) -> Array:
        gradient *= 1 - self._y * self._y
        return gradient


class _Sigmoid(Activation):
    def forward(self, x: Array) -> Array:
        self._y = _sigmoid(x)
        return self._y

    def _times_derivative(self, gradient: Array) -> Array:
        gradient *= self._y * (1 - self._y)
        return gradient


class _Silu(Activation):
    def forward(self, x: Array) -> Array:
        self._x, self._sigmoid = x, _sigmoid(x)
        return x * self._sigmoid

    def _times_derivative(self, gradient: Array) -> Array:
        gradient *= self._sigmoid * (1 + self._x * (1 - self._sigmoid))
        return gradient


class _Elu(Activation):
    def forward(self, x: Array) -> Array:
        self._y = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
        return self._y

    def _times_derivative(self, gradient: Array) -> Array:
        gradient *= np.where(self._y > 0, np.float32(1), self._y + 1)
        return gradient


class _Softplus(Activation):
    def forward(self, x: Array) -> Array:
        self._x = x
        return np.logaddexp(x, np.float32(0))

    def _times_derivative(self, gradient: Array) -> Array:
        gradient *= _sigmoid(self._x)
        return gradient


class _Softmax(Activation):
    def forward(self, x: Array) -> Array:
        x -= x.max(-1, keepdims=True)
        np.exp(x, out=x)
        x /= x.sum(-1, keepdims=True)
        self._y = x
        return x

    def _times_derivative(self, gradient: Array) -> Array:
        gradient -= (gradient * self._y).sum(-1, keepdims=True)
        gradient *= self._y
        return gradient


def _sigmoid(x: Array) -> Array:
    # By tanh, which neither overflows nor takes a division.
    y: Array = np.tanh(x * np.float32(0.5))
    y *= np.float32(0.5)
    y += np.float32(0.5)
    return y


ACTIVATIONS: Mapping[str, Callable[[], Activation]] = {
    "linear": _Linear,
    "relu": _Relu,
    "tanh": _Tanh,
    "sigmoid": _Sigmoid,
    "silu": _Silu,
    "swish": _Silu,
    "elu": _Elu,
    "softplus": _Softplus,
    "softmax": _Softmax,
}
"""By Keras name."""


def _is_activation(name: object) -> bool:
    return isinstance(name, str) and name in ACTIVATIONS


OPERATIONS: Mapping[str, type[Operation]] = {
    "Activation": ActivationLayer,
    "Add": Add,
    "Average": Average,
    "BatchNormalization": BatchNormalization,
    "Concatenate": Concatenate,
    "Dense": Dense,
    "Dropout": Dropout,
    "Flatten": Reshape,
    "Identity": Identity,
    "Multiply": Multiply,
    "Reshape": Reshape,
}
"""By Keras class; `Operation.knows` and `Operation.infer` have the last word."""


def _uniform(fan: Callable[[int, int], float]) -> Initializer:
    """Return the initializer of variance ``1 / fan(inputs, outputs)``, for the kernels of Dense."""

    def draw(shape: Shape, rng: np.random.Generator) -> Array:
        inputs, outputs = shape
        limit = np.float32(math.sqrt(3 / fan(inputs, outputs)))
        return rng.random(shape, np.float32) * (2 * limit) - limit

    return draw


Initializer = Callable[[Shape, np.random.Generator], Array]
"""Draws a weight of a shape."""

INITIALIZERS: Mapping[str, Initializer] = {
    "Zeros": lambda shape, _: np.zeros(shape, np.float32),
    "Ones": lambda shape, _: np.ones(shape, np.float32),
    "GlorotUniform": _uniform(lambda inputs, outputs: (inputs + outputs) / 2),
    "HeUniform": _uniform(lambda inputs, outputs: inputs / 2),
    "LecunUniform": _uniform(lambda inputs, outputs: inputs),
}
"""By Keras class: the same distributions, not the same numbers."""
