"""A report's page in headless Chromium: drawn, silent, offline, by keyboard, small, dark."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from transfer_nas import runs
from transfer_nas.report import page as report
from transfer_nas.testing import write_run

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

VIEWS = {
    "objective-over-time": "xy",
    "transfer-share": "xy",
    "storage-held": "xy",
    "storage-stored": "xy",
    "lineage-tree": "lineage",
    "genes-parallel": "parallel",
    "ranks-gantt": "gantt",
    "ranks-shares": "xy",
}
EVIL = '<img src=x onerror="window.pwned=1"></script><script>window.pwned=1</script>\'{{7*7}}'


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
        write_run(folder / name, 70, seed=len(found), transfer=transfer, failures=0.03)
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
    assert {name.partition("-")[2]: kind for name, kind in drawn.items()} == VIEWS
    for chart in opened.page.query_selector_all("[data-chart]"):
        assert chart.evaluate(INK), f"{chart.get_attribute('data-chart')} is blank"
    assert opened.page.locator(".drawing svg .shared rect").count() > 3
    assert not opened.complaints
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    opened.page.context.close()


def test_two_groups_are_compared_and_runs_chosen(browser: Any, files: dict[str, Path]) -> None:
    opened = open_page(browser, files["two"])
    page = opened.page
    drawn = draw_all(page)
    assert drawn["all-comparison-density"] == "xy"
    assert "run0-lineage-tree" in drawn and "run1-lineage-tree" not in drawn
    page.select_option("#run", "run2")
    assert "run2-lineage-tree" in draw_all(page)
    assert not page.locator('[data-part="run0"]').is_visible()
    rows = page.locator("#all-comparison table tbody tr")
    assert rows.count() == 2
    assert not opened.complaints
    page.context.close()


def test_all_is_reached_by_keyboard(browser: Any, files: dict[str, Path]) -> None:
    opened = open_page(browser, files["one"])
    page = opened.page
    reached, before = [], None
    for _ in range(200):
        page.keyboard.press("Tab")
        now = page.evaluate(
            """() => { const e = document.activeElement;
            const { chart, copy } = e.dataset;
            return [e.tagName, chart || copy || e.href || e.textContent.slice(0, 40)]; }"""
        )
        if now[0] == "BODY" or now == before:
            break
        reached.append(tuple(now))
        before = now
    tags = [tag for tag, _ in reached]
    assert reached[0][1].endswith("#main")
    assert sum(f"all-{name}" in dict(map(reversed, reached)) for name in VIEWS) == 4
    assert {what for _, what in reached} >= {f"run0-{name}" for name in list(VIEWS)[4:]}
    assert tags.count("BUTTON") == 10 and tags.count("SUMMARY") == 5 and "INPUT" in tags
    chart = page.locator('[data-chart="run0-lineage-tree"]')
    chart.focus()
    page.wait_for_selector('[data-chart="run0-lineage-tree"][data-drawn]')
    told = []
    for key in ("ArrowRight", "ArrowRight", "End", "Home", "+", "-", "0", "Escape"):
        page.keyboard.press(key)
        told.append(page.locator("#run0-lineage output").first.inner_text())
    assert told[0].startswith("job ") and told[1] != told[0] != told[2] and told[3] == told[0]
    for name in VIEWS:
        part = "all" if name in list(VIEWS)[:4] else "run0"
        page.focus(f'[data-chart="{part}-{name}"]')
        page.wait_for_selector(f'[data-chart="{part}-{name}"][data-drawn]')
        page.keyboard.press("End")
        output = page.locator(f'figure:has([data-chart="{part}-{name}"]) output')
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
    assert page.evaluate(CONTRAST) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(","))) < 150) == (scheme == "dark")
    assert not opened.complaints
    page.context.close()


# Texts need 4.5 to 1 against what is behind them, colours of charts 3 to 1 (WCAG 2.2, AA).
CONTRAST = """() => {
    const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) =>
        0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const parse = text => text.match(/[\\d.]+/g).map(Number);
    const ratio = (a, b) => {
        const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
        return (x + 0.05) / (y + 0.05);
    };
    const behind = element => {
        for (let e = element; e; e = e.parentElement) {
            const colour = parse(getComputedStyle(e).backgroundColor);
            if (colour.length === 3 || colour[3] > 0.5) return colour;
        }
        return [255, 255, 255];
    };
    const bad = [];
    for (const e of document.querySelectorAll('main *, header *, footer *')) {
        if (!e.checkVisibility() || e.closest('[data-chart], .unseen, input, option')) continue;
        if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
        const style = getComputedStyle(e);
        let back = behind(e);
        let ink = style.color;
        if (e.closest('svg')) {
            ink = style.fill;
            const box = e.closest('g').querySelector('rect');
            if (box) back = parse(getComputedStyle(box).fill);
        }
        const found = ratio(parse(ink), back);
        if (found < 4.5) bad.push(`${e.outerHTML.slice(0, 60)} ${found.toFixed(2)}`);
    }
    const root = getComputedStyle(document.documentElement);
    const hex = name =>
        root.getPropertyValue(name).trim().match(/\\w\\w/g).map(x => parseInt(x, 16));
    for (const name of ['first', 'second', 'third', 'fourth', 'fifth', 'accent', 'muted']) {
        const found = ratio(hex('--' + name), hex('--card'));
        if (found < 3) bad.push(`${name} ${found.toFixed(2)}`);
    }
    return bad;
}"""


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
    assert drawn == len(VIEWS)  # those below the fold as well
    assert not opened.complaints
    opened.page.context.close()
