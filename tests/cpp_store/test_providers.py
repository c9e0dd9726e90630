"""The store over each of libfabric's providers, between processes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cpp_store
from cpp_store import InvalidArgument

from . import servers

SYSTEM_LIBFABRIC = Path("/usr/lib/x86_64-linux-gnu/libfabric.so.1")
BUNDLED_LIBFABRIC = Path(sys.prefix) / "lib" / "mpich" / "libfabric.so.1"

# The client is a process of its own, too: it opens its copy of libfabric once.
CLIENT = """
import json, sys
import numpy as np
import cpp_store
known = cpp_store.connect.__kwdefaults__
store = cpp_store.connect(sys.argv[1], **({"same_host": False} if "same_host" in known else {}))
rng = np.random.default_rng(3)
tensors = {f"layer_{n}": [rng.integers(0, 256, n, "uint8")] for n in (9, 70_000, 3_000_001)}
store.put("model", tensors, table=cpp_store.LayerTable(list(tensors)))
found = store.read("model")
same = all(np.array_equal(found[name][0], tensors[name][0]) for name in tensors)
print(json.dumps({"same": same, "damaged": store.verify()}))
"""


@pytest.mark.parametrize("library", [SYSTEM_LIBFABRIC, BUNDLED_LIBFABRIC], ids=["system", "mpi"])
@pytest.mark.parametrize(
    "address",
    [
        "ofi+tcp://127.0.0.1:0",
        "ofi+net://127.0.0.1:0",
        "ofi+tcp;ofi_rxm://127.0.0.1:0",
        "ofi+shm://",
    ],
)
def test_puts_and_reads_over(address: str, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not library.exists():
        pytest.skip(f"there is no {library}")
    monkeypatch.setenv("CPP_STORE_LIBFABRIC", str(library))
    with servers.running(1, address, "--memory", "64MiB") as addresses:
        client = subprocess.run(
            [sys.executable, "-c", CLIENT, addresses[0]], capture_output=True, text=True, timeout=60
        )
    assert client.returncode == 0, client.stderr
    assert json.loads(client.stdout) == {"same": True, "damaged": []}


@pytest.mark.parametrize("provider", ["verbs", "cxi"])
def test_says_in_one_line_that_hardware_is_missing(provider: str) -> None:
    with pytest.raises(cpp_store.StoreError) as caught:
        cpp_store.connect(f"ofi+{provider}://127.0.0.1:4711")
    if not isinstance(caught.value, InvalidArgument):
        pytest.skip(f"there is such hardware here: {caught.value}")
    assert f"no provider '{provider}'" in str(caught.value)
    assert "it has: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_read_keeps_its_bytes_while_others_write() -> None:
    """Bulk is cut into chunks; those of several clients may not mix."""
    with servers.running(1, "--memory", "512MiB") as addresses:
        stores = [cpp_store.connect(addresses) for _ in range(2)]
        tensors = [{"layer": [np.full(20_000_000, value, "uint8")]} for value in range(len(stores))]
        for value, store in enumerate(stores):
            store.put(f"model_{value}", tensors[value], table=cpp_store.LayerTable(["layer"]))
        calls = [
            store.submit.read(f"model_{value}")
            for value, store in enumerate(stores)
            for _ in range(3)
        ]
        for index, call in enumerate(calls):
            assert (call.result()["layer"][0] == index // 3).all()
