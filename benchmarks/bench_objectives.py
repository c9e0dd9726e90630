"""Does a search for two objectives find the better front, and do stopped trainings save epochs?

``python benchmarks/bench_objectives.py [--json FILE] [--quick] [--seeds N] [--application NAME]``
prints a table and writes flat keys; with fewer seconds than the first population takes, 16 random
networks, nothing but luck is compared.

*Front.* Accuracy and parameters, in one process, the same seconds for everybody: aging evolution
with NSGA-II's order in the tournament (``ours`` with transfer, ``ours_alone`` without), random
search without transfer, and Optuna's NSGA-II (``NSGAIISampler``, its defaults but for the
population, which is ours) on the same space with the same training function, without transfer. The
hypervolume is that of (accuracy, log10 of parameters) above chance and below the largest network of
1,000 random ones. ``hypervolume_over_random`` and ``…_over_optuna`` are geometric means over the
seeds of ``ours`` over theirs, ``…_low`` and ``…_high`` their 95 % confidence intervals (t, paired).

*Stopping.* The same number of epochs for everybody, in evolution with transfer and in random search
without. The goal of a seed is the best that the search without stopper has found in half of the
epochs. ``stop_ALGORITHM_NAME_ratio`` is the geometric mean over the seeds of its epochs until the
goal without stopper over those with one; who does not get there counts with all epochs.

Seconds are those of the process's one thread, which are those on the wall where nothing else runs.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import figures
import numpy as np
from scipy import stats

import cpp_store
from cpp_store import ranges
from transfer_nas import applications
from transfer_nas.algorithms import AgingEvolution, Algorithm, RandomSearch
from transfer_nas.best import hypervolume
from transfer_nas.job import Evaluation, Job
from transfer_nas.objectives import Objectives
from transfer_nas.stopping import STOPS, stopper
from transfer_nas.trainer import TransferTrainer
from transfer_nas.transfer import NoTransfer, StoreTransfer

QUESTION = figures.Question(
    compares="fronts with random search's and Optuna's, and trainings with and without a stopper",
    seconds=900,
    quick_seconds=5,
)
TARGETS: figures.Targets = {
    "hypervolume_over_random": ("at least", 1.1),
    "hypervolume_over_optuna": ("at least", 1.0),
}
AFTER = "val_accuracy:max,parameters:min"
POPULATION, SAMPLE = 16, 4
CONTENDERS = ("ours", "ours_alone", "random", "optuna")
SEARCHES = ("evolution", "random")


def main() -> None:
    parser = figures.parser(__doc__, "two seeds, fewer seconds and epochs")
    parser.add_argument("--seeds", type=ranges.COUNT, help="(default: 20)")
    parser.add_argument("--first_seed", type=ranges.SEED, default=0, help="(default: 0)")
    parser.add_argument("--application", default="digits", help="(default: digits)")
    parser.add_argument("--seconds", type=ranges.SECONDS, default=8.0, help="a front (default: 8)")
    parser.add_argument(
        "--epochs", type=ranges.EPOCHS, default=400, help="a search with stopper (default: 400)"
    )
    given = parser.parse_args()
    seeds = given.seeds or (2 if given.quick else 20)
    seconds, epochs = (0.3, 30) if given.quick else (given.seconds, given.epochs)
    contenders = [c for c in CONTENDERS if c != "optuna" or figures.has("optuna")]
    first = given.first_seed
    tasks = [
        (given.application, seed, seconds, epochs, contenders)
        for seed in range(first, first + seeds)
    ]
    with multiprocessing.get_context("spawn").Pool(min(2, os.cpu_count() or 1)) as pool:
        found = []
        for each in pool.imap(one_seed, tasks):
            found.append(each)
            told = ", ".join(f"{name} {value:.4g}" for name, value in each.items())
            print(f"seed {first + len(found) - 1}: {told}", flush=True)
    results: dict[str, float] = {"seeds": seeds}
    for name in contenders:
        results[f"hypervolume_{name}"] = float(np.mean([each[f"front_{name}"] for each in found]))
        results[f"evaluations_{name}"] = float(np.mean([each[f"count_{name}"] for each in found]))
    for name in contenders[1:]:
        results |= ratio(f"hypervolume_over_{name}", found, "front_ours", f"front_{name}")
    for algorithm in SEARCHES:
        for stop in STOPS[1:]:
            key = f"stop_{algorithm}_{stop}"
            results |= ratio(f"{key}_ratio", found, f"stop_{algorithm}_none", key)
            reached = [each[key] < epochs for each in found]
            results[f"{key}_reached"] = sum(reached) / seeds
    figures.finish("objectives", results, TARGETS, given)


def ratio(
    key: str, found: Sequence[Mapping[str, float]], above: str, below: str
) -> dict[str, float]:
    """Return the geometric mean of a ratio over the seeds, and its 95 % confidence interval."""
    logs = np.log([each[above] / each[below] for each in found])
    mean = logs.mean()
    reach = stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs) if len(logs) > 1 else math.inf
    limits = {f"{key}_low": mean - reach, f"{key}_high": mean + reach}
    return {key: math.exp(mean)} | {name: math.exp(min(at, 99)) for name, at in limits.items()}


def one_seed(task: tuple[str, int, float, int, Sequence[str]]) -> dict[str, float]:
    """Do everything for one seed, in an order that changes from seed to seed."""
    name, seed, seconds, epochs, contenders = task
    application = applications.resolve(name)
    _ = application.data
    found: dict[str, float] = {}
    for contender in figures.in_turn(list(contenders), seed):
        evaluations = fronts(application, contender, seed, seconds)
        found[f"front_{contender}"] = volume(application, evaluations)
        found[f"count_{contender}"] = len(evaluations)
    for algorithm in SEARCHES:
        plain = curve(application, algorithm, "none", seed, epochs)
        goal = max(best for spent, best in plain if spent <= epochs / 2 or spent == plain[0][0])
        for stop in STOPS:
            known = plain if stop == "none" else curve(application, algorithm, stop, seed, epochs)
            needed = [spent for spent, best in known if best >= goal]
            found[f"stop_{algorithm}_{stop}"] = min([*needed, epochs])
    return found


def fronts(
    application: applications.Application, contender: str, seed: int, seconds: float
) -> list[Evaluation]:
    """Search for so many seconds; return the evaluations that worked."""
    begin = time.process_time()
    with cpp_store.embedded(memory="512MiB") as store:
        ours = contender == "ours"
        method = StoreTransfer(application.name, store) if ours else NoTransfer()
        trainer = TransferTrainer(application, application.space(), method)
        told: list[Evaluation] = []

        def evaluate(job: Job) -> Evaluation:
            evaluation = trainer.evaluate(job)
            if time.process_time() - begin < seconds and evaluation.done:
                told.append(evaluation)
            return evaluation

        if contender == "optuna":
            optuna_search(trainer, evaluate, seed, lambda: time.process_time() - begin >= seconds)
            return told
        kind = "random" if contender == "random" else "evolution"
        algorithm = make(kind, trainer, seed)
        algorithm.objectives = Objectives.of(AFTER, application)
        while time.process_time() - begin < seconds:
            (job,) = algorithm.ask()
            trainer.retire(algorithm.tell(evaluate(job)))
    return told


def make(kind: str, trainer: TransferTrainer, seed: int) -> Algorithm:
    if kind == "random":
        return RandomSearch(trainer.space, POPULATION, seed)
    return AgingEvolution(trainer.space, POPULATION, SAMPLE, seed)


def optuna_search(
    trainer: TransferTrainer,
    evaluate: Callable[[Job], Evaluation],
    seed: int,
    over: Callable[[], bool],
) -> None:
    """Search the trainer's space of genes with Optuna's NSGA-II."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    genes = trainer.space.genes  # type: ignore[attr-defined]
    while not over():
        trial = study.ask()
        genome = tuple(
            trial.suggest_categorical(gene.name, range(len(gene.values))) for gene in genes
        )
        evaluation = evaluate(Job(trial.number, genome, None, seed * 10_000 + trial.number))
        if evaluation.done:
            size = math.log10(float(evaluation.measures["parameters"]))
            study.tell(trial, [evaluation.objective, size])
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)


def volume(application: applications.Application, evaluations: Sequence[Evaluation]) -> float:
    """Return the hypervolume of accuracy and log10 of parameters."""
    reference = (1 / application.output_units, -largest(application.name))
    points = [
        (each.objective, -math.log10(float(each.measures["parameters"]))) for each in evaluations
    ]
    return hypervolume(points, reference)


@functools.cache
def largest(name: str) -> float:
    """Return log10 of the parameters of the largest of 1,000 random networks."""
    space, rng = applications.resolve(name).space(), np.random.default_rng(0)
    return max(math.log10(space.graph(space.sample(rng)).parameters) for _ in range(1000))


def curve(
    application: applications.Application, kind: str, stop: str, seed: int, epochs: int
) -> list[tuple[int, float]]:
    """Search for so many epochs; return epochs spent and the best so far after each candidate."""
    stopping = stopper(stop)
    with cpp_store.embedded(memory="512MiB") as store:
        ours = kind == "evolution"
        method = StoreTransfer(application.name, store) if ours else NoTransfer()
        trainer = TransferTrainer(application, application.space(), method)
        algorithm = make(kind, trainer, seed)
        spent, best, told = 0, -math.inf, []
        while spent < epochs:
            (job,) = algorithm.ask()
            report = stopping and functools.partial(stopping.report, job)
            evaluation = trainer.evaluate(job, report)
            spent += int(evaluation.measures.get("epochs", 0))
            if evaluation.done:
                best = max(best, evaluation.objective)
            told.append((spent, best))
            trainer.retire(algorithm.tell(evaluation))
    return told


if __name__ == "__main__":
    main()
