"""Networks with several outputs: each with a loss and metrics of its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import transfer_nas
from graph_meta import keras_io
from transfer_nas import spaces, trained_model
from transfer_nas.applications import Application, Data, Output
from transfer_nas.errors import ApplicationError
from transfer_nas.job import Job
from transfer_nas.spaces import Choices
from transfer_nas.trainer import TransferTrainer
from transfer_nas.transfer import NoTransfer


def rows() -> Data:
    """Whether the sum of five numbers is positive, and the sum of their squares."""
    x = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    labels, sums = (x.sum(axis=1) > 0).astype(np.int32), (x**2).sum(axis=1) / 5
    return Data(x[:200], (labels[:200], sums[:200]), x[200:], (labels[200:], sums[200:]))


OUTPUTS = (
    Output(
        2,
        "softmax",
        "sparse_categorical_crossentropy",
        metrics=("accuracy", "auc"),
        name="sign",
    ),
    Output(1, loss="mse", weight=0.3, metrics=("r2",)),
)
TASK = Application(
    name="both",
    load=rows,
    input_shapes=5,
    outputs=OUTPUTS,
    objective="sign_auc",
    epochs=3,
    learning_rate=0.01,
    default_space="feed_forward",
)


def test_each_output_is_measured_by_itself() -> None:
    assert TASK.metric_names == ("sign_accuracy", "sign_auc", "output_1_r2_score")
    space = TASK.space()
    trainer = TransferTrainer(TASK, space, NoTransfer())
    found = trainer.evaluate(Job(0, space.sample(np.random.default_rng(1)), None, seed=1))
    assert found.done, found.measures
    assert found.measures["engine"] == "keras"
    assert found.objective == found.measures["sign_auc"] > 0.8
    assert found.measures["sign_accuracy"] > 0.6
    candidate = trainer._last
    assert candidate is not None
    outputs = candidate.predict(TASK.data.x_valid)
    assert [np.shape(output) for output in outputs] == [(100, 2), (100, 1)]
    residual = ((outputs[1][:, 0] - TASK.data.y_valid[1]) ** 2).mean()
    expected = 1 - residual / TASK.data.y_valid[1].var()
    assert found.measures["output_1_r2_score"] == pytest.approx(expected, rel=1e-3)
    right = (outputs[0].argmax(axis=1) == TASK.data.y_valid[0]).mean()
    assert right == pytest.approx(found.measures["sign_accuracy"])


def test_losses_add_up_with_their_weights() -> None:
    """The loss is that of plain Keras, with the same weights of outputs and of rows."""
    import keras

    task = dataclasses.replace(
        TASK,
        objective="loss",
        load=lambda: dataclasses.replace(rows(), w_train=np.linspace(0, 2, 200)),
    )
    space = task.space()
    trainer = TransferTrainer(task, space, NoTransfer())
    job = Job(0, space.sample(np.random.default_rng(1)), None, seed=1)
    found = trainer.evaluate(job)
    assert found.done, found.measures
    unweighted = TransferTrainer(
        dataclasses.replace(task, load=rows), space, NoTransfer()
    ).evaluate(job)
    assert unweighted.objective != found.objective
    assert trainer._last is not None
    first, second = trainer._last.predict(task.data.x_valid)
    labels, sums = task.data.y_valid
    losses = keras.losses
    classes = float(np.mean(np.asarray(losses.sparse_categorical_crossentropy(labels, first))))
    numbers = np.mean((second[:, 0] - sums) ** 2)
    assert -found.objective == pytest.approx(classes + 0.3 * numbers, rel=1e-4)


SHAPES: dict[str, Any] = {
    "attn": (20,),
    "cell_cnn": (8, 8),
    "combo": [(6,), (5,), (5,)],
    "dense_skip": (12,),
    "feed_forward": (12,),
    "nt3": (64,),
    "series_cnn": (16,),
    "uno": [(1,), (7,), (5,)],
}


@pytest.mark.parametrize("name", spaces.REGISTRY)
def test_all_spaces_end_in_one_head_each(name: str) -> None:
    shapes = SHAPES[name] if isinstance(SHAPES[name], list) else [SHAPES[name]]
    space = spaces.get(name, shapes, (3, 2, 2), ("softmax", None, None))
    rng = np.random.default_rng(3)
    for _ in range(3):
        genome = space.sample(rng)
        graph = space.graph(genome)
        model = space.build(genome)
        assert [output.shape for output in model.outputs] == [(None, 3), (None, 2), (None, 2)]
        assert sorted(keras_io.from_keras(model).names) == sorted(graph.names)
    described = space.describe()
    assert described["output_units"] == [3, 2, 2] and json.dumps(described)


def two_headed(choices: Choices) -> Any:
    import keras

    assert choices.output_units == (2, 1)
    inputs = keras.Input(choices.input_shapes[0])
    body = keras.layers.Dense(choices.integer("width", 4, 8), "relu")(inputs)
    heads = [
        keras.layers.Dense(units, activation)(body)
        for units, activation in zip(choices.output_units, choices.output_activation, strict=True)
    ]
    return keras.Model(inputs, heads)


@pytest.mark.long
def test_a_search_of_a_function_with_two_heads(tmp_path: Path) -> None:
    import keras

    run = transfer_nas.search(
        TASK,
        space=two_headed,
        max_evals=6,
        epochs=2,
        population_size=3,
        sample_size=2,
        seed=1,
        retrain=1,
        output_dir=tmp_path / "run",
    )
    header = (tmp_path / "run/results.csv").read_text().splitlines()[0]
    assert "m:sign_accuracy,m:sign_auc,m:output_1_r2_score" in header
    assert len(run) == 6 and run.done.all()
    best = keras.saving.load_model(trained_model.finish(tmp_path / "run", TASK))
    assert [output.shape for output in best.outputs] == [(None, 2), (None, 1)]
    assert (tmp_path / "run" / "retrained.json").exists()
    said = json.loads((tmp_path / "run/run.json").read_text())["training"]
    assert said["losses"] == ["sparse_categorical_crossentropy", "mse"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outputs": (), "objective": None}, "output_units must be a whole number"),
        ({"loss": "mse"}, "outputs says what loss would say: leave those out"),
        ({"outputs": (3,)}, "outputs: expected a list of Output, found"),
        ({"objective": "sign_acuracy"}, "neither a metric.*; did you mean 'sign_accuracy'"),
        ({"outputs": (OUTPUTS[0], OUTPUTS[0])}, "outputs: expected different names"),
        (
            {"outputs": (*OUTPUTS, Output(1, loss="mse"))},
            "y_train must be a tuple of targets for 3 outputs, found 2",
        ),
        (
            {"outputs": (dataclasses.replace(OUTPUTS[0], units=1), OUTPUTS[1])},
            r"y_train\[0\]: labels 0..1, expected 0..0",
        ),
        ({"class_weight": "balanced"}, "class_weight: the targets are no classes"),
    ],
)
def test_says_what_makes_no_outputs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ApplicationError, match=f"application both: .*{message}"):
        _ = dataclasses.replace(TASK, **fields).data


def test_says_when_networks_have_other_outputs() -> None:
    def one(choices: Choices) -> Any:
        import keras

        inputs = keras.Input(choices.input_shapes[0])
        return keras.Model(inputs, keras.layers.Dense(choices.integer("width", 2, 3))(inputs))

    with pytest.raises(ApplicationError, match="have 1 outputs, and the application has 2"):
        TASK.space(one)
    with pytest.raises(ApplicationError, match="output: expected a loss for each output"):
        Output(2)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["outputs", "mixed", "steps"])
def test_heirs_with_frozen_layers_train_alike(kind: str) -> None:
    """What is left behind a frozen prefix has the losses, precision and callbacks of the whole."""
    import keras

    import cpp_store
    from transfer_nas.transfer import StoreTransfer

    told: list[int] = []

    class Steps(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            told.append(batch)

    task = dataclasses.replace(
        TASK,
        epochs=4,
        callbacks=[Steps] if kind == "steps" else (),
        precision="mixed_bfloat16" if kind == "mixed" else "float32",
    )
    space = task.space()
    genome = space.sample(np.random.default_rng(1))
    other = (*genome[:-2], (genome[-2] + 1) % 2, genome[-1])
    with cpp_store.embedded(memory="64MiB") as store:
        trainer = TransferTrainer(task, space, StoreTransfer("both", store))
        parent = trainer.evaluate(Job(0, genome, None, seed=1))
        count = len(told)
        child = trainer.evaluate(Job(1, other, 0, seed=2))
    assert parent.done and child.done, (parent.measures, child.measures)
    assert child.measures["layers_transferred"] > 1
    assert child.objective > 0.8
    assert (len(told) > count > 0) == (kind == "steps")
