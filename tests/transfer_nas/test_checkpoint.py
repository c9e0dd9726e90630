"""Nested sections that survive being killed, and say what was damaged."""

from pathlib import Path

import numpy as np
import pytest

from transfer_nas.checkpoint import Checkpoint

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.array(7, np.int64),
    np.array([True, False]),
    np.empty((0, 3), np.uint8),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def checkpoint(tmp_path: Path, said: list[str]) -> Checkpoint:
    return Checkpoint(tmp_path / "top", said.append)


def epoch(checkpoint: Checkpoint) -> int | None:
    saved = checkpoint.load("epochs")
    return None if saved is None else saved.values["epoch"]


def test_what_was_saved_comes_back(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert checkpoint.load("epochs") is None
    checkpoint.save("epochs", {"epoch": 3, "rng": {"state": 2**127}, "name": "ä"}, ARRAYS)
    saved = checkpoint.load("epochs")
    assert saved is not None
    assert saved.values == {"epoch": 3, "rng": {"state": 2**127}, "name": "ä"}
    for before, after in zip(ARRAYS, saved.arrays, strict=True):
        assert before.dtype == after.dtype and before.shape == after.shape
        assert np.array_equal(before, after) and after.flags.writeable
    assert not list(tmp_path.rglob("*.new"))


def test_dtypes_that_numpy_does_not_know(checkpoint: Checkpoint) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    halves = np.array([0.5, -2.0], ml_dtypes.bfloat16)
    checkpoint.save("epochs", {}, [halves])
    saved = checkpoint.load("epochs")
    assert saved is not None
    assert saved.arrays[0].dtype == halves.dtype
    assert saved.arrays[0].astype(float).tolist() == [0.5, -2.0]


def test_sections_do_not_touch_each_other(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save("epochs", {"epoch": 0})
    for name in ("7", "8"):
        checkpoint.section(name).save("epochs", {"epoch": int(name)})
        checkpoint.section(name).section("inner").save("epochs", {"epoch": 10 * int(name)})
    checkpoint.section("7").clear()
    assert epoch(checkpoint) == 0
    assert epoch(checkpoint.section("7")) is None
    assert epoch(checkpoint.section("7").section("inner")) is None
    assert epoch(checkpoint.section("8")) == 8
    assert epoch(checkpoint.section("8").section("inner")) == 80
    checkpoint.clear()
    checkpoint.clear()  # nothing is there any more
    assert not (tmp_path / "top").exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", "a.previous", "a b"])
def test_names_that_are_none(checkpoint: Checkpoint, name: str) -> None:
    with pytest.raises(ValueError, match="as a name"):
        checkpoint.section(name)
    with pytest.raises(ValueError, match="as a name"):
        checkpoint.save(name, {})


def test_every_damage_leads_to_the_one_before_it_and_is_said(
    checkpoint: Checkpoint, tmp_path: Path, said: list[str]
) -> None:
    checkpoint.save("epochs", {"epoch": 1}, [np.zeros(3)])
    checkpoint.save("epochs", {"epoch": 2}, [np.ones(3)])
    path = tmp_path / "top" / "epochs"
    whole = path.read_bytes()
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        for damaged in (bytes(flipped), whole[:position]):
            path.write_bytes(damaged)
            said.clear()
            assert epoch(checkpoint) == 1, position
            assert len(said) == 2
            assert "epochs is damaged" in said[0] and "the one before it" in said[1]
    path.with_name("epochs.previous").write_bytes(b"\x00")
    said.clear()
    assert epoch(checkpoint) is None
    assert "begins anew" in said[-1]


def test_killed_at_any_step_of_saving(
    checkpoint: Checkpoint, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    checkpoint.save("epochs", {"epoch": 1})
    replace = Path.replace
    for survived, expected in [(0, 1), (1, 1), (2, 2)]:
        left = iter(range(survived))

        def kill(self: Path, target: Path) -> Path:
            if next(left, None) is None:  # noqa: B023 - it is used within this turn
                raise Killed
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", kill)
            try:
                checkpoint.save("epochs", {"epoch": 2}, [np.zeros(9)])
            except Killed:
                assert survived < 2
        assert epoch(checkpoint) == expected
    assert said == []
