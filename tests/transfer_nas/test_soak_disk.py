"""A little of ``make soak``: a file that is not read whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transfer_nas import soak_disk
from transfer_nas.applications import _disk


def test_candidates_train_on_a_file_that_is_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_disk, "MOST_BYTES", 2**20)

    found = soak_disk.run(tmp_path, 0.02, candidates=1)

    assert found["on_disk"] and not found["failed"]
    assert found["objectives"][0] > 0.4
