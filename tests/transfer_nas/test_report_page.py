"""A report's page in headless Chromium: drawn, silent, offline, by keyboard, small, dark."""

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.made_up_runs import write_run
from transfer_nas import judgement, runs
from transfer_nas.objectives import Objective, Objectives
from transfer_nas.report import page as report
from transfer_nas.report.lineage import line_of_descent
from transfer_nas.runs import Run
from transfer_nas.spaces import FeedForward

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

TOGETHER = {
    "objective-over-time": "xy",
    "objective-targets": "xy",
    "transfer-share": "xy",
    "storage-held": "xy",
    "storage-stored": "xy",
}
OWN = {
    "judged-confusion": "confusion",
    "against-scatter": "scatter",
    "lineage-tree": "lineage",
    "genes-parallel": "parallel",
    "genes-slices": "slice",
    "genes-pairs": "pairs",
    "ranks-gantt": "gantt",
    "ranks-shares": "xy",
}
CHARTS = {f"all-{name}": kind for name, kind in TOGETHER.items()} | {
    f"run0-{name}": kind for name, kind in OWN.items()
}
JUDGED = {"format": 1, "rows": 9, "of": 9, "kind": "classes", "counts": [[4, 1], [0, 4]]}
CHECKS = Path(__file__).with_name("page_checks.js").read_text()
EVIL = '<img src=x onerror="window.pwned=1"></script><script>window.pwned=1</script>\'{{7*7}}'


ERROR = "ValueError: labels 1..3, expected 0..2;"


@dataclass
class Opened:
    """A page, and what it complained of and asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of one run, of two groups, and of one whose every text is an attack."""
    folder = tmp_path_factory.mktemp("pages")
    found = []
    for name, transfer in (("a", True), ("b", True), ("c", False), ("d", False)):
        options = {"transfer": transfer, "failures": 0.03, "curves": True}
        write_run(folder / name, 70, seed=len(found), **options)
        (folder / name / judgement.NAME).write_text(json.dumps(JUDGED))
        with_errors(folder / name / "results.csv")
        found.append(runs.read(folder / name))
    write_run(folder / "evil", 40, failures=0.1, settings={"application": EVIL, "data": EVIL})
    for name in ("run.json", "results.csv"):
        text = (folder / "evil" / name).read_text()
        quoted = EVIL.replace('"', '\\"' if name == "run.json" else '""')
        text = text.replace('"48_tanh"', f'"{quoted}"').replace("48_tanh,", f'"{quoted}",')
        (folder / "evil" / name).write_text(text.replace("F_nan", "F_<b>nan</b>"))
    pages = {
        "one": report.content(found[:1]),
        "two": report.content(found[:2], found[2:], ("with transfer", "from scratch")),
        "evil": report.content([runs.read(folder / "evil")], labels=(EVIL, EVIL)),
    }
    for name, content in pages.items():
        (folder / f"{name}.html").write_text(report.render(content))
    return {name: folder / f"{name}.html" for name in pages}


def with_errors(file: Path) -> None:
    """Give a run the column that says why evaluations failed."""
    with file.open(newline="") as lines:
        header, *rows = csv.reader(lines)
    header = [*header, "m:error"]
    status = header.index("job_status")
    rows = [[*row, "" if row[status] == "DONE" else f"{ERROR} {EVIL}"] for row in rows]
    with file.open("w", newline="") as lines:
        csv.writer(lines, lineterminator="\n").writerows([header, *rows])


@pytest.fixture(scope="module")
def run(files: dict[str, Path]) -> Run:
    """The run of the page ``one``."""
    return runs.read(files["one"].parent / "a")


def open_page(browser: Any, file: Path, *, width: int = 1200, scheme: str = "light") -> Opened:
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    opened = Opened(context.new_page())
    opened.page.on("console", lambda message: opened.complaints.append(message.text))
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(file.as_uri())
    return opened


def draw_all(page: Any) -> dict[str, str]:
    """Scroll to every chart that is on show; return what was drawn."""
    drawn = {}
    for chart in page.query_selector_all("[data-chart]"):
        if not chart.is_visible():
            continue
        chart.scroll_into_view_if_needed()
        name = chart.get_attribute("data-chart")
        page.wait_for_selector(f'[data-chart="{name}"][data-drawn]', timeout=10_000)
        drawn[name] = chart.get_attribute("data-drawn")
    return drawn


INK = """element => [...element.querySelectorAll('canvas')].some(canvas => {
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    const colours = new Set();
    for (let i = 0; i < pixels.length; i += 4)
        if (pixels[i + 3] > 200) colours.add(pixels.slice(i, i + 3).map(c => c >> 5).join());
    return colours.size > 3;
})"""


def test_every_view_is_drawn_in_silence(browser: Any, files: dict[str, Path]) -> None:
    opened = open_page(browser, files["one"])
    drawn = draw_all(opened.page)
    assert drawn == CHARTS
    for chart in opened.page.query_selector_all("[data-chart]"):
        assert chart.evaluate(INK), f"{chart.get_attribute('data-chart')} is blank"
    assert opened.page.locator(".drawing svg .shared rect").count() > 3
    assert not opened.complaints
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    opened.page.context.close()


def test_chains_are_drawn_beside_each_other(browser: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "run", 30, space=FeedForward([(8, 8)], 10, "softmax"))
    (tmp_path / "page.html").write_text(
        report.render(report.content([runs.read(tmp_path / "run")]))
    )
    opened = open_page(browser, tmp_path / "page.html")
    opened.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert opened.page.locator(".drawing svg").count() == 5
    assert opened.page.locator(".drawing svg g .note").count() > 5  # with their ancestors
    assert opened.page.evaluate(f"{CHECKS}.overlapping()") == []
    opened.page.context.close()


def test_one_evaluation_has_axes_close_to_it(browser: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "run", 1)
    found = runs.read(tmp_path / "run")
    (tmp_path / "page.html").write_text(report.render(report.content([found])))
    opened = open_page(browser, tmp_path / "page.html")
    drawn = draw_all(opened.page)
    chart = "all-objective-over-time"
    extent = (
        f"echarts.getInstanceByDom(document.querySelector('[data-chart={chart}]'))"
        ".getModel().getComponent('yAxis').axis.scale.getExtent()"
    )
    low, high = opened.page.evaluate(extent)
    assert low < found.objective[0] < high and high - low < 0.1
    assert "run0-lineage-tree" not in drawn
    assert "None inherited from it." in opened.page.inner_text("#run0-lineage")
    opened.page.locator("[data-rows]").scroll_into_view_if_needed()
    opened.page.wait_for_selector("[data-rows][data-drawn]")
    assert opened.page.inner_text("[data-rows] .count") == "1 evaluation"
    assert not opened.complaints
    opened.page.context.close()


def test_two_groups_are_compared_and_runs_chosen(browser: Any, files: dict[str, Path]) -> None:
    opened = open_page(browser, files["two"])
    page = opened.page
    drawn = draw_all(page)
    assert drawn["all-comparison-density"] == "xy"
    assert "run0-lineage-tree" in drawn and "run1-lineage-tree" not in drawn
    page.select_option("#run", "run1")
    assert "run1-lineage-tree" in draw_all(page)
    assert not page.locator('[data-part="run0"]').is_visible()
    rows = page.locator("#all-comparison table tbody tr")
    assert rows.count() == 6  # statistics
    assert not opened.complaints
    page.context.close()


def test_all_is_reached_by_keyboard(browser: Any, files: dict[str, Path]) -> None:
    opened = open_page(browser, files["one"])
    page = opened.page
    draw_all(page)
    page.wait_for_selector("[data-rows][data-drawn]")
    page.evaluate("scrollTo(0, 0)")
    reached, before = [], None
    for _ in range(300):
        page.keyboard.press("Tab")
        now = page.evaluate(
            """() => { const e = document.activeElement;
            const { chart, copy } = e.dataset;
            const what = chart || copy || e.href || e.name || e.textContent.slice(0, 40);
            return [e.tagName, what]; }"""
        )
        if now[0] == "BODY" or now == before:
            break
        reached.append(tuple(now))
        before = now
    tags = [tag for tag, _ in reached]
    assert reached[0][1].endswith("#main")
    assert {what for _, what in reached} >= CHARTS.keys()
    assert sum(what.startswith("python -m transfer_nas.retrain") for _, what in reached) == 10
    assert tags.count("SUMMARY") == 6 and {"INPUT", "SELECT"} <= set(tags)
    assert {"Add filter", "Export CSV", "job ▲"} <= {what for _, what in reached}
    chart = page.locator('[data-chart="run0-lineage-tree"]')
    chart.focus()
    page.wait_for_selector('[data-chart="run0-lineage-tree"][data-drawn]')
    told = []
    for key in ("ArrowRight", "ArrowRight", "End", "Home", "+", "-", "0", "Escape"):
        page.keyboard.press(key)
        told.append(page.locator("#run0-lineage output").first.inner_text())
    assert told[0].startswith("job ") and told[1] != told[0] != told[2] and told[3] == told[0]
    for name in CHARTS:
        page.focus(f'[data-chart="{name}"]')
        page.wait_for_selector(f'[data-chart="{name}"][data-drawn]')
        page.keyboard.press("End")
        output = page.locator(f'figure:has([data-chart="{name}"]) output')
        assert len(output.inner_text()) > 10, name
    assert not opened.complaints
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_at_400_pixels(browser: Any, files: dict[str, Path], scheme: str) -> None:
    opened = open_page(browser, files["two"], width=400, scheme=scheme)
    page = opened.page
    draw_all(page)
    page.focus('[data-chart="run0-lineage-tree"]')
    page.keyboard.press("ArrowRight")  # its text is to be read, too
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) == 0
    assert page.evaluate(f"{CHECKS}.withoutHint()") == []
    page.click("[data-rows] .grid button.link >> nth=0")
    page.wait_for_selector("dialog[open] canvas")
    assert page.evaluate(
        "element => element.scrollWidth <= element.clientWidth", page.query_selector("dialog")
    )
    assert page.evaluate(f"{CHECKS}.contrast()") == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(","))) < 150) == (scheme == "dark")
    assert not opened.complaints
    page.context.close()


AFTER = Objectives(
    (
        Objective("val_accuracy", "max"),
        Objective("parameters", "min", "parameters", logarithmic=True),
    )
)


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (400, "dark")])
def test_the_front_is_drawn_and_names_its_models(
    browser: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    write_run(tmp_path / "run", 60, failures=0.1, objectives=AFTER)
    found = runs.read(tmp_path / "run")
    (tmp_path / "page.html").write_text(report.render(report.content([found])))
    opened = open_page(browser, tmp_path / "page.html", width=width, scheme=scheme)
    page = opened.page
    drawn = draw_all(page)
    assert drawn["run0-front-models"] == drawn["run0-front-over-time"] == "xy"
    for name in ("front-models", "front-over-time"):
        assert page.query_selector(f'[data-chart="run0-{name}"]').evaluate(INK)
    page.focus('[data-chart="run0-front-models"]')
    page.keyboard.press("End")
    assert "job " in page.locator("#run0-front output").first.inner_text()
    table = page.locator("#run0-front table").inner_text()
    assert all(f"job {job}" in table for job in found.front.members)
    assert page.locator("#run0-front .drawing svg").count() == min(6, len(found.front.members))
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) == 0
    assert page.evaluate(f"{CHECKS}.withoutHint()") == []
    assert page.evaluate(f"{CHECKS}.contrast()") == []
    assert not opened.complaints
    page.context.close()


def test_texts_of_a_run_stay_texts(browser: Any, files: dict[str, Path]) -> None:
    opened = open_page(browser, files["evil"])
    draw_all(opened.page)
    assert opened.page.evaluate("window.pwned") is None
    assert opened.page.locator("img, b").count() == 0
    assert opened.page.locator("header").inner_text().count("onerror") == 1
    page = opened.page
    for chart in ("genes-parallel", "ranks-gantt", "lineage-tree"):
        page.focus(f'[data-chart="run0-{chart}"]')
        for _ in range(20):  # their texts and tooltips hold genes, reasons, names
            page.keyboard.press("ArrowRight")
    assert page.evaluate("window.pwned") is None
    assert page.locator("img").count() == 0
    assert not opened.complaints
    page.context.close()


def test_commands_are_copied(browser: Any, files: dict[str, Path]) -> None:
    opened = open_page(browser, files["one"])
    page = opened.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = page.locator("button[data-copy]").first
    command = button.get_attribute("data-copy")
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.textContent === 'Copied'")
    assert command and page.evaluate("navigator.clipboard.readText()") == command
    page.context.close()


def test_prints_light_and_whole(browser: Any, files: dict[str, Path], tmp_path: Path) -> None:
    opened = open_page(browser, files["one"], scheme="dark")
    opened.page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").stat().st_size > 50_000
    drawn = opened.page.locator("[data-chart][data-drawn]").count()
    assert drawn == len(CHARTS)  # those below the fold as well
    assert not opened.complaints
    opened.page.context.close()


def jobs(page: Any) -> list[int]:
    """Return the jobs in sight in the table of all evaluations, from top to bottom."""
    return [int(text) for text in page.locator("[data-rows] .grid button.link").all_inner_texts()]


def open_table(browser: Any, file: Path, width: int = 1400) -> Opened:
    opened = open_page(browser, file, width=width)
    opened.page.locator("[data-rows]").first.scroll_into_view_if_needed()
    opened.page.wait_for_selector("[data-rows][data-drawn]")
    return opened


def test_evaluations_are_sorted_filtered_and_exported(
    browser: Any, files: dict[str, Path], run: Run
) -> None:
    opened = open_table(browser, files["one"])
    page = opened.page
    assert jobs(page)[:5] == run.job[:5].tolist()
    page.click("[data-rows] th button:has-text('accuracy')")
    ranked = run.job[np.argsort(-np.nan_to_num(run.objective, nan=-9), kind="stable")].tolist()
    assert jobs(page)[:5] == ranked[:5]
    assert page.get_attribute("[data-rows] th:has-text('accuracy')", "aria-sort") == "descending"
    page.select_option("[data-rows] .filter select >> nth=0", "m:layers")
    most = int(np.median(run.measure("layers")))
    page.fill("[data-rows] .filter input", str(most))
    page.select_option("[data-rows] .filter select >> nth=1", "≤")
    page.click("text=Add filter")
    page.select_option("[data-rows] .filter select >> nth=0", "job_status")
    page.fill("[data-rows] .filter input", "DONE")
    page.keyboard.press("Enter")
    kept = run.job[run.done & (run.measure("layers") <= most)].tolist()
    assert 0 < len(kept) < len(run)
    assert page.inner_text("[data-rows] .count") == f"{len(kept)} of {len(run)} evaluations"
    with page.expect_download() as download:
        page.click("text=Export CSV")
    with Path(download.value.path()).open(newline="") as lines:
        exported = list(csv.DictReader(lines))
    assert [int(row["job_id"]) for row in exported] == [job for job in ranked if job in kept]
    for row in exported:
        at = run.row_of[int(row["job_id"])]
        assert float(row["objective"]) == pytest.approx(run.objective[at], rel=1e-6)
        assert int(row["m:parameters"]) == run.measure("parameters")[at]
        genes = [
            str(values[v]) for values, v in zip(run.genes.values(), run.genomes[at], strict=True)
        ]
        assert [row[f"p:{gene}"] for gene in run.genes] == genes
    page.click("[data-rows] .chips button >> nth=0")
    page.click("[data-rows] .chips button >> nth=0")
    assert page.inner_text("[data-rows] .count") == f"{len(run)} evaluations"
    page.fill("[data-rows] .filter input", "  ")
    page.keyboard.press("Enter")  # nothing to compare with: no filter
    assert page.locator("[data-rows] .chips button").count() == 0
    assert not opened.complaints
    page.context.close()


def test_an_evaluation_opens_with_its_curve_and_lineage(
    browser: Any, files: dict[str, Path], run: Run
) -> None:
    opened = open_table(browser, files["one"])
    page = opened.page
    row = int(np.flatnonzero(run.done & (run.ancestor >= 0))[-1])
    page.evaluate(f"detail.openJob('run0', {run.job[row]})")
    page.wait_for_selector("dialog[open] canvas")
    text = page.inner_text("dialog")
    assert text.startswith(f"Job {run.job[row]}")
    assert "loss from 1.5 to 0.5, val_loss 0.6" in text
    assert "95 % interval" in text and "from 450 validation rows" in text
    taken = int(run.measure("layers_transferred")[row])
    assert f"Layers, {taken} of {int(run.measure('layers')[row])} inherited" in text
    assert page.locator("dialog .layers .inherited").count() == taken
    line = [f"job {run.job[at]}" for at in line_of_descent(run, row)]
    chain = page.locator("dialog .chain").first.inner_text()
    assert chain.startswith(line[0]) and chain.endswith(line[-1])
    for curve in page.query_selector_all("dialog .curve"):
        assert curve.evaluate(INK)
    page.click("dialog .chain button >> nth=0")
    assert page.inner_text("dialog h2") == line[0].capitalize()
    page.keyboard.press("ArrowRight")
    assert page.inner_text("dialog h2") != line[0].capitalize()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    failed = int(np.flatnonzero(~run.done)[0])
    page.evaluate(f"detail.openJob('run0', {run.job[failed]})")
    page.wait_for_selector("dialog[open]")
    assert ERROR in page.inner_text("dialog") and page.evaluate("window.pwned") is None
    assert not opened.complaints
    page.context.close()


def test_the_table_is_walked_by_keyboard(browser: Any, files: dict[str, Path], run: Run) -> None:
    opened = open_table(browser, files["one"])
    page = opened.page
    page.focus("[data-rows] .grid button.link[tabindex='0']")
    focused = "Number(document.activeElement.textContent)"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == run.job[1]
    page.keyboard.press("End")
    assert page.evaluate(focused) == run.job[-1]
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    assert page.inner_text("dialog h2") == f"Job {run.job[-1]}"
    page.keyboard.press("Escape")
    page.keyboard.press("Home")
    assert page.evaluate(focused) == run.job[0]
    assert not opened.complaints
    page.context.close()


def test_points_are_on_log_axes_and_open(browser: Any, files: dict[str, Path]) -> None:
    opened = open_page(browser, files["one"])
    page = opened.page
    chart = '[data-chart="run0-against-scatter"]'
    page.locator(chart).scroll_into_view_if_needed()
    page.wait_for_selector(f"{chart}[data-drawn]")
    kind = f"echarts.getInstanceByDom(document.querySelector('{chart}')).getOption().xAxis[0].type"
    assert page.evaluate(kind) == "value"
    page.check("input[name='run0-against-scatter-x']")
    page.wait_for_selector(f"{chart}[data-variant*='true']")
    assert page.evaluate(kind) == "log"
    page.focus(chart)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.select_option("select[name='run0-genes-pairs']", index=2)
    names = page.locator("select[name='run0-genes-pairs'] option").all_inner_texts()
    pairs = '[data-chart="run0-genes-pairs"]'
    page.locator(pairs).scroll_into_view_if_needed()
    page.wait_for_selector(f"{pairs}[data-variant*='p:{names[2]}']")
    assert not opened.complaints
    page.context.close()


def test_many_evaluations_stay_few_elements(browser: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "run", 2_000, ranks=8)
    found = runs.read(tmp_path / "run")
    (tmp_path / "page.html").write_text(report.render(report.content([found])))
    opened = open_table(browser, tmp_path / "page.html")
    page = opened.page
    assert page.inner_text("[data-rows] .count") == "2,000 evaluations"
    page.evaluate("document.querySelector('.grid').scrollTop = 34 * 1500")
    page.wait_for_selector(".grid tr[data-at='1500']")
    assert found.job[1500] in jobs(page)
    assert page.locator(".grid tr").count() < 80
    assert not opened.complaints
    page.context.close()
