"""What belongs to the process that made it.

Nothing of ours survives a fork: its threads are not in the child, and its connections and locks are
the parent's. So in a child the first use raises, and letting go forgets. (The extension does the
same for what lies in C++, and keeps what arrays show for as long as a child may look at it.)
"""

from __future__ import annotations

import os

from cpp_store._core import StoreError

_forks = 0
"""How many lie between the first process and this one."""


def _count() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_count)


class Birthplace:
    """Remembers the process that it is made in. Cheaper to ask than the process id."""

    def __init__(self) -> None:
        self._generation = _forks
        self._process = os.getpid()

    @property
    def is_elsewhere(self) -> bool:
        """Whether this process is a fork of that one."""
        return self._generation != _forks

    def check(self) -> None:
        """Raise StoreError in a fork."""
        if self._generation != _forks:
            raise StoreError(
                f"the store was opened in process {self._process}, of which this is a fork; a "
                "store does not survive that: open it, or connect, again in this process"
            )
