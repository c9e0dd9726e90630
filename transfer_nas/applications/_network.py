"""Whether a network takes what an application has, and gives what its loss takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from cpp_store.command_line import expected_rank

from graph_meta import LayerGraph
from graph_meta.graph import LayerSpec
from transfer_nas.applications import _terms
from transfer_nas.applications._output import Output
from transfer_nas.applications._terms import CLASSES, ONE_HOT, UNIT
from transfer_nas.errors import ApplicationError

_log = logging.getLogger(__name__)


def check(
    space: str,
    graph: LayerGraph,
    shapes: Sequence[tuple[int, ...]],
    heads: Sequence[Output],
) -> None:
    """Raise ApplicationError if a network does not go with inputs, loss and targets.

    A network that does not end as the application asks for is its function's matter: a warning.

    Parameters
    ----------
    space
        The name of the network's space.
    graph
        One of its networks. Only last layers that everybody uses are looked at.
    shapes
        Of the application's inputs.
    heads
        The outputs that the application needs.
    """
    takes = [graph.layers[edge.layer].spec.config.get("batch_shape") for edge in graph.inputs]
    if len(takes) != len(shapes) or not all(map(_takes, takes, shapes)):
        taken = [None if shape is None else tuple(shape[1:]) for shape in takes]
        raise ApplicationError(
            f"the networks of space {space} take inputs of shapes {taken}, and input_shapes is "
            f"{list(shapes)}"
        )
    if len(graph.outputs) != len(heads):
        if len(heads) == 1:
            return
        raise ApplicationError(
            f"the networks of space {space} have {len(graph.outputs)} outputs, and the application "
            f"has {len(heads)}"
        )
    for edge, head in zip(graph.outputs, heads, strict=True):
        _check_end(space, graph.layers[edge.layer].spec, head)


def _check_end(space: str, spec: LayerSpec, head: Output) -> None:
    """Raise ApplicationError if a last layer does not go with its loss and targets."""
    units = head.units
    found = spec.config.get("units", units) if spec.class_name == "Dense" else units
    if found != units:
        raise ApplicationError(
            f"the networks of space {space} have {found} outputs, and output_units is {units}"
        )
    activation = _activation(spec.class_name, spec.config)
    if activation == "softmax" and units == 1:
        raise ApplicationError(
            "a softmax over one output is always 1: use output_activation='sigmoid' with "
            "loss='binary_crossentropy', or two outputs"
        )
    name = _terms.plain_name(head.loss)
    kind = _terms.LOSSES.get(name) if isinstance(name, str) else None
    for metric in head.metrics if activation == "linear" else ():
        _terms.check_probabilities(metric, kind)
    if activation == "linear" and kind in (CLASSES, ONE_HOT, UNIT) and "crossentropy" in name:
        wanted = "sigmoid" if kind == UNIT else "softmax"
        ends = (
            f"{name} takes probabilities, and the networks of space {space} end in a linear layer: "
        )
        if head.activation in (None, "linear"):
            raise ApplicationError(f"{ends}set output_activation={wanted!r}")
        if expected_rank() == 0:
            _log.warning("%slet the last one have activation=%r", ends, wanted)


def _takes(batch_shape: Sequence[int | None] | None, shape: tuple[int, ...]) -> bool:
    if batch_shape is None:
        return True
    axes = batch_shape[1:]
    return len(axes) == len(shape) and all(
        axis in (None, size) for axis, size in zip(axes, shape, strict=True)
    )


def _activation(class_name: str, config: Any) -> str | None:
    """Return the name of a last layer's activation; None if it is not known."""
    if class_name == "Softmax":
        return "softmax"
    activation = config.get("activation") if class_name in ("Dense", "Activation") else None
    return activation if isinstance(activation, str) else None
