"""What pages, messages and the Makefile say of installing can be done."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cpp_store import extras

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


def test_a_module_that_is_missing_is_found_in_an_extra() -> None:
    keras = ModuleNotFoundError("No module named 'keras'", name="keras.src")
    line = extras.missing(keras)
    assert line is not None and line.startswith("this needs keras, which is not installed: pip ")
    assert '"keras>=' in line and '"tensorflow>=' in line
    for other in ("mine", "jax", None):  # a user's own, a developer's, unknown
        assert extras.missing(ModuleNotFoundError("gone", name=other)) is None


def test_a_command_says_in_a_line_which_package_is_missing(tmp_path: Path) -> None:
    (tmp_path / "a.keras").touch()
    (tmp_path / "keras.py").write_text("raise ModuleNotFoundError('gone', name='keras')")
    done = subprocess.run(
        [sys.executable, "-m", "graph_meta.find_prefix", "a.keras", "a.keras"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("find_prefix: error: this needs keras, which is not installed")
    assert len(done.stderr.splitlines()) == 1


def test_an_extra_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no extra 'plot'"):
        extras.install("plot")


def commands(target: str, environment: Path) -> str:
    """What `make TARGET` would do where there is no environment yet."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", f"VENV={environment}", target],
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


def test_the_workflow_pins_its_actions_and_runs_what_we_run() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text()
    uses = re.findall(r"uses: (\S+)", text)
    assert uses and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in uses)
    assert ".ci/run" in text and "debian:12" in text and "secrets" not in text
