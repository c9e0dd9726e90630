"""What a user can choose of a search, and of the generation of a population.

Each setting is named here, in the algorithm that it belongs to (`Algorithm.Settings`), and nowhere
else; see `transfer_nas.schema`.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from cpp_store.ranges import Range

from cpp_store import ranges
from transfer_nas import limits, objectives
from transfer_nas.algorithms import ALGORITHMS
from transfer_nas.errors import InputError, near_misses
from transfer_nas.plugins import Registry
from transfer_nas.ranks import Ranks
from transfer_nas.schema import check, setting, settings_of, split
from transfer_nas.searching import addresses as store_address
from transfer_nas.sharing import SHARINGS
from transfer_nas.stopping import STOPS

_PLUGINS: Mapping[str, Registry[Any]] = {"search": ALGORITHMS, "sharing": SHARINGS}
"""By the setting that names one."""
_TRANSFERS = ("store", "hdf5", "redis", "noop")  # named here, as they import what --help need not
_STORE = ("transfer", "store")
_EVALUATIONS = 200  # unless there is a limit of time


def _modules(package: str) -> str:
    """Return the modules of a package, each a space or an application, without importing any."""
    folder = Path(__file__).with_name(package)
    return ", ".join(sorted(path.stem for path in folder.glob("[!_]*.py")))


@dataclass(frozen=True)
class Common:
    """Settings of whatever writes a directory. None: what `Setting.otherwise` says."""

    application: str = setting(
        "none",
        f"what to search a network for: {_modules('applications')}; attn, combo, nt3 and uno as "
        "CANDLE publishes them: attn:published; or one's own as "
        "package.module:attribute or path/to/file.py:attribute; none: train nothing",
        metavar="NAME",
    )
    space: str | None = setting(
        None,
        f"architectures to choose from: {_modules('spaces')}, or one's own as "
        "package.module:attribute or path/to/file.py:attribute",
        otherwise="the application's",
        metavar="NAME",
    )
    output_dir: str | None = setting(
        None,
        "where everything is written; must not hold another run",
        otherwise="runs/APPLICATION-TIME",
        metavar="DIR",
        may_change=True,
    )
    seed: int | None = setting(
        None,
        "seed of everything random",
        otherwise="drawn, and written down",
        metavar="SEED",
        numbers=ranges.SEED,
    )
    json: bool = setting(False, "print the summary at the end as JSON", may_change=True)

    @property
    def directory(self) -> Path:
        """The output directory; set by the time anything is written."""
        assert self.output_dir is not None
        return Path(self.output_dir)


@dataclass(frozen=True)
class GenerationSettings(Common):
    """Of ``--application none``: a population without any training (`transfer_nas.population`)."""

    population_size: int = setting(
        32, "members of the population", metavar="P", numbers=ranges.COUNT
    )
    initial_population_dir: str | None = setting(
        None,
        "with --application none: output directory of an earlier run to start from",
        otherwise="a new population",
        metavar="DIR",
    )
    evolve_count: int = setting(
        0,
        "with --application none: mutations of members",
        metavar="M",
        numbers=Range(0, 10**9),
    )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Return what a user gave, with the defaults of the others; see `Settings.of`."""
        mine, others = split(given, cls)
        for name in others:
            raise InputError(f"--{name} needs an --application: without one nothing is trained")
        if {"population_size", "initial_population_dir"} <= mine.keys():
            raise InputError(
                "--population_size does not go with --initial_population_dir: the population "
                "keeps the size that it has there"
            )
        settings = cls(**mine)
        check(settings)
        return settings


@dataclass(frozen=True)
class Settings(Common):
    """Of a search.

    Attributes
    ----------
    of_search, of_sharing
        The algorithm's own, and those of the sharing: instances of their `Settings`.
    """

    data: str | None = setting(
        None,
        "directory with the files of the application's original data set, or "
        "synthetic:FEATURES to make data of that many features up",
        otherwise="what comes along",
        metavar="DIR",
        may_change=True,  # the files may move: their digest may not change
    )
    rows: str | None = setting(
        None,
        "the most rows to take for training, validation and testing, of each class alike",
        otherwise="the application's",
        metavar="TRAIN[,VALID[,TEST]]",
    )
    search: str = setting(
        "evolution",
        "evolution: aging evolution; random: random genomes; halving: random genomes for few "
        "epochs, the best third of them for three times as many, and so on up to --epochs; or "
        "one's own as package.module:Class or path/to/file.py:Class",
        metavar="ALGORITHM",
    )
    stop: str = setting(
        "none",
        "end trainings that promise little, whatever the algorithm. asha: after 1, 3, 9, ... "
        "epochs all but the best third; median: who was never as good as half of the others on "
        "average",
        metavar="NAME",
        choices=STOPS,
    )
    max_evals: int | None = setting(
        None,
        "evaluations, failures included",
        otherwise=f"{_EVALUATIONS}; no limit with --timeout",
        metavar="N",
        numbers=Range(1, 10**9),
        may_change=True,
    )
    timeout: float | None = setting(
        None,
        "end the search after that many seconds",
        otherwise="no limit",
        metavar="SECONDS",
        numbers=ranges.SECONDS,
        may_change=True,
    )
    max_wait: float | None = setting(
        None,
        "leave after that many seconds with exit code 75 if the search is not done: a queue "
        "with a wall-time limit starts it again with --resume",
        otherwise="no limit",
        metavar="SECONDS",
        numbers=ranges.SECONDS,
        may_change=True,
    )
    epochs: int | None = setting(
        None,
        "epochs a candidate",
        otherwise="the application's",
        metavar="N",
        numbers=ranges.EPOCHS,
    )
    batch_size: int | None = setting(
        None,
        "rows a step",
        otherwise="the application's",
        metavar="ROWS",
        numbers=ranges.COUNT,
    )
    initializer: str | None = setting(
        None,
        "what kernels of new layers start from: he_normal, lecun_uniform, orthogonal or another of "
        "Keras' initializers",
        otherwise="what the space says, Keras' glorot_uniform",
        metavar="NAME",
    )
    scale_learning_rate: bool = setting(
        False,
        "multiply the application's learning rate by --batch_size over the application's batch "
        "size (linear scaling)",
    )
    objectives: str | None = setting(
        None,
        "what to search for if that is several things at once: NAME:max or NAME:min for each, "
        "with commas; val_ and the metric's name, "
        f"{', '.join(objectives.COSTS)}, or what the application declares",
        otherwise="the application's objective",
        metavar="NAME:max|min,...",
        repeats=True,
    )
    latency_rows: int = setting(
        1, "rows of the batch whose latency is measured", metavar="ROWS", numbers=ranges.COUNT
    )
    limit: str | None = setting(
        None,
        "what no candidate may exceed, checked before anything is trained, in quotes: "
        f"'NAME<NUMBER' or 'NAME<=NUMBER', NAME one of {', '.join(limits.QUANTITIES)}; give it "
        "several times for several",
        otherwise="no limit",
        metavar="LIMIT",
        repeats=True,
    )
    transfer: str = setting(
        "store",
        f"how weights reach children: {', '.join(_TRANSFERS)}, or one's own as "
        "package.module:Class or path/to/file.py:Class",
        metavar="METHOD",
    )
    replicas: int | None = setting(
        None,
        "store servers that keep each model, so that the search loses nothing when one dies; "
        "as many servers are needed",
        otherwise="MODEL_REPLICAS, or 1",
        metavar="N",
        numbers=Range(1, 1000),
        may_change=True,
        only=_STORE,
    )
    store_host: str | None = setting(
        None,
        "where the job's own store servers listen, if it runs on several nodes: an interface "
        "(ib0) or a network (10.1.0.0/16) that all of them have, or the name or address of one of "
        "them",
        otherwise="the interface by which they reach each other",
        metavar="WHERE",
        may_change=True,
        only=_STORE,
    )
    store_memory: str | None = setting(
        None,
        "the most that tensors may take in the job's own store, on each node: bytes, or a number "
        "with a unit such as 50GiB",
        otherwise="a tenth of the node's memory",
        metavar="SIZE",
        may_change=True,
        only=_STORE,
    )
    store_provider: str | None = setting(
        None,
        "how the job's own store servers are reached, of libfabric's providers: ofi+tcp, "
        "ofi+verbs, ofi+cxi, ...",
        otherwise="ofi+tcp",
        metavar="PROVIDER",
        may_change=True,
        only=_STORE,
    )
    policy: str = setting(
        "freeze",
        "what happens to transferred layers: freeze, finetune, freeze_then_finetune. With "
        "freeze the store holds each of them once; with finetune every child is stored whole",
        metavar="POLICY",
        choices=("freeze", "finetune", "freeze_then_finetune"),
    )
    behind_prefix: str = setting(
        "grow",
        "how layers behind the shared prefix start, grow or new: from the parent's, widened or "
        "cut where the mutation asks for it, or from new weights",
        metavar="START",
        choices=("grow", "new"),
    )
    unfreeze_top: int = setting(
        0,
        "train the last K transferred layers again though the others are frozen",
        metavar="K",
        numbers=Range(0, 10**6),
    )
    child_epochs: int | None = setting(
        None,
        "epochs of a candidate all of whose parameters come from others; with a share of "
        "them, as many between N and --epochs",
        otherwise="a fifth of the epochs if layers grow, else all",
        metavar="N",
        numbers=ranges.EPOCHS,
    )
    schedule: str = setting(
        "constant",
        "learning rate over the epochs of a candidate: constant, cosine",
        metavar="NAME",
        choices=("constant", "cosine"),
    )
    shrink_perturb: float = setting(
        0.0,
        "mix so much of new weights into transferred ones that train, in [0, 1)",
        metavar="PART",
        numbers=Range(0, below=1, whole=False),
    )
    retrain: int = setting(
        0,
        "at the end train the best K for the application's epochs, from the weights that they "
        "have: retrained-JOB.keras and retrained.json",
        metavar="K",
        numbers=Range(0, 10**4),
        may_change=True,
    )
    evaluation_timeout: float | None = setting(
        None,
        "record an evaluation that takes longer as F_timeout and go on; implies --isolate",
        otherwise="no limit",
        metavar="SECONDS",
        numbers=ranges.SECONDS,
        may_change=True,
    )
    isolate: bool = setting(
        False,
        "evaluate in a child process of each rank: a crash, or being killed for its memory, "
        "is recorded as F_lost and the search goes on (default: in the rank itself)",
        may_change=True,
    )
    threads_per_rank: int | None = setting(
        None,
        "threads for training",
        otherwise="cores of the node / its ranks, at least 1",
        metavar="N",
        numbers=ranges.THREADS,
        may_change=True,
    )
    resume: bool = setting(
        False,
        "continue the run in --output_dir; settings not given are those it was started with",
        may_change=True,
    )
    log_validation: bool = setting(
        False,
        "validate after each epoch, for logs/rank-N.jsonl (see transfer_nas.logs); "
        "otherwise only after the last",
        may_change=True,
    )
    tensorboard: bool = setting(
        False, "write event files for TensorBoard to DIR/tensorboard", may_change=True
    )
    trace: str | None = setting(
        None,
        "record what each rank does when, for ui.perfetto.dev or chrome://tracing",
        otherwise="nothing is recorded",
        metavar="FILE",
        may_change=True,
    )
    sharing: str = setting(
        "prefix",
        "which stored model a candidate starts from. prefix: the one that shares its longest "
        "prefix, among equals its parent; parent: its parent only; named: that of --ancestor; "
        "none: new weights; or one's own as package.module:Class or path/to/file.py:Class",
        metavar="SHARING",
    )
    of_search: Any = None
    of_sharing: Any = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Return what a user gave, with the defaults of the others.

        Parameters
        ----------
        given
            Settings of this class and of the algorithm, by name.

        Raises
        ------
        InputError
            A value makes no sense, or two do not go together; names the flag.
        """
        plain = {n: os.fspath(v) if isinstance(v, os.PathLike) else v for n, v in given.items()}
        mine, others = split(plain, cls)
        settings = cls(**mine)
        check(settings)
        if settings.limit is not None:
            limits.parse(settings.limit)
        if settings.objectives is not None:
            objectives.parse(settings.objectives)
            if settings.stop != "none":
                raise InputError(
                    f"--stop {settings.stop} goes by the application's objective alone, and would "
                    "end small models that --objectives is after: leave one of them out"
                )
        for name, known in settings_of(cls).items():
            if known.only is not None and name in mine:
                which, value = known.only
                if (found := getattr(settings, which)) != value:
                    raise InputError(f"--{name} goes only with --{which} {value}, not {found}")
        if settings.transfer not in _TRANSFERS:
            from transfer_nas.transfer import TRANSFERS

            TRANSFERS.find(settings.transfer)
        of_plugins = {}
        for which, registry in _PLUGINS.items():
            kind = _settings_of_plugin(registry.find(getattr(settings, which)))
            own, others = split(others, kind)
            of_plugins[f"of_{which}"] = kind(**own)
            check(of_plugins[f"of_{which}"])
        for name in others:
            raise _misfit(name, settings)
        store_address.check(settings.store_memory, settings.store_provider)
        if settings.resume and settings.output_dir is None:
            raise InputError("--resume needs --output_dir: which run?")
        max_evals = settings.max_evals
        if max_evals is None and settings.timeout is None:
            max_evals = _EVALUATIONS
        return dataclasses.replace(settings, max_evals=max_evals, **of_plugins)

    @property
    def isolated(self) -> bool:
        """Whether evaluations run in a child process of each rank."""
        return self.isolate or self.evaluation_timeout is not None

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON values, those of plug-ins among them; see `of`."""
        return {
            name: getattr(part, name)
            for part in (self, self.of_search, self.of_sharing)
            for name in settings_of(type(part))
        }

    def fixed(self) -> dict[str, Any]:
        """Return those that a resumed run must keep."""
        return {
            name: getattr(part, name)
            for part in (self, self.of_search, self.of_sharing)
            for name, known in settings_of(type(part)).items()
            if not known.may_change
        }


S = TypeVar("S", bound=Common)


def kinds(chosen: Mapping[str, Any]) -> list[type[Any]]:
    """Return the dataclasses whose settings a command line may have.

    Parameters
    ----------
    chosen
        What a user said so far: of plug-ins of the user's own it has to be known which they are.

    Returns
    -------
    list of type
        Those of a search first, then those of its plug-ins, then those of all that are ours.
    """
    named = [
        registry.find(chosen[which]).Settings
        for which, registry in _PLUGINS.items()
        if isinstance(chosen.get(which), str)
    ]
    own = [each.Settings for registry in _PLUGINS.values() for each in registry.own]
    return [Settings, *named, *own, GenerationSettings]


def settled(given: Mapping[str, Any]) -> Settings | GenerationSettings:
    """Return what a user gave as settings of a search, or of a generation; see `Settings.of`."""
    if given.get("application", "none") == "none":
        return GenerationSettings.of(given)
    searching = {name for kind in kinds(given)[:-1] for name in settings_of(kind)}
    for name in given:
        if name in settings_of(GenerationSettings) and name not in searching:
            raise InputError(f"--{name} goes only with --application none, which trains nothing")
    return Settings.of(given)


def with_drawn(chosen: S, ranks: Ranks) -> S:
    """Choose in rank 0, for all, the seed and the directory that a user left open; collective."""
    stem, _, form = chosen.application.partition(":")
    name = f"{stem}-{form}" if form and stem.isidentifier() else form or stem
    drawn = {
        "seed": int.from_bytes(os.urandom(4), "little"),
        "output_dir": f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}",
    }
    drawn = ranks.share(drawn)[0]
    return dataclasses.replace(
        chosen,
        seed=drawn["seed"] if chosen.seed is None else chosen.seed,
        output_dir=chosen.output_dir or drawn["output_dir"],
    )


def _settings_of_plugin(plugin: type[Any]) -> type[Any]:
    """Return the settings of a plug-in; raises InputError for one that a search has anyway."""
    kind: type[Any] = plugin.Settings
    for name in settings_of(kind).keys() & settings_of(Settings).keys():
        raise InputError(
            f"{plugin.__name__} brings a setting {name!r}, which every search has: give it "
            "another name"
        )
    return kind


def _misfit(name: str, settings: Settings) -> InputError:
    """Return the error for a setting that no plug-in of a search has."""
    for which, registry in _PLUGINS.items():
        owners = [each.name for each in registry.own if name in settings_of(each.Settings)]
        if owners:
            company = f"--{which} {' or '.join(owners)}"
            return InputError(f"--{name} goes only with {company}, not {getattr(settings, which)}")
    known = (each for kind in kinds(vars(settings)) for each in settings_of(kind))
    return InputError(f"no setting {name!r}; {near_misses(name, known)}")
