"""Models as safetensors files (https://github.com/huggingface/safetensors), and back.

Every tensor of a model is in its file, inherited ones included. A layer of one tensor gives it its
own name, one of several ``layer/0``, ``layer/1``, ...; complex128, which the format lacks, becomes
float64 with a last axis of two. What a model is besides its tensors is JSON under the key
``cpp_store`` of the file's metadata: ``format`` (1), ``model``, ``namespace``, ``score``,
``parent``, ``created`` (seconds since the epoch), ``graph``, ``metadata``, and ``layers``, for each
layer in the model's order ``name``, ``requires`` (positions), ``nbytes`` and ``tensors``, whose
items are [name in the file, dtype].
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from cpp_store import _arguments as arguments
from cpp_store import files
from cpp_store._core import LayerTable, ModelInfo
from cpp_store.command_line import InputError

Array = npt.NDArray[Any]

FORMAT = 1
_KEY = "cpp_store"
_DTYPES = {
    "BOOL": np.dtype(bool),
    "I8": np.dtype("int8"),
    "U8": np.dtype("uint8"),
    "I16": np.dtype("int16"),
    "U16": np.dtype("uint16"),
    "I32": np.dtype("int32"),
    "U32": np.dtype("uint32"),
    "I64": np.dtype("int64"),
    "U64": np.dtype("uint64"),
    "F16": np.dtype("float16"),
    "F32": np.dtype("float32"),
    "F64": np.dtype("float64"),
    "C64": np.dtype("complex64"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}


class FileError(InputError):
    """A file that is not what it should be, or cannot be written; the message says which."""


@dataclass
class Contents:
    """What a file holds: the arguments of a put.

    `table` is None for files of other programs, of which each tensor becomes a layer.
    """

    tensors: dict[str, list[Array]]
    model: str
    table: LayerTable | None = None
    namespace: str = ""
    score: float = 0.0
    parent: str = ""
    graph: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(array.nbytes for arrays in self.tensors.values() for array in arrays)


def write(
    path: Path,
    info: ModelInfo,
    tensors: Mapping[str, Sequence[Array]],
    *,
    replace: bool,
    started: Callable[[Path], None] = lambda _: None,
) -> None:
    """Write a model to a file that is there whole or not at all.

    Parameters
    ----------
    path
        The file. It appears when it is complete.
    info, tensors
        What `Store.lookup` and `Store.read` said of the model.
    replace
        Whether a file that is already there is replaced.
    started
        Called with the file that is being written, which grows.

    Raises
    ------
    FileError
        There is such a file, or the directory cannot be written to.
    """
    from safetensors.numpy import save_file

    named, layers = _name_tensors(info.table, tensors)
    document = {"format": FORMAT, **description(info), "layers": layers}
    with replacing(path, replace) as temporary:
        started(temporary)
        save_file(named, temporary, metadata={_KEY: json.dumps(document)})


def read(path: Path) -> Contents:
    """Contents of any safetensors file. The arrays are the file itself, mapped into memory.

    Raises
    ------
    FileError
        The file is missing, is no safetensors file, or has a dtype that stores do not keep.
    """
    arrays, said = map_tensors(path)
    if _KEY not in said:
        return Contents({name: [array] for name, array in arrays.items()}, path.stem)
    try:
        document = json.loads(said[_KEY])
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}; this program reads {FORMAT}")
        layers = document["layers"]
        table = LayerTable(
            [layer["name"] for layer in layers],
            [layer["requires"] for layer in layers],
            [layer["nbytes"] for layer in layers],
        )
        return Contents(
            {
                layer["name"]: [restored(arrays[name], dtype) for name, dtype in layer["tensors"]]
                for layer in layers
                if layer["tensors"]
            },
            table=table,
            **said_of_model(document),
        )
    except KeyError as error:
        raise FileError(f"{path}: its metadata under {_KEY!r} want {error}") from error
    except RecursionError as error:
        raise FileError(f"{path}: its metadata under {_KEY!r} are nested too deeply") from error
    except (TypeError, ValueError) as error:
        raise FileError(f"{path}: its metadata under {_KEY!r} are damaged: {error}") from error


def said_of_model(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file says of a model besides its layers, checked.

    Raises
    ------
    KeyError, TypeError, ValueError
        It lacks something, or something is of another type.
    """
    arguments.metadata(arguments.mapping(document["metadata"], "metadata"))
    return {
        "model": arguments.text(document["model"], "model"),
        "namespace": arguments.text(document["namespace"], "namespace"),
        "score": arguments.number(document["score"], "score"),
        "parent": arguments.text(document["parent"], "parent"),
        "graph": arguments.text(document["graph"], "graph"),
        "metadata": document["metadata"],
    }


def description(info: ModelInfo) -> dict[str, object]:
    """Return what files say of a model besides its layers."""
    return {
        "model": info.model,
        "namespace": info.namespace,
        "score": info.score,
        "parent": info.parent,
        "created": info.created,
        "graph": info.graph,
        "metadata": info.metadata,
    }


def _name_tensors(
    table: LayerTable, tensors: Mapping[str, Sequence[Array]]
) -> tuple[dict[str, Array], list[dict[str, Any]]]:
    """Arrays by their name in the file, and the layers as the metadata describe them."""
    named: dict[str, Array] = {}
    layers = []
    for layer, requires, nbytes in zip(table.names, table.requires, table.nbytes, strict=True):
        arrays = tensors.get(layer, ())
        described = []
        for number, array in enumerate(arrays):
            name = layer if len(arrays) == 1 else f"{layer}/{number}"
            while name in named:  # a layer that is called as another one's tensor
                name += "'"
            named[name] = plain(array)
            described.append((name, array.dtype.name))
        layers.append({"name": layer, "requires": requires, "nbytes": nbytes, "tensors": described})
    return named, layers


def plain(array: Array) -> Array:
    """Return the array in a dtype that the format has."""
    if array.dtype != np.complex128:
        return array
    return np.frombuffer(array.tobytes(), np.float64).reshape(*array.shape, 2)


def restored(array: Array, dtype: str) -> Array:
    if dtype != "complex128":
        if array.dtype.name != dtype:
            raise ValueError(f"a tensor of {array.dtype} is said to be {dtype}")
        return array
    if array.dtype != np.float64 or array.ndim == 0 or array.shape[-1] != 2:
        raise ValueError(f"a tensor of {array.dtype} {array.shape} is said to be complex128")
    return array.reshape(-1).view(np.complex128).reshape(array.shape[:-1])


def map_tensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors in the order of the file, and its metadata."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileError(f"cannot read {path}: there is no such file")
    try:
        with safe_open(path, framework="np") as file:  # checks every length and offset
            names = list(file.offset_keys())
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise FileError(f"{path} is not a safetensors file: {error}") from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    content = np.memmap(path, np.uint8, mode="r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    arrays: dict[str, Array] = {}
    for name in names:
        entry = header[name]
        if entry["dtype"] not in _DTYPES:
            raise FileError(
                f"{path}: tensor {name!r} is {entry['dtype']}; stores keep {', '.join(_DTYPES)}"
            )
        first, last = (start + offset for offset in entry["data_offsets"])
        arrays[name] = np.frombuffer(content[first:last].data, _DTYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
    return arrays, metadata


@contextlib.contextmanager
def replacing(path: Path, replace: bool) -> Iterator[Path]:
    """Give a file to write beside `path`, as `files.replacing` does."""
    if path.exists() and not replace:
        raise FileError(f"{path} exists already; --force replaces it")
    try:
        with files.replacing(path, replace=replace, through_links=False) as temporary:
            yield temporary
    except FileExistsError as error:
        raise FileError(f"{path} exists already; --force replaces it") from error
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
