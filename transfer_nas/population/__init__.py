"""Populations without training: thousands of named models a second, as Parquet files.

`run` is what ``python -m transfer_nas.evolve --application none`` does. `generation.py` makes and
mutates the models over all ranks; `files.py` is the form on disk (docs/formats.md, "Populations").
Nothing here imports Keras.
"""

from transfer_nas.population.command import default_space, run
from transfer_nas.population.files import Population, PopulationError, read_members
from transfer_nas.population.generation import Lineage, draw_genomes, draw_lineage

__all__ = [
    "Lineage",
    "Population",
    "PopulationError",
    "default_space",
    "draw_genomes",
    "draw_lineage",
    "read_members",
    "run",
]
