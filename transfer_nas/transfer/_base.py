"""What a transfer method is: where candidates' weights stay, and how their heirs get them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

import cpp_store
from graph_meta import LayerGraph

Tensors = Mapping[str, Sequence[npt.NDArray[np.generic]]]
"""Stable name of a layer -> its tensors, in the order of the Keras layer's ``weights``."""


class Inheritance(ABC):
    """A best match, and the right to read the tensors of its prefix until `close`.

    Whoever got it closes it; as a context manager it closes itself. Between `best_match` and
    `close`, the tensors stay readable though the ancestor is retired meanwhile, by whomever.
    One thread at a time may use an inheritance.

    Attributes
    ----------
    ancestor
        Id of the stored model.
    score
        Its score.
    layers
        Stable names of the prefix, in the order of the graph that asked; layers without tensors
        are among them, and at least one layer with tensors.
    nbytes
        Bytes of the prefix's tensors.
    """

    ancestor: str
    score: float
    layers: tuple[str, ...]
    nbytes: int

    @abstractmethod
    def read(self) -> Tensors:
        """Return the tensors of those layers of the prefix that have any.

        The arrays are read-only views or copies; they may be kept after `close`.

        Raises
        ------
        TransferError
            They cannot be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Give up the right to read; more than once does nothing. Never raises."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class TransferMethod(ABC):
    """Where models are put, and found again by the longest prefix that they share with another.

    Several processes use one place: what one puts, all others match from their next `best_match`
    on. Only models of equal namespace match.

    *Threads.* Every method may be called from several threads at once.

    *Ownership.* `put` copies what it is given before it returns. What `Inheritance.read` returns
    belongs to nobody: it is not to be written to.

    *Failures.* Every method raises `TransferError` if this call failed and the next may work (a
    full store, a damaged file), and its subclass `TransferUnavailable` if nothing answers any more
    (a dead server, a directory that is gone); nothing else, apart from what wrong arguments raise.
    After a failed `put`, no part of the model is visible.

    *Retired.* A retired model matches no more, at once in this process and from its next
    `best_match` on in every other; it frees what no heir needs. Whoever holds an inheritance of it
    still reads and puts. A model that vanishes while a best match is being determined is not the
    answer: the next best is, or none.
    """

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def create(
        cls, namespace: str, *, directory: Path | None = None, store: cpp_store.Store | None = None
    ) -> TransferMethod:
        """Make one for models of `namespace` with what it needs of the resources at hand.

        Parameters
        ----------
        namespace
            Application and data, as one string.
        directory
            Where files may be kept, visible to all processes; made when it is needed.
        store
            An open store, which stays the caller's.

        Raises
        ------
        InputError
            A resource that it needs is missing or cannot be used.
        """

    def versions(self) -> set[object]:
        """Return the versions of layer graphs that models of the namespace were put with.

        A few models are looked at, as no program puts any where it found others.
        """
        return set()

    @abstractmethod
    def best_match(self, graph: LayerGraph, only: str = "") -> Inheritance | None:
        """Find the stored model that shares the longest prefix with `graph`.

        Longest by number of layers; ties go to the higher score, then to the newer model.

        Parameters
        ----------
        graph
            The layers of the model that asks.
        only
            Id of the one model that may be: what is shared with it. Empty: any.

        Returns
        -------
        Inheritance or None
            None if no model shares a layer with tensors.
        """

    def whole(self, model: str) -> tuple[LayerGraph, Tensors] | None:
        """Return a stored model with all its tensors; None if it is gone, or is not to be had so.

        The tensors may be read as those of `Inheritance.read`.
        """
        return None

    @abstractmethod
    def put(
        self,
        model: str,
        graph: LayerGraph,
        tensors: Tensors,
        *,
        score: float,
        parent: str = "",
        inheritance: Inheritance | None = None,
        inherited: Collection[str] = (),
    ) -> int:
        """Store a model: all of it becomes visible at once.

        One of the same id is replaced, for a resumed search evaluates again what was interrupted.
        Where others inherit from that one, the method may refuse (`TransferError`).

        Parameters
        ----------
        model
            Its id; not empty.
        graph
            Its layers.
        tensors
            The layers that are its own, C-contiguous arrays.
        score
            Higher is better.
        parent
            Id of the model whose architecture was mutated; for the record.
        inheritance
            An open one of this method, whose ancestor holds the layers `inherited`.
        inherited
            Names of those layers of `inheritance` whose tensors the model shares, bit for bit.
            Each layer of `graph` that has tensors is either here or in `tensors`.

        Returns
        -------
        int
            Bytes of tensors that the model added.
        """

    @abstractmethod
    def retire(self, models: Iterable[str]) -> None:
        """Take models out of the candidates; unknown ones are ignored, they may be gone already."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Let go of what the method holds in this process; stored models stay."""
