"""The quick file of a trained model."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from graph_meta import LayerGraph, graph
from graph_meta.graph import Call, Edge, Layer, LayerSpec, WeightSpec
from transfer_nas import trained_model
from transfer_nas.errors import InputError

DTYPES = {name: np.dtype(getattr(ml_dtypes, name, None) or name) for name in graph._ITEM_SIZES}


def graph_of(dtype: str) -> LayerGraph:
    source = LayerSpec("InputLayer", {"batch_shape": [None, 3], "dtype": "float32"})
    own = LayerSpec("own>Layer", {}, (WeightSpec((3, 2), dtype), WeightSpec((), dtype)))
    layers = (Layer(source, (Call(()),)), Layer(own, (Call((Edge(0),)),)))
    return LayerGraph(layers, (Edge(0),), (Edge(1),))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_read_is_what_was_written(tmp_path: Path, dtype: str) -> None:
    made = graph_of(dtype)
    # Not contiguous, as views of a larger array may be.
    weight = np.arange(6).reshape(2, 3).astype(DTYPES[dtype]).T
    tensors = {made.names[1]: [weight, np.array(5).astype(DTYPES[dtype])]}

    trained_model.write(tmp_path / "m.safetensors", made, tensors)
    again, found = trained_model.read(tmp_path / "m.safetensors")

    assert again == made
    assert found[made.names[0]] == []
    for array, expected in zip(found[made.names[1]], tensors[made.names[1]], strict=True):
        assert array.dtype == expected.dtype and array.shape == expected.shape
        assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize("content", [b"", b"no model", b"\x02\0\0\0\0\0\0\0{}"])
def test_another_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"m\.safetensors is no trained model"):
        trained_model.read(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("class_name", "expected"),
    [
        ("Dense", "dense"),
        ("Conv2DTranspose", "conv2d_transpose"),
        ("GlobalAveragePooling1D", "global_average_pooling1d"),
        ("LSTM", "lstm"),
        ("ops.numpy>Add", "add"),
        ("mine>_Gate v2", "gate_v2"),
        ("mine>門", "layer"),
    ],
)
def test_layers_are_called_what_keras_calls_them(class_name: str, expected: str) -> None:
    assert trained_model.plain_name(class_name) == expected
