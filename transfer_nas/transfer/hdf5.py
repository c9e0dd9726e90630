"""Whole copies in files: the baseline that needs nothing but a directory which all ranks see.

A model is two files, ``<id>.<token>.h5`` (a group for each layer, a data set for each tensor) and
``<id>.<token>.json``, its manifest. The manifest is written last and removed first, and nothing is
changed once it is there: a model is visible whole or not at all. Each process finds the models of
the others by reading the manifests that are new to it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import urllib.parse
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import h5py
import ml_dtypes  # noqa: F401 - makes NumPy know bfloat16 and float8 by name
import numpy as np
import numpy.typing as npt

import cpp_store
from graph_meta import LayerGraph
from transfer_nas.errors import InputError, TransferError, TransferUnavailable
from transfer_nas.transfer._base import Inheritance, Tensors, TransferMethod
from transfer_nas.transfer._copies import (
    best_match,
    describe,
    graph_of,
    table_of,
    version_of,
    whole_copy,
)

_FORMAT = "transfer-nas-model"
_VERSION = 1

_log = logging.getLogger(__name__)


class HDF5Transfer(TransferMethod):
    """One HDF5 file for each model, with all its layers.

    Parameters
    ----------
    namespace
        Models of other namespaces in the directory are left alone.
    directory
        Where the files are; made if it is not there.
    """

    name: ClassVar[str] = "hdf5"

    def __init__(self, namespace: str, directory: Path) -> None:
        self.namespace = namespace
        self.directory = directory
        with _failures(f"cannot use {directory}"):
            directory.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()  # guards what follows: what this process knows of the files
        self._index = cpp_store.PrefixIndex()  # of manifests, by the name without .json
        self._known: dict[str, _Manifest] = {}

    @classmethod
    def create(
        cls, namespace: str, *, directory: Path | None = None, store: cpp_store.Store | None = None
    ) -> HDF5Transfer:
        """Make one; it needs a directory."""
        if directory is None:
            raise InputError("transfer method hdf5 needs a directory that all ranks see")
        try:
            return cls(namespace, directory)
        except TransferError as error:
            raise InputError(f"transfer method hdf5: {error}") from error

    def best_match(self, graph: LayerGraph, only: str = "") -> HDF5Inheritance | None:
        """Find the best match among the manifests that are there now."""
        with self._lock:
            self._scan()
            while True:
                one = self._one(only) if only else None
                if only and one is None:
                    return None
                match = best_match(self._index, graph, self.namespace, one)
                if match is None:
                    return None
                manifest = self._known[match.model]
                try:
                    # Once it is open, the data stays though the name is removed.
                    with _failures(f"cannot open {manifest.data}", vanished=_Vanished):
                        file = h5py.File(manifest.data, "r", locking=False)
                except _Vanished:
                    self._forget(match.model)
                    continue
                layers = tuple(graph.names[position] for position in match.positions)
                return HDF5Inheritance(manifest, match, layers, file)

    def versions(self) -> set[object]:
        """Look at all manifests, as the first best match does."""
        with self._lock:
            self._scan()
            manifests = list(self._known.values())
        return {each.version for each in manifests if each.namespace == self.namespace}

    def whole(self, model: str) -> tuple[LayerGraph, Tensors] | None:
        """Read the files of a model."""
        for name in self._names(model):
            try:
                with _failures(f"cannot read {name}", vanished=_Vanished):
                    manifest = json.loads((self.directory / f"{name}.json").read_text())
                    with h5py.File(self.directory / f"{name}.h5", "r", locking=False) as file:
                        tensors = {layer: _read_tensors(file[layer]) for layer in file}
                return graph_of(manifest), tensors
            except _Vanished:
                continue
        return None

    def put(
        self,
        model: str,
        graph: LayerGraph,
        tensors: Tensors,
        *,
        score: float,
        parent: str = "",
        inheritance: Inheritance | None = None,
        inherited: Collection[str] = (),
    ) -> int:
        """Write a whole copy, inherited layers included."""
        if not model:
            raise ValueError("a model's id must not be empty")
        whole = whole_copy(tensors, inheritance, inherited, HDF5Inheritance)
        earlier = self._names(model)
        name = f"{_quote(model)}.{uuid.uuid4().hex[:12]}"
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "namespace": self.namespace,
            **describe(model, graph, score=score, parent=parent),
        }
        with _failures(f"cannot write model {model!r} to {self.directory}"):
            with self._written(f"{name}.h5") as path:
                nbytes = _write_tensors(path, whole)
            with self._written(f"{name}.json") as path:
                path.write_text(json.dumps(manifest))
        self._remove(earlier)
        return nbytes

    def retire(self, models: Iterable[str]) -> None:
        """Remove the files of models."""
        for model in models:
            self._remove(self._names(model))

    def _one(self, model: str) -> tuple[str, cpp_store.LayerTable] | None:
        """Return name and layers of the newest manifest of a model; None if there is none."""
        found = [
            (manifest.created_ns, name, manifest.table)
            for name, manifest in self._known.items()
            if (manifest.model, manifest.namespace) == (model, self.namespace)
            and manifest.table is not None
        ]
        return max(found, key=lambda each: each[:2])[1:] if found else None

    def _scan(self) -> None:
        """Take note of manifests that came or went since the last scan."""
        present = self._manifests()
        for name in self._known.keys() - present:
            self._forget(name)
        for name in present - self._known.keys():
            try:
                with _failures(f"cannot read {name}.json", vanished=_Vanished):
                    manifest = _Manifest.read(self.directory / f"{name}.json")
            except _Vanished:
                continue
            self._known[name] = manifest
            if manifest.table is not None:
                self._index.add(
                    name,
                    manifest.table,
                    score=manifest.score,
                    namespace=manifest.namespace,
                    sequence=manifest.created_ns,
                )

    def _forget(self, name: str) -> None:
        del self._known[name]
        self._index.remove(name)

    def _names(self, model: str) -> list[str]:
        """Return the names, without endings, of the files that there are of a model."""
        prefix = f"{_quote(model)}."
        return [name for name in self._manifests() if name.startswith(prefix)]

    def _manifests(self) -> set[str]:
        """Return the names, without endings, of all manifests."""
        with _failures(f"cannot list {self.directory}"), os.scandir(self.directory) as entries:
            return {
                entry.name.removesuffix(".json")
                for entry in entries
                if entry.name.endswith(".json") and not entry.name.startswith(".")
            }

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            with _failures(f"cannot remove {name} from {self.directory}"):
                (self.directory / f"{name}.json").unlink(missing_ok=True)
                (self.directory / f"{name}.h5").unlink(missing_ok=True)

    @contextmanager
    def _written(self, name: str) -> Iterator[Path]:
        """Give a file its name when it is complete."""
        path = self.directory / name
        temporary = self.directory / f".{name}.part"
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


class HDF5Inheritance(Inheritance):
    """An open file, which keeps the tensors though its name is removed."""

    def __init__(
        self,
        manifest: _Manifest,
        match: cpp_store.Match,
        layers: tuple[str, ...],
        file: h5py.File,
    ) -> None:
        self.ancestor = manifest.model
        self.score = manifest.score
        self.layers = layers
        self.nbytes = match.bytes
        self._file = file
        self._tensors: Tensors | None = None

    def read(self) -> Tensors:
        """Read the layers' data sets, once."""
        if self._tensors is None:
            with _failures(f"cannot read model {self.ancestor!r}"):
                self._tensors = {
                    layer: _read_tensors(self._file[layer])
                    for layer in self.layers
                    if layer in self._file
                }
        return self._tensors

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._tensors = None


@dataclass(frozen=True, slots=True)
class _Manifest:
    """What a ``.json`` file says; `table` is None if it is no manifest of ours."""

    data: Path
    model: str = ""
    namespace: str = ""
    score: float = 0.0
    created_ns: int = 0
    version: object = None
    table: cpp_store.LayerTable | None = None

    @classmethod
    def read(cls, path: Path) -> _Manifest:
        data = path.with_name(path.name.removesuffix(".json") + ".h5")
        text = path.read_text()
        try:
            fields = json.loads(text)
            if (fields["format"], fields["version"]) != (_FORMAT, _VERSION):
                raise ValueError(f"format {fields['format']!r}, version {fields['version']!r}")
            return cls(
                data=data,
                model=str(fields["model"]),
                namespace=str(fields["namespace"]),
                score=float(fields["score"]),
                created_ns=int(fields["created_ns"]),
                version=version_of(fields),
                table=table_of(fields),
            )
        except (ValueError, LookupError, TypeError) as error:
            _log.warning("%s is not a model's manifest, left alone: %s", path, error)
            return cls(data)


class _Vanished(TransferError):
    """A file that was there a moment ago."""


@contextmanager
def _failures(what: str, vanished: type[TransferError] = TransferUnavailable) -> Iterator[None]:
    """Turn what files raise into what `TransferMethod` promises."""
    try:
        yield
    except FileNotFoundError as error:
        raise vanished(f"{what}: {error}") from error
    except OSError as error:
        raise TransferError(f"{what}: {error}") from error


def _quote(model: str) -> str:
    """Return a file name that holds no separator, and no dot (they end the id)."""
    return urllib.parse.quote(model, safe="").replace(".", "%2E")


def _write_tensors(path: Path, layers: Tensors) -> int:
    """Write one group for each layer; return the bytes of the tensors."""
    nbytes = 0
    with h5py.File(path, "w") as file:
        for layer, tensors in layers.items():
            group = file.create_group(layer)
            for position, tensor in enumerate(tensors):
                raw = tensor if tensor.dtype.isbuiltin == 1 else _unsigned(tensor)
                group.create_dataset(str(position), data=raw).attrs["dtype"] = tensor.dtype.name
                nbytes += tensor.nbytes
    return nbytes


def _read_tensors(group: h5py.Group) -> list[npt.NDArray[np.generic]]:
    tensors = []
    for position in range(len(group)):
        data = group[str(position)]
        tensor = np.asarray(data[()]).view(np.dtype(str(data.attrs["dtype"])))
        tensor.flags.writeable = False
        tensors.append(tensor)
    return tensors


def _unsigned(tensor: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """View bfloat16 and float8, which HDF5 does not know, as unsigned integers."""
    return tensor.view(np.dtype(f"u{tensor.dtype.itemsize}"))
