"""Whatever is passed, what comes back is a result or a StoreError in one line."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import cpp_store
from cpp_store import InvalidArgument, LayerTable, LeasedMatch, PrefixIndex, Store, StoreError


class Hostile:
    """Refuses whatever Python may want of it."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __array__(self, *_: object, **__: object) -> Any:
        raise RuntimeError("no array")


DEEP: dict[str, Any] = {}
for _ in range(5_000):
    DEEP = {"a": DEEP}
LOOP: list[Any] = []
LOOP.append(LOOP)

UNPRINTABLE = {"hostile": Hostile(), "deep": DEEP, "loop": LOOP}

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=8)  # surrogates and NUL, too
    | st.binary(max_size=8)
    | st.sampled_from(
        [2**31, 2**63, 2**64, -(2**70), 10**400, "a", "m", "x" * 70_000, "layers", "sync", b"a\xff"]
    )
    | st.sampled_from([np.ones(2), np.float32(1), np.array("a"), np.array([None]), int])
    | st.sampled_from(sorted(UNPRINTABLE)).map(lambda name: UNPRINTABLE[name])
)
VALUES = st.recursive(
    SCALARS | st.builds(lambda: LayerTable(["a", "b"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.frozensets(st.text(max_size=3), max_size=2)
    ),
    max_leaves=6,
)
# Opens no second store, and reads and writes no file.
METHODS = [
    (kind, name)
    for kind in (Store, PrefixIndex, LeasedMatch)
    for name, member in inspect.getmembers(kind, callable)
    if not name.startswith("_") and name not in ("close",)
] + [(Store, "__contains__"), (PrefixIndex, "__contains__")]
PARAMETERS = {
    name: [each for each in inspect.signature(getattr(Store, name)).parameters if each != "self"]
    for name in vars(Store)
    if inspect.isfunction(getattr(Store, name)) and not name.startswith("_")
} | {
    "add": ["model", "table", "score", "namespace", "sequence"],
    "remove": ["model"],
    "stats": [],
    "__contains__": ["model"],
}


@pytest.fixture(scope="module")
def server() -> Any:
    """Give a server for the module."""
    with cpp_store.serve(memory="64MiB") as made:
        yield made


@pytest.fixture(scope="module", params=["embedded", "connected"])
def subjects(request: pytest.FixtureRequest, server: cpp_store.Server) -> Any:
    """Give a store and an index with a model in each."""
    index = PrefixIndex()
    index.add("m", LayerTable(["a", "b"]))
    opened = (
        cpp_store.embedded(memory="64MiB")
        if request.param == "embedded"
        else cpp_store.connect(server.address)
    )
    with opened as store:
        store.put("m", {"a": [np.ones(3)], "b": [np.zeros(2, "f4")]})
        yield {Store: store, PrefixIndex: index}
        for model in store.list():
            store.retire(model)


def survives(call: Callable[[], object]) -> None:
    """Call; the only exception may be a StoreError, in words and in one line."""
    try:
        result = call()
    except StoreError as error:
        line = str(error)
        assert line and "\n" not in line and "incompatible function arguments" not in line
        return
    if isinstance(result, cpp_store.Allocation):
        result.discard()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_method(subjects: dict[type, Any], data: st.DataObject) -> None:
    kind, name = data.draw(st.sampled_from([each for each in METHODS if each[0] in subjects]))
    parameters = PARAMETERS[name]
    named = {each: data.draw(VALUES, label=each) for each in parameters}
    if name == "__contains__":
        assert (named["model"] in subjects[kind]) in (True, False)
        return
    survives(lambda: getattr(subjects[kind], name)(**named))


GOOD: dict[str, Any] = {
    "model": "m",
    "tensors": {"a": [np.ones(3)]},
    "specs": {"a": [((3,), "f4")]},
    "buffers": {"a": [np.ones(3)]},
    "table": LayerTable(["a"]),
    "match": None,
    "inherited": (),
    "namespace": "",
    "score": 0.0,
    "parent": "",
    "graph": "",
    "metadata": None,
    "layers": None,
    "copy": False,
    "weight": "layers",
    "min_layers": 1,
    "exclude": (),
    "only": "",
    "lease": None,
    "count": 1,
    "sequence": 0,
}


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_one_argument_at_a_time(subjects: dict[type, Any], data: st.DataObject) -> None:
    kind, name = data.draw(st.sampled_from([each for each in METHODS if each[0] in subjects]))
    parameters = [each for each in PARAMETERS[name] if name != "__contains__"]
    if not parameters:
        return
    wrong = data.draw(st.sampled_from(parameters))
    named = {each: GOOD[each] for each in parameters} | {wrong: data.draw(VALUES)}
    survives(lambda: getattr(subjects[kind], name)(**named))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(names=VALUES, needs=VALUES, nbytes=VALUES, encoded=VALUES)
@example(["a\udcff"], None, None, None)
@example(["a"], [[2**70]], [10**30], "text")
@example(["a"], None, [2**63], b"")
@example([], np.array("a"), np.array("a"), np.array("a"))  # arrays of no axis have no length
def test_layer_tables(names: Any, needs: Any, nbytes: Any, encoded: Any) -> None:
    survives(lambda: LayerTable(names, needs, nbytes))
    survives(lambda: LayerTable(["a", "b"], needs))
    survives(lambda: LayerTable(["a", "b"], None, nbytes))
    survives(lambda: LayerTable.decode(encoded))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=VALUES.filter(lambda value: not isinstance(value, bool)), data=st.data())
def test_opening(tmp_path_factory: Any, value: Any, data: st.DataObject) -> None:
    somewhere: Path = tmp_path_factory.getbasetemp()
    name = data.draw(st.sampled_from(["memory", "data_dir", "durability"]))
    good: dict[str, Any] = {"memory": "1MiB", "data_dir": None, "durability": "lazy"}
    if name == "data_dir" and isinstance(value, str | bytes):
        # Wherever it leads, it shall not be the working directory.
        value = (
            f"{somewhere}/{value}" if isinstance(value, str) else str(somewhere).encode() + value
        )
    survives(lambda: cpp_store.embedded(**good | {name: value}).close())
    name = data.draw(st.sampled_from(["servers", "timeout", "key", "same_host", "encrypt"]))
    good = {"servers": "ofi+tcp://127.0.0.1:1", "timeout": 0.01, "key": "", "replicas": 2}
    survives(lambda: cpp_store.connect(**good | {name: value}).close())
    survives(lambda: cpp_store.connect(**good | {"replicas": value, "timeout": -1}).close())
    name = data.draw(st.sampled_from(["address", "key", "memory", "insecure", "encrypt"]))
    good = {"address": "nonsense", "memory": "1MiB"}
    survives(lambda: cpp_store.serve(**good | {name: value}).stop())
    survives(lambda: cpp_store.serve(**good | {"threads": value}).stop())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda store: store.put("a\udcff", {}), r"model: 'a\\udcff' cannot be written as UTF-8"),
        (lambda store: store.put(5, {}), "model: expected a str, found int 5"),
        (lambda store: store.put("n", {"\udcff": []}), "tensors: .* cannot be written as UTF-8"),
        (lambda store: store.put("n", {}, metadata=DEEP), "metadata is nested too deeply"),
        (lambda store: store.put("n", {}, table="t"), "table: expected a LayerTable, found str"),
        (lambda store: store.put("n", {}, inherited="abc"), "inherited: expected a dict of layers"),
        (
            lambda store: store.put("n", {}, inherited=["ab"]),
            "inherited: expected a dict of layers",
        ),
        (
            lambda store: store.put("n", {}, inherited={"a": 1}),
            "layer 'a': expected a str, found int",
        ),
        (lambda store: store.put("n", {}, score="1"), "score: expected a number, found str '1'"),
        (lambda store: store.read("m", copy=np.ones(2)), "copy: expected True or False"),
        (lambda store: store.read_match(None), "match: expected a LeasedMatch, found NoneType"),
        (
            lambda store: store.best_matches(LayerTable(["a"]), count=2**70),
            "count is 1180591620717411303424; it is 1 to",
        ),
    ],
)
def test_what_the_lines_say(
    subjects: dict[type, Any], call: Callable[[Store], object], says: str
) -> None:
    with pytest.raises(InvalidArgument, match=says):
        call(subjects[Store])


def test_calls_that_no_method_has_are_type_errors(subjects: dict[type, Any]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        subjects[Store].read("m", colour="red")
    with pytest.raises(InvalidArgument, match=r"LayerTable takes \(names: .*\), found \(int\)$"):
        LayerTable(5)  # type: ignore[arg-type]


def test_errors_name_paths_that_are_not_utf8(tmp_path: Path) -> None:
    path = f"{tmp_path}/caf\udce9"
    with cpp_store.embedded(memory="16MiB", data_dir=path) as store:
        store.put("m", {"a": [np.ones(3)]})
        with pytest.raises(StoreError, match="caf\udce9"):
            cpp_store.embedded(memory="16MiB", data_dir=path)
    with cpp_store.embedded(memory="16MiB", data_dir=path) as store:
        assert store.list() == ["m"]
    with pytest.raises(InvalidArgument, match="expected a path"):
        cpp_store.embedded(data_dir="a\0b")


def test_no_match_is_false_and_a_context(subjects: dict[type, Any]) -> None:
    store: Store = subjects[Store]
    query = LayerTable(["other"], nbytes=[24])
    with store.best_match(query) as match:
        assert not match and match.model == "" and match.layers == 0
        assert store.read_match(match) == {}
        store.put("n", {"other": [np.ones(3)]}, table=query, inherited=match.owners)
    with store.best_match(query) as match:
        assert match and match.model == "n"
