"""How the objective of a run reads: as its metric, which way is better, how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transfer_nas.objectives import short_name
from transfer_nas.report.charts import Floats
from transfer_nas.runs import Run

_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Scale:
    """What the objectives of a run are in the user's own terms.

    A search maximises; of a metric of which less is better, it maximises the negative. The page
    shows the metric itself.

    Attributes
    ----------
    name
        Of the metric.
    sign
        1, or -1 if less is better.
    rows
        Validation rows that each objective was measured on; 0: not known.
    """

    name: str = "objective"
    sign: int = 1
    rows: int = 0

    @classmethod
    def of(cls, run: Run) -> Scale:
        """Return what ``run.json`` says; runs of earlier versions say nothing."""
        found = run.description.get("objective")
        if not isinstance(found, dict):
            return cls()
        rows = found.get("validation_rows")
        metric = str(found.get("metric", "objective"))
        return cls(
            short_name(metric).replace("_", " "),
            -1 if found.get("mode") == "min" else 1,
            rows if isinstance(rows, int) and 0 < rows < 2**53 else 0,
        )

    @classmethod
    def common(cls, runs: Sequence[Run]) -> Scale:
        """Return the scale of all runs; the objective as it is, if they have not the same."""
        scales = {cls.of(run) for run in runs}
        return scales.pop() if len(scales) == 1 else cls()

    @property
    def better(self) -> str:
        """Which way is better, in words."""
        return "lower is better" if self.sign < 0 else "higher is better"

    @property
    def axis(self) -> str:
        """What stands at an axis of it."""
        return f"{self.name} ({self.better})" if self.sign < 0 else self.name

    @property
    def is_share(self) -> bool:
        """Whether the metric is a share of rows, so that its uncertainty is binomial."""
        return "accuracy" in self.name.lower()

    def natural(self, objective: Floats) -> Floats:
        """Return the metric's values, from objectives."""
        return self.sign * objective

    def text(self, objective: float) -> str:
        """Return the metric's value for people, from an objective."""
        value = self.sign * objective
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.4g}"

    def interval(self, objective: float) -> tuple[float, float] | None:
        """Return the 95 % interval of a share of the validation rows (Wilson); None for others."""
        if not (self.is_share and self.rows and 0 <= objective <= 1):
            return None
        n, share = self.rows, objective
        centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        reach = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
        return centre - reach, centre + reach

    def deviation(self, objective: float) -> float:
        """Return the standard error of a share of the validation rows, NaN for other metrics."""
        if not (self.is_share and self.rows and 0 <= objective <= 1):
            return math.nan
        return float(np.sqrt(objective * (1 - objective) / self.rows))
