"""How long a report of a long run takes: to build, to send, to be seen.

The run is made up, but for its training (`tests.made_up_runs.write_run`). The page is opened from
disk in headless Chromium without a graphics card, in a fresh profile each time. Beside it, four of
its views as one writes them with Plotly (``plotly_report.py``): every evaluation drawn, by WebGL.

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

from tests.made_up_runs import write_run

QUESTION = figures.Question(
    compares="the report with four of its views written with Plotly",
    seconds=150,
    quick_seconds=18,
)
TARGETS: figures.Targets = {
    "bytes": ("at most", 10_000_000),
    "first_view_seconds": ("at most", 3.0),
}
PROGRAMS = {
    "": ["-m", "transfer_nas.report"],
    "plotly_": [str(Path(__file__).with_name("plotly_report.py"))],
}
"""What writes a page, by what its figures' keys begin with."""


def main() -> int:
    parser = figures.parser(__doc__.splitlines()[0], "5,000 evaluations, once")
    given = parser.parse_args()
    evaluations = 5_000 if given.quick else 100_000
    repetitions = 1 if given.quick else 5
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        begin = time.perf_counter()
        write_run(run, evaluations, ranks=16, population_size=100, failures=0.02)
        print(f"{evaluations:,} evaluations made up in {time.perf_counter() - begin:.1f} s")
        results: dict[str, float] = {"evaluations": evaluations}
        pages = {"": Path(folder) / "report.html"}
        if figures.has("plotly"):
            pages["plotly_"] = Path(folder) / "plotly.html"
        for prefix, page in pages.items():
            seconds = [build(PROGRAMS[prefix], run, page) for _ in range(repetitions)]
            results[f"{prefix}build_seconds"] = statistics.median(seconds)
            results[f"{prefix}bytes"] = page.stat().st_size
        results |= view(pages, repetitions)
    figures.finish("report", results, TARGETS, given)
    return 0


def build(program: list[str], run: Path, page: Path) -> float:
    """Return the seconds that a command takes, the start of Python included."""
    command = [sys.executable, *program, str(run), "--output", str(page)]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def view(pages: dict[str, Path], repetitions: int) -> dict[str, float]:
    """Return when, after a page was asked for, there are texts, and the first chart."""
    chromium = figures.program("chromium", "apt-get install chromium")
    if not figures.has("playwright") or chromium is None:
        return {}
    from playwright.sync_api import sync_playwright

    marks = {"first_text_seconds": "first-contentful-paint", "first_view_seconds": "first-chart"}
    seconds: dict[str, list[float]] = {}
    with sync_playwright() as driver:
        for repetition in range(repetitions):
            for prefix in figures.in_turn(list(pages), repetition):
                browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                tab = browser.new_page(viewport={"width": 1280, "height": 900})
                tab.goto(pages[prefix].as_uri())
                for key, mark in marks.items():
                    tab.wait_for_function(
                        "mark => performance.getEntriesByName(mark).length", arg=mark
                    )
                    script = "mark => performance.getEntriesByName(mark)[0].startTime / 1000"
                    seconds.setdefault(prefix + key, []).append(tab.evaluate(script, mark))
                browser.close()
    return {key: statistics.median(values) for key, values in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
