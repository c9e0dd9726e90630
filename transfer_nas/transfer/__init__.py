"""Transfer methods: how a candidate gets the weights of the stored model that shares its prefix.

`_base.py` states the contract; `tests/transfer_nas/test_transfer.py` holds every registered method
to it. Nothing here imports Keras.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import cpp_store
from graph_meta.graph import GraphError, check_version
from transfer_nas.errors import InputError, TransferError, near_misses
from transfer_nas.transfer._base import Inheritance, Tensors, TransferMethod
from transfer_nas.transfer.hdf5 import HDF5Transfer
from transfer_nas.transfer.noop import NoTransfer
from transfer_nas.transfer.redis import RedisTransfer
from transfer_nas.transfer.store import StoreTransfer

REGISTRY: Mapping[str, type[TransferMethod]] = {
    method.name: method for method in (StoreTransfer, HDF5Transfer, RedisTransfer, NoTransfer)
}

__all__ = [
    "REGISTRY",
    "HDF5Transfer",
    "Inheritance",
    "NoTransfer",
    "RedisTransfer",
    "StoreTransfer",
    "Tensors",
    "TransferMethod",
    "find",
    "get",
]


def find(name: str) -> type[TransferMethod]:
    """Return the class of the transfer method called `name`.

    Raises
    ------
    InputError
        There is none; the message names near misses.
    """
    if name not in REGISTRY:
        raise InputError(f"unknown transfer method {name!r}; {near_misses(name, REGISTRY)}")
    return REGISTRY[name]


def get(
    name: str,
    namespace: str,
    *,
    directory: Path | None = None,
    store: cpp_store.Store | None = None,
) -> TransferMethod:
    """Make the transfer method called `name`; see `find` and `TransferMethod.create`.

    Raises
    ------
    InputError
        There are models of other versions of layer graphs: digests of two versions never match.
    """
    method = find(name).create(namespace, directory=directory, store=store)
    try:
        with contextlib.suppress(TransferError):  # who does not answer now is met again later
            for version in method.versions() - {None}:
                check_version(version, f"transfer method {name}, models of {namespace}")
    except GraphError as error:
        method.close()
        raise InputError(str(error)) from None
    return method
