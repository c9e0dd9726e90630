"""What a user can choose on the command line of `transfer_nas.evolve`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpp_store.ranges import Range

from cpp_store import ranges
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
    "store_host",
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
RANGES: Mapping[str, Range] = {
    "population_size": ranges.COUNT,
    "sample_size": ranges.COUNT,
    "beta": Range(-1000, 1000, whole=False),
    "max_evals": Range(1, 10**9),
    "timeout": ranges.SECONDS,
    "max_wait": ranges.SECONDS,
    "epochs": ranges.EPOCHS,
    "batch_size": ranges.COUNT,
    "replicas": Range(1, 1000),
    "unfreeze_top": Range(0, 10**6),
    "child_epochs": ranges.EPOCHS,
    "shrink_perturb": Range(0, below=1, whole=False),
    "retrain": Range(0, 10**4),
    "evaluation_timeout": ranges.SECONDS,
    "threads_per_rank": ranges.THREADS,
    "evolve_count": Range(0, 10**9),
    "seed": ranges.SEED,
}
"""Of all settings that are numbers."""
_ONLY_GENERATION = ("initial_population_dir", "evolve_count")
_ONLY_STORE = ("replicas", "store_host")
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
    "store_host",
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
    store_host: str | None = None
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
        for name, numbers in RANGES.items():
            value = getattr(settings, name)
            if value is not None and (complaint := numbers.complaint(value)):
                raise InputError(f"--{name} {complaint}")
        _one_of("search", settings.search, SEARCHES)
        _one_of("transfer", settings.transfer, TRANSFERS)
        _one_of("policy", settings.policy, POLICIES)
        _one_of("behind_prefix", settings.behind_prefix, BEHIND_PREFIX)
        _one_of("schedule", settings.schedule, SCHEDULES)
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
        for name in _ONLY_STORE:
            if name in given and self.transfer != "store":
                raise InputError(f"--{name} goes only with --transfer store, not {self.transfer}")
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


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        from transfer_nas.errors import near_misses

        raise InputError(f"unknown --{name} {value!r}; {near_misses(value, known)}")
