"""What reads return, for frameworks that take DLPack."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cpp_store import _core

_CPU = 1  # kDLCPU


class DLPackArray:
    """An array as an object of the DLPack protocol. Made by :func:`dlpack`."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """Return a capsule, of the protocol's version 1 to a consumer that speaks it."""
        if stream is not None:
            raise BufferError("tensors in host memory have no stream")
        if dl_device not in (None, (_CPU, 0)):
            raise BufferError(f"the tensor is in host memory, not on device {dl_device}")
        array = np.array(self._array) if copy else self._array
        versioned = max_version is not None and max_version[0] >= 1
        return _core.to_dlpack(array, versioned, bool(copy))

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CPU, 0)


def dlpack(array: npt.ArrayLike) -> DLPackArray:
    """Offer an array to ``jax.dlpack.from_dlpack``, ``torch.from_dlpack`` and the like, uncopied.

    What NumPy's own arrays offer leaves out bfloat16 and float8, and is refused for read-only ones
    by all but the newest consumers; this is for the views that reads return.
    ``tf.experimental.dlpack.from_dlpack`` wants ``dlpack(array).__dlpack__()``.

    Parameters
    ----------
    array
        A NumPy array of a dtype that stores keep. It stays alive as long as the consumer's tensor.

    Notes
    -----
    A view is read-only, and so must the consumer treat its tensor, whatever the consumer itself
    thinks of it: TensorFlow and JAX never write to tensors, but Torch does. Writing to one ends the
    process where the store's memory is mapped read-only, and changes a stored tensor where it is
    not. Clone the tensor, or read with ``copy=True``, to have one to write to.
    """
    return DLPackArray(np.asarray(array))
