"""Is there an order of concurrent calls in which each did what the sequential model says?

The search is that of Wing and Gong, *Testing and verifying concurrent objects* (JPDC 17, 1993),
with Lowe's memory of configurations already tried (*Testing for linearizability*, Concurrency and
Computation 29(4), 2017): a configuration is the set of calls that have taken effect and the state
that they led to, and no two ways that lead to the same one need both be followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

UNKNOWN = "unknown"
"""Result of a call whose caller died: it took effect at some time after it began, or never."""


@dataclass(frozen=True)
class Call:
    """One call: what was asked, what came back, and when.

    Attributes
    ----------
    who
        The caller; its calls do not overlap.
    what
        Name and arguments.
    result
        What came back, or `UNKNOWN`.
    begun, ended
        Times by a clock that all callers share; `ended` is infinite for an unknown result.
    """

    who: str
    what: tuple[Any, ...]
    result: Hashable
    begun: float
    ended: float = math.inf


State = Hashable
Step = Callable[[State, tuple[Any, ...]], tuple[Hashable, State]]
"""The sequential model: (state, call) -> (result, state after it)."""


def find_order(history: Iterable[Call], initial: State, step: Step) -> list[Call] | None:
    """Return an order of the calls that explains all results, or None if there is none.

    An order may put a call before another one unless the other one had ended before it began.
    Calls of unknown result may be missing from it.
    """
    calls = sorted(history, key=lambda call: call.begun)
    known = sum(1 << i for i, call in enumerate(calls) if call.result != UNKNOWN)
    tried: set[tuple[int, State]] = set()
    order: list[Call] = []

    def search(done: int, state: State) -> bool:
        if done & known == known:
            return True
        if (done, state) in tried:
            return False
        tried.add((done, state))
        left = [i for i in range(len(calls)) if not done >> i & 1]
        # Whatever comes next had begun before any of the others ended.
        horizon = min(calls[i].ended for i in left)
        for i in left:
            call = calls[i]
            if call.begun > horizon:
                break
            result, after = step(state, call.what)
            if call.result != UNKNOWN and call.result != result:
                continue
            order.append(call)
            if search(done | 1 << i, after):
                return True
            order.pop()
        return False

    return order if search(0, initial) else None


def describe(history: Iterable[Call]) -> str:
    """Return the calls for people, in the order in which they began, in microseconds."""
    calls = sorted(history, key=lambda call: call.begun)
    start = calls[0].begun if calls else 0.0
    return "\n".join(
        f"{(call.begun - start) / 1e3:9.1f} .. {(call.ended - start) / 1e3:9.1f}  {call.who:>4}: "
        f"{call.what} -> {call.result}"
        for call in calls
    )


# --- the store, one call after the other ---------------------------------------------------------

Content = tuple[tuple[str, int], ...]
"""Layer names and the number that fills each one's tensors."""


def store_step(state: State, what: tuple[Any, ...]) -> tuple[Hashable, State]:
    """Return what a store with these models does.

    The state is a frozenset of (model, content, score). Calls are ("put", model, content, score),
    ("read", model), ("contains", model), ("retire", model), ("list",) and ("match", layers), whose
    result is (model, content of the shared prefix) of the model that shares most of `layers`, of
    equals the one with the highest score; no two models that are put share a score.
    """
    assert isinstance(state, frozenset)
    models: dict[str, tuple[Content, float]] = {
        model: (content, score) for model, content, score in state
    }
    match what:
        case ("put", model, content, score):
            if model in models:
                return ("stored" if models[model] == (content, score) else "exists"), state
            return "stored", state | {(model, content, score)}
        case ("read", model):
            return (models[model][0] if model in models else "missing"), state
        case ("contains", model):
            return model in models, state
        case ("retire", model):
            if model not in models:
                return "missing", state
            return "retired", state - {(model, *models[model])}
        case ("list",):
            return frozenset(models), state
        case ("match", layers):
            shared = {model: _prefix(models[model][0], layers) for model in models}
            found = [model for model in models if shared[model]]
            if not found:
                return "nothing", state
            best = max(found, key=lambda model: (len(shared[model]), models[model][1]))
            return (best, shared[best]), state
    raise ValueError(what)


def independent(history: Sequence[Call]) -> list[list[Call]]:
    """Split a history of a store into parts that can be checked one by one.

    A history is linearizable if and only if each object's part of it is (Herlihy and Wing,
    *Linearizability*, TOPLAS 12(3), 1990, theorem 1). A model is an object of its own as long as
    nobody asks a question of all of them.
    """
    if any(call.what[0] in ("match", "list") for call in history):
        return [list(history)]
    parts: dict[str, list[Call]] = {}
    for call in history:
        parts.setdefault(call.what[1], []).append(call)
    return list(parts.values())


def _prefix(content: Content, layers: Sequence[str]) -> Content:
    """Content of the layers that both have: each layer requires the one before."""
    names = set(layers)
    return tuple(each for each in content if each[0] in names)
