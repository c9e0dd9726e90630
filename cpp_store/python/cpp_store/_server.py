"""Stores on servers: connecting to them, and being one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self

from cpp_store import _arguments as arguments
from cpp_store import _core
from cpp_store._core import InvalidArgument, LocalStore, RemoteStore
from cpp_store._forks import Birthplace
from cpp_store._store import Store, open_local

SERVERS_VARIABLE = "MODEL_SERVERS"
REPLICAS_VARIABLE = "MODEL_REPLICAS"


def connect(
    servers: str | Sequence[str] | None = None,
    *,
    timeout: float = 30.0,
    key: str = "",
    same_host: bool = True,
    encrypt: bool = False,
    replicas: int | None = None,
    insecure: bool = False,
) -> Store:
    """Open the store that one or several servers hold together.

    Parameters
    ----------
    servers
        Addresses as the servers print them, such as ``"ofi+tcp://10.0.0.1:4711"``: a sequence, or a
        string with spaces between them, in any order. All clients of a store need the same list.
        None: what the environment variable ``MODEL_SERVERS`` says.
    timeout
        Seconds that a call may take, besides the time for its bytes.
    key
        Of the servers, if they want one; a server that has none is then refused. Empty: what the
        environment variable ``CPP_STORE_KEY`` says, or the key in the file that
        ``CPP_STORE_KEY_FILE`` names; for servers that only this host reaches also the user's own
        key, which servers without another one make; or none.
    same_host
        Whether to use the memory of servers on this host directly. False: libfabric for all.
    encrypt
        Whether to encrypt what goes over a network; takes a key. Servers may want it, too.
    replicas
        How many servers keep each model; all clients of a store need the same. With more than one,
        calls go on while a server of each model answers. None: what the environment variable
        ``MODEL_REPLICAS`` says, or 1.
    insecure
        Connect without a key, whatever the environment says: to servers that were started so.

    Raises
    ------
    InvalidArgument
        No address, or one that is malformed or comes twice; a provider that libfabric does not
        have; another list than the clients gave whose models are on the servers; a key file that
        others can read.
    PermissionDenied
        The key is not the server's, or one of both has none.
    ConnectionError
        A server cannot be reached; names it. Later calls raise it too when a server is gone, after
        seconds at most, and connect again when it is back.
    """
    if servers is None:
        servers = os.environ.get(SERVERS_VARIABLE, "")
        if not servers.split():
            raise InvalidArgument(
                f"no servers: pass their addresses, or set {SERVERS_VARIABLE} to them"
            )
    listed = servers.split() if isinstance(servers, str) else servers
    addresses = arguments.texts(listed, "servers")
    _core.add_library_prefixes([sys.prefix])
    if not _goes_without_key(key, insecure):
        key = key or _core.default_client_key(addresses)
    if replicas is None:
        replicas = _replicas_of_environment()
    if arguments.whole(replicas, "replicas", 0, 2**31) < 1:
        raise InvalidArgument(f"{replicas} replicas; each model is kept by 1 server at least")
    return Store(
        RemoteStore(
            addresses,
            arguments.number(timeout, "timeout"),
            key,
            arguments.flag(same_host, "same_host"),
            arguments.flag(encrypt, "encrypt"),
            replicas,
        )
    )


def _goes_without_key(key: str, insecure: bool) -> bool:
    given = arguments.text(key, "key")
    if arguments.flag(insecure, "insecure") and given:
        raise InvalidArgument(
            "insecure means without a key, and one is given: leave one of both out"
        )
    return insecure


def _replicas_of_environment() -> int:
    said = os.environ.get(REPLICAS_VARIABLE, "") or "1"
    if not said.isdecimal():
        raise InvalidArgument(f"{REPLICAS_VARIABLE} is {said!r}; it is a number of servers")
    return int(said)


class Server:
    """A store in this process that others may use as well. Made by :func:`serve`.

    A context manager that stops itself.

    Attributes
    ----------
    address : str
        What others connect to.
    store : Store
        The store; this process needs no connection to it.
    """

    def __init__(
        self,
        address: str,
        local: LocalStore,
        threads: int,
        key: str,
        insecure: bool = False,
        encrypt: bool = False,
    ) -> None:
        _core.add_library_prefixes([sys.prefix])
        self._birthplace = Birthplace()
        self._server = _core.Server(address, local, threads, key, insecure, encrypt)
        self.address: str = self._server.address
        self.store = Store(local)

    def stop(self) -> None:
        """Leave the network. The store stays open. May be called again. Does nothing in a fork."""
        if not self._birthplace.is_elsewhere:
            self._server.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def serve(
    address: str = "ofi+tcp://127.0.0.1:0",
    *,
    memory: int | str = "4GiB",
    threads: int = 2,
    key: str = "",
    insecure: bool = False,
    encrypt: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    durability: Literal["lazy", "sync"] = "lazy",
) -> Server:
    """Start a server in this process, as ``cpp-store-server`` is one of its own.

    Parameters
    ----------
    address
        Where to listen: ``ofi+<provider>://<host>:<port>``; port 0 takes a free one.
    memory
        The most that tensors may take: bytes, or a number with a unit such as "512MiB" or "8GB".
    threads
        How many do what requests ask for; one more moves the bytes. None of them needs the GIL.
    key
        Clients must know it. Empty: what the environment says, as for :func:`connect`; else, at an
        address that only this host reaches, the user's own key, which is made if there is none.
    insecure
        Serve without a key: whoever reaches the address, every user of this host among them, may
        read, put and retire models.
    encrypt
        Whether to encrypt all that goes over a network, whether clients ask for it or not.
    data_dir, durability
        As for :func:`cpp_store.embedded`. Close ``store`` when the server has stopped.

    Raises
    ------
    InvalidArgument
        A malformed address, a provider that libfabric does not have, a port that is taken; no key
        at an address that other hosts reach; a directory that cannot be had.
    ConnectionError
        There is no libfabric.
    """
    arguments.text(address, "address")
    arguments.whole(threads, "threads", 0, 2**31)
    if not _goes_without_key(key, insecure):
        key = key or _core.default_server_key(address)
    encrypt = arguments.flag(encrypt, "encrypt")
    local = open_local(memory, data_dir, durability)
    return Server(address, local, threads, key, insecure, encrypt)
