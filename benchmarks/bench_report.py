"""How long a report of a long run takes: to build, to send, to be seen.

The run is made up, but for its training (`transfer_nas.testing.write_run`). The page is opened from
disk in headless Chromium without a graphics card, in a fresh profile each time.

    python benchmarks/bench_report.py [--quick] [--json FILE]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import figures

from transfer_nas.testing import write_run

QUESTION = figures.Question(
    compares="nothing else: the limits are those of a reader",
    seconds=120,
    quick_seconds=12,
)
TARGETS: figures.Targets = {
    "bytes": ("at most", 10_000_000),
    "first_view_seconds": ("at most", 3.0),
}


def main() -> int:
    parser = figures.parser(__doc__.splitlines()[0], "5,000 evaluations")
    given = parser.parse_args()
    evaluations = 5_000 if given.quick else 100_000
    with tempfile.TemporaryDirectory() as folder:
        run, page = Path(folder) / "run", Path(folder) / "report.html"
        begin = time.perf_counter()
        write_run(run, evaluations, ranks=16, population_size=100, failures=0.02)
        print(f"{evaluations:,} evaluations made up in {time.perf_counter() - begin:.1f} s")
        results = {
            "evaluations": evaluations,
            "build_seconds": statistics.median(build(run, page) for _ in range(3)),
            "bytes": page.stat().st_size,
        }
        results |= view(page)
    figures.finish("report", results, TARGETS, given)
    return 0


def build(run: Path, page: Path) -> float:
    """Return the seconds that the command takes, the start of Python included."""
    command = [sys.executable, "-m", "transfer_nas.report", str(run), "--output", str(page)]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def view(page: Path) -> dict[str, float]:
    """Return when, after the page was asked for, there are texts, and charts in the first view."""
    chromium = figures.program("chromium", "apt-get install chromium")
    if chromium is None:
        return {}
    from playwright.sync_api import sync_playwright

    texts, charts = [], []
    with sync_playwright() as driver:
        for _ in range(5):
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(page.as_uri())
            tab.wait_for_function("performance.getEntriesByName('first-chart').length")
            script = "name => performance.getEntriesByName(name)[0].startTime / 1000"
            texts.append(tab.evaluate(script, "first-contentful-paint"))
            charts.append(tab.evaluate(script, "first-chart"))
            browser.close()
    return {
        "first_text_seconds": statistics.median(texts),
        "first_view_seconds": statistics.median(charts),
    }


if __name__ == "__main__":
    sys.exit(main())
