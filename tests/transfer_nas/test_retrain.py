"""Training one model of a run alone."""

from pathlib import Path

import numpy as np
import pytest

from tests.made_up_runs import write_run
from transfer_nas import runs, trained_model
from transfer_nas.applications import resolve
from transfer_nas.report.best import retrain_command
from transfer_nas.retrain import main
from transfer_nas.spaces import FeedForward

from ..conftest import SmallDisk


@pytest.fixture
def run(tmp_path: Path) -> Path:
    space = resolve("digits").space("feed_forward")
    assert isinstance(space, FeedForward)
    settings = {"space": "feed_forward", "batch_size": 256}
    write_run(tmp_path / "a run", 6, space=space, settings=settings)
    return tmp_path / "a run"


def test_the_command_of_a_report_trains_the_model(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    command = shlex.split(retrain_command(runs.read(run), 3))
    assert command[:3] == ["python", "-m", "transfer_nas.retrain"]
    assert main([*command[3:], "--epochs", "2"]) == 0
    assert "after 2 epochs alone" in capsys.readouterr().out
    model = (run / "alone-3.keras").read_bytes()
    assert len(model) > 1_000
    # Neither what a search has retrained nor what this command has is overwritten.
    assert not (run / "retrained-3.keras").exists()
    assert main(command[3:]) == 2
    assert "alone-3.keras is there already; remove it" in capsys.readouterr().err
    assert (run / "alone-3.keras").read_bytes() == model


def test_a_full_training_is_no_shorter_than_that_of_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    application = resolve("digits")
    settings = {"space": "feed_forward", "batch_size": 256, "epochs": application.epochs + 2}
    space = application.space("feed_forward")
    write_run(tmp_path / "run", 3, space=space, settings=settings)
    assert main([str(tmp_path / "run")]) == 0
    assert f"after {application.epochs + 2} epochs alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--job", "17"], "there is no evaluation of a job 17"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--output", "model.h5"], "expected a .keras file"),
    ],
)
def test_bad_input_is_one_line(
    run: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("retrain: error: ") and error.count("\n") == 1 and complaint in error


def test_a_model_for_which_there_is_no_room_is_one_line(
    run: Path, small_disk: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    small_disk.resize("8k")
    output = small_disk.path / "model.keras"
    assert main([str(run), "--epochs", "1", "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert error == f"retrain: error: cannot write {output}: No space left on device\n"
    assert not list(small_disk.path.iterdir())


SPACE = """
import sys
from pathlib import Path
from graph_meta import layers
from graph_meta.graph import GraphBuilder

def build(choices):
    how = Path(__file__).with_name("how").read_text()
    if choices.choose("width", [4, 8]) == 8 and how == "exit":
        sys.exit("enough\\nof it")
    if choices.choose("width", [4, 8]) == 8 and how == "raise":
        raise ValueError("too\\nwide")
    builder = GraphBuilder()
    inputs = builder.input(choices.input_shapes[0])
    outputs = layers.dense(choices.output_units, activation="softmax")
    return builder.build(builder.add(outputs, inputs))
"""


@pytest.mark.parametrize(
    ("how", "why"), [("raise", "ValueError: too wide"), ("exit", "SystemExit: enough of it")]
)
def test_what_a_users_function_raises_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str, why: str
) -> None:
    (tmp_path / "mine.py").write_text(SPACE)
    (tmp_path / "how").write_text("")
    name = f"{tmp_path}/mine.py:build"
    space = resolve("digits").space(name)
    write_run(tmp_path / "run", 6, space=space, settings={"space": name, "batch_size": 256})
    found = runs.read(tmp_path / "run")
    job = found.job[[genome[0] == 1 for genome in found.genomes].index(True)]
    (tmp_path / "how").write_text(how)
    assert main([str(tmp_path / "run"), "--job", str(job)]) == 1
    assert capfd.readouterr().err == f"retrain: the training failed: {why}\n"


def test_the_best_model_of_a_search_that_a_signal_ended(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained_model.main([str(run)]) == 2
    assert "holds no model: expected best.safetensors" in capsys.readouterr().err
    space = resolve("digits").space("feed_forward")
    graph = space.graph(space.sample(np.random.default_rng(3)))
    weights = {
        name: [np.full(weight.shape, 0.5, weight.dtype) for weight in layer.spec.weights]
        for name, layer in zip(graph.names, graph.layers, strict=True)
    }
    trained_model.write(trained_model.best_path(run), graph, weights)
    assert trained_model.main([str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'best.keras'}\n"
    assert not trained_model.best_path(run).exists()
    assert trained_model.main([str(run)]) == 0  # it is there already
    assert (run / "best.keras").stat().st_size > 1_000
