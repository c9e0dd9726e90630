"""``python -m benchmarks``: what it finds, what it makes of scripts that fail, what it compares."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import comparing  # noqa: E402
import page  # noqa: E402
import questions  # noqa: E402

RUNNER = (
    *("__init__.py", "__main__.py", "comparing.py", "figures.py"),
    *("machine.py", "page.py", "questions.py"),
)
GOOD = '''"""How many?"""
import json, sys
import figures
QUESTION = figures.Question(compares="one with another", seconds=1, quick_seconds=1)
TARGETS: figures.Targets = {"a_ms": ("at most", 5), "b_per_s": ("at least", 5)}
if __name__ == "__main__":
    figures.lacks("redis", "apt-get install redis-server")
    figures.write(sys.argv[2], "good", {"a_ms": 4.0, "b_per_s": 4.0}, quick="--quick" in sys.argv)
'''
BAD = '''"""Why not?"""
import figures
QUESTION = figures.Question(compares="nothing", seconds=1, quick_seconds=1)
raise SystemExit("ran out of patience")
'''
LACKING = '''"""With whom?"""
import figures
QUESTION = figures.Question(compares="a peer", seconds=1, quick_seconds=1)
import a_peer_that_nobody_has
'''


def command(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Output and directory of a run of a script that works and of one that does not."""
    root = tmp_path_factory.mktemp("checkout")
    scripts = root / "benchmarks"
    scripts.mkdir()
    for name in RUNNER:
        (scripts / name).write_text((ROOT / "benchmarks" / name).read_text())
    (scripts / "bench_good.py").write_text(GOOD)
    (scripts / "bench_bad.py").write_text(BAD)
    (scripts / "bench_lacking.py").write_text(LACKING)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "run", "--quick", "--repeat", "2", "--output", "out"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    return done.stdout, root / "out"


def test_every_script_is_a_question_with_a_peer_beside_it() -> None:
    named = {script.name: script for script in questions.find()}
    scripts = {file.stem for file in (ROOT / "benchmarks").glob("bench_*.py")}
    assert scripts | {"save_bench", "load_single"} <= named.keys()
    listed = command().stdout
    for name, script in named.items():
        assert name in listed
        assert script.about.compares and 0 < script.about.quick_seconds <= script.about.seconds


def test_quick_takes_no_more_than_six_minutes() -> None:
    assert sum(script.about.quick_seconds for script in questions.find()) <= 360


def test_a_failure_is_a_line_and_the_rest_goes_on(finished: tuple[str, Path]) -> None:
    output, directory = finished
    assert "FAILED: ended with 1: ran out of patience" in output
    assert "2 figures, 1 of 2 targets met" in output
    answers = json.loads((directory / "results.json").read_text())["questions"]
    assert answers["bench_good"]["samples"] == {"a_ms": [4.0, 4.0], "b_per_s": [4.0, 4.0]}
    assert answers["bench_bad"]["results"] == {}


def test_a_missing_peer_is_a_line_that_says_what_to_install(finished: tuple[str, Path]) -> None:
    output, directory = finished
    assert "without redis: apt-get install redis-server" in output
    assert "without a_peer_that_nobody_has: pip install a_peer_that_nobody_has" in output
    html = (directory / "report.html").read_text()
    assert "Without redis: apt-get install redis-server" in html


def test_the_page_has_every_figure_its_target_and_a_plot(finished: tuple[str, Path]) -> None:
    html = (finished[1] / "report.html").read_text()
    assert "met (at most 5)" in html and "MISSED (at least 5)" in html
    assert html.count("<svg") == 2  # milliseconds, per second
    assert "Failed: ended with 1" in html and not re.search(r"(src|href)=.http", html)


def test_the_machine_is_in_the_results(finished: tuple[str, Path]) -> None:
    machine = json.loads((finished[1] / "results.json").read_text())["machine"]
    assert machine["cores"] >= 1 and machine["kernel"] and machine["versions"]["numpy"]
    assert machine["copy_gb_per_s"] > 0 and machine["tcp_stream_gb_per_s"] > 0


def test_comparing_a_run_with_itself_finds_nothing(finished: tuple[str, Path]) -> None:
    done = command("compare", finished[1], finished[1] / "results.json")
    assert done.stdout == "0 figures changed beyond noise, 2 did not\n"


@pytest.mark.parametrize(
    ("key", "old", "new", "says"),
    [
        ("a_ms", [10.0], [12.0], ""),  # within the noise that is assumed
        ("a_ms", [10.0], [20.0], "2.00 times WORSE"),
        ("a_per_s", [10.0], [20.0], "2.00 times better"),
        ("hdf5_ms_of_25", [10.0], [20.0], "2.00 times WORSE"),
        ("a_ms", [10.0, 11.0, 12.0], [11.5, 13.0, 14.0], ""),  # the ranges overlap
        ("a_ms", [10.0, 10.1, 10.2], [12.0, 12.1, 12.2], "1.20 times WORSE"),
        ("a_ms", [10.0, 10.1], [10.2, 10.3], ""),  # apart, but by too little
        ("ranks", [2], [4], "2.00 times changed"),
        ("a", [0], [3], "from nothing changed"),
    ],
)
def test_what_counts_as_a_change(key: str, old: list[float], new: list[float], says: str) -> None:
    found = comparing.difference(key, old, new, noise=0.25)
    assert " ".join(found.split()).endswith(says) and bool(found) == bool(says)


def test_the_target_says_which_way_is_better() -> None:
    target = ("at most", 2)
    assert comparing.difference("x_over_y", [1.0], [2.0], 0.25, target).endswith("WORSE")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "nonsense"], "no question is called 'nonsense'"),
        (["compare", "/nowhere.json", "/nowhere.json"], "there is no such file"),
        (["page", __file__], "is not a results file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], says: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2 and says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_results_of_another_version_are_refused(tmp_path: Path, finished: Any) -> None:
    document = json.loads((finished[1] / "results.json").read_text())
    (tmp_path / "new.json").write_text(json.dumps({**document, "version": 99}))
    done = command("page", tmp_path / "new.json")
    assert done.returncode == 2 and "version 99" in done.stderr


def test_units_are_recognised_by_the_end_of_a_key() -> None:
    assert page._unit("ranks") == ""
    assert page._unit("store_gb_per_s") == "GB/s"
    assert page._unit("a_over_b_16mb") == "ratio"


def test_methods_give_back_what_they_were_given_and_redis_may_be_missing(tmp_path: Path) -> None:
    """load_single checks every tensor that it reads."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load_single", "--quick", "--megabytes=1",
         f"--directory={tmp_path}", f"--json={tmp_path / 'out.json'}"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PATH": "/nowhere"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "redis" in line]
    assert lines == [
        "redis is missing and is left out: apt-get install redis-server, pip install redis hiredis"
    ]
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    for method in ("store", "hdf5", "safetensors", "npz", "raw"):
        assert results[f"{method}_ms_of_5"] > 0


def test_no_question_needs_more_than_a_search_does() -> None:
    """What a peer needs is imported where it is measured, so that the rest goes on without it."""
    peers = ["deephyper", "matplotlib", "playwright", "plotly", "ray", "redis", "simpy"]
    code = f"""
import importlib, sys
sys.modules |= dict.fromkeys({peers!r})
for name in {[script.name for script in questions.find()]!r}:
    importlib.import_module(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True,
        timeout=120, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_helper_that_cannot_be_built_is_a_line_that_says_what_to_install() -> None:
    code = "import bench_metadata as b; assert b.PrefixScan.make() is b.PrefixScan.make() is None"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True,
        timeout=120, env=os.environ | {"PATH": "/nowhere"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "the scan in C++ is missing and is left out: apt-get install g++ cmake" in done.stderr


def test_what_benchmarks_build_needs_no_test_library() -> None:
    presets = json.loads((ROOT / "CMakePresets.json").read_text())["configurePresets"]
    (preset,) = [preset for preset in presets if preset["name"] == "benchmarks"]
    assert "CPP_STORE_TESTS" not in preset["cacheVariables"]
