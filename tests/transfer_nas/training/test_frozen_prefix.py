"""What frozen layers give is computed once, and training comes out as if it were not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graph_meta import GraphBuilder, LayerGraph, keras_io, layers
from graph_meta.graph import Edge
from transfer_nas.applications import Application, Data
from transfer_nas.training.keras_engine import KerasCandidate, KerasEngine

ROWS, EPOCHS = 90, 2


def images() -> Data:
    rng = np.random.default_rng(5)
    labels = rng.integers(3, size=130).astype(np.int32)
    x = (rng.normal(size=(3, 6, 6, 2))[labels] + rng.normal(size=(130, 6, 6, 2))).astype(np.float32)
    return Data(x[:ROWS], labels[:ROWS], x[ROWS:], labels[ROWS:])


APPLICATION = Application(
    name="images",
    load=images,
    input_shapes=[(6, 6, 2)],
    output_units=3,
    output_activation="softmax",
    loss="sparse_categorical_crossentropy",
    metric="sparse_categorical_accuracy",
    batch_size=32,
)


def network(body: Callable[[GraphBuilder, Edge], Edge]) -> LayerGraph:
    builder = GraphBuilder()
    edge = body(builder, builder.input((6, 6, 2)))
    return builder.build(builder.add(layers.dense(3, activation="softmax"), edge))


def chain(builder: GraphBuilder, edge: Edge, units: int = 8) -> Edge:
    edge = builder.add(layers.conv2d(4, 3, activation="relu"), edge)
    edge = builder.add(layers.batch_normalization(), edge)
    edge = builder.add(layers.flatten(), edge)
    edge = builder.add(layers.dense(units, activation="tanh"), edge)
    return builder.add(layers.dropout(0.25), edge)


def branches(builder: GraphBuilder, edge: Edge) -> Edge:
    """The rest takes two outputs of the prefix, one of them twice."""
    first = builder.add(layers.conv2d(4, 3, padding="same", activation="relu"), edge)
    second = builder.add(layers.conv2d(4, 1, activation="relu"), first)
    third = builder.add(layers.conv2d(4, 1), second)
    joined = builder.add(layers.add(), first, third)
    joined = builder.add(layers.add(), joined, second)
    return builder.add(layers.flatten(), builder.add(layers.add(), joined, first))


def frozen(graph: LayerGraph, count: int) -> list[str]:
    """Return the first layers that have weights."""
    each = zip(graph.names, graph.layers, strict=True)
    return [name for name, layer in each if layer.spec.weights][:count]


def engine(cache_bytes: int) -> KerasEngine:
    return KerasEngine(APPLICATION, 32, cache_bytes=cache_bytes)


def rest(engine: KerasEngine, candidate: KerasCandidate) -> Any:
    return engine._loop._prefixes.rest(candidate._model, candidate.graph)


def train(candidate: KerasCandidate, names: list[str]) -> tuple[list[float], dict[str, Any]]:
    training = candidate.training(names, epochs=EPOCHS)
    assert training is not None
    rng = np.random.default_rng(1)
    losses = [training.epoch(rng.permutation(ROWS), 0.01) for _ in range(EPOCHS)]
    weights = candidate.tensors(candidate.graph.names)
    return losses, {f"{n}/{i}": w for n, ws in weights.items() for i, w in enumerate(ws)}


@pytest.mark.parametrize(("body", "count"), [(chain, 2), (branches, 2)])
def test_training_comes_out_as_if_the_prefix_were_computed_each_time(
    body: Callable[[GraphBuilder, Edge], Edge], count: int
) -> None:
    graph = network(body)
    names = frozen(graph, count)
    results = []
    for cache_bytes in (2**20, 0):
        one = engine(cache_bytes)
        candidate = one.candidate(graph, seed=3)
        before = candidate.tensors(names)
        losses, weights = train(candidate, names)
        computed = rest(one, candidate)
        assert (computed is not None) == bool(cache_bytes)
        if computed is not None:
            left = {layer.name for layer in computed.model.layers}
            assert left.isdisjoint(names)
            assert left > set(frozen(graph, 99)[count:])
        assert all(
            a.tobytes() == b.tobytes()
            for name in names
            for a, b in zip(before[name], candidate.tensors([name])[name], strict=True)
        )
        results.append((losses, weights, candidate.validate()))
    (losses, weights, judged), (plain_losses, plain_weights, plain_judged) = results
    assert losses == pytest.approx(plain_losses, rel=1e-5)
    for name, weight in weights.items():
        np.testing.assert_allclose(weight, plain_weights[name], rtol=1e-4, atol=1e-5)
    assert judged == pytest.approx(plain_judged, rel=1e-4)


def test_a_training_goes_on_from_its_state() -> None:
    """In another process, as far as that can tell: with another engine, where nothing is kept."""
    graph = network(chain)
    names = frozen(graph, 2)
    order = np.arange(ROWS)
    begun = engine(2**20).candidate(graph, seed=3)
    inherited = begun.tensors(names)
    first = begun.training(names, epochs=3)
    assert first is not None
    first.epoch(order, 0.01)
    state = first.state()
    losses = [first.epoch(order, 0.01) for _ in range(2)]

    again = engine(2**20).candidate(graph, seed=4)
    again.load(inherited)
    second = again.training(names, epochs=3)
    assert second is not None
    second.restore(state)
    assert [second.epoch(order, 0.01) for _ in range(2)] == losses


def test_heirs_of_one_ancestor_share_what_was_computed() -> None:
    one = engine(2**20)
    small, large = network(chain), network(lambda b, e: chain(b, e, units=9))
    names = frozen(small, 2)
    assert names == frozen(large, 2)
    parent = one.candidate(small, seed=3)
    inherited = parent.tensors(names)
    tensors = []
    for graph, weights in ((small, inherited), (large, inherited), (large, None)):
        candidate = one.candidate(graph, seed=4)
        if weights is not None:
            candidate.load(weights)
        candidate.training(names, epochs=1)
        tensors.append(rest(one, candidate).activations)
    assert tensors[0] is tensors[1]
    assert tensors[2] is not tensors[1]
    assert not np.allclose(np.asarray(tensors[2]), np.asarray(tensors[1]))


def test_no_more_is_kept_than_is_allowed() -> None:
    graph = network(chain)
    names = frozen(graph, 2)
    room = 2 * ROWS * 4 * 4 * 4 * 4  # two prefixes
    one = engine(room)
    prefixes = one._loop._prefixes
    candidates = [one.candidate(graph, seed) for seed in (1, 2, 3)]
    for candidate in candidates:
        candidate.training(names, epochs=1)
    assert prefixes.nbytes == room
    second = rest(one, candidates[1]).activations
    rest(one, candidates[0])  # the third goes, as the second was used after it
    assert rest(one, candidates[1]).activations is second
    assert prefixes.nbytes == room
    assert rest(engine(room // 2 - 1), candidates[0]) is None


def noisy(builder: GraphBuilder, edge: Edge) -> Edge:
    edge = builder.add(layers.dropout(0.2), edge)
    return chain(builder, edge)


def test_what_is_random_or_changes_is_not_computed_ahead() -> None:
    import keras

    one = engine(2**20)

    def computed(graph: LayerGraph, names: list[str]) -> Any:
        candidate = one.candidate(graph, seed=1)
        candidate.training(names, epochs=1)
        return rest(one, candidate)

    # Behind a dropout nothing is fixed.
    assert computed(network(noisy), frozen(network(noisy), 2)) is None
    # A BatchNormalization that trains keeps its statistics, and what is behind it changes.
    names = frozen(network(chain), 3)
    (normalization,) = (name for name in names if name.startswith("BatchNormalization"))
    partly = computed(network(chain), [name for name in names if name != normalization])
    assert normalization in {layer.name for layer in partly.model.layers}
    # Nothing frozen has weights; everything trains.
    assert computed(network(chain), ["Flatten"]) is None
    assert computed(network(chain), []) is None

    @keras.saving.register_keras_serializable("frozen_prefix")
    class Own(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return inputs

    def with_layer(layer: Any) -> Any:
        inputs = keras.Input((6, 6, 2))
        x = layer(keras.layers.Conv2D(4, 3)(inputs))
        x = keras.layers.Dense(3, "softmax")(keras.layers.Flatten()(keras.layers.Conv2D(4, 1)(x)))
        graph = keras_io.from_keras(keras.Model(inputs, x))
        left = computed(graph, frozen(graph, 2))
        return [layer.name.split("_")[0] for layer in left.model.layers]

    for layer in (
        Own(),
        keras.layers.GaussianNoise(0.1),
        keras.layers.ActivityRegularization(0.1),
    ):
        assert "Conv2D" in with_layer(layer)
    assert "Conv2D" not in with_layer(keras.layers.ReLU())


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_traces_leave_nothing_behind(activation: str) -> None:
    """TensorFlow keeps the gradient of silu, and with it the graph, for each trace."""
    import gc

    import keras

    if keras.backend.backend() != "tensorflow":
        pytest.skip("of TensorFlow's graphs")
    from tensorflow.python.framework.func_graph import FuncGraph

    def graphs() -> int:
        gc.collect()
        return sum(isinstance(each, FuncGraph) for each in gc.get_objects())

    def body(builder: GraphBuilder, edge: Edge) -> Edge:
        edge = builder.add(layers.flatten(), edge)
        return builder.add(layers.dense(8, activation=activation), edge)

    one = engine(0)
    counts = []
    for seed in range(3):
        candidate: KerasCandidate | None = one.candidate(network(body), seed)
        train(candidate, [])
        candidate = None
        counts.append(graphs())
    assert counts[2] <= counts[0]


def test_what_is_frozen_inside_a_layer_stays_so() -> None:
    import keras

    x = keras.Input((6, 6, 2))
    inner = keras.Sequential([keras.Input((6, 2)), keras.layers.Dense(2), keras.layers.Dense(3)])
    inner.layers[0].trainable = False
    adapted = keras.layers.Dense(4)
    y = keras.layers.Flatten()(adapted(keras.layers.TimeDistributed(inner)(x)))
    adapted.enable_lora(2)
    graph = keras_io.from_keras(keras.Model(x, keras.layers.Dense(3, "softmax")(y)))
    name, other = graph.names[1:3]
    candidate = engine(0).candidate(graph, 3)
    before = {key: list(arrays) for key, arrays in candidate.tensors(graph.names).items()}
    train(candidate, [name])
    assert all(map(np.array_equal, candidate.tensors([name])[name], before[name]))
    train(candidate, [])
    after = candidate.tensors(graph.names)
    changed = {
        key: [not np.array_equal(*pair) for pair in zip(arrays, before[key], strict=True)]
        for key, arrays in after.items()
    }
    assert changed[name] == [False, False, True, True]
    assert changed[other][0] is False  # the kernel, which adapters are added to
    assert changed[other][3] is True
