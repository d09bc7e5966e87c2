"""Is a history of transactions as if they had run one after another? Checked as Jepsen's Elle does it (Kingsbury and
Alvaro, "Elle: Inferring Isolation Anomalies from Experimental Observations", VLDB 2020).

Transactions append elements, each of which is there once, to lists, and read lists. So each list that somebody has read
shows the order in which its elements were written, and from that it follows who depends on whom:

- ww: one wrote what the other overwrote;
- wr: one wrote what the other read;
- rw: one read what the other overwrote;
- realtime: one had ended before the other began.

A cycle of these is an anomaly, named by the edges that it takes (Adya's names). Nothing here knows pocket_plug.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import Literal

Outcome = Literal["ok", "fail", "info"]
"""It landed; it did not; nobody was told (a process was killed, a task was cancelled)."""


@dataclass(frozen=True)
class Read:
    """A list as it was read; () if there was none."""

    key: str
    seen: tuple[int, ...]


@dataclass(frozen=True)
class Append:
    """An element appended to a list."""

    key: str
    element: int


@dataclass
class Txn:
    """A transaction, with its start and end by a clock that all transactions share."""

    ops: Sequence[Read | Append]
    start: float
    end: float = inf
    outcome: Outcome = "ok"
    name: str = ""

    def appended(self, key: str) -> list[int]:
        return [op.element for op in self.ops if isinstance(op, Append) and op.key == key]


CYCLES = ("G0", "G1c", "G-single", "G2-item")
"""Cycles of: ww; ww and wr; those and one rw (read skew); those and several rw (write skew among them)."""

REALTIME = tuple(f"{name}-realtime" for name in CYCLES)
"""The same where it takes the order in time to close the cycle: serializable, but not strictly."""

OTHERS = (
    "G1a",  # an element of a failed transaction was read
    "G1b",  # an intermediate state of another transaction was read
    "internal",  # a transaction doesn't see its own appends, or what it saw before
    "unwritten",  # an element was read that nobody appended
    "duplicate",  # an element is in a list twice
    "incompatible",  # neither of two reads of a list is a prefix of the other
    "lost-update",  # two transactions read the same list and both appended to it
    "lost-append",  # an element was acknowledged, and is not in the final list
)

AFTER_A_CRASH = (
    "torn",  # half of a transaction is left
    "hole",  # a transaction is left, and an earlier one is lost
    "lost-flush",  # a transaction is lost that was acknowledged before an acknowledged flush
)

Edges = dict[int, set[int]]


@dataclass
class Findings:
    """The anomalies, each with the names of the transactions and keys that show it."""

    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, anomaly: str, *what: object) -> None:
        self.found[anomaly].append(" ".join(map(str, what)))

    def beyond(self, allowed: Iterable[str]) -> dict[str, list[str]]:
        """The anomalies that are not allowed, with a few examples of each."""
        return {name: examples[:3] for name, examples in self.found.items() if name not in {*allowed}}


def check(history: Sequence[Txn], final: Mapping[str, Sequence[int]] | None = None) -> Findings:
    """Find the anomalies. `final` has the lists at the end, if they were read then."""
    findings = Findings()
    writer = _writers(history)
    reads = _external_reads(history, findings)
    seen: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for key, _, found in reads:
        seen[key].append(found)
    for key, found in (final or {}).items():
        seen[key].append(tuple(found))
    orders = {key: _order(key, lists, findings) for key, lists in seen.items()}
    _elements(history, reads, orders, writer, final, findings)
    _cycles(history, _landed(history, orders), reads, orders, writer, findings)
    return findings


def check_recovery(history: Sequence[Txn], left: Mapping[str, Sequence[int]], flushed: float = -inf) -> Findings:
    """Is the state after a crash a prefix of the history? `flushed`: when the last acknowledged flush started.

    The history must be strictly serializable; `check` tests that. So the order of the transactions is known by all edges.
    """
    findings = Findings()
    writer = _writers(history)
    reads = _external_reads(history, Findings())
    seen: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for key, _, found in [*reads, *((key, 0, tuple(elements)) for key, elements in left.items())]:
        seen[key].append(found)
    orders = {key: _order(key, lists, findings) for key, lists in seen.items()}
    landed = _landed(history, orders)
    survived, lost = set[int](), set[int]()
    for number, txn in enumerate(history):
        there = [op.element in left.get(op.key, ()) for op in txn.ops if isinstance(op, Append)]
        if any(there) and (not all(there) or txn.outcome == "fail"):
            findings.add("torn", txn.name)
        if there and number in landed:
            (survived if any(there) else lost).add(number)
            if txn.outcome == "ok" and txn.end < flushed and not all(there):
                findings.add("lost-flush", txn.name)
    for key, elements in left.items():
        for element in elements:
            if (key, element) not in writer:
                findings.add("unwritten", key, element)
    edges = _joined(*_edges(history, landed, reads, orders, writer), _in_time(history, landed))
    waiting, later = deque(lost), set(lost)
    while waiting:
        for following in edges.get(waiting.popleft(), set()) - later:
            later.add(following)
            waiting.append(following)
    for number in later & survived:
        findings.add(
            "hole", history[number].name, "came after one of", *(history[each].name for each in sorted(lost)[:5])
        )
    return findings


def _writers(history: Sequence[Txn]) -> dict[tuple[str, int], int]:
    return {
        (op.key, op.element): number for number, txn in enumerate(history) for op in txn.ops if isinstance(op, Append)
    }


def _landed(history: Sequence[Txn], orders: Mapping[str, Sequence[int]]) -> set[int]:
    """The transactions that are known to be committed: acknowledged, or seen by a read."""
    return {
        number
        for number, txn in enumerate(history)
        if txn.outcome == "ok"
        or (
            txn.outcome == "info"
            and any(isinstance(op, Append) and op.element in orders.get(op.key, ()) for op in txn.ops)
        )
    }


def _external_reads(history: Sequence[Txn], findings: Findings) -> list[tuple[str, int, tuple[int, ...]]]:
    """(key, transaction, list without its own appends) of committed transactions; its own appends are checked and removed."""
    reads: list[tuple[str, int, tuple[int, ...]]] = []
    for number, txn in enumerate(history):
        if txn.outcome != "ok":
            continue
        first: dict[str, tuple[int, ...]] = {}
        own: dict[str, list[int]] = defaultdict(list)
        for op in txn.ops:
            if isinstance(op, Append):
                own[op.key].append(op.element)
                continue
            mine = tuple(own[op.key])
            others = op.seen[: len(op.seen) - len(mine)]
            if op.seen[len(others) :] != mine or first.setdefault(op.key, others) != others:
                findings.add("internal", txn.name, op.key)
        reads += [(key, number, found) for key, found in first.items()]
    return reads


def _order(key: str, lists: Iterable[tuple[int, ...]], findings: Findings) -> tuple[int, ...]:
    """The order of a key's elements: the longest list; the other lists must be prefixes of it."""
    longest = max(lists, key=len, default=())
    for each in {*lists}:
        if longest[: len(each)] != each:
            findings.add("incompatible", key, each, longest)
        if len({*each}) != len(each):
            findings.add("duplicate", key, each)
    return longest


def _elements(
    history: Sequence[Txn],
    reads: Iterable[tuple[str, int, tuple[int, ...]]],
    orders: Mapping[str, tuple[int, ...]],
    writer: Mapping[tuple[str, int], int],
    final: Mapping[str, Sequence[int]] | None,
    findings: Findings,
) -> None:
    """Anomalies that need no graph."""
    for key, order in orders.items():
        for element in order:
            if (key, element) not in writer:
                findings.add("unwritten", key, element)
            elif history[writer[key, element]].outcome == "fail":
                findings.add("G1a", key, element, history[writer[key, element]].name)
    upon: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
    for key, number, found in reads:
        last = writer.get((key, found[-1]), number) if found else number
        if last != number and history[last].appended(key)[-1] != found[-1]:
            findings.add("G1b", key, history[number].name, "read in the middle of", history[last].name)
        if history[number].appended(key):
            upon[key, found].append(number)
    for (key, found), numbers in upon.items():
        if len(numbers) > 1:
            findings.add("lost-update", key, found, *(history[number].name for number in numbers))
    if final is not None:
        for (key, element), number in writer.items():
            if history[number].outcome == "ok" and element not in final.get(key, ()):
                findings.add("lost-append", key, element, history[number].name)


def _cycles(
    history: Sequence[Txn],
    landed: set[int],
    reads: Iterable[tuple[str, int, tuple[int, ...]]],
    orders: Mapping[str, tuple[int, ...]],
    writer: Mapping[tuple[str, int], int],
    findings: Findings,
) -> None:
    ww, wr, rw = _edges(history, landed, reads, orders, writer)
    plain = _named(ww, wr, rw)
    for name, cycle in plain.items():
        findings.add(name, *(history[number].name for number in cycle))
    for name, cycle in _named(ww, wr, rw, _in_time(history, landed)).items():
        if name not in plain:
            findings.add(f"{name}-realtime", *(history[number].name for number in cycle if number < len(history)))


def _edges(
    history: Sequence[Txn],
    landed: set[int],
    reads: Iterable[tuple[str, int, tuple[int, ...]]],
    orders: Mapping[str, tuple[int, ...]],
    writer: Mapping[tuple[str, int], int],
) -> tuple[Edges, Edges, Edges]:
    """The dependencies: ww, wr, rw."""
    ww, wr, rw = (defaultdict[int, set[int]](set) for _ in range(3))

    def edge(edges: Edges, one: int | None, other: int | None) -> None:
        if one is not None and other is not None and one != other and one in landed and other in landed:
            edges[one].add(other)

    for key, order in orders.items():
        writers = [writer.get((key, element)) for element in order]
        for one, other in pairwise(writers):
            edge(ww, one, other)
    for key, number, found in reads:
        order = orders[key]
        if found:
            edge(wr, writer.get((key, found[-1])), number)
        if len(found) < len(order):
            # the next append that isn't the reader's own: its own one overwrites what it has read, which is no anomaly
            following = (writer.get((key, element)) for element in order[len(found) :])
            edge(rw, number, next((other for other in following if other != number), None))
    return ww, wr, rw


def _in_time(history: Sequence[Txn], landed: set[int]) -> Edges:
    """Edges from transactions that had ended to later ones, by one node for each end: so their number is
    linear, not quadratic.
    """
    ends = sorted((history[number].end, number) for number in landed if history[number].outcome == "ok")
    times = [end for end, _ in ends]
    edges: Edges = defaultdict(set)
    for position, (_, number) in enumerate(ends):
        mark = len(history) + position
        edges[number].add(mark)
        if position:
            edges[mark - 1].add(mark)
    for number in landed:
        before = bisect_left(times, history[number].start)
        if before:
            edges[len(history) + before - 1].add(number)
    return edges


def _named(ww: Edges, wr: Edges, rw: Edges, time: Mapping[int, set[int]] | None = None) -> dict[str, list[int]]:
    """The kinds of cycles, with an example of each."""
    found: dict[str, list[int]] = {}
    if cycle := _shortest(_joined(ww, time)):
        found["G0"] = cycle
    writes = _joined(ww, wr, time)
    if (cycle := _shortest(writes)) and "G0" not in found:
        found["G1c"] = cycle
    everything = _joined(writes, rw)
    single: list[int] = []
    several: list[int] = []
    for component in _components(everything):
        members = {*component}
        inner = {one: others & members for one, others in writes.items() if one in members}
        alone = [
            [one, *path]
            for one in component
            for other in rw.get(one, set()) & members
            if (path := _path(inner, other, one)) is not None
        ]
        if alone:
            single = single or min(alone, key=len)
        elif _shortest(inner) == []:
            several = several or component
    if single:
        found["G-single"] = single
    if several:
        found["G2-item"] = several
    return found


def _joined(*graphs: Mapping[int, set[int]] | None) -> Edges:
    joined: Edges = defaultdict(set)
    for graph in graphs:
        for one, others in (graph or {}).items():
            joined[one] |= others
    return joined


def _shortest(edges: Mapping[int, set[int]]) -> list[int]:
    """A shortest path, with both ends."""
    for component in _components(edges):
        members = {*component}
        inner = {one: edges.get(one, set()) & members for one in component}
        start = component[0]
        for following in inner[start]:
            if (path := _path(inner, following, start)) is not None:
                return [start, *path[:-1]]
    return []


def _path(edges: Mapping[int, set[int]], start: int, target: int) -> list[int] | None:
    """The shortest way, both ends included."""
    came: dict[int, int] = {start: start}
    waiting = deque([start])
    while waiting:
        at = waiting.popleft()
        if at == target:
            path = [at]
            while path[-1] != start:
                path.append(came[path[-1]])
            return path[::-1]
        for following in edges.get(at, ()):
            if following not in came:
                came[following] = at
                waiting.append(following)
    return None


def _components(edges: Mapping[int, set[int]]) -> list[list[int]]:
    """The strongly connected components with more than one node (Tarjan, without recursion)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    on_stack: set[int] = set()
    stack: list[int] = []
    components: list[list[int]] = []
    for root in list(edges):
        if root in index:
            continue
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        work = [(root, iter(edges.get(root, ())))]
        while work:
            node, following = work[-1]
            for other in following:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    on_stack.add(other)
                    work.append((other, iter(edges.get(other, ()))))
                    break
                if other in on_stack:
                    low[node] = min(low[node], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component: list[int] = []
                    while not component or component[-1] != node:
                        component.append(stack.pop())
                        on_stack.discard(component[-1])
                    if len(component) > 1:
                        components.append(component)
    return components
