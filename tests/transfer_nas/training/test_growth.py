"""Layers behind the prefix start from an ancestor's, and the function stays where it can."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graph_meta import GraphBuilder, LayerGraph, layers
from transfer_nas.training.arrays.plan import Plan, new_weights
from transfer_nas.training.arrays.program import Program
from transfer_nas.training.growth import grow

Weights = dict[str, list[np.ndarray]]


def network(
    first: int = 5,
    second: int = 4,
    third: int = 6,
    *,
    activation: str = "tanh",
    skip: bool = False,
    between: str | None = None,
    normalized: bool = False,
) -> LayerGraph:
    """Return a network with a concatenation, whose shape can change in every way."""
    builder = GraphBuilder()
    features = builder.input((7,))
    edge = builder.add(layers.dense(first, activation="relu"), features)
    if between is not None:
        edge = builder.add(layers.dense(first, activation=between), edge)
    edge = builder.add(layers.dense(second, activation=activation), edge)
    if normalized:
        edge = builder.add(layers.batch_normalization(), edge)
    last = builder.add(layers.dense(third), builder.add(layers.dropout(0.1), edge))
    if skip:
        last = builder.add(layers.add(), last, builder.add(layers.dense(third), features))
    return builder.build(
        builder.add(layers.dense(3), builder.add(layers.concatenate(), last, edge))
    )


def some_weights(graph: LayerGraph, seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {
        name: [w + np.abs(rng.normal(size=w.shape)).astype(np.float32) / 5 for w in new]
        for name, layer in zip(graph.names, graph.layers, strict=True)
        if (new := new_weights(layer.spec, rng) if layer.spec.weights else [])
    }


def outputs(graph: LayerGraph, weights: Weights) -> np.ndarray:
    plan = Plan.of(graph)
    assert plan is not None
    program = Program(plan, plan.steps, weights, {}, np.random.default_rng(0))
    x = np.random.default_rng(1).normal(size=(11, 7)).astype(np.float32)
    return program.forward({plan.inputs[0]: x}, training=False)[plan.output]


def started(child: LayerGraph, ancestor: LayerGraph, weights: Weights) -> tuple[Weights, Weights]:
    """Return a child's weights as a trainer starts them, and those of them that were grown."""
    grown = dict(grow(child, ancestor, weights, np.random.default_rng(2)))
    shared = {name: weights[name] for name in child.names if name in weights}
    assert not grown.keys() & shared.keys()
    return some_weights(child, seed=9) | shared | grown, grown


PRESERVING: list[dict[str, Any]] = [
    {"first": 9},
    {"first": 17},  # three times as many, and more
    {"second": 7},
    {"third": 8},
    {"first": 8, "third": 7},
    {"skip": True},
    {"between": "linear"},
    {"between": "relu"},
]


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("change", PRESERVING, ids=str)
def test_the_function_is_preserved(change: dict[str, Any], normalized: bool) -> None:
    ancestor = network(normalized=normalized)
    child = network(normalized=normalized, **change)
    weights = some_weights(ancestor, seed=0)

    start, grown = started(child, ancestor, weights)

    assert grown
    expected = outputs(ancestor, weights)
    np.testing.assert_allclose(outputs(child, start), expected, rtol=1e-4, atol=1e-5)
    for name, arrays in start.items():
        assert [a.dtype for a in arrays] == [np.float32] * len(arrays), name


def test_repeated_units_are_not_one_for_ever() -> None:
    """They get the same input and would get the same gradient if they had the same output."""
    ancestor, child = network(), network(third=12)
    _, grown = started(child, ancestor, some_weights(ancestor, seed=0))
    (head,) = (arrays[0] for arrays in grown.values() if arrays[0].shape[1] == 3)
    assert not np.allclose(head[:6], head[6:12])


@pytest.mark.parametrize("change", [{"first": 3}, {"activation": "relu"}, {"second": 2}], ids=str)
def test_what_is_left_is_a_start(change: dict[str, Any]) -> None:
    ancestor, child = network(), network(**change)
    weights = some_weights(ancestor, seed=0)
    start, grown = started(child, ancestor, weights)
    assert len(grown) >= 3
    whole = np.concatenate([a.reshape(-1) for ts in weights.values() for a in ts])
    kept = [np.isin(a, whole).mean() for ts in grown.values() for a in ts]
    assert np.mean(kept) > 0.5
    assert np.isfinite(outputs(child, start)).all()


def test_networks_that_have_nothing_in_common_start_anew() -> None:
    builder = GraphBuilder()
    edge = builder.add(layers.conv1d(4, 3), builder.input((9, 2)))
    other = builder.build(builder.add(layers.global_average_pooling1d(), edge))
    rng = np.random.default_rng(0)
    tensors = {
        other.names[1]: [np.zeros(w.shape, np.float32) for w in other.layers[1].spec.weights]
    }
    assert grow(network(), other, tensors, rng) == {}
