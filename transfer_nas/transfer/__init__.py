"""Transfer methods: how a candidate gets the weights of the stored model that shares its prefix.

`_base.py` states the contract; `tests/transfer_nas/test_transfer.py` holds every registered method
to it. Nothing here imports Keras.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import cpp_store
from graph_meta.graph import GraphError, check_version
from transfer_nas.errors import InputError, TransferError
from transfer_nas.plugins import Registry
from transfer_nas.transfer._base import Inheritance, Tensors, TransferMethod
from transfer_nas.transfer.hdf5 import HDF5Transfer
from transfer_nas.transfer.noop import NoTransfer
from transfer_nas.transfer.redis import RedisTransfer
from transfer_nas.transfer.store import StoreTransfer

TRANSFERS = Registry(
    "--transfer",
    TransferMethod,  # type: ignore[type-abstract]
    "transfer_nas.transfer",
    (StoreTransfer, HDF5Transfer, RedisTransfer, NoTransfer),
)

__all__ = [
    "TRANSFERS",
    "HDF5Transfer",
    "Inheritance",
    "NoTransfer",
    "RedisTransfer",
    "StoreTransfer",
    "Tensors",
    "TransferMethod",
    "get",
]


def get(
    name: str,
    namespace: str,
    *,
    directory: Path | None = None,
    store: cpp_store.Store | None = None,
) -> TransferMethod:
    """Make the transfer method called `name`; see `TransferMethod.create`.

    Raises
    ------
    InputError
        There are models of other versions of layer graphs: digests of two versions never match.
    """
    method = TRANSFERS.find(name).create(namespace, directory=directory, store=store)
    try:
        with contextlib.suppress(TransferError):  # who does not answer now is met again later
            for version in method.versions() - {None}:
                check_version(version, f"transfer method {name}, models of {namespace}")
    except GraphError as error:
        method.close()
        raise InputError(str(error)) from None
    return method
