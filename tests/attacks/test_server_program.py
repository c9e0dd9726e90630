"""`cpp-store-server` among people who mean it no good."""

import contextlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import cpp_store
from cpp_store import command
from tests.cpp_store import servers

ALONE = {key: value for key, value in os.environ.items() if not key.startswith("CPP_STORE_KEY")}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """Give a file with a key."""
    file = tmp_path / "key"
    cpp_store._core.make_key_file(str(file))
    return file


def ends_at_once(*arguments: str, **environment: str) -> str:
    """Run the server, which must end with code 2 and one line."""
    done = subprocess.run(
        [str(servers.PROGRAM), *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        env=ALONE | environment,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_an_address_that_nobody_hears_ends_it() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [str(servers.PROGRAM), "ofi+tcp://127.0.0.1:0", "--memory=1MiB"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
            env=ALONE,
        )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "cpp-store-server: cannot write to standard output: No space left on device"


def test_closed_streams_are_none_of_its_files(tmp_path: Path) -> None:
    address = tmp_path / "address"
    closed = f"exec '{servers.PROGRAM}' nonsense --data_dir '{tmp_path}/data' >&- 2>&-"
    assert subprocess.run(["sh", "-c", closed], timeout=20, env=ALONE).returncode == 2
    program = f"exec '{servers.PROGRAM}' ofi+tcp://127.0.0.1:0 --data_dir '{tmp_path}/data'"
    with address.open("w") as out:
        command = ["sh", "-c", f"{program} --memory=1MiB 2>&-"]
        process = subprocess.Popen(command, stdout=out, env=ALONE)
    try:
        descriptors = Path(f"/proc/{process.pid}/fd")
        while not address.read_text().endswith("\n"):
            assert process.poll() is None
        assert (descriptors / "2").readlink() == Path("/dev/null")
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_without_a_key_it_serves_no_other_hosts(key_file: Path) -> None:
    for address in ("ofi+tcp://0.0.0.0:0", "ofi+tcp://[::]:0"):
        assert "cpp-store keygen" in ends_at_once(address)
    assert "to encrypt takes a key" in ends_at_once("--encrypt", "--insecure")
    assert "--insecure" in ends_at_once("--insecure", "--key_file", str(key_file))
    for arguments in (["--insecure"], ["--key_file", str(key_file)]):
        process, address = servers.start("ofi+tcp://0.0.0.0:0", "--memory=1MiB", *arguments)
        code, _ = servers.finish(process)
        assert code == 0


def test_it_takes_no_key_that_others_may_know(key_file: Path, tmp_path: Path) -> None:
    key_file.chmod(0o644)
    assert "chmod 600" in ends_at_once("--key_file", str(key_file))
    assert "chmod 600" in ends_at_once(CPP_STORE_KEY_FILE=str(key_file))
    key_file.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(key_file)
    assert "symbolic link" in ends_at_once("--key_file", str(link))
    assert "can be guessed" in ends_at_once(CPP_STORE_KEY="1234")
    assert "keygen" in ends_at_once("--key_file", str(tmp_path / "none"))


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the directory of a user who has no key yet."""
    directory = tmp_path / "runtime"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    for name in ("CPP_STORE_KEY", "CPP_STORE_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    return directory


def test_the_users_key_is_made_and_found_without_a_word(runtime: Path) -> None:
    with servers.running(2, "--memory=64MiB") as addresses:
        for same_host in (True, False):
            with cpp_store.connect(addresses, same_host=same_host) as store:
                assert store.list() == []
            with pytest.raises(cpp_store.PermissionDenied, match="--key_file, CPP_STORE_KEY_FILE"):
                cpp_store.connect(addresses, insecure=True, same_host=same_host)
        (runtime / "cpp_store" / "key").unlink()
        with pytest.raises(cpp_store.PermissionDenied, match="--key_file, CPP_STORE_KEY_FILE"):
            cpp_store.connect(addresses)
    with cpp_store.serve(memory="1MiB") as server, cpp_store.connect(server.address) as store:
        assert store.list() == []


def test_without_a_key_only_on_purpose(runtime: Path) -> None:
    with (
        cpp_store.serve(memory="1MiB", insecure=True) as server,
        servers.running(1, "--memory=1MiB", "--insecure") as [address],
    ):
        for each in (server.address, address):
            with cpp_store.connect(each) as store:  # this user has no key either
                assert store.list() == []
        cpp_store.serve(memory="1MiB").stop()
        for each in (server.address, address):
            with pytest.raises(cpp_store.PermissionDenied, match="insecure=True"):
                cpp_store.connect(each)
            with cpp_store.connect(each, insecure=True) as store:
                assert store.list() == []
            assert command.main(["ls", each, "--insecure"]) == 0
    for refused in (cpp_store.connect, cpp_store.serve):
        with pytest.raises(cpp_store.InvalidArgument, match="leave one of both out"):
            refused("ofi+tcp://127.0.0.1:0", key="k" * 20, insecure=True)


_OTHER_USER = """
import os, sys
_, address, same_host, *key = sys.argv
import cpp_store
os.environ.pop("XDG_RUNTIME_DIR")
cpp_store._core
os.setgroups([]), os.setgid(12345), os.setuid(12345)
try:
    cpp_store.connect(address, same_host=same_host == "True", key="".join(key), timeout=5)
except cpp_store.PermissionDenied as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only an administrator can be another user")
@pytest.mark.parametrize("same_host", [True, False])
def test_another_user_of_the_host_is_refused(runtime: Path, same_host: bool) -> None:
    with servers.running(1, "--memory=1MiB") as [address]:
        for key in ([], ["another key than it"]):
            done = subprocess.run(
                [sys.executable, "-c", _OTHER_USER, address, str(same_host), *key],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert ("key is not" if key else "wants a key") in done.stdout, done.stderr
            assert done.stdout.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only an administrator can be another user")
def test_the_unix_socket_is_of_its_user_only(runtime: Path) -> None:
    process, _ = servers.start("--memory=1MiB", "--insecure")
    says = (
        "import os, socket, sys; os.setuid(12345);"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        "s.settimeout(20); s.connect(chr(0) + sys.argv[1]); print(s.recv(1))"
    )
    name = unix_socket_of(process.pid).removeprefix("\0")
    done = subprocess.run(
        [sys.executable, "-c", says, name], capture_output=True, text=True, timeout=60
    )
    code, log = servers.finish(process)
    assert code == 0
    assert done.stdout == "b''\n", done.stderr
    assert "a client of user 12345 is refused at the socket of this host" in log


def test_clients_need_its_key(
    key_file: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_file.read_text().strip()
    with servers.running(1, "--memory=64MiB", f"--key_file={key_file}") as addresses:
        for same_host in (True, False):
            with pytest.raises(cpp_store.PermissionDenied, match="wants a key"):
                cpp_store.connect(addresses, same_host=same_host)
            with pytest.raises(PermissionError, match="the key is not the server's"):
                cpp_store.connect(addresses, key="another key than it", same_host=same_host)
            with cpp_store.connect(addresses, key=key, same_host=same_host) as store:
                assert store.list() == []
        monkeypatch.setenv("CPP_STORE_KEY_FILE", str(key_file))
        for encrypt in (False, True):
            with cpp_store.connect(addresses, same_host=False, encrypt=encrypt) as store:
                weights = np.arange(3_000_000, dtype=np.float32)
                store.put("m", {"a": [weights, weights[:10]]})
                np.testing.assert_array_equal(store.read("m")["a"][0], weights)
                store.retire("m")


def test_the_key_is_seen_nowhere(key_file: Path) -> None:
    key = key_file.read_text().strip()
    process, address = servers.start("--memory=1MiB", "--key_file", str(key_file))
    with pytest.raises(cpp_store.PermissionDenied) as refused:
        cpp_store.connect(address, key="another key than it")
    assert key not in Path(f"/proc/{process.pid}/cmdline").read_text()
    assert key not in Path(f"/proc/{process.pid}/environ").read_text()
    code, log = servers.finish(process)
    assert code == 0
    assert key not in log and "another key" not in log
    assert "another key" not in str(refused.value)


def port_of(address: str) -> tuple[str, int]:
    host, port = address.split("://")[1].rsplit(":", 1)
    return host, int(port)


def unix_socket_of(pid: int) -> str:
    """Return the name of the abstract socket that a process listens at."""
    inodes = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if f"socket:[{fields[6]}]" in inodes and len(fields) > 7 and fields[3] == "00010000":
            return "\0" + fields[7].removeprefix("@")
    raise AssertionError("it listens at no socket")


@pytest.fixture
def server(key_file: Path) -> Iterator[tuple[int, str, str]]:
    """Give a server that must outlive the test: its process, address and key."""
    process, address = servers.start("--memory=64MiB", "--key_file", str(key_file))
    yield process.pid, address, key_file.read_text().strip()
    code, log = servers.finish(process)
    assert code == 0, log


def assert_it_serves(address: str, key: str) -> None:
    for same_host in (True, False):
        with cpp_store.connect(address, key=key, same_host=same_host, timeout=20) as store:
            store.put("m", {"a": [np.zeros(100_000)]})
            assert store.read("m")["a"][0].shape == (100_000,)
            store.retire("m")


def test_a_thousand_connections_that_say_nothing(server: tuple[int, str, str]) -> None:
    pid, address, key = server
    quiet = [socket.create_connection(port_of(address), timeout=10) for _ in range(1_000)]
    name = unix_socket_of(pid)
    near = []
    for _ in range(1_000):
        each = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        each.connect(name)
        each.settimeout(60)
        near.append(each)
    assert_it_serves(address, key)
    assert all(each.recv(1) == b"" for each in near)  # they had their time
    for each in quiet + near:
        each.close()
    assert_it_serves(address, key)


def test_bytes_that_come_slowly_or_are_none_of_ours(server: tuple[int, str, str]) -> None:
    _, address, key = server
    rng = random.Random(1)
    messages = (Path(__file__).parent / "messages").iterdir()
    sent = [file.read_bytes() for file in sorted(messages)]
    sent += [rng.randbytes(rng.randint(1, 5_000)) for _ in range(40)]
    open_ones = []
    for each in sent:
        slow = socket.create_connection(port_of(address), timeout=10)
        slow.sendall(each[:1])
        open_ones.append(slow)
    assert_it_serves(address, key)
    for slow, each in zip(open_ones, sent, strict=True):
        with contextlib.suppress(OSError):  # the server has seen enough
            slow.sendall(each[1:])
    assert_it_serves(address, key)
    for slow in open_ones:
        slow.close()
    assert_it_serves(address, key)
