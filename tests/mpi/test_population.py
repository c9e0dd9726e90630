"""Generation without training, as a command on 1, 2 and 4 ranks."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transfer_nas import population

MpiExec = Callable[..., "subprocess.CompletedProcess[str]"]
RANKS = [1, 2, 4]


def evolve(
    mpiexec: MpiExec, ranks: int, output: Path, *flags: object
) -> "subprocess.CompletedProcess[str]":
    command = ["-m", "transfer_nas.evolve", "--output_dir", output, *flags, "--seed", 1]
    return mpiexec(ranks, *map(str, command))


def members(directory: Path) -> pa.Table:
    return population.read_members(directory)


@pytest.fixture
def initial(mpiexec: MpiExec, tmp_path: Path) -> dict[int, Path]:
    """Populations of 3,000, written by each number of ranks."""
    paths = {ranks: tmp_path / f"initial-{ranks}" for ranks in RANKS}
    for ranks, path in paths.items():
        done = evolve(mpiexec, ranks, path, "--population_size", 3000)
        assert done.returncode == 0, done.stderr
    return paths


def test_results_do_not_depend_on_the_number_of_ranks(
    mpiexec: MpiExec, initial: dict[int, Path], tmp_path: Path
) -> None:
    assert len(list(initial[4].glob("*.parquet"))) == 4
    expected = members(initial[1])
    assert all(members(path).equals(expected) for path in initial.values())

    evolved = {}
    for written_by, evolved_by in [(1, 1), (4, 1), (2, 4), (1, 2)]:
        path = tmp_path / f"evolved-{written_by}-{evolved_by}"
        flags = ["--initial_population_dir", initial[written_by], "--evolve_count", 1000]
        done = evolve(mpiexec, evolved_by, path, *flags, "--json")
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert (summary["ranks"], summary["evolved"]) == (evolved_by, 1000)
        assert 0.2 < summary["share_of_layers_shared"] < 1
        evolved[written_by, evolved_by] = members(path)
    assert all(table.equals(evolved[1, 1]) for table in evolved.values())
    assert evolved[1, 1].num_rows == 3000


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("damage", ["table", "truncated"])
def test_bad_input_ends_all_ranks_with_one_line(
    mpiexec: MpiExec, damage: str, ranks: int, tmp_path: Path
) -> None:
    assert evolve(mpiexec, 1, tmp_path / "initial", "--population_size", 20).returncode == 0
    (file,) = (tmp_path / "initial").glob("*.parquet")
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[:-50])
    else:
        # Only the rank that has the last member sees it.
        members = pq.read_table(file)
        field = members.schema.field("table")
        column = pa.array([*members["table"].to_pylist()[:-1], b"LTBL"], field.type)
        at = members.schema.get_field_index("table")
        changed = members.set_column(at, field, column)
        pq.write_table(changed.replace_schema_metadata(members.schema.metadata), file)

    flags = ["--initial_population_dir", tmp_path / "initial", "--evolve_count", 5]
    done = evolve(mpiexec, ranks, tmp_path / "out", *flags)

    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(lines) == 1, done.stderr
    assert str(file) in lines[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "population.json").exists()


@pytest.mark.parametrize("module", ["evolve", "population.gen_models"])
def test_a_space_that_fails_ends_all_ranks(mpiexec: MpiExec, module: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from transfer_nas.errors import SpaceError\n"
        "from transfer_nas.population import draw_genomes\n"
        "from transfer_nas.spaces import FeedForward\n"
        "class Broken(FeedForward):\n"
        "    name = 'broken'\n"
        "    def graph(self, genome):\n"
        "        # Model 0, which rank 0 makes, and no other.\n"
        "        if list(genome) == draw_genomes(self, 1, 0, 1)[0].tolist():\n"
        "            raise SpaceError('no')\n"
        "        return super().graph(genome)\n"
    )
    flags = ["--space", f"{tmp_path / 'broken.py'}:Broken", "--seed", "1"]
    if module == "evolve":
        flags += ["--population_size", "100", "--output_dir", str(tmp_path / "out")]

    done = mpiexec(2, "-m", f"transfer_nas.{module}", *flags, timeout=30)

    assert done.returncode != 0
    assert "refuses its own genome" in done.stderr


def test_bad_flags_are_said_once(mpiexec: MpiExec) -> None:
    done = mpiexec(2, "-m", "transfer_nas.population.gen_models", "--count", "0", timeout=30)

    assert done.returncode == 2
    assert done.stderr.count("--count must be at least 1") == 1
