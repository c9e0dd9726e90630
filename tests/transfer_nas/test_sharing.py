"""Which stored model a candidate starts from; patience with a place that does not answer."""

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import pytest

import cpp_store
from graph_meta import LayerGraph, layers
from graph_meta.graph import GraphBuilder
from transfer_nas.errors import InputError, TransferUnavailable
from transfer_nas.job import Job
from transfer_nas.models import Models
from transfer_nas.settings import Settings
from transfer_nas.sharing import SHARINGS, LongestPrefix, NamedModel, NoSharing, ParentOnly, Sharing
from transfer_nas.transfer import Inheritance, StoreTransfer, Tensors, TransferMethod


def chain(*widths: int) -> LayerGraph:
    builder = GraphBuilder()
    edge = builder.input((4,))
    for width in widths:
        edge = builder.add(layers.dense(width), edge)
    return builder.build(edge)


def tensors_of(graph: LayerGraph) -> dict[str, list[np.ndarray]]:
    return {
        name: [np.ones(w.shape, w.dtype) for w in layer.spec.weights]
        for name, layer in zip(graph.names, graph.layers, strict=True)
        if layer.spec.weights
    }


@pytest.fixture
def models() -> Iterator[Models]:
    with cpp_store.embedded(memory="16MiB") as store:
        yield Models(StoreTransfer("x", store), "run")


def put(models: Models, job: int, graph: LayerGraph, score: float) -> None:
    models.put(job, graph, tensors_of(graph), score=score)


def ancestor(sharing: Sharing, models: Models, graph: LayerGraph, parent: int | None) -> str | None:
    found = sharing.ancestor(Job(9, (0,), parent, 1), graph, models)
    if found is None:
        return None
    with found:
        return found.ancestor


def test_the_longest_prefix_and_among_equals_the_parent(models: Models) -> None:
    put(models, 0, chain(3, 4), 1.0)
    put(models, 1, chain(3, 4, 5), 9.0)
    child = chain(3, 4, 6)
    assert ancestor(LongestPrefix(), models, child, None) == "run/1"
    assert ancestor(LongestPrefix(), models, child, 0) == "run/0"  # as long, and the parent's
    put(models, 2, chain(3, 4, 6, 7), 0.0)
    assert ancestor(LongestPrefix(), models, child, 0) == "run/2"  # longer
    models.retire([0])
    assert ancestor(LongestPrefix(), models, chain(3, 8), 0) == "run/1"
    assert ancestor(LongestPrefix(), models, chain(8), 1) is None


def test_the_parent_only(models: Models) -> None:
    put(models, 0, chain(3, 4), 1.0)
    put(models, 1, chain(3, 4, 5), 9.0)
    assert ancestor(ParentOnly(), models, chain(3, 4, 5), 0) == "run/0"
    assert ancestor(ParentOnly(), models, chain(3, 4, 5), None) is None
    assert ancestor(ParentOnly(), models, chain(8), 0) is None
    models.retire([0])
    assert ancestor(ParentOnly(), models, chain(3, 4, 5), 0) is None


def test_a_named_model_and_none(models: Models) -> None:
    put(models, 0, chain(3, 4), 1.0)
    put(models, 1, chain(3, 4, 5), 9.0)
    assert ancestor(NamedModel("run/0"), models, chain(3, 4, 5), 1) == "run/0"
    assert ancestor(NamedModel("run/7"), models, chain(3, 4, 5), 1) is None
    assert ancestor(NoSharing(), models, chain(3, 4, 5), 1) is None


def test_leases_end_whoever_is_taken() -> None:
    with cpp_store.embedded(memory="16MiB") as store:
        models = Models(StoreTransfer("x", store))
        put(models, 0, chain(3, 4), 1.0)
        put(models, 1, chain(3, 4, 5), 9.0)
        for sharing in (LongestPrefix(), ParentOnly(), NamedModel("1"), NoSharing()):
            for parent in (None, 0, 1, 5):
                ancestor(sharing, models, chain(3, 4, 6), parent)
        assert store.stats()["leases"] == 0


def test_sharings_are_named_as_algorithms_are() -> None:
    settings = Settings.of({"application": "digits", "sharing": "named", "ancestor": "run/0"})
    assert isinstance(SHARINGS.find("named").create(settings.of_sharing), NamedModel)
    assert settings.to_dict()["ancestor"] == "run/0" and settings.fixed()["sharing"] == "named"
    with pytest.raises(InputError, match="unknown --sharing 'parnt'; did you mean 'parent'"):
        Settings.of({"application": "digits", "sharing": "parnt"})
    with pytest.raises(InputError, match="--sharing named needs --ancestor"):
        Settings.of({"application": "digits", "sharing": "named"})
    with pytest.raises(InputError, match="--ancestor goes only with --sharing named, not prefix"):
        Settings.of({"application": "digits", "ancestor": "run/0"})


class Place(TransferMethod):
    """Answers, or does not."""

    name = "place"

    def __init__(self) -> None:
        self.answers = True
        self.calls: list[str] = []

    @classmethod
    def create(cls, namespace: str, **_: object) -> "Place":
        return cls()

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if not self.answers:
            raise TransferUnavailable("nobody is there")

    def best_match(self, graph: LayerGraph, only: str = "") -> Inheritance | None:
        self._called("best_match")
        return None

    def put(
        self,
        model: str,
        graph: LayerGraph,
        tensors: Tensors,
        *,
        score: float,
        parent: str = "",
        inheritance: Inheritance | None = None,
        inherited: Collection[str] = (),
    ) -> int:
        self._called("put")
        return 8

    def retire(self, models: Iterable[str]) -> None:
        self._called(f"retire {' '.join(models)}")


def test_a_place_that_does_not_answer_is_tried_again_later_and_later() -> None:
    now = [100.0]
    place = Place()
    models = Models(place, clock=lambda: now[0])
    graph = chain(3)
    models.best_match(graph)
    place.answers = False
    for pause in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        with pytest.raises(TransferUnavailable):
            models.best_match(graph)
        assert models.pause == pause
        place.calls.clear()
        now[0] += pause - 0.5
        assert models.best_match(graph) is None and models.whole(3) is None
        assert models.put(3, graph, {}, score=1.0) == 0
        models.retire([3, 4])
        assert place.calls == []  # it is left alone
        now[0] += 1.0
    place.answers = True
    assert models.put(5, graph, {}, score=1.0) == 8 and models.pause == 0
    assert place.calls == ["retire 3 4", "put"]  # what was to be retired meanwhile
    place.answers = False
    with pytest.raises(TransferUnavailable):
        models.best_match(graph)
    assert models.pause == 1.0


def test_what_could_not_be_retired_is_retired_when_the_place_answers() -> None:
    now = [0.0]
    place = Place()
    models = Models(place, "run", clock=lambda: now[0])
    place.answers = False
    with pytest.raises(TransferUnavailable):
        models.retire([1])
    place.answers, now[0] = True, 5.0
    models.retire([2])
    assert place.calls == ["retire run/1", "retire run/1 run/2"]
