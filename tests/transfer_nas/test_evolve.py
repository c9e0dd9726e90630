"""The command line: spellings, defaults, and each bad input with its message and exit code."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from transfer_nas import applications, evolve, spaces
from transfer_nas import settings as settings_module
from transfer_nas.algorithms import ALGORITHMS
from transfer_nas.errors import InputError
from transfer_nas.evolve import parse
from transfer_nas.schema import settings_of
from transfer_nas.settings import GenerationSettings, Settings, kinds
from transfer_nas.transfer import TRANSFERS

DIGITS = ["--application", "digits"]


def search_of(arguments: list[str]) -> Settings:
    settings = parse([*DIGITS, *arguments])
    assert isinstance(settings, Settings)
    return settings


def test_defaults() -> None:
    untrained = parse([])
    assert untrained.application == "none" and untrained.population_size == 32
    settings = search_of([])
    assert (settings.transfer, settings.max_evals) == ("store", 200)
    assert vars(settings.of_search) == {"population_size": 32, "sample_size": 8, "beta": 0.0}
    assert search_of(["--timeout", "5"]).max_evals is None


def test_underscores_and_hyphens_are_the_same() -> None:
    for spelling in (
        ["--population-size", "8", "--sample-size=2", "--output-dir", "a-b_c"],
        ["--population_size=8", "--sample_size", "2", "--output_dir=a-b_c"],
    ):
        settings = search_of(spelling)
        assert (settings.of_search.population_size, settings.of_search.sample_size) == (8, 2)
        assert settings.output_dir == "a-b_c"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--population_size", "0"], "--population_size must be at least 1, not 0"),
        (["--population_size", "-3"], "--population_size must be at least 1, not -3"),
        (["--population_size", "many"], "--population_size must be a whole number, not 'many'"),
        ([*DIGITS, "--sample_size", "0"], "--sample_size must be at least 1"),
        (["--sample_size", "3"], "--sample_size needs an --application"),
        (
            [*DIGITS, "--sample_size", "9", "--population_size", "8"],
            "--sample_size 9 is above --population_size 8",
        ),
        ([*DIGITS, "--max_evals", "0"], "--max_evals must be at least 1"),
        ([*DIGITS, "--epochs", "-1"], "--epochs must be at least 1, not -1"),
        ([*DIGITS, "--batch_size", "0"], "--batch_size must be at least 1"),
        ([*DIGITS, "--timeout", "0"], "--timeout must be positive, not 0"),
        ([*DIGITS, "--timeout", "nan"], "--timeout must be positive, not nan"),
        ([*DIGITS, "--evaluation_timeout", "0"], "--evaluation_timeout must be positive, not 0"),
        (["--isolate"], "--isolate needs an --application"),
        (["--seed", "-1"], "--seed must be at least 0, not -1"),
        (["--evolve_count", "-1"], "--evolve_count must be at least 0"),
        ([*DIGITS, "--transfer", "stor"], "unknown --transfer 'stor'; did you mean 'store'"),
        ([*DIGITS, "--policy", "melt"], "Known: finetune, freeze, freeze_then_finetune"),
        ([*DIGITS, "--evolve_count", "5"], "--evolve_count goes only with --application none"),
        (["--epochs", "5"], "--epochs needs an --application"),
        ([*DIGITS, "--search", "halve"], "unknown --search 'halve'; did you mean 'halving'"),
        ([*DIGITS, "--beta", "inf"], "--beta must be at most 1000, not inf"),
        (
            [*DIGITS, "--beta", "1", "--search", "random"],
            "--beta goes only with --search evolution",
        ),
        ([*DIGITS, "--sample_size", "2", "--search", "halving"], "not halving"),
        (
            [*DIGITS, "--population_size", "9", "--search", "halving"],
            "--population_size goes only with --search evolution or random, not halving",
        ),
        ([*DIGITS, "--threads_per_rank", "0"], "--threads_per_rank must be at least 1"),
        (
            ["--initial_population_dir", "pop", "--population_size", "9"],
            "--population_size does not go with --initial_population_dir",
        ),
        (["--resume"], "--resume needs --output_dir"),
        (["--populaton_size", "5"], "unrecognized arguments: --populaton_size"),
        (["--population_size"], "argument --population_size: expected one argument"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert evolve.main(arguments) == 2
    out, err = capfd.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


NUMBERS = {
    name: known.numbers
    for kind in kinds({})
    for name, known in settings_of(kind).items()
    if known.numbers is not None
}


@pytest.mark.parametrize("flag", NUMBERS)
def test_numbers_that_make_no_sense_are_refused_at_both_ends(
    flag: str, capfd: pytest.CaptureFixture[str]
) -> None:
    numbers = NUMBERS[flag]
    company = [] if flag == "evolve_count" else DIGITS
    senseless = ["nan", "-inf", "inf", "-1e30", "1e30", "1e300", f"{10**30}", f"{-(10**30)}", "x"]
    for text in [*senseless, *(["-1"] if flag != "beta" else [])]:
        assert evolve.main([*company, f"--{flag}={text}"]) == 2, text
        err = capfd.readouterr().err
        assert err.startswith(f"evolve: error: --{flag} must be ") and err.count("\n") == 1
    assert numbers.complaint(numbers.most + 1) or numbers.complaint(numbers.below)


def test_every_number_has_a_range() -> None:
    for kind in kinds({}):
        types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
        for name, known in settings_of(kind).items():
            is_number = "int" in types[name] or "float" in types[name]
            assert is_number == (known.numbers is not None), name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": "5"}, "--epochs must be a whole number, not '5'"),
        ({"epochs": 2.5}, "--epochs must be a whole number, not 2.5"),
        ({"timeout": True}, "--timeout must be a number"),
        ({"isolate": 1}, "--isolate must be true or false"),
        ({"policy": 3}, "--policy must be a text, not 3"),
        ({"beta": "much"}, "--beta must be a number, not 'much'"),
        ({"epoch": 5}, "no setting 'epoch'; did you mean 'epochs'"),
        ({"replicas": 2, "transfer": "noop"}, "--replicas goes only with --transfer store, not no"),
    ],
)
def test_values_of_other_types_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Settings.of({"application": "digits", **given})


def test_a_settings_file_says_what_flags_say_and_flags_overrule_it(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'application = "digits"\nsearch = "random"\npopulation_size = 9\ntimeout = 5\njson = true\n'
    )
    settings = parse(["--config", str(file), "--population_size", "7"])
    assert isinstance(settings, Settings) and settings.search == "random" and settings.json
    assert settings.timeout == 5 and vars(settings.of_search) == {"population_size": 7}
    file.write_text("seed = 3\nevolve_count = 2\n")
    untrained = parse(["--config", str(file)])
    assert isinstance(untrained, GenerationSettings) and untrained.evolve_count == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("population = 9", "no setting 'population'; did you mean 'population_size'"),
        ("seed = ", "expected TOML, found "),
        ("[evolution]\nbeta = 1", "no setting 'evolution'"),
        ("seed = [1, 2]", "seed must be one value, not [1, 2]"),
        ('seed = "x"', "--seed must be a whole number, not 'x'"),
        (None, "No such file"),
    ],
)
def test_a_settings_file_that_is_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    file = tmp_path / "run.toml"
    if content is not None:
        file.write_text(content)
    assert evolve.main(["--config", str(file)]) == 2
    err = capfd.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_run_that_only_time_ends_is_resumed_as_one(tmp_path: Path) -> None:
    from transfer_nas.searching.run_directory import RunDirectory

    settings = search_of(["--seed", "1", "--output_dir", str(tmp_path), "--timeout", "5"])
    space = applications.resolve("digits").space()
    RunDirectory.create(tmp_path, space, settings.to_dict(), {}).close()
    resume = ["--resume", "--output_dir", str(tmp_path)]
    resumed = parse(resume)
    assert isinstance(resumed, Settings)
    assert (resumed.timeout, resumed.max_evals) == (5, None)
    resumed = parse([*resume, "--max_evals", "9"])
    assert isinstance(resumed, Settings)
    assert (resumed.timeout, resumed.max_evals) == (None, 9)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--replicas", "2"], {}, "--replicas 2 needs 2 store servers, and a job that starts its"),
        ([], {"MODEL_REPLICAS": "2"}, "MODEL_REPLICAS 2 needs 2 store servers"),
        ([], {"MODEL_REPLICAS": "two"}, "MODEL_REPLICAS must be a whole number, not 'two'"),
        ([], {"MODEL_REPLICAS": "0"}, "MODEL_REPLICAS must be at least 1, not 0"),
        (["--replicas", "2", "--isolate"], {}, "a job that starts its own has 1, one a node"),
        (["--replicas", "2", "--transfer", "hdf5"], {}, "--replicas goes only with --transfer sto"),
        (["--store_host", "eth0", "--transfer", "noop"], {}, "--store_host goes only with"),
        (["--store_host", "eth0"], {"MODEL_SERVERS": "ofi+tcp://h:1"}, "leave one of them out"),
        (["--store_memory", "1GiB"], {"MODEL_SERVERS": "ofi+tcp://h:1"}, "leave one of them out"),
        (["--store_provider", "ofi+cxi"], {"MODEL_SERVERS": "ofi+tcp://h:1"}, "leave one of them"),
        (["--store_memory", "50GiBs"], {}, "--store_memory is '50GiBs'; it is a number of bytes"),
        (["--store_memory", "0"], {}, "--store_memory is '0'; it is a number of bytes"),
        (["--store_memory", "9000TiB"], {}, "--store_memory 9000TiB: node "),
        (["--store_memory", "1GiB", "--transfer", "noop"], {}, "--store_memory goes only with"),
        (["--store_provider", "cxi"], {}, "--store_provider cxi: expected ofi+ and one of"),
        (["--store_provider", "ofi+nix", "--isolate"], {}, "cannot start a store server on"),
        (["--max_evals", "3"], {"OMP_NUM_THREADS": "none"}, "OMP_NUM_THREADS must be a whole"),
    ],
)
def test_what_cannot_be_honoured_is_refused_and_leaves_nothing(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    message: str,
) -> None:
    for name in ("OMP_NUM_THREADS", "MODEL_SERVERS", "MODEL_REPLICAS"):
        monkeypatch.delenv(name, raising=False)
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    path = tmp_path / "run"
    assert evolve.main([*DIGITS, *arguments, "--output_dir", str(path)]) == 2
    out, err = capfd.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""
    assert not path.exists()


def run(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    import os

    return subprocess.run(
        [sys.executable, "-m", "transfer_nas.evolve", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
        check=False,
    )


def test_help_names_every_setting_and_needs_neither_mpi_nor_numpy() -> None:
    code = (
        "import sys\nfrom transfer_nas import evolve\n"
        "try: evolve.main(['--help'])\n"
        "finally: assert not {'numpy', 'mpi4py', 'cpp_store._core'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0 and done.stderr == ""
    for kind in kinds({}):
        for name in settings_of(kind):
            assert f"--{name}" in done.stdout
    assert done.stdout.count("(default: ") >= len(NUMBERS)
    for name in (*applications.NAMES, *spaces.REGISTRY):
        assert name in done.stdout


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """What a search on digits leaves before its first evaluation."""
    from transfer_nas import applications
    from transfer_nas.searching.run_directory import RunDirectory

    digits = applications.resolve("digits")
    settings = search_of(["--seed", "1", "--output_dir", str(tmp_path / "run")])
    keep = {**settings.to_dict(), "namespace": digits.namespace}
    RunDirectory.create(tmp_path / "run", digits.space(), keep, {}).close()
    return tmp_path / "run"


def test_a_resumed_run_takes_its_settings_from_disk(run_directory: Path) -> None:
    description = json.loads((run_directory / "run.json").read_text())
    description["settings"].update(population_size=9, sample_size=4, epochs=2, max_evals=7)
    (run_directory / "run.json").write_text(json.dumps(description))
    settings = search_of(["--resume", "--output_dir", str(run_directory)])
    assert vars(settings.of_search) == {"population_size": 9, "sample_size": 4, "beta": 0.0}
    assert (settings.application, settings.epochs) == ("digits", 2)
    assert settings.seed == 1 and settings.max_evals == 7
    more = search_of(["--resume", "--output_dir", str(run_directory), "--max_evals", "9"])
    assert more.max_evals == 9


@pytest.mark.parametrize("search", ["random", "halving"])
def test_a_resumed_baseline_takes_its_settings_from_disk(tmp_path: Path, search: str) -> None:
    from transfer_nas import applications
    from transfer_nas.searching.run_directory import RunDirectory

    settings = search_of(["--seed", "1", "--output_dir", str(tmp_path), "--search", search])
    space = applications.resolve("digits").space()
    RunDirectory.create(tmp_path, space, settings.to_dict(), {}).close()
    resumed = search_of(["--resume", "--output_dir", str(tmp_path)])
    assert resumed.to_dict() == {**settings.to_dict(), "resume": True}


def test_a_resumed_run_with_other_settings_names_them(run_directory: Path) -> None:
    with pytest.raises(InputError, match="started with population_size 32, not 16"):
        parse(["--resume", "--output_dir", str(run_directory), "--population_size", "16"])


def expect_bad_input(done: "subprocess.CompletedProcess[str]", *messages: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("evolve: error: ") and done.stderr.count("\n") == 1
    assert done.stdout == ""
    for message in messages:
        assert message in done.stderr


def test_a_directory_that_holds_another_run(run_directory: Path) -> None:
    done = run(*DIGITS, "--output_dir", run_directory)
    expect_bad_input(done, "holds another run", "--resume")


def test_other_data_under_the_same_name(run_directory: Path) -> None:
    description = json.loads((run_directory / "run.json").read_text())
    description["settings"]["namespace"] = "digits-0000"
    (run_directory / "run.json").write_text(json.dumps(description))
    done = run("--resume", "--output_dir", run_directory)
    expect_bad_input(done, "was started with namespace digits-0000, not digits-")


def test_nothing_to_resume(tmp_path: Path) -> None:
    done = run(*DIGITS, "--resume", "--output_dir", tmp_path / "none")
    expect_bad_input(done, "nothing to resume", "run.json")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--population_size", "0"], "--population_size must be at least 1"),
        (["--application", "digts"], "did you mean 'digits'"),
        (["--application", "digits", "--space", "dense_skp"], "did you mean 'dense_skip'"),
        (["--application", "no.such:thing"], "cannot import no.such: ModuleNotFoundError"),
        (["--application", "nt3", "--data", "nowhere"], "--data nowhere: no such directory"),
        (["--application", "uno", "--space", "nt3"], "application uno-synthetic: space nt3: expec"),
    ],
)
def test_all_ranks_end_with_one_line(
    mpiexec: Any, tmp_path: Path, ranks: int, arguments: list[str], message: str
) -> None:
    done = mpiexec(
        ranks, "-m", "transfer_nas.evolve", *arguments, "--output_dir", tmp_path / "x", timeout=20
    )
    expect_bad_input(done, message)
    assert not (tmp_path / "x").exists()


PLUGINS = """
from dataclasses import dataclass

from transfer_nas.schema import setting
from transfer_nas.algorithms import RandomSearch
from transfer_nas.sharing import NoSharing
from transfer_nas.transfer import NoTransfer

class Mine(RandomSearch):
    name = "mine"

    @dataclass(frozen=True)
    class Settings:
        keep: int = setting(3, "models kept", numbers=None)

    def __init__(self, space, keep, seed):
        super().__init__(space, keep, seed)

class Sharing(NoSharing):
    name = "mine"

class Transfer(NoTransfer):
    name = "mine"

class Clash(RandomSearch):
    @dataclass(frozen=True)
    class Settings:
        epochs: int = setting(3, "models kept")
"""


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    file = tmp_path / "plugins.py"
    file.write_text(PLUGINS)
    return file


def test_ones_own_algorithm_sharing_and_transfer_bring_their_settings(
    plugins: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = ["--search", f"{plugins}:Mine", "--sharing", f"{plugins}:Sharing"]
    settings = search_of([*own, "--transfer", f"{plugins}:Transfer", "--keep", "5"])
    assert vars(settings.of_search) == {"keep": 5} and settings.fixed()["keep"] == 5
    with pytest.raises(SystemExit):
        evolve.main([*own, "--help"])
    assert "--keep" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "{}:Mine", "--keep", "many"], "--keep must be a whole number, not 'many'"),
        (["--search", "{}:Mine", "--beta", "1"], "--beta goes only with --search evolution, not"),
        (["--search", "{}:Mane"], "has no attribute 'Mane'; did you mean 'Mine'"),
        (["--search", "{}:Sharing"], "expected a subclass of transfer_nas.algorithms.Algo"),
        (["--search", "{}:Clash"], "brings a setting 'epochs', which every search has"),
        (["--sharing", "{}:Mine"], "expected a subclass of transfer_nas.sharing.Sharing"),
        (["--transfer", "{}:Mine"], "expected a subclass of transfer_nas.transfer.TransferMethod"),
        (["--transfer", "stor"], "unknown --transfer 'stor'; did you mean 'store'"),
        (["--keep", "5"], "unrecognized arguments: --keep"),
    ],
)
def test_plugins_that_do_not_fit(
    plugins: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [argument.replace("{}", str(plugins)) for argument in arguments]
    assert evolve.main([*DIGITS, *given]) == 2
    out, err = capfd.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


def test_installed_packages_bring_plugins(
    plugins: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    info = tmp_path / "plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[transfer_nas.algorithms]\nmine = plugins:Mine\n")
    settings = search_of(["--search", "mine", "--keep", "4"])
    assert vars(settings.of_search) == {"keep": 4}
    assert "mine" in ALGORITHMS and len(ALGORITHMS) == 4
    with pytest.raises(InputError, match="unknown --search 'mind'; did you mean 'mine'"):
        search_of(["--search", "mind"])


def test_the_names_of_transfer_methods_are_all_there_are() -> None:
    assert tuple(each.name for each in TRANSFERS.own) == settings_module._TRANSFERS
