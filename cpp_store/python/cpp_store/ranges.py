"""From where to where the numbers go that users choose: one `Range` for each flag.

A number that makes no sense is refused before anything starts, at both ends: without an upper one,
a slip of the finger takes all memory, or is a time that no clock knows.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """The numbers that a flag takes; as the `type` of an argument, it reads them.

    Attributes
    ----------
    least, most
        The ends; they belong to it.
    above, below
        Ends that do not belong to it.
    whole
        Only integers.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    whole: bool = True

    def complaint(self, value: float) -> str:
        """Return what is wrong with a number, to be put behind the flag's name; empty: nothing."""
        if not value >= self.least and self.least > -math.inf:  # NaN neither
            return f"must be at least {self.least}, not {value}"
        if not value > self.above and self.above > -math.inf:
            return f"must be {f'above {self.above}' if self.above else 'positive'}, not {value}"
        if value > self.most:
            return f"must be at most {self.most}, not {value}"
        return "" if value < self.below else f"must be below {self.below}, not {value}"

    def __call__(self, text: str) -> float:
        """Read an argument."""
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            kind = "a whole number" if self.whole else "a number"
            raise argparse.ArgumentTypeError(f"must be {kind}, not {text!r}") from None
        if complaint := self.complaint(value):
            raise argparse.ArgumentTypeError(complaint)
        return value


MANY = 10**7
"""Of models, evaluations in memory, rows."""
COUNT = Range(1, MANY)
SEED = Range(0, 2**63 - 1)
SECONDS = Range(above=0, most=10**9, whole=False)
"""Thirty years: what clocks and timers still take."""
FINITE = Range(-sys.float_info.max, sys.float_info.max, whole=False)
EPOCHS = Range(1, 10**6)
THREADS = Range(1, 1024)
