"""A sharing of one's own: inherit from the best match only where it is worth it.

python -m transfer_nas.evolve --application digits \
        --sharing examples/own_sharing.py:WorthIt --share 0.5
"""

from dataclasses import dataclass

from cpp_store.ranges import Range

from graph_meta import LayerGraph
from transfer_nas.job import Job
from transfer_nas.models import Models
from transfer_nas.schema import setting
from transfer_nas.sharing import Sharing
from transfer_nas.transfer import Inheritance


class WorthIt(Sharing):
    name = "worth_it"
    grows = False  # nor do layers start from the parent's

    @dataclass(frozen=True)
    class Settings:
        share: float = setting(
            0.5,
            "part of a network's bytes that has to come along",
            numbers=Range(0, 1, whole=False),
        )

    def __init__(self, share: float) -> None:
        self._share = share

    def ancestor(self, job: Job, graph: LayerGraph, models: Models) -> Inheritance | None:
        found = models.best_match(graph)
        if found is not None and found.nbytes < self._share * graph.nbytes:
            found.close()
            return None
        return found
