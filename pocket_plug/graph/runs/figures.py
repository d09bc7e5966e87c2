"""Metrics of a store's durable runs: their number in each state, and the ages of the oldest question and stalled run.

It counts keys instead of reading records, up to limits, and reads a limited number of records: so 10⁷ runs cost as much as 10⁵.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pocket_plug.errors import CorruptRecordError
from pocket_plug.graph.durable.stalled import StallWatch
from pocket_plug.graph.durable.states import StateKey, graph_of, prefixes_in, read_state
from pocket_plug.store.backend import Backend, Entry
from pocket_plug.store.reading import read_each

from .info import RunState

COUNTED: Sequence[RunState] = ("pending", "running", "suspended", "failed", "cancelled", "finished")
"""The open states first: if a limit is reached, runs that have ended are not counted."""
MOST = 10_000
"""How many runs of one graph in one state are counted, at most."""
MOST_KEYS = 50_000
"""How many keys one look reads, at most."""
MOST_GRAPHS = 500
MOST_RECORDS = 1_000
"""The records of how many running runs, and of how many suspended ones, one look reads, at most: those of the oldest runs."""


@dataclass(frozen=True, slots=True)
class RunFigures:
    """The result of one look."""

    runs: Mapping[tuple[str, RunState], int] = field(default_factory=dict[tuple[str, RunState], int])
    """The number of runs, by graph and state; 10,000 if there are more."""
    questions: Mapping[str, float] = field(default_factory=dict[str, float])
    """Seconds since the oldest open question was asked, by graph; only of graphs that have one."""
    stalled: Mapping[str, float] = field(default_factory=dict[str, float])
    """Seconds since a stalled run's record was last written, the longest by graph; only of graphs that have one."""


class RunsWatch:
    """Looks at the runs of a store. Stalled runs are found by repeated calls, since that needs two looks, a lease apart."""

    def __init__(self, stack: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self._stack, self._stalls = stack, StallWatch(stack, clock)

    async def look(self) -> RunFigures:
        """Count the runs now. Each graph that has runs has a number for each open state, which may be 0."""
        counted: dict[tuple[str, RunState], int] = {}
        first: dict[RunState, list[str]] = {"running": [], "suspended": []}
        left = MOST_KEYS
        for state in COUNTED:
            for prefix in await prefixes_in(self._stack, state, MOST_GRAPHS):
                if left <= 0:
                    break
                keys, graph = [key async for key in self._stack.scan(prefix, limit=min(MOST, left))], graph_of(prefix)
                left -= len(keys)
                counted[graph, state] = len(keys)
                if state in first:
                    first[state] += keys[: MOST_RECORDS - len(first[state])]
        runs: dict[tuple[str, RunState], int] = {}
        for graph in dict.fromkeys(graph for graph, _ in counted):
            runs |= dict.fromkeys(
                ((graph, state) for state in ("pending", "running", "stalled", "suspended", "failed")), 0
            )
        runs |= counted
        stalled = await self._stalled(first["running"])
        for graph, number, _ in stalled:
            runs[graph, "stalled"] = number
            runs[graph, "running"] -= number
        return RunFigures(runs, await self._questions(first["suspended"]), {graph: age for graph, _, age in stalled})

    async def _stalled(self, keys: Sequence[str]) -> list[tuple[str, int, float]]:
        """For each graph with stalled runs: its name, their number, and the age of the oldest."""
        found: dict[str, list[float]] = {}
        for each in await self._stalls.look(keys):
            found.setdefault(each.graph, []).append(each.moved)
        return [(graph, len(moved), self._since(min(moved))) for graph, moved in found.items()]

    async def _questions(self, keys: Sequence[str]) -> Mapping[str, float]:
        oldest: dict[str, float] = {}
        for key, entry in (await read_each(self._stack, keys)).items():
            if not isinstance(entry, Entry):
                continue  # damaged; `runs ls` shows it
            try:
                graph, state = StateKey.parse(key).graph, read_state(key, entry)
            except CorruptRecordError:
                continue
            if state.questions:
                asked = state.since if state.asked is None else state.asked
                oldest[graph] = min(asked, oldest.get(graph, asked))
        return {graph: self._since(asked) for graph, asked in oldest.items()}

    def _since(self, then: float) -> float:
        """Seconds since a time; not less than 0, since another machine's clock may be ahead."""
        return max(self._stack.clock() - then, 0.0)
