"""What is particular to a store in this process."""

import gc

import numpy as np
import pytest

import cpp_store


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (1 << 20, 1 << 20),
        ("1048576", 1 << 20),
        ("1MiB", 1 << 20),
        ("1.5 k", 1536),
        ("2GB", 2 * 10**9),
        ("64B", 64),
    ],
)
def test_memory_is_bytes_or_a_size(text: int | str, found: int) -> None:
    with cpp_store.embedded(memory=text) as store:
        assert store.stats()["memory_limit"] == found


@pytest.mark.parametrize("memory", ["", "lots", "4 XiB", "-1GiB", 0, -5, float("nan"), "1e30GiB"])
def test_memory_that_makes_no_sense(memory: int | str) -> None:
    with pytest.raises(cpp_store.InvalidArgument, match="memory is"):
        cpp_store.embedded(memory=memory)


def test_reads_copy_nothing() -> None:
    with cpp_store.embedded(memory="16MiB") as store:
        store.put("m", {"a": [np.arange(1_000)]})
        one, other = store.read("m")["a"][0], store.read("m")["a"][0]
        assert one.ctypes.data == other.ctypes.data
        assert one.ctypes.data % 64 == 0
        assert store.read("m", copy=True)["a"][0].ctypes.data != one.ctypes.data


def test_views_pin_their_layer_and_no_other() -> None:
    with cpp_store.embedded(memory="16MiB") as store:
        store.put("m", {"a": [np.zeros(1_000)], "b": [np.zeros(2_000)]})
        view = store.read("m")["a"][0]
        store.retire("m")
        assert store.stats()["layers"] == 0
        assert store.stats()["memory_used"] == 8_000
        del view
        gc.collect()
        assert store.stats()["memory_used"] == 0


def test_an_owners_id_stays_taken_while_others_inherit() -> None:
    table = cpp_store.LayerTable(["a"])
    with cpp_store.embedded(memory="16MiB") as store:
        store.put("m", {"a": [np.zeros(3)]}, table=table)
        with store.best_match(table) as match:
            store.put("n", {}, table=table, inherited={"a": match})
        store.retire("m")
        with pytest.raises(cpp_store.AlreadyExists, match="choose another id"):
            store.put("m", {"a": [np.ones(3)]})
        store.retire("n")
        store.put("m", {"a": [np.ones(3)]})


def test_what_is_written_in_place_is_not_copied() -> None:
    with cpp_store.embedded(memory="16MiB") as store:
        with store.allocate("m", {"a": [((2, 3), "bfloat16"), ((), "int8")]}) as put:
            kernel, number = put.arrays["a"]
            kernel[...] = 2
            number[...] = 7
        found = store.read("m")["a"]
        assert found[0].ctypes.data == kernel.ctypes.data
        assert found[0].dtype == kernel.dtype == "bfloat16"
        assert (found[0] == 2).all()
        assert found[1] == 7


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (((3,), ">f4"), "byte-swapped"),
        (((3,), "U3"), "expected one of the dtypes"),
        (((-1,), "float32"), "negative extent -1"),
        (((1 << 62, 8), "float32"), r"2\^63"),
        ("float32", "a pair"),
        (((3,), "no such dtype"), "no such dtype"),
    ],
)
def test_allocates_only_what_can_be_kept(spec: object, says: str) -> None:
    with (
        cpp_store.embedded(memory="16MiB") as store,
        pytest.raises(cpp_store.InvalidArgument, match=says),
    ):
        store.allocate("m", {"a": [spec]})  # type: ignore[list-item]
