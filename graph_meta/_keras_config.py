"""Configurations of Keras objects: what of them makes a layer what it is, and back to objects.

``name`` and ``trainable`` of the layer itself are left out; what is inside it keeps all that may
mean something. docs/formats.md, "Configurations of Keras layers", has the rules.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from graph_meta.naming import GraphError, label

REGISTER = "register it with @keras.saving.register_keras_serializable()"

#: What layers raise for a configuration or tensors that they cannot work with.
REFUSALS = (TypeError, ValueError, LookupError, AttributeError, NotImplementedError, ImportError)

# Options that Keras added to a class after 3.8, with the value at which nothing changed. Left out
# of configurations, so that a digest is the same under every version of Keras.
_ADDED_LATER: Mapping[str, Mapping[str, Any]] = {
    "InputLayer": {"ragged": False, "optional": False},
    "BatchNormalization": {"renorm": False, "renorm_momentum": 0.99},
    "ELU": {"alpha": 1.0},
    "GroupedQueryAttention": {"use_gate": False},
    "IndexLookup": {"oov_method": "floormod"},
    "MultiHeadAttention": {"use_gate": False},
    "Resizing": {"antialias": False},
    **{
        name: {"data_format": "channels_last"}
        for name in (
            "AutoContrast",
            "MixUp",
            "RandAugment",
            "RandomBrightness",
            "RandomColorDegeneration",
            "RandomColorJitter",
            "RandomContrast",
            "RandomGrayscale",
            "RandomHue",
            "RandomPosterization",
            "RandomSaturation",
            "RandomSharpness",
            "Solarization",
        )
    },
}

_MODULE = re.compile(r"\w+(\.\w+)*")
_NAMED_BY_CLASS = ("keras.initializers", "keras.regularizers", "keras.constraints")


def class_name(operation: Any, where: str) -> str:
    """Return what `find_class` finds the class by, in any process that has imported it."""
    import keras

    found = type(operation)
    registered = keras.saving.get_registered_name(found)
    if keras.saving.get_registered_object(registered) is found:
        return str(registered)
    if getattr(keras.layers, found.__name__, None) is found:
        return str(found.__name__)
    # Operations on tensors: keras.src.ops.numpy.Add is "ops.numpy>Add", apart from the layer Add.
    if _is_of_keras(found):
        module = found.__module__.removeprefix("keras.").removeprefix("src.")
        return f"{module}>{found.__name__}"
    raise GraphError(f"{where}: the class {found.__qualname__} is not registered; {REGISTER}")


def find_class(name: str, where: str) -> tuple[Any, str, str | None]:
    """Return the class, and the module and registered name by which Keras deserializes it."""
    import keras

    package, is_qualified, short = name.rpartition(">")
    registered = keras.saving.get_registered_object(name)
    if registered is not None:
        return registered, registered.__module__, name
    if not is_qualified and hasattr(keras.layers, short):
        return getattr(keras.layers, short), "keras.layers", None
    if _MODULE.fullmatch(package):
        module = f"keras.src.{package}"
        try:
            found = getattr(importlib.import_module(module), short, None)
        except ImportError:
            found = None
        if isinstance(found, type) and issubclass(found, keras.Operation):
            return found, module, None
    raise GraphError(
        f"{where}: this version of Keras has no class {name!r}, and none is registered by "
        f"that name; import the module that defines it, and {REGISTER}"
    )


def describe(operation: Any, where: str) -> tuple[str, dict[str, Any]]:
    """Return class and configuration of a layer, or of an operation on tensors."""
    name = class_name(operation, where)
    config = serialized(operation, where)["config"]
    compact = _Compactor().config(
        type(operation), config, where, trainable=config.get("trainable", True)
    )
    return name, {key: value for key, value in compact.items() if key not in ("name", "trainable")}


def make(class_name: str, config: Mapping[str, Any], name: str) -> Any:
    """Make the layer that `describe` describes."""
    import keras

    where = f"layer {name}"
    owner, module, registered = find_class(class_name, where)
    serialized = {
        "module": module,
        "class_name": class_name.rpartition(">")[2],
        "config": {**_completed(owner, config, where), "name": name},
        "registered_name": registered,
    }
    try:
        with _constructors(serialized):
            return keras.saving.deserialize_keras_object(serialized, safe_mode=True)
    except REFUSALS as error:
        raise GraphError(f"{where}: Keras refuses its configuration: {one_line(error)}") from error


def describe_argument(value: Any, where: str) -> Any:
    """Return an argument of a call as data: what is a string stays one, objects are objects."""
    return _Compactor().value(serialized(value, where), where, None, trainable=True)


def make_argument(value: Any, where: str) -> Any:
    """Undo `describe_argument`."""
    import keras

    with _constructors(value):
        return keras.saving.deserialize_keras_object(_completed_value(value, where), safe_mode=True)


def serialized(value: Any, where: str) -> Any:
    """Return what Keras makes of an object, or refuse it with one line."""
    import keras

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="The object being serialized includes a `lam")
            return keras.saving.serialize_keras_object(value)
    except UserWarning as error:
        raise GraphError(
            f"{where}: a lambda has no name that means the same everywhere; write it as a function "
            f"and {REGISTER}"
        ) from error
    except (TypeError, ValueError, NotImplementedError) as error:
        raise GraphError(
            f"{where}: cannot be serialized ({one_line(error)}); give its class a get_config() and "
            f"{REGISTER}"
        ) from error


def one_line(error: Exception) -> str:
    """Return the first line of what an exception says."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class _Compactor:
    """Turns one serialized configuration into its canonical form.

    The layers inside it are called by their class and the order in which they are met, whatever
    Keras or the user called them.
    """

    def __init__(self) -> None:
        self._layers = 0

    def config(
        self, owner: Any, config: Mapping[str, Any], where: str, *, trainable: bool
    ) -> dict[str, Any]:
        """Return the configuration of an object of class `owner`, which itself is (not) trained."""
        later = _added_later(owner)
        names = self._names(owner, config)
        compact = {}
        for key in sorted(config):
            value, here = config[key], f"{where}.{key}"
            if key in later and value == later[key]:
                continue  # and `_completed` puts it back
            if value is None and _is_none_by_default(owner, key):
                continue
            if names and key == "layers":
                compact[key] = [
                    self._layer_of_model(entry, names, owner, f"{here}[{i}]", trainable)
                    for i, entry in enumerate(value)
                ]
            elif names and key in ("input_layers", "output_layers"):
                compact[key] = _rewired(value, names)
            else:
                compact[key] = self.value(value, here, owner, trainable=trainable)
        return compact

    def value(self, value: Any, where: str, owner: Any, *, trainable: bool) -> Any:
        """Return what a configuration holds, or what is in that.

        Parameters
        ----------
        value
            Serialized.
        where
            For messages.
        owner
            The class that reads it; None for an argument of a call.
        trainable
            Whether the object that holds it is trained.
        """
        if isinstance(value, (list, tuple)):
            return [
                self.value(item, f"{where}[{i}]", owner, trainable=trainable)
                for i, item in enumerate(value)
            ]
        if not isinstance(value, Mapping):
            return value
        if "class_name" not in value or "config" not in value:
            return {
                key: self.value(item, f"{where}.{key}", owner, trainable=trainable)
                for key, item in value.items()
            }
        return self._object(value, where, owner, trainable)

    def _object(self, value: Mapping[str, Any], where: str, owner: Any, trainable: bool) -> Any:
        """Return a serialized Keras object in short: its name, if that says it all to `owner`."""
        name, config = value["class_name"], value["config"]
        module, registered = value.get("module"), value.get("registered_name")
        if name.startswith("__"):  # arrays, slices, dtypes: as Keras writes them
            return dict(value)
        if name == "function":
            return _function(value, where)
        takes_names = owner is not None and _is_of_keras(owner)
        if (module, name) == ("keras", "DTypePolicy"):
            if takes_names or (owner is not None and where.endswith(".dtype")):
                return config["name"]
            return {"class_name": name, "config": dict(config), "module": module}
        if (module, name) == ("keras.dtype_policies", "DTypePolicyMap"):
            raise GraphError(
                f"{where}: a DTypePolicyMap goes by what layers are called, which means nothing in "
                "another model; give each layer its own dtype policy"
            )
        known = _known_class(module, name, registered, where)
        own = config.get("trainable", trainable)
        config = {**config}
        if isinstance(config.get("name"), str) and _is_named_at_will(known):
            config["name"] = self._name(name)
        if isinstance(own, bool) and "trainable" in config:
            # Only what is frozen inside a layer that trains is its own matter.
            config["trainable"] = own or not trainable
        compact = self.config(known, config, where, trainable=bool(own))
        if takes_names and module in _NAMED_BY_CLASS and not compact:
            return name
        short = {"class_name": name, "config": compact}
        if module is not None and module.partition(".")[0] == "keras":
            short["module"] = module
        else:
            short["registered_name"] = registered
        return short

    def _names(self, owner: Any, config: Mapping[str, Any]) -> dict[str, str]:
        """Return new names of the layers of a model, by their old ones; none if it is no model."""
        import keras

        layers = config.get("layers")
        if not (isinstance(owner, type) and issubclass(owner, keras.Model)):
            return {}
        if not isinstance(layers, (list, tuple)) or not all(map(_is_layer_entry, layers)):
            return {}
        return {_name_of(entry): self._name(entry["class_name"]) for entry in layers}

    def _layer_of_model(
        self,
        entry: Mapping[str, Any],
        names: Mapping[str, str],
        owner: Any,
        where: str,
        trainable: bool,
    ) -> dict[str, Any]:
        name = names[_name_of(entry)]
        compact: dict[str, Any] = self._object(entry, where, owner, trainable)
        compact["config"]["name"] = name
        if "inbound_nodes" in entry:
            compact["name"] = name
            compact["inbound_nodes"] = [
                self._node(node, names, f"{where}.inbound_nodes[{i}]")
                for i, node in enumerate(entry["inbound_nodes"])
            ]
        return compact

    def _node(self, node: Any, names: Mapping[str, str], where: str) -> Any:
        """Return a call inside a model, on the tensors of layers that have new names."""

        def write(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [write(item) for item in value]
            if not isinstance(value, Mapping):
                return value
            if value.get("class_name") == "__keras_tensor__":
                history = _rewired(value["config"]["keras_history"], names)
                return {**value, "config": {**value["config"], "keras_history": history}}
            if "class_name" in value and "config" in value:
                return self.value(value, where, None, trainable=True)
            return {key: write(item) for key, item in value.items()}

        if not isinstance(node, Mapping) or "kwargs" not in node:
            return write(node)
        kwargs = {
            key: value
            for key, value in node["kwargs"].items()
            if not (key.endswith("mask") and value is None)  # Keras says so of any call
        }
        return {"args": write(node["args"]), "kwargs": write(kwargs)}

    def _name(self, class_name: str) -> str:
        self._layers += 1
        return f"{label(class_name)}-{self._layers}"


def _is_layer_entry(entry: Any) -> bool:
    return (
        isinstance(entry, Mapping)
        and isinstance(entry.get("class_name"), str)
        and isinstance(entry.get("config"), Mapping)
        and isinstance(_name_of(entry), str)
    )


def _name_of(entry: Mapping[str, Any]) -> Any:
    return entry.get("name", entry["config"].get("name"))


def _rewired(value: Any, names: Mapping[str, str]) -> Any:
    """Return references to tensors, [layer, call, tensor] each, to layers by their new names."""
    if isinstance(value, Mapping):
        return {key: _rewired(item, names) for key, item in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) == 3 and isinstance(value[0], str) and value[0] in names:
        return [names[value[0]], *value[1:]]
    return [_rewired(item, names) for item in value]


def _function(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    import keras

    try:
        keras.saving.deserialize_keras_object(dict(value), safe_mode=True)
    except REFUSALS as error:
        raise GraphError(
            f"{where}: the function {value['config']} is not registered; {REGISTER}"
        ) from error
    short = {key: value[key] for key in ("class_name", "config", "registered_name")}
    if keras.saving.get_registered_object(value["config"]) is None:
        short["module"] = value["module"]  # what is registered is found wherever it was imported
    return short


def _known_class(module: str | None, name: str, registered: str | None, where: str) -> Any:
    """Return the class of a serialized object; it has to be Keras's or registered."""
    import keras

    known = keras.saving.get_registered_object(registered or name)
    if known is None and module is not None and module.partition(".")[0] == "keras":
        try:
            known = getattr(importlib.import_module(module), name, None)
        except ImportError:
            known = None
    if known is None:
        raise GraphError(f"{where}: the class {registered or name} is not registered; {REGISTER}")
    return known


def _is_of_keras(found: Any) -> bool:
    return str(found.__module__).partition(".")[0] == "keras"


def _is_named_at_will(known: Any) -> bool:
    """Whether the name of such an object means nothing but to the model that it is a layer of."""
    import keras

    return isinstance(known, type) and (
        issubclass(known, keras.Operation)
        or (_is_of_keras(known) and not issubclass(known, keras.DTypePolicy))
    )


@functools.lru_cache(8192)
def _is_none_by_default(owner: Any, key: str) -> bool:
    """Whether None is what Keras takes `key` for where it is not given.

    Then it is left out, so that options of newer versions of Keras change no digest. A class of the
    user's own has no versions that we could know of.
    """
    for base in getattr(owner, "__mro__", ()):
        if "__init__" in vars(base):
            parameter = inspect.signature(base.__init__).parameters.get(key)
            if parameter is not None:
                return _is_of_keras(base) and parameter.default is None
    return _is_of_keras(owner)


@functools.lru_cache(1024)
def _added_later(owner: Any) -> Mapping[str, Any]:
    """Return what a class, or the class of Keras that it derives from, left out at the time."""
    return {
        key: value
        for base in getattr(owner, "__mro__", ())
        if _is_of_keras(base)
        for key, value in _ADDED_LATER.get(base.__name__, {}).items()
    }


@functools.lru_cache(1024)
def _left_out(owner: Any) -> tuple[str, ...]:
    """Return the options that `_is_none_by_default` may have left out, if the class reads them.

    Who has no ``from_config`` of its own does not: Keras calls the constructor.
    """
    import keras

    found = getattr(owner, "from_config", None)
    if getattr(found, "__func__", found) is keras.Operation.from_config.__func__:
        return ()
    own = inspect.signature(owner.__init__).parameters.values()
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own)
    bases = [base for base in owner.__mro__ if "__init__" in vars(base)] if takes_any else [owner]
    return tuple(
        {
            key
            for base in bases
            for key, parameter in inspect.signature(base.__init__).parameters.items()
            if parameter.default is None and key != "name" and _is_none_by_default(owner, key)
        }
    )


@contextmanager
def _constructors(value: Any) -> Iterator[None]:
    """Within, registered classes that have no ``from_config`` are made by their constructor.

    Keras writes such objects down, and would refuse to read them.
    """
    import keras

    lacking = {
        found
        for name in _registered_names(value)
        if isinstance(found := keras.saving.get_registered_object(name), type)
        and not hasattr(found, "from_config")
    }
    try:
        for found in lacking:
            found.from_config = classmethod(_construct)  # type: ignore[attr-defined]
        yield
    finally:
        for found in lacking:
            del found.from_config  # type: ignore[attr-defined]


def _construct(found: Any, config: Mapping[str, Any]) -> Any:
    return found(**config)


def _registered_names(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(name := value.get("registered_name"), str):
            yield name
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for item in value:
        yield from _registered_names(item)


def _completed(owner: Any, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a configuration with what was left out of it, as ``from_config`` expects it."""
    config = {key: _completed_value(value, f"{where}.{key}") for key, value in config.items()}
    later = {key: value for key, value in _added_later(owner).items() if _takes(owner, key)}
    return {**dict.fromkeys(_left_out(owner)), **later, **config}


@functools.lru_cache(1024)
def _takes(owner: Any, key: str) -> bool:
    """Whether a constructor of the class, or of one that it derives from, knows an option."""
    return any(
        key in inspect.signature(base.__init__).parameters
        for base in owner.__mro__
        if "__init__" in vars(base)
    )


def _completed_value(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return [_completed_value(item, where) for item in value]
    if not isinstance(value, dict):
        return value
    name, config = value.get("class_name"), value.get("config")
    if not isinstance(name, str) or not isinstance(config, dict) or name.startswith("__"):
        return {key: _completed_value(item, where) for key, item in value.items()}
    known = _known_class(value.get("module"), name, value.get("registered_name"), where)
    rest = {key: _completed_value(item, where) for key, item in value.items() if key != "config"}
    # Without "module", models take their layers for those of Keras 2.
    return {"module": None, **rest, "config": _completed(known, config, where)}
