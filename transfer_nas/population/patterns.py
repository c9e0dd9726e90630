"""``transfer-nas patterns RUN``: what a search, or a generated population, reused.

Reads the run directory of a search, or a population, and says

* which prefixes were reused most: how often, how deep, from how many ancestors, and the name of the
  last layer of each where the digests are known (populations);
* how deep the lineages are: an ancestor's ancestor's ancestor ...;
* how the share of layers transferred went over time.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cpp_store.command_line import OK

from cpp_store import command_line, ranges
from transfer_nas import runs
from transfer_nas.command_line import Parser
from transfer_nas.population import _plots, files, read_members
from transfer_nas.runs import Run

_PERIODS = 20  # of time, in table and plot


@dataclass(frozen=True)
class Model:
    """What matters of one model here.

    Attributes
    ----------
    id
        Its name in the run: a job, or the number of a member.
    ancestor
        Whose prefix it shares, by that name; ``None`` if nobody's.
    layers, transferred
        How many layers it has, and how many of them its ancestor has too.
    digests
        Of its layers, where they are known.
    """

    id: str
    ancestor: str | None
    layers: int
    transferred: int
    digests: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Prefix:
    """A prefix and how often it was reused.

    Attributes
    ----------
    uses
        Number of models that took exactly this prefix from an ancestor.
    layers
        How many layers it has.
    ancestors
        From how many different models it was taken.
    example
        One of these.
    digest
        Of its last layer in hex; empty if the run keeps no digests. Without them two prefixes are
        the same if they are of equal length and from one ancestor.
    """

    uses: int
    layers: int
    ancestors: int
    example: str
    digest: str


@dataclass(frozen=True)
class Period:
    """A stretch of a run: models `begin` to `end`, and the share of layers that transferred."""

    begin: int
    end: int
    share: float


@dataclass(frozen=True)
class Patterns:
    """What a run reused.

    Attributes
    ----------
    models
        How many models there are, those without an ancestor included.
    without_ancestor
        How many these are.
    layers, transferred
        Sums over all models.
    prefixes
        Those reused most, most used first.
    depths
        For each lineage depth the number of models; depth 0 has no ancestor.
    periods
        In order of time.
    """

    models: int
    without_ancestor: int
    layers: int
    transferred: int
    prefixes: list[Prefix]
    depths: list[int]
    periods: list[Period]


def read(path: Path) -> list[Model]:
    """Return the models of a run or a population, oldest first.

    Raises
    ------
    InputError
        It is neither, or damaged.
    """
    if (path / files.DESCRIPTION).exists():
        return _members(path)
    return _evaluated(runs.read(path))


def find(models: Sequence[Model], count: int = 10) -> Patterns:
    """Find the patterns in the models of a run.

    Parameters
    ----------
    models
        Oldest first.
    count
        How many prefixes to return at most.
    """
    return Patterns(
        models=len(models),
        without_ancestor=sum(model.ancestor is None for model in models),
        layers=sum(model.layers for model in models),
        transferred=sum(model.transferred for model in models),
        prefixes=_prefixes(models, count),
        depths=_depths(models),
        periods=_over_time(models),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 for bad input."""
    return command_line.run("patterns", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    pyplot = None if given.output is None else _plots.matplotlib()
    found = find(read(Path(given.run)), given.count)
    if given.json:
        command_line.print_json(asdict(found))
    else:
        print(_table(found))
    if pyplot is not None:
        _plot(pyplot, Path(given.output), given.run, found)
    return OK


def _prefixes(models: Sequence[Model], count: int) -> list[Prefix]:
    by_id = {model.id: model for model in models}
    ancestors: defaultdict[tuple[object, int], Counter[str]] = defaultdict(Counter)
    digests: dict[tuple[object, int], str] = {}
    for model in models:
        if model.ancestor is None or not model.transferred:
            continue
        ancestor = by_id.get(model.ancestor)
        identity: object = model.ancestor
        last = ""
        if ancestor is not None and ancestor.digests and model.digests:
            theirs = set(ancestor.digests)
            shared = [digest for digest in model.digests if digest in theirs]
            identity = frozenset(shared)
            last = shared[-1].hex() if shared else ""
        key = (identity, model.transferred)
        ancestors[key][model.ancestor] += 1
        digests.setdefault(key, last)
    most = sorted(ancestors.items(), key=lambda item: (-item[1].total(), -item[0][1]))[:count]
    return [
        Prefix(uses.total(), key[1], len(uses), uses.most_common(1)[0][0], digests[key])
        for key, uses in most
    ]


def _depths(models: Sequence[Model]) -> list[int]:
    """Count the models by the length of their line of ancestors; an ancestor comes before."""
    depth: dict[str, int] = {}
    for model in models:
        # An ancestor that the run does not hold is of depth 0: it came from elsewhere.
        depth[model.id] = 0 if model.ancestor is None else depth.get(model.ancestor, 0) + 1
    counts = Counter(depth.values())
    return [counts[length] for length in range(max(counts, default=-1) + 1)]


def _over_time(models: Sequence[Model]) -> list[Period]:
    periods = []
    parts = min(_PERIODS, len(models))
    for part in range(parts):
        begin, end = len(models) * part // parts, len(models) * (part + 1) // parts
        chosen = models[begin:end]
        layers = sum(model.layers for model in chosen)
        share = sum(model.transferred for model in chosen) / layers if layers else 0.0
        periods.append(Period(begin, end, share))
    return periods


def _evaluated(run: Run) -> list[Model]:
    """Return the models of a search, in the order in which they were told."""
    ancestors = run.ancestor  # -2: a model of another run
    layers, transferred = run.measure("layers"), np.nan_to_num(run.measure("layers_transferred"))
    names = {-1: None, -2: "another run"}
    return [
        Model(
            str(run.job[row]),
            names.get(ancestors[row], str(ancestors[row])),
            int(layers[row]),
            int(transferred[row]),
        )
        for row in np.flatnonzero(run.done & np.isfinite(layers))
    ]


def _members(path: Path) -> list[Model]:
    columns = ["model", "ancestor", "layers", "layers_shared", "digests"]
    return [
        Model(
            str(row["model"]),
            None if row["ancestor"] is None else str(row["ancestor"]),
            row["layers"],
            row["layers_shared"] or 0,
            tuple(row["digests"]),
        )
        for row in read_members(path).select(columns).to_pylist()
    ]


def _table(found: Patterns) -> str:
    share = found.transferred / found.layers if found.layers else 0.0
    lines = [
        f"{found.models:,} models, {found.without_ancestor:,} of them without an ancestor; "
        f"{share:.1%} of {found.layers:,} layers transferred",
        "",
        "prefixes reused most",
        "uses      layers  ancestors  for example  last layer's digest",
    ]
    lines += [
        f"{p.uses:<9,} {p.layers:<7} {p.ancestors:<10,} {p.example:<12} {p.digest or '-'}"
        for p in found.prefixes
    ]
    lines += ["", "lineage depth  models"]
    lines += [f"{depth:<14} {count:,}" for depth, count in enumerate(found.depths)]
    lines += ["", "models               share of layers transferred"]
    lines += [
        f"{f'{p.begin:,} to {p.end - 1:,}':<20} {p.share:6.1%}  {'#' * round(40 * p.share)}"
        for p in found.periods
    ]
    return "\n".join(lines)


def _plot(pyplot: Any, path: Path, title: str, found: Patterns) -> None:
    figure, (over_time, depths, prefixes) = pyplot.subplots(
        1, 3, figsize=(13, 4), layout="constrained"
    )
    figure.suptitle(title)
    edges = [period.begin for period in found.periods] + [found.models]
    over_time.stairs([period.share for period in found.periods], edges)
    over_time.set_ylim(0, 1)
    over_time.set_xlabel("models, in order of time")
    over_time.set_ylabel("share of layers transferred")
    depths.bar(range(len(found.depths)), found.depths)
    depths.set_xlabel("lineage depth")
    depths.set_ylabel("models")
    labels = [f"{p.layers} layers of {p.example}" for p in found.prefixes]
    prefixes.barh(range(len(labels)), [p.uses for p in found.prefixes])
    prefixes.set_yticks(range(len(labels)), labels, fontsize="small")
    prefixes.invert_yaxis()
    prefixes.set_xlabel("times that the prefix was reused")
    _plots.save(figure, path)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m transfer_nas.population.patterns",
        description="Say which prefixes a search reused most, how deep its lineages are, and how "
        "the share of layers transferred went over time.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="run directory of a search, or directory of a population")
    add(
        "--count",
        type=ranges.COUNT,
        default=10,
        metavar="N",
        help="how many prefixes to show (default: 10)",
    )
    _plots.add_flag(parser)
    add("--json", action="store_true", help="print what was found as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
