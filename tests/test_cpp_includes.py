"""Folders of the C++ sources include each other in one direction only."""

import re
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "cpp_store" / "src"
# To be mended: checksums and forks are in `core`, and what keeps models on disk wants them.
_KNOWN = {("durable", "core")}
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([a-z_]+)/', re.MULTILINE)


def includes(sources: Path) -> dict[str, set[str]]:
    """Return which other folders the files of each folder include."""
    folders = {folder.name for folder in sources.iterdir() if folder.is_dir()}
    found: dict[str, set[str]] = {folder: set() for folder in folders}
    for path in sources.rglob("*.[ch]pp"):
        folder = path.relative_to(sources).parts[0]
        named = set(_INCLUDE.findall(path.read_text()))
        found[folder] |= {
            other for other in (named & folders) - {folder} if (folder, other) not in _KNOWN
        }
    return found


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the folders left when all that include none of the others are taken away."""
    left = {folder: set(named) for folder, named in graph.items()}
    while ready := {folder for folder, named in left.items() if not named & left.keys()}:
        left = {folder: named for folder, named in left.items() if folder not in ready}
    return sorted(left)


def test_a_cycle_is_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_folders_include_each_other_in_one_direction() -> None:
    found = includes(SOURCES)
    assert {"client", "core", "local", "net", "server"} <= found.keys()
    assert cycle(found) == [], found
