"""Every layer class of Keras: there and back, built twice, and with other arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import pytest

from graph_meta import LayerGraph
from graph_meta.keras_io import derive_state, from_keras, get_weights, set_weights, to_keras

keras = pytest.importorskip("keras")
K = keras.layers

STEPS, IMAGE, VOLUME = (6, 4), (8, 8, 3), (4, 4, 4, 2)

# What no graph can have: base classes and cells, what wraps other libraries, what prepares bounding
# boxes, a Lambda (it is refused). Keras cannot call Equalization in a model, and does not read what
# RandomShear writes.
NOT_LAYERS_OF_GRAPHS = {
    "Equalization",
    "FlaxLayer",
    "GRUCell",
    "JaxLayer",
    "LSTMCell",
    "Lambda",
    "Layer",
    "MaxNumBoundingBoxes",
    "RandomShear",
    "SimpleRNNCell",
    "StackedRNNCells",
    "TFSMLayer",
    "TorchModuleWrapper",
    "Wrapper",
}


class Case(NamedTuple):
    """How a class is tried: the shapes of its inputs, and arguments of which no two are equal."""

    shapes: tuple[tuple[int, ...], ...]
    variants: Sequence[Mapping[str, Any]] = ({},)
    dtype: str = "float32"


def on(*shapes: tuple[int, ...], dtype: str = "float32") -> Callable[..., Case]:
    """Return what makes cases with these inputs."""
    return lambda *variants: Case(shapes, variants or ({},), dtype)


steps, image, volume, flat = on(STEPS), on(IMAGE), on(VOLUME), on((4,))
pair, strings, numbers = on((4,), (4,)), on((3,), dtype="string"), on((3,), dtype="int32")


def _sized(case: Callable[..., Case]) -> Case:
    return case({"output_size": 2}, {"output_size": 3})


def _pooled(case: Callable[..., Case]) -> Case:
    return case({"pool_size": 2}, {"pool_size": 3, "strides": 1, "padding": "same"})


def _convolved(case: Callable[..., Case]) -> Case:
    first = {"filters": 4, "kernel_size": 3, "padding": "same"}
    return case(
        first,
        {**first, "use_bias": False},
        {**first, "activation": "tanh"},
        {**first, "kernel_regularizer": "l2"},
        {**first, "kernel_constraint": "non_neg"},
        {**first, "kernel_initializer": keras.initializers.HeNormal(seed=3)},
    )


def _across(case: Callable[..., Case]) -> Case:
    first = {"kernel_size": 3, "padding": "same", "depth_multiplier": 2}
    return case(first, {**first, "activation": "relu"}, {**first, "use_bias": False})


def _recurrent() -> Case:
    return steps(
        {"units": 3},
        {"units": 3, "go_backwards": True},
        {"units": 3, "return_sequences": True},
        {"units": 3, "activation": "relu"},
        {"units": 3, "seed": 5, "dropout": 0.3},
    )


def _convolved_steps(shape: tuple[int, ...]) -> Case:
    first = {"filters": 2, "kernel_size": 2}
    return on(shape)(first, {**first, "return_sequences": True})


def _random(**arguments: Any) -> Case:
    return image(arguments, {**arguments, "seed": 3}, {**arguments, "seed": 4})


_factor = {"factor": 0.4}
_lookup = {"vocabulary": ["a", "b", "c"]}

CASES: dict[str, Case] = {
    "Activation": flat(*({"activation": name} for name in ("relu", "tanh", "linear"))),
    "ActivityRegularization": flat({"l1": 0.1}, {"l2": 0.1}),
    "AdaptiveAveragePooling1D": _sized(steps),
    "AdaptiveAveragePooling2D": _sized(image),
    "AdaptiveAveragePooling3D": _sized(volume),
    "AdaptiveMaxPooling1D": _sized(steps),
    "AdaptiveMaxPooling2D": _sized(image),
    "AdaptiveMaxPooling3D": _sized(volume),
    "AlphaDropout": flat({"rate": 0.1}, {"rate": 0.2}, {"rate": 0.2, "seed": 1}),
    "AdditiveAttention": on(STEPS, STEPS)({}, {"use_scale": False}),
    "Attention": on(STEPS, STEPS)({}, {"use_scale": True}, {"score_mode": "concat"}),
    "AugMix": _random(),
    "AutoContrast": image({}, {"value_range": (0, 1)}),
    "AveragePooling1D": _pooled(steps),
    "AveragePooling2D": _pooled(image),
    "AveragePooling3D": _pooled(volume),
    "BatchNormalization": image({}, {"axis": 1}, {"scale": False}, {"center": False}),
    "Bidirectional": steps(
        {"layer": lambda: K.LSTM(2)},
        {"layer": lambda: K.GRU(2)},
        {"layer": lambda: K.LSTM(2), "merge_mode": "sum"},
        {"layer": lambda: K.LSTM(2), "backward_layer": lambda: K.GRU(2, go_backwards=True)},
    ),
    "CategoryEncoding": numbers(
        {"num_tokens": 9}, {"num_tokens": 9, "output_mode": "count"}, {"num_tokens": 10}
    ),
    "CenterCrop": image({"height": 4, "width": 4}, {"height": 4, "width": 6}),
    "Concatenate": on(STEPS, STEPS)({}, {"axis": 1}),
    "ContrastLimitedAdaptiveHistogramEqualization": image({}, {"clip_limit": 1.0}),
    "Conv1D": _convolved(steps),
    "Conv1DTranspose": _convolved(steps),
    "Conv2D": _convolved(image),
    "Conv2DTranspose": _convolved(image),
    "Conv3D": _convolved(volume),
    "Conv3DTranspose": _convolved(volume),
    "ConvLSTM1D": _convolved_steps((3, 5, 2)),
    "ConvLSTM2D": _convolved_steps((3, 5, 5, 2)),
    "ConvLSTM3D": _convolved_steps((3, 4, 4, 4, 2)),
    "Cropping1D": steps({}, {"cropping": (1, 2)}),
    "Cropping2D": image({"cropping": 1}, {"cropping": ((1, 2), (0, 1))}),
    "Cropping3D": volume({"cropping": 1}, {"cropping": ((1, 2), (0, 1), (0, 0))}),
    "CutMix": _random(),
    "Dense": flat(
        {"units": 3},
        {"units": 3, "use_bias": False},
        {"units": 3, "activation": "relu"},
        {"units": 3, "activity_regularizer": "l1"},
        {"units": 3, "lora_rank": 2},
        {"units": 3, "dtype": "mixed_bfloat16"},
    ),
    "DepthwiseConv1D": _across(steps),
    "DepthwiseConv2D": _across(image),
    "Discretization": flat(
        {"bin_boundaries": [0.0, 0.5]},
        {"bin_boundaries": [0.0, 0.6]},
        {"bin_boundaries": [0.0, 0.5], "output_mode": "multi_hot"},
    ),
    "Dot": pair({"axes": 1}, {"axes": 1, "normalize": True}),
    "Dropout": steps({"rate": 0.1}, {"rate": 0.1, "noise_shape": (None, 1, 4)}),
    "ELU": flat({}, {"alpha": 0.5}),
    "EinsumDense": steps(
        {"equation": "abc,cd->abd", "output_shape": (None, 5)},
        {"equation": "abc,cd->abd", "output_shape": (None, 5), "bias_axes": "d"},
    ),
    "Embedding": numbers(
        {"input_dim": 9, "output_dim": 2},
        {"input_dim": 9, "output_dim": 2, "mask_zero": True},
    ),
    "Flatten": image(),
    "GRU": _recurrent(),
    "GaussianDropout": flat({"rate": 0.1}, {"rate": 0.2}),
    "GaussianNoise": flat({"stddev": 0.1}, {"stddev": 0.2}),
    **{
        f"Global{kind}Pooling{case_name}": case({}, {"keepdims": True})
        for kind in ("Average", "Max")
        for case_name, case in (("1D", steps), ("2D", image), ("3D", volume))
    },
    "GroupNormalization": image({"groups": 3}, {"groups": 1}, {"groups": 3, "scale": False}),
    "GroupedQueryAttention": on(STEPS, STEPS)(
        {"head_dim": 2, "num_query_heads": 4, "num_key_value_heads": 2},
        {"head_dim": 2, "num_query_heads": 4, "num_key_value_heads": 4},
    ),
    "HashedCrossing": on((1,), (1,), dtype="int32")({"num_bins": 5}, {"num_bins": 6}),
    "Hashing": strings(
        {"num_bins": 5}, {"num_bins": 5, "salt": 7}, {"num_bins": 5, "mask_value": "a"}
    ),
    "Identity": flat(),
    "IntegerLookup": numbers(
        {"vocabulary": [7, 8, 2]},
        {"vocabulary": [8, 7, 2]},
        {"vocabulary": [7, 8, 2], "output_mode": "count"},
        {"vocabulary": [7, 8, 2], "num_oov_indices": 2},
    ),
    "LSTM": _recurrent(),
    "LayerNormalization": steps({}, {"axis": 1}, {"rms_scaling": True}, {"epsilon": 0.5}),
    "LeakyReLU": flat({}, {"negative_slope": 0.9}),
    "Masking": steps({}, {"mask_value": 1.0}),
    "MaxPooling1D": _pooled(steps),
    "MaxPooling2D": _pooled(image),
    "MaxPooling3D": _pooled(volume),
    "MelSpectrogram": on((600,))(
        {"fft_length": 128, "num_mel_bins": 8},
        {"fft_length": 128, "num_mel_bins": 8, "power_to_db": False},
    ),
    "MixUp": _random(),
    "MultiHeadAttention": on(STEPS, STEPS)(
        {"num_heads": 2, "key_dim": 3},
        {"num_heads": 2, "key_dim": 3, "value_dim": 2},
        {"num_heads": 2, "key_dim": 3, "output_shape": 5},
        {"num_heads": 2, "key_dim": 3, "use_bias": False},
    ),
    "Normalization": flat({}, {"mean": 1.0, "variance": 4.0}, {"mean": 1.0, "variance": 9.0}),
    "PReLU": steps({}, {"shared_axes": [1]}),
    "Permute": steps({"dims": (2, 1)}, {"dims": (1, 2)}),
    "Pipeline": image(
        {"layers": lambda: [K.Rescaling(0.5), K.CenterCrop(4, 4)]},
        {"layers": lambda: [K.CenterCrop(4, 4), K.Rescaling(0.5)]},
        {"layers": lambda: [K.Rescaling(0.5), K.CenterCrop(4, 6)]},
    ),
    "RMSNormalization": steps({}, {"epsilon": 0.5}),
    "RNN": steps(
        {"cell": lambda: K.LSTMCell(3)},
        {"cell": lambda: [K.LSTMCell(3), K.GRUCell(3)]},
        {"cell": lambda: [K.GRUCell(3), K.LSTMCell(3)]},
        {"cell": lambda: K.LSTMCell(3), "unroll": True},
    ),
    "RandAugment": _random(),
    **{
        f"Random{name}": _random(**_factor)
        for name in (
            "Brightness",
            "ColorDegeneration",
            "Contrast",
            "Hue",
            "Invert",
            "Perspective",
            "Rotation",
            "Saturation",
            "Sharpness",
        )
    },
    "RandomColorJitter": _random(brightness_factor=0.2),
    "RandomCrop": _random(height=6, width=6),
    "RandomElasticTransform": _random(),
    "RandomErasing": _random(),
    "RandomGrayscale": image(_factor, {"factor": 0.5}),  # it does not write its seed down
    "RandomFlip": _random(mode="horizontal"),
    "RandomGaussianBlur": _random(),
    "RandomPosterization": _random(factor=4),
    "RandomTranslation": _random(height_factor=0.2, width_factor=0.3),
    "RandomZoom": _random(height_factor=0.2),
    "ReLU": flat({}, {"max_value": 0.5}, {"threshold": 0.2}, {"negative_slope": 0.1}),
    "RepeatVector": flat({"n": 2}, {"n": 3}),
    "Rescaling": flat({"scale": 2.0}, {"scale": 2.0, "offset": 1.0}, {"scale": [1.0, 2, 3, 4]}),
    "Reshape": steps({"target_shape": (4, 6)}, {"target_shape": (-1,)}),
    "Resizing": image(
        {"height": 4, "width": 4}, {"height": 4, "width": 4, "interpolation": "nearest"}
    ),
    "ReversibleEmbedding": numbers(
        {"input_dim": 9, "output_dim": 2}, {"input_dim": 9, "output_dim": 2, "tie_weights": False}
    ),
    "STFTSpectrogram": on((256, 1))(
        {"frame_length": 64, "frame_step": 32, "fft_length": 64},
        {"frame_length": 64, "frame_step": 32, "fft_length": 64, "mode": "real"},
    ),
    "SeparableConv1D": steps({"filters": 3, "kernel_size": 2}, {"filters": 3, "kernel_size": 3}),
    "SeparableConv2D": image({"filters": 3, "kernel_size": 2}, {"filters": 3, "kernel_size": 3}),
    "SimpleRNN": _recurrent(),
    "Softmax": steps({}, {"axis": 1}),
    "Solarization": image({}, {"threshold_factor": 0.3}),
    "SpatialDropout1D": steps({"rate": 0.1}, {"rate": 0.2}),
    "SpatialDropout2D": image({"rate": 0.1}, {"rate": 0.2}),
    "SpatialDropout3D": volume({"rate": 0.1}, {"rate": 0.2}),
    "SpectralNormalization": flat(
        {"layer": lambda: K.Dense(3)}, {"layer": lambda: K.Dense(3), "power_iterations": 2}
    ),
    "StringLookup": strings(
        _lookup,
        {"vocabulary": ["b", "a", "c"]},
        {"vocabulary": ["a", "b", "new\nline", " "]},
        {**_lookup, "mask_token": ""},
        {**_lookup, "output_mode": "multi_hot"},
        {**_lookup, "output_mode": "tf_idf", "idf_weights": [0.1, 0.2, 0.3]},
        {**_lookup, "output_mode": "tf_idf", "idf_weights": [0.1, 0.2, 0.4]},
    ),
    "TextVectorization": on((1,), dtype="string")(
        _lookup,
        {"vocabulary": ["b", "a", "c"]},
        {**_lookup, "standardize": None},
        {**_lookup, "split": "character"},
        {**_lookup, "output_sequence_length": 5},
        {**_lookup, "output_mode": "count"},
        {**_lookup, "output_mode": "tf_idf", "idf_weights": [0.1, 0.2, 0.3]},
        {**_lookup, "ngrams": 2},
        {**_lookup, "ngrams": (2, 3)},
    ),
    "TimeDistributed": steps(
        {"layer": lambda: K.Dense(3)}, {"layer": lambda: K.Dense(3, activation="relu")}
    ),
    "UnitNormalization": steps({}, {"axis": 1}),
    "UpSampling1D": steps({}, {"size": 3}),
    "UpSampling2D": image({}, {"interpolation": "bilinear"}),
    "UpSampling3D": volume({}, {"size": 3}),
    "ZeroPadding1D": steps({}, {"padding": (1, 2)}),
    "ZeroPadding2D": image({}, {"padding": ((1, 2), (0, 1))}),
    "ZeroPadding3D": volume({}, {"padding": ((1, 2), (0, 1), (0, 0))}),
    **{name: pair() for name in ("Add", "Average", "Maximum", "Minimum", "Multiply", "Subtract")},
    "InputLayer": flat(),
}
_AS_ARGUMENTS = {"MultiHeadAttention", "GroupedQueryAttention"}


def classes() -> dict[str, Any]:
    """Return the layer classes of this version of Keras, each once, by its own name."""
    found = {each for each in vars(K).values() if isinstance(each, type)}
    return {
        each.__name__: each
        for each in sorted(found, key=lambda each: each.__name__)
        if issubclass(each, K.Layer) and each.__name__ not in NOT_LAYERS_OF_GRAPHS
    }


def built(name: str, arguments: Mapping[str, Any]) -> Any:
    """Return a model of that layer alone, with a dense layer behind it if it takes floats."""
    case = CASES[name]
    inputs = [keras.Input(shape, dtype=case.dtype) for shape in case.shapes]
    if name == "InputLayer":
        return keras.Model(inputs, inputs[0])
    given = {
        key: each() if isinstance(each, FunctionType) else each for key, each in arguments.items()
    }
    layer = classes()[name](**given)
    if name in _AS_ARGUMENTS:
        outputs = layer(*inputs)
    else:
        outputs = layer(inputs[0] if len(inputs) == 1 else inputs)
    return keras.Model(inputs, outputs)


def sample(case: Case) -> list[Any]:
    rng = np.random.default_rng(5)
    made: list[Any] = []
    for shape in case.shapes:
        if case.dtype == "string":
            made.append(keras.ops.convert_to_tensor(rng.choice(["a", "b c", "z"], (2, *shape))))
        elif case.dtype == "int32":
            made.append(rng.integers(0, 9, (2, *shape)).astype("int32"))
        else:
            made.append(rng.normal(size=(2, *shape)).astype("float32"))
    return made


def outputs(model: Any, inputs: list[Any]) -> list[np.ndarray[Any, Any]]:
    found = keras.tree.flatten(model(inputs[0] if len(inputs) == 1 else inputs, training=False))
    return [np.asarray(keras.ops.convert_to_numpy(output)) for output in found]


def randomized(model: Any) -> Any:
    """Return the model with weights that differ from those it was made with."""
    rng = np.random.default_rng(7)
    for weight in model.weights:
        if "float" in weight.dtype:
            weight.assign(rng.uniform(0.1, 1, weight.shape))
    derive_state(model)
    return model


def check_there_and_back(model: Any, inputs: list[Any]) -> LayerGraph:
    graph = from_keras(model)
    again = to_keras(LayerGraph.from_json(graph.to_json()))
    assert sorted(from_keras(again).digests) == sorted(graph.digests)
    set_weights(again, get_weights(model))
    for ours, theirs in zip(outputs(again, inputs), outputs(model, inputs), strict=True):
        if theirs.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(ours, theirs)
    return graph


@pytest.mark.parametrize("name", CASES)
def test_a_layer_is_what_its_class_and_arguments_make_it(name: str) -> None:
    if name not in classes():
        pytest.skip(f"this version of Keras has no {name}")
    case = CASES[name]
    seen: dict[bytes, Mapping[str, Any]] = {}
    for arguments in case.variants:
        graph = check_there_and_back(randomized(built(name, arguments)), sample(case))
        assert from_keras(built(name, arguments)).names == graph.names, arguments
        assert graph.digests[-1] not in seen, (arguments, seen[graph.digests[-1]])
        seen[graph.digests[-1]] = arguments


def test_no_class_is_forgotten() -> None:
    assert sorted(set(classes()) - set(CASES)) == []
