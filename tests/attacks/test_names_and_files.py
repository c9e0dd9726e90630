"""Ids and namespaces are any text and no names of files; files are written where asked."""

import os
from pathlib import Path

import numpy as np
import pytest

import cpp_store
from cpp_store import command

NAMES = [
    "../../outside",
    "/etc/passwd",
    "..",
    ".",
    "a/../../b",
    "C:\\windows",
    "line\nbreak",
    "nul\0byte",
    "~root",
    "$(touch ran)",
    "%2e%2e%2f",
    "é" * 100,
]


def everything_below(directory: Path) -> set[Path]:
    return set(directory.rglob("*"))


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_namespaces_are_no_paths(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "one" / "two"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    weights = {name: [np.arange(10.0)]}
    table = cpp_store.LayerTable([name])
    with cpp_store.serve(memory="16MiB") as server, cpp_store.connect(server.address) as store:
        store.put(name, weights, table=table, namespace=name)
        assert store.list(name) == [name]
        with store.best_match(table, namespace=name) as match:
            assert match.model == name
        if "\0" not in name:  # which no argument of a program can hold
            file = inside / "out.safetensors"
            assert command.main(["get", server.address, name, "-o", str(file)]) == 0
            assert everything_below(tmp_path) == {tmp_path / "one", inside, file}
            assert command.main(["rm", server.address, name]) == 0
            assert command.main(["put", server.address, str(file)]) == 0
        np.testing.assert_array_equal(store.read(name)[name][0], weights[name][0])
        store.retire(name)
    assert everything_below(tmp_path) <= {tmp_path / "one", inside, inside / "out.safetensors"}


def test_a_data_directory_has_no_file_of_any_name(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    for _ in range(2):  # the second time it is opened as it is
        with cpp_store.embedded(memory="16MiB", data_dir=directory) as store:
            for name in NAMES:
                store.put(name, {name: [np.arange(10.0)]}, namespace=name)
            assert sorted(store.list()) == sorted(NAMES)
    assert all(path == directory or directory in path.parents for path in tmp_path.rglob("*"))
    files = [path.name for path in everything_below(directory)]
    assert files and not any("outside" in name or "passwd" in name for name in files)


def test_get_replaces_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of somebody")
    link = tmp_path / "link"
    link.symlink_to(secret)
    with cpp_store.serve(memory="1MiB") as server:
        server.store.put("m", {"a": [np.zeros(3)]})
        arguments = ["get", server.address, "m", "-o", str(link)]
        assert command.main(arguments) == 2
        assert command.main([*arguments, "--force"]) == 0
    assert secret.read_text() == "of somebody"
    assert not link.is_symlink()


def test_a_key_file_is_made_for_its_owner_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "key"
    before = os.umask(0)
    try:
        assert command.main(["keygen", str(file)]) == 0
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(file.read_text()) == 65
    assert command.main(["keygen", str(file)]) == 2
    said = capsys.readouterr()
    assert "exists" in said.err
    assert file.read_text().strip() not in said.err + said.out
