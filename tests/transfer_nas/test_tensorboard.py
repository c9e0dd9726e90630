"""Event files: every scalar of every evaluation, readable, written without TensorFlow."""

import math
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from graph_meta import LayerGraph
from transfer_nas.job import DONE, Evaluation, Job
from transfer_nas.spaces import Gene, GeneSpace
from transfer_nas.tensorboard import EventFile
from transfer_nas.values import Value

pytest.importorskip("tensorboardX")

EVALUATIONS = [
    Evaluation(
        Job(i, (0,), None if i == 0 else 0),
        DONE,
        0.1 * i,
        {
            "layers": 4,
            "layers_transferred": i,
            "bytes_stored": 10,
            "bytes_whole_copy": 30,
            "train_seconds": 0.5,
            "timestamp_gather": float(i),
        },
    )
    for i in (0, 2, 1)
]


class One(GeneSpace):
    name = "one"
    genes = (Gene("units, first", (8, "relu")),)  # a job's genome is (0,): the value 8

    def graph(self, genome: Sequence[int]) -> LayerGraph:
        raise NotImplementedError


SPACE = One([(4,)], 2)
FAILURE = Evaluation.failure(Job(3, (0,)), "nan", {"timestamp_gather": 9.0})


def scalars(directory: Path) -> Iterator[tuple[str, int, float, float]]:
    """Yield tag, step, value and time of all scalars."""
    for file in sorted((directory / "tensorboard").glob("events.*")):
        for event in events(file):
            for value in event.summary.value:
                yield value.tag, event.step, round(value.simple_value, 4), event.wall_time


def events(file: Path) -> Iterator[Any]:
    """Yield the events of a file; see TensorFlow's TFRecord format."""
    from tensorboardX.proto.event_pb2 import Event

    content, at = file.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield Event.FromString(content[at + 12 : at + 12 + length])
        at += 16 + length


def test_scalars_go_over_evaluations(tmp_path: Path) -> None:
    with EventFile(tmp_path, 1000.0, SPACE) as file:
        for evaluation in (*EVALUATIONS, FAILURE):
            file.write(evaluation)
    found = list(scalars(tmp_path))
    by_tag = {tag: [f[1:3] for f in found if f[0] == tag] for tag, *_ in found}
    assert by_tag["objective/evaluation"] == [(1, 0.0), (2, 0.2), (3, 0.1)]
    assert by_tag["objective/best"] == [(1, 0.0), (2, 0.2), (3, 0.2)]
    assert by_tag["transfer/share_of_layers"] == [(2, 0.5), (3, 0.25)]
    assert by_tag["storage/stored_bytes"][:3] == [(1, 10.0), (2, 20.0), (3, 30.0)]
    assert by_tag["storage/whole_copies_bytes"][-1] == (4, 90.0)
    assert by_tag["search/failures"] == [(1, 0.0), (2, 0.0), (3, 0.0), (4, 1.0)]
    assert by_tag["seconds/train"] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert all(math.isclose(f[3], 1009.0) for f in found if f[1] == 4)


def test_a_later_process_goes_on_counting(tmp_path: Path) -> None:
    with EventFile(tmp_path, 0.0, SPACE, EVALUATIONS) as file:
        file.write(FAILURE)
    assert {step for _, step, *_ in scalars(tmp_path)} == {4}


def sessions(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the genes and the metrics of each session, as TensorBoard's HPARAMS reads them."""
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    found = {}
    for folder in (directory / "tensorboard").glob("job-*"):
        (file,) = folder.iterdir()
        of: dict[str, Any] = {}
        for event in events(file):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name != "hparams":
                    of[value.tag] = round(value.simple_value, 4)
                    continue
                data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                of |= {k: v.number_value for k, v in data.session_start_info.hparams.items()}
                names = [one.name.tag for one in data.experiment.metric_infos]
                of |= {"columns": names} if names else {}
        found[folder.name] = of
    return found


def test_each_evaluation_is_a_session_of_hparams(tmp_path: Path) -> None:
    with EventFile(tmp_path, 0.0, SPACE) as file:
        for evaluation in (*EVALUATIONS, FAILURE):
            file.write(evaluation)
    found = sessions(tmp_path)
    assert found.keys() == {"job-0", "job-1", "job-2", "job-3"}
    assert found["job-2"]["units, first"] == 8
    assert found["job-2"]["hparams/objective"] == 0.2
    assert found["job-2"]["hparams/train_seconds"] == 0.5
    assert "hparams/objective" in found["job-2"]["columns"]
    assert "hparams/objective" not in found["job-3"]  # it failed


def test_after_many_sessions_only_what_improves_gets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transfer_nas.tensorboard._SESSIONS", 1)
    with EventFile(tmp_path, 0.0, SPACE) as file:
        for evaluation in (*EVALUATIONS, FAILURE):
            file.write(evaluation)
    assert sessions(tmp_path).keys() == {"job-0", "job-2"}  # 0.0, then 0.2; 0.1 is no better


def test_tensorflow_stays_out(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from transfer_nas.tensorboard import EventFile\n"
        f"EventFile(Path({str(tmp_path)!r}), 0.0, None).__exit__(None, None, None)\n"
        "assert not {'tensorflow', 'torch', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_an_application_measures_is_a_scalar_too(tmp_path: Path) -> None:
    values = [Value("latency_ms", "ms", "min"), Value("word", kind=str)]
    measures = {"latency_ms": 2.5, "word": "x", "timestamp_gather": 1.0}
    with EventFile(tmp_path, 1000.0, SPACE, values=values) as file:
        file.write(Evaluation(Job(0, (0,)), DONE, 0.5, measures))
        file.write(FAILURE)
    found = {(tag, step): value for tag, step, value, _ in scalars(tmp_path)}
    assert found["values/latency_ms", 1] == 2.5
    assert not any("word" in tag for tag, _ in found) and ("values/latency_ms", 2) not in found
