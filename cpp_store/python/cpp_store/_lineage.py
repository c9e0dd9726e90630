"""Several models in one safetensors file, each shared tensor once, and back.

A tensor is called ``MODEL/LAYER/INDEX`` after the model of the file that has it first; complex128
is kept as in `_files`. What the models are besides is JSON under the key ``cpp_store_models`` of
the file's metadata: ``format`` (1) and ``models``, ancestors first. Each has ``model``,
``namespace``, ``score``, ``parent``, ``created`` (seconds since the epoch, not restored),
``graph``, ``metadata``, and ``layers``, for each layer in the model's order ``name``, ``requires``
(positions), ``nbytes``, ``owner`` (the model of this file that has the tensors; null: none has),
and, for the model's own layers, ``tensors``, whose items are [name in the file, dtype].
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpp_store import _arguments as arguments
from cpp_store import _files
from cpp_store._core import LayerTable, ModelInfo, NotFound
from cpp_store._files import Array, FileError
from cpp_store._store import Store

FORMAT = 1
_KEY = "cpp_store_models"


@dataclass
class Exported:
    """A model of a file: the arguments of a put, but for where it inherits from."""

    model: str
    table: LayerTable
    tensors: dict[str, Sequence[Any]]
    inherited: list[tuple[str, str]]  # layer, and the model that has it
    namespace: str
    score: float
    parent: str
    graph: str
    metadata: dict[str, Any]


def ancestors(store: Store, models: Sequence[str]) -> list[str]:
    """Return the models, and before them those that they descend from or inherit from.

    Parents and owners that were retired are not there any more: what they own goes to their heirs.
    """
    found: dict[str, ModelInfo] = {}
    left = list(models)
    while left:
        model = left.pop()
        if model in found:
            continue
        try:
            info = store.lookup(model)
        except NotFound:
            if model in models:
                raise
            continue
        found[model] = info
        left += [each for each in {info.parent, *info.owners.values()} if each]
    return list(found)


def write(path: Path, store: Store, models: Sequence[str], *, replace: bool) -> int:
    """Write models to a file that is there whole or not at all. Returns bytes of their tensors.

    Raises
    ------
    FileError
        There is such a file, or the directory cannot be written to.
    NotFound
        There is no such model.
    """
    from safetensors.numpy import save_file

    infos = sorted((store.lookup(model) for model in dict.fromkeys(models)), key=_age(models))
    named: dict[str, Array] = {}
    holders: dict[tuple[str, str], str] = {}  # owner in the store, layer -> model of the file
    documents = []
    for info in infos:
        own = [
            layer
            for layer, owner in info.owners.items()
            if holders.setdefault((owner, layer), info.model) == info.model
        ]
        tensors = store.read(info.model, own) if own else {}
        layers = []
        table = info.table
        for layer, requires, nbytes in zip(table.names, table.requires, table.nbytes, strict=True):
            owner = info.owners.get(layer)
            described: dict[str, Any] = {
                "name": layer,
                "requires": requires,
                "nbytes": nbytes,
                "owner": None if owner is None else holders[owner, layer],
            }
            if described["owner"] == info.model:
                described["tensors"] = []
                for number, array in enumerate(tensors[layer]):
                    name = f"{info.model}/{layer}/{number}"
                    while name in named:
                        name += "'"
                    named[name] = _files.plain(array)
                    described["tensors"].append((name, array.dtype.name))
            layers.append(described)
        documents.append({**_files.description(info), "layers": layers})
    said = json.dumps({"format": FORMAT, "models": documents})
    with _files.replacing(path, replace) as temporary:
        save_file(named, temporary, metadata={_KEY: said})
    return sum(array.nbytes for array in named.values())


def _age(models: Sequence[str]) -> Any:
    """Oldest first, so that a layer stays with who put it; else as they were named."""
    order = {model: place for place, model in enumerate(models)}
    return lambda info: (info.created, order[info.model])


def read(path: Path) -> list[Exported]:
    """Models of a file, ancestors first. The arrays are the file itself, mapped into memory.

    Raises
    ------
    FileError
        The file is missing, is no safetensors file, or none of :func:`write`.
    """
    arrays, said = _files.map_tensors(path)
    if _KEY not in said:
        raise FileError(
            f"{path} is no file of cpp-store export; cpp-store put takes other safetensors files"
        )
    try:
        document = json.loads(said[_KEY])
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}; this program reads {FORMAT}")
        return [_exported(each, arrays) for each in document["models"]]
    except KeyError as error:
        raise FileError(f"{path}: its metadata under {_KEY!r} want {error}") from error
    except RecursionError as error:
        raise FileError(f"{path}: its metadata under {_KEY!r} are nested too deeply") from error
    except (TypeError, ValueError) as error:
        raise FileError(f"{path}: its metadata under {_KEY!r} are damaged: {error}") from error


def _exported(document: dict[str, Any], arrays: dict[str, Array]) -> Exported:
    layers = document["layers"]
    model = document["model"]
    return Exported(
        table=LayerTable(
            [layer["name"] for layer in layers],
            [layer["requires"] for layer in layers],
            [layer["nbytes"] for layer in layers],
        ),
        tensors={
            layer["name"]: [
                _files.restored(arrays[name], dtype) for name, dtype in layer["tensors"]
            ]
            for layer in layers
            if layer["owner"] == model
        },
        inherited=[
            (layer["name"], arguments.text(layer["owner"], "owner"))
            for layer in layers
            if layer["owner"] is not None and layer["owner"] != model
        ],
        **_files.said_of_model(document),
    )


def put(store: Store, models: Sequence[Exported]) -> int:
    """Store models of a file, in their order. Returns the bytes that they added.

    Models that are there already with the same content count as stored.
    """
    handle = store._open_handle()
    added = 0
    for each in models:
        added += handle.put(
            each.model,
            each.tensors,
            each.table,
            each.inherited,
            each.namespace,
            each.score,
            each.parent,
            each.graph,
            json.dumps(each.metadata),
        )
    return added
