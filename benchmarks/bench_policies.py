"""Which options of transfer make a search end sooner?

``python benchmarks/bench_policies.py [--json FILE] [--quick]`` prints a table and writes flat keys.

Searches as in ``bench_search.py``, each until it reaches its application's target or has spent
eight seconds of its one thread: without transfer; with it by default; and with one option of
`Policy` or of the evolution changed at a time. ``APPLICATION_OPTION_ratio`` is the quotient of the
median times without transfer and with the option, ``…_p_value`` Wilcoxon's, one-sided, over the
seeds' logarithms; ``…_over_default_…`` the same of the default and the option, so that less than
one is worse than the default, with a two-sided ``p_value``. The seeds (100, 101, …) are neither
those of ``bench_search.py`` nor those from which its targets come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import bench_search  # first, as it says how many threads NumPy has
import figures
import numpy as np
from bench_search import GOALS, Search
from scipy import stats

from transfer_nas import applications
from transfer_nas.training.policy import Policy

QUESTION = figures.Question(
    compares="searches with one option of transfer changed at a time, on the same seeds",
    seconds=700,
    quick_seconds=9,
)
TARGETS: figures.Targets = {}
FIRST_SEED = 100


class Condition(NamedTuple):
    """What a search is done with."""

    policy: Policy | None
    beta: float = 0.0


def conditions(epochs: int) -> dict[str, Condition]:
    """Return the conditions, for an application of so many epochs."""
    least = max(1, epochs // 5)  # what a child trains at least by default
    return {
        "none": Condition(None),
        "default": Condition(Policy()),
        "finetune": Condition(Policy("finetune")),
        "freeze_then_finetune": Condition(Policy("freeze_then_finetune")),
        "all_epochs": Condition(Policy(child_epochs=epochs)),
        "new_behind_prefix": Condition(Policy(grow=False, child_epochs=least)),
        "unfreeze_top_1": Condition(Policy(unfreeze_top=1)),
        "unfreeze_top_2": Condition(Policy(unfreeze_top=2)),
        "shrink_perturb": Condition(Policy(shrink_perturb=0.2)),
        "finetune_shrink_perturb": Condition(Policy("finetune", shrink_perturb=0.2)),
        "cosine": Condition(Policy(schedule="cosine")),
        "beta_2": Condition(Policy(), beta=2.0),
        "beta_5": Condition(Policy(), beta=5.0),
    }


def main() -> None:
    given = figures.parser(__doc__, "one seed, 0.2 s a search").parse_args()
    seeds, budget = (1, 0.2) if given.quick else (10, 8.0)
    found: dict[tuple[str, str], list[Search]] = {}
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for application in GOALS:
            known = conditions(applications.resolve(application).epochs)
            for name in figures.in_turn(list(known), seed):
                policy, beta = known[name]
                search = bench_search.search(
                    application, policy, 1, seed, budget, beta=beta, whole=False
                )
                found.setdefault((application, name), []).append(search)
                print(f"{application} {name}, seed {seed}: {search.seconds:.3f} s", flush=True)
    results: dict[str, float] = {}
    for (application, name), searches in found.items():
        if name == "none":
            continue
        key = f"{application}_{name}"
        plain, default = found[application, "none"], found[application, "default"]
        results |= {
            f"{key}_median_seconds": float(np.median([each.seconds for each in searches])),
            f"{key}_reached": sum(each.reached for each in searches) / len(searches),
            f"{key}_ratio": bench_search.ratio(plain, searches),
            f"{key}_p_value": bench_search.p_value(plain, searches),
        }
        if name != "default":
            results[f"{key}_over_default_ratio"] = bench_search.ratio(default, searches)
            results[f"{key}_over_default_p_value"] = two_sided(default, searches)
    figures.finish("policies", results, TARGETS, given)


def two_sided(one: Sequence[Search], other: Sequence[Search]) -> float:
    """Return how likely such times are if the two are alike."""
    differences = [math.log(a.seconds / b.seconds) for a, b in zip(one, other, strict=True)]
    if not any(differences):
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)


if __name__ == "__main__":
    main()
