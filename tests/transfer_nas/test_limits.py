"""Limits of candidates: nothing that a search asks for exceeds one."""

from pathlib import Path

import numpy as np
import pytest

import transfer_nas
from transfer_nas import evolve, limits
from transfer_nas.algorithms import AgingEvolution, RandomSearch, SuccessiveHalving
from transfer_nas.errors import InputError, SpaceError
from transfer_nas.job import DONE, Evaluation
from transfer_nas.spaces import CellCnn, FeedForward, GeneSpace, Space, get


def quantity(space: Space, architecture: object, name: str) -> float:
    return limits.QUANTITIES[name](space.graph(architecture).without_dead_ends())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters", "expected NAME<NUMBER"),
        ("parameters>100", "expected NAME<NUMBER"),
        ("parametres<100", "did you mean 'parameters'"),
        ("layers<=twelve", "expected a positive number, found 'twelve'"),
        ("layers<0", "expected a positive number"),
        ("layers<inf", "expected a positive number"),
        ("layers<nan", "expected a positive number"),
        ("parameters<1e5,", "expected NAME<NUMBER"),
    ],
)
def test_what_is_no_limit_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        limits.parse(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_limits_are_read_with_and_without_their_bound() -> None:
    below, most = limits.parse("parameters < 1e5, layers<=12")
    assert str(below) == "parameters<100000"
    assert str(most) == "layers<=12"
    graph = FeedForward([(4,)], 2).graph(FeedForward([(4,)], 2).sample(np.random.default_rng(0)))
    count = len(graph)
    assert limits.Limit("layers", count, inclusive=True).excess(graph) == 0
    assert limits.Limit("layers", count).excess(graph) == 1
    assert limits.Limit("layers", count / 2).excess(graph) == 2


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_no_candidate_of_an_evolution_exceeds_a_limit(beta: float) -> None:
    plain = get("dense_skip", [(64,)], 10)
    bounds = limits.parse("parameters<20000,layers<=14,flops<38000")
    space = limits.within(plain, bounds)
    search = AgingEvolution(space, 32, 8, seed=1, beta=beta)
    largest = 0.0
    for _ in range(10_000 if beta == 0 else 500):
        (job,) = search.ask()
        parameters = quantity(plain, job.architecture, "parameters")
        assert parameters < 20_000
        assert quantity(plain, job.architecture, "layers") <= 14
        assert quantity(plain, job.architecture, "flops") < 38_000
        largest = max(largest, parameters)
        search.tell(Evaluation(job, DONE, parameters))  # what pushes against the limit
    assert largest > 15_000


def test_every_algorithm_keeps_limits_and_knows_nothing_of_them() -> None:
    plain = CellCnn([(8, 8)], 10, "softmax")
    space = limits.within(plain, limits.parse("parameters<10000"))
    for search in (RandomSearch(space, 4, 0), SuccessiveHalving(space, 9, 0)):
        for job in search.ask(50):
            assert quantity(plain, job.architecture, "parameters") < 10_000


def test_a_space_within_limits_is_the_same_space() -> None:
    plain = FeedForward([(4,)], 2)
    space = limits.within(plain, limits.parse("parameters<1000"))
    assert isinstance(space, GeneSpace)
    assert space.describe() == plain.describe()
    assert isinstance(space, FeedForward)
    assert type(plain) is FeedForward
    assert space.size is None
    first, again = (space.sample(np.random.default_rng(3)) for _ in range(2))
    assert first == again


class Rare(GeneSpace):
    """Three in a million fit: all but one gene at their smallest."""

    name = "rare"
    genes = tuple(transfer_nas.spaces.Gene(f"width{i}", tuple(range(8, 88, 8))) for i in range(6))

    def graph(self, genome):
        from graph_meta import layers
        from graph_meta.graph import GraphBuilder

        builder = GraphBuilder()
        edge = self._features(builder)
        for gene, value in zip(self.genes, genome, strict=True):
            edge = builder.add(layers.dense(gene.values[value], activation="relu"), edge)
        return self._head(builder, edge)


def test_what_is_rare_is_found_step_by_step() -> None:
    plain = Rare([(4,)], 2)
    least = plain.graph((0,) * 6).parameters
    space = limits.within(plain, limits.parse(f"parameters<={least + 200}"))
    rng = np.random.default_rng(0)
    found = {space.sample(rng) for _ in range(5)}
    for genome in found:
        assert plain.graph(genome).parameters <= least + 200
        assert plain.graph(space.mutate(genome, rng)).parameters <= least + 200


def test_what_cannot_be_measured_keeps_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_TRIES", 10)  # each of them is a Keras model

    def model(choices):
        import keras

        inputs = keras.Input((4,))
        hidden = keras.layers.Dense(choices.choose("units", [2, 3]))(inputs)
        return keras.Model(inputs, keras.layers.UnitNormalization()(hidden))

    space = transfer_nas.spaces.from_function(model)([(4,)], 2)
    with pytest.raises(InputError, match="none could be measured"):
        limits.within(space, limits.parse("flops<1"))


def test_a_candidate_all_of_whose_mutations_exceed_a_limit_has_none() -> None:
    plain = Rare([(4,)], 2)
    least = plain.graph((0,) * 6).parameters
    space = limits.within(plain, limits.parse(f"parameters<={least}"))
    with pytest.raises(SpaceError, match="no mutation"):
        space.mutate((0,) * 6, np.random.default_rng(0))
    search = AgingEvolution(space, 2, 1, seed=0)
    for _ in range(4):  # it draws anew, then
        (job,) = search.ask()
        assert job.architecture == (0,) * 6
        search.tell(Evaluation(job, DONE, 1.0))


def test_the_command_says_how_near_the_nearest_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    flags = ["--application", "digits", "--space", "feed_forward", "--output_dir", str(output)]
    assert evolve.main([*flags, "--limit", "parameters<100", "--limit", "layers<9"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0
    assert "--limit: space feed_forward has nothing with parameters<100 and layers<9" in said
    assert "the nearest of 2,000 tried has" in said
    assert not output.exists()


def test_limits_of_a_program_are_those_of_the_command(tmp_path: Path) -> None:
    run = transfer_nas.search(
        "digits",
        limits=["parameters<6000", "layers<=8"],
        max_evals=6,
        epochs=1,
        seed=0,
        progress=False,
        output_dir=tmp_path / "run",
    )
    assert run.settings["limit"] == "parameters<6000,layers<=8"
    assert (run.numbers("m:parameters") < 6000).all()
    flags = ["--resume", "--output_dir", str(tmp_path / "run"), "--max_evals", "8"]
    with pytest.raises(InputError, match="limit"):
        evolve.parse([*flags, "--limit", "parameters<7000"])
    assert evolve.parse(flags).to_dict()["limit"] == "parameters<6000,layers<=8"
