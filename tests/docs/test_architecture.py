"""The way of one evaluation through the code is the one that ARCHITECTURE.md says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import transfer_nas
from transfer_nas.searching import messages
from transfer_nas.searching.manager import Manager

ROOT = Path(__file__).parents[2]
PACKAGES = ("transfer_nas", "cpp_store")
NTH = 9  # the first that certainly is a child of a stored model


def stated() -> list[str]:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text.split("| | calls |")[1].split("\n\n")[0]
    return re.findall(r"`([^`]+)`", table)


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the functions that run from one `ask` to the next, in order of their first calls."""
    found: list[str] = []
    asked = 0
    next_jobs = Manager.next_jobs

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and any(
            f"/{package}/" in frame.f_code.co_filename for package in PACKAGES
        ):
            found.append(frame.f_code.co_qualname)

    def ask(self: Manager, count: int) -> Any:
        nonlocal asked
        asked += 1
        sys.setprofile(note if asked == NTH else None)
        return next_jobs(self, count)

    monkeypatch.setattr(Manager, "next_jobs", ask)
    try:
        transfer_nas.search(
            "digits",
            max_evals=NTH + 1,
            epochs=1,
            population_size=4,
            sample_size=2,
            seed=1,
            progress=False,
            output_dir=tmp_path / "run",
        )
    finally:
        sys.setprofile(None)
    return list(dict.fromkeys(found))


def test_one_evaluation_takes_the_stated_way(called: list[str]) -> None:
    way = stated()
    alone = [name for name in way if not name.startswith("Order.")]  # one process sends nothing
    places = [called.index(name) for name in alone]

    assert places == sorted(places), [
        alone[i] for i in range(1, len(places)) if places[i - 1] > places[i]
    ]
    assert all(callable(getattr(messages.Order, name)) for name in ("encode", "decode"))
    assert len(way) <= 26
