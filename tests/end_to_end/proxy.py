"""A network between clients and a server that stops when a test says so."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self


class Proxy:
    """Forwards TCP connections to a server, both ways, until it is told to stall.

    While it stalls, connections are taken and bytes too, as by a router that has lost the way, but
    none come out; what was held back goes on afterwards.

    Attributes
    ----------
    address
        Where clients reach the server through it.
    forwarded
        Bytes to the server, and from it.
    """

    def __init__(self, address: str) -> None:
        scheme, _, target = address.partition("://")
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._flows = threading.Event()
        self._flows.set()
        self._closing = False
        self._lock = threading.Lock()  # guards what is below
        self._sending: list[threading.Lock] = []  # held by each thread while it forwards
        self._sockets: list[socket.socket] = [self._listener]
        self._threads: list[threading.Thread] = []
        self.forwarded = [0, 0]
        self._start(self._accept)

    def stall(self) -> None:
        """Forward nothing any more, once this returns."""
        self._flows.clear()
        with self._lock:
            under_way = list(self._sending)
        for sending in under_way:
            with sending:  # what was on its way has got there, and is counted
                pass

    def go_on(self) -> None:
        """Forward what was held back, and what comes."""
        self._flows.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._closing = True
            sockets, threads = self._sockets, self._threads
        self._flows.set()
        for each in sockets:
            with contextlib.suppress(OSError):  # the other side was quicker
                each.shutdown(socket.SHUT_RDWR)  # ends what its thread waits for
        for thread in threads:
            thread.join()
        for each in sockets:
            each.close()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:  # the server is gone
                client.close()
                continue
            with self._lock:
                if self._closing:
                    client.close()
                    server.close()
                    return
                self._sockets += [client, server]
                self._start(self._forward, client, server, 0)
                self._start(self._forward, server, client, 1)

    def _forward(self, source: socket.socket, target: socket.socket, way: int) -> None:
        sending = threading.Lock()
        with self._lock:
            self._sending.append(sending)
        try:
            while data := source.recv(1 << 16):
                with self._while_it_flows(sending):
                    target.sendall(data)
                    with self._lock:
                        self.forwarded[way] += len(data)
            self._flows.wait()
            target.shutdown(socket.SHUT_WR)
        except OSError:  # one of both is gone
            return

    @contextlib.contextmanager
    def _while_it_flows(self, sending: threading.Lock) -> Iterator[None]:
        """Wait until nothing stalls, and keep it from stalling before this is over."""
        while True:
            self._flows.wait()
            with sending:
                if self._flows.is_set():
                    yield
                    return
