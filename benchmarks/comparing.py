"""What changed between two runs of the benchmarks, beyond noise."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

MACHINE = ("processor", "cores", "kernel", "python", "copy_gb_per_s", "tcp_stream_gb_per_s")
LEAST_CHANGE = 0.05  # a smaller one is not worth a line, repeated or not


def show(before: Mapping[str, Any], after: Mapping[str, Any], noise: float) -> None:
    """Print a line for each figure that changed.

    Where both runs have repetitions (``run --repeat N``), a figure changed if their ranges do not
    overlap and the medians differ by a twentieth. Where they have none, if it changed by `noise`.
    """
    for fact in MACHINE:
        a, b = before["machine"].get(fact), after["machine"].get(fact)
        if isinstance(a, float) and isinstance(b, float) and max(a, b) < 1.15 * min(a, b):
            continue
        if a != b:
            print(f"the machines differ: {fact} {a} -> {b}")
    if before["quick"] != after["quick"]:
        print("one run was --quick and the other was not: expect differences")
    changed = same = 0
    for name, new in after["questions"].items():
        old = before["questions"].get(name)
        if old is None:
            print(f"{name}: new question")
            continue
        for key in sorted(old["samples"].keys() | new["samples"].keys()):
            if key not in old["samples"] or key not in new["samples"]:
                print(f"{name:<22} {key:<44} {'new' if key in new['samples'] else 'gone'}")
            elif line := difference(
                key, old["samples"][key], new["samples"][key], noise, new["targets"].get(key)
            ):
                print(f"{name:<22} {line}")
                changed += 1
            else:
                same += 1
    for name in before["questions"].keys() - after["questions"].keys():
        print(f"{name}: not in the second run")
    print(f"{changed} figures changed beyond noise, {same} did not")


def difference(
    key: str,
    old: Sequence[float],
    new: Sequence[float],
    noise: float,
    target: Sequence[Any] | None = None,
) -> str:
    """Describe how a figure changed; nothing if that may be noise."""
    a, b = statistics.median(old), statistics.median(new)
    if min(len(old), len(new)) > 1:
        apart = max(old) < min(new) or max(new) < min(old)
        limit = LEAST_CHANGE
    else:
        apart, limit = True, noise
    change = abs(b - a) / max(abs(a), abs(b)) if a != b else 0.0
    if not apart or change < limit:
        return ""
    factor = f"{b / a:.2f} times" if a else "from nothing"
    better = _higher_is_better(key, target)
    word = "changed" if better is None else "better" if (b > a) == better else "WORSE"
    return f"{key:<44} {a:>10.4g} -> {b:<10.4g} {factor:<13} {word}"


def _higher_is_better(key: str, target: Sequence[Any] | None) -> bool | None:
    """Return whether more is better: as the target says, or else the unit; None: who knows."""
    if target is not None:
        return bool(target[0] == "at least")
    # The unit may be followed by what was measured: "hdf5_ms_of_25".
    words = key.split("_")
    if "over" in words or "per_s" in key or "per_cpu_s" in key:
        return True
    if not {"s", "ms", "us", "seconds", "bytes"}.isdisjoint(words):
        return False
    return None
