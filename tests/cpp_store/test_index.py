"""The prefix index as Python sees it; the C++ tests compare it with a scan at length."""

import math

import pytest

import cpp_store
from cpp_store import LayerTable, Match, PrefixIndex


def chain(*names: str, nbytes: int = 4) -> LayerTable:
    """Layers that each require the one before."""
    stable = ["/".join(names[: i + 1]) for i in range(len(names))]
    return LayerTable(
        stable, [[i - 1] if i else [] for i in range(len(names))], [nbytes] * len(names)
    )


def test_finds_the_model_that_shares_most() -> None:
    index = PrefixIndex()
    index.add("short", chain("a", "b"), score=0.9)
    index.add("long", chain("a", "b", "c", "x"), score=0.1)

    match = index.best_match(chain("a", "b", "c", "d"))

    assert match is not None
    assert (match.model, match.score, match.layers, match.bytes) == ("long", 0.1, 3, 12)
    assert match.positions == [0, 1, 2]


def test_breaks_ties_by_score_then_by_age() -> None:
    index = PrefixIndex()
    for model, score in [("a", 0.5), ("nan", math.nan), ("b", 0.7), ("c", 0.7), ("d", 0.6)]:
        index.add(model, chain("x", model), score=score)

    matches = index.best_matches(chain("x", "new"), count=10)

    assert [match.model for match in matches] == ["c", "b", "d", "a", "nan"]


def test_counts_bytes_where_asked_to() -> None:
    index = PrefixIndex()
    index.add("many", LayerTable(["a", "b", "c"], None, [1, 1, 1]))
    index.add("heavy", LayerTable(["d"], None, [100]))
    query = LayerTable(["a", "b", "c", "d"], None, [1, 1, 1, 100])

    by_layers = index.best_match(query, weight="layers")
    by_bytes = index.best_match(query, weight="bytes")

    assert by_layers is not None and by_layers.model == "many"
    assert by_bytes is not None and by_bytes.model == "heavy"
    assert (by_bytes.layers, by_bytes.bytes, by_bytes.positions) == (1, 100, [3])


def test_a_removed_model_is_gone_and_may_come_back() -> None:
    index = PrefixIndex()
    index.add("m", chain("a"))
    assert "m" in index and len(index) == 1

    assert index.remove("m")

    assert "m" not in index and len(index) == 0
    assert index.best_match(chain("a")) is None
    assert not index.remove("m")
    index.add("m", chain("a"))
    assert index.best_match(chain("a")) is not None


def test_keeps_namespaces_apart() -> None:
    index = PrefixIndex()
    index.add("m", chain("a"), namespace="digits")

    assert index.best_match(chain("a")) is None
    assert index.best_match(chain("a"), namespace="digits") is not None


def test_heeds_exclude_and_min_layers() -> None:
    index = PrefixIndex()
    index.add("first", chain("a", "b", "c"))
    index.add("second", chain("a", "b"))
    query = chain("a", "b", "c")

    match = index.best_match(query, exclude=["first"])

    assert match is not None and match.model == "second"
    assert index.best_match(query, exclude=["first"], min_layers=3) is None
    assert index.best_match(query, exclude=["first", "second"]) is None


def test_larger_sequences_are_newer_whatever_the_order() -> None:
    index = PrefixIndex()
    index.add("newest", chain("a"), sequence=30)
    index.add("old", chain("a"), sequence=10)
    index.add("next", chain("a"))

    matches = index.best_matches(chain("a"), count=3)

    assert [(match.model, match.sequence) for match in matches] == [
        ("next", 31),
        ("newest", 30),
        ("old", 10),
    ]


def test_rejects_what_cannot_be_right() -> None:
    index = PrefixIndex()
    index.add("m", chain("a"), namespace="one")

    with pytest.raises(cpp_store.AlreadyExists, match="'m'"):
        index.add("m", chain("b"), namespace="two")
    with pytest.raises(cpp_store.InvalidArgument, match="'layers' or 'bytes'"):
        index.best_match(chain("a"), weight="parameters")  # type: ignore[arg-type]
    with pytest.raises(cpp_store.InvalidArgument, match="min_layers is 0"):
        index.best_match(chain("a"), min_layers=0)
    with pytest.raises(cpp_store.InvalidArgument, match="count is 0"):
        index.best_matches(chain("a"), count=0)


def test_a_match_can_be_made_from_its_fields() -> None:
    index = PrefixIndex()
    index.add("m", chain("a", "b"), score=0.5, sequence=7)
    match = index.best_match(chain("a"))
    assert match is not None

    copy = Match(
        match.model, match.score, match.sequence, match.layers, match.bytes, match.positions
    )

    assert repr(copy) == repr(match) and copy.positions == [0]
