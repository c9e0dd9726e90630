"""Layer graphs: what they check, JSON there and back, the builder."""

import json
import math
import random
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_meta import (
    Call,
    Edge,
    GraphBuilder,
    GraphError,
    Layer,
    LayerGraph,
    LayerSpec,
    WeightSpec,
    layers,
)
from tests.graph_meta.random_graphs import random_graph

INPUT = Layer(LayerSpec("InputLayer", {"batch_shape": [None, 4]}), (Call(()),))
DENSE = LayerSpec("Dense", {"units": 3}, [WeightSpec((4, 3)), WeightSpec((3,), "bfloat16")])


def small() -> LayerGraph:
    return LayerGraph([INPUT, Layer(DENSE, (Call((Edge(0),)),))], [Edge(0)], [Edge(1)])


def test_sizes() -> None:
    graph = small()
    assert (len(graph), graph.parameters, graph.nbytes) == (2, 15, 4 * 12 + 2 * 3)
    assert graph.table.total_nbytes == graph.nbytes
    assert graph.table.requires == [[], [0]]


def test_equality_and_hash_are_by_value() -> None:
    assert small() == small()
    assert hash(small()) == hash(small())
    assert small() != LayerGraph(small().layers, [Edge(0)], [Edge(0)])
    assert len({small(), small()}) == 1


@pytest.mark.parametrize(
    ("layers", "inputs", "outputs", "message"),
    [
        ([INPUT], [Edge(0)], [], "no outputs"),
        ([INPUT], [Edge(0)], [Edge(1)], "layer 1, which is not there"),
        ([INPUT, Layer(DENSE, ())], [Edge(0)], [Edge(0)], r"layer 1 \(Dense\) is never called"),
        (
            [INPUT, Layer(DENSE, (Call((Edge(1),)),))],
            [Edge(0)],
            [Edge(1)],
            r"layer 1 \(Dense\) is the layer itself; a layer that feeds itself",
        ),
        (
            [INPUT, Layer(DENSE, (Call((Edge(2),)),)), Layer(DENSE, (Call((Edge(1),)),))],
            [Edge(0)],
            [Edge(2)],
            r"an input of layer 1 \(Dense\) is layer 2 \(Dense\), which comes later: .*cycle",
        ),
        (
            [INPUT, Layer(DENSE, (Call((Edge(0, call=1),)),))],
            [Edge(0)],
            [Edge(1)],
            r"call 1, tensor 0 of layer 0 \(InputLayer\), which has 1 call",
        ),
        (
            [INPUT, Layer(DENSE, (Call((Edge(0),)),))],
            [Edge(1)],
            [Edge(1)],
            r"layer 1 \(Dense\) is listed as an input",
        ),
    ],
)
def test_a_graph_that_cannot_be_is_refused(
    layers: list[Layer], inputs: list[Edge], outputs: list[Edge], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        LayerGraph(layers, inputs, outputs)


class Gate:
    """Something that JSON cannot hold."""


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation": lambda x: x}, r"layer class Dense\.activation: a function .*register"),
        (
            {"gates": [1, Gate()]},
            r"layer class Dense\.gates\[1\]: an object of class Gate ",
        ),
        ({"cell": "<Cell object at 0x7f001234>"}, r"Dense\.cell: .*address of an object"),
        ({"rate": float("nan")}, r"Dense\.rate: nan"),
        ({"table": {1: "a"}}, r"Dense\.table: the key 1 is not a string"),
    ],
)
def test_a_configuration_without_a_stable_form_is_refused(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        LayerSpec("Dense", config)


def test_the_name_and_whether_it_is_trainable_are_no_part_of_a_layer() -> None:
    spec = LayerSpec("Dense", {"units": 3, "name": "head", "trainable": False})
    assert spec == LayerSpec("Dense", {"units": 3})
    assert spec != LayerSpec("Dense", {"units": 3}, [WeightSpec((4, 3))])


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False))
def test_json_there_and_back(rng: random.Random) -> None:
    graph = random_graph(rng)
    text = graph.to_json()
    again = LayerGraph.from_json(text)
    assert again == graph
    assert again.names == graph.names
    assert again.to_json() == text


def edited(**changes: Any) -> str:
    return json.dumps(json.loads(small().to_json()) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "the document is a list, expected an object"),
        (edited(format="graph"), '"format" is not "layer-graph"'),
        (
            edited(version=1),
            "expected version 2 of layer graphs, found 1, in",
        ),
        (edited(version=True), "found True"),
        (edited(layers=None), "the document.layers is null, expected a list"),
        (edited(specs=[{"class": "Dense", "config": {}}]), r'specs\[0\] has no "weights"'),
        (edited(specs=[{"class": 3, "config": {}, "weights": []}]), r"class is an integer"),
        (edited(specs=[{"class": "", "config": {}, "weights": []}]), r"class is empty"),
        (
            edited(specs=[{"class": "D", "config": {}, "weights": [[[-1], "float32", True]]}]),
            r"specs\[0\]\.weights\[0\]\[0\]\[0\] is -1",
        ),
        (
            edited(specs=[{"class": "D", "config": {}, "weights": [[[1], "float33", True]]}]),
            r"specs\[0\]: .*weight dtype 'float33' is unknown",
        ),
        (edited(layers=[{"spec": 5, "calls": []}]), r"layers\[0\]\.spec is 5, but there are 2"),
        (edited(layers=[{"spec": 0, "calls": []}]), r"layer 0 \(InputLayer\) is never called"),
        (
            edited(layers=[{"spec": 0, "calls": [{"inputs": [[0, 0]]}]}]),
            r"layers\[0\]\.calls\[0\]\.inputs\[0\] is not \[layer, call, tensor\]",
        ),
        (
            edited(layers=[{"spec": 0, "calls": [{"inputs": [[0.0, 0, 0]]}]}]),
            "is a number with a fraction, expected an integer",
        ),
        (
            edited(layers=[{"spec": 0, "calls": [{"inputs": [], "arguments": "x"}]}]),
            "arguments is a string, expected an object",
        ),
        (
            edited(layers=[{"spec": 0, "calls": [{"inputs": [[7, 0, 0]]}]}]),
            "layer 7, which is not there",
        ),
        (
            edited(layers=[{"spec": 0, "calls": [{"inputs": [[0, 0, 0]]}]}]),
            "feeds itself",
        ),
        (edited(outputs=[[1, 0, 2**40]]), "expected 0 to 2"),
        (edited(outputs=[]), "no outputs"),
    ],
)
def test_damaged_json_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(GraphError, match=message) as caught:
        LayerGraph.from_json(text)
    assert "\n" not in str(caught.value)


def values(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container of a document with every key of it."""
    for key in document if isinstance(document, dict) else range(len(document)):
        yield document, key
        if isinstance(document[key], (dict, list)):
            yield from values(document[key])


@settings(max_examples=500, deadline=None)
@given(st.randoms(use_true_random=False))
def test_whatever_is_wrong_in_json_is_a_graph_error(rng: random.Random) -> None:
    document = json.loads(random_graph(rng, layers=4).to_json())
    for _ in range(rng.choice((1, 1, 2))):
        container, key = rng.choice(list(values(document)))
        if rng.random() < 0.2:
            del container[key]
            continue
        container[key] = rng.choice(
            (
                None,
                True,
                -1,
                0,
                1,
                2,
                2**31,
                2**70,
                0.5,
                math.nan,
                "",
                "\ud800",
                "a>b",
                [],
                {},
                [[]],
            )
        )
    try:
        graph = LayerGraph.from_json(json.dumps(document))
        assert len(graph.names) == len(graph)
    except GraphError as error:
        assert "\n" not in str(error)


def test_nesting_has_a_limit() -> None:
    deep: Any = 0
    # Deeper than Python goes, but not than its parser of JSON, which Python 3.11 counts in.
    for _ in range(600 if sys.version_info < (3, 12) else 980):
        deep = [deep]
    spec = {"class": "Dense", "config": {"deep": deep}, "weights": []}
    with pytest.raises(GraphError, match="nested too deeply"):
        LayerGraph.from_json(edited(specs=[spec]))


def test_the_builder_tracks_shapes_and_shares_layers() -> None:
    builder = GraphBuilder()
    left, right = builder.input((8, 8, 3)), builder.input((8, 8, 3))
    conv = layers.conv2d(4, 3, padding="same")
    first = builder.add(conv, left)
    second = builder.call(first, conv, right)
    joined = builder.add(layers.concatenate(), first, second)
    assert builder.shape(joined) == (8, 8, 8)
    graph = builder.build(joined)
    assert [len(layer.calls) for layer in graph.layers] == [1, 1, 2, 1]
    assert graph.layers[3].calls == (Call((Edge(2, 0), Edge(2, 1))),)
    LayerGraph(graph.layers, graph.inputs, graph.outputs)  # it passes the checks


def test_the_builder_refuses_what_keras_would() -> None:
    builder = GraphBuilder()
    x = builder.input((4, 4, 1))
    flat = builder.add(layers.flatten(), x)
    with pytest.raises(GraphError, match=r"Conv2D takes a tensor of 3 axes .*\(16,\)"):
        builder.add(layers.conv2d(2, 3), flat)
    with pytest.raises(GraphError, match=r"a window of \(5, 5\) does not fit"):
        builder.add(layers.conv2d(2, 5), x)
    with pytest.raises(GraphError, match="Add takes tensors of one shape"):
        builder.add(layers.add(), x, flat)
    with pytest.raises(GraphError, match="Dense takes 1 tensor"):
        builder.add(layers.dense(2), x, flat)
    dense = builder.add(layers.dense(2), flat)
    with pytest.raises(GraphError, match=r"cannot be called on these tensors"):
        builder.call(dense, layers.dense(2), builder.add(layers.dense(3), flat))
    with pytest.raises(GraphError, match="was added after it"):
        builder.call(dense, layers.dense(2), builder.add(layers.flatten(), x))
    with pytest.raises(GraphError, match="no outputs"):
        builder.build()


@given(st.data())
@settings(derandomize=True, deadline=None)
def test_what_reaches_no_output_is_left_out(data: st.DataObject) -> None:
    """A builder leaves out what Keras would; the others are called as they would be without."""
    count = data.draw(st.integers(1, 9))
    inputs = [
        data.draw(st.lists(st.integers(0, i), min_size=1, max_size=2, unique=True))
        for i in range(count)
    ]
    ends = data.draw(st.lists(st.integers(0, count), min_size=1, max_size=2, unique=True))
    needed, pending = set[int](), list(ends)
    while pending:
        node = pending.pop()
        needed.add(node)
        pending += inputs[node - 1] if node else []

    def built(only: set[int]) -> LayerGraph:
        builder = GraphBuilder()
        edges = {0: builder.input((4,))}
        for node, sources in enumerate(inputs, start=1):
            if node in only:
                template = layers.add() if len(sources) > 1 else layers.dense(4)
                edges[node] = builder.add(template, *(edges[source] for source in sources))
        return builder.build(*(edges[end] for end in ends))

    whole = built({*range(1, count + 1)})
    assert whole == built(needed) and len(whole) == len(needed | {0})
    assert whole.names == built(needed).names
    assert whole.without_dead_ends() is whole


def test_a_call_that_reaches_no_output_is_left_out() -> None:
    def built(*, dead: bool) -> LayerGraph:
        builder = GraphBuilder()
        a, b = builder.input((4,)), builder.input((4,))
        shared = layers.dense(4)
        first = builder.add(shared, a)
        edge = builder.call(first, shared, b) if dead else first
        last = builder.call(first, shared, b)
        assert edge == first or edge.call == 1
        return builder.build(builder.add(layers.add(), first, last))

    assert built(dead=True) == built(dead=False)
    assert built(dead=True).digests == built(dead=False).digests
