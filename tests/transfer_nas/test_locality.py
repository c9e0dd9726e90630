"""Mutations that prefer what leaves most of the network as it is."""

import math

import numpy as np
import pytest

from graph_meta import prefix
from transfer_nas import spaces
from transfer_nas.algorithms.evolution import AgingEvolution
from transfer_nas.algorithms.locality import gene_weights, kept_shares
from transfer_nas.errors import SpaceError
from transfer_nas.job import DONE, Evaluation
from transfer_nas.spaces import FeedForward, Gene, GeneSpace


def transferred_share(space: GeneSpace, beta: float) -> float:
    """Return the mean share of a child's layers that its parent has."""
    evolution = AgingEvolution(space, 20, 5, seed=3, beta=beta)
    jobs = {job.id: job for job in evolution.ask(20)}
    for job in jobs.values():
        evolution.tell(Evaluation(job, DONE, float(job.id)))
    shares = []
    for child in evolution.ask(400):
        assert child.parent is not None
        graph = space.graph(child.architecture)
        shares.append(len(prefix(space.graph(jobs[child.parent].architecture), graph)) / len(graph))
    return float(np.mean(shares))


@pytest.mark.parametrize("name", ["dense_skip", "feed_forward", "nt3"])
def test_the_share_transferred_rises_with_beta(name: str) -> None:
    space = spaces.find(name).example()
    shares = [transferred_share(space, beta) for beta in (-4.0, 0.0, 4.0, 16.0)]
    assert shares == sorted(shares)
    assert shares[3] > shares[1] + 0.05 > shares[0] + 0.05


def test_genes_near_the_output_keep_more() -> None:
    space = FeedForward([(4,)], 2, max_depth=3)
    shares = dict(zip((gene.name for gene in space.genes), kept_shares(space), strict=True))
    assert shares["layer_2"] > shares["layer_1"] > shares["layer_0"]
    assert all(0 <= share < 1 for share in shares.values())


def test_the_formula() -> None:
    space = FeedForward([(4,)], 2, max_depth=3)
    weights = gene_weights(space, 1.5)
    assert math.isclose(sum(weights), 1.0)
    kept = kept_shares(space)
    for i in range(1, len(kept)):
        assert math.isclose(weights[i] / weights[0], math.exp(1.5 * (kept[i] - kept[0])))
    assert np.allclose(gene_weights(space, 0.0), 1 / len(kept))
    assert np.isfinite(gene_weights(space, -1e6)).all()


def test_a_gene_without_a_choice_is_never_mutated() -> None:
    class Narrow(FeedForward):
        name = "narrow"

        def __init__(self) -> None:
            super().__init__([(4,)], 2, max_depth=2)
            first = self.genes[0]
            self.genes = (Gene(first.name, first.values[:1]), *self.genes[1:])

    space = Narrow()
    assert gene_weights(space, 2.0)[0] == 0
    evolution = AgingEvolution(space, 2, 1, seed=1, beta=-5.0)
    for job in evolution.ask(2):
        evolution.tell(Evaluation(job, DONE, 1.0))
    assert {job.architecture[0] for job in evolution.ask(200)} == {0}

    space.genes = tuple(Gene(gene.name, gene.values[:1]) for gene in space.genes)
    with pytest.raises(SpaceError, match="nothing to mutate"):
        gene_weights(space, 2.0)
