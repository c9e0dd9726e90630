"""Keeps models and their tensors, each shared tensor once, and finds the longest shared prefix.

Start reading at :class:`Store` (put, read, match, retire; :func:`embedded` makes one in process,
:func:`connect` one on servers) and :class:`PrefixIndex` (which model shares most with this one?).
The work is done in C++ (``cpp_store._core``); this package knows nothing of Keras, MPI or search.
"""

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
from cpp_store._store import Allocation, LeasedMatch, Store, embedded

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
    "serve",
]
