"""Search time: how long a search has taken, without the pauses between its processes.

Timestamps of results count seconds since the run was started for the first time, whoever ran it. A
pause reaches from the last result of a process to the start of the next, which ``run.json`` says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Clock:
    """Turns seconds since the run was started into seconds of search.

    Parameters
    ----------
    resumed
        When processes took the run up, in seconds since it was started.
    gathered
        When results were there, likewise.
    """

    def __init__(self, resumed: Iterable[float], gathered: ArrayLike) -> None:
        moments = np.asarray(gathered, dtype=np.float64)
        self._pauses: list[tuple[float, float]] = []
        before = 0.0
        for start in sorted(resumed):
            earlier = moments[moments < start]  # NaN is not
            last = max(before, float(earlier.max(initial=0.0)))
            self._pauses.append((last, start - last))
            before = start

    def __call__(self, seconds: ArrayLike) -> NDArray[np.float64]:
        """Return seconds of search; what lies in a pause counts as its beginning."""
        wall = np.asarray(seconds, dtype=np.float64)
        return np.asarray(
            wall - sum(np.clip(wall - begin, 0.0, length) for begin, length in self._pauses)
        )


def resumptions(description: Any) -> list[float]:
    """Return when processes took up the run that ``run.json`` describes, for `Clock`."""
    entries = description.get("resumed")
    found = [
        entry["at"] - description["started"]
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and isinstance(entry.get("at"), int | float)
    ]
    return [seconds for seconds in found if seconds >= 0]
