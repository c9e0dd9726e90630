"""``python tests/docs/walk.py WHEEL``: the tutorial as a new user goes through it; `make walk`.

Everything that docs/tutorial.md has one type is typed, from the first line to the last, in an empty
directory: an environment of its own is made, the wheel and what it needs are installed, searches
run in full. There is an empty home, no compiler, and nothing of this checkout; of the machine's
programs there are only those that the tutorial names. Then the reports are opened in Chromium,
where every chart must be drawn and nothing may be complained of. All may take 15 minutes.

What is not the tutorial's matter stays as it is: where pip finds packages, proxies, certificates.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from blocks import NOT_CODE, Block, blocks_of

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
MINUTES = 15
# What a minimal system has and the tutorial, an environment's `activate` or a launcher calls.
PROGRAMS = ("bash", "cat", "env", "head", "ls", "sh", "uname")
KEPT = ("PIP_", "SSL_", "REQUESTS_", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
REPORTS = ("report.html", "both.html", "wine.html")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, metavar="WHEEL")
    given = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="walk-") as folder:
        place = Path(folder) / "place"
        place.mkdir()
        shutil.copy(given.wheel, place)
        # What is typed at a prompt stays in one shell: its environment, its directory.
        done = subprocess.run(
            ["bash", "-c", script(blocks_of(TUTORIAL), place)],
            cwd=place,
            env=bare(Path(folder)),
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            print(f"walk: the last line above ended with {done.returncode}", file=sys.stderr)
            return 1
        typed = time.perf_counter() - begin
        for name in REPORTS:
            charts = look(place / name)
            print(f"{name}: {charts} charts drawn, nothing complained of", flush=True)
    minutes = (time.perf_counter() - begin) / 60
    print(f"{minutes:.1f} min, {typed / 60:.1f} of them for what is typed (at most {MINUTES})")
    return 0 if minutes <= MINUTES else 1


def bare(folder: Path) -> dict[str, str]:
    """Return the environment of somebody who has just logged in on a machine with Python only."""
    home, programs = folder / "home", folder / "programs"
    home.mkdir()
    programs.mkdir()
    for name in PROGRAMS:
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    (programs / "python3.11").symlink_to(python.resolve())
    kept = {name: value for name, value in os.environ.items() if name.startswith(KEPT)}
    config = Path.home() / ".config" / "pip" / "pip.conf"
    if config.exists():  # a package index of this site
        kept.setdefault("PIP_CONFIG_FILE", str(config))
    return kept | {"PATH": str(programs), "HOME": str(home), "LANG": "C.UTF-8"}


def script(blocks: list[Block], place: Path) -> str:
    """Return all that is typed; a block with a title is a file that the reader writes."""
    return "\n".join(["set -euo pipefail", *lines(blocks, place)]) + "\n"


def lines(blocks: list[Block], place: Path) -> Iterator[str]:
    for block in blocks:
        if block.language in NOT_CODE:
            continue
        if block.title:
            (place / block.title).write_text(block.code)
        elif block.language == "python":
            file = f"line_{block.line}.py"
            (place / file).write_text(block.code)
            yield f'echo; echo "[$SECONDS s] {TUTORIAL.name}:{block.line}, Python"; python {file}'
        else:
            yield f'echo; echo "[$SECONDS s] {TUTORIAL.name}:{block.line}"\n{block.code}'


def look(page: Path) -> int:
    """Open a page, scroll to each chart; return how many there are."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("walk: there is no chromium: apt-get install chromium")
    complaints: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1200, "height": 900})
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(page.as_uri())
        charts = [chart for chart in tab.locator("[data-chart]").all() if chart.is_visible()]
        for chart in charts:
            chart.scroll_into_view_if_needed()
            name = chart.get_attribute("data-chart")
            tab.wait_for_selector(f'[data-chart="{name}"][data-drawn]')
        browser.close()
    if complaints or not charts:
        raise SystemExit(f"walk: {page.name} has {len(charts)} charts and says: {complaints}")
    return len(charts)


if __name__ == "__main__":
    sys.exit(main())
