"""Which genes make good models: parallel coordinates, the genes that matter first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from transfer_nas.report import charts
from transfer_nas.report.charts import Figure, Floats, Table, View
from transfer_nas.report.scale import Scale
from transfer_nas.runs import Run

_LINES = 900  # drawn at most: the best third, the others evenly
_FEW = 8  # genes shown at first


def explained(run: Run) -> Floats:
    """Return the share of the objective's variance between the values of each gene, shape (genes,).

    Adjusted for the number of values (epsilon squared: Kelley, *An unbiased correlation ratio
    measure*, PNAS 1935), so that a gene of many values does not seem to matter by chance; a gene
    on its own, so what genes do together is not in it.
    """
    good = run.done
    objective = run.objective[good]
    count = len(objective)
    total = float(((objective - objective.mean()) ** 2).sum()) if count else 0.0
    result = np.zeros(len(run.genes))
    if total <= 0:
        return result
    genomes = run.genomes[good]
    for column in range(len(run.genes)):
        values = genomes[:, column] + 1  # from 0: unknown
        sizes = np.bincount(values)
        sums = np.bincount(values, objective)[sizes > 0]
        sizes = sizes[sizes > 0]
        means = sums / sizes
        between = float((sizes * (means - objective.mean()) ** 2).sum())
        freedom = count - len(sizes)
        if freedom > 0:
            noise = (total - between) / freedom
            result[column] = max(0.0, (between - (len(sizes) - 1) * noise) / total)
    return result


def view(run: Run, more: Sequence[Figure] = ()) -> View:
    """Return the parallel coordinates of a run's genes and objective, and `more` figures."""
    good = np.flatnonzero(run.done)
    if len(good) < 2:
        return View("genes", "Genes", missing="There are too few evaluations that worked.")
    share, scale = explained(run), Scale.of(run)
    order = np.argsort(-share, kind="stable")
    names = list(run.genes)
    figure = Figure(
        "genes-parallel",
        "Genes and objective",
        "The gene that tells most about the objective is "
        f"{names[order[0]]}: {share[order[0]]:.0%} of the variance lies between its values.",
        {
            f"the {_FEW} that tell most": _chart(run, good, order[:_FEW].tolist()),
            "all genes": _chart(run, good, list(range(len(names)))),
        }
        if len(names) > _FEW
        else {"all genes": _chart(run, good, order.tolist())},
        f"{min(_LINES, len(good)):,} of {len(good):,} models, the best ones in front. Drag along "
        "an axis to choose models; click it to choose all again.",
    )
    rows = []
    for column in order[:_FEW].tolist():
        best, mean = _best_value(run, good, column)
        rows.append([names[column], f"{share[column]:.1%}", best, scale.text(mean)])
    table = Table(
        "Genes that tell most about the objective",
        ["gene", "variance explained", "value that is best on average", f"mean {scale.name}"],
        rows,
        frozenset({1, 3}),
    )
    return View("genes", "Genes", figures=[figure, *more], tables=[table])


def _chart(run: Run, good: charts.Integers, columns: list[int]) -> charts.Chart:
    ranked = run.ranking
    best, others = ranked[: _LINES // 3], ranked[_LINES // 3 :]
    chosen = np.concatenate([best, others[charts.thinned(len(others), _LINES - len(best))]])
    chosen = chosen[::-1]  # the best are drawn last, in front
    genes = list(run.genes.items())
    return {
        "kind": "parallel",
        "axes": [
            {"name": genes[column][0], "values": [str(value) for value in genes[column][1]]}
            for column in columns
        ],
        "rows": [[genome[column] for column in columns] for genome in run.genomes[chosen].tolist()],
        "objective": charts.numbers(Scale.of(run).natural(run.objective[chosen])),
        "name": Scale.of(run).name,
        "less": Scale.of(run).sign < 0,
        "labels": [f"job {job}" for job in run.job[chosen].tolist()],
    }


def _best_value(run: Run, good: charts.Integers, column: int) -> tuple[str, float]:
    """Return the value with the best mean among those that were tried thrice or more."""
    values = list(run.genes.values())[column]
    codes = run.genomes[good, column]
    counts = np.bincount(codes[codes >= 0], minlength=len(values))
    sums = np.bincount(codes[codes >= 0], run.objective[good][codes >= 0], minlength=len(values))
    enough = counts >= min(3, counts.max())
    means = np.divide(sums, counts, out=np.full(len(values), -np.inf), where=enough & (counts > 0))
    best = int(means.argmax())
    return str(values[best]), float(means[best])
