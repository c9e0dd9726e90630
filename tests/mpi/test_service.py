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
    "sequence_numbers",
    "bulk",
    "serial_evolution",
    "errors",
    "leaving_without_closing",
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
    # Blocking in MPI would take two seconds.
    assert sleeping < 0.2
    assert waiting < 0.3


def test_one_process_needs_no_mpi() -> None:
    table = LayerTable(["a", "b"], [[], [0]], [4, 4])
    with PrefixService() as service:
        service.register(["first", "second"], [table] * 2, scores=[0.5, 0.5])
        (found,) = service.best_matches([table])
        assert found is not None and (found.model, found.positions) == ("second", [0, 1])
        assert service.retire(["second", "nobody"]) == [True, False]
        (found,) = service.best_matches([table])
        assert found is not None and found.model == "first"
        assert service.stats()["models"] == 1
