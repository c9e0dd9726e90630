"""Layer graphs from Keras models and back. Keras is imported when a function is called, not before.

Any Keras 3 model that is a graph of layers: Functional, built Sequential, several inputs and
outputs, shared layers, nested models (which become part of the one graph), layers called with
several or keyword tensors, operations on tensors such as ``x + y``, registered custom layers.

What a call of a model decides is no part of the graph: masks that Keras passes on by itself, and
``training`` arguments that change nothing. Others are: they hold where the model is called without
one. (``fit``, ``evaluate`` and ``predict`` have one, and Keras passes it on to all layers.) The
structure of a model's inputs and outputs (a dict, say) becomes a list.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graph_meta import _keras_config, _keras_state
from graph_meta._keras_config import REFUSALS, REGISTER, one_line
from graph_meta.graph import Call, Edge, Layer, LayerGraph, LayerSpec, WeightSpec
from graph_meta.naming import GraphError, canonical_json, plain

if TYPE_CHECKING:
    import keras
    from numpy.typing import NDArray


def from_keras(model: keras.Model) -> LayerGraph:
    """Return the layer graph of a model.

    Parameters
    ----------
    model
        A Functional or built Sequential model, or a subclass of them that keeps their ``call``.

    Raises
    ------
    GraphError
        Naming the layer, and what to do: a ``Lambda`` or another function without a name, a custom
        class that is not registered, a configuration that cannot be hashed stably, a layer called
        on its own output, a weight that belongs to two layers; a model without a graph.
    """
    return _Reader(model).graph()


def to_keras(graph: LayerGraph, *, name: str | None = None) -> keras.Model:
    """Build the model of a graph; its layers carry their stable names.

    Parameters
    ----------
    graph
        From anywhere. Classes and arguments are looked up in Keras's safe mode.
    name
        Of the model.

    Returns
    -------
    keras.Model
        With a list of inputs or outputs where there are several of them, with new random weights.

    Raises
    ------
    GraphError
        Naming the layer: its class is neither Keras's nor registered, or Keras refuses its
        configuration or its inputs, or its weights have other shapes than the graph says.
    """
    import keras

    outputs: list[list[list[Any]]] = []  # [layer][call][tensor]
    for position, layer in enumerate(graph.layers):
        stable_name = graph.names[position]
        operation = _keras_config.make(layer.spec.class_name, layer.spec.config, stable_name)
        made = []
        for call in layer.calls:
            tensors = [_output(graph, outputs, edge) for edge in call.inputs]
            try:
                result = _apply(operation, tensors, call.arguments)
            except REFUSALS as error:
                raise GraphError(
                    f"layer {stable_name}: Keras cannot call it as the graph says: "
                    f"{one_line(error)}"
                ) from error
            made.append(keras.tree.flatten(result))
        outputs.append(made)
        _keras_state.set_state(operation, layer.spec.state, f"layer {stable_name}")
        _check_weights(operation, layer.spec, stable_name)
    inputs = [_output(graph, outputs, edge) for edge in graph.inputs]
    results = [_output(graph, outputs, edge) for edge in graph.outputs]
    return keras.Model(
        inputs[0] if len(inputs) == 1 else inputs,
        results[0] if len(results) == 1 else results,
        name=name,
    )


def _output(graph: LayerGraph, outputs: list[list[list[Any]]], edge: Edge) -> Any:
    tensors = outputs[edge.layer][edge.call]
    if edge.tensor >= len(tensors):
        raise GraphError(
            f"layer {graph.names[edge.layer]}: the graph uses its output {edge.tensor}, but it has "
            f"{len(tensors)}"
        )
    return tensors[edge.tensor]


def layers_by_name(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Return the layers of a model by stable name, in the order of its graph.

    The model is read as by `from_keras`, whatever its layers are called.
    """
    return read(model)[1]


def read(model: keras.Model) -> tuple[LayerGraph, dict[str, keras.layers.Layer]]:
    """Return the layer graph of a model, as `from_keras` does, and its layers by stable name."""
    import keras

    reader = _Reader(model)
    graph = reader.graph()
    return graph, {
        name: operation
        for name, operation in zip(graph.names, reader.operations, strict=True)
        if isinstance(operation, keras.layers.Layer)
    }


def get_weights(model: keras.Model) -> dict[str, list[NDArray[Any]]]:
    """Return copies of all weights by stable name; layers without weights are left out."""
    return {
        name: layer_weights(layer) for name, layer in layers_by_name(model).items() if layer.weights
    }


def layer_weights(layer: keras.layers.Layer) -> list[NDArray[Any]]:
    """Return copies of the weights of one layer, in the order of its `LayerSpec`."""
    import keras

    weights = _keras_state.weights_of(layer)
    return [np.array(keras.ops.convert_to_numpy(weight)) for weight in weights]


def set_weights(model: keras.Model, weights: Mapping[str, Sequence[NDArray[Any]]]) -> None:
    """Set the weights of some layers, by stable name; what layers derive from them follows.

    Raises
    ------
    GraphError
        For a name that is not in the model, or weights of other shapes. Nothing is set then.
    """
    layers = layers_by_name(model)
    for name, arrays in weights.items():
        if name not in layers:
            raise GraphError(f"layer {name} is not in model {model.name}")
        expected = [tuple(weight.shape) for weight in _keras_state.weights_of(layers[name])]
        found = [tuple(array.shape) for array in arrays]
        if expected != found:
            raise GraphError(f"layer {name} has weights of shapes {expected}, found {found}")
    for name, arrays in weights.items():
        set_layer_weights(layers[name], arrays)


def set_layer_weights(layer: keras.layers.Layer, weights: Sequence[NDArray[Any]]) -> None:
    """Set the weights of one layer, as `layer_weights` returns them; what it derives follows."""
    for variable, array in zip(_keras_state.weights_of(layer), weights, strict=True):
        variable.assign(array)
    _keras_state.derive(layer)


def frozen_inside(model: keras.Model) -> list[Any]:
    """Return layers and weights inside the layers of a model that do not train though those do.

    To set ``trainable`` of a layer sets it of all that is inside, so who does that for a whole
    model sets it of these to False afterwards: they are frozen by what the layer is.
    """
    return [
        each
        for layer in model.layers
        if layer.trainable
        for each in (*layer._flatten_layers(include_self=False), *layer.weights)
        if not each.trainable
    ]


def derive_state(model: keras.Model) -> None:
    """Let all layers compute anew what they derive from their weights.

    For who assigns variables of a model himself, as `set_weights` does it by the layer.
    """
    for layer in model.layers:
        _keras_state.derive(layer)


def frozen_of(layer: keras.layers.Layer) -> bool | dict[str, list[int]]:
    """Return what of a layer never trains though it could, as `LayerSpec.with_start` takes it."""
    return _keras_state.frozen_of(layer, f"layer {layer.name} ({type(layer).__name__})")


class _Scope:
    """One call of a nested model, or the model itself: what its inputs are bound to.

    Parameters
    ----------
    training
        What the call says of training to all layers, whatever they were told; None: nothing.
    """

    def __init__(self, training: bool | None = None) -> None:
        self.training = training
        self.bound: dict[int, Edge] = {}  # by id of the model's input tensor
        self.nested: dict[tuple[int, int], _Scope] = {}  # by id of the model and number of the call


class _Pending(NamedTuple):
    """A tensor of a scope that is to be traced back."""

    tensor: Any
    scope: _Scope


class _Reader:
    """Traces a model's tensors back to its inputs, and so finds its layers and their calls."""

    def __init__(self, model: keras.Model) -> None:
        self.operations: list[Any] = []
        self._model = model
        self._positions: dict[int, int] = {}  # by id of the operation; in the order of discovery
        self._calls: list[list[Call]] = []
        self._call_numbers: dict[tuple[int, int, int], int] = {}  # scope, operation, node
        self._edges: dict[tuple[int, int], Edge] = {}  # scope, tensor
        self._scopes: list[_Scope] = []  # alive, so that ids stay unique

    def graph(self) -> LayerGraph:
        if not _is_graph(self._model):
            raise GraphError(
                f"model {self._model.name} ({type(self._model).__name__}) has no layer graph: it "
                "is not built, or its class defines call() itself; build it, or write it with "
                "keras.Model(inputs, outputs)"
            )
        top = self._scope()
        inputs = [self._trace(tensor, top) for tensor in self._model.inputs]
        outputs = [self._trace(tensor, top) for tensor in self._model.outputs]
        self._check_sharing()
        order = self._topological_order()
        place = {position: i for i, position in enumerate(order)}

        def move(edge: Edge) -> Edge:
            return Edge(place[edge.layer], edge.call, edge.tensor)

        layers = [
            Layer(
                _spec(self.operations[position]),
                tuple(
                    Call(tuple(map(move, call.inputs)), call.arguments)
                    for call in self._calls[position]
                ),
            )
            for position in order
        ]
        self.operations = [self.operations[position] for position in order]
        return LayerGraph(layers, list(map(move, inputs)), list(map(move, outputs)))

    def _scope(self, training: bool | None = None) -> _Scope:
        self._scopes.append(_Scope(training))
        return self._scopes[-1]

    def _trace(self, tensor: Any, scope: _Scope) -> Edge:
        """Return where a tensor comes from, having found all layers before it."""
        # A stack of its own: networks are deeper than Python's.
        stack = [_Pending(tensor, scope)]
        while stack:
            pending = stack[-1]
            needed = self._step(pending)
            if needed:
                stack.extend(reversed(needed))
            else:
                stack.pop()
        return self._edge(tensor, scope)

    def _edge(self, tensor: Any, scope: _Scope) -> Edge:
        return self._edges[id(scope), id(tensor)]

    def _step(self, pending: _Pending) -> list[_Pending]:
        """Find where a tensor comes from, or return the tensors that have to be found first."""
        tensor, scope = pending
        key = (id(scope), id(tensor))
        if key in self._edges:
            return []
        if id(tensor) in scope.bound:
            self._edges[key] = scope.bound[id(tensor)]
            return []
        operation, number, index = tensor._keras_history
        node = operation._inbound_nodes[number]
        given = [_Pending(t, scope) for t in _tensors(operation, node)]
        missing = [p for p in given if (id(scope), id(p.tensor)) not in self._edges]
        if missing:
            return missing
        if not _is_graph(operation):
            call = self._call(operation, number, node, scope)
            self._edges[key] = Edge(*call, index)
            return []
        inner = scope.nested.get((id(operation), number))
        if inner is None:
            told = _told(operation, node, scope.training)
            inner = scope.nested[id(operation), number] = self._scope(told)
            for target, source in zip(operation.inputs, _bindings(operation, node), strict=True):
                inner.bound[id(target)] = self._edge(source, scope)
        output = operation.outputs[index]
        if (id(inner), id(output)) not in self._edges:
            return [_Pending(output, inner)]
        self._edges[key] = self._edge(output, inner)
        return []

    def _call(self, operation: Any, number: int, node: Any, scope: _Scope) -> tuple[int, int]:
        """Return position and number of a call, noting it down if it is new."""
        position = self._positions.setdefault(id(operation), len(self._positions))
        if position == len(self.operations):
            self.operations.append(operation)
            self._calls.append([])
        key = (id(scope), position, number)
        if key not in self._call_numbers:
            self._call_numbers[key] = len(self._calls[position])
            tensors = _tensors(operation, node)
            arguments = _arguments(operation, node, scope.training)
            edges = tuple(self._edge(tensor, scope) for tensor in tensors)
            self._calls[position].append(Call(edges, arguments))
        return position, self._call_numbers[key]

    def _check_sharing(self) -> None:
        owners: dict[int, str] = {}
        for operation in self.operations:
            for weight in getattr(operation, "weights", ()):
                owner = owners.setdefault(id(weight), operation.name)
                if owner != operation.name:
                    raise GraphError(
                        f"layer {operation.name} and layer {owner} share the weight {weight.path}: "
                        "a weight belongs to one layer; call one layer several times instead"
                    )

    def _topological_order(self) -> list[int]:
        """Order the layers by their inputs, else as they were found."""
        waiting = [{edge.layer for call in calls for edge in call.inputs} for calls in self._calls]
        feeds: list[list[int]] = [[] for _ in waiting]
        for position, needed in enumerate(waiting):
            for other in needed:
                feeds[other].append(position)
        ready = [position for position, needed in enumerate(waiting) if not needed]
        order: list[int] = []
        for position in ready:
            order.append(position)
            for fed in feeds[position]:
                waiting[fed].discard(position)
                if not waiting[fed]:
                    ready.append(fed)
        if len(order) < len(waiting):
            self._report_cycle(set(range(len(waiting))) - set(order), waiting)
        return order

    def _report_cycle(self, left: set[int], waiting: list[set[int]]) -> None:
        # Whoever waits in vain waits for somebody who does: following that ends in the cycle.
        position, seen = min(left), set[int]()
        while position not in seen:
            seen.add(position)
            position = min(waiting[position])
        operation = self.operations[position]
        raise GraphError(
            f"layer {operation.name} ({type(operation).__name__}) is called on its own output, "
            "directly or through other layers: a layer that feeds itself has no name; use a layer "
            "of its own for each step, or a recurrent layer"
        )


def _is_graph(operation: Any) -> bool:
    """Tell whether this is a model that its inputs and outputs describe."""
    import keras

    # Functional and Sequential, and subclasses that leave the call to them.
    return (
        isinstance(operation, keras.Model)
        and type(operation).call.__module__.startswith("keras.")
        and hasattr(operation, "inputs")
    )


def _bindings(model: Any, node: Any) -> list[Any]:
    """Return the tensors that a nested model is called on, in the order of its inputs."""
    import keras

    args, kwargs = _given(model, node)
    given = args[0] if args else kwargs.get("inputs")
    if isinstance(given, dict) and not isinstance(model.input, dict):
        sources = [given.get(target.name) for target in model.inputs]
    else:
        sources = keras.tree.flatten(given)
    for target, source in zip(model.inputs, sources, strict=False):
        if source is None or len(source.shape) != len(target.shape):
            found = None if source is None else tuple(source.shape)
            raise GraphError(
                f"layer {model.name}: the nested model's input {target.name} takes a tensor of "
                f"shape {tuple(target.shape)}, found {found}"
            )
        floats = "float" in source.dtype and "float" in target.dtype  # layers cast these themselves
        if source.dtype != target.dtype and not floats:
            raise GraphError(
                f"layer {model.name}: the nested model casts {source.dtype} to {target.dtype} at "
                f"its input {target.name}; call it on its own dtype (keras.ops.cast)"
            )
    if len(sources) != len(model.inputs):
        raise GraphError(
            f"layer {model.name}: the nested model has {len(model.inputs)} inputs, found "
            f"{len(sources)}"
        )
    return sources


def _given(operation: Any, node: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call, without those that the call of the whole model decides.

    None is left out where the layer takes it for granted.
    """
    import keras

    args, kwargs = node.arguments.args, node.arguments.kwargs
    parameters = inspect.signature(operation.call).parameters
    defaults = [parameter.default for parameter in parameters.values()]
    while args and args[-1] is None and defaults[len(args) - 1 : len(args)] == [None]:
        args = args[:-1]
    flat = keras.tree.flatten((args, kwargs))
    masks = {id(t._keras_mask) for t in flat if getattr(t, "_keras_mask", None) is not None}

    def passed_on(value: Any) -> bool:
        return all(item is None or id(item) in masks for item in keras.tree.flatten(value))

    def is_granted(key: str, value: Any) -> bool:
        return value is None and key in parameters and parameters[key].default is None

    return args, {
        key: value
        for key, value in kwargs.items()
        if key != "training"
        and not is_granted(key, value)
        and not (key.endswith("mask") and passed_on(value))
    }


def _told(operation: Any, node: Any, training: bool | None) -> bool | None:
    """Return the ``training`` of a call; `training` is what the call of the model around it says.

    Other than by its truth nothing of Keras's uses it.
    """
    found = node.arguments.kwargs.get("training") if training is None else training
    if found is None or isinstance(found, (bool, int)):
        return None if found is None else bool(found)
    raise GraphError(
        f"layer {operation.name} ({type(operation).__name__}): expected True, False or None as "
        f"training, found {type(found).__name__}"
    )


def _tensors(operation: Any, node: Any) -> list[Any]:
    """Return the tensors among the arguments of a call, in order, repeated ones as well."""
    import keras

    flat: list[Any] = []

    def collect(value: Any) -> None:  # in the order in which _arguments writes them down
        if isinstance(value, keras.KerasTensor):
            flat.append(value)
        elif isinstance(value, (list, tuple)):
            for item in value:
                collect(item)
        elif isinstance(value, Mapping):
            for key in sorted(value):
                collect(value[key])

    args, kwargs = _given(operation, node)
    collect(args)
    collect(kwargs)
    return flat


def _arguments(operation: Any, node: Any, training: bool | None) -> str | None:
    """Return how a layer is called, as `Call.arguments` has it."""
    import keras

    args, kwargs = _given(operation, node)
    told = _told(operation, node, training)
    if told is not None:
        # Keras writes a default down as if it had been given.
        parameter = inspect.signature(operation.call).parameters.get("training")
        if parameter is not None and (
            parameter.default is parameter.empty or told != bool(parameter.default)
        ):
            kwargs["training"] = told
    if len(args) == 1 and not kwargs:
        only = args[0]
        if isinstance(only, keras.KerasTensor):
            return None
        if (
            isinstance(only, (list, tuple))
            and len(only) > 1
            and all(isinstance(item, keras.KerasTensor) for item in only)
        ):
            return None
    if not args and not kwargs:
        return None
    where = f"layer {operation.name} ({type(operation).__name__}), arguments"
    count = 0

    def write(value: Any) -> Any:
        nonlocal count
        if isinstance(value, keras.KerasTensor):
            count += 1
            return {"tensor": count - 1}
        if isinstance(value, tuple):
            return {"tuple": [write(item) for item in value]}
        if isinstance(value, list):
            return [write(item) for item in value]
        if isinstance(value, Mapping):
            return {"dict": {key: write(value[key]) for key in sorted(value)}}
        return plain(_keras_config.describe_argument(value, where), where)

    positional = [write(value) for value in args]
    return canonical_json(
        {"args": positional, "kwargs": {key: write(kwargs[key]) for key in sorted(kwargs)}}
    )


def _apply(operation: Any, tensors: Sequence[Any], arguments: str | None) -> Any:
    """Call a layer as `Call.arguments` says; an input layer yields its tensor."""
    import keras

    if isinstance(operation, keras.layers.InputLayer):
        return operation.output
    if arguments is None:
        return operation(tensors[0] if len(tensors) == 1 else list(tensors))

    def read(value: Any) -> Any:
        if isinstance(value, list):
            return [read(item) for item in value]
        if not isinstance(value, dict):
            return value
        if value.keys() == {"tensor"}:
            return tensors[value["tensor"]]
        if value.keys() == {"tuple"}:
            return tuple(read(item) for item in value["tuple"])
        if value.keys() == {"dict"}:
            return {key: read(item) for key, item in value["dict"].items()}
        return _keras_config.make_argument(value, "arguments")

    parsed = json.loads(arguments)
    positional = [read(value) for value in parsed.get("args", [])]
    return operation(*positional, **{k: read(v) for k, v in parsed.get("kwargs", {}).items()})


def _spec(operation: Any) -> LayerSpec:
    import keras

    where = f"layer {operation.name} ({type(operation).__name__})"
    if isinstance(operation, keras.layers.Lambda):
        raise GraphError(
            f"{where}: a Lambda has no name that means the same everywhere; write it as a subclass "
            f"of keras.layers.Layer and {REGISTER}"
        )
    with _keras_state.in_configuration_only(operation):
        class_name, config = _keras_config.describe(operation, where)
    weights = [
        WeightSpec(tuple(weight.shape), str(weight.dtype), bool(weight.trainable))
        for weight in _keras_state.weights_of(operation)
    ]
    try:
        return LayerSpec(class_name, config, weights, _keras_state.state_of(operation, where))
    except GraphError as error:
        if str(error).startswith(where):
            raise
        raise GraphError(f"{where}: {error}") from error


def _check_weights(operation: Any, spec: LayerSpec, name: str) -> None:
    expected = [(weight.shape, weight.dtype) for weight in spec.weights]
    found = [(tuple(w.shape), str(w.dtype)) for w in _keras_state.weights_of(operation)]
    if expected != found:
        raise GraphError(f"layer {name}: the graph says its weights are {expected}, found {found}")
