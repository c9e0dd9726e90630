"""Search algorithms: one file each; `_base.py` states the contract."""

from __future__ import annotations

from transfer_nas.algorithms._base import Algorithm, Draws, draw_seed
from transfer_nas.algorithms.evolution import AgingEvolution
from transfer_nas.algorithms.halving import SuccessiveHalving
from transfer_nas.algorithms.random_search import RandomSearch
from transfer_nas.plugins import Registry

ALGORITHMS = Registry(
    "--search",
    Algorithm,  # type: ignore[type-abstract]
    "transfer_nas.algorithms",
    (AgingEvolution, RandomSearch, SuccessiveHalving),
)

__all__ = [
    "ALGORITHMS",
    "AgingEvolution",
    "Algorithm",
    "Draws",
    "RandomSearch",
    "SuccessiveHalving",
    "draw_seed",
]
