"""The store as users see it: one class, whether the models are in this process or on servers."""

from __future__ import annotations

import asyncio
import atexit
import os
import re
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from cpp_store import _arguments as arguments
from cpp_store._core import (
    InvalidArgument,
    LayerTable,
    LocalAllocation,
    LocalStore,
    Match,
    ModelInfo,
    OutOfMemory,
    StoreError,
)
from cpp_store._forks import Birthplace

if TYPE_CHECKING:
    from cpp_store._overlap import Submitter

Array = npt.NDArray[Any]
Tensors = Mapping[str, Sequence[npt.ArrayLike]]
Specs = Sequence[tuple[Sequence[int], npt.DTypeLike]]
Names = list[str]  # within Store, `list` is a method

_MOST = 2**32 - 1  # of what is counted


class StoreHandle(Protocol):
    """What :class:`Store` works over: ``_core.LocalStore``, and the client of servers.

    Positional arguments only, all of them given. Every method is thread-safe, and waits and copies
    without the GIL.
    """

    def put(
        self,
        model: str,
        tensors: dict[str, Sequence[Any]],
        table: LayerTable | None,
        inherited: list[tuple[str, str]],
        namespace: str,
        score: float,
        parent: str,
        graph: str,
        metadata: str,
        /,
    ) -> int:
        """Store a model; ``inherited`` are pairs of layer name and owner. Returns bytes added."""

    def read(self, model: str, layers: list[str] | None, copy: bool, /) -> dict[str, list[Array]]:
        """Tensors of the named layers (None: all that have some), in the model's order."""

    def read_into(self, model: str, buffers: dict[str, Sequence[Array]], /) -> int:
        """Copy tensors into the caller's arrays. Returns bytes."""

    def fetch(
        self, table: LayerTable, layers: list[tuple[str, str]], copy: bool, /
    ) -> dict[str, list[Array]]:
        """Tensors by owner: pairs of a layer's name in ``table`` and its owner."""

    def best_matches(
        self,
        table: LayerTable,
        namespace: str,
        weight: str,
        count: int,
        min_layers: int,
        exclude: Sequence[str],
        only: str,
        lease: float | None,
        /,
    ) -> list[tuple[Match, int, int, dict[str, str]]]:
        """(match, lease or 0, server that holds the lease, owners by layer name), best first."""

    def end_lease(self, lease: int, server: int, /) -> None:
        """End a lease; one that has expired is ignored."""

    def lookup(self, model: str, /) -> ModelInfo: ...
    def contains(self, model: str, /) -> bool: ...
    def models(self, namespace: str | None, /) -> list[str]: ...
    def retire(self, model: str, /) -> None: ...
    def stats(self, /) -> list[tuple[str, dict[str, int]]]:
        """(address, numbers) of each server; the address in process is empty."""

    def scrub(self, /) -> int: ...
    def verify(self, /) -> list[str]: ...
    def transports(self, /) -> list[str]: ...
    def servers(self, /) -> list[str]: ...
    def absent(self, /) -> list[str]: ...
    def replicas(self, /) -> int: ...
    def close(self, /) -> None: ...


class LeasedMatch(Match):
    """A stored model, the prefix that it shares with the query, and the lease on it.

    While the lease lasts, the tensors of the prefix can be read and inherited though the model is
    retired meanwhile. A context manager: leaving it ends the lease.

    True if something was found. What :meth:`Store.best_match` returns where nothing shares enough
    layers is false: of no model, no layers and no owners, so that reading and inheriting all of it
    are nothing.

    Attributes
    ----------
    table : LayerTable
        The query, whose layers `positions` speaks of.
    owners : dict[str, str]
        For each layer of the prefix that has tensors: the model that put them.
    """

    def __init__(
        self,
        store: Store,
        table: LayerTable,
        found: Match,
        lease: int,
        server: int,
        owners: dict[str, str],
    ) -> None:
        super().__init__(
            found.model, found.score, found.sequence, found.layers, found.bytes, found.positions
        )
        self.table = table
        self.owners = owners
        self._store = store
        self._lease = lease
        self._server = server

    @property
    def lease(self) -> int:
        """Number of the lease; 0 if there is none, or if it was ended here."""
        return self._lease

    def __bool__(self) -> bool:
        return self.layers > 0

    def close(self) -> None:
        """End the lease. May be called again. Does nothing in a fork, as the lease is not its."""
        lease, self._lease = self._lease, 0
        if lease and not self._store._birthplace.is_elsewhere:
            self._store._open_handle().end_lease(lease, self._server)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._store._birthplace.is_elsewhere:
            self.close()
        else:
            await asyncio.wrap_future(self._store.submit.close_match(self))


class Allocation:
    """A put whose tensors the caller writes in place, rather than having them copied.

    A context manager: leaving it publishes the model, or drops it all after an exception.

    Attributes
    ----------
    arrays : dict[str, list[np.ndarray]]
        Writable, by layer, of the shapes and dtypes that were asked for; their content is arbitrary
        at first. Read-only once the model is published. In process they are the store's memory
        itself: views on them that are kept must not be written to after that.
    """

    def __init__(self, store: Store, pending: LocalAllocation | _StagedPut) -> None:
        self._store = store
        self._pending = pending
        self.arrays = pending.arrays()
        _allocations.add(self)

    def publish(self) -> int:
        """Make the model visible. Returns and raises as :meth:`Store.put`."""
        self._store._open_handle()
        self._freeze()
        return self._pending.publish()

    def discard(self) -> None:
        """Forget it all; nothing was visible."""
        if not self._store._birthplace.is_elsewhere:
            self._pending.discard()

    def _freeze(self) -> None:
        for arrays in self.arrays.values():
            for array in arrays:
                array.flags.writeable = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.publish()
        else:
            self.discard()


_allocations: weakref.WeakSet[Allocation] = weakref.WeakSet()


def _freeze_allocations() -> None:
    """In a fork: the memory is its parent's."""
    for allocation in _allocations:
        allocation._freeze()


os.register_at_fork(after_in_child=_freeze_allocations)


class _StagedPut:
    """What an :class:`Allocation` fills where the store's memory is out of reach."""

    def __init__(self, specs: Mapping[str, Specs], put: Callable[[dict[str, list[Array]]], int]):
        self._arrays: dict[str, list[Array]] = {}
        for name, layer in specs.items():
            try:
                self._arrays[name] = [np.empty(shape, dtype) for shape, dtype in layer]
            except MemoryError as error:
                raise OutOfMemory(f"layer {name!r}: {error}") from error
            except (TypeError, ValueError, OverflowError) as error:
                raise InvalidArgument(
                    f"layer {name!r}: expected a list of pairs (shape, dtype): {error}"
                ) from error
        self._put = put

    def arrays(self) -> dict[str, list[Array]]:
        return self._arrays

    def publish(self) -> int:
        return self._put(self._arrays)

    def discard(self) -> None:
        self._arrays = {}


class Store:
    """Models and their tensors, each shared tensor once.

    Made by :func:`embedded` (in this process) or :func:`connect` (on servers); the calls are the
    same. A context manager that closes itself.

    - **Thread-safe.** Any number of threads may call anything; the GIL is released while bytes move
      and while servers are waited for.
    - **Atomic.** A model is visible whole or not at all. What is stored never changes.
    - **Ownership.** A put copies; the caller's arrays are free afterwards. Arrays that reads return
      are read-only views of the store's memory where that is possible (in process, and of servers
      on this host); each keeps its tensors alive, though the model is retired, the store closed, or
      the server gone.
    - **Errors** are :class:`StoreError` and its subclasses, also for arguments of wrong types. A
      call that raises has changed nothing. (TypeError is for calls that lack an argument, or have
      one that the method does not know.)
    - **Forks.** A store does not survive one: in the child every call raises :class:`StoreError`,
      while closing, leaving a ``with`` block and the end of the process leave the parent's store
      alone. Arrays that were read before stay what they are in both. Open the store, or connect,
      again in the child.
    """

    def __init__(self, handle: StoreHandle) -> None:
        self._handle: StoreHandle | None = handle
        self._birthplace = Birthplace()
        self._submitter: Submitter | None = None
        self._submitter_lock = threading.Lock()

    @property
    def submit(self) -> Submitter:
        """The store's calls as futures, for overlap: ``store.submit.read("m").result()``."""
        self._open_handle()  # in a fork, the lock may be held by a thread that is not there
        with self._submitter_lock:
            self._open_handle()
            if self._submitter is None:
                # Late, as that module wraps this class's methods.
                from cpp_store._overlap import Submitter

                self._submitter = Submitter(self)
            return self._submitter

    def _open_handle(self) -> StoreHandle:
        self._birthplace.check()
        if self._handle is None:
            raise StoreError("the store is closed")
        return self._handle

    def put(
        self,
        model: str,
        tensors: Tensors,
        *,
        table: LayerTable | None = None,
        match: LeasedMatch | None = None,
        inherited: Collection[str] = (),
        namespace: str = "",
        score: float = 0.0,
        parent: str = "",
        graph: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> int:
        """Store a model.

        Parameters
        ----------
        model
            Its id: 1 to 65,535 bytes, unique in the store. The id of a retired model stays taken
            while others inherit its layers.
        tensors
            For each layer that the model brings along its tensors: C-contiguous arrays of any shape
            and of a dtype that Keras uses, or what NumPy can see without a copy (TensorFlow, JAX
            and Torch tensors in host memory).
        table
            All layers of the model. None: those of `tensors`, in their order, requiring nothing.
        match
            Where the inherited layers are: a match of this store, with its lease not yet ended.
        inherited
            Names of layers of the match's prefix that are not stored again but referenced. Layers
            of it that have no tensors may be named.
        namespace
            Models of different namespaces never match.
        score
            Breaks ties between matches; higher is better.
        parent
            Id of the evolutionary parent.
        graph
            The layer graph as JSON; opaque here.
        metadata
            The user's own; anything that JSON can express.

        Returns
        -------
        int
            Bytes that the model added. Putting the same content under the same id again is
            success, and returns the same number.

        Raises
        ------
        InvalidArgument
            A tensor is not contiguous, byte-swapped or of unknown dtype; a layer is not in the
            table, comes twice, is missing, or has other bytes than the table says; an inherited
            layer is not in the match.
        AlreadyExists
            There is a model of that id with other content.
        NotFound
            An inherited layer is gone, since the lease was over and its last model retired.
        OutOfMemory
            The store's limit would be exceeded. Everything stored stays readable.
        """
        return self._open_handle().put(
            arguments.text(model, "model"),
            arguments.mapping(tensors, "tensors"),
            *self._said(table, match, inherited, namespace, score, parent, graph, metadata),
        )

    def allocate(
        self,
        model: str,
        specs: Mapping[str, Specs],
        *,
        table: LayerTable | None = None,
        match: LeasedMatch | None = None,
        inherited: Collection[str] = (),
        namespace: str = "",
        score: float = 0.0,
        parent: str = "",
        graph: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> Allocation:
        """Begin a put whose tensors the caller writes in place; in process it copies nothing.

        Parameters
        ----------
        model
            Its id.
        specs
            For each layer that the model brings along the (shape, dtype) of its tensors.
        table, match, inherited, namespace, score, parent, graph, metadata
            As for :meth:`put`.

        Returns
        -------
        Allocation
            Its arrays to write to; leaving it as a context publishes the model.

        Raises
        ------
        InvalidArgument, AlreadyExists, NotFound, OutOfMemory
            As :meth:`put`; some of them only when the model is published.
        """
        handle = self._open_handle()
        arguments.text(model, "model")
        layers = arguments.mapping(specs, "specs")
        said = self._said(table, match, inherited, namespace, score, parent, graph, metadata)
        if isinstance(handle, LocalStore):
            return Allocation(self, handle.allocate(model, dict(layers), *said))
        return Allocation(
            self, _StagedPut(layers, lambda arrays: handle.put(model, dict(arrays), *said))
        )

    def _said(
        self,
        table: LayerTable | None,
        match: LeasedMatch | None,
        inherited: Collection[str],
        namespace: str,
        score: float,
        parent: str,
        graph: str,
        metadata: Mapping[str, Any] | None,
    ) -> tuple[LayerTable | None, list[tuple[str, str]], str, float, str, str, str]:
        """Return what a put says besides the tensors, checked."""
        return (
            None if table is None else arguments.table(table),
            self._owners_of(arguments.texts(inherited, "inherited"), match),
            arguments.text(namespace, "namespace"),
            arguments.number(score, "score"),
            arguments.text(parent, "parent"),
            arguments.text(graph, "graph"),
            arguments.metadata(metadata),
        )

    def _owners_of(
        self, inherited: Collection[str], match: LeasedMatch | None
    ) -> list[tuple[str, str]]:
        if match is not None and not isinstance(match, LeasedMatch):
            raise InvalidArgument(f"match: expected a LeasedMatch, found {type(match).__name__}")
        if not inherited:
            return []
        if match is None:
            raise InvalidArgument(
                f"{len(inherited)} layers are to be inherited, but from no match; pass match="
            )
        if match._store is not self:
            raise InvalidArgument("the match is another store's; ask this one")
        owners = match.owners
        pairs = [(name, owners[name]) for name in inherited if name in owners]
        if len(pairs) < len(inherited):
            names = match.table.names
            prefix = {names[position] for position in match.positions}
            for name in inherited:
                if name not in prefix:
                    raise InvalidArgument(
                        f"layer {name!r} is not in the prefix of {len(prefix)} layers that the "
                        f"match with model {match.model!r} shares"
                    )
        return pairs

    def read(
        self, model: str, layers: Collection[str] | None = None, *, copy: bool = False
    ) -> dict[str, list[Array]]:
        """Tensors of a model, its own and inherited ones.

        Parameters
        ----------
        model
            Its id.
        layers
            Names of the layers wanted. None: all that have tensors.
        copy
            Whether to return fresh, writable arrays rather than read-only views.

        Returns
        -------
        dict[str, list[np.ndarray]]
            By layer name in the model's order, with dtypes and shapes as they were put. Layers
            without tensors are left out.

        Raises
        ------
        NotFound
            There is no such model.
        InvalidArgument
            The model has no such layer.
        """
        return self._open_handle().read(
            arguments.text(model, "model"),
            None if layers is None else arguments.texts(layers, "layers"),
            arguments.flag(copy, "copy"),
        )

    def read_into(self, model: str, buffers: Mapping[str, Sequence[Array]]) -> int:
        """Copy tensors of a model into the caller's arrays.

        Parameters
        ----------
        model
            Its id.
        buffers
            For each layer wanted one writable, C-contiguous array a tensor, of its dtype and shape.
            Where one is not, nothing is written to any.

        Returns
        -------
        int
            Bytes copied.

        Raises
        ------
        NotFound
            There is no such model.
        InvalidArgument
            The model has no such layer, or an array is not as said above; names both.
        """
        return self._open_handle().read_into(
            arguments.text(model, "model"), dict(arguments.mapping(buffers, "buffers"))
        )

    def best_match(
        self,
        table: LayerTable,
        *,
        namespace: str = "",
        weight: Literal["layers", "bytes"] = "layers",
        min_layers: int = 1,
        exclude: Sequence[str] = (),
        only: str = "",
        lease: float | None = None,
    ) -> LeasedMatch:
        """Find the model with the heaviest prefix, ties to the higher score, then to the newer.

        Parameters
        ----------
        table
            The layers of the model that asks; it need not be stored.
        namespace
            Models of other namespaces never match.
        weight
            "layers" or "bytes": what makes a prefix heavy.
        min_layers
            Prefixes of fewer layers are no match; at least 1.
        exclude
            Ids of models that are not to be returned.
        only
            Id of the one model that may be: what is shared with it. Empty: any.
        lease
            Seconds for which the match can be read and inherited though it is retired meanwhile.
            None: ten minutes; 0: no lease.

        Returns
        -------
        LeasedMatch
            False if nothing shares `min_layers` layers. Close the match (it is a context manager)
            as soon as its tensors are no longer needed: until then they keep their memory.
        """
        matches = self.best_matches(
            table,
            count=1,
            namespace=namespace,
            weight=weight,
            min_layers=min_layers,
            exclude=exclude,
            only=only,
            lease=lease,
        )
        if matches:
            return matches[0]
        return LeasedMatch(self, table, Match("", 0.0, 0, 0, 0, []), 0, 0, {})

    def best_matches(
        self,
        table: LayerTable,
        *,
        count: int,
        namespace: str = "",
        weight: Literal["layers", "bytes"] = "layers",
        min_layers: int = 1,
        exclude: Sequence[str] = (),
        only: str = "",
        lease: float | None = None,
    ) -> list[LeasedMatch]:
        """At most `count` matches, best first, each leased; otherwise as :meth:`best_match`."""
        found = self._open_handle().best_matches(
            arguments.table(table),
            arguments.text(namespace, "namespace"),
            arguments.text(weight, "weight"),
            arguments.whole(count, "count", 1, _MOST),
            arguments.whole(min_layers, "min_layers", 1, _MOST),
            arguments.texts(exclude, "exclude"),
            arguments.text(only, "only"),
            arguments.seconds(lease, "lease"),
        )
        return [LeasedMatch(self, table, *each) for each in found]

    def read_match(
        self, match: LeasedMatch, layers: Collection[str] | None = None, *, copy: bool = False
    ) -> dict[str, list[Array]]:
        """Tensors of the layers of a match, though its model is retired meanwhile.

        Parameters
        ----------
        match
            A match of this store, with its lease not yet ended.
        layers
            Names of layers of its prefix. None: all that have tensors.
        copy
            Whether to return fresh, writable arrays rather than read-only views.

        Returns
        -------
        dict[str, list[np.ndarray]]
            As :meth:`read` returns them.

        Raises
        ------
        InvalidArgument
            A layer is not in the prefix.
        NotFound
            The lease is over and the tensors are gone.
        """
        handle = self._open_handle()
        if not isinstance(match, LeasedMatch):
            raise InvalidArgument(f"match: expected a LeasedMatch, found {type(match).__name__}")
        wanted = match.owners if layers is None else arguments.texts(layers, "layers")
        owners = self._owners_of(wanted, match)
        return handle.fetch(match.table, owners, arguments.flag(copy, "copy"))

    def lookup(self, model: str) -> ModelInfo:
        """All that is known of a model, but its tensors. NotFound if there is none of that id."""
        return self._open_handle().lookup(arguments.text(model, "model"))

    def list(self, namespace: str | None = None) -> Names:
        """Ids of the models of a namespace (None: of all), oldest first on each server."""
        return self._open_handle().models(
            None if namespace is None else arguments.text(namespace, "namespace")
        )

    def retire(self, model: str) -> None:
        """Take a model out of the candidates at once.

        Refused for nobody: its tensors go when the last model that inherits them, the last lease
        and the last view has gone. NotFound if there is no model of that id.
        """
        self._open_handle().retire(arguments.text(model, "model"))

    def __contains__(self, model: object) -> bool:
        handle = self._open_handle()
        try:
            return handle.contains(arguments.text(model, "model"))
        except InvalidArgument:  # of no model that there could be
            return False

    def __len__(self) -> int:
        return len(self.list())

    def __iter__(self) -> Iterator[str]:
        return iter(self.list())

    def stats(self) -> dict[str, Any]:
        """Numbers: of models, layers, tensors, bytes, calls and memory.

        Returns
        -------
        dict[str, Any]
            Totals over all servers, and with servers the numbers of each under ``"servers"``, by
            address. ``bytes_stored`` is what all tensors take, each counted once;
            ``bytes_referenced`` what whole copies of the models would take. ``memory_used`` counts
            padding and tensors that only views keep.
        """
        servers = self._open_handle().stats()
        totals: dict[str, Any] = {}
        for _, numbers in servers:
            for name, value in numbers.items():
                totals[name] = totals.get(name, 0) + value
        by_address = {address: numbers for address, numbers in servers if address}
        if by_address:
            totals["servers"] = by_address
        return totals

    def scrub(self) -> int:
        """Reclaim what processes that died left behind. Returns the number of references freed."""
        return self._open_handle().scrub()

    @property
    def transport(self) -> Names:
        """How each server is reached: "shm" on this host, else libfabric's provider.

        Empty for a store in this process.
        """
        return self._open_handle().transports()

    @property
    def servers(self) -> Names:
        """Addresses of the servers; none for a store in this process."""
        return self._open_handle().servers()

    @property
    def replicas(self) -> int:
        """How many servers keep each model."""
        return self._open_handle().replicas()

    @property
    def absent(self) -> Names:
        """Addresses of servers that did not answer a moment ago.

        Best matches leave them out. With one replica their models are lost to whoever asks now;
        with several, the others answer for them.
        """
        return self._open_handle().absent()

    def verify(self) -> Names:
        """Recompute all checksums. Returns the layers whose bytes changed, as "owner/key"."""
        return self._open_handle().verify()

    def close(self) -> None:
        """Let go of the store. Models in process go with it; arrays that were read stay.

        In a fork the store is forgotten, and stays open in the process that opened it.
        """
        if self._birthplace.is_elsewhere:
            self._handle = self._submitter = None
            return
        with self._submitter_lock:
            submitter, self._submitter = self._submitter, None
            handle, self._handle = self._handle, None
        if submitter is not None:
            submitter.close()
        if handle is not None:
            handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def embedded(
    *,
    memory: int | str = "4GiB",
    data_dir: str | os.PathLike[str] | None = None,
    durability: Literal["lazy", "sync"] = "lazy",
) -> Store:
    """Open a store in this process.

    Parameters
    ----------
    memory
        The most that tensors may take in memory: bytes, or a number with a unit such as "512MiB" or
        "8GB". Taken from the system as it is needed. With a data directory the store may hold more:
        what was not used for long leaves the memory, and comes back when it is read.
    data_dir
        Directory where everything is kept; what is there is found again. One store at a time may
        have it open, until it is closed. None: the models end with the store.
    durability
        When a put returns: "lazy", when the model is in memory, and at most a second later it is on
        disk; "sync", when it is on disk.

    Raises
    ------
    InvalidArgument
        The directory is open in another store, is none, holds other files, or is of a newer format.
    StorageError
        It cannot be read or written, or is damaged. Puts raise it, too, and change nothing then.
    """
    return Store(open_local(memory, data_dir, durability))


def open_local(
    memory: int | str, data_dir: str | os.PathLike[str] | None, durability: str
) -> LocalStore:
    """Open the store in process that :func:`embedded` and :func:`cpp_store.serve` wrap."""
    directory = b"" if data_dir is None else arguments.directory(data_dir, "data_dir")
    handle = LocalStore(parse_memory(memory), directory, arguments.text(durability, "durability"))
    if directory:
        _on_disk[handle] = Birthplace()
    return handle


# The last second of puts shall not depend on whether anybody closes the store.
_on_disk: weakref.WeakKeyDictionary[LocalStore, Birthplace] = weakref.WeakKeyDictionary()


@atexit.register
def _close_all() -> None:
    for handle, birthplace in list(_on_disk.items()):
        if not birthplace.is_elsewhere:
            handle.close()


_UNITS = {"": 1, "B": 1} | {
    unit: base**power
    for power, letter in enumerate("KMGT", start=1)
    for unit, base in ((letter, 1024), (letter + "B", 1000), (letter + "IB", 1024))
}


def parse_memory(memory: int | str) -> int:
    """Bytes of a size such as 1073741824, "1GiB", "1G" (both 1024^3) or "1GB" (10^9).

    Raises
    ------
    InvalidArgument
        For anything else, and for less than one byte.
    """
    bytes_: float = 0
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", memory)
        if found and found[2].upper() in _UNITS:
            bytes_ = float(found[1]) * _UNITS[found[2].upper()]
    elif not isinstance(memory, bool):
        bytes_ = arguments.number(memory, "memory")
    if not 1 <= bytes_ < 2**63:
        raise InvalidArgument(
            f"memory is {memory!r}; it is a number of bytes, or one with a unit such as '4GiB'"
        )
    return int(bytes_)
