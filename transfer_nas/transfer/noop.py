"""No transfer: every candidate trains from scratch. What the others are compared with."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import ClassVar

import cpp_store
from graph_meta import LayerGraph
from transfer_nas.transfer._base import Inheritance, Tensors, TransferMethod


class NoTransfer(TransferMethod):
    """Keeps nothing and matches nothing."""

    name: ClassVar[str] = "noop"

    @classmethod
    def create(
        cls, namespace: str, *, directory: Path | None = None, store: cpp_store.Store | None = None
    ) -> NoTransfer:
        """Make one; it needs nothing."""
        return cls()

    def best_match(self, graph: LayerGraph, only: str = "") -> None:
        """Match nothing."""
        return

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
        """Keep nothing."""
        return 0

    def retire(self, models: Iterable[str]) -> None:
        """Do nothing: no model is stored."""
