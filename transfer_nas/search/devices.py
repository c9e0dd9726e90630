"""Which cores and which GPU a rank works on. Decided before the backend of Keras is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


def default_threads(local_size: int) -> int:
    """Return a rank's share of the cores that the job may use on this node; at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // local_size)


def pin_threads(
    threads: int | None, local_size: int, environment: MutableMapping[str, str] = os.environ
) -> None:
    """Keep the ranks of a node from fighting for its cores.

    Parameters
    ----------
    threads
        What the user wants; None: what the environment says, or else this rank's share.
    local_size
        Number of ranks on this node.
    environment
        Is changed: OpenMP, TensorFlow and those who use them look there.
    """
    for variable in _THREAD_VARIABLES:
        if threads is not None:
            environment[variable] = str(threads)
        else:
            environment.setdefault(variable, str(default_threads(local_size)))


def choose_gpu(
    local_rank: int,
    local_size: int,
    environment: MutableMapping[str, str] = os.environ,
    devices: Path = Path("/dev"),
) -> str | None:
    """Give this rank one of the GPUs that the job may use on this node: ranks go round them.

    Ranks that share one are told not to take all of its memory at once.

    Parameters
    ----------
    local_rank, local_size
        Number of this rank among those of the node, and how many there are.
    environment
        Is changed: ``CUDA_VISIBLE_DEVICES`` names what the job may use, and then the choice.
    devices
        Where to look for GPUs if it does not.

    Returns
    -------
    str or None
        The choice, as CUDA names it; None: there is no GPU, and nothing was changed.
    """
    if "CUDA_VISIBLE_DEVICES" in environment:
        # CUDA ignores what comes after the first entry that is no device.
        visible = [name.strip() for name in environment["CUDA_VISIBLE_DEVICES"].split(",")]
        if not visible[0] or visible[0].startswith("-"):
            return None
    else:
        visible = [str(i) for i in range(len(list(devices.glob("nvidia[0-9]*"))))]
        if not visible:
            return None
    chosen = visible[local_rank % len(visible)]
    environment["CUDA_VISIBLE_DEVICES"] = chosen
    if local_size > len(visible):
        environment.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return chosen
