"""Whatever is in a run directory, a report is a page or one line of complaint."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.made_up_runs import write_run
from transfer_nas import runs
from transfer_nas.errors import InputError
from transfer_nas.report import page
from transfer_nas.spaces import FeedForward

ODD = [None, -7, 1e300, "x", [], {"a": 1}]
CELLS = ["", "-1", "1e308", "-1e308", "nan", "inf", "0", "99999999999", "x", "<b>", "F_x", "DONE"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "whole"
    write_run(path, 30, space=FeedForward([(8,)], 3, max_depth=2), failures=0.1)
    return path


def paths(value: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return where in a JSON document there is something."""
    if not isinstance(value, dict):
        return [above]
    found = [path for key, inner in value.items() for path in paths(inner, (*above, key))]
    return [above, *found] if above else found


def shows_or_complains(path: Path) -> None:
    try:
        found = runs.read(path)
        text = page.render(page.content([found]))
    except InputError as error:
        assert str(error)
    else:
        assert "<main" in text


def test_odd_values_in_the_description(whole: Path, tmp_path: Path) -> None:
    text = (whole / "run.json").read_text()
    for name in ("results.csv", "checkpoint"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    for path in paths(json.loads(text)):
        for odd in ODD:
            description = json.loads(text)
            place = description
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = odd
            (tmp_path / "run.json").write_text(json.dumps(description))
            shows_or_complains(tmp_path)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.integers(0, 29), st.integers(0, 99), st.sampled_from(CELLS)),
        min_size=1,
        max_size=30,
    )
)
def test_odd_cells_in_the_results(
    whole: Path, tmp_path: Path, changes: list[tuple[int, int, str]]
) -> None:
    with (whole / "results.csv").open() as file:
        header, *rows = csv.reader(file)
    for row, column, text in changes:
        rows[row][column % len(header)] = text
    (tmp_path / "run.json").write_bytes((whole / "run.json").read_bytes())
    with (tmp_path / "results.csv").open("w") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    with np.errstate(all="ignore"):
        shows_or_complains(tmp_path)
