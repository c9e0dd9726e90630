"""What a report says: its numbers against the run's files, its statistics against SciPy's."""

import hashlib
import json
import math
import re
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import cpp_store
from tests.made_up_runs import write_run
from transfer_nas import runs
from transfer_nas.algorithms.evolution import AgingEvolution
from transfer_nas.job import DONE, Evaluation
from transfer_nas.report import charts, comparison, genes, lineage, page, progress, ranks, storage
from transfer_nas.report.__main__ import main
from transfer_nas.report.best import Architectures
from transfer_nas.report.progress import Group
from transfer_nas.runs import Run
from transfer_nas.searching.run_directory import RunDirectory
from transfer_nas.spaces import FeedForward
from transfer_nas.transfer import StoreTransfer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("runs") / "run"
    write_run(path, 200, ranks=3, seed=5, failures=0.05)
    return runs.read(path)


def group(*found: Run, name: str = "all") -> Group:
    return Group(name, found, [run.path.name for run in found], "first")


def series(chart: charts.Chart, name: str) -> dict[str, Any]:
    (found,) = (one for one in chart["series"] if one["name"] == name)
    assert isinstance(found, dict)
    return found


def test_the_running_best_is_drawn_with_every_improvement(run: Run) -> None:
    figure = progress.objective([group(run)]).figures[0]
    best = series(figure.charts["over time"], "best so far")
    assert best["y"][-1] == pytest.approx(np.nanmax(run.objective), rel=1e-5)
    assert set(np.round(best["y"], 4)) == set(np.round(run.running_best, 4))


def test_a_comparison_says_each_groups_figures(tmp_path: Path) -> None:
    groups = []
    for name, transfer in (("with", True), ("without", False)):
        write_run(tmp_path / name, 40, seed=3, transfer=transfer, failures=0.1)
        groups.append(runs.read(tmp_path / name))
    content = page.content(groups[:1], groups[1:], ("with", "without"))
    tiles = {tile.name: tile.figures for tile in content.tiles}
    for i, (name, run) in enumerate(zip(("with", "without"), groups, strict=True)):
        said = {title: figures[i] for title, figures in tiles.items()}
        assert {figure.group for figure in said.values()} == {name}
        assert run.best is not None
        assert said["best accuracy"].value == f"{run.objective[run.best]:.4f}"
        assert said["best accuracy"].remark.startswith(f"job {run.job[run.best]};")
        assert said["transferred"].value == f"{run.figures['share_transferred']:.0%}"
        assert said["evaluations"].remark == f"{run.figures['failures']} failed"
        rate = f"{run.figures['evaluations_per_second']:.3g} evaluations/s"
        assert said["time"].remark == rate
    assert tiles["transferred"][1].value == "0%"
    labels = {figure.id: figure.label for view in content.together.views for figure in view.figures}
    assert labels["transfer-share"].endswith("“without” 0%.")
    assert labels["storage-stored"].count("whole copies take") == 2


def test_the_best_is_the_same_in_every_place(run: Run) -> None:
    content = page.content([run])
    (part,) = content.each
    assert run.best is not None
    best = f"job {run.job[run.best]}"
    table = next(view for view in part.views if view.id == "best").tables[0]
    assert content.tiles[0].figures[0].remark.startswith(f"{best};")
    assert table.rows[0][1] == best and table.jobs[1][0] == run.job[run.best]
    line = next(view for view in part.views if view.id == "lineage")
    assert line.figures[0].label.startswith(f"The best, {best}, stands")


def test_large_runs_are_drawn_thinned_and_say_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_POINTS", 50)
    figure = progress.objective([group(run)]).figures[0]
    points = series(figure.charts["over time"], "evaluations")
    drawn, count = len(points["x"]), int(run.done.sum())
    assert 40 < drawn <= 50 and f"{drawn} of {count} points are drawn" in figure.caption
    assert max(points["y"]) == pytest.approx(np.nanmax(run.objective), rel=1e-5)


def test_a_band_reaches_from_the_worst_to_the_best_run(tmp_path: Path) -> None:
    found = []
    for seed in range(3):
        write_run(tmp_path / str(seed), 40, seed=seed)
        found.append(runs.read(tmp_path / str(seed)))
    chart = progress.objective([group(*found)]).figures[0].charts["over evaluations"]
    band = series(chart, "all: all runs")
    finals = [float(run.running_best[-1]) for run in found]
    assert band["low"][-1] == pytest.approx(min(finals), rel=1e-5)
    assert band["high"][-1] == pytest.approx(max(finals), rel=1e-5)
    median = series(chart, "all: median")
    assert median["y"][-1] == pytest.approx(np.median(finals), rel=1e-5)


def test_storage_sums_what_was_put(run: Run) -> None:
    architectures = Architectures.of(run)
    chart = storage.view([group(run)]).figures[0].charts["bytes"]
    whole = 0
    for row in np.flatnonzero(run.done):
        graph = architectures.graph(run, int(row))
        assert graph is not None
        whole += graph.nbytes
    assert series(chart, "whole copies")["y"][-1] == pytest.approx(whole, rel=1e-5)
    stored = np.nansum(run.measure("bytes_stored"))
    assert series(chart, "stored")["y"][-1] == pytest.approx(stored, rel=1e-5)


def test_what_is_kept_is_what_a_store_holds(tmp_path: Path) -> None:
    """Replays a search against a real store, one candidate in training while others are told."""
    space = FeedForward([(8,)], 3, max_depth=4)
    settings = {"population_size": 6, "transfer": "store"}
    directory = RunDirectory.create(tmp_path / "run", space, settings, {"versions": {}})
    algorithm = AgingEvolution(space, 6, 2, seed=1)
    held = []
    with cpp_store.embedded(memory="64MiB") as store, directory:
        method = StoreTransfer("test", store)
        waiting = deque()
        for number in range(63):
            for job in algorithm.ask(1):
                directory.asked(job)
                waiting.append((job, method.best_match(space.graph(job.architecture))))
            if number < 3:
                continue  # so many are always under way: ancestors die meanwhile
            job, inheritance = waiting.popleft()
            graph = space.graph(job.architecture)
            inherited = inheritance.layers if inheritance is not None else ()
            measures: dict[str, Any] = {"bytes_whole_copy": graph.nbytes}
            if inheritance is not None:
                measures["ancestor"] = f"{directory.id}/{inheritance.ancestor}"
            measures["bytes_stored"] = method.put(
                str(job.id),
                graph,
                {
                    name: [np.zeros(w.shape, w.dtype) for w in layer.spec.weights]
                    for name, layer in zip(graph.names, graph.layers, strict=True)
                    if layer.spec.weights and name not in inherited
                },
                score=job.id / 100,
                inheritance=inheritance,
                inherited=inherited,
            )
            evaluation = Evaluation(job, DONE, job.id / 100, measures)
            directory.told(evaluation)
            method.retire([str(dead) for dead in algorithm.tell(evaluation)])
            if inheritance is not None:
                inheritance.close()
            # Leases of those under way hold more for a while; a store without them tells.
            held.append(store.stats()["bytes_stored"])
        for _, inheritance in waiting:
            if inheritance is not None:
                inheritance.close()
        at_the_end = store.stats()["bytes_stored"]
    run = runs.read(tmp_path / "run")
    found = storage.kept(run, Architectures.of(run, own_space="feed_forward"))
    assert found is None  # other options than the defaults: the space is not known
    found = storage.kept(run, Architectures(space))
    assert found is not None
    assert found[0][-1] == at_the_end
    assert np.all(found[0] <= held) and np.all(found[0] <= found[1])


def test_the_line_of_descent_follows_ancestors(run: Run) -> None:
    assert run.best is not None
    line = lineage.line_of_descent(run, run.best)
    assert line[-1] == run.best and len(line) > 2
    assert run.ancestor[line[0]] == -1
    assert [run.job[row] for row in line[:-1]] == [run.ancestor[row] for row in line[1:]]


def test_a_circle_of_ancestors_has_an_end(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 20)
    found = runs.read(tmp_path / "run")
    text = (tmp_path / "run" / "results.csv").read_text()
    ancestors = re.findall(rf"{found.id}/\d+", text)
    (tmp_path / "run" / "results.csv").write_text(text.replace(ancestors[0], f"{found.id}/19"))
    damaged = runs.read(tmp_path / "run")
    for row in range(20):
        assert len(set(lineage.line_of_descent(damaged, row))) <= 20


def test_steps_of_ranks_add_up(run: Run) -> None:
    times = ranks.timeline(run)
    assert times is not None and len(times.row) == 200
    for rank in range(3):
        mine = times.rank == rank
        # Nobody does two things at once, and the waiting lies between.
        assert np.all(times.begin[mine][1:] >= times.end[mine][:-1] - 1e-6)
        assert np.allclose(times.ask[mine][1:], times.end[mine][:-1])
    figure = ranks.view(run).figures[1]
    total = np.zeros(len(figure.charts["shares"]["series"][0]["y"]))
    for one in figure.charts["shares"]["series"]:
        total += np.array(one["y"])
    assert np.allclose(total[:-1], 1, atol=0.02)


def test_runs_without_times_of_workers_are_drawn_from_what_there_is(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 30)
    file = tmp_path / "run" / "results.csv"
    lines = [line.split(",") for line in file.read_text().splitlines()]
    gone = [
        i for i, name in enumerate(lines[0]) if name in ("m:timestamp_start", "m:timestamp_end")
    ]
    kept = [[cell for i, cell in enumerate(line) if i not in gone] for line in lines]
    file.write_text("\n".join(map(",".join, kept)) + "\n")
    times = ranks.timeline(runs.read(tmp_path / "run"))
    assert times is not None and not times.measured
    assert np.all(times.begin <= times.end)
    assert "did not note" in ranks.view(runs.read(tmp_path / "run")).notes[0]


def test_the_gene_that_decides_explains_the_variance(run: Run) -> None:
    share = genes.explained(run)
    names = list(run.genes)
    assert names[int(share.argmax())] == "node_0"  # `write_run` weighs genes by their place
    assert np.all(share >= 0) and np.all(share <= 1)


@pytest.mark.parametrize("seed", range(5))
def test_statistics_are_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0.3, 1, 40).round(1), rng.normal(0, 2, 25).round(1)
    found = comparison.compare(a, b)
    assert found.p_mann_whitney == pytest.approx(stats.mannwhitneyu(a, b).pvalue)
    pairs = np.sign(a[:, None] - b[None, :])
    assert found.delta == pytest.approx(pairs.mean())
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert found.difference_low == pytest.approx(interval.low)
    assert found.difference_high == pytest.approx(interval.high)
    oracle = stats.permutation_test(
        (a, b), lambda x, y: x.mean() - y.mean(), n_resamples=9_999, rng=seed
    )
    assert found.p_permutation == pytest.approx(oracle.pvalue, abs=0.02)


def test_few_values_are_dealt_in_every_way() -> None:
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([5.0, 6.0, 7.0])
    p, deals, exact = comparison.permutation_test(a, b)
    assert (deals, exact) == (math.comb(7, 3), True)
    # As far apart are only the three largest and the three smallest together.
    assert p == pytest.approx(2 / 35)
    oracle = stats.permutation_test((a, b), lambda x, y: x.mean() - y.mean())
    assert oracle.pvalue == pytest.approx(p)


def test_the_interval_of_delta_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth = 2 * stats.norm.cdf(0.5 / math.sqrt(2)) - 1
    covered = 0
    for _ in range(400):
        _, low, high = comparison.cliffs_delta(rng.normal(0.5, 1, 20), rng.normal(0, 1, 15))
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.985


def test_samples_apart_have_an_interval_within_bounds() -> None:
    delta, low, high = comparison.cliffs_delta(np.array([2.0, 3.0]), np.array([0.0, 1.0]))
    assert delta == high == 1 and -1 < low < 1


def test_the_library_is_the_one_that_the_readme_names() -> None:
    static = Path(page.__file__).parent / "static"
    digest = hashlib.sha256((static / "echarts.min.js").read_bytes()).hexdigest()
    assert digest in (static / "README.md").read_text()


def test_moving_means_skip_what_is_no_number() -> None:
    values = np.array([1.0, math.nan, 3.0, 5.0, math.nan])
    assert charts.moving_mean(values, 2).tolist() == [1, 1, 3, 4, 5]


def test_a_space_that_is_not_ours_is_imported_only_when_told(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n"
        "from transfer_nas.spaces import FeedForward\n"
        f"Path({str(tmp_path / 'imported')!r}).touch()\n"
        "class Mine(FeedForward):\n    name = 'mine'\n"
    )
    write_run(tmp_path / "run", 20, space=FeedForward.example())
    file = tmp_path / "run" / "run.json"
    description = json.loads(file.read_text())
    own = f"{tmp_path / 'mine.py'}:Mine"
    description["settings"]["space"] = own
    description["space"]["name"] = "mine"
    file.write_text(json.dumps(description))
    output = tmp_path / "report.html"
    assert main([str(tmp_path / "run"), "--output", str(output)]) == 0
    assert "name it with --space" in output.read_text()
    assert not (tmp_path / "imported").exists()
    assert main([str(tmp_path / "run"), "--space", own, "--output", str(output)]) == 0
    assert (tmp_path / "imported").exists() and "<svg" in output.read_text()


def test_a_run_in_progress_is_shown_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "open", 20, finished=False)
    assert main([str(tmp_path / "open"), "--output", str(tmp_path / "report.html")]) == 0
    sentence = "open is still in progress: 20 evaluations so far, 1 under way."
    assert sentence in capsys.readouterr().out
    assert sentence in (tmp_path / "report.html").read_text()


def test_a_run_without_results_makes_a_page(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 0, finished=False)
    content = page.content([runs.read(tmp_path / "run")])
    assert "No evaluation has worked yet." in page.render(content)


def test_a_run_whose_evaluations_all_failed_makes_a_page(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 12, failures=1.0)
    text = page.render(page.content([runs.read(tmp_path / "run")]))
    assert "F_nan" in text and "12 failed" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere"], "nowhere: there is no such directory"),
        (["."], "is empty: expected the --output_dir"),
        (["run", "--output", "no/where.html"], "there is no directory no"),
        (["run", "--output", "run"], "cannot write run: Is a directory"),
        (["run", "--space", "nosuch"], "unknown space 'nosuch'"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "run" in arguments:
        write_run(tmp_path / "run", 5)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("report: error: ") and error.count("\n") == 1
    assert complaint in error
