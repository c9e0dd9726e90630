"""Trains with transfer under DeepHyper, for `test_deephyper.py`; prints what it finds as JSON.

Argument: the directory to write to.
"""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
from deephyper.analysis.hpo import parameters_from_row
from deephyper.evaluator import Evaluator, RunningJob

from transfer_nas.deephyper import AgingEvolution, TransferEvaluation


def processes(transfer: TransferEvaluation) -> Evaluator:
    return Evaluator.create(transfer, method="process", method_kwargs={"num_workers": 2})


def main(directory: Path) -> None:
    best = directory / "best.keras"
    found: dict[str, object] = {}
    with TransferEvaluation("breast_cancer", epochs=1, batch_size=128, best_model=best) as transfer:
        search = AgingEvolution(
            transfer.problem,
            random_state=1,
            log_dir=str(directory),
            population_size=2,
            sample_size=2,
        )
        results = search.search(processes(transfer), max_evals=8)
        store = transfer._store()
        assert store is not None
        found["stored"] = len(store.list())
        found["members"] = len(search._members)

        import keras

        data = transfer.application.data
        predicted = keras.saving.load_model(best).predict(data.x_valid, verbose=0).argmax(axis=1)
        found["accuracy of best.keras"] = float(np.mean(predicted == data.y_valid))

        # The serial evaluator takes coroutines.
        job = RunningJob("0.99", parameters_from_row(results.iloc[-1]))
        found["again"] = asyncio.run(transfer.asynchronous(job))["metadata"]

        late = AgingEvolution(transfer.problem, log_dir=str(directory / "late"))
        try:
            late.search(processes(transfer), max_evals=2)
        except RuntimeError as error:
            found["forked too late"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
