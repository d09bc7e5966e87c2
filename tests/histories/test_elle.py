"""The checker of histories finds planted anomalies of each kind, and finds none in serial histories."""

from __future__ import annotations

from collections import defaultdict

import pytest
from elle import AFTER_A_CRASH, CYCLES, OTHERS, REALTIME, Append, Read, Txn, check, check_recovery
from hypothesis import given, settings
from hypothesis import strategies as st


def r(key: str, *seen: int) -> Read:
    return Read(key, seen)


def a(key: str, element: int) -> Append:
    return Append(key, element)


def txn(*ops: Read | Append, start: float = 0, end: float = 100, outcome: str = "ok") -> Txn:
    """All at the same time, unless start and end are given."""
    return Txn(ops, start, end, outcome, str(ops))  # type: ignore[arg-type]


PLANTED: dict[str, tuple[list[Txn], dict[str, list[int]] | None]] = {
    "G0": ([txn(a("x", 1), a("y", 1)), txn(a("x", 2), a("y", 2)), txn(r("x", 1, 2), r("y", 2, 1))], None),
    "G1c": ([txn(a("x", 1), r("y", 1)), txn(a("y", 1), r("x", 1))], None),
    "G-single": ([txn(a("x", 1), a("y", 1)), txn(r("x"), r("y", 1)), txn(r("x", 1))], None),
    "G2-item": ([txn(r("x"), a("y", 1)), txn(r("y"), a("x", 1)), txn(r("x", 1), r("y", 1))], None),
    "G0-realtime": ([txn(a("x", 1), end=1), txn(a("x", 2), start=2), txn(r("x", 2, 1))], None),
    "G1c-realtime": ([txn(r("x", 1), end=1), txn(a("x", 1), start=2)], None),
    "G-single-realtime": ([txn(a("x", 1), end=1), txn(r("x"), start=2), txn(r("x", 1))], None),
    "G2-item-realtime": (
        [
            txn(r("x"), r("y", 1), end=10),
            txn(a("x", 1), start=2, end=3),
            txn(r("y"), start=4, end=5),
            txn(a("y", 1), end=7),
            txn(r("x", 1)),
        ],
        None,
    ),
    "G1a": ([txn(a("x", 1), outcome="fail"), txn(r("x", 1))], None),
    "G1b": ([txn(a("x", 1), a("x", 2)), txn(r("x", 1)), txn(r("x", 1, 2))], None),
    "internal": ([txn(a("x", 1), r("x"))], None),
    "unwritten": ([txn(r("x", 1))], None),
    "duplicate": ([txn(a("x", 1)), txn(r("x", 1, 1))], None),
    "incompatible": ([txn(a("x", 1)), txn(a("x", 2)), txn(r("x", 1)), txn(r("x", 2))], None),
    "lost-update": ([txn(r("x"), a("x", 1)), txn(r("x"), a("x", 2))], {"x": [2]}),
    "lost-append": ([txn(a("x", 1)), txn(a("x", 2))], {"x": [2]}),
}


def test_there_is_one_of_each_kind() -> None:
    """Each kind of anomaly is tested."""
    assert PLANTED.keys() == {*CYCLES, *REALTIME, *OTHERS}


@pytest.mark.parametrize("anomaly", PLANTED)
def test_a_planted_anomaly_is_found(anomaly: str) -> None:
    """With its name, and no other cycle: a serializable history is not reported as a read skew."""
    history, final = PLANTED[anomaly]
    found = {*check(history, final).found}
    assert anomaly in found
    if anomaly in {*CYCLES, *REALTIME}:
        assert found == {anomaly}


@pytest.mark.parametrize("anomaly", [name for name in PLANTED if name not in REALTIME])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_found_among_many_transactions(anomaly: str, seed: int) -> None:
    """Among a hundred transactions of other keys without anomalies."""
    crowd = serial([[("r", f"k{n % 7}"), ("a", f"k{n % 5}")] for n in range(100)], [seed] * 100)
    history, final = PLANTED[anomaly]
    at = 30 * (seed + 1)
    found = check([*crowd[:at], *history, *crowd[at:]], final and {**final, **lists_of(crowd)}).found
    assert anomaly in found


def test_skews_of_longer_cycles_are_found() -> None:
    """A write skew of three transactions, and a read skew through another transaction."""
    skew = [txn(r("x"), a("y", 1)), txn(r("y"), a("z", 1)), txn(r("z"), a("x", 1))]
    assert {*check([*skew, txn(r("x", 1), r("y", 1), r("z", 1))]).found} == {"G2-item"}
    by_way = [txn(r("x"), r("z", 1)), txn(a("x", 1), a("y", 1)), txn(r("y", 1), a("z", 1)), txn(r("x", 1))]
    assert {*check(by_way).found} == {"G-single"}


def test_a_transaction_with_an_unknown_outcome_may_be_committed_or_not() -> None:
    """A write with an unknown outcome counts as committed once it is seen, at any time after its start."""
    seen = [txn(a("x", 1), start=1, end=2, outcome="info"), txn(r("x"), start=5, end=6), txn(r("x", 1), start=7)]
    assert not check(seen, {"x": [1]}).found
    assert not check(seen[:2], {"x": []}).found
    assert {*check([seen[2], *seen[:2], txn(r("x"), start=200, end=201)]).found} == {"G-single-realtime"}


def test_a_transactions_own_append_is_no_anomaly() -> None:
    """Read, append, read again within one transaction, while others do the same."""
    history = [
        txn(r("x"), a("x", 1), r("x", 1), a("x", 2), r("x", 1, 2), end=1),
        txn(r("x", 1, 2), a("x", 3), r("x", 1, 2, 3), start=0.5),
    ]
    assert not check(history, {"x": [1, 2, 3]}).found


def lists_of(history: list[Txn]) -> dict[str, list[int]]:
    """The lists after a serial history."""
    lists: dict[str, list[int]] = defaultdict(list)
    for each in history:
        for op in each.ops:
            if isinstance(op, Append):
                lists[op.key].append(op.element)
    return lists


def serial(wanted: list[list[tuple[str, str]]], spans: list[int]) -> list[Txn]:
    """Transactions executed one after another, each at a moment between its start and its end."""
    lists: dict[str, list[int]] = defaultdict(list)
    history: list[Txn] = []
    element = 0
    for at, (steps, span) in enumerate(zip(wanted, spans, strict=True)):
        ops: list[Read | Append] = []
        for kind, key in steps:
            if kind == "r":
                ops.append(Read(key, tuple(lists[key])))
            else:
                element += 1
                lists[key].append(element)
                ops.append(Append(key, element))
        history.append(Txn(ops, at - span, at + span + 0.5, "ok", f"T{at}"))
    return history


STEPS = st.lists(st.tuples(st.sampled_from("ra"), st.sampled_from("xyz")), min_size=1, max_size=5)


@given(st.lists(st.tuples(STEPS, st.integers(0, 9)), max_size=40), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_nothing_is_found_in_a_serial_history(wanted: list[tuple[list[tuple[str, str]], int]], chance: object) -> None:
    """However the transactions overlap, and in whatever order they are listed, if each took effect at one moment."""
    history = serial([steps for steps, _ in wanted], [span for _, span in wanted])
    final = lists_of(history)
    chance.shuffle(history)  # type: ignore[attr-defined]
    assert not check(history, final).found


@given(st.lists(STEPS, min_size=4, max_size=30), st.data())
@settings(max_examples=60, deadline=None)
def test_a_stale_read_is_always_found(wanted: list[list[tuple[str, str]]], data: st.DataObject) -> None:
    """A transaction of a serial history reads a list without the last append that had ended."""
    history = serial(wanted, [0] * len(wanted))
    lists = {key: elements for key, elements in lists_of(history).items() if elements}
    if not lists:
        return
    key = data.draw(st.sampled_from(sorted(lists)))
    stale = txn(Read(key, tuple(lists[key][:-1])), start=len(wanted) + 1, end=len(wanted) + 2)
    found = check([*history, stale], lists).found
    assert {*found} & {"G-single-realtime", "G1b"}


LEFT: dict[str, tuple[list[Txn], dict[str, list[int]]]] = {
    "torn": ([txn(a("x", 1), a("y", 1))], {"x": [1]}),
    "hole": ([txn(a("x", 1), end=1), txn(a("y", 2), start=2)], {"y": [2]}),
    "lost-flush": ([txn(a("x", 1), end=1), txn(a("y", 2), end=2)], {"y": [2]}),
}


def test_there_is_one_of_each_kind_after_a_crash() -> None:
    """Each kind of loss is tested."""
    assert LEFT.keys() == {*AFTER_A_CRASH}


@pytest.mark.parametrize("anomaly", LEFT)
def test_a_forbidden_state_after_a_crash_is_found(anomaly: str) -> None:
    """With its name and no other; the history before the crash had no anomaly."""
    history, left = LEFT[anomaly]
    assert not check(history).found
    assert {*check_recovery(history, left, 2 if anomaly == "lost-flush" else 0).found} == {anomaly}


@pytest.mark.parametrize(
    "between",
    [
        [txn(a("x", 1)), txn(r("x", 1), a("y", 2))],  # it has read what is lost
        [txn(r("x"), a("y", 1)), txn(a("x", 2))],  # it has overwritten what the lost one has read
        [txn(a("x", 1)), txn(r("x", 1), end=1), txn(a("y", 2), start=2)],  # through one that only reads
    ],
)
def test_a_hole_is_found_by_every_kind_of_edge(between: list[Txn]) -> None:
    """A transaction that is left follows a lost one, so the lost ones are no suffix of the history."""
    last = between[-1].ops[-1]
    assert isinstance(last, Append)
    assert "hole" in check_recovery(between, {last.key: [last.element]}).found


@given(st.lists(STEPS, min_size=1, max_size=30), st.data())
@settings(max_examples=60, deadline=None)
def test_a_prefix_is_allowed_after_a_crash(wanted: list[list[tuple[str, str]]], data: st.DataObject) -> None:
    """Any number of whole transactions from the start, if those before a flush are among them."""
    history = serial(wanted, [0] * len(wanted))
    kept = data.draw(st.integers(0, len(history)))
    left = lists_of(history[:kept])
    assert not check_recovery(history, left, history[kept - 1].end + 0.1 if kept else 0).found
    rest = [number for number, each in enumerate(history) if number >= kept and lists_of([each])]
    if len(rest) > 1:
        wrong = lists_of([*history[:kept], history[rest[1]]])
        assert check_recovery(history, wrong).found
