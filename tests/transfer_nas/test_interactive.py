"""A search from a notebook: the documentation's example, and what can be wrong."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import transfer_nas
from graph_meta import LayerGraph, layers
from graph_meta.graph import GraphBuilder
from transfer_nas.algorithms import RandomSearch
from transfer_nas.applications import resolve
from transfer_nas.errors import InputError
from transfer_nas.interactive import search
from transfer_nas.spaces import Choices

ROOT = Path(__file__).parents[2]


def test_the_example_of_the_documentation_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/notebooks.md").read_text(), re.DOTALL)
    assert len(blocks) == 2  # the second one builds only
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "notebook"}
    exec(compile(blocks[0], "docs/notebooks.md", "exec"), names)
    search, results, model = names["search"], names["results"], names["model"]
    assert isinstance(search, transfer_nas.Search)
    assert "16/16 evaluations" in capsys.readouterr().out
    assert (tmp_path / search.output_dir / "results.csv").is_file()
    children = results[results["m:parent"].notna()]
    assert (children["m:layers_transferred"] > 0).any()
    # The second run went on with the models of the first.
    assert results["m:ancestor"][12:].notna().any()
    data = resolve("digits").data
    judged = json.loads((search.output_dir / "best-validation.json").read_text())
    counts = np.array(judged["counts"])
    assert judged["rows"] == counts.sum() == len(data.y_valid)
    assert counts.sum(axis=1).tolist() == np.bincount(data.y_valid).tolist()
    assert np.trace(counts) / counts.sum() == pytest.approx(results["objective"].max(), abs=1e-6)
    accuracy = np.mean(model.predict(data.x_valid, verbose=0).argmax(axis=1) == data.y_valid)
    assert accuracy == pytest.approx(results["objective"].max(), abs=1e-6)
    assert search.best == {
        name.removeprefix("p:"): value
        for name, value in results.loc[results["objective"].idxmax()].items()
        if name.startswith("p:")
    }


def odd(choices: Choices) -> LayerGraph:
    """Ask for what CSV, and what guesses types, makes something else of."""
    builder = GraphBuilder()
    edge = builder.add(layers.flatten(), builder.input(choices.input_shapes[0]))
    for name, values in ODD.items():
        width = 4 + values.index(choices.choose(name, values))
        edge = builder.add(layers.dense(width, activation="relu"), edge)
    head = layers.dense(choices.output_units, activation="softmax")
    return builder.build(builder.add(head, edge))


ODD: dict[str, list[Any]] = {
    "units, first": ["8", "16", 16],
    'the "text"': ["None", "NA", None, ""],
    "line\nend": ["one\ntwo", "cr\rlf", "\u2028"],
    "mixed": [True, 2, "True"],
    "rate": [0.1, 1e-05],
}


def test_values_are_read_back_as_what_they_were(tmp_path: Path) -> None:
    options: dict[str, Any] = {"population_size": 4, "epochs": 1, "seed": 3, "progress": False}
    with transfer_nas.Search(odd, "digits", output_dir=tmp_path / "run", **options) as search:
        search.run(max_evals=6)
        results = search.run(max_evals=6)
        jobs = map(json.loads, (tmp_path / "run" / "checkpoint").read_text().splitlines())
        chosen = [search.space.values(job["architecture"]) for job in jobs]
        assert len(results) == len(chosen) == 12
        assert not list((tmp_path / "run").glob("*.damaged"))
        for name, values in ODD.items():
            found = results[f"p:{name}"].tolist()
            assert found == [values[name] for values in chosen]
            assert {type(value) for value in found} <= {type(value) for value in values}
        best = int(results["objective"].idxmax())
        assert search.best == chosen[best]
        types = [type(value) for value in chosen[best].values()]
        assert [type(value) for value in search.best.values()] == types


def test_a_search_shows_how_far_it_is(tmp_path: Path) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    error = dataclasses.replace(
        resolve("diabetes"), name="<b>", metric="mean_absolute_error", mode="min", epochs=1
    )
    with transfer_nas.Search(
        "feed_forward",
        error,
        population_size=3,
        seed=1,
        output_dir=tmp_path / "run",
        progress=False,
    ) as search:
        assert "evaluations: none yet" in repr(search)
        with pytest.raises(InputError, match=r"run\(\) first"):
            search.plot()
        objective = search.run(max_evals=4)["objective"]
        best = -objective.max()
        assert f"mean_absolute_error {best:.4f}" in repr(search) and "lower is better" in repr(
            search
        )
        assert "&lt;b&gt;" in search._repr_html_() and "<b>" not in search._repr_html_()
        axes = search.plot()
        points, line = axes.get_lines()
        assert points.get_ydata().tolist() == (-objective).tolist()
        assert line.get_ydata()[-1] == best > 0
        assert search.plot(axes) is axes
        pyplot.close("all")


def test_the_best_is_not_there_before_the_first_run(tmp_path: Path) -> None:
    search = transfer_nas.Search(None, "digits", output_dir=tmp_path / "run")
    with pytest.raises(InputError, match="no evaluation has worked yet"):
        _ = search.best
    with pytest.raises(InputError, match="needs max_evals or timeout"):
        search.run(max_evals=None)


def test_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected an application or its name, found 3"):
        transfer_nas.Search(None, 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a function that builds a network, found 3"):
        transfer_nas.Search(3, "digits")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="transfer must be store or noop, not 'files'"):
        transfer_nas.Search(None, "digits", transfer="files")
    with pytest.raises(InputError, match="--sample_size 3 is above --population_size 2"):
        transfer_nas.Search(None, "digits", population_size=2, sample_size=3)
    (tmp_path / "results.csv").touch()
    with pytest.raises(InputError, match="holds another run"):
        transfer_nas.Search(None, "digits", output_dir=tmp_path).run(1)


def test_the_package_alone_imports_nothing() -> None:
    code = (
        "import sys, transfer_nas; assert 'numpy' not in sys.modules; "
        "assert transfer_nas.Search.__name__ == 'Search'; assert callable(transfer_nas.search); "
        "assert 'keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError, match="no attribute 'search_'"):
        _ = transfer_nas.search_


class Sweep(RandomSearch):
    """An algorithm of one's own, as `search` takes it: the class."""

    name = "sweep"


def test_search_takes_objects_or_names_and_returns_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"epochs": 1, "seed": 3, "population_size": 4}
    path = tmp_path / "run"
    task = dataclasses.replace(resolve("digits"), name="mine")
    run = search(task, space=odd, algorithm=Sweep, max_evals=5, output_dir=path, **options)
    out, err = capfd.readouterr()
    assert "5 evaluations" in out and "the objective is" in err
    assert len(run) == 5 and run.settings["search"].endswith(":Sweep")
    assert (path / "best.keras").exists() and run.best is not None
    more = search(
        task,
        space=odd,
        algorithm=Sweep,
        max_evals=8,
        output_dir=path,
        resume=True,
        progress=False,
        **options,
    )
    assert len(more) == 8 and capfd.readouterr() == ("", "")
    named = search("digits", output_dir=tmp_path / "named", max_evals=2, progress=False, seed=1)
    assert named.settings["search"] == "evolution" and len(named) == 2


def test_search_says_what_is_wrong(tmp_path: Path) -> None:
    class Local(RandomSearch):
        name = "local"

    for options, message in (
        ({"algorithm": Local}, "expected a name or a class at the top of a module"),
        ({"algorithm": RandomSearch, "beta": 1.0}, "--beta goes only with --search evolution"),
        ({"max_eval": 3}, "no setting 'max_eval'; did you mean 'max_evals'"),
        ({"max_evals": "3"}, "--max_evals must be a whole number, not '3'"),
        ({"isolate": True, "space": odd}, "need application and space by name"),
    ):
        given: dict[str, Any] = {"output_dir": tmp_path / "run", **options}
        with pytest.raises(InputError, match=message):
            search("digits", **given)
        assert not (tmp_path / "run").exists()
