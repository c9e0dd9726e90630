"""Layer graphs: what a model is, without Keras.

A `LayerGraph` is immutable. It comes from a `GraphBuilder` (which a search space drives, in
microseconds), from a Keras model (`keras_io.from_keras`) or from JSON (`LayerGraph.from_json`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from cpp_store import _core
from graph_meta import costs
from graph_meta.naming import GraphError, canonical_json, label, plain

if TYPE_CHECKING:
    import networkx as nx

    from cpp_store import LayerTable
    from graph_meta.costs import Cost
    from graph_meta.layers import LayerTemplate

__all__ = [
    "Call",
    "Edge",
    "GraphBuilder",
    "GraphError",
    "Layer",
    "LayerGraph",
    "LayerSpec",
    "WeightSpec",
    "check_version",
    "prefix",
]

#: Version of the JSON form, and of what digests are made of: a part of each digest, so that those
#: of two versions never match. docs/formats.md, "Versions of layer graphs".
FORMAT_VERSION = 2

Shape = tuple[int | None, ...]

#: Key of a layer's state: ``weights``, for each weight a digest of what it starts from, or null for
#: its initializer's; ``frozen``, true for a layer that never trains, or what of it never does.
START = "start"

_LAYERS_KEPT = 4096  # of one spec

_ITEM_SIZES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}


class WeightSpec(NamedTuple):
    """Shape and dtype of one weight of a layer.

    `trainable` tells gradients from statistics; it is no part of a layer's identity.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    trainable: bool = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight's elements."""
        return self.size * _ITEM_SIZES[self.dtype]


class LayerSpec:
    """A layer's class, configuration and weights: all that it is apart from its place in a graph.

    Making one hashes the configuration, so makers keep theirs (`graph_meta.layers` caches them)
    and graphs share them.

    Parameters
    ----------
    class_name
        ``"Dense"``; ``"package>Name"`` for a registered custom class.
    config
        JSON data without the layer's own ``name`` and ``trainable``. Not to be changed afterwards.
    weights
        In the order of the Keras layer's ``weights``; of a quantized layer, see docs/formats.md.
    state
        What the layer computes with beside configuration and weights, and nothing trains, as JSON
        data: the vocabulary of a lookup. By the number of the layer inside it that has it. Under
        `START`, what it starts from beside its initializers, and whether it trains at all.

    Raises
    ------
    GraphError
        If the configuration has no stable form, or a weight's dtype is unknown.
    """

    __slots__ = (
        "_layers",
        "class_name",
        "config",
        "costs",
        "identity",
        "key",
        "nbytes",
        "parameters",
        "state",
        "weights",
    )

    class_name: str
    config: Mapping[str, Any]
    weights: tuple[WeightSpec, ...]
    state: Mapping[str, Any]
    #: 16 bytes: equal for equal class, configuration, state, shapes and dtypes of weights.
    key: bytes
    nbytes: int
    parameters: int
    #: What `graph_meta.costs` has found, by the shapes of the inputs.
    costs: dict[tuple[Shape, ...], Cost]
    #: What naming needs of a layer, in one attribute: (key, label, nbytes).
    identity: tuple[bytes, bytes, int]

    def __init__(
        self,
        class_name: str,
        config: Mapping[str, Any],
        weights: Sequence[WeightSpec] = (),
        state: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.class_name = class_name
        config = {k: v for k, v in config.items() if k not in ("name", "trainable")}
        self.config = plain(config, f"layer class {class_name}")  # type: ignore[assignment]
        self.weights = tuple(weights)
        for weight in self.weights:
            if weight.dtype not in _ITEM_SIZES:
                raise GraphError(
                    f"layer class {class_name}: weight dtype {weight.dtype!r} is unknown; known "
                    f"are {', '.join(_ITEM_SIZES)}"
                )
        self.state = plain(state, f"layer class {class_name}, state")  # type: ignore[assignment]
        weights_said: list[Any] = [[list(w.shape), w.dtype] for w in self.weights]
        said = [FORMAT_VERSION, class_name, dict(self.config), weights_said]
        if self.state:
            said.append(dict(self.state))
        self.key = _core.xxh3_128(canonical_json(said).encode())
        self.nbytes = sum(w.nbytes for w in self.weights)
        self.parameters = sum(w.size for w in self.weights)
        if self.nbytes >= 2**63:
            raise GraphError(f"layer class {class_name}: its weights have over 2^63 bytes")
        self.identity = (self.key, label(class_name).encode(), self.nbytes)
        self.costs = {}
        self._layers: dict[tuple[Edge, ...], Layer] = {}

    @property
    def frozen(self) -> bool:
        """Whether the layer never trains, whoever inherits from whom."""
        return self.state.get(START, {}).get("frozen") is True

    @property
    def frozen_parts(self) -> Mapping[str, Any]:
        """What never trains of a layer that does: numbers of ``layers`` and ``weights`` inside."""
        found = self.state.get(START, {}).get("frozen")
        return found if isinstance(found, Mapping) else {}

    @property
    def given(self) -> tuple[str | None, ...]:
        """Digest of what each weight starts from, None for its initializer's; empty if all do."""
        return tuple(self.state.get(START, {}).get("weights", ()))

    def with_start(
        self, weights: Sequence[str | None], frozen: bool | Mapping[str, Sequence[int]]
    ) -> LayerSpec:
        """Return the spec of the same layer, with another start."""
        start: dict[str, Any] = {}
        if any(weight is not None for weight in weights):
            start["weights"] = list(weights)
        if frozen:
            start["frozen"] = frozen
        state = {**self.state, START: start} if start else self.state
        return LayerSpec(self.class_name, self.config, self.weights, state)

    def layer(self, inputs: tuple[Edge, ...]) -> Layer:
        """Return the layer of this spec that is called once, on its inputs alone.

        Layers are kept, as the graphs of a space place the same specs on the same inputs over and
        over.
        """
        layer = self._layers.get(inputs)
        if layer is None:
            if len(self._layers) >= _LAYERS_KEPT:
                self._layers.clear()
            layer = self._layers[inputs] = Layer(self, (Call(inputs),))
        return layer

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerSpec):
            return NotImplemented
        # What is trained is no part of the key, and yet of the spec.
        return self.key == other.key and self.weights == other.weights

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        said = [self.class_name, dict(self.config), self.weights, dict(self.state)]
        return f"LayerSpec({', '.join(map(repr, said[: 4 if self.state else 3]))})"

    def __reduce__(self) -> tuple[Any, ...]:
        return LayerSpec, (self.class_name, dict(self.config), self.weights, dict(self.state))


class Edge(NamedTuple):
    """One output tensor of one call of a layer, by the layer's position in the graph."""

    layer: int
    call: int = 0
    tensor: int = 0


# Shared, as each graph has an edge to the first output of nearly each of its layers.
_EDGES = tuple(Edge(position) for position in range(1024))


class Call(NamedTuple):
    """One call of a layer.

    Attributes
    ----------
    inputs
        The tensors that the layer is called with, in order.
    arguments
        None if the layer is called with its one tensor, or with the list of its inputs. Else the
        canonical JSON of ``{"args": [...], "kwargs": {...}}`` in which ``{"tensor": i}`` stands for
        ``inputs[i]``.
    """

    inputs: tuple[Edge, ...]
    arguments: str | None = None


class Layer(NamedTuple):
    """A layer of a graph: what it is and how it is called. An input layer has one call, of nothing.

    The order of the calls means nothing but what `Edge.call` counts.
    """

    spec: LayerSpec
    calls: tuple[Call, ...]


class LayerGraph:
    """The layers of one model, in topological order.

    Immutable and hashable. Equality is that of the lists of layers, positions included; graphs
    that differ only in the order of independent branches have equal sets of `names`.

    Parameters
    ----------
    layers
        Each layer's inputs stand before it.
    inputs, outputs
        The model's, in its order.

    Raises
    ------
    GraphError
        For an edge to a layer, call or (for input layers) tensor that is not there, to the layer
        itself or to a later one; an input that is not an input layer; a graph without outputs.
    """

    # No __slots__: cached_property needs the instance's dict.
    def __init__(
        self,
        layers: Sequence[Layer],
        inputs: Sequence[Edge],
        outputs: Sequence[Edge],
    ) -> None:
        self.layers = tuple(layers)
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._check()

    @classmethod
    def _trusted(
        cls, layers: tuple[Layer, ...], inputs: tuple[Edge, ...], outputs: tuple[Edge, ...]
    ) -> LayerGraph:
        """Make a graph whose maker checked already what the constructor checks."""
        graph = cls.__new__(cls)
        graph.layers = layers
        graph.inputs = inputs
        graph.outputs = outputs
        return graph

    def _check(self) -> None:
        for position, layer in enumerate(self.layers):
            if not layer.calls:
                raise GraphError(f"{self._describe(position)} is never called")
            for call in layer.calls:
                for edge in call.inputs:
                    self._check_edge(edge, position, f"an input of {self._describe(position)}")
        for edge in self.inputs:
            self._check_edge(edge, len(self.layers), "an input of the graph")
            if any(call.inputs for call in self.layers[edge.layer].calls):
                raise GraphError(
                    f"{self._describe(edge.layer)} is listed as an input of the graph but has "
                    "inputs itself"
                )
        if not self.outputs:
            raise GraphError("the graph has no outputs")
        for edge in self.outputs:
            self._check_edge(edge, len(self.layers), "an output of the graph")

    def _check_edge(self, edge: Edge, before: int, what: str) -> None:
        if not 0 <= edge.layer < len(self.layers):
            raise GraphError(
                f"{what} is layer {edge.layer}, which is not there: the graph has "
                f"{len(self.layers)} layers"
            )
        if edge.layer == before:
            raise GraphError(f"{what} is the layer itself; a layer that feeds itself has no name")
        if edge.layer > before:
            raise GraphError(
                f"{what} is {self._describe(edge.layer)}, which comes later: the graph has a "
                "cycle or its layers are not in topological order"
            )
        if not 0 <= edge.call < len(self.layers[edge.layer].calls) or edge.tensor < 0:
            raise GraphError(
                f"{what} is call {edge.call}, tensor {edge.tensor} of "
                f"{self._describe(edge.layer)}, which has {len(self.layers[edge.layer].calls)} "
                "call(s)"
            )

    def _describe(self, position: int) -> str:
        return f"layer {position} ({self.layers[position].spec.class_name})"

    def without_dead_ends(self) -> LayerGraph:
        """Return the graph of the calls that an output comes from, and of all inputs.

        The others compute nothing. Keras leaves them out as well.
        """
        feeding = {*self.inputs, *self.outputs}
        calls = 0
        for layer in self.layers:
            calls += len(layer.calls)
            for call in layer.calls:
                feeding.update(call.inputs)
        # Where each call feeds another, which comes later, all of them reach an output.
        if len({edge[:2] for edge in feeding}) == calls:
            return self
        alive = sorted(_reached(self.layers, (*self.inputs, *self.outputs)))
        places: dict[int, int] = {}  # of the layers that stay
        numbers: dict[tuple[int, int], int] = {}  # of their calls
        calls_of: dict[int, list[Call]] = {}

        def move(edge: Edge) -> Edge:
            return Edge(places[edge.layer], numbers[edge.layer, edge.call], edge.tensor)

        for position, number in alive:  # inputs before those whom they feed
            inputs, arguments = self.layers[position].calls[number]
            places.setdefault(position, len(places))
            kept = calls_of.setdefault(position, [])
            numbers[position, number] = len(kept)
            kept.append(Call(tuple(map(move, inputs)), arguments))
        layers = [Layer(self.layers[i].spec, tuple(kept)) for i, kept in calls_of.items()]
        return LayerGraph(layers, [*map(move, self.inputs)], [*map(move, self.outputs)])

    @cached_property
    def _naming(self) -> tuple[tuple[bytes, ...], tuple[int, ...], LayerTable]:
        try:
            return _core.name_layers(self.layers, self.inputs, self.outputs)
        except _core.InvalidArgument as error:  # a builder was given edges that are not its own
            raise GraphError(str(error)) from error

    @property
    def digests(self) -> tuple[bytes, ...]:
        """16 bytes for each layer; equal digests mean isomorphic ancestor graphs."""
        return self._naming[0]

    @property
    def occurrences(self) -> tuple[int, ...]:
        """Which of its twins (same configuration, same inputs) each layer is; 0 without twins."""
        return self._naming[1]

    @property
    def table(self) -> LayerTable:
        """Names, requirements and bytes of the layers, as the index and the store take them."""
        return self._naming[2]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Stable names, ``Class_<digest>`` or ``Class_<digest>_k``, in the order of the layers."""
        return tuple(self.table.names)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(layer.spec.nbytes for layer in self.layers)

    @cached_property
    def parameters(self) -> int:
        """Number of elements of all weights."""
        return sum(layer.spec.parameters for layer in self.layers)

    @cached_property
    def flops(self) -> int:
        """Floating-point operations of one row's forward pass outside of training.

        A multiplication and its addition count as two (`graph_meta.costs` has the rest).

        Raises
        ------
        GraphError
            Those of a layer's class are not known, or the size of one of its inputs is not.
        """
        return costs.flops(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerGraph):
            return NotImplemented
        return (self.layers, self.inputs, self.outputs) == (
            other.layers,
            other.inputs,
            other.outputs,
        )

    def __hash__(self) -> int:
        return hash((self.layers, self.inputs, self.outputs))

    def __repr__(self) -> str:
        return f"<LayerGraph: {len(self)} layers, {self.parameters:,} parameters>"

    def __reduce__(self) -> tuple[Any, ...]:
        return LayerGraph, (self.layers, self.inputs, self.outputs)

    def to_networkx(self) -> nx.DiGraph:
        """Return the layers as a graph of networkx: for paths, drawings, measures of its structure.

        Nodes are positions in `layers`, each with its layer's stable name as ``name`` and class as
        ``class_name``; an edge leads from each layer to those that it feeds.
        """
        import networkx as nx  # a tenth of a second, and no search needs it

        network = nx.DiGraph()
        for position, (name, layer) in enumerate(zip(self.names, self.layers, strict=True)):
            network.add_node(position, name=name, class_name=layer.spec.class_name)
            for call in layer.calls:
                network.add_edges_from((edge.layer, position) for edge in call.inputs)
        return network

    def to_json(self) -> str:
        """Return the graph as JSON text (docs/formats.md, "Layer graph JSON")."""
        specs: dict[LayerSpec, int] = {}
        layers: list[JSONObject] = []
        for layer in self.layers:
            calls: list[JSONObject] = []
            for call in layer.calls:
                entry: JSONObject = {"inputs": [list(edge) for edge in call.inputs]}
                if call.arguments is not None:
                    entry["arguments"] = json.loads(call.arguments)
                calls.append(entry)
            layers.append({"spec": specs.setdefault(layer.spec, len(specs)), "calls": calls})
        return canonical_json(
            {
                "format": "layer-graph",
                "version": FORMAT_VERSION,
                "specs": [
                    {
                        "class": spec.class_name,
                        "config": dict(spec.config),
                        "weights": [[list(w.shape), w.dtype, w.trainable] for w in spec.weights],
                        **({"state": dict(spec.state)} if spec.state else {}),
                    }
                    for spec in specs
                ],
                "layers": layers,
                "inputs": [list(edge) for edge in self.inputs],
                "outputs": [list(edge) for edge in self.outputs],
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> LayerGraph:
        """Read what `to_json` wrote, or what somebody else wrote to its specification.

        Raises
        ------
        GraphError
            One line that says what is wrong and where, for anything else.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise GraphError(f"layer graph: not JSON ({error})") from error
        try:
            return _Reader(document).graph()
        except RecursionError as error:
            raise GraphError("layer graph: a configuration is nested too deeply") from error


JSONObject = dict[str, Any]


def check_version(found: object, what: str) -> None:
    """Refuse what was written with the digests of another version.

    Parameters
    ----------
    found
        The version of layer graphs that it says.
    what
        What it is, for the message.

    Raises
    ------
    GraphError
        Layers have other digests in that version.
    """
    if found == FORMAT_VERSION and not isinstance(found, bool):
        return
    raise GraphError(
        f"{what}: expected version {FORMAT_VERSION} of layer graphs, found {found!r}, in which "
        "layers have other digests: nothing of it would match; make it anew, or use the version of "
        "transfer-nas that wrote it"
    )


class _Reader:
    """Layer graph JSON, checked: nothing in it is trusted."""

    def __init__(self, document: object) -> None:
        self.document: JSONObject = self._typed(document, dict, "the document")

    def graph(self) -> LayerGraph:
        if self.document.get("format") != "layer-graph":
            raise GraphError('layer graph: "format" is not "layer-graph"')
        check_version(self.document.get("version"), "layer graph")
        specs = [self._spec(entry, f"specs[{i}]") for i, entry in enumerate(self._list("specs"))]
        layers = [
            self._layer(entry, specs, f"layers[{i}]")
            for i, entry in enumerate(self._list("layers"))
        ]
        inputs = self._edges(self._list("inputs"), "inputs")
        outputs = self._edges(self._list("outputs"), "outputs")
        return LayerGraph(layers, inputs, outputs)

    def _list(self, key: str) -> list[Any]:
        entries: list[Any] = self._member(self.document, key, list, "the document")
        return entries

    def _spec(self, value: object, where: str) -> LayerSpec:
        entry: JSONObject = self._typed(value, dict, where)
        class_name = self._member(entry, "class", str, where)
        if not class_name:
            raise GraphError(f"layer graph: {where}.class is empty")
        weights = []
        for i, weight in enumerate(self._member(entry, "weights", list, where)):
            here = f"{where}.weights[{i}]"
            weight = self._typed(weight, list, here)
            if len(weight) != 3:
                raise GraphError(f"layer graph: {here} is not [shape, dtype, trainable]")
            shape = self._typed(weight[0], list, f"{here}[0]")
            sizes = tuple(self._natural(n, f"{here}[0][{j}]") for j, n in enumerate(shape))
            dtype = self._typed(weight[1], str, f"{here}[1]")
            weights.append(WeightSpec(sizes, dtype, self._typed(weight[2], bool, f"{here}[2]")))
        config = self._member(entry, "config", dict, where)
        state = self._typed(entry.get("state", {}), dict, f"{where}.state")
        try:
            return LayerSpec(class_name, config, weights, state)
        except GraphError as error:
            raise GraphError(f"layer graph: {where}: {error}") from error

    def _layer(self, value: object, specs: list[LayerSpec], where: str) -> Layer:
        entry: JSONObject = self._typed(value, dict, where)
        spec = self._natural(entry.get("spec"), f"{where}.spec")
        if spec >= len(specs):
            raise GraphError(
                f"layer graph: {where}.spec is {spec}, but there are {len(specs)} specs"
            )
        calls = []
        for i, call in enumerate(self._member(entry, "calls", list, where)):
            here = f"{where}.calls[{i}]"
            call = self._typed(call, dict, here)
            edges = self._edges(self._member(call, "inputs", list, here), f"{here}.inputs")
            arguments = None
            if call.get("arguments") is not None:
                arguments = canonical_json(
                    plain(self._member(call, "arguments", dict, here), f"{here}.arguments")
                )
            calls.append(Call(edges, arguments))
        return Layer(specs[spec], tuple(calls))

    def _edges(self, entries: list[Any], where: str) -> tuple[Edge, ...]:
        edges = []
        for i, entry in enumerate(entries):
            numbers = self._typed(entry, list, f"{where}[{i}]")
            if len(numbers) != 3:
                raise GraphError(f"layer graph: {where}[{i}] is not [layer, call, tensor]")
            edges.append(Edge(*(self._natural(n, f"{where}[{i}]") for n in numbers)))
        return tuple(edges)

    def _member(self, entry: JSONObject, key: str, kind: type, where: str) -> Any:
        if key not in entry:
            raise GraphError(f'layer graph: {where} has no "{key}"')
        return self._typed(entry[key], kind, f"{where}.{key}")

    def _typed(self, value: Any, kind: type, where: str) -> Any:
        if type(value) is not kind:
            raise GraphError(
                f"layer graph: {where} is {_JSON_NAMES.get(type(value), 'something else')}, "
                f"expected {_JSON_NAMES[kind]}"
            )
        return value

    def _natural(self, value: Any, where: str) -> int:
        self._typed(value, int, where)
        if not 0 <= value < 2**32:
            raise GraphError(f"layer graph: {where} is {value}, expected 0 to 2^32 - 1")
        return int(value)


_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a number with a fraction",
    bool: "a boolean",
    type(None): "null",
}


class GraphBuilder:
    """Builds a layer graph layer by layer and tracks the shapes of its tensors.

    >>> from graph_meta import layers
    >>> builder = GraphBuilder()
    >>> x = builder.input((8, 8))
    >>> x = builder.add(layers.flatten(), x)
    >>> x = builder.add(layers.dense(10, activation="softmax"), x)
    >>> builder.shape(x)
    (10,)
    >>> builder.build(x)
    <LayerGraph: 3 layers, 650 parameters>
    """

    __slots__ = ("_feeding", "_inputs", "_layers", "_one_output", "_shapes")

    def __init__(self) -> None:
        self._layers: list[Layer] = []
        self._feeding: set[Edge] = set()  # tensors that a layer takes
        self._one_output = True  # each layer has one call with one output, as far as is known
        self._inputs: list[Edge] = []
        self._shapes: dict[Edge, Shape] = {}  # of the tensors whose maker said it

    def input(self, shape: Shape, dtype: str = "float32") -> Edge:
        """Add an input of the model, of that shape without the batch axis."""
        from graph_meta.layers import input_layer

        edge = self.add(input_layer(tuple(shape), dtype))
        self._inputs.append(edge)
        return edge

    def add(
        self, layer: LayerTemplate | LayerSpec, *inputs: Edge, arguments: str | None = None
    ) -> Edge:
        """Add a layer that is called on `inputs`; return its (first) output.

        Parameters
        ----------
        layer
            From `graph_meta.layers`, whose weights and output shapes follow from the shapes of the
            inputs; or a finished spec, whose output shapes are unknown.
        inputs
            Outputs of layers added before.
        arguments
            Overrides how the template is called; see `Call.arguments`.

        Raises
        ------
        GraphError
            If the layer cannot be called on tensors of these shapes.
        """
        # Spaces spend most of their time here: a graph has tens of layers, a population thousands
        # of graphs.
        position = len(self._layers)
        edge = _EDGES[position] if position < len(_EDGES) else Edge(position)
        self._feeding.update(inputs)
        if isinstance(layer, LayerSpec):
            spec = layer
            self._one_output = False
        else:
            shapes = self._shapes
            try:
                given = tuple([shapes[source] for source in inputs])
            except KeyError:  # a shape is unknown, and `shape` says which
                given = tuple([self.shape(source) for source in inputs])
            spec, made = layer.known.get(given) or layer.at(given)
            if arguments is None:
                arguments = layer.arguments
            shapes[edge] = made[0]
            for tensor in range(1, len(made)):
                self._one_output = False
                shapes[Edge(position, 0, tensor)] = made[tensor]
        if arguments is None:
            self._layers.append(spec.layer(inputs))
        else:
            self._layers.append(Layer(spec, (Call(inputs, arguments),)))
        return edge

    def call(self, layer: Edge, template: LayerTemplate | LayerSpec, *inputs: Edge) -> Edge:
        """Call a layer that was added before once more, sharing its weights.

        Parameters
        ----------
        layer
            Any output of the layer.
        template
            What the layer was added from.
        inputs
            Outputs of layers added before `layer` itself.

        Raises
        ------
        GraphError
            If its weights would have other shapes, or an input does not come before the layer.
        """
        spec, calls = self._layers[layer.layer]
        edge = Edge(layer.layer, len(calls))
        called: LayerTemplate | LayerSpec = template
        arguments: str | None = None
        made: tuple[Shape, ...] = ()
        if not isinstance(template, LayerSpec):
            called, made = template.at(tuple([self.shape(source) for source in inputs]))
            arguments = template.arguments
        if called != spec:
            raise GraphError(
                f"layer {layer.layer} ({spec.class_name}) cannot be called on these tensors: its "
                f"weights are {[w.shape for w in spec.weights]}"
            )
        for source in inputs:
            if source.layer >= layer.layer:
                raise GraphError(
                    f"layer {layer.layer} ({spec.class_name}) is to be called on layer "
                    f"{source.layer}, which was added after it: add the shared layer later"
                )
        self._one_output = False
        self._layers[layer.layer] = Layer(spec, (*calls, Call(inputs, arguments)))
        for tensor, shape in enumerate(made):
            self._shapes[Edge(layer.layer, len(calls), tensor)] = shape
        return edge

    def shape(self, edge: Edge) -> Shape:
        """Shape of a tensor, without the batch axis.

        Raises
        ------
        GraphError
            If the layer was added as a finished spec, or does not have that output.
        """
        shape = self._shapes.get(edge)
        if shape is None:
            if not 0 <= edge.layer < len(self._layers):
                raise GraphError(
                    f"layer {edge.layer} is not there: this builder has {len(self._layers)} layers"
                )
            raise GraphError(
                f"layer {edge.layer} ({self._layers[edge.layer].spec.class_name}): the shape of "
                f"tensor {edge.tensor} of call {edge.call} is unknown"
            )
        return shape

    def build(self, *outputs: Edge) -> LayerGraph:
        """Return the graph with these outputs.

        Its layers are those that an output comes from, and all inputs. What else was added
        computes nothing: it is left out, as by Keras.

        Raises
        ------
        GraphError
            Without outputs.
        """
        if not outputs:
            raise GraphError("the graph has no outputs")
        graph = LayerGraph._trusted(tuple(self._layers), tuple(self._inputs), outputs)
        # Mostly each tensor is used, and this is called for each network of a population.
        if self._one_output and len(self._feeding.union(outputs, self._inputs)) == len(graph):
            return graph
        return graph.without_dead_ends()


def _reached(layers: Sequence[Layer], ends: Sequence[Edge]) -> set[tuple[int, int]]:
    """Return layer and number of each call that one of some tensors comes from."""
    alive: set[tuple[int, int]] = set()
    pending = list(ends)
    while pending:
        edge = pending.pop()
        if (edge.layer, edge.call) not in alive:
            alive.add((edge.layer, edge.call))
            pending += layers[edge.layer].calls[edge.call].inputs
    return alive


def prefix(a: LayerGraph, b: LayerGraph) -> list[str]:
    """Return the stable names that both graphs have, in the order of `a`."""
    others = set(b.names)
    return [name for name in a.names if name in others]
