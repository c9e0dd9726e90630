"""What every store promises, whether it is in this process or on servers."""

import threading
from collections.abc import Sequence
from contextlib import suppress

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cpp_store
from cpp_store import InvalidArgument, LayerTable, NotFound, Store

DTYPES = [
    *(np.dtype(name) for name in ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32")),
    *(np.dtype(name) for name in ("int64", "uint64", "float16", "float32", "float64")),
    *(np.dtype(name) for name in ("complex64", "complex128")),
    *map(np.dtype, (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)),
]
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (2, 3, 4, 5)]


def chain(*names: str) -> LayerTable:
    """Layers that each require the one before."""
    return LayerTable(names, [[i - 1] if i else [] for i in range(len(names))])


def weights(*names: str, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """A kernel and a bias for each layer."""
    rng = np.random.default_rng(seed)
    return {
        name: [rng.normal(size=(4, 3)).astype("float32"), rng.normal(size=3).astype("float32")]
        for name in names
    }


def assert_equal(found: dict[str, list[np.ndarray]], expected: dict[str, list[np.ndarray]]) -> None:
    assert list(found) == list(expected)
    for name, arrays in expected.items():
        assert len(found[name]) == len(arrays)
        for one, other in zip(found[name], arrays, strict=True):
            assert one.dtype == other.dtype
            assert one.shape == other.shape
            assert one.tobytes() == other.tobytes()


def test_reads_what_was_put(store: Store) -> None:
    tensors = weights("a", "b", "c")

    assert store.put("m", tensors) == 3 * 60

    assert_equal(store.read("m"), tensors)
    assert_equal(store.read("m", ["c", "a"]), {"a": tensors["a"], "c": tensors["c"]})
    assert store.read("m", []) == {}
    assert store.verify() == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keeps_every_dtype_and_shape(store: Store, dtype: np.dtype) -> None:
    rng = np.random.default_rng(3)
    tensors = {
        "all": [
            np.frombuffer(
                rng.bytes(int(np.prod(shape)) * dtype.itemsize) if dtype.kind != "b" else
                bytes(rng.integers(0, 2, int(np.prod(shape)), "uint8")),
                dtype,
            ).reshape(shape)
            for shape in SHAPES
        ]
    }  # fmt: skip

    store.put("m", tensors)

    assert_equal(store.read("m"), tensors)
    assert_equal(store.read("m", copy=True), tensors)


def test_layers_without_tensors_may_be_named(store: Store) -> None:
    tensors = {"input": [], "dense": weights("dense")["dense"]}
    store.put("m", tensors)
    assert list(store.read("m")) == ["dense"]
    assert list(store.read("m", ["input", "dense"])) == ["dense"]
    assert store.read_into("m", {"input": []}) == 0


def test_reads_are_read_only_unless_copied(store: Store) -> None:
    store.put("m", weights("a"))
    view = store.read("m")["a"][0]
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True
    copy = store.read("m", copy=True)["a"][0]
    copy[...] = 0
    assert_equal(store.read("m"), weights("a"))


def test_arrays_outlive_retirement_and_the_store(store: Store) -> None:
    expected = weights("a", "b")
    store.put("m", expected)
    found = store.read("m")
    part = found["a"][0][1:, ::2]
    store.retire("m")
    # What is freed is used again by the next put.
    for i in range(20):
        store.put(f"n{i}", weights("a", "b", seed=i + 1))
    assert_equal(found, expected)
    store.close()
    assert_equal(found, expected)
    del found
    np.testing.assert_array_equal(part, expected["a"][0][1:, ::2])


def test_reads_into_the_callers_arrays(store: Store) -> None:
    tensors = weights("a", "b")
    store.put("m", tensors)
    buffers = {"b": [np.zeros((4, 3), "float32"), np.zeros(3, "float32")]}
    assert store.read_into("m", buffers) == 60
    assert_equal(buffers, {"b": tensors["b"]})


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (np.zeros((3, 4), "float32"), r"expected .* shape \(4, 3\), found .* shape \(3, 4\)"),
        (np.zeros((4, 3), "float64"), "expected an array of dtype float32 .* found dtype float64"),
        (np.zeros((4, 3), ">f4"), ".* found dtype >f4"),
        (np.zeros((3, 4), "float32").T, "expected a C-contiguous array"),
        (np.broadcast_to(np.float32(0), (4, 3)), "expected a C-contiguous array"),
        ([[0.0] * 3] * 4, "expected a NumPy array to write to, found <class 'list'>"),
    ],
)
def test_refuses_to_read_into_what_does_not_fit(store: Store, kernel: object, says: str) -> None:
    store.put("m", weights("a", "b"))
    good = np.zeros((4, 3), "float32")
    buffers = {"a": [good, np.zeros(3, "float32")], "b": [kernel, np.zeros(3, "float32")]}
    with pytest.raises(InvalidArgument, match=f"layer 'b', tensor 0: {says}"):
        store.read_into("m", buffers)  # type: ignore[arg-type]
    assert not good.any()


def test_refuses_to_read_into_read_only_or_too_few_arrays(store: Store) -> None:
    store.put("m", weights("a"))
    frozen = np.zeros((4, 3), "float32")
    frozen.flags.writeable = False
    with pytest.raises(InvalidArgument, match="found a read-only one"):
        store.read_into("m", {"a": [frozen, np.zeros(3, "float32")]})
    with pytest.raises(InvalidArgument, match="layer 'a' has 2 tensors, found 1 arrays"):
        store.read_into("m", {"a": [np.zeros((4, 3), "float32")]})
    with pytest.raises(InvalidArgument, match="has no layer 'x'"):
        store.read_into("m", {"x": []})


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 6), "float32")[:, ::2], r"C-contiguous.* strides .*np.ascontiguousarray"),
        (np.zeros((4, 3), "float32").T, r"C-contiguous array, found one of shape \(3, 4\)"),
        (np.zeros(3, ">f4"), "byte-swapped; pass .*newbyteorder"),
        (np.zeros(3, "datetime64[s]"), r"expected one of the dtypes bool, .*; found datetime64"),
        (np.zeros(3, "longdouble"), "found float128"),
        (np.array(["text"]), "found <U4"),
        (np.array([None]), "found object"),
        (object(), "found object"),
    ],
)
def test_refuses_tensors_that_it_cannot_keep(store: Store, array: object, says: str) -> None:
    with pytest.raises(InvalidArgument, match=f"layer 'a', tensor 1: .*{says}"):
        store.put("m", {"a": [np.zeros(2), array]})  # type: ignore[list-item]
    assert "m" not in store


def test_an_array_is_not_a_list_of_arrays(store: Store) -> None:
    with pytest.raises(InvalidArgument, match="layer 'a': expected a list of arrays, found"):
        store.put("m", {"a": np.zeros((2, 3))})  # type: ignore[dict-item]


def test_takes_whatever_numpy_can_see(store: Store) -> None:
    class OnlyDLPack:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **arguments: object) -> object:
            return self.array.__dlpack__(**arguments)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.array.__dlpack_device__()

    array = np.arange(6, dtype="int16").reshape(2, 3)
    store.put("m", {"a": [OnlyDLPack(array), memoryview(array), 1.5, np.float16(2), [1, 2]]})  # type: ignore[list-item]
    expected = [array, array, np.array(1.5), np.array(2, "float16"), np.array([1, 2])]
    assert_equal(store.read("m"), {"a": expected})


def test_the_table_says_what_belongs_to_the_model(store: Store) -> None:
    table = LayerTable(["a", "flatten", "b"], [[], [0], [1]], [60, 0, 60])
    tensors = weights("a", "b")
    store.put("m", {"b": tensors["b"], "a": tensors["a"]}, table=table)
    assert_equal(store.read("m"), tensors)
    assert store.lookup("m").table == table

    with pytest.raises(InvalidArgument, match=r"layer 'b' .*neither put nor inherited"):
        store.put("n", weights("a"), table=table)
    with pytest.raises(InvalidArgument, match="'n' has no layer 'x'"):
        store.put("n", weights("a", "b", "x"), table=table)
    with pytest.raises(InvalidArgument, match=r"'b' has 60 bytes by its table, .* of 12 bytes"):
        store.put("n", {"a": tensors["a"], "b": [np.zeros(3, "float32")]}, table=table)
    assert store.list() == ["m"]


def test_puts_are_idempotent(store: Store) -> None:
    assert store.put("m", weights("a"), score=1) == 60
    assert store.put("m", weights("a"), score=1) == 60
    with pytest.raises(cpp_store.AlreadyExists, match="'m'"):
        store.put("m", weights("a", seed=1), score=1)
    with pytest.raises(cpp_store.AlreadyExists, match="'m'"):
        store.put("m", weights("a"), score=2)
    assert_equal(store.read("m"), weights("a"))
    assert len(store) == 1


def test_tensors_may_be_written_in_place(store: Store) -> None:
    expected = weights("a", "b")
    specs = {name: [(array.shape, array.dtype) for array in expected[name]] for name in expected}
    with store.allocate("m", specs, table=chain("a", "b"), score=3) as put:
        assert "m" not in store
        for name, arrays in put.arrays.items():
            for array, source in zip(arrays, expected[name], strict=True):
                array[...] = source
    assert_equal(store.read("m"), expected)
    assert store.lookup("m").score == 3
    assert store.verify() == []
    assert not put.arrays["a"][0].flags.writeable
    assert store.put("m", expected, table=chain("a", "b"), score=3) == 120


def test_an_allocation_that_fails_leaves_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.allocate("m", {"a": [((1000,), "float32")]}) as put:
        raise RuntimeError
    put.arrays["a"][0][...] = 1  # still memory of its own
    assert "m" not in store
    del put
    assert store.stats()["memory_used"] == 0


def test_children_inherit_by_reference(store: Store) -> None:
    parent = weights("a", "b", "p")
    store.put("parent", parent, table=chain("a", "b", "p"))
    own = weights("c", seed=5)

    with store.best_match(chain("a", "b", "c")) as match:
        assert match.lease
        assert match.owners == {"a": "parent", "b": "parent"}
        assert_equal(store.read_match(match), {"a": parent["a"], "b": parent["b"]})
        assert_equal(store.read_match(match, ["b"], copy=True), {"b": parent["b"]})
        added = store.put("child", own, table=chain("a", "b", "c"), match=match,
                          inherited=["a", "b"], parent="parent")  # fmt: skip
    assert added == 60
    assert match.lease == 0
    match.close()

    store.retire("parent")
    assert_equal(store.read("child"), {"a": parent["a"], "b": parent["b"], "c": own["c"]})
    info = store.lookup("child")
    assert info.owners == {"a": "parent", "b": "parent", "c": "child"}
    assert (info.bytes_own, info.bytes_inherited, info.parent) == (60, 120, "parent")
    assert store.stats()["layers"] == 3
    store.retire("child")
    assert store.stats()["layers"] == 0
    assert store.stats()["bytes_stored"] == 0


def test_a_lease_outlives_retirement(store: Store) -> None:
    expected = weights("a", "b")
    store.put("m", expected, table=chain("a", "b"))
    match = store.best_match(chain("a", "b", "x"))
    assert match
    store.retire("m")
    assert "m" not in store
    assert not store.best_match(chain("a", "b"))
    assert_equal(store.read_match(match), expected)
    store.put("n", weights("x"), table=chain("a", "b", "x"), match=match, inherited=["a", "b"])
    match.close()
    assert_equal(store.read("n", ["a", "b"]), expected)


def test_without_a_lease_nothing_is_kept(store: Store) -> None:
    store.put("m", weights("a"))
    match = store.best_match(chain("a"), lease=0)
    assert match
    assert match.lease == 0
    store.retire("m")
    with pytest.raises(NotFound):
        store.read_match(match, copy=True)
    with pytest.raises(NotFound):
        store.put("n", {}, table=chain("a"), match=match, inherited=["a"])
    assert store.stats()["layers"] == 0


def test_only_layers_of_the_match_can_be_inherited(store: Store) -> None:
    store.put("m", weights("a", "b") | {"flat": []}, table=chain("a", "flat", "b"))
    match = store.best_match(chain("a", "flat", "c"))
    assert match
    table = chain("a", "flat", "c")
    with pytest.raises(InvalidArgument, match="'c' is not in the prefix of 2 layers"):
        store.put("n", {}, table=table, match=match, inherited=["a", "c"])
    with pytest.raises(InvalidArgument, match="from no match"):
        store.put("n", weights("c"), table=table, inherited=["a"])
    with (
        cpp_store.embedded(memory="1MiB") as other,
        pytest.raises(InvalidArgument, match="another"),
    ):
        other.put("n", weights("c"), table=table, match=match, inherited=["a"])
    store.put("n", weights("c"), table=table, match=match, inherited=["a", "flat"])
    assert list(store.read("n")) == ["a", "c"]


def test_matches_come_best_first(store: Store) -> None:
    store.put("one", weights("a", "x"), table=chain("a", "x"), score=9)
    store.put("low", weights("a", "b", "y"), table=chain("a", "b", "y"), score=1)
    store.put("high", weights("a", "b", "z"), table=chain("a", "b", "z"), score=2)
    store.put("else", weights("a", "b"), table=chain("a", "b"), score=3, namespace="other")

    def models(**arguments: object) -> list[str]:
        found = store.best_matches(chain("a", "b"), count=9, lease=0, **arguments)  # type: ignore[arg-type]
        return [match.model for match in found]

    assert models() == ["high", "low", "one"]
    assert models(exclude=["high"]) == ["low", "one"]
    assert models(min_layers=2) == ["high", "low"]
    assert models(namespace="other") == ["else"]
    assert models(namespace="nothing") == []
    assert store.stats()["leases"] == 0


def test_what_is_shared_with_one_model_is_leased_as_a_best_match_is(store: Store) -> None:
    expected = weights("a", "b")
    store.put("m", expected, table=chain("a", "b"))
    store.put("better", weights("a", "b", "x"), table=chain("a", "b", "x"), score=9)
    match = store.best_match(chain("a", "x"), only="m")
    assert match.model == "m" and match.positions == [0] and match.owners == {"a": "m"}
    with store.best_match(chain("a", "b", "x"), only="m") as match:
        assert match.model == "m" and match.layers == 2
        store.retire("m")
        assert not store.best_match(chain("a", "b"), only="m")
        store.put("n", weights("x"), table=chain("a", "b", "x"), match=match, inherited=["a", "b"])
    assert_equal(store.read("n", ["a", "b"]), expected)
    assert not store.best_match(chain("a", "b"), only="n", namespace="other")
    assert not store.best_match(chain("a", "b"), only="n", min_layers=3)
    assert not store.best_match(chain("y"), only="n")
    assert not store.best_match(chain("a"), only="never there")
    with pytest.raises(InvalidArgument, match="only"):
        store.best_match(chain("a"), only=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"weight": "area"}, "weight is 'area'"),
        ({"min_layers": 0}, "min_layers is 0"),
        ({"lease": -1.0}, "lease is -1.0"),
        ({"lease": float("nan")}, "lease is nan"),
    ],
)
def test_refuses_queries_that_make_no_sense(
    store: Store, arguments: dict[str, object], says: str
) -> None:
    with pytest.raises(InvalidArgument, match=says):
        store.best_match(chain("a"), **arguments)  # type: ignore[arg-type]


def test_looks_up_what_was_said(store: Store) -> None:
    store.put(
        "m",
        weights("a"),
        namespace="digits",
        score=0.5,
        graph='{"layers": []}',
        metadata={"epochs": 3, "loss": np.float32(0.25), "name": "größer"},
    )
    info = store.lookup("m")
    assert (info.model, info.namespace, info.score, info.parent) == ("m", "digits", 0.5, "")
    assert info.graph == '{"layers": []}'
    assert info.metadata == {"epochs": 3, "loss": 0.25, "name": "größer"}
    assert info.created > 1.7e9
    assert info.table.names == ["a"]
    assert store.list() == store.list("digits") == ["m"]
    assert store.list("other") == []
    with pytest.raises(InvalidArgument, match="metadata"):
        store.put("n", weights("a"), metadata={"x": object()})


def test_what_is_not_there_is_not_found(store: Store) -> None:
    for call in (store.read, store.lookup, store.retire):
        with pytest.raises(NotFound, match="there is no model 'nobody'"):
            call("nobody")
    store.put("m", weights("a"))
    with pytest.raises(InvalidArgument, match="model 'm' has no layer 'b'"):
        store.read("m", ["b"])
    with pytest.raises(InvalidArgument, match="a collection of names"):
        store.read("m", "a")


def test_ids_and_names_may_be_anything(store: Store) -> None:
    for model in ("ü/..//\x00 \n", "x" * 65_535):
        store.put(model, weights("größe " * 100))
        assert model in store
        assert_equal(store.read(model), weights("größe " * 100))
    for model in ("", "x" * 65_536):
        with pytest.raises(InvalidArgument, match="1 to 65,535 bytes"):
            store.put(model, weights("a"))


def test_full_is_an_error_that_changes_nothing(store: Store) -> None:
    store.put("m", weights("a"))
    before = store.stats()
    with pytest.raises(cpp_store.OutOfMemory, match=r"need .*, limit \d+, used"):
        store.put("large", {"a": [np.zeros(200 << 20, "uint8")]})
    after = store.stats()
    assert "large" not in store
    assert after["bytes_stored"] == before["bytes_stored"]
    assert_equal(store.read("m"), weights("a"))


def test_memory_comes_back(store: Store) -> None:
    for i in range(30):
        store.put(f"m{i}", {"a": [np.full(5 << 20, i, "uint8")]})
        if i >= 3:
            store.retire(f"m{i - 3}")
    assert store.read("m29")["a"][0][-1] == 29
    for i in range(27, 30):
        store.retire(f"m{i}")
    assert store.stats()["memory_used"] == 0


def test_a_closed_store_says_so(store: Store) -> None:
    match = None
    with store:
        store.put("m", weights("a"))
        match = store.best_match(chain("a"))
    store.close()
    assert match
    with pytest.raises(cpp_store.StoreError, match="the store is closed"):
        store.read("m")
    with pytest.raises(cpp_store.StoreError, match="the store is closed"):
        match.close()


def test_threads_put_read_match_and_retire_at_once(store: Store) -> None:
    """Each model's content follows from its number, so that any reader can check any model."""
    failures: list[BaseException] = []

    def content(number: int) -> dict[str, list[np.ndarray]]:
        return {f"l{i}": [np.full(2_000, number * 10 + i, "int32")] for i in range(4)}

    def work(thread: int) -> None:
        rng = np.random.default_rng(thread)
        try:
            for step in range(40):
                number = thread * 1_000 + step
                store.put(str(number), content(number), table=chain("l0", "l1", "l2", "l3"))
                other = int(rng.integers(4)) * 1_000 + int(rng.integers(40))
                with suppress(NotFound):
                    assert_equal(store.read(str(other)), content(other))
                match = store.best_match(chain("l0", "l1", "l2", "x"))
                assert match
                with match:
                    found = store.read_match(match)
                    assert_equal(
                        found, {k: v for k, v in content(int(match.model)).items() if k != "l3"}
                    )
                if step >= 3:
                    store.retire(str(number - 3))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(store) == 12
    assert store.stats()["leases"] == 0


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    arrays=st.lists(
        hnp.arrays(
            st.sampled_from(
                [dtype for dtype in DTYPES if dtype.isbuiltin == 1 and dtype.kind != "c"]
            ),
            hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6),
        ),
        max_size=6,
    )
)
def test_any_arrays_come_back_as_they_were(store: Store, arrays: Sequence[np.ndarray]) -> None:
    tensors = {"a": list(arrays), "b": [np.zeros(1)]}
    store.put("m", tensors)
    try:
        assert_equal(store.read("m"), tensors if arrays else {"b": tensors["b"]})
        assert_equal(store.read("m", copy=True), tensors if arrays else {"b": tensors["b"]})
    finally:
        store.retire("m")
