"""Layer tables as Python sees them; the C++ tests look inside."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cpp_store
from cpp_store import LayerTable


@st.composite
def tables(draw: st.DrawFn) -> LayerTable:
    names = draw(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True)
    )
    requires = [
        draw(st.lists(st.integers(0, i - 1), max_size=4)) if i else [] for i in range(len(names))
    ]
    nbytes = draw(st.lists(st.integers(0, 2**40), min_size=len(names), max_size=len(names)))
    return LayerTable(names, requires, nbytes)


def test_shows_what_it_was_made_of() -> None:
    table = LayerTable(["input", "dense", "add"], [[], [0], [1, 0]], [0, 12, 0])

    assert len(table) == 3
    assert table.names == ["input", "dense", "add"]
    assert table.requires == [[], [0], [1, 0]]
    assert table.nbytes == [0, 12, 0]
    assert table.total_nbytes == 12


def test_nothing_is_required_and_nothing_weighs_by_default() -> None:
    table = LayerTable(["a", "b"])

    assert table.requires == [[], []]
    assert table.nbytes == [0, 0]


def test_keys_are_xxh3_128_of_the_names() -> None:
    # As `xxhsum -H2` prints it.
    table = LayerTable(["a", "Dense_1"])

    assert len(table.keys) == 32
    assert table.keys[:16].hex() == "a96faf705af16834e6c632b61e964e1f"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tables())
def test_survives_encoding_and_pickling(table: LayerTable) -> None:
    for copy in (LayerTable.decode(table.encode()), pickle.loads(pickle.dumps(table))):
        assert copy == table
        assert hash(copy) == hash(table)
        assert copy.names == table.names
        assert copy.requires == table.requires
        assert copy.nbytes == table.nbytes
        assert copy.keys == table.keys


@settings(max_examples=300, deadline=None, derandomize=True)
@given(tables(), st.data())
def test_damaged_bytes_are_an_error_or_another_table(
    table: LayerTable, data: st.DataObject
) -> None:
    damaged = bytearray(table.encode())
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        other = LayerTable.decode(bytes(damaged))
    except cpp_store.ProtocolError:
        return
    assert other != table
    assert other.encode() == bytes(damaged)


@pytest.mark.parametrize("cut", [0, 1, 23, 24, -1])
def test_truncated_bytes_are_an_error(cut: int) -> None:
    data = LayerTable(["a", "b"], [[], [0]]).encode()
    with pytest.raises(cpp_store.ProtocolError):
        LayerTable.decode(data[:cut])


def test_differs_by_every_part() -> None:
    table = LayerTable(["a", "b"], [[], [0]], [1, 2])

    assert table == LayerTable(["a", "b"], [[], [0]], [1, 2])
    assert table != LayerTable(["a", "c"], [[], [0]], [1, 2])
    assert table != LayerTable(["a", "b"], [[], []], [1, 2])
    assert table != LayerTable(["a", "b"], [[], [0]], [1, 3])
    assert table != "a table"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", ""],), "position 1 has no name"),
        ((["a", "b", "a"],), r"'a' \(position 2\) has the name of the layer at position 0"),
        ((["x" * 65_536],), "takes 65536 bytes"),
        ((["a", "b"], [[1], []]), r"'a' \(position 0\) requires position 1, which does not come"),
        ((["a"], [[0]]), "which does not come before it"),
        ((["a", "b"], [[], [7]]), "requires position 7; there are only 2 layers"),
        ((["a", "b"], [[], [-1]]), "requires position -1"),
        ((["a"], [[], []]), "requires has 2 entries for 1 layers"),
        ((["a"], None, [1, 2]), "nbytes has 2 entries for 1 layers"),
        ((["a"], None, [-5]), "has -5 bytes"),
        ((["a", "b"], None, [2**63 - 1, 1]), "at most 2"),
    ],
)
def test_names_what_is_wrong(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(cpp_store.InvalidArgument, match=message):
        LayerTable(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("InvalidArgument", ValueError),
        ("NotFound", KeyError),
        ("AlreadyExists", Exception),
        ("OutOfMemory", MemoryError),
        ("ConnectionError", ConnectionError),
        ("DeadlineExceeded", TimeoutError),
        ("ProtocolError", Exception),
        ("StorageError", OSError),
    ],
)
def test_exceptions_are_also_the_built_in_ones(name: str, builtin: type[Exception]) -> None:
    error = getattr(cpp_store, name)

    assert issubclass(error, cpp_store.StoreError)
    assert issubclass(error, builtin)
    assert error.__module__ == "cpp_store"
    assert str(error("a plain sentence")) == "a plain sentence"
    assert isinstance(pickle.loads(pickle.dumps(error("x"))), error)
