"""Where a job's own store servers listen, and what is refused."""

import ipaddress
import signal
import socket
import subprocess
import types
from pathlib import Path
from typing import Any

import pytest

from transfer_nas.errors import InputError
from transfer_nas.ranks import Ranks
from transfer_nas.search import addresses, worker


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
        worker._serve(two_nodes, "0" * 32, address)


SEARCH = ["-m", "transfer_nas.evolve", "--application", "diabetes", "--epochs", "1"]
SEARCH += ["--population_size", "4", "--max_evals", "4", "--seed", "1", "--json"]
BREAKING = Path(__file__).parents[1] / "mpi" / "breaking.py"
TWO_NODES = {"MPIR_CVAR_ODD_EVEN_CLIQUES": "1", "MODEL_SERVERS": ""}
"""MPICH takes the ranks of this host for those of two nodes."""


def test_ranks_on_two_nodes_share_their_servers_whatever_the_hosts_name_is(
    mpiexec: Any, tmp_path: Path
) -> None:
    if not addresses.of_this_host():
        pytest.skip("this host has no network")
    search = ["-m", "transfer_nas.evolve", "--application", f"{BREAKING}:application"]
    env = {**TWO_NODES, "BREAK": "evaluating 1 SIGTERM", "RUN": str(tmp_path / "run")}
    done = mpiexec(2, *search, "--timeout", "600", "--output_dir", tmp_path / "run", env=env)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "transfer store (2 servers)" in done.stderr


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
