"""What the weights of a layer are for: arrays of two layers are matched by that, not by place.

Options of a layer decide which weights it has (``scale``, ``center``, ``use_bias``), so that the
first weight of one normalization may be the factor and that of another the offset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graph_meta.graph import LayerSpec

_Config = Mapping[str, Any]

NEUTRAL: Mapping[str, float] = {
    "bias": 0,
    "beta": 0,
    "gamma": 1,
    "moving_mean": 0,
    "moving_variance": 1,
}
"""What a weight is that changes nothing: in the place of one that a layer has not."""


def roles(spec: LayerSpec) -> tuple[str, ...] | None:
    """Return what each weight of a layer is for, in the order of its weights.

    Equal roles mean equal functions of the array, axis by axis, whatever else is configured.

    Returns
    -------
    tuple of str or None
        None if it is not known: of classes of one's own, of layers with layers inside, of quantized
        ones.
    """
    named = _ROLES.get(spec.class_name)
    found = None if named is None else tuple(named(spec.config))
    return found if found is not None and len(found) == len(spec.weights) else None


def _with_bias(*kernels: str, default: bool = True) -> Callable[[_Config], Sequence[str]]:
    def found(config: _Config) -> Sequence[str]:
        return (*kernels, "bias") if config.get("use_bias", default) else kernels

    return found


def _convolution(*kernels: str) -> Callable[[_Config], Sequence[str]]:
    """In groups, a kernel's rows belong to other inputs than they do in one group."""

    def found(config: _Config) -> Sequence[str]:
        groups = config.get("groups", 1)
        named = kernels if groups == 1 else [f"{kernel} of {groups} groups" for kernel in kernels]
        return _with_bias(*named)(config)

    return found


def _normalization(*statistics: str) -> Callable[[_Config], Sequence[str]]:
    def found(config: _Config) -> Sequence[str]:
        if config.get("renorm") or config.get("rms_scaling"):
            return ()  # others than these
        learnt = [
            name
            for name, option in (("gamma", "scale"), ("beta", "center"))
            if config.get(option, True)
        ]
        return (*learnt, *statistics)

    return found


def _gru(config: _Config) -> Sequence[str]:
    after = "after" if config.get("reset_after", True) else "before"
    kernels = ("kernel", f"recurrent kernel, reset {after}")
    return (*kernels, f"bias, reset {after}") if config.get("use_bias", True) else kernels


_ROLES: Mapping[str, Callable[[_Config], Sequence[str]]] = {
    "Dense": _with_bias("kernel"),
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), _convolution("kernel")),
    **dict.fromkeys(
        ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _convolution("kernel")
    ),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _with_bias("kernel")),
    **dict.fromkeys(
        ("SeparableConv1D", "SeparableConv2D"), _with_bias("depthwise kernel", "pointwise kernel")
    ),
    **dict.fromkeys(("SimpleRNN", "LSTM"), _with_bias("kernel", "recurrent kernel")),
    "GRU": _gru,
    "BatchNormalization": _normalization("moving_mean", "moving_variance"),
    "LayerNormalization": _normalization(),
    "GroupNormalization": _normalization(),
    "RMSNormalization": lambda _: ("gamma",),
    "Embedding": lambda _: ("embeddings",),
    "PReLU": lambda _: ("alpha",),
}
"""By class of Keras."""


def axes(spec: LayerSpec) -> tuple[int, ...]:
    """Return the axes that a normalization's weights lie along; -1 is the last, the channels."""
    axis = spec.config.get("axis", -1)
    return tuple(axis) if isinstance(axis, list | tuple) else (axis,)
