"""Every block of Python and shell in README.md and docs/ runs, page by page, from top to bottom.

A page is one shell script, in a directory of its own: ``bash`` blocks are part of it, ``python``
blocks are files that it runs, and a block with ``title="FILE"`` is written to FILE instead. A
block that cannot run here says why in a comment before it, ``<!-- not run: … -->``. Blocks of
other languages are no code. Searches are cut short by tests/docs/stand-ins.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .blocks import NOT_CODE, Block, blocks_of

ROOT = Path(__file__).parent.parent.parent
STAND_INS = Path(__file__).parent / "stand-ins"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SERVERS = [  # the installed one, or that of a build folder
    Path(sys.executable).with_name("cpp-store-server"),
    ROOT / "build/dev/cpp_store/cpp-store-server",
]
SERVER = next(path for path in SERVERS if path.exists())
# What a page takes for granted: runs that its reader has, the file of the tutorial.
GIVEN = {
    "report": """
from pathlib import Path
from tests.made_up_runs import write_run
for number, name in enumerate(["first", "transfer-1", "transfer-2", "scratch-1", "scratch-2"]):
    write_run(Path("runs", name), 40, seed=number, transfer=not name.startswith("scratch"))
""",
    "logs": """
from transfer_nas.evolve import main
main("--application digits --max_evals 3 --epochs 1 --seed 1 --output_dir runs/first".split())
""",
}
FILES_OF = {"README": ROOT / "docs/tutorial.md"}
SHORTER = {"max_evals=64": "max_evals=4", "for seed in 1 2 3": "for seed in 1"}  # beside stand-ins


def script_of(blocks: list[Block], folder: Path) -> str:
    """Write the page's files; return what runs it."""
    lines = ["set -euo pipefail"]
    for block in blocks:
        code = block.code
        for long, short in SHORTER.items():
            code = code.replace(long, short)
        if block.why_not or block.language in NOT_CODE:
            continue
        if block.title:
            (folder / block.title).write_text(block.code)
        elif block.language == "python":
            name = f"line_{block.line}.py"
            (folder / name).write_text(code)
            lines.append(f"echo '--- line {block.line}' >&2\npython {name}")
        else:
            lines.append(f"echo '--- line {block.line}' >&2\n{code}")
    # Servers that a page starts in the background end with it.
    return "trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n" + "\n".join(lines) + "\n"


def runs(page: Path) -> bool:
    return any(
        block.language in {"python", "bash"} and not block.why_not for block in blocks_of(page)
    )


def run(page: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    programs, place = folder / "programs", folder / "place"
    programs.mkdir()
    place.mkdir()
    (programs / "cpp-store-server").symlink_to(SERVER)
    if page.stem in FILES_OF:
        script_of([block for block in blocks_of(FILES_OF[page.stem]) if block.title], place)
    if page.stem in GIVEN:
        known = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
        command = [sys.executable, "-c", GIVEN[page.stem]]
        subprocess.run(command, cwd=place, check=True, env=known)
    return subprocess.run(
        ["bash", "-c", script_of(blocks_of(page), place)],
        cwd=place,
        env=os.environ
        | {
            "PATH": f"{STAND_INS}:{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            # The directory of a script comes first anyway; this is for what -m runs, too.
            "PYTHONPATH": f"{place}:{os.environ.get('PYTHONPATH', '')}",
            "DOCS_PYTHON": sys.executable,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=580,
    )


@pytest.mark.timeout(600)  # several searches on one page, beside other tests
@pytest.mark.long
@pytest.mark.parametrize(
    "page", list(filter(runs, PAGES)), ids=lambda page: str(page.relative_to(ROOT).with_suffix(""))
)
def test_blocks_run(page: Path, tmp_path: Path) -> None:
    done = run(page, tmp_path)
    assert done.returncode == 0, f"{page.name}, after the last line below:\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is(page: Path) -> None:
    for block in blocks_of(page):
        where = f"{page.name}:{block.line}"
        assert block.language in {"python", "bash"} | NOT_CODE, (
            f"{where}: bash and python blocks run; what is no code is text, not {block.language!r}"
        )


def test_no_page_writes_where_another_has_written() -> None:
    """A run directory is written once: whoever types page after page must not be refused."""
    written: dict[str, str] = {}
    makefile = (ROOT / "Makefile").read_text()
    for name in re.findall(r"run=([\w/]+);", makefile):
        written[name] = "Makefile"
    assert written
    for page in PAGES:
        for block in blocks_of(page):
            for line in block.code.splitlines() if block.language == "bash" else ():
                if "--resume" in line or "cluster" in block.why_not:
                    continue
                for name in re.findall(r"--output_dir (\S+)", line):
                    where = f"{page.name}:{block.line}"
                    assert written.setdefault(name, where) == where, f"{name}: {where}"


def test_the_architecture_names_files_that_exist() -> None:
    """Paths in the text and in its picture; in the picture, the second of a line lies beside it."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    paths = re.findall(r"`((?:transfer_nas|graph_meta|cpp_store|tests)/[\w./-]*)`", text)
    picture = (ROOT / "docs/images/architecture.svg").read_text()
    for line in re.findall(r'class="path"[^>]*>([^<]+)<', picture):
        folder = ""
        for word in line.split():
            if "/" in word:
                paths.append(word)
                folder = word.rpartition("/")[0]
            elif word.endswith(".py"):
                paths.append(f"{folder}/{word}")
    assert len(paths) > 25
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing, missing
