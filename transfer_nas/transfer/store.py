"""Through the model store: inherited layers are referenced, not copied."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import cpp_store
from graph_meta import LayerGraph
from transfer_nas.errors import InputError, TransferError, TransferUnavailable
from transfer_nas.transfer._base import Inheritance, Tensors, TransferMethod
from transfer_nas.transfer._copies import version_of

_MANY = 64  # models from which on it is quicker to ask which are there

_log = logging.getLogger(__name__)


class StoreTransfer(TransferMethod):
    """Models in a `cpp_store.Store`, in process or on servers.

    Parameters
    ----------
    namespace
        Models of other namespaces in the store are left alone.
    store
        An open store; it stays the caller's.
    lease
        Seconds for which an inheritance can be read and put after its ancestor was retired: longer
        than a candidate trains. It ends earlier when the inheritance is closed; the rest is for
        processes that die.
    """

    name: ClassVar[str] = "store"

    def __init__(self, namespace: str, store: cpp_store.Store, *, lease: float = 86_400.0) -> None:
        self.namespace = namespace
        self._store = store
        self._lease = lease
        self._named: set[str] = set()  # servers whose absence was told

    @classmethod
    def create(
        cls, namespace: str, *, directory: Path | None = None, store: cpp_store.Store | None = None
    ) -> StoreTransfer:
        """Make one; it needs a store."""
        if store is None:
            raise InputError("transfer method store needs an open cpp_store.Store")
        return cls(namespace, store)

    def best_match(self, graph: LayerGraph, only: str = "") -> StoreInheritance | None:
        """Ask the store, which leases the match at the same moment."""
        with _failures(self._store, "cannot ask for the best match"):
            match = self._store.best_match(
                graph.table, namespace=self.namespace, only=only, lease=self._lease
            )
        self._name_absent()
        if match is None:
            return None
        inheritance = StoreInheritance(self._store, match, graph)
        if match.bytes == 0:
            inheritance.close()
            return None
        return inheritance

    def versions(self) -> set[object]:
        """Look at the first and the last model of the list."""
        found: set[object] = set()
        with _failures(self._store, "cannot look at models"):
            models = self._store.list(self.namespace)
            for model in {*models[:1], *models[-1:]}:
                with suppress(cpp_store.NotFound, ValueError):  # retired; or no graph of ours
                    found.add(version_of({"graph": json.loads(self._store.lookup(model).graph)}))
        return found

    def _name_absent(self) -> None:
        """Say once of each server that it is gone, and what that means."""
        for address in self._store.absent:
            if address in self._named:
                continue
            self._named.add(address)
            if self._store.replicas == 1:
                _log.warning(
                    "store server %s is gone: the models that it kept are lost to this search, "
                    "which goes on without those ancestors",
                    address,
                )
            else:
                _log.warning(
                    "store server %s is gone: the search goes on with the other replicas", address
                )

    def whole(self, model: str) -> tuple[LayerGraph, Tensors] | None:
        """Read a model that is not retired; while it is read it may be, then it is gone."""
        with _failures(self._store, f"cannot read model {model!r}"):
            try:
                graph = LayerGraph.from_json(self._store.lookup(model).graph)
                return graph, self._store.read(model)
            except cpp_store.NotFound:
                return None

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
        """Store the layers of the model's own; refer to the ancestor's for the others."""
        if inherited and not isinstance(inheritance, StoreInheritance):
            raise ValueError("inherited layers need the inheritance that they come from")
        match = inheritance.match if isinstance(inheritance, StoreInheritance) else None

        def put() -> int:
            return self._store.put(
                model,
                tensors,
                table=graph.table,
                match=match,
                inherited=inherited,
                namespace=self.namespace,
                score=score,
                parent=parent,
                graph=graph.to_json(),
            )

        with _failures(self._store, f"cannot put model {model!r}"):
            try:
                return put()
            except cpp_store.AlreadyExists:
                with suppress(cpp_store.NotFound):
                    self._store.retire(model)
                return put()

    def retire(self, models: Iterable[str]) -> None:
        """Retire models in the store."""
        wanted = list(models)
        if len(wanted) > _MANY:  # as when a search is resumed; most of them went long ago
            with _failures(self._store, "cannot list models"):
                there = set(self._store.list(self.namespace))
            wanted = [model for model in wanted if model in there]
        for model in wanted:
            with (
                _failures(self._store, f"cannot retire model {model!r}"),
                suppress(cpp_store.NotFound),
            ):
                self._store.retire(model)


class StoreInheritance(Inheritance):
    """A leased match of a store.

    Attributes
    ----------
    match
        The store's own words for it.
    """

    def __init__(
        self, store: cpp_store.Store, match: cpp_store.LeasedMatch, graph: LayerGraph
    ) -> None:
        self.match = match
        self.ancestor = match.model
        self.score = match.score
        self.layers = tuple(graph.names[position] for position in match.positions)
        self.nbytes = match.bytes
        self._store = store

    def read(self) -> Tensors:
        """Read the layers by the lease."""
        with _failures(self._store, f"cannot read model {self.ancestor!r}"):
            return self._store.read_match(self.match)

    def close(self) -> None:
        """End the lease; if nobody answers, it ends by itself."""
        with suppress(cpp_store.StoreError):
            self.match.close()


@contextmanager
def _failures(store: cpp_store.Store, what: str) -> Iterator[None]:
    """Turn what the store raises into what `TransferMethod` promises."""
    try:
        yield
    except cpp_store.InvalidArgument:
        raise  # the caller's mistake
    except (cpp_store.ConnectionError, cpp_store.DeadlineExceeded) as error:
        # Where others answer, it is only this model that its server cannot take or give.
        others = len(store.servers) > max(1, len(store.absent))
        kind = TransferError if others else TransferUnavailable
        raise kind(f"{what}: {error}") from error
    except cpp_store.StoreError as error:
        raise TransferError(f"{what}: {error}") from error
