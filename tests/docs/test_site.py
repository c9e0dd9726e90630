"""The site builds, every link leads somewhere, and nothing in it is fetched from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_site_builds_and_needs_no_network(tmp_path: Path) -> None:
    """mkdocs.yml is strict: a link that leads nowhere is an error."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        html = page.read_text()
        fetched = re.findall(r"""<(?:script|img|link)[^>]*(?:src|href)=["']?(?:https?:)?//""", html)
        assert not fetched, f"{page.name}: {fetched}"
    reference = (tmp_path / "site/reference/cpp_store.html").read_text()
    assert "Its id: 1 to 65,535 bytes, unique in the store." in reference  # from a docstring
    assert "--max_wait" in (tmp_path / "site/reference/commands.html").read_text()
