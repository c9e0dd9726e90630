"""The site builds, every link leads somewhere, and from disk it works whole, without a network."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

ROOT = Path(__file__).parent.parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mkdocs.yml is strict: a link that leads nowhere is an error."""
    site = tmp_path_factory.mktemp("built") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", site],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr and not done.stdout
    return site


def test_nothing_is_fetched_from_elsewhere_and_all_is_there(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        html = page.read_text()
        fetched = re.findall(r"""<(?:script|img|link)[^>]*(?:src|href)=["']?(?:https?:)?//""", html)
        assert not fetched, f"{page.name}: {fetched}"
        if page.name == "404.html":  # what a server shows; its links start at the root
            continue
        for link in re.findall(r"""(?:src|href)=["']([^"']+)["']""", html):
            parts = urlparse(link)
            if not parts.scheme and not parts.netloc and parts.path:
                target = page.parent / unquote(parts.path)
                assert target.is_file(), f"{page.name} links to {link}"
    reference = (site / "reference/cpp_store.html").read_text()
    assert "Its id: 1 to 65,535 bytes, unique in the store." in reference  # from a docstring
    assert "--max_wait" in (site / "reference/commands.html").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
def test_from_disk_it_is_searched_and_commands_are_read_whole(site: Path) -> None:
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    asked: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width in (400, 1400):
            tab = browser.new_page(viewport={"width": width, "height": 900})
            tab.on("console", lambda message: said.append(message.text))
            tab.on("pageerror", lambda error: said.append(str(error)))
            tab.on("request", lambda request: asked.append(request.url))
            tab.goto((site / "tutorial.html").as_uri())
            tab.wait_for_selector("button.md-code__button")
            covered = tab.evaluate("""() => [...document.querySelectorAll(".highlight")].filter(
                block => block.querySelector("button").getBoundingClientRect().left
                         < block.querySelector("code").getBoundingClientRect().right)
                .map(block => block.innerText)""")
            assert not covered, f"under the copy button, {width} pixels wide: {covered}"
            cut = tab.evaluate("""() => [...document.querySelectorAll(".language-bash code")]
                .filter(code => code.scrollWidth > code.clientWidth).map(code => code.innerText)""")
            assert not cut, f"not seen whole, {width} pixels wide: {cut}"
            if width < 1000:
                tab.locator("header label[for=__search]").first.click()
            field = tab.locator("input.md-search__input")
            field.click()
            field.press_sequentially("retire")
            tab.wait_for_selector(".md-search-result__item >> text=/retire/i")
        browser.close()
    assert not said
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
