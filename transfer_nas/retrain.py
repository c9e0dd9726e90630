"""``python -m transfer_nas.retrain RUN --job N``: train one model of a finished search, alone.

The search judged it after a few epochs, most of them of inherited layers. This trains all of it
from fresh weights: what the architecture is worth by itself. What ``evolve --retrain`` leaves,
``retrained-N.keras``, is another model, trained on from the weights of the search.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cpp_store.command_line import OK
from cpp_store.ranges import Range

from cpp_store import command_line, ranges
from transfer_nas import runs
from transfer_nas.command_line import Parser
from transfer_nas.errors import InputError
from transfer_nas.job import Job, Measure, one_line
from transfer_nas.runs import Run
from transfer_nas.schema import settings_of
from transfer_nas.settings import Settings

FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 1 if the training failed, or 2 for bad input."""
    return command_line.run("retrain", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    try:
        return _retrain(given)
    except SystemExit as cause:  # of a user's file
        return _failed(one_line(cause))


def _retrain(given: argparse.Namespace) -> int:
    run = runs.read(given.run)
    row = _row(run, given.job)
    folder = run.path if run.path.is_dir() else run.path.parent
    output = Path(given.output or folder / f"alone-{run.job[row]}.keras")
    if output.suffix != ".keras" or not output.parent.is_dir():
        raise InputError(f"--output {output}: expected a .keras file in a directory that is there")
    if not os.access(output.parent, os.W_OK | os.X_OK):  # before the training, not after it
        raise InputError(f"--output {output}: nothing can be written to {output.parent}")
    if output.exists():
        raise InputError(f"{output} is there already; remove it, or name another with --output")
    settings = _settings(run)

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from transfer_nas.searching import worker
    from transfer_nas.trainer import TransferTrainer
    from transfer_nas.transfer import NoTransfer

    application, space = worker.resolve(settings)
    architecture = space.from_json(run.architecture(row))
    trainer = TransferTrainer(
        application,
        space,
        NoTransfer(),
        epochs=given.epochs or _fully(run, row, application.epochs),
        batch_size=settings.batch_size,
    )
    # It tells of a failure with the traceback; the line below is enough.
    logging.getLogger(TransferTrainer.__module__).addHandler(logging.NullHandler())
    evaluation = trainer.evaluate(Job(int(run.job[row]), architecture, None, given.seed))
    if not evaluation.done:
        return _failed(evaluation.measures.get("error", evaluation.status))
    try:
        trainer.save_model(output)
    except OSError as cause:
        raise InputError(f"cannot write {output}: {cause.strerror or cause}") from cause
    result: dict[str, Any] = {
        "job": int(run.job[row]),
        "epochs": trainer.epochs,
        "objective": evaluation.objective,
        "objective_in_search": float(run.objective[row]),
        "test": trainer.tested(),
        "seconds": evaluation.measures.get("train_seconds"),
        "model": str(output),
    }
    if given.json:
        command_line.print_json(result)
    else:
        name = application.tested_name
        test = (result["test"] or {}).get(name)
        print(
            f"job {result['job']}: {application.objective_name} "
            f"{application.natural(evaluation.objective):.4f} after {trainer.epochs} epochs alone, "
            f"{application.natural(result['objective_in_search']):.4f} in the search"
            f"{'' if test is None else f'; {name} {test:.4f} on the test rows'}; "
            f"{output}"
        )
    return OK


def _failed(why: Measure) -> int:
    print(f"retrain: the training failed: {why}", file=sys.stderr)
    return FAILED


def _row(run: Run, job: int | None) -> int:
    """Return the row of a job, or of the best."""
    if job is None:
        if run.best is None:
            raise InputError(f"{run.path}: no evaluation has worked")
        return run.best
    row = run.row_of.get(job)
    if row is None:
        raise InputError(f"{run.path}: there is no evaluation of a job {job}")
    return row


def _fully(run: Run, row: int, epochs: int) -> int:
    """Return the epochs of a full training: the application's, and no fewer than in the search."""
    trained = run.measure("epochs")[row] if run.has("epochs") else 0
    return max(epochs, run.settings.get("epochs") or 0, int(np.nan_to_num(trained)))


def _settings(run: Run) -> Settings:
    """Return what of a run's settings says what is trained."""
    known = settings_of(Settings)
    return Settings(**{name: value for name, value in run.settings.items() if name in known})


def _parser() -> Parser:
    parser = Parser(
        prog="python -m transfer_nas.retrain",
        description="Train one model of a search fully, from fresh weights, without the search.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="run directory")
    add("--job", type=Range(0, 2**63 - 1), metavar="N", help="which model (default: the best)")
    add(
        "--epochs",
        type=ranges.EPOCHS,
        metavar="N",
        help="(default: the application's, or those of the search if they are more)",
    )
    add(
        "--seed",
        type=ranges.SEED,
        default=0,
        help="of weights and of the order of rows (default: 0)",
    )
    add("--output", metavar="FILE", help="a .keras file (default: RUN/alone-N.keras)")
    add("--json", action="store_true", help="print the result as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
