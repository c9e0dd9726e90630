"""Keeps models and their tensors, each shared tensor once, and finds the longest shared prefix.

Start reading at :class:`PrefixIndex` (which stored model shares most with this one?). The work is
done in C++ (``cpp_store._core``); this package knows nothing of Keras, MPI or search.
"""

from cpp_store._core import (
    AlreadyExists,
    ConnectionError,
    DeadlineExceeded,
    InvalidArgument,
    LayerTable,
    Match,
    NotFound,
    OutOfMemory,
    PrefixIndex,
    ProtocolError,
    StoreError,
)

__all__ = [
    "AlreadyExists",
    "ConnectionError",
    "DeadlineExceeded",
    "InvalidArgument",
    "LayerTable",
    "Match",
    "NotFound",
    "OutOfMemory",
    "PrefixIndex",
    "ProtocolError",
    "StoreError",
]
