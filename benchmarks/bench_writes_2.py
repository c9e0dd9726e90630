"""How long does it take to write models to a file system, set-up excluded, synced after each task?

``mpiexec -n N python -m benchmarks.bench_writes_2 [--directory DIR] [--json FILE] [--quick]``: as
``bench_writes``, but the time starts when the method is open, and a model counts as written when
the medium has it: files and their directory are synced, Redis syncs its log before it answers. The
store keeps everything in memory: it is done when the model is visible, and a crash of its server
loses it.
"""

import tempfile
from pathlib import Path

import figures
import writing

QUESTION = figures.Question(
    compares="the store (in memory) with Redis, HDF5, safetensors, .npz and raw files on a disk",
    seconds=150,
    quick_seconds=5,
    ranks=2,
    plots={
        "milliseconds a model, against its size in MB": r"(?P<series>.+)_ms_(?P<x>\d+)mb",
        "GB/s of all ranks, against a model's size in MB": r"(?P<series>.+)_gb_per_s_(?P<x>\d+)mb",
    },
)
TARGETS: figures.Targets = {
    "redis_over_store_16mb": ("at least", 2),
    "hdf5_over_store_16mb": ("at least", 2),
}
EXPERIMENT = writing.Experiment(
    name="writes_2",
    directory=Path(tempfile.gettempdir()),
    set_up=False,
    sync=True,
    redis_flags=["--save", "", "--appendonly", "yes", "--appendfsync", "always"],
)

if __name__ == "__main__":
    writing.script(EXPERIMENT, __doc__, TARGETS)
