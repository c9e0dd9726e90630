"""Our search under DeepHyper's evaluators, and training with transfer under DeepHyper."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ConfigSpace
import numpy as np
import pytest
from deephyper.analysis.hpo import (
    filter_failed_objectives,
    parameters_from_row,
    read_results_from_csv,
)
from deephyper.evaluator import Evaluator
from deephyper.hpo import HpProblem

from transfer_nas import spaces
from transfer_nas.algorithms import evolution
from transfer_nas.deephyper import (
    AgingEvolution,
    TransferEvaluation,
    genes_of,
    genome_of,
    problem_of,
)
from transfer_nas.errors import InputError, SpaceError
from transfer_nas.job import DONE, Evaluation
from transfer_nas.searching.manager import Manager
from transfer_nas.searching.run_directory import RunDirectory
from transfer_nas.spaces import FeedForward, Gene

SPACE = FeedForward([(4,)], 2, max_depth=2)


def run(job: Any) -> dict[str, Any]:
    """Wide networks are good; every seventh evaluation fails."""
    if job["job_id"] % 7 == 6:
        return {"objective": "F_as_asked", "metadata": {"layers": 0}}
    genome = genome_of(SPACE, job)
    return {"objective": float(sum(genome)), "metadata": {"layers": len(SPACE.graph(genome))}}


async def run_asynchronously(job: Any) -> dict[str, Any]:
    return run(job)


@pytest.mark.parametrize("method", ["serial", "thread", "process"])
def test_the_search_runs_under_an_evaluator(tmp_path: Path, method: str) -> None:
    evaluator = Evaluator.create(
        run_asynchronously if method == "serial" else run,
        method=method,
        method_kwargs={"num_workers": 2},
    )
    search = AgingEvolution(
        problem_of(SPACE), random_state=1, log_dir=str(tmp_path), population_size=8, sample_size=4
    )
    results = search.search(evaluator, max_evals=60)
    assert 60 <= len(results) <= 62
    read, _ = filter_failed_objectives(read_results_from_csv(str(tmp_path / "results.csv")))
    assert len(read) < len(results)
    best = parameters_from_row(read.loc[read["objective"].idxmax()])
    genome = genome_of(SPACE, best)
    assert sum(genome) == read["objective"].max()
    # Evolution has found what random genomes hardly ever are.
    assert read["objective"].max() > read["objective"][:8].max()
    assert read["m:layers"].between(2, 6).all()


def test_results_of_our_own_engine_open_in_its_analysis(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, SPACE, {}, {}) as directory:
        manager = Manager(
            evolution.AgingEvolution(SPACE, 4, 2, seed=1),
            directory,
            max_evals=20,
            retire=lambda jobs: None,
            report=lambda status: None,
            warn=print,
        )
        for job in manager.next_jobs(20):
            objective = math.nan if job.id == 3 else float(sum(job.architecture))
            status = "F_nan" if job.id == 3 else DONE
            manager.finished(Evaluation(job, status, objective, {"layers": 4}), rank=0)
        manager.commit()
    read, _ = filter_failed_objectives(read_results_from_csv(str(tmp_path / "results.csv")))
    assert len(read) == 19
    best = parameters_from_row(read.loc[read["objective"].idxmax()])
    assert sum(genome_of(SPACE, best)) == read["objective"].max()


def test_children_differ_from_a_member_in_one_gene() -> None:
    search = AgingEvolution(problem_of(SPACE), random_state=3, population_size=5, sample_size=2)
    told: list[dict[str, Any]] = []
    for _ in range(30):
        (configuration,) = search.ask()
        if len(told) >= 5:
            distances = [
                sum(member[name] != configuration[name] for name in member) for member in told[-5:]
            ]
            assert min(distances) in (0, 1) and 1 in distances
        search.tell([(configuration, float(len(told)))])
        told.append(configuration)


def test_equal_seeds_ask_the_same() -> None:
    def asked(seed: int) -> list[dict[str, Any]]:
        search = AgingEvolution(
            problem_of(SPACE), random_state=seed, population_size=4, sample_size=2
        )
        configurations = []
        for step in range(12):
            (configuration,) = search.ask()
            search.tell([(configuration, step % 5)])
            configurations.append(configuration)
        return configurations

    assert asked(1) == asked(1) != asked(2)


def test_a_search_goes_on_from_its_results(tmp_path: Path) -> None:
    def search(**options: Any) -> AgingEvolution:
        return AgingEvolution(
            problem_of(SPACE), random_state=1, log_dir=str(tmp_path), population_size=8,
            sample_size=8, **options,
        )  # fmt: skip

    first = search().search(Evaluator.create(run, method="thread"), max_evals=30)
    again = search(checkpoint_restart=True)
    results = again.search(Evaluator.create(run, method="thread"), max_evals=30)
    assert len(results) == 60
    assert results["job_id"].is_unique
    # The first child comes from the population that was left: from its best, in one gene.
    good, _ = filter_failed_objectives(first)
    parent = parameters_from_row(good.iloc[-8:].sort_values("objective").iloc[-1])
    child = parameters_from_row(results.iloc[30])
    values = [g.values.index(child[g.name]) for g in SPACE.genes]
    old = [g.values.index(parent[g.name]) for g in SPACE.genes]
    ties = good.iloc[-8:]["objective"].value_counts().max()
    assert ties > 1 or sum(a != b for a, b in zip(values, old, strict=True)) == 1


@pytest.mark.parametrize("name", sorted(spaces.REGISTRY))
def test_a_space_becomes_a_problem_and_genes_again(name: str) -> None:
    space = spaces.find(name).example()
    problem = problem_of(space)
    by_name = {gene.name: gene for gene in genes_of(problem)}
    assert by_name == {gene.name: gene for gene in space.genes}
    rng = np.random.default_rng(0)
    for _ in range(20):
        genome = space.sample(rng)
        assert genome_of(space, space.values(genome)) == genome
    for configuration in problem.sample(5):
        space.graph(genome_of(space, configuration))


def test_ranges_become_genes_where_that_has_a_meaning() -> None:
    problem = HpProblem()
    problem.add((1, 4), "depth")
    problem.add((16, 1024, "log-uniform"), "width")
    problem.add((1e-4, 1e-1, "log-uniform"), "rate")
    problem.add(["relu", "tanh"], "activation")
    problem.add([True, False], "skip")
    problem.add(7, "fixed")
    found = {gene.name: gene.values for gene in genes_of(problem, steps=4)}
    assert found["depth"] == (1, 2, 3, 4)
    assert found["width"] == (16, 64, 256, 1024)
    assert found["rate"] == pytest.approx((1e-4, 1e-3, 1e-2, 1e-1))
    assert set(found["activation"]) == {"relu", "tanh"} and set(found["skip"]) == {True, False}
    assert found["fixed"] == (7,)
    with pytest.raises(
        InputError, match=r"hyperparameter rate: no gene for a UniformFloat.*steps=N"
    ):
        genes_of(problem)


def test_says_what_it_cannot_do() -> None:
    problem = HpProblem()
    x = problem.add_hyperparameter((0, 3), "x")
    y = problem.add_hyperparameter((0, 3), "y")
    problem.add(ConfigSpace.EqualsCondition(y, x, 1))
    with pytest.raises(InputError, match="conditions or forbidden clauses has no genomes"):
        AgingEvolution(problem)
    search = AgingEvolution(problem_of(SPACE), population_size=2, sample_size=1)
    with pytest.raises(InputError, match="one objective, not 2"):
        search.tell([(search.ask()[0], (1.0, 2.0))])
    with pytest.raises(SpaceError, match="the configuration lacks a value for layer_0"):
        genome_of(SPACE, {})
    wrong = SPACE.values(SPACE.sample(np.random.default_rng(0))) | {"layer_0": "9_relu"}
    with pytest.raises(SpaceError, match=r"layer_0: expected one of \['none', .* found '9_relu'"):
        genome_of(SPACE, wrong)
    with pytest.raises(InputError, match="transfer must be store or noop, not 'redis'"):
        TransferEvaluation("digits", transfer="redis")


def test_training_with_transfer_under_processes(tmp_path: Path) -> None:
    # In a process of its own: the evaluator forks, which must happen before TensorFlow works.
    program = Path(__file__).with_name("deephyper_training.py")
    done = subprocess.run(
        [sys.executable, program, tmp_path],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    results = read_results_from_csv(str(tmp_path / "results.csv"))
    assert len(results) >= 8 and results["objective"].between(0, 1).all()
    # Children inherit what another process stored.
    inherited = results[results["m:layers_transferred"] > 0]
    assert len(inherited) >= 3 and inherited["m:ancestor"].notna().all()
    assert results["m:transfer_error"].isna().all()
    # Models of members that died have left the store. DeepHyper does not tell the last result.
    assert found["members"] == 2 and found["stored"] in (2, 3)
    assert found["accuracy of best.keras"] == pytest.approx(results["objective"].max(), abs=1e-6)
    # Evaluated again here, a configuration finds its own model.
    assert found["again"]["layers_transferred"] == found["again"]["layers"]
    assert found["again"]["transfer_error"] == ""
    assert "or use the evaluator 'loky'" in found["forked too late"]


def test_a_server_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_SERVERS", "ofi+tcp://127.0.0.1:1")
    transfer = TransferEvaluation("breast_cancer")
    with pytest.raises(InputError, match=r"no store at ofi.tcp://127.0.0.1:1"):
        transfer._store()


def test_a_restarted_search_knows_what_was_chosen(tmp_path: Path) -> None:
    """Whatever pandas takes texts for, and though failures make texts of all objectives."""
    genes = (
        Gene("text", ("None", "NA", "16", "True", "", "one\ntwo")),
        Gene("mixed", (True, 2, "no")),
        Gene("size", (1, 2, 3, 4)),
    )
    space = FeedForward([(4,)], 2)
    space.genes = genes

    def judge(job: Any) -> dict[str, Any]:
        failed = job["size"] == 4
        return {"objective": "F_size" if failed else float(job["size"]), "metadata": {"n": 1}}

    def search(**options: Any) -> AgingEvolution:
        return AgingEvolution(
            problem_of(space), random_state=1, log_dir=str(tmp_path), population_size=50,
            sample_size=2, **options,
        )  # fmt: skip

    def evaluator() -> Evaluator:
        return Evaluator.create(judge, method="thread", method_kwargs={"num_workers": 1})

    first = search()
    first.search(evaluator(), max_evals=30)
    again = search(checkpoint_restart=True)
    again.search(evaluator(), max_evals=1)
    before = [(member.job.architecture, member.objective) for member in first._evolution.population]
    after = [(member.job.architecture, member.objective) for member in again._evolution.population]
    assert len(before) < 30 and after[: len(before)] == before


def test_a_problem_of_one_configuration_is_refused() -> None:
    space = FeedForward([(4,)], 2)
    space.genes = (Gene("a", (1,)),)
    with pytest.raises(InputError, match="one configuration: there is nothing to search"):
        AgingEvolution(problem_of(space), population_size=2, sample_size=1)
