"""What many servers cost one client process, and many clients one server."""

import subprocess
import sys
import textwrap
from contextlib import ExitStack

import cpp_store

from . import servers

MIB = 1 << 20

# Prints by how much connecting to the servers of its arguments has grown the process.
_GROWTH = """
import os, sys
import cpp_store

def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))

def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

before = descriptors(), resident()
stores = CONNECT
for store in stores:
    store.stats()
print(descriptors() - before[0], resident() - before[1])
"""

# Connects so many times, half of them over the network, says so, and asks once told to.
_CLIENTS = """
import sys
import cpp_store

address, count, key = sys.argv[1], int(sys.argv[2]), sys.argv[3]
stores = [cpp_store.connect(address, same_host=i % 2 == 0) for i in range(count)]
print("connected", flush=True)
sys.stdin.readline()
for i, store in enumerate(stores):
    store.put(f"{key}_{i}", {"a": []})
    assert f"{key}_{i}" in store
print("done", flush=True)
sys.stdin.readline()
"""


def _grown(connect: str, *addresses: str) -> tuple[int, int]:
    program = textwrap.dedent(_GROWTH).replace("CONNECT", connect)
    run = subprocess.run(
        [sys.executable, "-c", program, *addresses], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    descriptors, resident = map(int, run.stdout.split())
    return descriptors, resident


def _line(client: "subprocess.Popen[str]") -> str:
    assert client.stdout is not None
    return client.stdout.readline().strip()


def _tell(client: "subprocess.Popen[str]") -> None:
    assert client.stdin is not None
    client.stdin.write("\n")
    client.stdin.flush()


def test_one_endpoint_for_64_servers() -> None:
    with ExitStack() as stack:
        running = [
            stack.enter_context(cpp_store.serve(memory="1MiB", threads=1)) for _ in range(64)
        ]
        addresses = [server.address for server in running]
        descriptors, resident = _grown(
            "[cpp_store.connect(sys.argv[1:], same_host=False)]", *addresses
        )
    assert descriptors <= 128
    assert resident <= 64 * MIB


def test_one_endpoint_for_200_connections() -> None:
    with servers.running(1, "--memory", "64MiB") as [address]:
        descriptors, resident = _grown(
            "[cpp_store.connect(sys.argv[1], same_host=False) for _ in range(200)]", address
        )
    assert descriptors <= 16
    assert resident <= 64 * MIB


def test_1024_clients_of_one_server() -> None:
    processes, connections = 16, 64
    with servers.running(1, "--memory", "64MiB") as [address], cpp_store.connect(address) as store:
        clients = [
            subprocess.Popen(
                [sys.executable, "-c", _CLIENTS, address, str(connections), str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(processes)
        ]
        try:
            for client in clients:
                assert _line(client) == "connected"
            for client in clients:
                _tell(client)
            for client in clients:
                assert _line(client) == "done"
            for client in clients:
                _tell(client)
                assert client.wait(60) == 0
            assert len(store) == processes * connections
        finally:
            for client in clients:
                client.kill()
                client.communicate()
