"""How fast are models generated and evolved without training, and how fast is Keras at it?

``python benchmarks/bench_generation.py --json FILE [--quick]`` prints a table and writes flat keys
to FILE. Commands are timed from outside, start of Python and MPI included, except for rates and
scaling (``*_per_s``, ``*_over_keras``, ``generate_scaling_1_to_2``): these leave out starting
Python, as Keras is not charged for importing TensorFlow either. Each figure is the best of three
runs (``--quick``: one), as anything else on the machine only ever makes them slower; runs of 1 and
2 ranks alternate. ``*_cpu_s`` is the processor time of all ranks, which other load hardly changes:
half of it is about what 2 ranks take on two cores of their own.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures

QUESTION = figures.Question(
    compares="generation without Keras with building and naming the same models in Keras, and one "
    "rank with two",
    seconds=150,
    quick_seconds=16,
    plots={"models per second on one rank, by space": r"(?P<series>.+)_models_per_s_1_rank"},
)
TARGETS: figures.Targets = {
    "generate_60000_s": ("at most", 10),
    "generate_over_keras": ("at least", 1000),
    "evolve_10000_s": ("at most", 5),
    "import_seconds": ("at most", 0.5),
    "help_imports_tensorflow": ("at most", 0),
    "generation_imports_tensorflow": ("at most", 0),
    "generate_scaling_1_to_2": ("at least", 1.7),
}

# Runs a command in this process and says whether it imported TensorFlow or Keras.
_IMPORTS = """
import contextlib, io, runpy, sys
sys.argv = ["evolve", *sys.argv[1:]]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    runpy.run_module("transfer_nas.evolve", run_name="__main__")
print(int("tensorflow" in sys.modules or "keras" in sys.modules))
"""

# Builds and names models in Keras; checks that the names are those of generation without it.
_KERAS = """
import json, sys, time
from graph_meta import keras_io
from transfer_nas.population import default_space, draw_genomes

space, count = default_space(None), int(sys.argv[1])
genomes = draw_genomes(space, 0, 0, count + 1).tolist()
expected = [space.graph(genome).digests for genome in genomes]
keras_io.from_keras(space.build(genomes[0])).digests  # imports TensorFlow
begin, cpu = time.perf_counter(), time.process_time()
found = [keras_io.from_keras(space.build(genome)).digests for genome in genomes[1:]]
seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
same = sum(sorted(a) == sorted(b) for a, b in zip(found, expected[1:]))
rates = {"models_per_s": count / seconds, "models_per_cpu_s": count / cpu}
print(json.dumps({**rates, "same": same / count}))
"""


def main() -> int:
    parser = figures.parser(__doc__, "a tenth of the models, one run each")
    given = parser.parse_args()
    models, children, repeats, sample = (
        (6_000, 1_000, 1, 3) if given.quick else (60_000, 10_000, 3, 20)
    )
    with tempfile.TemporaryDirectory(prefix="bench-generation-") as directory:
        results = {
            **generation(Path(directory), models, children, repeats),
            **imports(Path(directory), 1 if given.quick else 7),
            **spaces(2_000 if given.quick else 10_000),
            **worst_cases(),
        }
    keras = json.loads(python("-c", _KERAS, str(sample)).splitlines()[-1])
    results["keras_models_per_s"] = keras["models_per_s"]
    results["keras_same_digests"] = keras["same"]
    results["generate_over_keras"] = results["generate_models_per_s"] / keras["models_per_s"]
    # Two cores against one, as above, but by CPU time: what it would be on a machine that is idle.
    rate = 2 * models / results[f"generate_{models}_cpu_s"]
    results["generate_over_keras_by_cpu_time"] = rate / keras["models_per_cpu_s"]
    figures.finish("generation", results, TARGETS, given)
    return 0


def generation(directory: Path, models: int, children: int, repeats: int) -> dict[str, float]:
    """Time the commands at 1 and 2 ranks, and evolution from what they wrote."""
    seconds: dict[str, list[float]] = {}
    for repeat in range(repeats):
        for ranks in (1, 2):
            initial = directory / f"initial-{ranks}-{repeat}"
            evolved = directory / f"evolved-{ranks}-{repeat}"
            flags = [f"--population_size={models}", f"--output_dir={initial}", "--seed=0"]
            measure(ranks, flags, f"generate-{ranks}", seconds)
            flags = [
                f"--initial_population_dir={initial}",
                f"--evolve_count={children}",
                f"--output_dir={evolved}",
                "--seed=1",
            ]
            measure(ranks, flags, f"evolve-{ranks}", seconds)
    bytes_written = sum(path.stat().st_size for path in (directory / "initial-2-0").iterdir())
    best = {key: min(values) for key, values in seconds.items()}
    return {
        f"generate_{models}_s": best["generate-2"],
        f"generate_{models}_1_rank_s": best["generate-1"],
        f"generate_{models}_cpu_s": best["generate-2-cpu"],
        f"generate_{models}_1_rank_cpu_s": best["generate-1-cpu"],
        "generate_models_per_s": models / best["generate-2-inside"],
        "generate_scaling_1_to_2": best["generate-1-inside"] / best["generate-2-inside"],
        "generate_command_scaling_1_to_2": best["generate-1"] / best["generate-2"],
        "generate_bytes_per_model_on_disk": bytes_written / models,
        f"evolve_{children}_s": best["evolve-2"],
        f"evolve_{children}_1_rank_s": best["evolve-1"],
        f"evolve_{children}_cpu_s": best["evolve-2-cpu"],
    }


def measure(ranks: int, flags: list[str], key: str, seconds: dict[str, list[float]]) -> None:
    """Time one command from outside, its processor time, and what it says itself."""
    begin, cpu = time.perf_counter(), children_cpu()
    output = mpiexec(ranks, "-m", "transfer_nas.evolve", *flags, "--json")
    seconds.setdefault(key, []).append(time.perf_counter() - begin)
    seconds.setdefault(f"{key}-cpu", []).append(children_cpu() - cpu)
    seconds.setdefault(f"{key}-inside", []).append(json.loads(output)["seconds"])


def children_cpu() -> float:
    """Return the processor seconds of all processes that this one has started and waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def imports(directory: Path, repeats: int) -> dict[str, float]:
    """Time ``--help``, and look at what it and a generation import."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        python("-m", "transfer_nas.evolve", "--help")
        times.append(time.perf_counter() - begin)
    generate = ["--population_size=10", f"--output_dir={directory / 'imports'}"]
    return {
        "import_seconds": statistics.median(times),
        "help_imports_tensorflow": float(python("-c", _IMPORTS, "--help")),
        "generation_imports_tensorflow": float(python("-c", _IMPORTS, *generate)),
    }


def spaces(count: int) -> dict[str, float]:
    """Make, name and register models of every space, in one process."""
    from transfer_nas.spaces import REGISTRY

    rates = {}
    for name in REGISTRY:
        output = python(
            "-m",
            "transfer_nas.population.gen_models",
            f"--space={name}",
            f"--count={count}",
            "--json",
        )
        rates[f"{name}_models_per_s_1_rank"] = json.loads(output)["models_per_second"]
    return rates


def worst_cases() -> dict[str, float]:
    """Build and name graphs of unusual shapes, in this process."""
    from graph_meta import GraphBuilder, LayerGraph, layers

    def deep() -> LayerGraph:
        builder = GraphBuilder()
        edge = builder.input((8,))
        for _ in range(9_999):
            edge = builder.add(layers.dense(8), edge)
        return builder.build(edge)

    def wide() -> LayerGraph:
        builder = GraphBuilder()
        edge = builder.input((8,))
        terms = [builder.add(layers.dense(8 + i), edge) for i in range(1000)]
        return builder.build(builder.add(layers.concatenate(), *terms))

    def twins() -> LayerGraph:
        builder = GraphBuilder()
        edge = builder.input((8,))
        terms = [builder.add(layers.dense(8), edge) for _ in range(1000)]
        return builder.build(builder.add(layers.add(), *terms))

    cases: dict[str, Callable[[], LayerGraph]] = {
        "name_10000_layers_s": deep,
        "name_1000_inputs_s": wide,
        "name_1000_twins_s": twins,
    }
    fastest = {}
    for key, make in cases.items():
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            make().table.total_nbytes  # noqa: B018 - the property does the work
            times.append(time.perf_counter() - begin)
        fastest[key] = min(times)
    return fastest


def python(*arguments: str) -> str:
    return command(sys.executable, *arguments)


def mpiexec(ranks: int, *arguments: str) -> str:
    launcher = figures.program("mpiexec", "pip install mpich")
    if launcher is None:
        raise SystemExit("no mpiexec, no figures: pip install mpich")
    return command(launcher, "-n", str(ranks), sys.executable, *arguments)


def command(*arguments: str) -> str:
    # One BLAS thread: two ranks are to use two cores.
    environment: dict[str, Any] = os.environ | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=900)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
