"""A store does not survive a fork: a child uses it by mistake, lets go of it, and only looks on."""

import contextlib
import gc
import multiprocessing
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import cpp_store
from cpp_store import LayerTable, Store, StoreError

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

MEMORY = "16MiB"
SIZE = 100_000


@pytest.fixture(params=["embedded", "on disk", "serving", "same host", "tcp"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Give a store of each kind, with a model ``m`` in it."""
    with contextlib.ExitStack() as stack:
        if request.param == "embedded":
            made = stack.enter_context(cpp_store.embedded(memory=MEMORY))
        elif request.param == "on disk":
            made = stack.enter_context(cpp_store.embedded(memory=MEMORY, data_dir=tmp_path))
        else:
            server = stack.enter_context(cpp_store.serve(memory=MEMORY))
            made = server.store
            if request.param != "serving":
                same_host = request.param == "same host"
                made = cpp_store.connect(server.address, same_host=same_host)
                stack.enter_context(made)
        made.put("m", {"a": [np.arange(SIZE)]})
        yield made


def in_fork(work: Callable[[], None]) -> int:
    """Run in a fork of this process. Returns its exit code: 0 unless something was raised."""
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_every_call_says_so(store: Store) -> None:
    match = store.best_match(LayerTable(["a"]))
    allocation = store.allocate("n", {"a": [((3,), "f4")]})
    submitter = store.submit
    submitter.list().result()  # its threads are there
    calls: list[Callable[[], object]] = [
        lambda: store.put("o", {"a": [np.ones(3)]}),
        lambda: store.allocate("o", {}),
        lambda: store.read("m"),
        lambda: store.read_into("m", {}),
        lambda: store.best_match(LayerTable(["a"])),
        lambda: store.read_match(match),
        lambda: store.lookup("m"),
        lambda: store.list(),
        lambda: store.retire("m"),
        lambda: "m" in store,
        lambda: store.stats(),
        lambda: store.scrub(),
        lambda: store.verify(),
        lambda: store.transport,
        lambda: store.submit,
        lambda: submitter.list(),
        lambda: submitter.close_match(match),
        lambda: allocation.publish(),
    ]

    def is_refused() -> None:
        with pytest.raises(StoreError):
            store.list()

    def work() -> None:
        for call in calls:
            with pytest.raises(
                StoreError, match=f"process {os.getppid()}, of which this is a fork"
            ):
                call()
        assert in_fork(is_refused) == 0

    assert in_fork(work) == 0
    allocation.publish()
    match.close()
    assert sorted(store.list()) == ["m", "n"]
    np.testing.assert_array_equal(store.read("m")["a"][0], np.arange(SIZE))


def test_letting_go_forgets(store: Store) -> None:
    held = [store.best_match(LayerTable(["a"])), store.read("m"), store.allocate("n", {})]

    def work() -> None:
        with pytest.raises(SystemExit), store, held[0], held[2]:  # type: ignore[attr-defined]
            sys.exit()
        store.close()
        held.clear()
        gc.collect()

    assert in_fork(work) == 0
    assert store.list() == ["m"] and len(store.read_match(held[0])["a"][0]) == SIZE
    held[2].publish()  # type: ignore[attr-defined]
    held[0].close()  # type: ignore[attr-defined]


def test_a_child_opens_its_own(tmp_path: Path) -> None:
    with cpp_store.serve(memory=MEMORY) as server, cpp_store.connect(server.address) as store:

        def work() -> None:
            with cpp_store.connect(server.address) as own:
                own.put("child", {"a": [np.ones(3)]})
            with cpp_store.embedded(memory=MEMORY, data_dir=tmp_path) as embedded:
                embedded.put("child", {"a": [np.ones(3)]})
            server.stop()

        assert in_fork(work) == 0
        assert store.list() == ["child"]


def test_arrays_stay_what_they_are_while_a_child_may_look(store: Store) -> None:
    array = store.read("m")["a"][0]
    (tell_in, tell_out), (said_in, said_out) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.read(tell_in, 1)
        right = bool((array == np.arange(SIZE)).all())
        os.write(said_out, b"1" if right else b"0")
        os.read(tell_in, 1)
        os._exit(0)
    del array
    store.retire("m")
    for number in range(30):  # in time, memory that is free is used again
        store.put(f"n{number}", {"a": [np.full(SIZE, number)]})
        store.retire(f"n{number}")
    os.write(tell_out, b"x")
    assert os.read(said_in, 1) == b"1"
    os.write(tell_out, b"x")
    assert os.waitpid(child, 0)[1] == 0
    for descriptor in (tell_in, tell_out, said_in, said_out):
        os.close(descriptor)


@pytest.mark.parametrize("served", [False, True])
def test_nothing_is_kept_for_children_that_have_ended(served: bool) -> None:
    with contextlib.ExitStack() as stack:
        if served:
            server = stack.enter_context(cpp_store.serve(memory=MEMORY))
            store = stack.enter_context(cpp_store.connect(server.address))
        else:
            store = stack.enter_context(cpp_store.embedded(memory=MEMORY))
        for number in range(40):  # 32 MB, were they kept
            store.put("m", {"a": [np.full(SIZE, number)]})
            array = store.read("m")["a"][0]
            assert in_fork(lambda: None) == 0
            assert array[0] == number
            del array
            store.retire("m")
        subprocess.run(["true"], check=True)
        assert len(list(Path("/proc/self/fd").iterdir())) < 60


def test_a_child_does_not_write_into_an_allocation() -> None:
    with cpp_store.embedded(memory=MEMORY) as store:
        allocation = store.allocate("n", {"a": [((3,), "f4")]})
        [array] = allocation.arrays["a"]
        array[:] = 1

        def work() -> None:
            with pytest.raises(ValueError, match="read-only"):
                array[:] = 2

        assert in_fork(work) == 0
        allocation.publish()
        assert store.read("n")["a"][0].tolist() == [1, 1, 1]


def test_a_pool_of_processes_hears_it(tmp_path: Path) -> None:
    global _shared
    with cpp_store.embedded(memory=MEMORY, data_dir=tmp_path) as _shared:
        with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(StoreError):
            pool.apply(_shared_length)
        assert len(_shared) == 0


_shared: Store


def _shared_length() -> int:
    return len(_shared)


def test_the_ordinary_end_of_a_child(tmp_path: Path) -> None:
    program = """
import os, sys, cpp_store
store = cpp_store.embedded(memory="16MiB", data_dir=sys.argv[1])
server = cpp_store.serve(memory="16MiB", data_dir=sys.argv[2])
client = cpp_store.connect(server.address)
if os.fork() == 0:
    with server, client, store:
        if os.fork() == 0:
            sys.exit(5)
        sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
assert os.waitstatus_to_exitcode(os.wait()[1]) == 5
assert client.list() == store.list() == []
"""
    command = [sys.executable, "-W", "ignore", "-c", program, tmp_path / "a", tmp_path / "b"]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
