"""Draws pictures of what the code says and does: ``python docs/pictures.py [RUN]``.

images/prefixes.svg; and, of the directory of a run (``make search``), images/report.png, by
Chromium.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from graph_meta import drawing, layers
from graph_meta.graph import GraphBuilder, LayerGraph, prefix

IMAGES = Path(__file__).parent / "images"


def network(middle: int) -> LayerGraph:
    """Return a small network with a shortcut; `middle` is the width of its second dense layer."""
    builder = GraphBuilder()
    start = builder.add(layers.dense(32, activation="relu"), builder.input((64,)))
    side = builder.add(layers.dense(16, activation="tanh"), start)
    edge = builder.add(layers.dense(middle, activation="relu"), start)
    edge = builder.add(layers.dense(16, activation="relu"), edge)
    edge = builder.add(layers.concatenate(), edge, side)
    return builder.build(builder.add(layers.dense(10, activation="softmax"), edge))


def prefixes() -> str:
    """Return the picture of docs/prefixes.md."""
    a, b = network(24), network(48)
    return drawing.draw_pair(a, b, ("a stored model", "a new one"), prefix(a, b))


def report(run: Path) -> None:
    """Put the top of a run's report, its lineage and an architecture side by side."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page = Path(folder) / "report.html"
        command = [sys.executable, "-m", "transfer_nas.report", str(run), "--output", str(page)]
        subprocess.run(command, check=True)
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": 1240, "height": 960})
        tab.goto(page.as_uri())
        tab.wait_for_selector('[data-chart="all-objective-over-time"][data-drawn]')
        tab.wait_for_timeout(1000)  # charts come up slowly
        parts = [tab.screenshot()]
        tab.add_style_tag(content="nav { position: static !important }")
        for selector in ('[data-chart="run0-lineage-tree"]', ".drawing"):
            found = tab.locator(selector).first
            found.scroll_into_view_if_needed()
            tab.wait_for_timeout(1000)
            parts.append(found.screenshot())
        images = [f"data:image/png;base64,{base64.b64encode(part).decode()}" for part in parts]
        tab = browser.new_page(viewport={"width": 1210, "height": 540})
        tab.set_content(
            "<style>body { margin: 0; display: flex; gap: 12px; height: 540px; overflow: hidden;"
            "background: #f3f4f6 } img { display: block; margin-bottom: 12px }</style>"
            f"<img src={images[0]} height=540><div><img src={images[1]} width=500>"
            f"<img src={images[2]} width=500></div>"
        )
        tab.screenshot(path=IMAGES / "report.png")
        browser.close()


if __name__ == "__main__":
    (IMAGES / "prefixes.svg").write_text(prefixes())
    if len(sys.argv) > 1:
        report(Path(sys.argv[1]))
