"""Sharing: which stored model a candidate starts from. Storing is `transfer_nas.transfer`'s."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from transfer_nas.plugins import Registry
from transfer_nas.schema import setting

if TYPE_CHECKING:
    from graph_meta import LayerGraph
    from transfer_nas.job import Job
    from transfer_nas.models import Models
    from transfer_nas.transfer import Inheritance


class Sharing(ABC):
    """Decides which stored model a candidate starts from.

    A subclass sets `name` and implements `ancestor`; what users can choose of it are fields
    (`transfer_nas.schema.setting`) of its dataclass `Settings`, which its constructor takes as
    keywords. Each process makes one; `ancestor` may be called from any of its threads, one at a
    time.

    Attributes
    ----------
    grows
        Whether layers behind the prefix may start from the parent's (``--behind_prefix``).
    """

    name: ClassVar[str]
    grows: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Settings:
        """What users can choose: nothing."""

    @classmethod
    def create(cls, settings: Any) -> Self:
        """Make one as a user chose it: `settings` is of this class's `Settings`."""
        return cls(**vars(settings))

    @abstractmethod
    def ancestor(self, job: Job, graph: LayerGraph, models: Models) -> Inheritance | None:
        """Return what a candidate inherits, to be closed by the caller; None: nothing.

        Parameters
        ----------
        job
            The candidate; `Job.parent` is the job whose architecture was mutated.
        graph
            Its layers.
        models
            Those that are stored; `Models.id_of` names the model of a job.

        Raises
        ------
        TransferError
            As `models` does: the candidate goes without.
        """


class LongestPrefix(Sharing):
    """From the model that shares the longest prefix; among equals from the parent.

    Where the prefix is the parent's, the layers behind it, which grow from the parent, fit it.
    """

    name = "prefix"

    def ancestor(self, job: Job, graph: LayerGraph, models: Models) -> Inheritance | None:
        """Ask for the best match, and for what is shared with the parent."""
        best = models.best_match(graph)
        if best is None or job.parent is None:
            return best
        parent = models.id_of(job.parent)
        if best.ancestor == parent:
            return best
        try:
            own = models.best_match(graph, only=parent)
        except BaseException:
            best.close()
            raise
        if own is None:
            return best
        worse, better = (own, best) if len(own.layers) < len(best.layers) else (best, own)
        worse.close()
        return better


class ParentOnly(Sharing):
    """From the parent and nobody else: what a search does that has no index of prefixes."""

    name = "parent"

    def ancestor(self, job: Job, graph: LayerGraph, models: Models) -> Inheritance | None:
        """Ask for what is shared with the parent."""
        return None if job.parent is None else models.best_match(graph, models.id_of(job.parent))


class NamedModel(Sharing):
    """From one model that the user names, whatever the candidate."""

    name = "named"

    @dataclass(frozen=True)
    class Settings:
        """What users can choose."""

        ancestor: str = setting(
            "",
            "with --sharing named: id of the model that every candidate starts from",
            metavar="MODEL",
        )

        def __post_init__(self) -> None:
            if not self.ancestor:
                from transfer_nas.errors import InputError

                raise InputError("--sharing named needs --ancestor: which model?")

    def __init__(self, ancestor: str) -> None:
        self._model = ancestor

    def ancestor(self, job: Job, graph: LayerGraph, models: Models) -> Inheritance | None:
        """Ask for what is shared with that model."""
        del job
        return models.best_match(graph, only=self._model)


class NoSharing(Sharing):
    """From new weights; models are stored nevertheless."""

    name = "none"
    grows = False

    def ancestor(self, job: Job, graph: LayerGraph, models: Models) -> None:
        """Return nothing."""


SHARINGS = Registry(
    "--sharing",
    Sharing,  # type: ignore[type-abstract]
    "transfer_nas.sharing",
    (LongestPrefix, ParentOnly, NamedModel, NoSharing),
)
