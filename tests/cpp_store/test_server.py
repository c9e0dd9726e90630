"""`cpp-store-server` as a process, its clients, and what happens when either dies."""

import json
import multiprocessing
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import cpp_store
from cpp_store import InvalidArgument, NotFound

from . import servers


def arrays(count: int, nbytes: int, seed: int = 0) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {f"layer_{i}": [rng.integers(0, 256, nbytes, "uint8")] for i in range(count)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(servers.PROGRAM), *arguments], capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_prints_its_address_and_ends_cleanly(stop: signal.Signals) -> None:
    process, address = servers.start()
    assert address.startswith("ofi+tcp://127.0.0.1:")
    assert not address.endswith(":0")
    with cpp_store.connect(address) as store:
        store.put("m", arrays(2, 100))
    process.send_signal(stop)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (0, "", servers.MEMORY_ONLY)


def test_the_address_may_be_a_flag() -> None:
    process, address = servers.start("--listen", "ofi+tcp://127.0.0.1:0")
    assert address.startswith("ofi+tcp://127.0.0.1:")
    assert servers.finish(process) == (0, servers.MEMORY_ONLY)


def test_json_names_address_and_limits() -> None:
    process, line = servers.start("--json", "--memory", "1MiB", "--threads", "3")
    try:
        ready = json.loads(line)
        assert ready["address"].startswith("ofi+tcp://")
        assert (ready["memory"], ready["threads"], ready["pid"]) == (1 << 20, 3, process.pid)
    finally:
        servers.finish(process)


def test_help_names_every_flag_with_its_default() -> None:
    done = run("--help")
    assert done.returncode == 0
    for word in (
        "ofi+tcp://127.0.0.1:0",
        "--listen",
        "--threads",
        "--memory",
        "4GiB",
        "--json",
        "--log-level",
    ):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threads", "0"], ["--threads", "0"]),
        (["--memory", "lots"], ["lots"]),
        (["--memory", "0"], ["--memory"]),
        (["--log-level", "loud"], ["loud"]),
        (["--frobnicate"], ["--frobnicate"]),
        (["127.0.0.1:80"], ["127.0.0.1:80", "ofi+"]),
        (["ofi+teleport://127.0.0.1:0"], ["teleport", "tcp"]),
        (["ofi+tcp://no.such.host.invalid:0"], ["no.such.host.invalid"]),
    ],
)
def test_bad_flags_are_one_line_and_code_2(arguments: list[str], words: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words)


def test_a_taken_port_is_named() -> None:
    with servers.running() as [address]:
        done = run(address)
        assert done.returncode == 2
        assert address in done.stderr
        with pytest.raises(InvalidArgument, match="in use"):
            cpp_store.serve(address)


def test_connect_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODEL_SERVERS", raising=False)
    with pytest.raises(InvalidArgument, match="MODEL_SERVERS"):
        cpp_store.connect()
    with servers.running(2) as addresses:
        monkeypatch.setenv("MODEL_SERVERS", " ".join(addresses))
        with cpp_store.connect() as store:
            assert list(store.stats()["servers"]) == addresses


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("127.0.0.1:80", InvalidArgument, "malformed"),
        ("ofi+tcp://127.0.0.1:0", InvalidArgument, "port 0"),
        ("ofi+teleport://127.0.0.1:9", InvalidArgument, "it has: .*tcp"),
        ("ofi+tcp://127.0.0.1:9", cpp_store.ConnectionError, "127.0.0.1:9.*refused"),
    ],
)
def test_connect_names_what_is_wrong(address: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        cpp_store.connect(address)


def test_another_program_behind_the_port_is_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(cpp_store.ConnectionError, match=str(port)):
            cpp_store.connect(f"ofi+tcp://127.0.0.1:{port}", timeout=1)


def test_other_server_lists_are_refused() -> None:
    with servers.running(2) as addresses, cpp_store.connect(addresses) as store:
        for i in range(8):
            store.put(f"m{i}", arrays(1, 10))
        with pytest.raises(InvalidArgument, match="same list"):
            cpp_store.connect(addresses[0])
        with cpp_store.connect(addresses[::-1]) as again:
            assert sorted(again.list()) == sorted(store.list())


def test_a_killed_server_is_named_and_may_come_back() -> None:
    process, address = servers.start()
    store = cpp_store.connect(address)
    store.put("m", arrays(1, 100_000))
    process.kill()
    process.wait(timeout=10)
    with pytest.raises(cpp_store.ConnectionError, match=re.escape(address)):
        store.read("m")
    with pytest.raises(cpp_store.ConnectionError, match=re.escape(address)):
        store.put("n", arrays(1, 100_000))
    again, _ = servers.start(address)
    try:
        with pytest.raises(NotFound):
            store.read("m")
        store.put("m", arrays(1, 100_000))
    finally:
        servers.finish(again)


@pytest.mark.parametrize("key", [None, "k" * 43], ids=["open", "key"])
def test_a_call_ends_when_its_server_is_started_again(
    key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for the one before would look in vain for a port that nobody listens at."""
    if key:
        monkeypatch.setenv("CPP_STORE_KEY", key)
    process, address = servers.start()
    with cpp_store.connect(address, same_host=False) as store:
        servers.freeze(process)
        timer = threading.Timer(0.2, process.kill)
        errors: list[str] = []

        def ask() -> None:
            try:
                store.list()
            except cpp_store.ConnectionError as error:
                errors.append(str(error))

        waiting = threading.Thread(target=ask)
        waiting.start()
        timer.start()
        process.wait(timeout=10)
        again, _ = servers.start(address)
        waiting.join(timeout=20)
        assert [error for error in errors if "was started again" in error], errors
        assert store.list() == []
    servers.finish(again)


def test_a_stopped_server_is_named() -> None:
    process, address = servers.start()
    try:
        store = cpp_store.connect(address)
        servers.freeze(process)
        with pytest.raises(cpp_store.ConnectionError, match=re.escape(address)):
            store.list()
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate(timeout=10)


def test_a_signal_ends_a_call_that_waits() -> None:
    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    process, address = servers.start()
    before = signal.signal(signal.SIGUSR1, interrupt)  # SIGALRM is pytest-timeout's
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        store = cpp_store.connect(address)
        servers.freeze(process)
        start = time.monotonic()
        timer.start()
        with pytest.raises(Interrupted):
            store.list()
        assert time.monotonic() - start < 4  # else, the silence of the server would end it
        process.send_signal(signal.SIGCONT)
        assert store.list() == []
    finally:
        timer.cancel()
        signal.signal(signal.SIGUSR1, before)
        process.kill()
        process.communicate(timeout=10)


def put_for_ever(address: str, ready: "multiprocessing.synchronize.Event") -> None:
    store = cpp_store.connect(address)
    tensors = arrays(4, 8 << 20)
    store.put("before", tensors)
    ready.set()
    for i in range(10**6):
        store.put(f"m{i}", tensors)
        store.retire(f"m{i}")


def hold_a_lease(address: str, ready: "multiprocessing.synchronize.Event") -> None:
    store = cpp_store.connect(address)
    match = store.best_match(cpp_store.LayerTable(["layer_0"]), lease=3600)
    assert match
    ready.set()
    signal.pause()


def test_the_leases_of_a_killed_client_end() -> None:
    context = multiprocessing.get_context("spawn")
    with servers.running() as [address]:
        store = cpp_store.connect(address)
        store.put("m", arrays(1, 100), table=cpp_store.LayerTable(["layer_0"]))
        ready = context.Event()
        client = context.Process(target=hold_a_lease, args=(address, ready))
        client.start()
        assert ready.wait(60)
        assert store.stats()["leases"] == 1
        client.kill()
        client.join()
        deadline = time.monotonic() + 20
        while store.stats()["leases"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert store.stats()["leases"] == 0


def test_a_client_killed_in_a_put_leaves_nothing_half() -> None:
    context = multiprocessing.get_context("spawn")
    with servers.running(1, "--memory", "512MiB") as [address]:
        for _ in range(3):
            ready = context.Event()
            client = context.Process(target=put_for_ever, args=(address, ready))
            client.start()
            assert ready.wait(60)
            client.kill()
            client.join()
        expected = arrays(4, 8 << 20)
        with cpp_store.connect(address) as store:
            assert store.verify() == []
            for model in store.list():
                found = store.read(model, copy=True)
                for name, [array] in expected.items():
                    np.testing.assert_array_equal(found[name][0], array)
                store.retire(model)
            deadline = time.monotonic() + 20
            while store.stats()["memory_used"] and time.monotonic() < deadline:
                store.list()
            assert store.stats()["memory_used"] == 0


def test_bytes_of_strangers_disturb_nobody() -> None:
    process, address = servers.start("--memory", "64MiB")
    try:
        host, port = address.removeprefix("ofi+tcp://").split(":")
        store = cpp_store.connect(address)
        store.put("m", arrays(3, 50_000))
        rng = np.random.default_rng(0)
        for i in range(60):
            with socket.create_connection((host, int(port)), timeout=5) as stranger:
                stranger.sendall(rng.bytes(1 + i * 37))
                if i % 3 == 0:
                    stranger.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
            found = store.read("m")
        assert len(found) == 3
        with cpp_store.connect(address) as other:
            assert other.list() == ["m"]
    finally:
        code, errors = servers.finish(process)
    assert code == 0, errors


def test_threads_and_processes_of_clients_at_once() -> None:
    with servers.running(2) as addresses, cpp_store.connect(addresses) as store:
        wrong: list[str] = []

        def work(thread: int) -> None:
            for i in range(10):
                tensors = arrays(3, 300_000, seed=thread * 100 + i)
                store.put(f"{thread}/{i}", tensors, namespace=str(thread))
                for name, [array] in store.read(f"{thread}/{i}").items():
                    if not np.array_equal(array, tensors[name][0]):
                        wrong.append(f"{thread}/{i}/{name}")

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert len(store.list()) == 40
        assert store.stats()["models"] == 40


def test_serve_hosts_the_store_of_its_process() -> None:
    with cpp_store.serve(memory="64MiB") as server:
        tensors = arrays(2, 200_000)
        server.store.put("m", tensors)
        with cpp_store.connect(server.address) as store:
            np.testing.assert_array_equal(store.read("m")["layer_1"][0], tensors["layer_1"][0])
            store.put("n", arrays(1, 10))
        assert sorted(server.store.list()) == ["m", "n"]
    assert server.store.list()
    with pytest.raises(cpp_store.ConnectionError):
        cpp_store.connect(server.address)


def test_a_key_keeps_others_out() -> None:
    with cpp_store.serve(memory="1MiB", key="secret") as server:
        with pytest.raises(cpp_store.PermissionDenied, match="wants a key"):
            cpp_store.connect(server.address, insecure=True)
        with cpp_store.connect(server.address, key="secret") as store:
            assert store.list() == []


@pytest.mark.parametrize("same_host", [True, False])
def test_servers_say_how_long_calls_took(same_host: bool) -> None:
    with (
        servers.running(2, "--memory=64MiB") as addresses,
        cpp_store.connect(addresses, same_host=same_host) as store,
    ):
        for number in range(20):
            store.put(f"m{number}", arrays(1, 1000))
            assert store.best_match(store.lookup(f"m{number}").table)
        with pytest.raises(cpp_store.NotFound):
            store.lookup("none")
        stats = store.stats()
        assert (stats["puts"], stats["matches"]) == (20, 40)  # all servers are asked
        times = stats["times"]
        assert {name: times[name]["count"] for name in ("put", "lookup", "best_matches")} == {
            "put": 20,
            "lookup": 21,  # what fails takes time, too
            "best_matches": 40,  # all servers are asked
        }
        each = [numbers["times"]["put"] for numbers in stats["servers"].values()]
        assert len(each) == 2 and sum(one["count"] for one in each) == 20
        for name in ("p50_us", "p99_us"):
            assert times["put"][name] == max(one[name] for one in each)
        for one in times.values():
            assert 0 < one["p50_us"] <= one["p99_us"]
    with cpp_store.embedded(memory="1MiB") as alone:
        assert alone.stats()["times"] == {}


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_idle_server_sleeps() -> None:
    with servers.running(1, "--json", "--memory", "1MiB") as [line]:
        ready = json.loads(line)
        with cpp_store.connect(ready["address"]) as store:
            store.put("m", arrays(1, 1000))
            before = cpu_seconds(ready["pid"])
            time.sleep(2)  # what is measured is time; of one that looks all the time, a core's
            assert cpu_seconds(ready["pid"]) - before < 0.2


@pytest.mark.parametrize("first", ["mpi4py.MPI", "cpp_store"])
def test_mpi_and_the_store_load_in_either_order(first: str) -> None:
    pytest.importorskip("mpi4py")
    second = "cpp_store" if first != "cpp_store" else "mpi4py.MPI"
    use = {
        "mpi4py.MPI": "from mpi4py import MPI; MPI.COMM_WORLD.Barrier()",
        "cpp_store": "import cpp_store; s = cpp_store.serve(memory=1 << 20); "
        "cpp_store.connect(s.address).list(); s.stop()",
    }
    done = subprocess.run(
        [sys.executable, "-c", f"{use[first]}\n{use[second]}\nprint('both')"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "both\n"), done.stderr
