"""The prefix service at 1, 2 and 4 ranks; the cases are in `programs/prefix_service.py`."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cpp_store import LayerTable
from graph_meta.service import PrefixService

PROGRAM = Path(__file__).with_name("programs") / "prefix_service.py"

CASES = [
    "one_at_a_time",
    "without_a_thread",
    "retirement",
    "sequence_numbers",
    "bulk",
    "serial_evolution",
    "everybody_at_once",
    "asking_a_rank_that_computes",
    "errors",
    "leaving_without_closing",
    "closing_while_asked",
]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
def test_case(
    mpiexec: Callable[..., "subprocess.CompletedProcess[str]"], case: str, ranks: int
) -> None:
    done = mpiexec(ranks, PROGRAM, case, timeout=90)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("passed") == ranks


def test_waiting_is_cheap(mpiexec: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    done = mpiexec(2, PROGRAM, "waiting_is_cheap")

    assert done.returncode == 0, done.stderr
    sleeping, waiting = json.loads(done.stdout)
    # Blocking in MPI would take two seconds; both have a serving thread besides.
    assert sleeping < 0.2
    assert waiting < 0.3


def test_one_process_needs_no_mpi() -> None:
    table = LayerTable(["a", "b"], [[], [0]], [4, 4])
    with PrefixService() as service:
        service.register("first", table, score=0.5)
        service.register_all(["second"], [table], scores=[0.5])
        (found,) = service.best_matches_all([table])
        assert found is not None and (found.model, found.positions) == ("second", [0, 1])
        assert service.retire("second") and service.retire_all(["second"]) == [False]
        match = service.best_match(table)
        assert match is not None and match.model == "first"
