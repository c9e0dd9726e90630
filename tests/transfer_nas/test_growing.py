"""A space without genes: `examples/growing.py` through everything that reads and writes it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from graph_meta import LayerGraph
from tests.made_up_runs import write_run
from transfer_nas import runs, spaces
from transfer_nas.algorithms.evolution import AgingEvolution
from transfer_nas.algorithms.halving import SuccessiveHalving
from transfer_nas.algorithms.random_search import RandomSearch
from transfer_nas.errors import SpaceError
from transfer_nas.job import DONE, Evaluation, Job
from transfer_nas.population import birthday
from transfer_nas.report import page
from transfer_nas.searching.run_directory import RunDirectory
from transfer_nas.spaces import Gene, Space
from transfer_nas.testing import check_space

OWN = f"{Path(__file__).parents[2] / 'examples' / 'growing.py'}:Growing"
SPACE = spaces.find(OWN).example()
LAYER = {"units": 8, "activation": "relu", "dropout": 0.1 + 0.2}
EXTRA = {"versions": {}, "ranks": [], "objective": {}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    write_run(path, 60, space=SPACE, failures=0.1)
    return path


def journal(path: Path) -> dict[int, Any]:
    lines = map(json.loads, (path / "checkpoint").read_text().splitlines())
    return {job["id"]: job["architecture"] for job in lines}


def test_it_keeps_to_the_contract() -> None:
    check_space(SPACE, 40)
    assert SPACE.size is None


def test_all_algorithms_search_it() -> None:
    for algorithm in (
        AgingEvolution(SPACE, 8, 4, seed=1),
        RandomSearch(SPACE, 8, seed=1),
        SuccessiveHalving(SPACE, 9, seed=1),
    ):
        seen = []
        for _ in range(60):
            (job,) = algorithm.ask()
            seen.append(len(job.architecture))
            algorithm.tell(Evaluation(job, DONE, float(seen[-1])))
        # Only mutations make layers: what is drawn has one.
        assert (max(seen) > 3) == isinstance(algorithm, AgingEvolution)


def test_jobs_are_the_same_after_json() -> None:
    job = Job(3, [LAYER, {**LAYER, "note": "ü\ud800\n"}], 1, 7)
    text = json.dumps(job.to_dict(SPACE.to_json))
    assert Job.from_dict(json.loads(text), SPACE.from_json) == job


@pytest.mark.parametrize("value", [3, [3], [{}], [{**LAYER, "dropout": 2}], None])
def test_values_that_are_no_architecture_are_refused_in_one_line(value: Any) -> None:
    with pytest.raises(SpaceError, match="space growing: ") as raised:
        SPACE.from_json(value)
    assert "\n" not in str(raised.value)


def test_a_killed_run_goes_on_though_its_checkpoint_lost_lines(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(run, path)
    expected = journal(path)
    settings = json.loads((path / "run.json").read_text())["settings"]
    lines = (path / "checkpoint").read_text().splitlines(keepends=True)
    del lines[5]
    (path / "checkpoint").write_text("".join(lines)[:-9])  # and the last is torn
    with RunDirectory.resume(path, SPACE, settings, EXTRA) as directory:
        found = {job.id: job.architecture for job in directory.jobs}
        assert len(directory.evaluations) == 60
    assert found[5] == expected[5] and found == {id: expected[id] for id in found}
    assert journal(path) == found
    with RunDirectory.resume(path, SPACE, settings, EXTRA) as directory:
        assert directory.damage == []


def test_what_the_space_says_of_an_architecture_is_in_the_results(run: Path) -> None:
    found, jobs = runs.read(run), journal(run)
    assert found.genes == {} and found.description["space"]["columns"] == [*SPACE.columns]
    for row, job in enumerate(found.job.tolist()):
        assert found.architecture(row) == jobs[job]
        said = {name: str(value) for name, value in SPACE.values(jobs[job]).items()}
        assert found.values(row) == said
    frame = found.frame()
    assert [json.loads(text) for text in frame["p:architecture"]] == [
        jobs[job] for job in frame["job_id"]
    ]


def test_packed_it_is_the_same_run(run: Path, tmp_path: Path) -> None:
    runs.pack(runs.read(run), tmp_path / "run.parquet")
    packed, found = runs.read(tmp_path / "run.parquet"), runs.read(run)
    assert [packed.architecture(row) for row in range(60)] == [*map(found.architecture, range(60))]
    runs.unpack(tmp_path / "run.parquet", tmp_path / "again")
    assert (tmp_path / "again" / "results.csv").read_bytes() == (run / "results.csv").read_bytes()


def test_the_report_leaves_out_what_is_about_genes(run: Path) -> None:
    content = page.content([runs.read(run)], own_space=OWN)
    (part,) = content.each
    titles = [view.title for view in part.views]
    assert "Genes" not in titles and {"Best models", "Lineage of the best"} <= {*titles}
    assert part.views[0].pictures  # the best architectures are drawn
    assert part.rows is not None
    columns = {column["name"] for column in part.rows["columns"]}
    assert {"p:architecture", "p:depth", "p:last_dropout", "layer:text"} <= columns


def test_what_needs_genes_says_so() -> None:
    with pytest.raises(SpaceError, match="beta needs a space of genes, and growing has none"):
        AgingEvolution(SPACE, 8, 4, seed=1, beta=1.0)
    with pytest.raises(SpaceError, match="space:genome needs a space of genes"):
        spaces.graph_of_genome(OWN, (1, 2))


def test_commands_that_need_genes_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert birthday.main(["--space", OWN]) == 2
    error = capsys.readouterr().err
    assert "a population needs a space of genes, and growing has none" in error
    assert error.count("\n") == 1


def test_a_space_of_genes_that_subclasses_space_is_told_what_to_do() -> None:
    class Old(Space):
        name = "old"
        genes = (Gene("units", (8, 16)),)

        def graph(self, architecture: Sequence[int]) -> LayerGraph:
            raise NotImplementedError

    with pytest.raises(SpaceError, match=r"expected the methods mutate, sample; .* GeneSpace"):
        Old([(4,)], 2)  # type: ignore[abstract]


class Odd(type(SPACE)):  # type: ignore[misc]
    """Says of its architectures whatever a test wants."""

    said: Any = None
    columns = ("note",)

    def values(self, architecture: Any) -> Any:
        return self.said


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("architecture",), "two columns have one name"),
        (("a", "a"), "two columns have one name"),
        (("a\n",), "expected texts as columns"),
    ],
)
def test_columns_that_cannot_be(tmp_path: Path, columns: Any, message: str) -> None:
    space = Odd.example()
    space.columns = columns
    with pytest.raises(SpaceError, match=message):
        RunDirectory.create(tmp_path / "run", space, {}, EXTRA)
    assert not (tmp_path / "run").exists()


def test_texts_of_columns_stay_in_their_cells(tmp_path: Path) -> None:
    space = Odd.example()
    with RunDirectory.create(tmp_path / "run", space, {}, EXTRA) as directory:
        for id, note in enumerate(['a\nb,"c"', None, True]):
            space.said = {"note": note}
            job = Job(id, [LAYER])
            directory.asked(job)
            directory.told(Evaluation(job, DONE, 0.5))
        space.said = {}
        with pytest.raises(SpaceError, match=r"expected values of \['note'\], found \[\]"):
            directory.told(Evaluation(job, DONE, 0.5))
        with pytest.raises(SpaceError, match="expected to_json to return a JSON value"):
            directory.asked(Job(9, [{**LAYER, "dropout": float("nan")}]))
    found = runs.read(tmp_path / "run")
    assert [found.values(row)["note"] for row in range(3)] == ['a b,"c"', "", "True"]
