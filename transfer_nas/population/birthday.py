"""``transfer-nas birthday``: how many layers of a new model transfer from a population.

In a room of 23 people two are likely to share a birthday, though any two of them hardly ever do. In
the same way two models of a space share few layers, but a new model shares many with the best of
P. This command says how many to expect, before any search is run, by a closed form and by drawing
populations.

**Closed form.** A genome's layer l depends on some genes only. If v of a gene's n values leave it
as it is, the other genes unchanged, then a random genome has the layer with probability

    q(l) = product over genes of v / n

(exact where genes act independently of each other), and one of P random genomes has it with
probability 1 - (1 - q)^P. A child keeps the layer of its parent with probability

    s(l) = product over genes of (1 - m) + m (v - 1) / (n - 1)

if each gene mutates to another value with probability m. So

    E[layers that transfer] = sum over layers of 1 - (1 - s(l)) (1 - q(l))^(P - 1)

for a child of one of P random members, and the sum of 1 - (1 - q(l))^P for a new random model. The
sum runs over the layers of a model and is averaged over random models. It counts a layer that any
member has, while a best match is one member: where layers are no chain, it says too much. It counts
genomes that differ from this one in the genes that do not matter, and no others that happen to
have the layer as well: where genes can stand in for each other, it says too little. Populations of
a search descend from each other, so that they are more alike than random ones.

**Simulation.** P random members are indexed, new models are made and matched exactly. Errors are
standard errors over the new models.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from cpp_store.command_line import OK
from cpp_store.ranges import Range
from numpy.typing import NDArray

from cpp_store import PrefixIndex, command_line, ranges
from transfer_nas.command_line import Parser
from transfer_nas.population import _plots, default_space
from transfer_nas.spaces import GeneSpace

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """What to expect of one size of population, in layers of a model."""

    population_size: int
    random: float
    mutated: float
    random_simulated: float
    random_error: float
    mutated_simulated: float
    mutated_error: float


@dataclass(frozen=True)
class LayerChances:
    """How likely layers recur, for the layers of some random models, all in one list.

    Attributes
    ----------
    models
        Number of models that the layers are from.
    random
        q(l): that a random genome has the layer, shape (layers,).
    kept
        s(l): that a mutated child has its parent's layer, shape (layers,).
    """

    models: int
    random: Floats
    kept: Floats

    def expected(self, population_size: int) -> tuple[float, float]:
        """Return the expected number of layers for a random model, and for a member's child."""
        missed = np.log1p(-np.minimum(self.random, 1 - 1e-15))
        random = -np.expm1(population_size * missed)
        mutated = 1 - (1 - self.kept) * np.exp((population_size - 1) * missed)
        return float(random.sum()) / self.models, float(mutated.sum()) / self.models


def layer_chances(
    space: GeneSpace, mutation_rate: float, models: int, rng: np.random.Generator
) -> LayerChances:
    """Find for the layers of random models which genes they depend on, by changing each gene.

    Parameters
    ----------
    space
        Whose models.
    mutation_rate
        Probability that a gene of a child differs from its parent's, 0 to 1.
    models
        How many models to average over.
    rng
        Draws them.
    """
    random: list[Floats] = []
    kept: list[Floats] = []
    for _ in range(models):
        genome = space.sample(rng)
        names = space.graph(genome).names
        q, s = np.ones(len(names)), np.ones(len(names))
        for position, gene in enumerate(space.genes):
            same = np.zeros(len(names))
            for value in range(len(gene.values)):
                changed = (*genome[:position], value, *genome[position + 1 :])
                others = set(space.graph(changed).names)
                same += [name in others for name in names]
            count = len(gene.values)
            q *= same / count
            s *= 1 - mutation_rate + mutation_rate * (same - 1) / max(1, count - 1)
        random.append(q)
        kept.append(s)
    return LayerChances(models, np.concatenate(random), np.concatenate(kept))


def simulate(
    space: GeneSpace,
    population_size: int,
    mutation_rate: float,
    queries: int,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Match random and mutated models with random populations.

    Small populations are drawn anew many times, as a single one of them says little.

    Parameters
    ----------
    space, mutation_rate, rng
        As for `layer_chances`.
    population_size
        Members of each population.
    queries
        How many models of each kind are matched at least.

    Returns
    -------
    random, mutated
        The layers that transfer to each new model; equally many of each kind.
    """
    choices = np.array([len(gene.values) for gene in space.genes])
    populations = max(1, min(queries, 1000 // population_size))
    each = -(-queries // populations)
    random, mutated = [], []
    for _ in range(populations):
        members = rng.integers(choices, size=(population_size, len(choices)))
        index = PrefixIndex()
        for number, genome in enumerate(members.tolist()):
            index.add(str(number), space.graph(genome).table)
        parents = members[rng.integers(population_size, size=each)]
        shifts = 1 + rng.integers(np.maximum(choices - 1, 1), size=parents.shape)
        mutates = (rng.random(parents.shape) < mutation_rate) & (choices > 1)
        children = np.where(mutates, (parents + shifts) % choices, parents)
        random += _matched(space, index, rng.integers(choices, size=parents.shape))
        mutated += _matched(space, index, children)
    return np.array(random, dtype=float), np.array(mutated, dtype=float)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 for bad input."""
    return command_line.run("birthday", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    if given.output is not None:
        _plots.matplotlib()  # says what is missing before the work, not after it

    space = default_space(given.space)
    genes = sum(len(gene.values) > 1 for gene in space.genes)
    rate = 1 / max(1, genes) if given.mutation_rate is None else given.mutation_rate
    rng = np.random.default_rng(given.seed)
    chances = layer_chances(space, rate, given.models, rng)
    sizes = _sizes(given.population_size)
    points = [
        _point(size, chances, *simulate(space, size, rate, given.queries, rng)) for size in sizes
    ]
    layers = len(chances.random) / chances.models
    result = {
        "space": space.name,
        "size": space.size,
        "mutation_rate": rate,
        "layers": layers,
        "points": [asdict(point) for point in points],
    }
    if given.json:
        command_line.print_json(result)
    else:
        print(_table(space, rate, layers, points))
    if given.output is not None:
        _plot(Path(given.output), space, rate, layers, points)
    return OK


def _point(size: int, chances: LayerChances, random: Floats, mutated: Floats) -> Point:
    expected_random, expected_mutated = chances.expected(size)
    return Point(
        size,
        expected_random,
        expected_mutated,
        float(random.mean()),
        float(random.std() / math.sqrt(len(random))),
        float(mutated.mean()),
        float(mutated.std() / math.sqrt(len(mutated))),
    )


def _matched(space: GeneSpace, index: PrefixIndex, genomes: NDArray[np.int64]) -> list[int]:
    matches = [index.best_match(space.graph(genome).table) for genome in genomes.tolist()]
    return [0 if match is None else match.layers for match in matches]


def _sizes(largest: int) -> list[int]:
    """Return 1, 3, 10, 30, ... up to and with the largest."""
    steps = [factor * 10**power for power in range(12) for factor in (1, 3)]
    return [*(size for size in steps if size < largest), largest]


def _table(space: GeneSpace, rate: float, layers: float, points: Sequence[Point]) -> str:
    lines = [
        f"space {space.name}: {space.size:.3g} genomes, {layers:.1f} layers a model on average; "
        f"each gene mutates with probability {rate:.3g}",
        "",
        "layers that transfer  a new random model             a child of a member",
        "members               closed form     simulated      closed form     simulated",
    ]
    lines += [
        f"{point.population_size:<21,} {point.random:<15.2f} "
        f"{f'{point.random_simulated:.2f} ± {point.random_error:.2f}':<14} "
        f"{point.mutated:<15.2f} {point.mutated_simulated:.2f} ± {point.mutated_error:.2f}"
        for point in points
    ]
    return "\n".join(lines)


def _plot(
    path: Path, space: GeneSpace, rate: float, layers: float, points: Sequence[Point]
) -> None:
    pyplot = _plots.matplotlib()
    sizes = [point.population_size for point in points]
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for kind, label, colour in (
        ("mutated", f"child of a member (each gene mutates: {rate:.2g})", "tab:blue"),
        ("random", "new random model", "tab:orange"),
    ):
        axes.plot(
            sizes, [getattr(p, kind) for p in points], color=colour, label=f"{label}, closed form"
        )
        axes.errorbar(
            sizes,
            [getattr(p, f"{kind}_simulated") for p in points],
            yerr=[2 * getattr(p, f"{kind}_error") for p in points],
            fmt="o",
            color=colour,
            capsize=3,
            label="simulated, ± 2 standard errors",
        )
    axes.axhline(layers, color="grey", linestyle=":", label="layers of a model")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("members of the population")
    axes.set_ylabel("layers that transfer from the best match")
    axes.set_title(f"GeneSpace {space.name}, {space.size:.2g} genomes")
    axes.legend(fontsize="small")
    _plots.save(figure, path)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m transfer_nas.population.birthday",
        description="Say how many layers of a new model would transfer from a population of random "
        "models: by a closed form and by simulation, and how it grows with the population.",
    )
    add = parser.add_argument
    add("--space", metavar="NAME", help="architectures to draw from (default: dense_skip)")
    add(
        "--population_size",
        type=ranges.COUNT,
        default=10_000,
        metavar="P",
        help="largest population (default: 10000)",
    )
    add(
        "--mutation_rate",
        type=Range(0, 1, whole=False),
        metavar="M",
        help="probability that a gene of a child is not its parent's (default: one gene a child)",
    )
    add(
        "--queries",
        type=ranges.COUNT,
        default=300,
        metavar="N",
        help="new models that are matched with each population (default: 300)",
    )
    add(
        "--models",
        type=ranges.COUNT,
        default=30,
        metavar="N",
        help="models that the closed form is averaged over (default: 30)",
    )
    add("--seed", type=ranges.SEED, default=0, help="seed of everything random (default: 0)")
    _plots.add_flag(parser)
    add("--json", action="store_true", help="print the numbers as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
