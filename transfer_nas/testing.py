"""For tests of one's own: what every search space must hold to."""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from transfer_nas.spaces import Space


def check_space(space: Space, samples: int = 20, seed: int = 0) -> None:
    """Check what a search relies on, with random architectures, their children and two threads.

    Parameters
    ----------
    space
        Which.
    samples
        Architectures that are drawn.
    seed
        Of everything random.

    Raises
    ------
    AssertionError
        The space breaks its contract; says how.
    """
    same = [space.sample(np.random.default_rng(seed)) for _ in range(2)]
    assert same[0] == same[1], "sample: the same random numbers give two architectures"
    rng = np.random.default_rng(seed)
    known = [space.sample(rng) for _ in range(samples)]
    expected = []
    for architecture in known:
        before = json.dumps(space.to_json(architecture), allow_nan=False)
        read = space.from_json(json.loads(before))
        assert read == architecture, f"from_json(to_json(a)) is {read!r}, and a is {architecture!r}"
        values = space.values(architecture)
        assert list(values) == [*space.columns], f"values are {values}, columns {space.columns}"
        child = space.mutate(architecture, np.random.default_rng(seed))
        graph = space.graph(architecture)
        after = json.dumps(space.to_json(architecture))
        assert after == before, f"the architecture {before} was changed to {after}"
        assert child != architecture, f"mutate returns the parent: {child!r}"
        assert space.graph(child) != graph, f"{child!r} is the same network as {architecture!r}"
        expected.append((before, child, graph))
    barrier = threading.Barrier(2)

    def use() -> None:  # as rank 0's manager, which mutates, and its worker, which builds
        barrier.wait()
        for architecture, (text, child, graph) in zip(known, expected, strict=True):
            wrong = f"two threads disagree about {text}"
            assert space.mutate(architecture, np.random.default_rng(seed)) == child, wrong
            assert space.graph(architecture) == graph, wrong
            assert space.from_json(json.loads(text)) == architecture, wrong
            assert json.dumps(space.to_json(architecture)) == text, wrong
            assert list(space.values(architecture)) == [*space.columns], wrong

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(use) for _ in range(2)]:
                done.result()
    finally:
        sys.setswitchinterval(interval)
