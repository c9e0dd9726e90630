"""How long does it take to write models to memory, set-up excluded, synced after each task?

``mpiexec -n N python -m benchmarks.bench_writes_3 [--directory DIR] [--json FILE] [--quick]``: as
``bench_writes_2``, but files go to a file system in memory and Redis writes no log: everybody does
what the store does.
"""

from pathlib import Path

import figures
import writing

QUESTION = figures.Question(
    compares="the store, Redis, HDF5, safetensors, .npz and raw files, all in memory",
    seconds=90,
    quick_seconds=3,
    ranks=2,
    plots={
        "milliseconds a model, against its size in MB": r"(?P<series>.+)_ms_(?P<x>\d+)mb",
        "GB/s of all ranks, against a model's size in MB": r"(?P<series>.+)_gb_per_s_(?P<x>\d+)mb",
    },
)
TARGETS: figures.Targets = {
    "redis_over_store_16mb": ("at least", 2),
    "hdf5_over_store_16mb": ("at least", 1),
}
EXPERIMENT = writing.Experiment(
    name="writes_3",
    directory=Path("/dev/shm"),
    set_up=False,
    sync=True,
    redis_flags=["--save", "", "--appendonly", "no"],
)

if __name__ == "__main__":
    writing.script(EXPERIMENT, __doc__, TARGETS)
