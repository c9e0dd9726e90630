"""Which cores and which GPU a rank works on. Decided before the backend of Keras is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

from cpp_store.ranges import THREADS

from transfer_nas.errors import InputError

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
_OVERRIDING = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
"""What libraries of linear algebra believe more than the first of those above."""


def default_threads(local_size: int) -> int:
    """Return a rank's share of the cores that the job may use on this node; at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // local_size)


def pin_threads(
    threads: int | None, local_size: int, environment: MutableMapping[str, str] = os.environ
) -> int:
    """Keep the ranks of a node from fighting for its cores.

    Parameters
    ----------
    threads
        What the user wants; None: what the environment says, or else this rank's share.
    local_size
        Number of ranks on this node.
    environment
        Is changed: OpenMP, TensorFlow and those who use them look there when they are loaded.

    Returns
    -------
    int
        Threads for OpenMP and linear algebra, for `limit_threads`.

    Raises
    ------
    InputError
        A variable of the environment is no number of threads.
    """
    for variable in _THREAD_VARIABLES:
        if threads is not None:
            environment[variable] = str(threads)
        else:
            environment.setdefault(variable, str(default_threads(local_size)))
    if threads is not None:
        environment.update({name: str(threads) for name in _OVERRIDING if name in environment})
    numbers = [_threads(name, environment[name]) for name in _THREAD_VARIABLES]
    return numbers[0]


def limit_threads(threads: int) -> None:
    """Let libraries of linear algebra that are loaded already, such as NumPy's, use so many.

    They have read the environment when they were loaded, which was before anybody chose.
    """
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)


def _threads(variable: str, text: str) -> int:
    try:
        number = int(text.partition(",")[0])  # OpenMP's are of nested regions
    except ValueError:
        raise InputError(f"{variable} must be a whole number, not {text!r}") from None
    if complaint := THREADS.complaint(number):
        raise InputError(f"{variable} {complaint}")
    return number


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
