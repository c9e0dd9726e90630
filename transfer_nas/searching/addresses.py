"""Where a job's own store servers listen: at addresses that the other nodes of the job reach."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cpp_store
from transfer_nas.errors import InputError

LOOPBACK = "127.0.0.1"
_NAME_THE = "name the network that all of them share with --store_host"
_SIOCGIFADDR = 0x8915


def only_here(host: str) -> bool:
    """Whether an address is one that only its own host reaches."""
    address = ipaddress.ip_address(host)
    return address.is_loopback or address.is_link_local or address.is_unspecified


def of_this_host(interface: str | None = None) -> list[str]:
    """Return this host's addresses that others may reach, of one interface or of all.

    First of all that of the host's own name, as MPI libraries look for it; IPv4 before IPv6.
    """
    names = [name for _, name in socket.if_nameindex() if interface in (None, name)]
    found = [address for name in names for address in _ipv4(name)] + _ipv6(names)
    usable = [address for address in found if not only_here(address)]
    own = _resolved(socket.gethostname())
    return sorted(dict.fromkeys(usable), key=lambda address: address not in own)


def candidates(where: str | None) -> list[str]:
    """Return addresses of this host at which its server may listen.

    Parameters
    ----------
    where
        What the user wants: an interface, a network, or the address or name of one node; None:
        anything that others may reach.

    Returns
    -------
    list of str
        The best first; none if `where` names another node.

    Raises
    ------
    InputError
        There is none, or nobody knows what `where` means.
    """
    here = socket.gethostname()
    if where is None:
        found = of_this_host()
        if not found:
            raise InputError(
                f"node {here} has no address that the job's other nodes reach; give it one, or "
                "start servers elsewhere and name them in MODEL_SERVERS"
            )
        return found
    if where in (name for _, name in socket.if_nameindex()):
        found = of_this_host(where)
        what = f"interface {where} of node {here} has no address"
    elif "/" in where:
        network = _network(where)
        found = [a for a in of_this_host() if ipaddress.ip_address(a) in network]
        what = f"node {here} has no address in {where}"
    else:
        return _of_one_node(where)
    if not found:
        raise InputError(f"--store_host {where}: {what} that the job's other nodes reach")
    return found


def choose(mine: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    """Return that of this host's addresses which the routing table uses towards most others.

    Parameters
    ----------
    mine
        Addresses of this host, the preferred first.
    others
        Those of each other node.
    """
    votes = Counter(
        source
        for theirs in others
        for source in {_source(address) for address in theirs}
        if source in mine
    )
    return max(mine, key=lambda address: votes[address])  # of equals the first


def check(memory: str | None, provider: str | None) -> None:
    """Raise InputError, which names the flag, for what no server of the job's own can have."""
    if memory is not None:
        try:
            cpp_store.parse_memory(memory)
        except cpp_store.InvalidArgument as error:
            raise InputError(f"--store_{error}") from None
    if provider is not None and not re.fullmatch(r"ofi\+[a-z0-9_;-]+", provider):
        raise InputError(
            f"--store_provider {provider}: expected ofi+ and one of libfabric's providers, such "
            "as ofi+tcp, ofi+verbs or ofi+cxi"
        )


def memory_of(wanted: str | None) -> int:
    """Return the bytes that the store may take on this node: what is wanted, or a tenth.

    Raises
    ------
    InputError
        The node has less.
    """
    there = _memory_of_node()
    if wanted is None:
        return there // 10
    memory = cpp_store.parse_memory(wanted)
    if memory > there:
        raise InputError(
            f"--store_memory {wanted}: node {socket.gethostname()} has {there / 2**30:.3g} GiB "
            "that the job may use"
        )
    return memory


def _memory_of_node(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of memory that the job may use here: of the host, or of its cgroup."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = next((line[3:] for line in lines if line.startswith("0::")), "/")
        group = groups / own.lstrip("/")
        for each in (group, *group.parents):
            if each != groups and groups not in each.parents:
                break
            with contextlib.suppress(OSError, ValueError):  # "max": no limit
                limits.append(int((each / "memory.max").read_text()))
    return min(limits)


def uri(host: str, provider: str | None = None) -> str:
    """Return the address to serve at, on any free port."""
    return f"{provider or 'ofi+tcp'}://{f'[{host}]' if ':' in host else host}:0"


def unreachable(rank: int, addresses: Sequence[str], error: Exception) -> InputError:
    """Return what to say where a node does not reach the servers of the others."""
    return InputError(
        f"rank {rank} on node {socket.gethostname()} does not reach the job's own store servers "
        f"at {' '.join(addresses)} ({error}): {_NAME_THE}"
    )


def _of_one_node(where: str) -> list[str]:
    wanted = _resolved(where)
    if not wanted:
        raise InputError(
            f"--store_host {where}: expected an interface ({_interfaces()}), a network such as "
            "10.1.0.0/16, or the name or address of a node; found none of these"
        )
    if all(map(only_here, wanted)):
        if where == socket.gethostname():  # as Debian's /etc/hosts has it
            return of_this_host()
        raise InputError(
            f"--store_host {where}: only its own host reaches {wanted[0]}; {_NAME_THE}"
        )
    return [address for address in of_this_host() if address in wanted]


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise InputError(f"--store_host {text}: {error}") from None


def _interfaces() -> str:
    return ", ".join(name for _, name in socket.if_nameindex())


def _resolved(name: str) -> list[str]:
    """Return the addresses of a host name; none if it has none."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found))


def _source(address: str) -> str | None:
    """Return the address from which this host would send to another; nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
            return str(probe.getsockname()[0])
        except OSError:  # no route
            return None


def _ipv4(interface: str) -> list[str]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)
        except OSError:  # it has none
            return []
    return [socket.inet_ntoa(answer[20:24])]


def _ipv6(interfaces: Sequence[str]) -> list[str]:
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:  # no IPv6
        return []
    found = (line.split() for line in lines)
    return [
        str(ipaddress.IPv6Address(bytes.fromhex(fields[0])))
        for fields in found
        if fields[5] in interfaces
    ]
