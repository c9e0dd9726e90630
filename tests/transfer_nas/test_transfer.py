"""Every transfer method keeps the contract of `TransferMethod`."""

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes  # noqa: F401 - makes NumPy know bfloat16 by name
import numpy as np
import pytest

import cpp_store
from graph_meta import GraphBuilder, LayerGraph, LayerSpec, WeightSpec, layers
from graph_meta.graph import _ITEM_SIZES
from transfer_nas import transfer
from transfer_nas.errors import InputError, TransferError, TransferUnavailable
from transfer_nas.transfer import (
    HDF5Transfer,
    RedisTransfer,
    StoreTransfer,
    Tensors,
    TransferMethod,
)

Open = Callable[[str], TransferMethod]
"""Opens the place for a namespace, as another process would."""


@contextlib.contextmanager
def redis_server() -> Iterator["subprocess.Popen[str]"]:
    """An empty Redis server, where `REDIS_URL` says."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs redis-server: apt-get install redis-server")
    pytest.importorskip("redis")
    # A socket's path is short.
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        socket = f"{directory}/socket"
        command = [program, "--port", "0", "--unixsocket", socket, "--save", "", "--dir", directory]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
            pytest.MonkeyPatch.context() as patch,
        ):
            assert process.stdout is not None
            assert any("eady to accept connections" in line for line in process.stdout)
            patch.setenv("REDIS_URL", f"unix://{socket}")
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture(params=["hdf5", "redis", "store", "served"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """An empty place for models; each of its methods is closed at the end."""
    with contextlib.ExitStack() as stack:
        store = None
        if request.param == "redis":
            stack.enter_context(redis_server())
        if request.param == "store":
            store = stack.enter_context(cpp_store.embedded(memory="64MiB"))
        if request.param == "served":
            server = stack.enter_context(cpp_store.serve(memory="64MiB"))
            store = stack.enter_context(cpp_store.connect(server.address))

        def open_place(namespace: str) -> TransferMethod:
            name = "store" if store is not None else request.param
            method = transfer.get(name, namespace, directory=tmp_path, store=store)
            stack.callback(method.close)
            return method

        yield open_place


@pytest.fixture
def method(place: Open) -> TransferMethod:
    return place("digits")


def chain(*widths: int) -> LayerGraph:
    """A chain of dense layers; equal first widths make a shared prefix."""
    builder = GraphBuilder()
    edge = builder.input((4,))
    for width in widths:
        edge = builder.add(layers.dense(width), edge)
        edge = builder.add(layers.activation("relu"), edge)
    return builder.build(edge)


def tensors_of(graph: LayerGraph, value: float, only: Sequence[str] | None = None) -> Tensors:
    """Tensors of a graph's layers, filled with a value."""
    return {
        name: [np.full(w.shape, value, w.dtype) for w in layer.spec.weights]
        for name, layer in zip(graph.names, graph.layers, strict=True)
        if layer.spec.weights and (only is None or name in only)
    }


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensors in expected.items():
        assert len(found[name]) == len(tensors)
        for a, b in zip(found[name], tensors, strict=True):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), name


def ancestor_of(method: TransferMethod, graph: LayerGraph) -> str | None:
    match = method.best_match(graph)
    if match is None:
        return None
    with match:
        return match.ancestor


def put_child(method: TransferMethod, model: str, graph: LayerGraph, value: float) -> int:
    """Put a model that inherits all it can; its own tensors hold `value`."""
    match = method.best_match(graph)
    assert match is not None
    with match:
        inherited = set(match.read())
        own = [name for name in tensors_of(graph, 0) if name not in inherited]
        return method.put(
            model,
            graph,
            tensors_of(graph, value, own),
            score=value,
            parent=match.ancestor,
            inheritance=match,
            inherited=inherited,
        )


def test_models_of_another_version_of_layer_graphs_are_refused(
    place: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = place("digits")
    graph = chain(3, 2)
    older = LayerGraph.to_json(graph).replace('"version":2', '"version":1')
    assert older != graph.to_json()
    with monkeypatch.context() as patch:
        patch.setattr(LayerGraph, "to_json", lambda _: older)
        method.put("old", graph, tensors_of(graph, 1.0), score=0.0)
    with pytest.raises(InputError, match="expected version 2 of layer graphs, found 1") as caught:
        place("digits")
    assert "\n" not in str(caught.value)
    place("other data")
    method.retire(["old"])
    method.put("new", graph, tensors_of(graph, 1.0), score=0.0)
    place("digits")


def test_an_empty_place_matches_nothing(method: TransferMethod) -> None:
    assert method.best_match(chain(3, 5)) is None


def test_a_whole_model_is_to_be_had_until_it_is_retired(method: TransferMethod) -> None:
    graph, heir = chain(3, 5, 7), chain(3, 5, 8)
    method.put("a", graph, tensors_of(graph, 1.5), score=0.5)
    put_child(method, "b", heir, 2.5)

    found = method.whole("b")

    assert found is not None
    assert found[0] == heir
    shared = tensors_of(heir, 1.5, graph.names)
    assert_equal(found[1], {**tensors_of(heir, 2.5), **shared})
    method.retire(["b"])
    assert method.whole("b") is None
    assert method.whole("never") is None


def test_a_match_says_what_is_shared_and_reads_it(method: TransferMethod) -> None:
    stored, asked = chain(3, 5, 7), chain(3, 5, 8)
    method.put("a", stored, tensors_of(stored, 1.5), score=0.5)

    match = method.best_match(asked)

    assert match is not None
    with match:
        assert (match.ancestor, match.score) == ("a", 0.5)
        assert match.layers == asked.names[:5]
        expected = tensors_of(stored, 1.5, asked.names[:5])
        assert match.nbytes == sum(t.nbytes for ts in expected.values() for t in ts)
        assert_equal(match.read(), expected)


def test_what_is_read_outlives_the_match_and_is_read_only(method: TransferMethod) -> None:
    graph = chain(3)
    method.put("a", graph, tensors_of(graph, 1), score=0)
    match = method.best_match(graph)
    assert match is not None
    with match:
        tensors = match.read()
    match.close()  # a second time
    method.retire(["a"])
    method.put("b", graph, tensors_of(graph, 2), score=0)

    assert_equal(tensors, tensors_of(graph, 1))
    assert not any(t.flags.writeable for ts in tensors.values() for t in ts)


def test_put_copies(method: TransferMethod) -> None:
    graph = chain(3)
    tensors = tensors_of(graph, 1)
    method.put("a", graph, tensors, score=0)
    for array in itertools.chain(*tensors.values()):
        array.fill(2)
    match = method.best_match(graph)
    assert match is not None
    with match:
        assert_equal(match.read(), tensors_of(graph, 1))


def test_the_longest_prefix_wins_then_the_score_then_the_newer(method: TransferMethod) -> None:
    asked = chain(3, 5, 7)
    for model, graph, score in [
        ("short", chain(3, 6), 0.9),
        ("poor", chain(3, 5, 8), 0.1),
        ("good", chain(3, 5, 9), 0.4),
        ("newer", chain(3, 5, 10), 0.4),
    ]:
        method.put(model, graph, tensors_of(graph, score), score=score)
    answers = []
    for _ in range(4):
        answers.append(ancestor_of(method, asked))
        method.retire([answers[-1]])
    assert answers == ["newer", "good", "poor", "short"]


def test_a_prefix_without_tensors_is_no_match(method: TransferMethod) -> None:
    graph = chain(3)
    method.put("a", graph, tensors_of(graph, 1), score=0)
    assert method.best_match(chain(4)) is None


def test_namespaces_do_not_mix(place: Open) -> None:
    graph = chain(3)
    place("digits").put("a", graph, tensors_of(graph, 1), score=0)
    assert ancestor_of(place("other"), graph) is None
    assert ancestor_of(place("digits"), graph) == "a"


def test_what_one_puts_and_retires_the_others_see(place: Open) -> None:
    one, other = place("digits"), place("digits")
    graph = chain(3, 5)
    assert ancestor_of(other, graph) is None
    one.put("a/1", graph, tensors_of(graph, 1), score=0)
    one.put("b.2", chain(3, 6), tensors_of(chain(3, 6), 2), score=0)
    assert ancestor_of(other, graph) == "a/1"
    other.retire(["a/1", "unknown"])
    assert ancestor_of(one, graph) == "b.2"
    one.retire(["a/1"])
    assert ancestor_of(other, graph) == "b.2"


def test_a_match_survives_the_retirement_of_its_ancestor(place: Open) -> None:
    one, other = place("digits"), place("digits")
    parent, child = chain(3, 5), chain(3, 6)
    one.put("parent", parent, tensors_of(parent, 1), score=0)
    match = one.best_match(child)
    assert match is not None
    with match:
        other.retire(["parent"])
        shared = tensors_of(child, 1, match.layers)
        assert_equal(match.read(), shared)
        own = {name: ts for name, ts in tensors_of(child, 2).items() if name not in shared}
        one.put("child", child, own, score=0, inheritance=match, inherited=list(shared))
    assert ancestor_of(other, parent) == "child"
    again = other.best_match(child)
    assert again is not None
    with again:
        assert_equal(again.read(), {**shared, **own})


def test_heirs_of_heirs_keep_what_their_ancestors_lose(method: TransferMethod) -> None:
    generations = [chain(3), chain(3, 5), chain(3, 5, 7), chain(3, 5, 7, 9)]
    method.put("0", generations[0], tensors_of(generations[0], 0), score=0)
    for number, graph in enumerate(generations[1:], start=1):
        put_child(method, str(number), graph, number)
        method.retire([str(number - 1)])
    match = method.best_match(generations[-1])
    assert match is not None
    with match:
        assert match.ancestor == "3"
        values = {float(tensors[0].flat[0]) for tensors in match.read().values()}
        assert values == {0, 1, 2, 3}


def test_a_model_of_the_same_id_is_replaced(place: Open) -> None:
    one, other = place("digits"), place("digits")
    before, after = chain(3, 5), chain(4, 5)
    one.put("a", before, tensors_of(before, 1), score=0)
    assert ancestor_of(other, before) == "a"
    one.put("a", after, tensors_of(after, 2), score=0)
    assert ancestor_of(other, before) is None
    match = other.best_match(after)
    assert match is not None
    with match:
        assert_equal(match.read(), tensors_of(after, 2))
    one.retire(["a"])
    assert ancestor_of(other, after) is None


def test_an_interrupted_evaluation_that_is_put_again_changes_nothing(
    method: TransferMethod,
) -> None:
    graph = chain(3)
    for _ in range(2):
        method.put("a", graph, tensors_of(graph, 1), score=0)
    match = method.best_match(graph)
    assert match is not None
    with match:
        assert_equal(match.read(), tensors_of(graph, 1))
    method.retire(["a"])
    assert method.best_match(graph) is None


def test_every_kind_of_tensor_comes_back(method: TransferMethod) -> None:
    dtypes = list(_ITEM_SIZES)  # all that layer graphs know
    shapes = [(), (0, 3), (2, 1, 3)]
    builder = GraphBuilder()
    spec = LayerSpec("Many", {}, [WeightSpec(s, d) for d in dtypes for s in shapes])
    graph = builder.build(builder.add(spec, builder.input((4,))))
    tensors = tensors_of(graph, 1)
    method.put("a", graph, tensors, score=0)
    match = method.best_match(graph)
    assert match is not None
    with match:
        assert_equal(match.read(), tensors)


def test_inherited_layers_need_their_inheritance(method: TransferMethod) -> None:
    graph = chain(3)
    with pytest.raises(ValueError):
        method.put("a", graph, {}, score=0, inherited=list(tensors_of(graph, 0)))
    assert method.best_match(graph) is None


def test_threads_see_only_whole_models(place: Open) -> None:
    """Each model's tensors hold its score; a mixture would show."""
    graph = chain(3, 5, 7)
    problems: list[str] = []

    def work(worker: int) -> None:
        method = place("digits")
        try:
            for round in range(12):
                model, score = f"{worker}-{round}", float(worker * 100 + round)
                method.put(model, graph, tensors_of(graph, score), score=score)
                match = method.best_match(graph)
                if match is None:
                    problems.append(f"{model} is there, but nothing matches")
                    continue
                with match:
                    values = {float(t.flat[0]) for ts in match.read().values() for t in ts}
                    if values != {match.score}:
                        problems.append(f"{match.ancestor}: {values}, score {match.score}")
                if round >= 2:
                    method.retire([f"{worker}-{round - 2}"])
        except Exception as error:
            problems.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert problems == []
    method = place("digits")
    method.retire([f"{worker}-{round}" for worker in range(4) for round in (10, 11)])
    assert method.best_match(graph) is None


def test_no_transfer_keeps_nothing() -> None:
    method = transfer.get("noop", "digits")
    graph = chain(3)
    assert method.put("a", graph, tensors_of(graph, 1), score=0) == 0
    assert method.best_match(graph) is None
    method.retire(["a", "unknown"])


def test_unknown_methods_and_missing_resources_are_named() -> None:
    with pytest.raises(InputError, match=r"'hdf'.*did you mean 'hdf5'"):
        transfer.get("hdf", "digits")
    with pytest.raises(InputError, match="needs a directory"):
        transfer.get("hdf5", "digits")
    with pytest.raises(InputError, match="needs an open"):
        transfer.get("store", "digits")


def test_a_file_in_place_of_the_directory_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("not a directory")
    with pytest.raises(InputError, match="models"):
        transfer.get("hdf5", "digits", directory=tmp_path / "models")


class TestFiles:
    """What is particular to the files of `hdf5`."""

    def test_copies_are_whole(self, tmp_path: Path) -> None:
        method = HDF5Transfer("digits", tmp_path)
        parent, child = chain(3), chain(3, 5)
        method.put("a", parent, tensors_of(parent, 1), score=0)
        assert put_child(method, "b", child, 2) == child.nbytes

    def test_a_vanished_file_leaves_the_next_best(self, tmp_path: Path) -> None:
        method = HDF5Transfer("digits", tmp_path)
        for model, graph in [("best", chain(3, 5)), ("second", chain(3, 6))]:
            method.put(model, graph, tensors_of(graph, 1), score=0)
        (data,) = tmp_path.glob("best.*.h5")
        data.unlink()
        assert ancestor_of(method, chain(3, 5)) == "second"
        for data in tmp_path.glob("*.h5"):
            data.unlink()
        assert ancestor_of(method, chain(3, 5)) is None

    def test_foreign_and_damaged_files_are_left_alone(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "notes.json").write_text('{"mine": true}')
        (tmp_path / "torn.json").write_text('{"format": "transfer-nas-mo')
        method = HDF5Transfer("digits", tmp_path)
        graph = chain(3)
        method.put("a", graph, tensors_of(graph, 1), score=0)
        for _ in range(2):
            assert ancestor_of(method, graph) == "a"
        warned = [record.args[0].name for record in caplog.records]
        assert sorted(warned) == ["notes.json", "torn.json"]
        assert (tmp_path / "notes.json").exists()

    def test_a_damaged_model_is_a_transfer_error(self, tmp_path: Path) -> None:
        method = HDF5Transfer("digits", tmp_path)
        graph = chain(3)
        method.put("a", graph, tensors_of(graph, 1), score=0)
        (data,) = tmp_path.glob("*.h5")
        data.write_bytes(b"not HDF5")
        with pytest.raises(TransferError, match="cannot open"):
            method.best_match(graph)

    def test_a_failed_put_leaves_nothing(self, tmp_path: Path) -> None:
        method = HDF5Transfer("digits", tmp_path)
        graph = chain(3)
        with pytest.raises(AttributeError):
            method.put("a", graph, {"Dense": ["no array"]}, score=0)  # type: ignore[list-item]
        assert list(tmp_path.iterdir()) == []

    def test_retiring_leaves_no_file(self, tmp_path: Path) -> None:
        method = HDF5Transfer("digits", tmp_path)
        graph = chain(3)
        for model in ("a", "a.b", "a/b"):
            method.put(model, graph, tensors_of(graph, 1), score=0)
        method.retire(["a"])
        assert ancestor_of(method, graph) == "a/b"
        method.retire(["a.b", "a/b"])
        assert list(tmp_path.iterdir()) == []

    def test_a_directory_that_is_gone_is_unavailable(self, tmp_path: Path) -> None:
        method = HDF5Transfer("digits", tmp_path / "models")
        (tmp_path / "models").rmdir()
        graph = chain(3)
        with pytest.raises(TransferUnavailable, match="models"):
            method.best_match(graph)
        with pytest.raises(TransferUnavailable, match="models"):
            method.put("a", graph, tensors_of(graph, 1), score=0)
        with pytest.raises(TransferUnavailable, match="models"):
            method.retire(["a"])


class TestRedis:
    """What is particular to Redis."""

    def test_copies_are_whole_and_retiring_leaves_nothing(self) -> None:
        with redis_server():
            import redis

            method = RedisTransfer.create("digits")
            parent, child = chain(3), chain(3, 5)
            for _ in range(2):
                method.put("a", parent, tensors_of(parent, 1), score=0)
            assert put_child(method, "b", child, 2) == child.nbytes
            method.retire(["a", "b", "unknown"])
            method.close()
            with redis.Redis.from_url(os.environ["REDIS_URL"]) as client:
                assert client.keys() == []

    def test_a_full_server_keeps_what_it_has(self) -> None:
        with redis_server():
            import redis

            method = RedisTransfer.create("digits")
            method.put("a", chain(3), tensors_of(chain(3), 1), score=0)
            with redis.Redis.from_url(os.environ["REDIS_URL"]) as client:
                client.config_set("maxmemory", 1)
                with pytest.raises(TransferError, match="maxmemory"):
                    method.put("b", chain(4), tensors_of(chain(4), 2), score=0)
                client.config_set("maxmemory", 0)
            assert method.best_match(chain(4)) is None
            assert ancestor_of(method, chain(3)) == "a"
            method.close()

    def test_a_dead_server_is_unavailable(self) -> None:
        with redis_server() as process:
            method = RedisTransfer.create("digits")
            graph = chain(3)
            process.kill()
            process.wait()
            attempts: list[Callable[[], object]] = [
                lambda: method.best_match(graph),
                lambda: method.put("a", graph, tensors_of(graph, 1), score=0),
                lambda: method.retire(["a"]),
                lambda: method.whole("a"),
            ]
            for attempt in attempts:
                with pytest.raises(TransferUnavailable, match="does not answer"):
                    attempt()
            with pytest.raises(InputError, match=r"REDIS_URL: unix://.*does not answer"):
                RedisTransfer.create("digits")

    def test_what_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("REDIS_URL", raising=False)
        with pytest.raises(InputError, match="set REDIS_URL"):
            transfer.get("redis", "digits")
        monkeypatch.setenv("REDIS_URL", "no address")
        pytest.importorskip("redis")
        with pytest.raises(InputError, match="REDIS_URL: 'no address'"):
            transfer.get("redis", "digits")
        monkeypatch.setitem(sys.modules, "redis", None)
        with pytest.raises(InputError, match=r'pip install "redis.*" "hiredis.*"$'):
            transfer.get("redis", "digits")


class TestStore:
    """What is particular to the store."""

    def test_only_what_is_new_takes_memory(self) -> None:
        with cpp_store.embedded(memory="64MiB") as store:
            method = StoreTransfer("digits", store)
            parent, child = chain(3), chain(3, 5)
            method.put("a", parent, tensors_of(parent, 1), score=0)
            assert put_child(method, "b", child, 2) == child.nbytes - parent.nbytes
            stats = store.stats()
            assert stats["bytes_stored"] == child.nbytes
            assert stats["bytes_referenced"] == child.nbytes + parent.nbytes
            assert stats["leases"] == 0

    def test_an_id_that_heirs_still_need_cannot_be_put_again(self) -> None:
        with cpp_store.embedded(memory="64MiB") as store:
            method = StoreTransfer("digits", store)
            method.put("a", chain(3), tensors_of(chain(3), 1), score=0)
            put_child(method, "b", chain(3, 5), 2)
            with pytest.raises(TransferError, match="'a'"):
                method.put("a", chain(4), tensors_of(chain(4), 3), score=0)
            assert ancestor_of(method, chain(3)) == "b"

    def test_a_full_store_keeps_what_it_has(self) -> None:
        with cpp_store.embedded(memory="1MiB") as store:
            method = StoreTransfer("digits", store)
            method.put("a", chain(3), tensors_of(chain(3), 1), score=0)
            large = chain(3, 500_000)
            with pytest.raises(TransferError, match="limit"):
                method.put("b", large, tensors_of(large, 2), score=0)
            assert ancestor_of(method, large) == "a"

    @pytest.mark.parametrize("error", [cpp_store.ConnectionError, cpp_store.DeadlineExceeded])
    def test_a_dead_server_is_unavailable(self, error: type[cpp_store.StoreError]) -> None:
        """The server dies after it has answered once; what it leased ends by itself."""
        with cpp_store.embedded(memory="64MiB") as store:
            alive = StoreTransfer("digits", store)
            graph = chain(3)
            alive.put("a", graph, tensors_of(graph, 1), score=0)
            match = alive.best_match(graph)
            assert match is not None

            def dead(*arguments: object, **options: object) -> None:
                raise error("ofi+tcp://host:1 does not answer")

            calls = ("best_matches", "fetch", "put", "retire", "end_lease")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    store,
                    "_handle",
                    SimpleNamespace(servers=list, absent=list, **dict.fromkeys(calls, dead)),
                )
                attempts: list[Callable[[], object]] = [
                    lambda: alive.best_match(graph),
                    match.read,
                    lambda: alive.put("b", graph, tensors_of(graph, 1), score=0),
                    lambda: alive.retire(["a"]),
                ]
                for attempt in attempts:
                    with pytest.raises(TransferUnavailable, match="does not answer"):
                        attempt()
                match.close()


def test_many_are_retired_of_which_few_are_there(method: TransferMethod) -> None:
    graph = chain(3)
    for number in (5, 70):
        method.put(f"m{number}", graph, tensors_of(graph, 1.0), score=number)
    method.retire(f"m{number}" for number in range(200) if number != 70)
    assert ancestor_of(method, chain(3, 4)) == "m70"
    assert method.whole("m5") is None


def test_what_is_shared_with_one_model(method: TransferMethod) -> None:
    parent, better = chain(3, 4), chain(3, 4, 5)
    for model, graph in (("m", parent), ("better", better)):
        method.put(model, graph, tensors_of(graph, 1.0), score=1.0)
    child = chain(3, 4, 6)
    match = method.best_match(child, only="m")
    assert match is not None
    with match:
        assert match.ancestor == "m" and len(match.layers) == len(parent)
        assert_equal(match.read(), tensors_of(parent, 1.0))
        inherited = set(match.read())
        own = [name for name in tensors_of(child, 0) if name not in inherited]
        tensors = tensors_of(child, 2.0, own)
        method.put("c", child, tensors, score=2.0, inheritance=match, inherited=inherited)
    whole = method.whole("c")
    assert whole is not None and len(whole[1]) == 3
    assert method.best_match(chain(9), only="m") is None
    assert method.best_match(child, only="never there") is None
    method.retire(["m"])
    assert method.best_match(child, only="m") is None
