"""What a rank evaluates with: the application, the servers of the store, the trainer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cpp_store
from transfer_nas import applications, limits, transfer
from transfer_nas.algorithms import ALGORITHMS
from transfer_nas.applications import Application, SpaceChoice
from transfer_nas.checkpoint import Checkpoint
from transfer_nas.errors import InputError
from transfer_nas.logs import Log
from transfer_nas.objectives import Objectives
from transfer_nas.ranks import Ranks, Refused, together
from transfer_nas.schema import settings_of
from transfer_nas.searching import addresses as store_address
from transfer_nas.searching.evaluation import checkpoints_path
from transfer_nas.settings import Settings
from transfer_nas.sharing import SHARINGS
from transfer_nas.spaces import GeneSpace, Space, with_initializer
from transfer_nas.trainer import TransferTrainer
from transfer_nas.training.policy import Policy
from transfer_nas.transfer import TransferMethod

_CONNECT_TIMEOUT = 10.0  # seconds
_DIFFERS = (
    "other data than in {}: expected load() to return the same in each process; a split or a "
    "shuffle needs a seed of its own, such as train_test_split(…, random_state=0)"
)
_GENES_DIFFER = (
    "other genes than in rank 0: expected the same choices with the same values in the same order "
    "in each process; give values as a list, not a set, and draw none without a seed"
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Servers:
    """The weight store of a job.

    Attributes
    ----------
    store
        This process's way to it; None: the transfer method needs none.
    addresses, key
        How another process finds it; without addresses it is in this process.
    memory
        Bytes that it may take on this node; None: others have said so.
    """

    store: cpp_store.Store | None = None
    addresses: Sequence[str] = ()
    key: str = ""
    memory: int | None = None


def resolve(
    settings: Settings,
    application: Application | None = None,
    space: SpaceChoice | None = None,
) -> tuple[Application, Space]:
    """Return what is searched, and where; raises InputError.

    Parameters
    ----------
    settings
        Their names.
    application, space
        Instead of what is named; None: that.
    """
    if application is None:
        application = applications.resolve(settings.application, settings.data)
    elif settings.data is not None:
        application = application.with_data(settings.data)
    if settings.rows is not None:
        application = application.with_rows(settings.rows)
    if settings.scale_learning_rate:
        application = application.with_scaled_rate(settings.batch_size)
    _ = application.data  # wrong data shall be known before anything is written
    found = application.space(settings.space if space is None else space)
    if settings.initializer is not None:
        found = with_initializer(found, settings.initializer)
    if settings.limit is not None:
        found = limits.within(found, limits.parse(settings.limit))
    _ = objectives(settings, application)
    if settings.of_search is not None:  # what an algorithm needs of a space shall be known, too
        ALGORITHMS.find(settings.search).create(found, 0, settings.of_search, 1)
    return application, found


def objectives(settings: Settings, application: Application) -> Objectives | None:
    """Return what is searched for if that is several things; None: the application's objective.

    Raises InputError for names that the application does not know.
    """
    if settings.objectives is None:
        return None
    return Objectives.of(settings.objectives, application)


def method(settings: Settings, application: Application, servers: Servers) -> TransferMethod:
    """Make the transfer method; its `close` is the caller's."""
    return transfer.get(
        settings.transfer,
        application.namespace,
        directory=settings.directory / "models",
        store=servers.store,
    )


def trainer(
    settings: Settings,
    application: Application,
    space: Space,
    method: TransferMethod,
    run: str,
    rank: int,
) -> TransferTrainer:
    """Make the trainer of this process; imports no Keras yet."""
    after = objectives(settings, application)
    measures_latency = after is not None and "latency_ms" in [each.measure for each in after]
    return TransferTrainer(
        application,
        space,
        method,
        policy=Policy(
            settings.policy,
            grow=settings.behind_prefix == "grow",
            unfreeze_top=settings.unfreeze_top,
            child_epochs=settings.child_epochs,
            schedule=settings.schedule,
            shrink_perturb=settings.shrink_perturb,
        ),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        run=run,
        sharing=SHARINGS.find(settings.sharing).create(settings.of_sharing),
        checkpoint=Checkpoint(checkpoints_path(settings.directory), _log.warning),
        log=Log(settings.directory / "logs" / f"rank-{rank}.jsonl"),
        log_validation=settings.log_validation,
        latency_rows=settings.latency_rows if measures_latency else None,
    )


def isolated_trainer(
    settings: Mapping[str, Any],
    addresses: Sequence[str],
    key: str,
    namespace: str,
    run: str,
    rank: int,
) -> TransferTrainer:
    """Make the trainer of a child process (`isolation.InChild`).

    Without servers that answer it goes without transfer: the rank that started this process has
    reached them, so they are gone.
    """
    chosen = Settings.of(settings)
    application, space = resolve(chosen)
    if application.namespace != namespace:
        differs = _DIFFERS.format("the rank that started it")
        raise InputError(f"application {application.name}: the evaluating process: {differs}")
    # Seconds that no evaluation shall be charged with; the best models are saved with it, whatever
    # trains them.
    import keras  # noqa: F401

    servers = Servers()
    if addresses:
        try:
            store = _open(chosen, addresses, key)
            servers = Servers(store, addresses, key)
        except cpp_store.StoreError as error:
            _log.warning("transfer failed, the search goes on without transfer: %s", error)
            chosen = dataclasses.replace(chosen, transfer="noop")
    return trainer(chosen, application, space, method(chosen, application, servers), run, rank)


@contextlib.contextmanager
def servers(settings: Settings, ranks: Ranks) -> Iterator[Servers]:
    """Connect to the servers of `MODEL_SERVERS`, or to the job's own; collective.

    Without `MODEL_SERVERS`, the first rank of each node serves those who know a random key: this
    job. A job of one process needs no server.
    """
    if settings.transfer != "store":
        yield Servers()
        return
    addresses = os.environ.get("MODEL_SERVERS", "").split()
    for name in ("store_host", "store_memory", "store_provider"):
        if addresses and getattr(settings, name) is not None:
            raise Refused(
                f"--{name} is of the job's own store servers, and MODEL_SERVERS names others: "
                "leave one of them out"
            )
    with contextlib.ExitStack() as stack:
        if not addresses and ranks.size == 1 and not settings.isolated:
            _enough(settings, 0)
            memory = store_address.memory_of(settings.store_memory)
            yield Servers(stack.enter_context(cpp_store.embedded(memory=memory)), memory=memory)
            return
        own, key, granted = not addresses, "", None
        if own:
            key = ranks.share(secrets.token_hex(16))[0]
            granted = together(ranks, lambda: store_address.memory_of(settings.store_memory))
            addresses = _own_servers(settings, ranks, key, stack)
        together(ranks, lambda: _enough(settings, len(addresses)))
        client = together(ranks, lambda: _connect(settings, ranks, addresses, key, own=own))
        with client:
            try:
                yield Servers(client, addresses, key, granted)
            except Refused:
                ranks.share(None)
                raise
            ranks.share(None)  # nobody stops a server while others still use it


def same_task(application: Application, space: Space, ranks: Ranks) -> None:
    """Raise InputError in all ranks if their data or spaces differ; collective.

    Genomes travel as positions of values: another order of values is another network.
    """
    said: Any = space.describe()
    if isinstance(space, GeneSpace):
        said = [(gene.name, [repr(value) for value in gene.values]) for gene in space.genes]
    found = ranks.share([application.namespace, json.dumps(said)])
    for part, (what, differs) in enumerate(
        (
            (f"application {application.name}", _DIFFERS.format("rank 0")),
            (f"space {space.name}", _GENES_DIFFER),
        )
    ):
        different = [str(rank) for rank, said in enumerate(found) if said[part] != found[0][part]]
        if different:
            which = f"rank{'s' * (len(different) > 1)} {', '.join(different)}"
            raise Refused(f"{what}: {which}: {differs}")


def _own_servers(
    settings: Settings, ranks: Ranks, key: str, stack: contextlib.ExitStack
) -> list[str]:
    """Start a server on each node; return their addresses. Collective."""
    host: str | None = store_address.LOOPBACK
    if ranks.local_size < ranks.size:
        first = ranks.local_rank == 0
        mine = together(
            ranks, lambda: store_address.candidates(settings.store_host) if first else None
        )
        everybody = ranks.share(mine)
        if not any(everybody):
            raise Refused(f"--store_host {settings.store_host}: no node of the job has it")
        others = [theirs for rank, theirs in enumerate(everybody) if theirs and rank != ranks.rank]
        host = store_address.choose(mine, others) if mine else None
    server = together(ranks, lambda: None if host is None else _serve(settings, ranks, key, host))
    if server is not None:
        stack.enter_context(server)
    return [a for a in ranks.share(server and server.address) if a is not None]


def _serve(settings: Settings, ranks: Ranks, key: str, host: str) -> cpp_store.Server | None:
    if ranks.local_rank != 0:
        return None
    if ranks.local_size < ranks.size and store_address.only_here(host):
        raise InputError(
            f"the job has several nodes, and only its own reaches a store server at {host}: name "
            "an interface or a network that all of them share with --store_host"
        )
    try:
        return cpp_store.serve(
            store_address.uri(host, settings.store_provider),
            memory=store_address.memory_of(settings.store_memory),
            key=key,
        )
    except cpp_store.StoreError as error:
        raise InputError(f"cannot start a store server on {host}: {error}") from error


def _enough(settings: Settings, servers: int) -> None:
    """Raise InputError if there are fewer servers than copies that the user wants."""
    wanted, name = settings.replicas, "--replicas"
    if wanted is None:
        name, text = "MODEL_REPLICAS", os.environ.get("MODEL_REPLICAS") or "1"
        try:
            wanted = int(text)
        except ValueError:
            raise InputError(f"{name} must be a whole number, not {text!r}") from None
        numbers = settings_of(Settings)["replicas"].numbers
        if numbers is not None and (complaint := numbers.complaint(wanted)):
            raise InputError(f"{name} {complaint}")
    if wanted > max(1, servers):
        what = f"has {servers}, one a node" if servers else "of one process keeps models in itself"
        raise InputError(
            f"{name} {wanted} needs {wanted} store servers, and a job that starts its own {what}: "
            "start servers and name them in MODEL_SERVERS"
            if not os.environ.get("MODEL_SERVERS", "").split()
            else f"{name} {wanted} needs {wanted} store servers, and MODEL_SERVERS names {servers}"
        )


def _open(settings: Settings, addresses: Sequence[str], key: str) -> cpp_store.Store:
    return cpp_store.connect(
        addresses, timeout=_CONNECT_TIMEOUT, key=key, replicas=settings.replicas
    )


def _connect(
    settings: Settings, ranks: Ranks, addresses: Sequence[str], key: str, *, own: bool
) -> cpp_store.Store:
    try:
        return _open(settings, addresses, key)
    except cpp_store.StoreError as error:
        if own:
            raise store_address.unreachable(ranks.rank, addresses, error) from error
        raise InputError(f"MODEL_SERVERS: {error}") from error
