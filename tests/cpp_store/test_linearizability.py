"""Random concurrent calls, checked against the sequential model; and the checker itself."""

import itertools
import math
import random
from collections.abc import Hashable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cpp_store

from . import histories
from .conftest import Pool
from .linearizability import UNKNOWN, Call, describe, find_order, independent, store_step

EMPTY: frozenset[Any] = frozenset()
ONE, TWO = (("a", 1),), (("a", 2),)


def calls(*said: tuple[str, float, float, tuple[Any, ...], Hashable]) -> list[Call]:
    return [Call(who, what, result, begun, ended) for who, begun, ended, what, result in said]


GOOD = {
    "nothing": [],
    "one after the other": calls(
        ("p", 0, 1, ("put", "m", ONE, 0), "stored"),
        ("p", 2, 3, ("read", "m"), ONE),
        ("q", 4, 5, ("retire", "m"), "retired"),
        ("p", 6, 7, ("read", "m"), "missing"),
    ),
    "a read beside a put sees it or not": calls(
        ("p", 0, 9, ("put", "m", ONE, 0), "stored"),
        ("q", 1, 2, ("read", "m"), "missing"),
        ("q", 3, 4, ("read", "m"), ONE),
    ),
    "two puts of one model": calls(
        ("p", 0, 9, ("put", "m", ONE, 0), "exists"),
        ("q", 1, 8, ("put", "m", TWO, 0), "stored"),
        ("q", 9, 10, ("put", "m", TWO, 0), "stored"),
    ),
    "only the later order explains it": calls(
        ("p", 0, 10, ("put", "m", ONE, 0), "stored"),
        ("q", 0, 10, ("retire", "m"), "missing"),
        ("r", 0, 10, ("read", "m"), ONE),
    ),
    "a put of a client that died took effect": calls(
        ("p", 0, math.inf, ("put", "m", ONE, 0), UNKNOWN),
        ("q", 5, 6, ("read", "m"), "missing"),
        ("q", 7, 8, ("read", "m"), ONE),
    ),
    "or never": calls(
        ("p", 0, math.inf, ("put", "m", ONE, 0), UNKNOWN),
        ("q", 5, 6, ("list",), frozenset()),
    ),
    "the best match changes": calls(
        ("p", 0, 1, ("put", "m", (("a", 1), ("b", 1)), 1), "stored"),
        ("q", 2, 9, ("put", "n", (("a", 2), ("b", 2)), 2), "stored"),
        ("p", 3, 4, ("match", ("a", "b")), ("m", (("a", 1), ("b", 1)))),
        ("p", 5, 6, ("match", ("a", "c")), ("n", (("a", 2),))),
    ),
}

BAD = {
    "a read of what was never put": calls(("p", 0, 1, ("read", "m"), ONE)),
    "a stale read": calls(
        ("p", 0, 1, ("put", "m", ONE, 0), "stored"),
        ("p", 2, 3, ("retire", "m"), "retired"),
        ("q", 4, 5, ("read", "m"), ONE),
    ),
    "a lost put": calls(
        ("p", 0, 1, ("put", "m", ONE, 0), "stored"),
        ("q", 2, 3, ("read", "m"), "missing"),
    ),
    "a read that went back in time": calls(
        ("p", 0, 9, ("put", "m", ONE, 0), "stored"),
        ("q", 1, 2, ("read", "m"), ONE),
        ("q", 3, 4, ("read", "m"), "missing"),
    ),
    "two callers that disagree about the order": calls(
        ("p", 0, 9, ("put", "m", ONE, 0), "stored"),
        ("p", 10, 11, ("retire", "m"), "retired"),
        ("q", 1, 12, ("put", "m", TWO, 0), "stored"),
        ("q", 13, 14, ("read", "m"), ONE),
    ),
    "a torn read": calls(
        ("p", 0, 1, ("put", "m", (("a", 1), ("b", 1)), 0), "stored"),
        ("q", 0, 2, ("read", "m"), (("a", 1), ("b", 7))),
    ),
    "two puts that both won": calls(
        ("p", 0, 9, ("put", "m", ONE, 0), "stored"),
        ("q", 0, 9, ("put", "m", TWO, 0), "stored"),
    ),
    "two retirements that both won": calls(
        ("p", 0, 1, ("put", "m", ONE, 0), "stored"),
        ("p", 2, 9, ("retire", "m"), "retired"),
        ("q", 2, 9, ("retire", "m"), "retired"),
    ),
    "a best match that had been retired": calls(
        ("p", 0, 1, ("put", "m", ONE, 0), "stored"),
        ("p", 2, 3, ("retire", "m"), "retired"),
        ("q", 4, 5, ("match", ("a",)), ("m", ONE)),
    ),
    "not the best match": calls(
        ("p", 0, 1, ("put", "m", ONE, 1), "stored"),
        ("p", 2, 3, ("put", "n", TWO, 2), "stored"),
        ("q", 4, 5, ("match", ("a",)), ("m", ONE)),
    ),
    "a list of two moments": calls(
        ("p", 0, 1, ("put", "m", ONE, 0), "stored"),
        ("p", 2, 3, ("retire", "m"), "retired"),
        ("p", 4, 5, ("put", "n", TWO, 1), "stored"),
        ("q", 0, 9, ("list",), frozenset({"m", "n"})),
    ),
    "a dead client's put that came and went": calls(
        ("p", 0, math.inf, ("put", "m", ONE, 0), UNKNOWN),
        ("q", 1, 2, ("read", "m"), ONE),
        ("q", 3, 4, ("read", "m"), "missing"),
    ),
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD.keys())
def test_accepts_what_some_order_explains(history: list[Call]) -> None:
    order = find_order(history, EMPTY, store_step)
    assert order is not None
    state: Hashable = EMPTY
    for call in order:
        result, state = store_step(state, call.what)
        assert call.result in (result, UNKNOWN)
    assert all(find_order(part, EMPTY, store_step) is not None for part in independent(history))


@pytest.mark.parametrize("history", BAD.values(), ids=BAD.keys())
def test_refuses_what_no_order_explains(history: list[Call]) -> None:
    assert find_order(history, EMPTY, store_step) is None
    assert any(find_order(part, EMPTY, store_step) is None for part in independent(history))


def explained_by_brute_force(history: Sequence[Call]) -> bool:
    """Try every order of the calls and every choice of those whose caller died."""
    known = [call for call in history if call.result != UNKNOWN]
    unknown = [call for call in history if call.result == UNKNOWN]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *chosen]):
                if any(b.ended < a.begun for a, b in itertools.combinations(order, 2)):
                    continue
                state: Hashable = EMPTY
                for call in order:
                    result, state = store_step(state, call.what)
                    if call.result not in (result, UNKNOWN):
                        break
                else:
                    return True
    return False


@st.composite
def small_histories(draw: st.DrawFn) -> list[Call]:
    """Calls with results as they may or may not come out, two models, overlapping at random."""
    history = []
    for who in range(draw(st.integers(1, 5))):
        begun = draw(st.integers(0, 8))
        model = draw(st.sampled_from(["m", "n"]))
        content = draw(st.sampled_from([ONE, TWO]))
        what, results = draw(
            st.sampled_from(
                [
                    (("put", model, content, content[0][1]), ["stored", "exists"]),
                    (("read", model), [ONE, TWO, "missing"]),
                    (("retire", model), ["retired", "missing"]),
                    (("match", ("a",)), [("m", ONE), ("n", TWO), "nothing"]),
                ]
            )
        )
        result = draw(st.sampled_from([*results, *([UNKNOWN] if what[0] == "put" else [])]))
        ended = math.inf if result is UNKNOWN else begun + draw(st.integers(1, 6))
        history.append(Call(str(who), what, result, begun, ended))
    return history


@settings(max_examples=300, deadline=None)
@given(history=small_histories())
def test_agrees_with_trying_every_order(history: list[Call]) -> None:
    explained = explained_by_brute_force(history)
    assert (find_order(history, EMPTY, store_step) is not None) == explained
    parts = [find_order(part, EMPTY, store_step) is not None for part in independent(history)]
    assert all(parts) == explained


# --- the store -----------------------------------------------------------------------------------

HISTORIES = 60
SEED = 20_240


def check(recorded: dict[str, list[Call]]) -> None:
    """Every history has an order that explains it."""
    assert len(recorded) == HISTORIES
    for name, history in recorded.items():
        assert len(history) >= histories.CALLERS
        for part in independent(history):
            assert find_order(part, EMPTY, store_step) is not None, f"{name}:\n{describe(part)}"


def scripts(*mixes: str) -> list[histories.Script]:
    rng = random.Random(SEED)
    return [histories.write(f"h{i}", mixes[i % len(mixes)], rng) for i in range(HISTORIES)]


def test_threads_on_a_store_in_process() -> None:
    with cpp_store.embedded(memory="256MiB") as store:
        check(histories.run_threads(lambda: store, scripts("models", "matches", "lineage")))
        assert store.verify() == []


@pytest.mark.parametrize("same_host", [True, False], ids=["shm", "tcp"])
def test_threads_with_one_connection(pool: Pool, same_host: bool) -> None:
    group = pool.take(1)
    with cpp_store.connect(group.addresses, same_host=same_host) as store:
        check(histories.run_threads(lambda: store, scripts("models", "matches", "lineage")))
    pool.give_back(1, group)


@pytest.mark.parametrize("same_host", [True, False], ids=["shm", "tcp"])
def test_processes(pool: Pool, same_host: bool) -> None:
    group = pool.take(1)
    written = scripts("models", "matches", "lineage")
    check(histories.run_processes(group.addresses, written, same_host=same_host))
    pool.give_back(1, group)


@pytest.mark.parametrize("same_host", [True, False], ids=["shm", "tcp"])
def test_processes_on_two_servers(pool: Pool, same_host: bool) -> None:
    """A question of all models is several questions there, one a server, and not linearizable."""
    group = pool.take(2)
    written = scripts("models", "descent")
    check(histories.run_processes(group.addresses, written, same_host=same_host))
    pool.give_back(2, group)


@pytest.mark.parametrize("same_host", [True, False], ids=["shm", "tcp"])
def test_calls_of_a_killed_process_happen_whole_or_not_at_all(pool: Pool, same_host: bool) -> None:
    rng = random.Random(SEED)
    group = pool.take(1)
    unknown = 0
    for number in range(4):
        script = histories.write(f"k{number}", "models", rng, asks_each=(20, 30))
        after = rng.randint(1, 30)
        history = histories.run_with_a_kill(group.addresses, script, after, same_host=same_host)
        unknown += sum(call.result == UNKNOWN for call in history)
        for part in independent(history):
            assert find_order(part, EMPTY, store_step) is not None, describe(part)
    assert unknown > 0
    pool.give_back(1, group)
