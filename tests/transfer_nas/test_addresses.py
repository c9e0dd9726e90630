"""Where a job's own store servers listen, and what is refused."""

import ipaddress
import json
import os
import signal
import socket
import subprocess
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from transfer_nas.errors import InputError
from transfer_nas.ranks import Ranks
from transfer_nas.searching import addresses, worker
from transfer_nas.settings import Settings


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A host with two networks, whose name is that of its loopback address, as Debian has it."""
    found = types.SimpleNamespace(
        ipv4={"lo": "127.0.0.1", "eth0": "10.0.0.5", "ib0": "10.1.0.5", "down0": None},
        ipv6=["::1", "fe80::1", "fd00::5"],
        names={"node5": ["127.0.1.1"], "node7": ["10.0.0.7"]},
        routes={},
    )

    def resolved(name: str) -> list[str]:
        try:
            return [str(ipaddress.ip_address(name))]
        except ValueError:
            return list(found.names.get(name, []))

    monkeypatch.setattr(socket, "gethostname", lambda: "node5")
    monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(found.ipv4)))
    monkeypatch.setattr(addresses, "_ipv4", lambda name: [a for a in [found.ipv4[name]] if a])
    monkeypatch.setattr(addresses, "_ipv6", lambda names: found.ipv6 if "eth0" in names else [])
    monkeypatch.setattr(addresses, "_resolved", resolved)
    monkeypatch.setattr(addresses, "_source", lambda address: found.routes.get(address))
    return found


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (None, ["10.0.0.5", "10.1.0.5", "fd00::5"]),
        ("ib0", ["10.1.0.5"]),
        ("10.1.0.0/16", ["10.1.0.5"]),
        ("fd00::/8", ["fd00::5"]),
        ("10.1.0.5", ["10.1.0.5"]),
        ("node5", ["10.0.0.5", "10.1.0.5", "fd00::5"]),
        ("node7", []),  # another node's
        ("10.1.0.9", []),
    ],
)
def test_candidates(host: Any, where: str | None, expected: list[str]) -> None:
    assert addresses.candidates(where) == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("lo", "interface lo of node node5 has no address that the job's other nodes reach"),
        ("down0", "interface down0 of node node5 has no address"),
        ("10.9.0.0/16", "node node5 has no address in 10.9.0.0/16"),
        ("10.300.0.0/16", "does not appear to be an IPv4 or IPv6 network"),
        ("127.0.0.1", "only its own host reaches 127.0.0.1"),
        ("::1", "only its own host reaches ::1"),
        ("nowhere", "expected an interface (lo, eth0, ib0, down0), a network such as"),
        ("", "expected an interface"),
    ],
)
def test_what_no_other_node_reaches_is_refused(host: Any, where: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        addresses.candidates(where)
    assert message in str(refused.value) and "--store_host" in str(refused.value)


def test_a_host_without_a_network_says_what_to_do(host: Any) -> None:
    host.ipv4, host.ipv6 = {"lo": "127.0.0.1"}, []
    with pytest.raises(InputError, match="start servers elsewhere and name them in MODEL_SERVERS"):
        addresses.candidates(None)


def test_a_host_with_ipv6_only(host: Any) -> None:
    host.ipv4 = {"lo": None, "eth0": None}
    assert addresses.candidates(None) == ["fd00::5"]
    assert addresses.uri("fd00::5") == "ofi+tcp://[fd00::5]:0"


def test_the_routing_table_chooses(host: Any) -> None:
    host.routes = {"10.0.0.6": "10.0.0.5", "10.1.0.6": "10.1.0.5", "10.1.0.7": "10.1.0.5"}
    mine = addresses.candidates(None)
    assert addresses.choose(mine, [["10.0.0.6", "10.1.0.6"]]) == "10.0.0.5"  # of equals the first
    assert addresses.choose(mine, [["10.0.0.6", "10.1.0.6"], ["10.1.0.7"]]) == "10.1.0.5"
    assert addresses.choose(mine, [["192.0.2.9"]]) == "10.0.0.5"  # nobody knows


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.1.1", "::1", "fe80::1", "0.0.0.0"])
def test_several_nodes_never_get_an_address_of_one(address: str) -> None:
    two_nodes: Ranks = types.SimpleNamespace(local_rank=0, local_size=1, size=2)  # type: ignore
    with pytest.raises(InputError, match="only its own reaches a store server at"):
        worker._serve(Settings(), two_nodes, "0" * 32, address)


def test_a_store_takes_a_tenth_of_the_memory_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert addresses._memory_of_node(tmp_path) == physical  # no cgroup says anything
    (tmp_path / "memory.max").write_text("max\n")
    assert addresses._memory_of_node(tmp_path) == physical
    (tmp_path / "memory.max").write_text("20480\n")
    assert addresses._memory_of_node(tmp_path) == 20480
    monkeypatch.setattr(addresses, "_memory_of_node", lambda: 20480)
    assert addresses.memory_of(None) == 2048
    assert addresses.memory_of("20KiB") == 20480
    with pytest.raises(InputError, match=r"--store_memory 21KiB: node .* has .* GiB"):
        addresses.memory_of("21KiB")


def test_addresses_have_the_provider_that_was_asked_for() -> None:
    assert addresses.uri("10.0.0.1") == "ofi+tcp://10.0.0.1:0"
    assert addresses.uri("::1", "ofi+cxi") == "ofi+cxi://[::1]:0"


@pytest.mark.parametrize("isolate", [[], ["--isolate"]])
def test_the_jobs_own_store_is_as_it_was_asked_for(
    tmp_path: Path, mpiexec: Any, isolate: list[str]
) -> None:
    run = tmp_path / "run"
    flags = ["--max_evals", "2", "--epochs", "1", "--output_dir", run, *isolate]
    own = ["--store_memory", "96MiB", "--store_provider", "ofi+tcp;ofi_rxm"]
    digits = ["-m", "transfer_nas.evolve", "--application", "digits"]
    done = mpiexec(1, *digits, *flags, *own, timeout=300, env={"MODEL_SERVERS": ""})
    assert done.returncode == 0, done.stderr
    where = "1 server" if isolate else "in this process"
    assert f"transfer store ({where} of 0.0938 GiB)" in done.stderr
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert (settings["store_memory"], settings["store_provider"]) == (own[1], own[3])


def test_a_server_that_a_node_does_not_reach_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "_CONNECT_TIMEOUT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    one: Ranks = types.SimpleNamespace(rank=1)  # type: ignore[assignment]
    nowhere = [f"ofi+tcp://127.0.0.1:{port}"]
    with pytest.raises(InputError) as refused:
        worker._connect(Settings(), one, nowhere, "0" * 32, own=True)
    assert str(refused.value).startswith("rank 1 on node ")
    assert nowhere[0] in str(refused.value) and "--store_host" in str(refused.value)


BREAKING = Path(__file__).parents[1] / "mpi" / "breaking.py"
SEARCH = ["-m", "transfer_nas.evolve", "--application", f"{BREAKING}:application"]
SEARCH += ["--timeout", "600"]
TWO_NODES = {"MPIR_CVAR_ODD_EVEN_CLIQUES": "1", "MODEL_SERVERS": "", "BREAK": "never 0 never"}
"""MPICH takes the ranks of this host for those of two nodes."""


def test_ranks_on_two_nodes_share_their_servers_whatever_the_hosts_name_is(
    mpiexec: Any, tmp_path: Path
) -> None:
    if not addresses.of_this_host():
        pytest.skip("this host has no network")
    env = {**TWO_NODES, "BREAK": "evaluating 1 SIGTERM", "RUN": str(tmp_path / "run")}
    done = mpiexec(2, *SEARCH, "--output_dir", tmp_path / "run", env=env)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "transfer store (2 servers of " in done.stderr


INTO = """
import os, sys
name = sys.argv[1] + os.environ["PMI_RANK"]
os.execvp("ip", ["ip", "netns", "exec", name, sys.executable, *sys.argv[2:]])
"""


@pytest.fixture
def two_networks() -> Iterator[str]:
    """Two namespaces: one network that they share, and one that each has for itself."""
    name = f"n{os.getpid()}-"
    first, second = f"{name}0", f"{name}1"

    def ip(command: str) -> None:
        done = subprocess.run(["ip", *command.split()], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"only an administrator may make networks: {done.stderr.decode()}")

    try:
        for namespace in (first, second):
            ip(f"netns add {namespace}")
            ip(f"-n {namespace} link set lo up")
            ip(f"-n {namespace} link add own type veth peer name other")
        ip(f"-n {first} link add shared type veth peer name shared netns {second}")
        for number, namespace in enumerate((first, second), 1):
            ip(f"-n {namespace} addr add 10.77.0.{number}/24 dev shared")
            ip(f"-n {namespace} addr add fd77::{number}/64 dev shared nodad")
            ip(f"-n {namespace} addr add 10.88.0.{number}/24 dev own")
            for interface in ("shared", "own", "other"):
                ip(f"-n {namespace} link set {interface} up")
        yield name
    finally:
        for namespace in (first, second):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


@pytest.mark.parametrize("where", ["shared", "fd77::/64", "10.77.0.2"])
def test_two_nodes_reach_each_other(
    mpiexec: Any, tmp_path: Path, two_networks: str, where: str
) -> None:
    search = [*SEARCH, "--output_dir", str(tmp_path / "run"), "--store_host", where]
    env = {**TWO_NODES, "BREAK": "evaluating 1 SIGTERM", "RUN": str(tmp_path / "run")}
    done = mpiexec(2, "-c", INTO, two_networks, *search, env=env)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    servers = "1 server" if where == "10.77.0.2" else "2 servers"
    assert f"transfer store ({servers} of " in done.stderr


def test_nodes_that_do_not_reach_each_other_end_with_one_line(
    mpiexec: Any, tmp_path: Path, two_networks: str
) -> None:
    where = ["--store_host", "10.88.0.0/24", "--output_dir", tmp_path / "run"]
    done = mpiexec(2, "-c", INTO, two_networks, *SEARCH, *where, env=TWO_NODES)
    assert done.returncode == 2, done.stderr
    [line] = [each for each in done.stderr.splitlines() if "evolve: error" in each]
    assert "rank 0 on node" in line and "10.88.0.2" in line and "--store_host" in line
    assert not (tmp_path / "run").exists()


def test_a_network_that_is_not_there_ends_both_with_one_line(mpiexec: Any, tmp_path: Path) -> None:
    where = ["--store_host", "lo", "--output_dir", tmp_path / "run"]
    done = mpiexec(2, *SEARCH, *where, env=TWO_NODES)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--store_host lo: interface lo of node" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_address_of_an_interface_is_what_the_system_says() -> None:
    """Against ``ip``, where there is one."""
    try:
        done = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no ip")
    lines = [line.split() for line in done.stdout.splitlines()]
    known = {fields[3].partition("/")[0] for fields in lines}
    found = set(addresses.of_this_host())
    assert found <= known
    assert all(addresses.only_here(address) for address in known - found) or len(known) > len(found)
