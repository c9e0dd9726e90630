"""``python tests/wheel_smoke.py WHEEL``: does the wheel work where nothing is but Python?

Installs it into a fresh environment with the few packages that a store and ``--help`` need, hides
every program of the system (compilers above all), and uses it as a first-time user would. It is run
by ``make test-wheel`` and not by pytest, whose environment has everything.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

# Not all that the wheel asks for: PyArrow and SciPy would take a minute and prove nothing.
PACKAGES = ("numpy", "ml_dtypes", "networkx", "mpi4py", "rich")

STORE = """
import os, sys
import numpy as np
import cpp_store, graph_meta, transfer_nas
for module in (cpp_store, graph_meta, transfer_nas):
    assert module.__file__.startswith(sys.prefix), f"{module.__file__} is not the wheel's"
weights = {"dense": [np.arange(1 << 20, dtype=np.float32)]}
with cpp_store.embedded(memory="64MiB") as store:
    store.put("model", weights)
    assert np.array_equal(store.read("model")["dense"][0], weights["dense"][0])
with cpp_store.connect(os.environ["MODEL_SERVERS"]) as store:
    store.put("model", weights)
    assert np.array_equal(store.read("model")["dense"][0], weights["dense"][0])
print("put and read", weights["dense"][0].nbytes, "bytes, in process and through a server")
"""


def main() -> int:
    wheel = Path(sys.argv[1]).resolve()
    begin = time.perf_counter()
    names = zipfile.ZipFile(wheel).namelist()
    missing = sorted(files_of_packages() - set(names))
    assert not missing, f"{wheel.name} lacks {missing}"
    bundled = [name for name in names if ".libs/" in name]
    assert not bundled, (
        f"{wheel.name} carries libraries: {bundled}; libfabric is opened at run time"
    )
    assert "linux_x86_64" not in wheel.name.replace("manylinux", ""), (
        f"{wheel.name} is not portable"
    )
    with tempfile.TemporaryDirectory(prefix="wheel-") as place:
        environment = Path(place) / "environment"
        python = environment / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--only-binary", ":all:", *PACKAGES], check=True)
        subprocess.run([*pip, "--no-deps", wheel], check=True)
        use(environment / "bin", place)
    print(f"{wheel.name} works in an environment of its own ({time.perf_counter() - begin:.0f} s)")
    return 0


def files_of_packages() -> set[str]:
    """Return what a wheel has to hold of the Python packages, as paths in it."""
    root = Path(__file__).resolve().parent.parent
    return {
        file.relative_to(root).as_posix()
        for package in ("transfer_nas", "graph_meta")
        for file in (root / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def use(programs: Path, place: str) -> None:
    """Start a server, put and read, ask each command for help; only `programs` can be found."""
    hidden = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    hidden["PATH"] = str(programs)
    command = [programs / "cpp-store-server", "ofi+tcp://127.0.0.1:0", "--memory=256MiB"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=hidden) as server:
        try:
            assert server.stdout is not None
            hidden["MODEL_SERVERS"] = server.stdout.readline().strip()
            assert hidden["MODEL_SERVERS"].startswith("ofi+tcp://"), "the server says no address"
            run(programs / "python", "-c", STORE, env=hidden, place=place)
        finally:
            server.terminate()
    assert server.returncode == 0, f"the server ended with {server.returncode}"
    run(programs / "cpp-store-server", "--version", env=hidden, place=place)
    run(programs / "cpp-store", "--help", env=hidden, place=place)
    for module in ("transfer_nas.evolve", "graph_meta.find_prefix"):
        run(programs / "python", "-m", module, "--help", env=hidden, place=place)


def run(*command: str | Path, env: dict[str, str], place: str) -> None:
    """Run a command away from the checkout, so that the wheel's packages are what is imported."""
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stderr}"
    assert done.stdout.strip(), f"{command} printed nothing"


if __name__ == "__main__":
    sys.exit(main())
