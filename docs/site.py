"""What MkDocs does with our pages besides showing them (mkdocs.yml names this file as a hook).

The pages link to sources as a forge shows them, with paths in the repository. On the site, where
there are no sources, such a link becomes its text; a path that does not exist stops the build.
"""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
FROM_ROOT = ("ARCHITECTURE.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
_IMAGE = re.compile(r"(!\[[^\]]*\]\()docs/")
_COMMAND = re.compile(r"^::: command ([\w.]+)$", re.MULTILINE)
_TYPED = re.compile(r'<div class="language-bash highlight">.*?</div>', re.DOTALL)
_FLAG = re.compile(r"(?<=[\s>])--?\w[\w-]*(?=[\s<])")
_ROLE = re.compile(r":(?:attr|class|func|meth|mod):(?=<)")
_log = logging.getLogger("mkdocs")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are in the root of the repository."""
    for name in FROM_ROOT:
        text = _IMAGE.sub(r"\1", (ROOT / name).read_text())
        files.append(File.generated(config, name, content=_linked(text, ROOT, name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links to sources into text, and put in what commands say of themselves."""
    markdown = _COMMAND.sub(lambda found: _help(found.group(1)), markdown)
    if page.file.src_uri in FROM_ROOT:
        return markdown
    source = Path(page.file.abs_src_path).parent
    return _linked(markdown, source, page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    """Take off roles of docstrings, such as :class:, which are no Markdown; keep flags whole."""

    def whole(block: re.Match[str]) -> str:
        return _FLAG.sub(r'<span class="flag">\g<0></span>', block.group())

    return _TYPED.sub(whole, _ROLE.sub("", html))


def _linked(markdown: str, folder: Path, page: str) -> str:
    """Let links to pages lead to pages, and links to other files be text."""

    def replace(found: re.Match[str]) -> str:
        text, target, anchor = found.group(1), found.group(2), found.group(3) or ""
        path = (folder / target).resolve()
        if not path.exists():
            _log.warning("%s links to %s, which does not exist", page, target)
        if path.is_relative_to(ROOT / "docs") and path.suffix == ".md":
            here = Path(page).parent
            up = "../" * len(here.parts)
            return f"[{text}]({up}{path.relative_to(ROOT / 'docs').as_posix()}{anchor})"
        if path.parent == ROOT and path.name in FROM_ROOT:
            return f"[{text}]({'../' * len(Path(page).parent.parts)}{path.name}{anchor})"
        return text

    # Not in code, which is full of brackets.
    parts = re.split(r"(```.*?```)", markdown, flags=re.DOTALL)
    return "".join(part if part.startswith("```") else _LINK.sub(replace, part) for part in parts)


def _help(module: str) -> str:
    """Return a command's --help, as it is."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        _log.warning("%s --help ended with %d: %s", module, done.returncode, done.stderr)
    return f"```text\n{done.stdout}```"
