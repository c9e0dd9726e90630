"""How long does it take to write models to a file system, set-up included, no sync per task?

``mpiexec -n N python -m benchmarks.bench_writes [--directory DIR] [--json FILE] [--quick]``: every
rank opens the method (its import and its connection) and writes its models, 50 layers each, at the
same time as the others. Nobody waits for the disk: files stay in the operating system's cache,
Redis appends to its log and syncs it once a second. The store keeps everything in memory, and says
so.

Keys: ``METHOD_ms_SIZEmb`` a model, ``METHOD_gb_per_s_SIZEmb`` of all ranks together, and
``METHOD_over_store_SIZEmb``, how many times as long as in the store; medians over repetitions,
methods taking turns, each as long as its slowest rank.
"""

import tempfile
from pathlib import Path

import figures
import writing

QUESTION = figures.Question(
    compares="the store, Redis, HDF5, safetensors, .npz and raw files in a directory",
    seconds=90,
    quick_seconds=4,
    ranks=2,
    plots={
        "milliseconds a model, against its size in MB": r"(?P<series>.+)_ms_(?P<x>\d+)mb",
        "GB/s of all ranks, against a model's size in MB": r"(?P<series>.+)_gb_per_s_(?P<x>\d+)mb",
    },
)
# DStore (ICS'23) reports 2 to 30 times as fast as file- and Redis-based stores.
TARGETS: figures.Targets = {
    "redis_over_store_16mb": ("at least", 2),
    "hdf5_over_store_16mb": ("at least", 2),
}
EXPERIMENT = writing.Experiment(
    name="writes",
    directory=Path(tempfile.gettempdir()),
    set_up=True,
    sync=False,
    redis_flags=["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"],
)

if __name__ == "__main__":
    writing.script(EXPERIMENT, __doc__, TARGETS)
