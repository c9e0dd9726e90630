"""What is particular to clients on the server's host."""

import gc
import multiprocessing
import os
import re
import signal
import time
from multiprocessing.synchronize import Event

import numpy as np
import pytest

import cpp_store

from . import servers


def look(address: str, ready: Event) -> None:
    """Read a model and keep the views until the end."""
    store = cpp_store.connect(address)
    views = store.read("m")
    assert store.transport == ["shm"]
    store.retire("m")
    ready.set()
    time.sleep(600)
    del views


def wait_until_used(store: cpp_store.Store, expected: int) -> None:
    """Ask until so many bytes are in use; fail after a while."""
    deadline = time.monotonic() + 20
    while store.stats()["memory_used"] != expected:
        assert time.monotonic() < deadline, store.stats()["memory_used"]


def test_pins_of_a_killed_client_go() -> None:
    context = multiprocessing.get_context("spawn")
    with servers.running(1, "--memory", "64MiB") as [address], cpp_store.connect(address) as store:
        store.put("m", {"a": [np.arange(1 << 17)]})
        ready = context.Event()
        client = context.Process(target=look, args=(address, ready))
        client.start()
        assert ready.wait(60)
        assert "m" not in store
        assert store.stats()["memory_used"] == 1 << 20
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        client.join()
        wait_until_used(store, 0)


def test_views_are_read_only_pinned_and_outlive_everything() -> None:
    expected = np.arange(100_000)
    with servers.running(1, "--memory", "64MiB") as [address]:
        with cpp_store.connect(address) as store:
            store.put("m", {"a": [expected], "b": [np.zeros(7)]})
            view = store.read("m")["a"][0]
            again = store.read("m")["a"][0]
            assert view.ctypes.data == again.ctypes.data  # nothing is copied
            with pytest.raises(ValueError):
                view[0] = 1
            with pytest.raises(ValueError):
                view.flags.writeable = True
            store.retire("m")
            store.put("n", {"a": [np.ones(100_000)]})
            np.testing.assert_array_equal(view, expected)
            del again
            gc.collect()
        np.testing.assert_array_equal(view, expected)
    np.testing.assert_array_equal(view, expected)


def test_memory_comes_back_when_the_last_view_goes() -> None:
    with servers.running(1, "--memory", "64MiB") as [address], cpp_store.connect(address) as store:
        store.put("m", {"a": [np.zeros(1_000)], "b": [np.zeros(2_000)]})
        view = store.read("m")["a"][0]
        store.retire("m")
        gc.collect()
        wait_until_used(store, 8_000)
        del view
        gc.collect()
        wait_until_used(store, 0)


def test_a_server_and_its_client_in_one_process() -> None:
    with cpp_store.serve(memory="64MiB") as server, cpp_store.connect(server.address) as store:
        assert store.transport == ["shm"]
        store.put("m", {"a": [np.arange(100_000)]})
        view = store.read("m")["a"][0]
        server.stop()
        server.store.retire("m")
        server.store.put("n", {"a": [np.zeros(100_000)]})
        np.testing.assert_array_equal(view, np.arange(100_000))
        with pytest.raises(cpp_store.ConnectionError, match=re.escape(server.address)):
            store.list()


def test_libfabric_when_asked_for() -> None:
    with servers.running() as [address]:
        with cpp_store.connect(address, same_host=False) as far:
            assert "shm" not in far.transport
            far.put("m", {"a": [np.arange(10)]})
        with cpp_store.connect(address) as near:
            np.testing.assert_array_equal(near.read("m")["a"][0], np.arange(10))
