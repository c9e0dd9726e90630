"""Two groups of runs beside each other: densities, and whether they differ by more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transfer_nas.report import charts
from transfer_nas.report.charts import Figure, Floats, Table, View
from transfer_nas.report.progress import Group
from transfer_nas.report.scale import Scale

_WORK = 40_000_000  # values that a permutation test may draw
_STATISTICS = (
    *("values", "means", "difference of means, 95 % interval", "Cliff's delta, 95 % interval"),
    *("Mann-Whitney p", "permutation p"),
)
_DENSITY = 4_000  # values that a density is estimated from at most


@dataclass(frozen=True)
class Difference:
    """How two samples differ.

    Attributes
    ----------
    sizes
        Number of values in each.
    means, medians
        Of each.
    p_mann_whitney
        Two-sided; that values of one tend to be larger.
    p_permutation
        Two-sided; difference of means, against groups dealt anew.
    permutations
        How many deals that is from; all there are, if `exact`.
    exact
        Whether every deal was tried.
    delta, delta_low, delta_high
        Cliff's delta, P(first > second) - P(first < second), and its 95 % interval.
    difference, difference_low, difference_high
        Of the means, first minus second, and Welch's 95 % interval.
    """

    sizes: tuple[int, int]
    means: tuple[float, float]
    medians: tuple[float, float]
    p_mann_whitney: float
    p_permutation: float
    permutations: int
    exact: bool
    delta: float
    delta_low: float
    delta_high: float
    difference: float
    difference_low: float
    difference_high: float


def compare(a: Floats, b: Floats, seed: int = 0) -> Difference:
    """Test whether two samples differ.

    Parameters
    ----------
    a, b
        Finite values, shape (n,) and (m,), n and m at least 2.
    seed
        Of the permutations.
    """
    from scipy import stats  # half a second that only a comparison pays

    delta, delta_low, delta_high = cliffs_delta(a, b)
    difference = float(a.mean() - b.mean())
    parts = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    reach = 0.0
    if parts.sum() > 0:  # Welch's interval, with Satterthwaite's degrees of freedom
        freedom = parts.sum() ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
        reach = float(stats.t.ppf(0.975, freedom) * math.sqrt(parts.sum()))
    p, permutations, exact = permutation_test(a, b, seed)
    return Difference(
        sizes=(len(a), len(b)),
        means=(float(a.mean()), float(b.mean())),
        medians=(float(np.median(a)), float(np.median(b))),
        p_mann_whitney=float(stats.mannwhitneyu(a, b).pvalue),
        p_permutation=p,
        permutations=permutations,
        exact=exact,
        delta=delta,
        delta_low=delta_low,
        delta_high=delta_high,
        difference=difference,
        difference_low=difference - reach,
        difference_high=difference + reach,
    )


def cliffs_delta(a: Floats, b: Floats) -> tuple[float, float, float]:
    """Return Cliff's delta of a over b and its 95 % interval.

    The variance is that of the area under the ROC curve, which is (delta + 1) / 2, by placements
    (DeLong, DeLong and Clarke-Pearson, Biometrics 1988); the interval is made on the scale of
    artanh, so that it stays within -1 and 1. Where all of one lie above all of the other there is
    no variance to see; then the interval is that of the closest case that is not so: one pair
    that ties.
    """
    n, m = len(a), len(b)
    above_b = _placements(a, b)  # of each a among b, in [0, 1]
    above_a = _placements(b, a)
    area = float(above_b.mean())
    delta = 2 * area - 1
    variance = above_b.var(ddof=1) / n + above_a.var(ddof=1) / m
    inner = float(np.clip(delta, -1 + 1 / (n * m), 1 - 1 / (n * m)))
    error = max(2 * math.sqrt(variance), 2 / (n * m)) / (1 - inner**2)
    centre = math.atanh(inner)
    low, high = math.tanh(centre - 1.959964 * error), math.tanh(centre + 1.959964 * error)
    return delta, min(low, delta), max(high, delta)


def permutation_test(a: Floats, b: Floats, seed: int = 0) -> tuple[float, int, bool]:
    """Return the two-sided p-value of the difference of means, how many deals it is from, and
    whether those are all there are.
    """
    values = np.concatenate([a, b])
    values = values - values.mean()  # keeps the sums exact enough to tell ties
    n, total = len(a), len(values)
    observed = abs(values[:n].mean() - values[n:].mean())
    slack = 1e-12 * max(1.0, float(np.abs(values).max(initial=0.0)))
    deals = math.comb(total, n)
    everything = float(values.sum())

    def statistic(first: Floats) -> Floats:
        return np.abs(first / n - (everything - first) / (total - n))

    if deals <= 20_000:
        from itertools import combinations

        chosen = np.array(list(combinations(range(total), n)))
        extreme = int((statistic(values[chosen].sum(axis=1)) >= observed - slack).sum())
        return extreme / deals, deals, True
    count = int(np.clip(_WORK // total, 199, 9_999))
    rng = np.random.default_rng(seed)
    sums = np.array([values[rng.permutation(total)[:n]].sum() for _ in range(count)])
    extreme = int((statistic(sums) >= observed - slack).sum())
    return (extreme + 1) / (count + 1), count, False


def view(groups: Sequence[Group]) -> View:
    """Return the comparison of two groups of runs."""
    first, second = groups
    samples = [_objectives(group) for group in groups]
    if min(map(len, samples)) < 2:
        return View(
            "comparison",
            "Comparison",
            missing="Each group needs two evaluations that worked at least.",
        )
    every = compare(samples[0], samples[1])
    tests = [("objective of every evaluation", every)]
    bests = [_bests(group) for group in groups]
    if min(map(len, bests)) >= 2:
        tests.append(("best objective of each run", compare(bests[0], bests[1])))
    scale = Scale.common([run for group in groups for run in group.runs])
    halves = [scale.text(value) for value in every.medians]
    figure = Figure(
        "comparison-density",
        "Objectives of all evaluations",
        f"Half of the evaluations of “{first.name}” are better than {halves[0]}, half of those of "
        f"“{second.name}” better than {halves[1]}.",
        {
            "density": _densities(groups, [scale.natural(sample) for sample in samples], scale),
            "share at or below": _cumulative(
                groups, [scale.natural(sample) for sample in samples], scale
            ),
        },
        "Density: a Gaussian kernel estimate. Share at or below: no smoothing.",
    )
    table = Table(
        "Statistical tests",
        ["", *(f"by the {name}" for name, _ in tests)],
        [
            [name, *cells]
            for name, *cells in zip(
                _STATISTICS, *(_column(test, scale) for _, test in tests), strict=True
            )
        ],
    )
    notes = [
        *_uncertainty(groups, scale),
        "Evaluations of one run are not independent: children resemble their parents. Their "
        "p-values say more than the data can; the test over runs is the one to trust."
        if len(tests) > 1
        else "Evaluations of one run are not independent: children resemble their parents, so that "
        "the p-values say more than the data can. Compare several runs a group, of other seeds, "
        "for a test over runs.",
        "Cliff's delta is the share of pairs in which the first is better less that in which the "
        "second is: 0 for none, 1 if all of the first are better; 0.15, 0.33 and 0.47 "
        "are called small, medium and large.",
    ]
    text = _verdict(first, second, *tests[-1])
    return View("comparison", "Comparison", text, [figure], [table], notes=notes)


def _verdict(first: Group, second: Group, what: str, test: Difference) -> str:
    interval = (
        f"(Cliff's delta {test.delta:+.2f}, 95 % interval {test.delta_low:+.2f} to "
        f"{test.delta_high:+.2f}, Mann-Whitney p = {_p(test.p_mann_whitney)})"
    )
    if test.p_mann_whitney >= 0.05:
        return (
            f"By the {what}, the difference between “{first.name}” and “{second.name}” is no more "
            f"than chance would make {interval}."
        )
    high, low = (first, second) if test.delta >= 0 else (second, first)
    return f"By the {what}, “{high.name}” is better than “{low.name}” {interval}."


def _column(test: Difference, scale: Scale) -> list[str]:
    deals = "all deals" if test.exact else f"{test.permutations:,} deals"
    sign = scale.sign
    ends = sorted((sign * test.difference_low, sign * test.difference_high))
    return [
        f"{test.sizes[0]:,} and {test.sizes[1]:,}",
        f"{scale.text(test.means[0])} and {scale.text(test.means[1])}",
        f"{sign * test.difference:+.3g} ({ends[0]:+.3g} to {ends[1]:+.3g})",
        f"{test.delta:+.2f} ({test.delta_low:+.2f} to {test.delta_high:+.2f})",
        _p(test.p_mann_whitney),
        f"{_p(test.p_permutation)} ({deals})",
    ]


def _uncertainty(groups: Sequence[Group], scale: Scale) -> list[str]:
    """Return what the number of validation rows says of the best of each group."""
    finals = [max(map(float, _bests(group)), default=math.nan) for group in groups]
    errors = [scale.deviation(best) for best in finals]
    if not all(map(math.isfinite, errors)):
        return []
    parts = [
        f"{scale.text(best)} ± {error:.4f} (“{group.name}”)"
        for group, best, error in zip(groups, finals, errors, strict=True)
    ]
    apart, reach = abs(finals[0] - finals[1]), math.hypot(*errors)
    verdict = (
        "their difference is within what as many other rows would make"
        if apart < 1.96 * reach
        else "their difference is more than as many other rows would make"
    )
    return [
        f"The best of each group, with the standard error from {scale.rows:,} validation rows: "
        f"{' and '.join(parts)}; {verdict}. Both were chosen by these rows, so that both are "
        "likely to be worse on others."
    ]


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _objectives(group: Group) -> Floats:
    return np.concatenate([run.objective[run.done] for run in group.runs])


def _bests(group: Group) -> Floats:
    return np.array([run.running_best[-1] for run in group.runs if run.best is not None])


def _densities(groups: Sequence[Group], samples: Sequence[Floats], scale: Scale) -> charts.Chart:
    from scipy import stats

    low, high = _range(samples)
    grid = np.linspace(low, high, 256)
    series = []
    for group, sample in zip(groups, samples, strict=True):
        if sample.std() == 0:
            continue  # one value has no density
        some = np.sort(sample)[charts.thinned(len(sample), _DENSITY)]
        # Silverman's rule of thumb, which a few outliers do not make too wide.
        quarter, three_quarters = np.quantile(some, (0.25, 0.75))
        robust = (three_quarters - quarter) / 1.34 / some.std(ddof=1)
        width = 0.9 * (min(1.0, robust) if robust > 0 else 1.0) * len(some) ** -0.2
        density = stats.gaussian_kde(some, bw_method=width)(grid)
        series += [
            charts.band(f"{group.name}: area", grid, np.zeros(len(grid)), density, group.colour),
            charts.line(group.name, grid, density, group.colour),
        ]
    return charts.xy(scale.axis, "density", series, y_zero=True)


def _cumulative(groups: Sequence[Group], samples: Sequence[Floats], scale: Scale) -> charts.Chart:
    series = []
    for group, sample in zip(groups, samples, strict=True):
        ordered = np.sort(sample)
        at = charts.thinned(len(ordered), 400)
        series.append(
            charts.line(group.name, ordered[at], (at + 1) / len(ordered), group.colour, step=True)
        )
    return charts.xy(scale.axis, "share", series, y_format="percent", y_zero=True)


def _range(samples: Sequence[Floats]) -> tuple[float, float]:
    """Return from where to where there is something to see: outliers far off are cut off."""
    both = np.concatenate(samples)
    quarter, three_quarters = np.quantile(both, (0.25, 0.75))
    reach = 3 * (three_quarters - quarter)
    low = max(float(both.min()), float(quarter - reach))
    high = min(float(both.max()), float(three_quarters + reach))
    margin = 0.08 * (high - low) or 0.5
    return low - margin, high + margin


def _placements(values: Floats, among: Floats) -> Floats:
    """Return for each value the share of the others that it exceeds; ties count half."""
    ordered = np.sort(among)
    below = np.searchsorted(ordered, values, side="left")
    not_above = np.searchsorted(ordered, values, side="right")
    return np.asarray((below + not_above) / 2 / len(ordered))
