"""How fast is the store, beside memory, one TCP stream, Redis, Ray and files?

``python benchmarks/bench_store.py [--json FILE] [--quick] [--directory DIR]`` moves the same bytes
by every contender (store_contenders.py), turn by turn, in one run, on warm memory; figures are of
medians over at least seven repetitions (three with --quick). Unless a key says otherwise, a model
is 64 MB in 50 tensors, and keys of other sizes end in ``_SIZE_COUNT``. ``X_over_Y`` is how many
times as fast as Y X is.

``embedded`` is the store in process; ``shm`` and ``ofi_tcp`` are one server in another process,
reached through shared memory and through libfabric. Where shared memory cannot be had, there are no
``shm`` keys. Views are looked at five times in a row. Files are not synced, and read from the
system's cache. ``redis`` is read as bytes objects, which are not copied into arrays; ``mp_shm``
makes a block for each model.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import figures
import store_clients
import store_fairness
import store_growth
from store_contenders import Contender, Memcpy, StoreContender, Stream, open_peers
from store_servers import KIB, MIB, SHARED_MEMORY, ServerProcess, connect, server

import cpp_store

QUESTION = figures.Question(
    compares="the store (in process, shared memory, libfabric) with NumPy's copy, one TCP stream, "
    "Redis, Ray, Keras' files, safetensors and multiprocessing.shared_memory",
    seconds=600,
    quick_seconds=60,
    plots={
        "GB/s written in 50 tensors, against the size in KB": r"(?P<series>.+)_write_gb_per_s"
        r"_(?P<x>\d+)kb_50",
        "GB/s read in 50 tensors, against the size in KB": r"(?P<series>.+)_read_gb_per_s"
        r"_(?P<x>\d+)kb_50",
        "microseconds to see 50 tensors, against the size in KB": r"(?P<series>.+)_view_us"
        r"_(?P<x>\d+)kb_50",
        "GB/s of several clients together": r"(?P<series>.+)_gb_per_s_(?P<x>\d+)_clients",
    },
)
TARGETS: figures.Targets = {
    "shm_write_over_memcpy": ("at least", 0.7),
    "shm_view_us": ("at most", 150),
    "shm_copy_read_over_memcpy": ("at least", 0.7),
    "ofi_tcp_write_over_stream": ("at least", 0.8),
    "ofi_tcp_read_over_stream": ("at least", 0.8),
    "shm_rtt_us": ("at most", 15),
    "ofi_tcp_rtt_us": ("at most", 50),
    "ofi_tcp_rtt_p99_us": ("at most", 500),
    "small_put_per_s": ("at least", 20_000),
    "write_over_redis": ("at least", 5),
    "read_over_redis": ("at least", 5),
    "write_over_hdf5": ("at least", 20),
    "read_over_hdf5": ("at least", 20),
    "write_over_ray": ("at least", 2),
    "view_over_ray_get": ("at least", 2),
    "scaling_4_clients_read": ("at least", 1.6),
    "idle_cpu_percent": ("at most", 1),
    "first_put_over_warm": ("at least", 0.8),
    "put_at_100k_over_empty": ("at least", 0.9),
    "memory_after_retire_over_start": ("at most", 1.05),
    "fairness_4kb_read_p99_ms": ("at most", 2),
    "embedded_write_over_memcpy": ("at least", 0.7),
    "embedded_copy_read_over_memcpy": ("at least", 0.7),
    "embedded_view_us": ("at most", 150),
}
SIZES = {
    "4KB": 4 * KIB,
    "64KB": 64 * KIB,
    "1MB": MIB,
    "16MB": 16 * MIB,
    "64MB": 64 * MIB,
    "256MB": 256 * MIB,
    "1GB": 1024 * MIB,
}
COUNTS = (1, 50, 1000)
USUAL = ("64MB", 50)
# Figure -> (contender, what it does) of the numerator, and of the denominator.
RATIOS = {
    "shm_write_over_memcpy": (("shm", "write"), ("memcpy", "write")),
    "shm_copy_read_over_memcpy": (("shm", "read"), ("memcpy", "read")),
    "ofi_tcp_write_over_stream": (("ofi_tcp", "write"), ("stream", "write")),
    "ofi_tcp_read_over_stream": (("ofi_tcp", "read"), ("stream", "read")),
    "write_over_redis": (("ofi_tcp", "write"), ("redis", "write")),
    "read_over_redis": (("ofi_tcp", "read"), ("redis", "read")),
    "write_over_hdf5": (("shm", "write"), ("keras", "write")),
    "read_over_hdf5": (("shm", "read"), ("keras", "read")),
    "write_over_ray": (("shm", "write"), ("ray", "write")),
    "view_over_ray_get": (("shm", "view"), ("ray", "view")),
    "embedded_write_over_memcpy": (("embedded", "write"), ("memcpy", "write")),
    "embedded_copy_read_over_memcpy": (("embedded", "read"), ("memcpy", "read")),
}

Times = dict[tuple[str, str], float]
"""(contender, "write" | "read" | "view") -> seconds."""


def main() -> int:
    parser = figures.parser(__doc__, "fewer sizes and repetitions")
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        default=Path(tempfile.gettempdir()),
        help="on a disk, for safetensors files",
    )
    given = parser.parse_args()
    results: dict[str, float] = {}
    with ExitStack() as stack:
        process = stack.enter_context(server(6144 * MIB, touched=256 * MIB))
        stores = open_stores(stack, process)
        bulk(stack, stores, given.directory, given.quick, results)
        several(process, stores, given.quick, results)
        latencies(process, stores, given.quick, results)
        results |= store_fairness.measure(
            process.address,
            bulk_bytes=SIZES["256MB" if given.quick else "1GB"],
            seconds=1.0 if given.quick else 5.0,
        )
    filling(SHARED_MEMORY if "shm" in stores else "ofi_tcp", given.quick, results)

    print()
    figures.show({key: results[key] for key in TARGETS if key in results}, TARGETS)
    for key in TARGETS:
        if key not in results and not (given.quick and "100k" in key):
            print(f"{key:<52}  not measured")
    if given.json:
        figures.write(given.json, "store", results, quick=given.quick)
    return 0


def open_stores(stack: ExitStack, process: ServerProcess) -> dict[str, cpp_store.Store]:
    """Connect by every transport that there is."""
    stores = {
        "embedded": cpp_store.embedded(memory="4GiB"),
        "shm": connect(process.address, SHARED_MEMORY),
        "ofi_tcp": connect(process.address, "ofi_tcp"),
    }
    opened = {name: store for name, store in stores.items() if store is not None}
    if "shm" not in opened:
        figures.lacks("shm", "the server cannot be reached through shared memory from here")
    for store in opened.values():
        stack.callback(store.close)
    return opened


# --- bytes ---------------------------------------------------------------------------------------


def bulk(
    stack: ExitStack,
    stores: dict[str, cpp_store.Store],
    directory: Path,
    quick: bool,
    results: dict[str, float],
) -> None:
    """Move models of all sizes by all contenders."""
    peers = open_peers(stack, directory)
    stream = Stream()
    stack.callback(stream.close)
    own = [Memcpy(), stream, *(StoreContender(name, store) for name, store in stores.items())]
    sizes = ["4KB", "1MB", "64MB"] if quick else list(SIZES)
    for size in sizes:
        for count in COUNTS:
            total = SIZES[size]
            if total // count < 64 or (quick and count != 50):
                continue
            # Peers take their time: large models only as most are cut.
            beside = [
                peer
                for peer in peers
                if total <= peer.largest and (total <= SIZES["64MB"] or count == USUAL[1])
            ]
            times = measure([*own, *beside], total, count, repetitions=3 if quick else 7)
            report(size, count, times, results)


def measure(contenders: list[Contender], total: int, count: int, repetitions: int) -> Times:
    """Let contenders take turns; return medians."""
    for each in contenders:
        each.prepare(total, count)
    times: dict[tuple[str, str], list[float]] = {}
    for repetition in range(repetitions + 1):  # the first one warms up
        for each in figures.in_turn(contenders, repetition):
            taken = {"write": each.write(), "read": each.read(), "view": look(each)}
            each.forget()
            for what, spent in taken.items():
                if repetition and spent is not None:
                    times.setdefault((each.name, what), []).append(spent)
    return {
        (each.name, what): statistics.median(times[each.name, what])
        for each in contenders
        for what in ("write", "read", "view")
        if (each.name, what) in times
    }


def look(contender: Contender) -> float | None:
    """Return the median of some looks in a row; of one where each is a copy over a network."""
    first = contender.view()
    if first is None or first > 2e-3:
        return first
    return statistics.median([first, *(contender.view() or first for _ in range(4))])


def report(size: str, count: int, times: Times, results: dict[str, float]) -> None:
    """Print a table of the contenders, and keep the figures."""
    total = SIZES[size]
    suffix = "" if (size, count) == USUAL else f"_{size}_{count}"
    place = f"{total // KIB}kb_{count}"
    print(f"\n{size} in {count:<6}{'write GB/s':>24} {'read GB/s':>10} {'view us':>10}")
    for name in dict.fromkeys(name for name, _ in times):
        cells = []
        for what in ("write", "read"):
            rate = total / times[name, what] / 1e9 if (name, what) in times else None
            cells.append("" if rate is None else f"{rate:.3g}")
            if rate is not None:
                results[f"{name}_{what}_gb_per_s_{place}"] = rate
        if (name, "view") in times:
            results[f"{name}_view_us_{place}"] = times[name, "view"] * 1e6
            cells.append(f"{times[name, 'view'] * 1e6:.1f}")
        print(f"    {name:<20} {cells[0]:>14} {cells[1]:>10} {cells[2] if cells[2:] else '':>10}")
    for key, (one, other) in RATIOS.items():
        if one in times and other in times:
            results[key + suffix] = times[other] / times[one]
    for name in ("shm", "embedded"):
        if (name, "view") in times:
            results[f"{name}_view_us{suffix}"] = times[name, "view"] * 1e6


# --- calls, clients, models ----------------------------------------------------------------------


def several(
    process: ServerProcess,
    stores: dict[str, cpp_store.Store],
    quick: bool,
    results: dict[str, float],
) -> None:
    """Measure 1, 2 and 4 client processes at a time."""
    for transport in ("shm", "ofi_tcp"):
        if transport not in stores:
            continue
        rates = store_clients.rates(
            process.address,
            transport,
            SIZES[USUAL[0]],
            USUAL[1],
            repetitions=3 if quick else 7,
            span=0.2 if quick else 0.5,
        )
        print(f"\n{transport}, GB/s of several clients together")
        for what in ("read", "write"):
            each = [rates[f"{what}_{count}"] for count in store_clients.CLIENTS]
            print(f"    {what:<10}" + "".join(f"{rate:>10.3g}" for rate in each))
            for count, rate in zip(store_clients.CLIENTS, each, strict=True):
                results[f"{transport}_{what}_gb_per_s_{count}_clients"] = rate
        scaling = rates["read_4"] / rates["read_1"]
        results["scaling_4_clients_read" + ("" if transport == "shm" else "_ofi_tcp")] = scaling


def latencies(
    process: ServerProcess,
    stores: dict[str, cpp_store.Store],
    quick: bool,
    results: dict[str, float],
) -> None:
    """Measure empty calls, small puts, and a server that nobody asks anything."""
    remote = {name: store for name, store in stores.items() if name != "embedded"}
    for name, times in store_growth.round_trips(remote, 2_000 if quick else 20_000).items():
        results[f"{name}_rtt_us"] = statistics.median(times) * 1e6
        results[f"{name}_rtt_p99_us"] = times[len(times) * 99 // 100] * 1e6
    for name, store in stores.items():
        rate = store_growth.small_puts(store, 3 if quick else 7, 500 if quick else 2_000)
        results["small_put_per_s" + ("" if name == "shm" else f"_{name}")] = rate
    results["idle_cpu_percent"] = store_growth.idle_cpu_percent(process, 2 if quick else 10)


def filling(transport: str, quick: bool, results: dict[str, float]) -> None:
    """Measure servers of their own: from their first put on, and filled with many models."""
    if transport == SHARED_MEMORY:
        results["first_put_over_warm"] = store_growth.first_put_over_warm(
            transport, 3 if quick else 7
        )
    models = 5_000 if quick else 100_000
    found = store_growth.growth(models, transport)
    results[f"put_at_{models // 1000}k_over_empty"] = found.pop("put_over_empty")
    results.update(found)


if __name__ == "__main__":
    sys.exit(main())
