"""What there is to compute for a layer graph: its calls in order, if all are known here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from graph_meta import LayerGraph
from graph_meta.graph import LayerSpec
from transfer_nas.training.arrays.layers import INITIALIZERS, OPERATIONS, Array, Operation, Shape


@dataclass(frozen=True)
class Step:
    """One call of one layer.

    Attributes
    ----------
    layer
        Stable name.
    kind
        What does it.
    config
        The layer's.
    inputs, output
        Numbers of values.
    size
        Elements of the output, for one row.
    shared
        Whether the layer has several calls.
    """

    layer: str
    kind: type[Operation]
    config: Mapping[str, Any]
    inputs: tuple[int, ...]
    output: int
    size: int
    shared: bool


@dataclass(frozen=True)
class Plan:
    """The calls of a network's layers.

    Attributes
    ----------
    steps
        Each after those whose outputs it takes.
    inputs
        Numbers of the values that are the network's inputs, in its order.
    output
        Number of the value that is its output.
    values
        How many values there are.
    """

    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    output: int
    values: int

    @classmethod
    def of(cls, graph: LayerGraph) -> Plan | None:
        """Return the plan of a graph; None if something in it is not known here."""
        numbers: dict[tuple[int, int, int], int] = {}
        shapes: list[Shape] = []
        steps = []
        for position, layer in enumerate(graph.layers):
            spec = layer.spec
            is_input = spec.class_name == "InputLayer"
            kind = OPERATIONS.get(spec.class_name)
            if not is_input and (kind is None or not _is_known(kind, spec)):
                return None
            for number, call in enumerate(layer.calls):
                if call.arguments is not None or any(edge not in numbers for edge in call.inputs):
                    return None
                inputs = tuple(numbers[edge] for edge in call.inputs)
                found: tuple[int | None, ...] | None
                if kind is None:
                    found = tuple(spec.config["batch_shape"][1:])
                else:
                    found = kind.infer(spec.config, [shapes[value] for value in inputs])
                shape = tuple(axis for axis in found or (None,) if axis is not None)
                if found is None or len(shape) < len(found):
                    return None
                value = numbers[position, number, 0] = len(shapes)
                shapes.append(shape)
                if kind is not None:
                    name, size = graph.names[position], math.prod(shape)
                    steps.append(
                        Step(name, kind, spec.config, inputs, value, size, len(layer.calls) > 1)
                    )
        if len(graph.outputs) != 1 or graph.outputs[0] not in numbers:
            return None
        inputs = tuple(numbers[edge] for edge in graph.inputs)
        return cls(tuple(steps), inputs, numbers[graph.outputs[0]], len(shapes))


def unknown(graph: LayerGraph) -> str:
    """Return what in a graph without a plan is not known here."""
    for layer in graph.layers:
        name = layer.spec.class_name
        kind = OPERATIONS.get(name)
        if kind is None and name != "InputLayer":
            return f"the layer {name}"
        if kind is not None and not _is_known(kind, layer.spec):
            return f"a layer {name} of this configuration"
    return "how the layers are called"


def new_weights(spec: LayerSpec, rng: np.random.Generator) -> list[Array]:
    """Draw the weights of a layer of a plan."""
    names = OPERATIONS[spec.class_name].initializers
    return [
        INITIALIZERS[spec.config[name]](weight.shape, rng)
        for name, weight in zip(names, spec.weights, strict=False)
    ]


def _is_known(kind: type[Operation], spec: LayerSpec) -> bool:
    weights = list(zip(kind.initializers, spec.weights, strict=False))
    flags = {weight.trainable for name, weight in weights if not name.startswith("moving_")}
    return (
        kind.knows(spec.config)
        and len(flags) < 2
        and not spec.frozen_parts
        and len(spec.weights) <= len(kind.initializers)
        and all(weight.dtype == "float32" for weight in spec.weights)
        and all(
            isinstance(spec.config[name], str) and spec.config[name] in INITIALIZERS
            for name, _ in weights
        )
    )
