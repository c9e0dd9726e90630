"""What an application is: data, what goes in and out, and what a good model is."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from transfer_nas.errors import ApplicationError, SpaceError
from transfer_nas.spaces import Choices, Space, find, from_function

Arrays = npt.NDArray[np.generic] | tuple[npt.NDArray[np.generic], ...]
"""One array, or one for each input of the model; the first axis counts the rows."""

SpaceChoice = str | type[Space] | Callable[[Choices], Any]
"""The name of a space (`find`), a subclass of `Space`, or a function (`from_function`)."""

_SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Data:
    """Rows to train on and rows to judge by.

    Attributes
    ----------
    x_train, x_valid
        Inputs, ``(rows, *shape)``; a tuple of arrays if the model has several inputs.
    y_train, y_valid
        Targets, ``(rows, ...)``, as the loss expects them.
    """

    x_train: Arrays
    y_train: Arrays
    x_valid: Arrays
    y_valid: Arrays

    @functools.cached_property
    def digest(self) -> str:
        """Return 16 hexadecimal digits that stand for all bytes, shapes and dtypes."""
        digest = hashlib.blake2b(digest_size=8)
        for name in ("x_train", "y_train", "x_valid", "y_valid"):
            for array in as_tuple(getattr(self, name)):
                digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def as_tuple(arrays: Arrays) -> tuple[npt.NDArray[np.generic], ...]:
    """Return one array or several as a tuple of arrays."""
    return tuple(arrays) if isinstance(arrays, tuple | list) else (arrays,)


@dataclass(frozen=True, kw_only=True)
class Application:
    """A task to find a network for.

    Attributes
    ----------
    name
        Short; part of the namespace of the stored models. Ends in ``-synthetic`` if the data is
        generated and not measured.
    load
        Returns the data; called once in each process that trains. Same data at each call.
    input_shapes
        Shape of each input without the batch axis.
    output_units
        Width of the model's last layer.
    output_activation
        Keras name of its activation; None: linear.
    loss
        Keras name of the loss.
    metric
        Keras name of the metric that, on the validation rows, is the objective.
    mode
        ``max`` if more of the metric is better, ``min`` if less is (the objective, which is
        maximised, is then the metric's negative).
    optimizer
        Keras name of the optimizer.
    learning_rate
        Its learning rate.
    epochs
        Epochs that a candidate trains unless the user says otherwise.
    batch_size
        Rows a step unless the user says otherwise.
    default_space
        The space to search unless the user names one.
    read
        Returns the data of the files in a directory, for `with_data`: the full-size original of a
        data set that does not come along. None: there are none to read.
    generate
        Returns made-up data of about as many features, all inputs together, for `with_data`. None:
        there is none to make up.
    """

    name: str
    load: Callable[[], Data]
    input_shapes: Sequence[Sequence[int]]
    output_units: int
    loss: str
    metric: str
    output_activation: str | None = None
    mode: Literal["max", "min"] = "max"
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    epochs: int = 10
    batch_size: int = 32
    default_space: SpaceChoice = "dense_skip"
    read: Callable[[Path], Data] | None = None
    generate: Callable[[int], Data] | None = None

    @functools.cached_property
    def data(self) -> Data:
        """The data, loaded once and checked against the shapes.

        Raises
        ------
        ApplicationError
            `load` raises, or what it returns does not fit the application.
        """
        try:
            data = self.load()
        except ApplicationError:
            raise  # says it all
        except Exception as cause:  # a user's function may raise anything
            raise ApplicationError(
                f"application {self.name}: loading the data failed with "
                f"{type(cause).__name__}: {cause}"
            ) from cause
        if not isinstance(data, Data):
            raise ApplicationError(
                f"application {self.name}: load() must return transfer_nas.applications.Data, "
                f"not {type(data).__name__}"
            )
        for part in ("train", "valid"):
            self._check(part, getattr(data, f"x_{part}"), getattr(data, f"y_{part}"))
        return data

    def __getstate__(self) -> dict[str, object]:
        """Leave the data behind: the process that this is sent to loads it again."""
        return {name: value for name, value in vars(self).items() if name != "data"}

    @property
    def synthetic(self) -> bool:
        """Whether the data is generated: fit for trying things out, not for findings."""
        return self.name.endswith(f"-{_SYNTHETIC}")

    def with_data(self, source: str) -> Application:
        """Return the same task on other data.

        Parameters
        ----------
        source
            A directory with the files of the original data set, or ``synthetic:FEATURES``: made up,
            with about that many features.

        Raises
        ------
        ApplicationError
            The application has no such data, or the files are not what they should be.
        """
        kind, colon, size = source.partition(":")
        if kind == _SYNTHETIC and colon:
            return self._synthetic(size)
        if self.read is None:
            raise ApplicationError(
                f"application {self.name} reads no files: --data has no meaning for it"
            )
        name = self.name.removesuffix(f"-{_SYNTHETIC}")
        return self._on(name, functools.partial(self.read, Path(source)))

    def _synthetic(self, size: str) -> Application:
        if self.generate is None:
            raise ApplicationError(f"application {self.name}: there is no synthetic data for it")
        if not (size.isascii() and size.isdigit() and int(size) >= 16):
            raise ApplicationError(
                f"--data synthetic:FEATURES: expected a number of features of 16 or more, "
                f"found {size!r}"
            )
        return self._on(self.name, functools.partial(self.generate, int(size)))

    def _on(self, name: str, load: Callable[[], Data]) -> Application:
        """Return the same task on data whose shapes only the data tells."""
        data = load()
        shapes = [array.shape[1:] for array in as_tuple(data.x_train)]
        found = replace(self, name=name, load=load, input_shapes=shapes)
        for part in ("train", "valid"):
            found._check(part, getattr(data, f"x_{part}"), getattr(data, f"y_{part}"))
        vars(found)["data"] = data  # where `functools.cached_property` looks first
        return found

    @property
    def namespace(self) -> str:
        """Name and digest of the data: models of different namespaces never match."""
        return f"{self.name}-{self.data.digest}"

    def objective(self) -> dict[str, str | int]:
        """Return what an objective is here, for the record: metric, mode, validation rows."""
        rows = len(as_tuple(self.data.y_valid)[0])
        return {"metric": str(self.metric), "mode": self.mode, "validation_rows": rows}

    def space(self, chosen: SpaceChoice | None = None) -> Space:
        """Make a space for this application's shapes; None: the default space."""
        chosen = self.default_space if chosen is None else chosen
        if isinstance(chosen, str):
            found = find(chosen)
        elif isinstance(chosen, type) and issubclass(chosen, Space):
            found = chosen
        else:
            found = from_function(chosen)
        try:
            return found(self.input_shapes, self.output_units, self.output_activation)
        except SpaceError as misfit:
            raise SpaceError(f"application {self.name}: {misfit}") from misfit

    def _check(self, part: str, x: Arrays, y: Arrays) -> None:
        inputs, targets = as_tuple(x), as_tuple(y)
        shapes = [tuple(array.shape[1:]) for array in inputs]
        expected = [tuple(shape) for shape in self.input_shapes]
        if shapes != expected:
            raise ApplicationError(
                f"application {self.name}: x_{part} must hold inputs of shapes {expected} after "
                f"the first axis, found {shapes}"
            )
        rows = {len(array) for array in (*inputs, *targets)}
        if len(rows) != 1 or 0 in rows:
            raise ApplicationError(
                f"application {self.name}: x_{part} and y_{part} must have the same number of "
                f"rows, at least one; found {[len(array) for array in (*inputs, *targets)]}"
            )
