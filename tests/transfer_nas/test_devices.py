"""Which cores and which GPU a rank gets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from transfer_nas.errors import InputError
from transfer_nas.searching.devices import choose_gpu, default_threads, pin_threads


def test_threads_are_a_share_of_the_cores_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert [default_threads(ranks) for ranks in (1, 3, 8, 9)] == [8, 2, 1, 1]

    environment = {"OMP_NUM_THREADS": "5"}
    pin_threads(None, 2, environment)
    assert environment["OMP_NUM_THREADS"] == "5"  # the user's own
    assert environment["TF_NUM_INTRAOP_THREADS"] == environment["TF_NUM_INTEROP_THREADS"] == "4"
    pin_threads(3, 2, environment)
    assert set(environment.values()) == {"3"}


@pytest.mark.parametrize(
    ("visible", "devices", "chosen"),
    [
        (None, 0, [None, None, None]),
        (None, 2, ["0", "1", "0"]),
        ("", 2, [None, None, None]),
        ("-1", 2, [None, None, None]),
        ("3", 4, ["3", "3", "3"]),
        ("1, 3", 4, ["1", "3", "1"]),
        ("GPU-5f,MIG-2a", 2, ["GPU-5f", "MIG-2a", "GPU-5f"]),
    ],
)
def test_ranks_go_round_the_gpus_that_the_job_may_use(
    tmp_path: Path, visible: str | None, devices: int, chosen: list[str | None]
) -> None:
    for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{i}" for i in range(devices))):
        (tmp_path / name).touch()
    for rank in range(3):
        before = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        environment = dict(before)
        assert choose_gpu(rank, 3, environment, tmp_path) == chosen[rank]
        if chosen[rank] is None:
            assert environment == before
        else:
            assert environment["CUDA_VISIBLE_DEVICES"] == chosen[rank]
            assert environment["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"  # somebody shares


def test_a_gpu_of_ones_own_is_not_to_be_shared(tmp_path: Path) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert choose_gpu(1, 2, environment, tmp_path) == "1"
    assert environment == {"CUDA_VISIBLE_DEVICES": "1"}


@pytest.mark.parametrize("text", ["many", "", "0", "-1", "100000", "1e3"])
def test_an_environment_that_names_no_number_of_threads_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="OMP_NUM_THREADS must be"):
        pin_threads(None, 1, {"OMP_NUM_THREADS": text})
    assert pin_threads(None, 1, {"OMP_NUM_THREADS": "4,2"}) == 4  # of nested regions
    assert pin_threads(3, 1, {"OMP_NUM_THREADS": text, "OPENBLAS_NUM_THREADS": "9"}) == 3


def test_a_rank_computes_with_as_many_threads_as_it_was_told(tmp_path: Path) -> None:
    """NumPy's linear algebra is loaded before anybody reads the command line."""
    code = """
import numpy, sys
from threadpoolctl import threadpool_info
before = [library["num_threads"] for library in threadpool_info()]
from transfer_nas import trained_model
from transfer_nas.evolve import main
from transfer_nas.spaces import FeedForward
counts = set()
graph = FeedForward.graph
def asking(self, genome):
    counts.update(library["num_threads"] for library in threadpool_info())
    return graph(self, genome)
FeedForward.graph = asking
arguments = "--application digits --space feed_forward --epochs 1 --max_evals 1 --transfer noop"
trained_model.finish = lambda *_: None  # Keras is not what this is about
run = ["--threads_per_rank", "1", "--output_dir", sys.argv[1]]
assert main([*arguments.split(), *run]) == 0
assert counts == {1} and 1 not in before, (counts, before)
"""
    environment = {name: text for name, text in os.environ.items() if "THREADS" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment | {"OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr
