"""Layer graph JSON of anybody: one clear line, or a graph that is sound."""

import copy
import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from graph_meta import GraphError, LayerGraph
from tests.graph_meta.random_graphs import random_graph

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["layer-graph", "Dense", "float32", "../x", "__class__", "Lambda"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def places(document: Any) -> list[tuple[Any, Any]]:
    """Return every container in a document with each of its keys or positions."""
    found = []
    keys = document.keys() if isinstance(document, dict) else range(len(document))
    for key in keys:
        found.append((document, key))
        if isinstance(document[key], dict | list):
            found += places(document[key])
    return found


def check(text: str) -> None:
    """Read a text: GraphError in one line, or a graph that survives another round."""
    try:
        graph = LayerGraph.from_json(text)
    except GraphError as error:
        assert "\n" not in str(error) and len(str(error)) < 2_000
        return
    again = LayerGraph.from_json(graph.to_json())
    assert again.to_json() == graph.to_json()
    assert again.digests == graph.digests


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 50), st.data())
def test_documents_with_wrong_parts(seed: int, data: st.DataObject) -> None:
    document = copy.deepcopy(json.loads(random_graph(random.Random(seed)).to_json()))
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(document)))
        if data.draw(st.booleans()):
            container[key] = data.draw(values)
        elif isinstance(container, list):
            container.append(container[key])
        else:
            del container[key]
        if not places(document):
            break
    check(json.dumps(document))


@settings(max_examples=60, deadline=None)
@given(values)
def test_documents_of_anything(document: Any) -> None:
    check(json.dumps(document))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200))
def test_bytes_that_may_be_no_json(text: str | bytes) -> None:
    try:
        LayerGraph.from_json(text)
    except GraphError as error:
        assert "\n" not in str(error)


def test_depth_that_would_take_the_stack() -> None:
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        check(opening * 100_000 + "1" + closing * 100_000)
