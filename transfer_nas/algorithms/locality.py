"""How much of a network each gene decides: what a mutation of it leaves for transfer."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from graph_meta import LayerGraph
from transfer_nas.errors import SpaceError
from transfer_nas.spaces import GeneSpace, Space, with_genes

_SAMPLES = 32  # mutations of each gene


def gene_weights(space: Space, beta: float) -> NDArray[np.float64]:
    """Return the probability of each gene to be the one that a mutation changes.

    Proportional to ``exp(beta * kept)``, with ``kept`` from `kept_shares`: at beta = 0 all are
    alike; between a gene that keeps everything and one that keeps nothing lies a factor of
    e**beta. Genes without a choice have none.

    Returns
    -------
    ndarray
        Shape (genes,), float64.

    Raises
    ------
    SpaceError
        The space has no genes, or holds one genome: there is nothing to mutate.
    """
    space = with_genes(space, "beta")
    choice = np.array([len(gene.values) > 1 for gene in space.genes])
    if not choice.any():
        raise SpaceError(f"space {space.name} holds one genome: there is nothing to mutate")
    exponents = np.where(
        choice, beta * np.array(kept_shares(with_genes(space.whole, "beta"))), -np.inf
    )
    weights = np.exp(exponents - exponents.max())
    return np.asarray(weights / weights.sum())


@functools.lru_cache(maxsize=16)
def kept_shares(space: GeneSpace) -> tuple[float, ...]:
    """Return, for each gene, the mean share of a child's layers that its parent has, in [0, 1].

    Estimated on random genomes, each with this one gene changed, from the layer graphs alone:
    equal digests are what transfers. Genomes that cannot be built count as keeping nothing. The
    same in every process and run.
    """
    rng = np.random.default_rng(0)
    shares = []
    for position, gene in enumerate(space.genes):
        kept = 0.0
        if len(gene.values) > 1:
            for _ in range(_SAMPLES):
                parent = space.sample(rng)
                child = space.mutate(parent, rng, position)
                with contextlib.suppress(Exception):  # functions of users may raise anything
                    kept += _share(space.graph(parent), space.graph(child)) / _SAMPLES
        shares.append(kept)
    return tuple(shares)


def _share(parent: LayerGraph, child: LayerGraph) -> float:
    common = Counter(parent.digests) & Counter(child.digests)
    return common.total() / len(child)
