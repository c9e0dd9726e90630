"""A trained model as a file that takes milliseconds to write; and from there to Keras' own format.

While a search runs, each model that may be the best is written down, and most of them are beaten
soon. Writing a Keras model means to build it, and first of all to import Keras and TensorFlow,
which takes longer than many evaluations; a safetensors file of the weights with the layer graph
in its metadata does not. Nor is there time for it where a signal ends the search:
``python -m transfer_nas.trained_model RUN`` does it then.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401 - makes NumPy know bfloat16 and float8 by name
import numpy as np
import numpy.typing as npt

from cpp_store import command_line, files
from graph_meta import LayerGraph
from transfer_nas import judgement
from transfer_nas.applications import Application
from transfer_nas.errors import InputError
from transfer_nas.transfer import Tensors

if TYPE_CHECKING:
    import keras

_log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
_GRAPH = "layer_graph"
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_]+")
_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])")  # where one begins in a class name


def write(path: Path, graph: LayerGraph, tensors: Tensors) -> None:
    """Write a model.

    Parameters
    ----------
    path
        The file.
    graph
        Its layers, as JSON under ``layer_graph`` of the metadata.
    tensors
        All weights, by stable name; in the file, ``NAME/0``, ``NAME/1``, …
    """
    from safetensors.numpy import save  # save_file() would say of a full disk what nobody catches

    flat = {
        f"{name}/{i}": _plain(np.asarray(array, order="C"))
        for name, arrays in tensors.items()
        for i, array in enumerate(arrays)
    }
    with files.replacing(path) as fresh:
        fresh.write_bytes(save(flat, metadata={_GRAPH: graph.to_json()}))


def read(path: Path) -> tuple[LayerGraph, dict[str, list[npt.NDArray[Any]]]]:
    """Read what `write` wrote.

    Raises
    ------
    InputError
        The file is not one of these.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            graph = LayerGraph.from_json((file.metadata() or {})[_GRAPH])
            tensors = {
                name: [
                    _restored(file.get_tensor(f"{name}/{i}"), weight.dtype)
                    for i, weight in enumerate(layer.spec.weights)
                ]
                for name, layer in zip(graph.names, graph.layers, strict=True)
            }
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path} is no trained model: {error}") from None
    return graph, tensors


def write_keras(path: Path, graph: LayerGraph, tensors: Tensors, application: Application) -> None:
    """Write a model as a ``.keras`` file.

    The file holds a compiled model, all layers trainable but those that its function has frozen,
    its optimizer as at the start; plain
    Keras opens it (custom layers need their classes registered, as always). Layers have the names
    that Keras gives (``dense``, ``dense_1``); ``metadata.json`` in the file has the stable name of
    each under ``transfer_nas``. It is there whole or not at all.
    """
    from graph_meta import keras_io
    from transfer_nas.training.keras_engine import compile_model

    model = keras_io.to_keras(graph)
    keras_io.set_weights(model, tensors)
    stable_names = _rename_for_people(model, graph)
    compile_model(model, application)
    model.optimizer.build(model.trainable_variables)  # else Keras warns when it opens the file
    with files.replacing(path) as fresh:
        model.save(fresh)
        _note_in_metadata(fresh, {"transfer_nas": {"stable_names": stable_names}})


def best_path(directory: Path) -> Path:
    """Where a search keeps the best model so far, until `finish`."""
    return directory / f"best{SUFFIX}"


def front_path(directory: Path, job: int) -> Path:
    """Where a search for several objectives keeps the model of a job on the front."""
    return directory / "front" / f"{job}{SUFFIX}"


def finish(directory: Path, application: Application) -> Path:
    """Turn the best model of a run directory into ``best.keras``, if that is still to be done.

    Beside it goes what it predicts on the validation rows (`judgement`). Likewise those on the
    front of several objectives, into ``front/JOB.keras``.

    Returns
    -------
    Path
        Of ``best.keras``; there is none while no evaluation has worked.
    """
    best, path = best_path(directory), directory / "best.keras"
    if best.exists():
        graph, tensors = read(best)
        write_keras(path, graph, tensors, application)
        try:
            judgement.write(directory, graph, tensors, application)
        except Exception:  # outputs and targets of a user's may be anything; the model is there
            _log.warning("%s was not written", judgement.NAME, exc_info=True)
        best.unlink()
    for kept in sorted((directory / "front").glob(f"*{SUFFIX}")):
        write_keras(kept.with_suffix(".keras"), *read(kept), application)
        kept.unlink()
    return path


def plain_name(class_name: str) -> str:
    """Return what Keras calls the first layer of a class; registered classes may be any text."""
    words = _WORD.sub("_", class_name.rpartition(">")[2])
    return _NOT_IN_A_NAME.sub("_", words).strip("_").lower() or "layer"


def _rename_for_people(model: keras.Model, graph: LayerGraph) -> dict[str, str]:
    """Give the layers of `keras_io.to_keras` names as Keras makes them, in the graph's order.

    Returns
    -------
    dict
        New name -> stable name.
    """
    operations = {operation.name: operation for operation in model.operations}
    renamed: dict[str, str] = {}
    for stable_name, layer in zip(graph.names, graph.layers, strict=True):
        stem = plain_name(layer.spec.class_name)
        name, count = stem, 0
        while name in renamed:
            count += 1
            name = f"{stem}_{count}"
        renamed[name] = stable_name
        operations[stable_name].name = name
    return renamed


def _note_in_metadata(path: Path, notes: dict[str, Any]) -> None:
    """Add to ``metadata.json`` of a .keras file; Keras reads past what it does not know."""
    with (
        files.replacing(path) as noted,
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(noted, "w") as new,
    ):
        for member in old.infolist():
            with old.open(member) as source, new.open(member, "w") as target:
                if member.filename == "metadata.json":
                    target.write(json.dumps(json.load(source) | notes).encode())
                else:
                    shutil.copyfileobj(source, target, 1 << 20)


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array in a dtype that the format has: float8 and the like as integers of their
    size, complex numbers as pairs.
    """
    if array.dtype.kind == "c":
        part = array.real.dtype
        return array.reshape(-1).view(part).reshape(*array.shape, 2)
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.itemsize}")


def _restored(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    if dtype.startswith("complex"):
        return array.reshape(-1).view(dtype).reshape(array.shape[:-1])
    return array.view(dtype)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 for bad input."""
    return command_line.run("trained_model", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parser = command_line.Parser(
        prog="python -m transfer_nas.trained_model",
        description="Write RUN/best.keras, the best model of a search that a signal or --max_wait "
        "ended.",
    )
    parser.add_argument("run", metavar="RUN", help="run directory")
    directory = Path(parser.parse_args(arguments).run)

    from transfer_nas import applications
    from transfer_nas.searching.run_directory import load_description

    settings = load_description(directory)["settings"]
    if not best_path(directory).exists() and not (directory / "best.keras").exists():
        raise InputError(f"{directory} holds no model: expected best.safetensors of its search")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    application = applications.resolve(settings["application"], settings.get("data"))
    print(finish(directory, application))
    return command_line.OK


if __name__ == "__main__":
    sys.exit(main())
