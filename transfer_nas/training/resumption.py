"""A long training goes on at its epoch, though its process was killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from transfer_nas.checkpoint import Checkpoint
from transfer_nas.job import Measure
from transfer_nas.training._base import Training
from transfer_nas.training.policy import Phase
from transfer_nas.transfer import Tensors

SAVE_EVERY = 10.0
"""Seconds between two savings; a training that takes less is never saved."""

_TASK, _EPOCHS = "task", "epochs"


class Resumption:
    """What is saved of one evaluation, and what an earlier process has saved of it.

    Under one key the task, once: the inherited weights and the phases of the training. An ancestor
    may be gone by the time when it is taken up, and the candidate could not be the same without
    it. Under another, after an epoch, the state of the training.

    Parameters
    ----------
    section
        Where; None: nothing is saved, and nothing found.
    job, engine
        The job as JSON values, and the name of the engine that trains it, with the program if it
        is not the usual one. What was saved for another architecture, or by another engine, is not
        taken.
    every
        Seconds between two savings.

    Attributes
    ----------
    task
        Phases, inherited tensors and measures of the training that was begun; None: none was.
    ran
        Epochs of the phases that are over, as `directory` or `after` was told.
    """

    def __init__(
        self,
        section: Checkpoint | None,
        job: Mapping[str, Any],
        engine: str,
        every: float = SAVE_EVERY,
    ) -> None:
        self._section = section
        self._job = {**job, "engine": engine}
        self._every = every
        self._saved_at = time.monotonic()
        self._begun = False
        self._next = (0, 0)
        self.ran = 0
        self.task: tuple[list[Phase], Tensors, dict[str, Measure]] | None = None
        if section is not None:
            self._find(section)

    def begin(
        self, phases: Sequence[Phase], inherited: Tensors, measures: Mapping[str, Measure]
    ) -> None:
        """Take note of the task, to be saved with the first epoch that is."""
        self._phases, self._inherited, self._measures = phases, inherited, measures

    def first_epoch(
        self,
        phase: int,
        training: Training,
        rng: np.random.Generator,
        set_more: Callable[[Mapping[str, Any], Sequence[npt.NDArray[np.generic]]], None],
    ) -> int:
        """Return the epoch at which a phase begins.

        Puts `training` and `rng` into its state, and gives `set_more` what `after` had of `more`.
        """
        if phase != self._next[0] or self._next[1] == 0:
            return 0
        own = len(self._state) - self._more_arrays
        training.restore(list(self._state[:own]))
        set_more(self._more, self._state[own:])
        rng.bit_generator.state = self._random
        return self._next[1]

    def is_over(self, phase: int) -> bool:
        """Whether a phase was left behind before the process was killed."""
        return phase < self._next[0]

    def after(
        self,
        phase: int,
        epochs: int,
        training: Training,
        rng: np.random.Generator,
        *,
        ran: int,
        more: Callable[[], tuple[Mapping[str, Any], Sequence[npt.NDArray[np.generic]]]],
    ) -> None:
        """Save, if it is time, that `epochs` epochs of a phase are done, and `ran` before it.

        What `more` returns, JSON values and arrays, is saved with them.
        """
        now = time.monotonic()
        if self._section is None or now - self._saved_at < self._every:
            return
        if not self._begun:
            self._save_task(self._section)
            self._begun = True
        also, arrays = more()
        values = {
            "phase": phase,
            "epochs": epochs,
            "ran": ran,
            "random": rng.bit_generator.state,
            "more": [also, len(arrays)],
        }
        self._section.save(_EPOCHS, values, [*training.state(), *arrays])
        self._saved_at = time.monotonic()

    def directory(
        self, phase: int, ran: int, arrays: Sequence[npt.NDArray[np.generic]]
    ) -> Path | None:
        """Return where a program of the user's saves a phase; None: nothing is saved.

        Saves what the phase starts from, so that it begins with the same when it is taken up.

        Parameters
        ----------
        phase
            Its number.
        ran
            Epochs of the phases before.
        arrays
            All weights at its start.
        """
        if self._section is None:
            return None
        if self._next != (phase, 0) or self.task is None:
            self._save_task(self._section)
            self._section.save(_EPOCHS, {"phase": phase, "epochs": 0, "ran": ran}, arrays)
        return self._section.directory(f"fit-{phase}")

    def start_of(self, phase: int) -> Sequence[npt.NDArray[np.generic]] | None:
        """Return all weights at the start of a phase, if `directory` saved them."""
        if self.task is None or self._next != (phase, 0):
            return None
        return self._state

    def _save_task(self, section: Checkpoint) -> None:
        values = {
            "job": self._job,
            "phases": [[sorted(phase.frozen), phase.epochs] for phase in self._phases],
            "inherited": [[name, len(arrays)] for name, arrays in self._inherited.items()],
            "measures": dict(self._measures),
        }
        arrays = [np.asarray(array) for tensors in self._inherited.values() for array in tensors]
        section.save(_TASK, values, arrays)

    def _find(self, section: Checkpoint) -> None:
        task, epochs = section.load(_TASK), section.load(_EPOCHS)
        if task is None or epochs is None or task.values["job"] != self._job:
            return
        phases = [Phase(frozenset(frozen), count) for frozen, count in task.values["phases"]]
        arrays = iter(task.arrays)
        inherited = {
            name: [next(arrays) for _ in range(count)] for name, count in task.values["inherited"]
        }
        self.task = (phases, inherited, dict(task.values["measures"]))
        self._begun = True
        self._next = (epochs.values["phase"], epochs.values["epochs"])
        self._random: Mapping[str, Any] = epochs.values.get("random", {})
        self.ran = epochs.values.get("ran", 0)
        self._more, self._more_arrays = epochs.values.get("more", ({}, 0))
        self._state = epochs.arrays
