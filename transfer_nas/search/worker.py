"""What a rank evaluates with: the application, the servers of the store, the trainer."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cpp_store
from transfer_nas import applications, transfer
from transfer_nas.applications import Application
from transfer_nas.checkpoint import Checkpoint
from transfer_nas.errors import InputError
from transfer_nas.logs import Log
from transfer_nas.ranks import Ranks, together
from transfer_nas.search.evaluation import checkpoints_path
from transfer_nas.settings import Settings
from transfer_nas.spaces import Space
from transfer_nas.trainer import TransferTrainer
from transfer_nas.training.policy import Policy
from transfer_nas.transfer import TransferMethod

_CONNECT_TIMEOUT = 10.0  # seconds
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Servers:
    """The weight store of a job.

    Attributes
    ----------
    store
        This process's way to it; None: the transfer method needs none.
    addresses, key
        How another process finds it; without addresses it is in this process.
    """

    store: cpp_store.Store | None = None
    addresses: Sequence[str] = ()
    key: str = ""


def resolve(settings: Settings) -> tuple[Application, Space]:
    """Return what is searched, and where; raises InputError."""
    application = applications.resolve(settings.application, settings.data)
    _ = application.data  # wrong data shall be known before anything is written
    return application, application.space(settings.space)


def method(settings: Settings, application: Application, servers: Servers) -> TransferMethod:
    """Make the transfer method; its `close` is the caller's."""
    return transfer.get(
        settings.transfer,
        application.namespace,
        directory=settings.directory / "models",
        store=servers.store,
    )


def trainer(
    settings: Settings,
    application: Application,
    space: Space,
    method: TransferMethod,
    run: str,
    rank: int,
) -> TransferTrainer:
    """Make the trainer of this process; imports no Keras yet."""
    return TransferTrainer(
        application,
        space,
        method,
        policy=Policy(
            settings.policy,
            grow=settings.behind_prefix == "grow",
            unfreeze_top=settings.unfreeze_top,
            child_epochs=settings.child_epochs,
            schedule=settings.schedule,
            shrink_perturb=settings.shrink_perturb,
        ),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        run=run,
        checkpoint=Checkpoint(checkpoints_path(settings.directory), _log.warning),
        log=Log(settings.directory / "logs" / f"rank-{rank}.jsonl"),
        log_validation=settings.log_validation,
    )


def isolated_trainer(
    settings: Mapping[str, Any], addresses: Sequence[str], key: str, run: str, rank: int
) -> TransferTrainer:
    """Make the trainer of a child process (`isolation.InChild`).

    Without servers that answer it goes without transfer: the rank that started this process has
    reached them, so they are gone.
    """
    # Seconds that no evaluation shall be charged with; the best models are saved with it, whatever
    # trains them.
    import keras  # noqa: F401

    chosen = Settings(**settings)
    servers = Servers()
    if addresses:
        try:
            store = _open(chosen, addresses, key)
            servers = Servers(store, addresses, key)
        except cpp_store.StoreError as error:
            _log.warning("transfer failed, the search goes on without transfer: %s", error)
            chosen = dataclasses.replace(chosen, transfer="noop")
    application, space = resolve(chosen)
    return trainer(chosen, application, space, method(chosen, application, servers), run, rank)


@contextlib.contextmanager
def servers(settings: Settings, ranks: Ranks) -> Iterator[Servers]:
    """Connect to the servers of `MODEL_SERVERS`, or to the job's own; collective.

    Without `MODEL_SERVERS`, the first rank of each node serves those who know a random key: this
    job. A job of one process needs no server.
    """
    if settings.transfer != "store":
        yield Servers()
        return
    with contextlib.ExitStack() as stack:
        addresses = os.environ.get("MODEL_SERVERS", "").split()
        key = ""
        if not addresses and ranks.size == 1 and not settings.isolated:
            yield Servers(stack.enter_context(cpp_store.embedded()))
            return
        if not addresses:
            key = ranks.share(secrets.token_hex(16))[0]
            server = together(ranks, lambda: _serve(ranks, key))
            if server is not None:
                stack.enter_context(server)
            addresses = [a for a in ranks.share(server and server.address) if a is not None]
        with together(ranks, lambda: _connect(settings, addresses, key)) as client:
            try:
                yield Servers(client, addresses, key)
            except InputError:  # which all ranks raise together
                ranks.share(None)
                raise
            ranks.share(None)  # nobody stops a server while others still use it


def _serve(ranks: Ranks, key: str) -> cpp_store.Server | None:
    if ranks.local_rank != 0:
        return None
    one_node = ranks.local_size == ranks.size
    host = "127.0.0.1" if one_node else socket.gethostbyname(socket.gethostname())
    try:
        return cpp_store.serve(f"ofi+tcp://{host}:0", key=key)
    except cpp_store.StoreError as error:
        raise InputError(f"cannot start a store server on {host}: {error}") from error


def _open(settings: Settings, addresses: Sequence[str], key: str) -> cpp_store.Store:
    return cpp_store.connect(
        addresses, timeout=_CONNECT_TIMEOUT, key=key, replicas=settings.replicas
    )


def _connect(settings: Settings, addresses: Sequence[str], key: str) -> cpp_store.Store:
    try:
        return _open(settings, addresses, key)
    except cpp_store.StoreError as error:
        raise InputError(f"MODEL_SERVERS: {error}") from error
