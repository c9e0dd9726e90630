"""The trainer on another backend of Keras: some of its tests again, in a process of their own.

``make test-backends`` runs all of them, on JAX and on Torch.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

HERE = Path(__file__).parent
FROZEN = "training/test_frozen_prefix.py::test_"
SOME = (
    FROZEN + "a_training_goes_on_from_its_state",
    FROZEN + "heirs_of_one_ancestor_share_what_was_computed",
    FROZEN + "what_is_random_or_changes_is_not_computed_ahead",
    "training/test_keras_engine.py::test_an_epoch_can_be_done_again",
)


def test_the_trainers_tests_pass_on_jax() -> None:
    pytest.importorskip("jax", reason="jax is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SOME],
        cwd=HERE,
        env=os.environ | {"KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
