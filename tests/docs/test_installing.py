"""What pages, messages and the Makefile say of installing can be done."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from graph_meta import extras

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CODE = [
    file
    for folder in ("transfer_nas", "graph_meta", "cpp_store/python", "benchmarks", "examples")
    for file in sorted((ROOT / folder).rglob("*.py"))
]
PAGES = [*{*ROOT.glob("*.md")} - {ROOT / "CHANGELOG.md"}, *sorted((ROOT / "docs").rglob("*.md"))]


def test_nobody_is_sent_to_a_package_index_for_this_project() -> None:
    """It is not published: from a checkout it is ``.[extra]``."""
    said = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in CODE + PAGES
        for line in file.read_text().splitlines()
        if re.search(r"transfer[-_]nas\[", line)
    ]
    assert not said


def test_every_extra_that_is_named_is_there() -> None:
    text = "\n".join(file.read_text() for file in [*CODE, *PAGES, ROOT / "Makefile"])
    named = set(re.findall(r"extras\.install\(['\"](\w+)", text))
    for group in re.findall(r"[\"' ]\.\[([\w,]+)\]", text) + re.findall(r"installed-(\w+)", text):
        named |= set(group.split(","))
    assert {"plots", "redis", "dev", "recommended"} <= named
    assert named <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("extra", ["plots", "redis"])
def test_a_message_names_what_the_extra_brings(extra: str) -> None:
    packages = " ".join(f'"{package}"' for package in PROJECT["optional-dependencies"][extra])
    assert extras.install(extra) == f"pip install {packages}"


def test_an_extra_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no extra 'plot'"):
        extras.install("plot")


def commands(target: str, environment: Path) -> str:
    """What `make TARGET` would do where there is no environment yet."""
    done = subprocess.run(
        ["make", "--dry-run", f"VENV={environment}", target],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_a_search_needs_no_developers_tools(tmp_path: Path) -> None:
    search = commands("search", tmp_path)
    assert "[recommended]" in search and "transfer_nas.evolve" in search
    assert not re.search(r"\[(dev|docs|release|benchmarks)\]|libgtest|chromium", search)
    for target in ("test-python", "check"):
        assert "[recommended]" in commands(target, tmp_path)
        assert "[dev]" in commands(target, tmp_path) and "libgtest" in commands(target, tmp_path)


def test_each_long_step_says_before_what_it_takes(tmp_path: Path) -> None:
    lines = commands("test-python", tmp_path).splitlines()
    for step in ("pip --disable-pip-version-check wheel", "[recommended]", "[dev]"):
        at = next(i for i, line in enumerate(lines) if step in line)
        said = " ".join(lines[max(0, at - 2) : at])
        assert re.search(r"minutes|\d [MG]B", said), f"nothing said before {lines[at]}"
