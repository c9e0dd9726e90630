"""Keeps models and their tensors, each shared tensor once, and finds the longest shared prefix.

Start reading at :class:`Store` (put, read, match, retire; :func:`embedded` makes one in process,
:func:`connect` one on servers) and :class:`PrefixIndex` (which model shares most with this one?).
The work is done in C++ (``cpp_store._core``); this package knows nothing of Keras, MPI or search.
It loads that, and NumPy, when one of its names is asked for: the commands of the packages above it
share `cpp_store.command_line`, and their ``--help`` waits for nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cpp_store._core import (
        AlreadyExists,
        Busy,
        ConnectionError,
        DeadlineExceeded,
        InvalidArgument,
        LayerTable,
        Match,
        ModelInfo,
        NotFound,
        OutOfMemory,
        PermissionDenied,
        PrefixIndex,
        ProtocolError,
        StorageError,
        StoreError,
    )
    from cpp_store._dlpack import DLPackArray, dlpack
    from cpp_store._overlap import AsyncStore, Submitter
    from cpp_store._server import Server, connect, serve
    from cpp_store._store import Allocation, LeasedMatch, Store, embedded, parse_memory

__all__ = [
    "Allocation",
    "AlreadyExists",
    "AsyncStore",
    "Busy",
    "ConnectionError",
    "DLPackArray",
    "DeadlineExceeded",
    "InvalidArgument",
    "LayerTable",
    "LeasedMatch",
    "Match",
    "ModelInfo",
    "NotFound",
    "OutOfMemory",
    "PermissionDenied",
    "PrefixIndex",
    "ProtocolError",
    "Server",
    "StorageError",
    "Store",
    "StoreError",
    "Submitter",
    "connect",
    "dlpack",
    "embedded",
    "parse_memory",
    "serve",
]

_MODULES = ("_core", "_store", "_server", "_overlap", "_dlpack")


def __getattr__(name: str) -> Any:
    if name not in __all__ and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for each in _MODULES:
        module = importlib.import_module(f"{__name__}.{each}")
        globals()[each] = module
        globals().update({known: vars(module)[known] for known in __all__ if known in vars(module)})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
