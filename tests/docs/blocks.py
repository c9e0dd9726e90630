"""The blocks of code in a page of the documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

NOT_CODE = {"text", "toml", "json", "console"}
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<language>\w*)(?P<rest>[^\n]*)\n"
    r"(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A block; `title` is the file that it is, `why_not` why it is not run here."""

    line: int
    language: str
    title: str
    code: str
    why_not: str


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page, from top to bottom."""
    text = page.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        title = re.search(r'title="([^"]+)"', match["rest"])
        found.append(
            Block(
                text.count("\n", 0, match.start("language")) + 1,
                match["language"],
                title[1] if title else "",
                match["code"],
                match["why"] or "",
            )
        )
    return found
