"""Which of the time limits ends a search, and what its exit code says then."""

import time

import pytest

from transfer_nas import exit_codes
from transfer_nas.searching.interruption import Interrupted, Interruption


def reason_after(timeout: float | None, max_wait: float | None) -> str | None:
    interruption = Interruption(timeout, max_wait)
    with interruption, pytest.raises(Interrupted), interruption.evaluating():
        time.sleep(30)  # interrupted at once
    return interruption.reason


@pytest.mark.parametrize(
    ("timeout", "max_wait", "reason"),
    [
        (0.01, None, "timeout"),
        (None, 0.01, "max_wait"),
        (5, 0.01, "max_wait"),
        (0.01, 5, "timeout"),
    ],
)
def test_the_limit_that_comes_first_ends_it(
    timeout: float | None, max_wait: float | None, reason: str
) -> None:
    assert reason_after(timeout, max_wait) == reason


@pytest.mark.parametrize("code", [exit_codes.RESUMABLE, 130, 143, -9])
def test_what_can_be_resumed(code: int) -> None:
    assert exit_codes.resumable(code)


@pytest.mark.parametrize(
    "code", [exit_codes.DONE, exit_codes.FAILED, exit_codes.BAD_INPUT, 3, 139, -11]
)
def test_what_cannot(code: int) -> None:
    assert not exit_codes.resumable(code)
