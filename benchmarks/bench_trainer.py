"""How long does a candidate take from its genome to its score?

``python benchmarks/bench_trainer.py [--json FILE] [--quick]`` prints a table and writes flat keys.

``speedup_over_keras_fit_5_epochs``: networks of the digits' space, each new, trained for five
epochs and judged, by the TransferTrainer and by Keras as one uses it (build, compile, ``fit``,
``evaluate``); same graphs, data and batch size. ``…_steps_per_execution`` compares with a ``fit``
that runs an epoch in one call; ``keras_engine_…`` is the trainer's own loop on TensorFlow, for what
NumPy does not know. ``score_difference`` is the difference of the mean scores: they start from
other random weights.

``overhead_share``: what match, load and put take of the evaluation of a child on digits that trains
for the application's epochs, policy ``freeze``; median over a chain of mutations.
``overhead_share_brief`` is the same by default, where a child reads its whole parent and trains for
a fifth of the epochs.

``frozen_prefix_speedup``: an epoch of four dense layers of 512 units and a softmax, of which the
first three, three quarters of the parameters, are frozen: with the frozen prefix computed each
time, over with it computed once for all. ``frozen_prefix_saves`` counts the one computation of the
prefix against the five epochs. ``keras_frozen_prefix_…``: the same by the trainer's loop on Keras,
where the one computation goes with tracing what is left of the network, against tracing all.
``keras_frozen_prefix_again_ms`` is what it takes to begin the training of another candidate with
the same frozen prefix, ``…_first_ms`` of the first one.

Contenders take turns; figures are ratios of medians, after a warm-up.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # of NumPy; TensorFlow takes all cores
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import figures
import numpy as np

import cpp_store
from graph_meta import GraphBuilder, LayerGraph, layers
from transfer_nas import applications
from transfer_nas.applications import Application, Data
from transfer_nas.job import Job
from transfer_nas.spaces import Space
from transfer_nas.trainer import TransferTrainer
from transfer_nas.training import Training
from transfer_nas.training.arrays.engine import ArrayEngine
from transfer_nas.training.keras_engine import KerasEngine
from transfer_nas.training.policy import Policy
from transfer_nas.transfer import NoTransfer, StoreTransfer

QUESTION = figures.Question(
    compares="evaluations of new networks with Keras' fit, and frozen prefixes computed once or "
    "each time",
    seconds=150,
    quick_seconds=34,
)
TARGETS: figures.Targets = {
    "speedup_over_keras_fit_5_epochs": ("at least", 3.0),
    "overhead_share": ("at most", 0.02),
    "frozen_prefix_speedup": ("at least", 2.0),
}
EPOCHS = 5


def main() -> None:
    parser = figures.parser(__doc__, "fewer networks")
    given = parser.parse_args()
    results = measure_speedup(3 if given.quick else 12)
    children = 12 if given.quick else 60
    results |= measure_overhead("", Policy("freeze", grow=False), children)
    results |= measure_overhead("_brief", Policy("freeze"), children)
    results |= measure_frozen_prefix(5 if given.quick else 15)
    results |= measure_keras_frozen_prefix(5 if given.quick else 15)
    figures.finish("trainer", results, TARGETS, given)


def measure_speedup(networks: int) -> dict[str, float]:
    """Train networks with each contender; every network is new to it."""
    application = applications.resolve("digits")
    space = application.space()
    rng = np.random.default_rng(0)
    contenders: dict[str, Callable[[tuple[int, ...], int], float]] = {
        "trainer": evaluating(application, space, "auto"),
        "keras_engine": evaluating(application, space, "keras"),
        "keras_fit": lambda genome, seed: fitted(application, space, genome, seed, 1),
        "keras_fit_steps_per_execution": lambda genome, seed: fitted(
            application, space, genome, seed, 22
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    scores: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(networks + 1):
        genome = space.sample(rng)
        for name, evaluate in contenders.items():
            begin = time.perf_counter()
            score = evaluate(genome, number)
            if number:  # the first is warm-up
                seconds[name].append(time.perf_counter() - begin)
                scores[name].append(score)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    mean = {name: statistics.mean(found) for name, found in scores.items()}
    return {
        "evaluation_ms": 1e3 * median["trainer"],
        "keras_engine_evaluation_ms": 1e3 * median["keras_engine"],
        "keras_fit_ms": 1e3 * median["keras_fit"],
        "speedup_over_keras_fit_5_epochs": median["keras_fit"] / median["trainer"],
        "speedup_over_keras_fit_steps_per_execution": (
            median["keras_fit_steps_per_execution"] / median["trainer"]
        ),
        "keras_engine_speedup_over_keras_fit": median["keras_fit"] / median["keras_engine"],
        "score_difference": mean["trainer"] - mean["keras_fit"],
    }


def evaluating(
    application: Application, space: Space, engine: str
) -> Callable[[tuple[int, ...], int], float]:
    """Return what evaluates a genome with our trainer."""
    trainer = TransferTrainer(application, space, NoTransfer(), epochs=EPOCHS, engine=engine)
    return lambda genome, seed: trainer.evaluate(Job(seed, genome, None, seed)).objective


def fitted(
    application: Application, space: Space, genome: tuple[int, ...], seed: int, steps: int
) -> float:
    """Train with plain Keras; return the score."""
    import keras

    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    model = space.build(genome)
    model.compile(
        optimizer=keras.optimizers.Adam(application.learning_rate),
        loss=application.terms.loss,
        metrics=[application.terms.metric],
        steps_per_execution=steps,
    )
    data, batch_size = application.data, application.batch_size
    model.fit(data.x_train, data.y_train, batch_size=batch_size, epochs=EPOCHS, verbose=0)
    _, score = model.evaluate(data.x_valid, data.y_valid, batch_size=512, verbose=0)
    return float(score)


def measure_overhead(key: str, policy: Policy, children: int) -> dict[str, float]:
    """Follow a chain of mutations, each of which starts from the one before."""
    application = applications.resolve("digits")
    space = application.space()
    rng = np.random.default_rng(1)
    shares, evaluations = [], []
    with cpp_store.embedded(memory="256MiB") as store:
        method = StoreTransfer("digits", store)
        trainer = TransferTrainer(application, space, method, policy=policy)
        genome = space.sample(rng)
        for number in range(children):
            begin = time.perf_counter()
            parent = number - 1 if number else None
            measures = trainer.evaluate(Job(number, genome, parent, number)).measures
            whole = time.perf_counter() - begin
            overhead = sum(
                float(measures.get(f"{step}_seconds", 0)) for step in ("match", "load", "store")
            )
            if number and measures["layers_transferred"]:
                shares.append(overhead / whole)
                evaluations.append(whole)
            genome = space.mutate(genome, rng)
    return {
        f"overhead_share{key}": statistics.median(shares),
        f"child_evaluation{key}_ms": 1e3 * statistics.median(evaluations),
    }


def measure_frozen_prefix(repetitions: int) -> dict[str, float]:
    """Train the last quarter of a chain, with its prefix computed once and each time."""
    graph, task = chain()
    engine = ArrayEngine(task, task.batch_size, EPOCHS)
    candidate = engine.candidate(graph, 0)
    begin = time.perf_counter()
    cached = candidate.training(prefix_of(graph), epochs=EPOCHS)
    once = time.perf_counter() - begin
    # With a single epoch computing it ahead does not pay.
    plain = engine.candidate(graph, 0).training(prefix_of(graph), epochs=1)
    assert cached is not None and plain is not None
    epoch = epoch_seconds({"cached": cached, "plain": plain}, repetitions)
    return {
        "frozen_prefix_speedup": epoch["plain"] / epoch["cached"],
        "frozen_prefix_saves": EPOCHS * epoch["plain"] / (once + EPOCHS * epoch["cached"]),
    }


def measure_keras_frozen_prefix(repetitions: int) -> dict[str, float]:
    """Do the same with Keras."""
    graph, task = chain()
    engines = {
        "cached": KerasEngine(task, task.batch_size),
        "plain": KerasEngine(task, task.batch_size, cache_bytes=0),
    }
    begun: dict[str, list[float]] = {}
    trainings = {}
    for name in ("plain", "cached", "plain", "cached"):
        candidate = engines[name].candidate(graph, 0)  # of equal weights, as the seeds are
        begin = time.perf_counter()
        training = candidate.training(prefix_of(graph), epochs=EPOCHS)
        begun.setdefault(name, []).append(time.perf_counter() - begin)
        assert training is not None
        trainings[name] = training
    epoch = epoch_seconds(trainings, repetitions)
    first, again = begun["cached"]
    whole = {name: begun[name][-1] + EPOCHS * epoch[name] for name in engines}
    return {
        "keras_frozen_prefix_speedup": epoch["plain"] / epoch["cached"],
        "keras_frozen_prefix_saves": whole["plain"] / (whole["cached"] + first - again),
        "keras_frozen_prefix_first_ms": 1e3 * first,
        "keras_frozen_prefix_again_ms": 1e3 * again,
    }


def prefix_of(graph: LayerGraph) -> list[str]:
    """Return three quarters of the dense layers before the last."""
    weighted = [name for name in graph.names if name.startswith("Dense")]
    return weighted[: 3 * (len(weighted) - 1) // 4]


def epoch_seconds(trainings: Mapping[str, Training], repetitions: int) -> dict[str, float]:
    """Return the medians of epochs that take turns, after one each."""
    _, task = chain()
    order = np.arange(len(task.data.y_train))
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    for number in range(repetitions + 1):
        for name, training in trainings.items():
            begin = time.perf_counter()
            training.epoch(order, 1e-3)
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


def chain(width: int = 512, depth: int = 4) -> tuple[LayerGraph, Application]:
    """Return a chain of dense layers, and rows for it."""
    builder = GraphBuilder()
    edge = builder.input((width,))
    for _ in range(depth):
        edge = builder.add(layers.dense(width, activation="relu"), edge)
    graph = builder.build(builder.add(layers.dense(10, activation="softmax"), edge))

    def load() -> Data:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2_048, width)).astype(np.float32)
        y = rng.integers(10, size=2_048).astype(np.int32)
        return Data(x, y, x[:10], y[:10])

    return graph, Application(
        name="chain",
        load=load,
        input_shapes=[(width,)],
        output_units=10,
        output_activation="softmax",
        loss="sparse_categorical_crossentropy",
        metric="sparse_categorical_accuracy",
        batch_size=256,
    )


if __name__ == "__main__":
    main()
