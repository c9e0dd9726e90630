"""What a user can choose on the command line of `transfer_nas.evolve`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_nas.errors import InputError

TRANSFERS = ("store", "hdf5", "redis", "noop")
SEARCHES = ("evolution", "random", "halving")
POLICIES = ("freeze", "finetune", "freeze_then_finetune")
BEHIND_PREFIX = ("grow", "new")
SCHEDULES = ("constant", "cosine")

_ONLY_TRAINING = (
    "data",
    "search",
    "beta",
    "max_evals",
    "timeout",
    "max_wait",
    "epochs",
    "batch_size",
    "transfer",
    "replicas",
    "policy",
    "behind_prefix",
    "unfreeze_top",
    "child_epochs",
    "schedule",
    "shrink_perturb",
    "retrain",
    "evaluation_timeout",
    "isolate",
    "threads_per_rank",
    "log_validation",
    "tensorboard",
    "trace",
    "resume",
)
_POSITIVE = (
    "population_size",
    "sample_size",
    "max_evals",
    "epochs",
    "batch_size",
    "child_epochs",
    "threads_per_rank",
    "replicas",
)
_ONLY_GENERATION = ("initial_population_dir", "evolve_count")
_ONLY_EVOLUTION = ("sample_size", "beta")
# The files of --data may move: their digest may not change.
_MAY_CHANGE = (
    "data",
    "retrain",
    "max_evals",
    "timeout",
    "max_wait",
    "evaluation_timeout",
    "isolate",
    "threads_per_rank",
    "replicas",
    "log_validation",
    "tensorboard",
    "trace",
    "output_dir",
    "resume",
    "json",
)


@dataclass(frozen=True)
class Settings:
    """All settings of a run; `transfer_nas.evolve --help` says what they mean.

    A field that is None has a default that depends on something else, or no limit.
    """

    application: str = "none"
    data: str | None = None
    space: str | None = None
    search: str = "evolution"
    population_size: int = 32
    sample_size: int | None = None
    beta: float = 0.0
    max_evals: int | None = None
    timeout: float | None = None
    max_wait: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    transfer: str = "store"
    replicas: int | None = None
    policy: str = "freeze"
    behind_prefix: str = "grow"
    unfreeze_top: int = 0
    child_epochs: int | None = None
    schedule: str = "constant"
    shrink_perturb: float = 0.0
    retrain: int = 0
    evaluation_timeout: float | None = None
    isolate: bool = False
    threads_per_rank: int | None = None
    log_validation: bool = False
    tensorboard: bool = False
    trace: str | None = None
    output_dir: str | None = None
    initial_population_dir: str | None = None
    evolve_count: int = 0
    seed: int | None = None
    resume: bool = False
    json: bool = False

    @classmethod
    def checked(cls, given: dict[str, Any]) -> Settings:
        """Return the settings that a user gave, with the defaults of the others.

        Raises
        ------
        InputError
            A value makes no sense, or two do not go together; names the flag.
        """
        settings = cls(**given)
        for name in _POSITIVE:
            _at_least(name, getattr(settings, name), 1)
        for name in ("evolve_count", "seed", "unfreeze_top", "retrain"):
            _at_least(name, getattr(settings, name), 0)
        for name in ("timeout", "max_wait", "evaluation_timeout"):
            seconds = getattr(settings, name)
            if seconds is not None and not seconds > 0:
                raise InputError(f"--{name} must be positive, not {seconds:g}")
        if not math.isfinite(settings.beta):
            raise InputError(f"--beta must be a finite number, not {settings.beta:g}")
        _one_of("search", settings.search, SEARCHES)
        _one_of("transfer", settings.transfer, TRANSFERS)
        _one_of("policy", settings.policy, POLICIES)
        _one_of("behind_prefix", settings.behind_prefix, BEHIND_PREFIX)
        _one_of("schedule", settings.schedule, SCHEDULES)
        if not 0 <= settings.shrink_perturb < 1:
            raise InputError(f"--shrink_perturb must be in [0, 1), not {settings.shrink_perturb:g}")
        settings._check_company(given)
        sample = None
        if settings.search == "evolution":
            sample = settings.sample_size or max(1, settings.population_size // 4)
            if sample > settings.population_size and settings.initial_population_dir is None:
                raise InputError(
                    f"--sample_size {sample} is above --population_size {settings.population_size}"
                )
        if settings.resume and settings.output_dir is None:
            raise InputError("--resume needs --output_dir: which run?")
        max_evals = settings.max_evals
        if max_evals is None and settings.timeout is None:
            max_evals = 200
        return dataclasses.replace(settings, sample_size=sample, max_evals=max_evals)

    def _check_company(self, given: Collection[str]) -> None:
        """Raise InputError for a flag that was given and means nothing beside the others."""
        trains = self.application != "none"
        for name in _ONLY_GENERATION if trains else _ONLY_TRAINING:
            if name in given:
                raise InputError(
                    f"--{name} goes only with --application none, which trains nothing"
                    if trains
                    else f"--{name} needs an --application: without one nothing is trained"
                )
        if "population_size" in given and self.initial_population_dir is not None:
            raise InputError(
                "--population_size does not go with --initial_population_dir: the population "
                "keeps the size that it has there"
            )
        for name in _ONLY_EVOLUTION:
            if name in given and self.search != "evolution":
                raise InputError(f"--{name} goes only with --search evolution, not {self.search}")
        if "population_size" in given and self.search == "halving":
            raise InputError("--population_size does not go with --search halving, which has none")

    @property
    def isolated(self) -> bool:
        """Whether evaluations run in a child process of each rank."""
        return self.isolate or self.evaluation_timeout is not None

    @property
    def directory(self) -> Path:
        """The output directory; set by the time anything is written."""
        assert self.output_dir is not None
        return Path(self.output_dir)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON values."""
        return dataclasses.asdict(self)

    def fixed(self) -> dict[str, Any]:
        """Return those that a resumed run must keep."""
        return {name: value for name, value in self.to_dict().items() if name not in _MAY_CHANGE}


def _at_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise InputError(f"--{name} must be at least {least}, not {value}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        from transfer_nas.errors import near_misses

        raise InputError(f"unknown --{name} {value!r}; {near_misses(value, known)}")
