"""Search for what is quick rather than what is accurate, by a measure of one's own.

``python -m transfer_nas.evolve --application examples/own_measure.py --max_evals 20``: columns
``m:predict_ms``, ``m:confident`` and, as it is not the objective, the metric in ``results.csv``.
"""

import dataclasses
import time

from transfer_nas.applications import resolve
from transfer_nas.values import Value

REPEATED = 20


def measure(trained):
    """Return how long a batch takes, and how many rows the network is sure of."""
    batch = trained.data.x_valid[:32]
    trained.predict(batch)  # warm-up
    begin = time.perf_counter()
    for _ in range(REPEATED):
        trained.predict(batch)
    seconds = (time.perf_counter() - begin) / REPEATED
    sure = trained.predict(trained.data.x_valid).max(axis=1) > 0.9
    return {"predict_ms": 1e3 * seconds, "confident": int(sure.sum())}


application = dataclasses.replace(
    resolve("breast_cancer"),
    name="own-measure",
    metric="accuracy",
    values=(
        Value("predict_ms", "ms", "min", "of a batch of 32 rows"),
        Value("confident", "rows", "max", "validation rows with a probability above 0.9", kind=int),
    ),
    measure=measure,
    objective="predict_ms",
)
