"""Populations in one process; `tests/mpi/test_population.py` has what several ranks add."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cpp_store import LayerTable, PrefixIndex
from transfer_nas import population
from transfer_nas.errors import InputError, SpaceError
from transfer_nas.population import Population, PopulationError, files, generation
from transfer_nas.ranks import Alone
from transfer_nas.searching.journal import claim
from transfer_nas.settings import GenerationSettings
from transfer_nas.spaces import Gene
from transfer_nas.spaces.feed_forward import FeedForward

SPACE = population.default_space(None)
OTHER = [0] * len(SPACE.genes)
DESCRIPTION = "population.json"
MEMBERS = "members-00000-of-00001.parquet"


def run(output: Path, **settings: object) -> pa.Table:
    chosen = GenerationSettings(**{"seed": 1, **settings, "output_dir": str(output)})
    assert population.run(chosen, Alone()) == 0
    return population.read_members(output)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A population of 40."""
    run(tmp_path / "initial", population_size=40)
    return tmp_path / "initial"


class TestDrawing:
    def test_a_genome_depends_on_seed_and_number_alone(self) -> None:
        whole = population.draw_genomes(SPACE, 3, 0, 3000)
        part = population.draw_genomes(SPACE, 3, 1000, 2100)

        assert whole.shape == (3000, len(SPACE.genes))
        assert np.array_equal(whole[1000:2100], part)
        assert not np.array_equal(whole, population.draw_genomes(SPACE, 4, 0, 3000))

    def test_all_values_of_all_genes_are_drawn_equally_often(self) -> None:
        genomes = population.draw_genomes(SPACE, 5, 0, 20_000)

        for column, gene in zip(genomes.T, SPACE.genes, strict=True):
            counts = np.bincount(column, minlength=len(gene.values))
            expected = len(genomes) / len(gene.values)
            # Five standard deviations of a binomial count.
            assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)

    def test_a_child_differs_in_one_gene_from_a_parent_alive(self) -> None:
        genome = population.draw_genomes(SPACE, 1, 0, 50)
        lineage = population.draw_lineage(SPACE, 1, np.arange(50), genome, 3000)

        parents = lineage.parent
        births = np.arange(3000)
        assert (parents >= births).all() and (parents < births + 50).all()
        changed = lineage.genome[50:] != lineage.genome[parents]
        assert (changed.sum(axis=1) == 1).all()
        # Every gene is hit, and so is a value below and one above the parent's.
        assert changed.any(axis=0).all()
        steps = (lineage.genome[50:] - lineage.genome[parents])[changed]
        assert (steps > 0).any() and (steps < 0).any()
        assert lineage.model.tolist() == list(range(3050))

    def test_more_children_begin_with_the_same_ones(self) -> None:
        genome = population.draw_genomes(SPACE, 1, 0, 50)
        few = population.draw_lineage(SPACE, 1, np.arange(50), genome, 700)
        many = population.draw_lineage(SPACE, 1, np.arange(50), genome, 2500)

        assert np.array_equal(few.parent, many.parent[:700])
        assert np.array_equal(few.genome, many.genome[:750])

    def test_a_space_of_one_genome_cannot_be_mutated(self) -> None:
        space = FeedForward([(4,)], 2)
        space.genes = tuple(Gene(gene.name, gene.values[:1]) for gene in space.genes)
        genome = population.draw_genomes(space, 1, 0, 3)

        with pytest.raises(SpaceError, match="nothing to mutate"):
            population.draw_lineage(space, 1, np.arange(3), genome, 1)


class TestGenerating:
    def test_rows_say_what_the_graphs_are(self, tmp_path: Path) -> None:
        members = run(tmp_path / "out", population_size=30)

        assert members.num_rows == 30
        for row in members.to_pylist():
            graph = SPACE.graph(row["genome"])
            assert tuple(row["digests"]) == graph.digests
            assert LayerTable.decode(row["table"]) == graph.table
            assert (row["layers"], row["parameters"]) == (len(graph), graph.parameters)
            assert row["bytes"] == graph.nbytes
            assert row["parent"] is row["ancestor"] is row["layers_shared"] is None
            assert row["alive"]

    def test_the_description_says_how_it_came_about(self, written: Path) -> None:
        description = json.loads((written / DESCRIPTION).read_text())

        assert description["space"] == json.loads(json.dumps(SPACE.describe()))
        assert (description["seed"], description["models"]) == (1, 40)
        assert description["files"] == [{"name": MEMBERS, "rows": 40}]
        assert "numpy" in description["versions"]
        assert sorted(path.name for path in written.iterdir()) == [MEMBERS, DESCRIPTION]

    def test_says_what_it_did(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run(tmp_path / "words", population_size=5, evolve_count=3)
        assert "generated 5 and evolved 3 models" in capsys.readouterr().out

        run(tmp_path / "json", population_size=5, evolve_count=3, json=True)
        summary = json.loads(capsys.readouterr().out)
        assert (summary["generated"], summary["evolved"]) == (5, 3)

    def test_a_used_directory_is_left_alone(self, written: Path) -> None:
        before = (written / MEMBERS).read_bytes()

        with pytest.raises(InputError, match="holds another run"):
            run(written, population_size=3)

        assert (written / MEMBERS).read_bytes() == before


class TestEvolving:
    def test_matches_what_a_serial_evolution_finds(self, written: Path, tmp_path: Path) -> None:
        members = run(
            tmp_path / "evolved", initial_population_dir=str(written), evolve_count=100, seed=9
        )

        # 40 members and 100 children: the members have all died, and so have 60 children.
        rows = members.to_pylist()
        assert [row["model"] for row in rows] == list(range(40, 140))
        assert [row["alive"] for row in rows] == [False] * 60 + [True] * 40
        initial = population.read_members(written).to_pylist()
        everybody = {row["model"]: row for row in initial + rows}
        index = PrefixIndex()
        for number in range(40):
            index.add(str(number), SPACE.graph(everybody[number]["genome"]).table)
        for child in rows:
            table = SPACE.graph(child["genome"]).table
            match = index.best_match(table)
            assert match is not None
            assert child["ancestor"] == int(match.model)
            assert (child["layers_shared"], child["bytes_shared"]) == (match.layers, match.bytes)
            assert child["model"] - 40 <= child["parent"] < child["model"]
            parent = everybody[child["parent"]]["genome"]
            assert sum(a != b for a, b in zip(child["genome"], parent, strict=True)) == 1
            index.add(str(child["model"]), table)
            assert index.remove(str(child["model"] - 40))

    def test_members_that_live_on_are_copied(self, written: Path, tmp_path: Path) -> None:
        members = run(tmp_path / "evolved", initial_population_dir=str(written), evolve_count=15)

        before = population.read_members(written).to_pylist()
        assert members.to_pylist()[:25] == before[15:]
        assert all(row["parent"] is not None for row in members.to_pylist()[25:])

    def test_an_evolved_population_evolves_on(self, written: Path, tmp_path: Path) -> None:
        run(tmp_path / "a", initial_population_dir=str(written), evolve_count=60)
        members = run(tmp_path / "b", initial_population_dir=str(tmp_path / "a"), evolve_count=10)

        assert members["model"].to_pylist() == list(range(70, 110))
        assert all(members["alive"].to_pylist())

    def test_generating_and_evolving_at_once_is_the_same(
        self, written: Path, tmp_path: Path
    ) -> None:
        at_once = run(tmp_path / "once", population_size=40, evolve_count=50)
        later = run(tmp_path / "later", initial_population_dir=str(written), evolve_count=50)

        assert at_once.slice(40).equals(later)
        assert not any(at_once["alive"].to_pylist()[:50])

    def test_the_size_of_chunks_changes_nothing(
        self, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flags = {"initial_population_dir": str(written), "evolve_count": 50}
        expected = run(tmp_path / "one", **flags)
        monkeypatch.setattr(generation, "_CHUNK", 7)

        assert run(tmp_path / "many", **flags).equals(expected)
        assert run(tmp_path / "again", population_size=40).equals(population.read_members(written))

    def test_the_space_is_that_of_the_initial_population(self, tmp_path: Path) -> None:
        run(tmp_path / "a", population_size=5, space="feed_forward")
        run(tmp_path / "b", initial_population_dir=str(tmp_path / "a"), evolve_count=2)

        description = json.loads((tmp_path / "b" / DESCRIPTION).read_text())
        assert description["space"]["name"] == "feed_forward"


def edit_description(directory: Path, **changes: object) -> None:
    path = directory / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_members(directory: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    path = directory / MEMBERS
    table = pq.read_table(path)
    changed = change(table)
    # At a wrong length of a column the schema is another one; only the metadata must stay.
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)


def with_cell(column: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        field = table.schema.field(column)
        values = table[column].to_pylist()
        values[row] = value
        at = table.schema.get_field_index(column)
        return table.set_column(at, field, pa.array(values, field.type))

    return change


def truncate(directory: Path) -> None:
    path = directory / MEMBERS
    path.write_bytes(path.read_bytes()[:-100])


def flip(directory: Path) -> None:
    """Change one byte in the middle of the pages."""
    path = directory / MEMBERS
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x10
    path.write_bytes(bytes(content))


def replace_by_another(directory: Path) -> None:
    run(directory.parent / "another", population_size=40, seed=2)
    (directory.parent / "another" / MEMBERS).replace(directory / MEMBERS)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, f"{MEMBERS}: the file cannot be read"),
    "flipped": (flip, f"{MEMBERS}: the file cannot be read"),
    "empty": (lambda d: (d / MEMBERS).write_bytes(b""), f"{MEMBERS}: the file cannot be read"),
    "missing": (lambda d: (d / MEMBERS).unlink(), f"{MEMBERS}: the file is missing"),
    "no description": (lambda d: (d / DESCRIPTION).unlink(), "holds no population"),
    "description": (lambda d: (d / DESCRIPTION).write_text("{"), f"{DESCRIPTION}: the file cannot"),
    "description is a list": (lambda d: (d / DESCRIPTION).write_text("[]"), "format None"),
    "description lacks files": (lambda d: edit_description(d, files=3), "files is not of type"),
    "files outside": (
        lambda d: edit_description(d, files=[{"name": "../x", "rows": 1}]),
        "files is not a list of names and rows",
    ),
    "version": (lambda d: edit_description(d, format=99), "format 99, expected 2; digests differ"),
    "other space": (
        lambda d: edit_description(d, space=FeedForward([(4,)], 2).describe()),
        "is of space 'feed_forward', expected 'dense_skip'",
    ),
    "other options": (
        lambda d: edit_description(d, space={**SPACE.describe(), "output_units": 3}),
        "of a space 'dense_skip' with other output_units",
    ),
    "rows": (
        lambda d: edit_description(d, files=[{"name": MEMBERS, "rows": 39}]),
        "40 rows, expected 39",
    ),
    "size": (lambda d: edit_description(d, population_size=41), "expected 41 members, found 40"),
    "another's file": (replace_by_another, f"{MEMBERS}: the file belongs to another population"),
    "no population": (
        lambda d: pq.write_table(pa.table({"x": [1]}), d / MEMBERS),
        f"{MEMBERS}: not a file of a population",
    ),
    "columns": (
        lambda d: edit_members(d, lambda table: table.drop_columns("parent")),
        "the columns are not those of format 2",
    ),
    "gene too large": (
        lambda d: edit_members(d, with_cell("genome", 7, [99] + [0] * (len(SPACE.genes) - 1))),
        f"{MEMBERS}, row 7: gene node_0 is 99, expected 0 to ",
    ),
    "gene negative": (
        lambda d: edit_members(d, with_cell("genome", 7, [0] * (len(SPACE.genes) - 1) + [-1])),
        f"{MEMBERS}, row 7: gene {SPACE.genes[-1].name} is -1",
    ),
    "genome short": (
        lambda d: edit_members(d, with_cell("genome", 39, [0])),
        f"{MEMBERS}, row 39: a genome of 1 genes",
    ),
    "model twice": (
        lambda d: edit_members(d, with_cell("model", 5, 6)),
        "model 6 is there twice",
    ),
    "model unknown": (
        lambda d: edit_members(d, with_cell("model", 5, 1000)),
        f"{MEMBERS}, row 5: model 1000, expected 0 to 39",
    ),
    "digests": (
        lambda d: edit_members(d, with_cell("digests", 0, [b"0" * 16])),
        f"{MEMBERS}, row 0: the digests are not those of the genome",
    ),
    "table of another": (
        lambda d: edit_members(d, with_cell("table", 0, SPACE.graph(OTHER).table.encode())),
        f"{MEMBERS}, row 0: the digests are not those of the genome",
    ),
    "table": (
        lambda d: edit_members(d, with_cell("table", 3, b"LTBL")),
        f"{MEMBERS}, row 3: not a layer table",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_population_is_one_clear_line(damage: str, written: Path, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    change(written)

    with pytest.raises(InputError) as caught:
        run(
            tmp_path / "out",
            initial_population_dir=str(written),
            evolve_count=5,
            space="dense_skip",
        )

    assert message in str(caught.value)
    assert str(written) in str(caught.value)
    assert "\n" not in str(caught.value)
    # Nothing that looks like a population is left behind.
    assert not list((tmp_path / "out").glob("*"))


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(PopulationError, match="nowhere holds no population"):
        Population(tmp_path / "nowhere", SPACE)


def test_rows_are_found_across_row_groups_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_ROW_GROUP", 7)
    run(tmp_path / "a", population_size=50)
    run(tmp_path / "b", initial_population_dir=str(tmp_path / "a"), evolve_count=20)
    members = Population(tmp_path / "b", SPACE)

    whole = members.read(0, 50)

    assert whole["model"].to_pylist() == members.model.tolist() == list(range(20, 70))
    for begin, end in [(0, 3), (5, 9), (12, 41), (49, 50), (50, 50)]:
        assert members.read(begin, end).equals(whole.slice(begin, end - begin))


def test_no_backend_is_imported(tmp_path: Path) -> None:
    """Neither to generate nor to evolve, by the command itself."""
    code = (
        "import sys; from transfer_nas.evolve import main\n"
        f"flags = ['--population_size=20', '--evolve_count=5', '--output_dir={tmp_path / 'out'}']\n"
        "assert main(flags) == 0\n"
        "print({'tensorflow', 'keras', 'jax', 'torch'} & set(sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "set()"


def test_who_comes_second_to_a_directory_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "members-of-the-club").write_text("mine")
    with claim(tmp_path), pytest.raises(InputError, match="another process works on"):
        run(tmp_path, population_size=5)
    assert {path.name for path in tmp_path.iterdir()} == {"members-of-the-club"}
    assert len(run(tmp_path, population_size=5)) == 5
    assert (tmp_path / "members-of-the-club").read_text() == "mine"
    with pytest.raises(PopulationError, match="was written by another run in the meantime"):
        files.write_description(tmp_path, {})


def test_a_generation_that_is_refused_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no population"):
        run(tmp_path / "new", initial_population_dir=str(tmp_path), evolve_count=3)
    assert not (tmp_path / "new").exists()
