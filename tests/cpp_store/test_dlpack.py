"""Tensors of other frameworks go in, and views come out, without a copy."""

import gc
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import cpp_store
from cpp_store import InvalidArgument, Store

DTYPES = ["bool", "int8", "uint16", "int64", "float16", "float32", "complex64", "bfloat16"]
FLOATS8 = ["float8_e4m3fn", "float8_e5m2"]


def numbers(dtype: str, shape: tuple[int, ...] = (3, 5)) -> np.ndarray:
    array = np.arange(np.prod(shape)) % 7
    return array.astype(getattr(ml_dtypes, dtype, dtype)).reshape(shape)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


class OnlyDLPack:
    """A tensor that can be seen in no other way, of a framework that knows no versions."""

    def __init__(self, array: np.ndarray, device: int = 1) -> None:
        self.array = array
        self.device = device

    def __dlpack__(self) -> object:
        return cpp_store.dlpack(self.array).__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self.device, 0)


class Once:
    """A tensor that has one capsule to give, which can be used once."""

    def __init__(self, capsule: object) -> None:
        self.capsule = capsule

    def __dlpack__(self, **_: object) -> object:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@pytest.fixture
def embedded() -> Store:
    return cpp_store.embedded(memory="16MiB")


@pytest.mark.parametrize("dtype", DTYPES + FLOATS8)
@pytest.mark.parametrize("shape", [(3, 5), (), (0, 2)], ids=str)
def test_goes_in_and_comes_out(embedded: Store, dtype: str, shape: tuple[int, ...]) -> None:
    array = numbers(dtype, shape)

    embedded.put("m", {"a": [cpp_store.dlpack(array), OnlyDLPack(array)]})  # type: ignore[list-item]

    for view in embedded.read("m")["a"]:
        assert_same(view, array)
        embedded.put("again", {"a": [cpp_store.dlpack(view)]})  # type: ignore[list-item]
        assert_same(embedded.read("again")["a"][0], array)
        embedded.retire("again")


def test_numpy_sees_the_same_memory_read_only(embedded: Store) -> None:
    embedded.put("m", {"a": [numbers("float32")]})
    view = embedded.read("m")["a"][0]

    seen = np.from_dlpack(cpp_store.dlpack(view))  # type: ignore[arg-type]

    assert address(seen) == address(view)
    assert not seen.flags.writeable


def test_a_copy_is_its_own(embedded: Store) -> None:
    array = numbers("int64")
    capsule_owner = cpp_store.dlpack(array)

    class Copying:
        def __dlpack__(self, **named: Any) -> object:
            return capsule_owner.__dlpack__(**named | {"copy": True})

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    copied = np.from_dlpack(Copying())  # type: ignore[arg-type]
    array[...] = -1
    assert_same(copied, numbers("int64"))


def test_refuses_other_devices_and_streams(embedded: Store) -> None:
    offered = cpp_store.dlpack(np.zeros(3))
    with pytest.raises(BufferError, match=r"not on device \(2, 0\)"):
        offered.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="no stream"):
        offered.__dlpack__(stream=1)
    with pytest.raises(InvalidArgument, match="no word for dtype datetime64"):
        cpp_store.dlpack(np.zeros(3, "datetime64[s]")).__dlpack__()


def test_what_is_on_another_device_is_asked_for_an_array(embedded: Store) -> None:
    with pytest.raises(InvalidArgument, match=r"layer 'a', tensor 0: .*found object"):
        embedded.put("m", {"a": [OnlyDLPack(np.zeros(3), device=2)]})  # type: ignore[list-item]


def test_strides_are_checked(embedded: Store) -> None:
    array = numbers("bfloat16", (4, 6))
    with pytest.raises(InvalidArgument, match=r"C-contiguous array, found one of shape \(6, 4\)"):
        embedded.put("m", {"a": [cpp_store.dlpack(array.T)]})  # type: ignore[list-item]


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("version", [None, (1, 0)])
def test_capsules_hold_their_array_and_let_go(
    embedded: Store, used: bool, version: tuple[int, int] | None
) -> None:
    array = np.zeros(1_000)
    watch = weakref.ref(array)
    capsule = cpp_store.dlpack(array).__dlpack__(max_version=version)

    del array
    gc.collect()
    assert watch() is not None
    if used:
        embedded.put("m", {"a": [Once(capsule)]})  # type: ignore[list-item]
        with pytest.raises(InvalidArgument):
            embedded.put("n", {"a": [Once(capsule)]})  # type: ignore[list-item]
    del capsule
    gc.collect()
    assert watch() is None


def test_tensorflow(embedded: Store) -> None:
    tf = pytest.importorskip("tensorflow")
    arrays = [numbers(dtype) for dtype in DTYPES]
    # Nothing but DLPack, by which TensorFlow gives its own memory.
    tensors = [Once(tf.constant(array).__dlpack__()) for array in arrays]

    embedded.put("m", {"a": tensors})  # type: ignore[list-item]

    for array, view in zip(arrays, embedded.read("m")["a"], strict=True):
        assert_same(view, array)
        assert_same(tf.convert_to_tensor(view).numpy(), array)
        shared = tf.experimental.dlpack.from_dlpack(cpp_store.dlpack(view).__dlpack__())
        assert_same(shared.numpy(), array)
        if view.dtype.kind not in "V":  # NumPy cannot see TensorFlow's bfloat16 without a copy
            assert address(np.from_dlpack(shared)) == address(view)
        variable = tf.Variable(view)
        embedded.put("variable", {"a": [variable, variable.value()]})
        for again in embedded.read("variable")["a"]:
            assert_same(again, array)
        embedded.retire("variable")


def test_jax(embedded: Store) -> None:
    jax = pytest.importorskip("jax")
    arrays = [numbers(dtype) for dtype in [*DTYPES, *FLOATS8] if "64" not in dtype]
    embedded.put("m", {"a": [jax.numpy.asarray(array) for array in arrays]})
    for array, view in zip(arrays, embedded.read("m")["a"], strict=True):
        assert_same(view, array)
        assert_same(np.asarray(jax.numpy.asarray(view)), array)
        shared = jax.dlpack.from_dlpack(cpp_store.dlpack(view))
        assert_same(np.asarray(shared), array)
        assert shared.unsafe_buffer_pointer() == address(view)


def test_torch(embedded: Store) -> None:
    torch = pytest.importorskip("torch")
    tensors = [torch.arange(15).reshape(3, 5).to(dtype) for dtype in
               (torch.bool, torch.int8, torch.int64, torch.float32, torch.bfloat16)]  # fmt: skip
    embedded.put("m", {"a": tensors})
    for tensor, view in zip(tensors, embedded.read("m")["a"], strict=True):
        shared = torch.from_dlpack(cpp_store.dlpack(view))
        assert shared.dtype == tensor.dtype
        assert torch.equal(shared, tensor)
        assert shared.data_ptr() == address(view)
    with pytest.raises(InvalidArgument, match="grad"):
        embedded.put("n", {"a": [torch.ones(3, requires_grad=True)]})
