"""A generated drug screen: the stand-in for the measured ones of CANDLE's Pilot1.

Nothing here is measured. Cells and drugs have hidden properties; features are noisy views of them,
and growth follows from how they meet. So there is something to learn, and features beside it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from transfer_nas.applications._files import Matrix

_PROPERTIES = 6


class Screen:
    """Cells and drugs with hidden properties.

    Parameters
    ----------
    rng
        Draws everything.
    cells, drugs
        How many there are.
    """

    def __init__(self, rng: np.random.Generator, cells: int = 60, drugs: int = 100) -> None:
        self._rng = rng
        self._cells = rng.normal(size=(cells, _PROPERTIES))
        self._drugs = rng.normal(size=(drugs, _PROPERTIES))

    def draw(self, rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Draw a cell and a drug for each row."""
        return (
            self._rng.integers(len(self._cells), size=rows),
            self._rng.integers(len(self._drugs), size=rows),
        )

    def cell_features(self, width: int) -> Matrix:
        """Return as many features of each cell, ``(cells, width)``, of mean 0 and deviation 1."""
        return self._views(self._cells, width)

    def drug_features(self, width: int) -> Matrix:
        """Return as many features of each drug, ``(drugs, width)``, of mean 0 and deviation 1."""
        return self._views(self._drugs, width)

    def fingerprints(self, width: int) -> Matrix:
        """Return as many bits of each drug as 0 and 1, ``(drugs, width)``; most are 0."""
        return (self._views(self._drugs, width) > 1.0).astype(np.float32)

    def effect(
        self, cells: npt.NDArray[np.int64], drugs: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Return how strongly drugs hit cells, ``(rows,)``, of about mean 0 and deviation 1."""
        cell, drug = self._cells[cells], self._drugs[drugs]
        half = _PROPERTIES // 2
        binding = (cell[:, :half] * drug[:, :half]).sum(axis=1) / np.sqrt(half)
        uptake = np.tanh(drug[:, half:].sum(axis=1) + cell[:, half])
        return np.asarray((binding + uptake) / np.sqrt(2))

    def _views(self, properties: npt.NDArray[np.float64], width: int) -> Matrix:
        loadings = self._rng.normal(size=(_PROPERTIES, width)) / np.sqrt(_PROPERTIES)
        noise = self._rng.normal(size=(len(properties), width))
        return np.asarray(0.8 * properties @ loadings + 0.6 * noise, np.float32)


def divided(features: int, originals: tuple[int, ...]) -> tuple[int, ...]:
    """Return widths that add up to about `features`, in the originals' proportion, at least 2."""
    total = sum(originals)
    return tuple(max(2, round(features * width / total)) for width in originals)
