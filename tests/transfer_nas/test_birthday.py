"""The closed form of `transfer_nas.population.birthday` against simulation, and the command."""

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transfer_nas.population import birthday, default_space, gen_models
from transfer_nas.spaces.feed_forward import FeedForward

SMALL = FeedForward([(4,)], 2, max_depth=3, units=(8, 16), activations=("relu",))


class TestClosedForm:
    def test_without_mutation_all_layers_of_the_parent_transfer(self) -> None:
        chances = birthday.layer_chances(SMALL, 0.0, 20, np.random.default_rng(1))

        random, mutated = chances.expected(1)

        assert mutated == pytest.approx(len(chances.random) / 20)
        assert random < mutated

    def test_chances_are_those_of_counting_all_genomes(self) -> None:
        """What one model shares with another, averaged over all pairs of genomes."""
        space = FeedForward(
            [(4,)], 2, max_depth=2, units=(8, 16), activations=("relu",), dropout_rates=(0.0, 0.5)
        )
        genomes = list(np.ndindex(*(len(gene.values) for gene in space.genes)))
        names = [set(space.graph(genome).names) for genome in genomes]
        shared = np.mean([[len(a & b) for a in names] for b in names])

        chances = birthday.layer_chances(space, 0.1, 400, np.random.default_rng(2))

        # Genomes that skip a block share layers that this form takes for different: about 4 %.
        assert chances.expected(1)[0] == pytest.approx(shared, rel=0.08)

    @pytest.mark.parametrize("size", [1, 30, 300])
    def test_agrees_with_simulation(self, size: int) -> None:
        rng = np.random.default_rng(3)
        space = default_space("feed_forward")
        chances = birthday.layer_chances(space, 0.1, 40, rng)

        random, mutated = birthday.simulate(space, size, 0.1, 300, rng)

        expected_random, expected_mutated = chances.expected(size)
        assert random.mean() == pytest.approx(expected_random, rel=0.15)
        assert mutated.mean() == pytest.approx(expected_mutated, rel=0.15)

    def test_more_members_share_more(self) -> None:
        chances = birthday.layer_chances(SMALL, 0.2, 20, np.random.default_rng(4))

        sizes = [chances.expected(size) for size in (1, 10, 100, 10_000)]

        assert sizes == sorted(sizes)
        assert sizes[-1][0] == pytest.approx(len(chances.random) / 20, rel=1e-3)


class TestCommand:
    FLAGS = ("--population_size", "30", "--queries", "20", "--models", "3")

    def test_prints_a_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert birthday.main(self.FLAGS) == 0

        out = capsys.readouterr().out
        assert "space dense_skip" in out and "closed form" in out
        assert [line.split()[0] for line in out.splitlines()[4:]] == ["1", "3", "10", "30"]

    def test_prints_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert birthday.main([*self.FLAGS, "--json", "--space", "feed_forward"]) == 0

        result = json.loads(capsys.readouterr().out)
        assert [point["population_size"] for point in result["points"]] == [1, 3, 10, 30]
        assert all(0 < point["random"] <= result["layers"] for point in result["points"])

    def test_is_repeatable(self, capsys: pytest.CaptureFixture[str]) -> None:
        outputs = []
        for _ in range(2):
            assert birthday.main([*self.FLAGS, "--seed", "7"]) == 0
            outputs.append(capsys.readouterr().out)
        assert outputs[0] == outputs[1]

    def test_draws_a_plot(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")

        assert birthday.main([*self.FLAGS, "--output", str(tmp_path / "plot.svg")]) == 0

        assert "<svg" in (tmp_path / "plot.svg").read_text()

    def test_says_what_is_missing_without_matplotlib(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        real = builtins.__import__

        def without(name: str, *rest: Any, **named: Any) -> Any:
            if name.startswith("matplotlib"):
                raise ImportError(name)
            return real(name, *rest, **named)

        monkeypatch.setattr(builtins, "__import__", without)

        assert birthday.main([*self.FLAGS, "--output", "plot.svg"]) == 2
        assert 'not installed: pip install "matplotlib' in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--population_size", "0"], "--population_size must be at least 1, not 0"),
            (["--mutation-rate", "1.5"], "--mutation_rate must be at most 1, not 1.5"),
            (["--space", "dense_skp"], "did you mean 'dense_skip'"),
            (["--colour"], "unrecognized arguments: --colour"),
            (["--output", "plot.unknown", *FLAGS], "cannot write plot.unknown"),
        ],
    )
    def test_bad_flags_are_one_line(
        self, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert birthday.main(flags) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


class TestGenModels:
    def test_counts_what_it_made(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert gen_models.main(["--count", "50", "--json"]) == 0

        result = json.loads(capsys.readouterr().out)
        space = default_space(None)
        from transfer_nas.population import draw_genomes

        graphs = [space.graph(genome) for genome in draw_genomes(space, 0, 0, 50).tolist()]
        assert result["layers"] == sum(len(graph) for graph in graphs)
        assert result["bytes"] == sum(graph.nbytes for graph in graphs)
        assert result["models_per_second"] > 0

    def test_bad_flags_are_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert gen_models.main(["--count", "0"]) == 2
        assert capsys.readouterr().err == "gen_models: error: --count must be at least 1, not 0\n"
