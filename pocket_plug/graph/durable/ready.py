"""Finds the runs that a worker may claim: pending ones, stalled ones, and those whose waiting time is over.

The keys are sorted by state and graph, so a poll costs as much as it finds. A run that can't be claimed is remembered with the
version of its record, and skipped until that changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from urllib.parse import unquote

from pocket_plug.errors import ConflictError
from pocket_plug.graph.planning.plan import PlannedGraph
from pocket_plug.primitives.batches import batched
from pocket_plug.store.backend import Entry
from pocket_plug.store.listing import batch_size
from pocket_plug.store.reading import read_each
from pocket_plug.store.scanning import paged
from pocket_plug.store.stack import Stack, StorePlace

from .records import BATCH, RUN, escaped
from .stalled import StallWatch
from .states import WAKE, State, StateKey, sortable_time, states_of, wakes_of

AHEAD = 16
"""How many more runs are read than are wanted. Some of them are taken at random, so that workers don't all try the first one."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A run that may be claimed."""

    run_id: str
    versions: Mapping[str, int] = field(default_factory=dict[str, int])
    """For a stalled run, the versions that a takeover expects."""
    left: State | None = None
    """For a stalled run, its state."""


class Finder:
    """Finds the ready runs of one graph in one store."""

    def __init__(self, graph: PlannedGraph, place: StorePlace, clock: Callable[[], float] = time.monotonic) -> None:
        self.graph, self.place = graph, place
        self.stack, _ = place
        self._watch = StallWatch(self.stack, clock)
        self._refused: dict[str, int | None] = {}
        """The runs that are skipped, with the version of the refused record; None: until the next review."""

    def refuse(self, run_id: str, version: int | None) -> None:
        """Skip a run until its record has another version; without a version, until the next `review`."""
        self._refused[run_id] = version

    def scope_within(self, scope: str | None) -> str | None:
        """The scope, if it is one of this store, else None."""
        return scope if scope is not None and scope.startswith(str(self.place[1])) else None

    async def review(self) -> list[Ready]:
        """Return the stalled runs, and stop skipping runs that have changed. It reads records, so it is called less often."""
        await self._forget()
        running = [key async for key in self.stack.scan(states_of("running", self.graph.name))]
        return [
            Ready(each.run_id, each.versions, each.state)
            for each in await self._watch.look(running)
            if each.run_id not in self._refused
        ]

    async def find(self, wanted: int) -> list[Ready]:
        """Runs that are ready according to their keys: pending ones, the oldest first, and those whose time has come."""
        graph, now = self.graph.name, sortable_time(self.stack.clock())

        def due(key: str) -> str | None:
            _, at, name = key.removeprefix(WAKE).split(":")
            return None if at > now else unquote(name)

        pending = await self._first(states_of("pending", graph), wanted + AHEAD, lambda key: StateKey.parse(key).run_id)
        return [*pending, *await self._first(wakes_of(graph), wanted + AHEAD, due)]

    async def _first(self, prefix: str, most: int, id_of: Callable[[str], str | None]) -> list[Ready]:
        """The first runs with keys of this prefix, without those that are skipped, up to a key for which `id_of` returns None."""
        found: list[Ready] = []
        async with aclosing(paged(self.stack, prefix, size=most)) as keys:
            async for key in keys:
                if len(found) == most or (run_id := id_of(key)) is None:
                    break
                if run_id not in self._refused:
                    found.append(Ready(run_id))
        return found

    async def _forget(self) -> None:
        """Stop skipping runs whose record has changed, and those without a version.

        The versions are checked by a write without changes: a read would take the records, which have the inputs of the runs.
        """
        kept = {run_id: version for run_id, version in self._refused.items() if version is not None}
        damaged = await versions_of(self.stack, [run_id for run_id, version in kept.items() if version < 0])
        changed = {run_id for run_id, version in damaged.items() if version >= 0}
        expected = {RUN + escaped(run_id, ":"): run_id for run_id in kept if run_id not in damaged}
        for keys in batched([*expected], batch_size(self.stack, BATCH)):
            try:
                await self.stack.write((), {key: kept[expected[key]] for key in keys})
            except ConflictError as conflict:
                changed |= {expected[key] for key in conflict.keys or keys}
        self._refused = {run_id: version for run_id, version in kept.items() if run_id not in changed}


async def versions_of(stack: Stack, run_ids: Iterable[str]) -> dict[str, int]:
    """The versions of runs' records: 0 if there is none, -1 if it can't be read."""
    keys = {RUN + escaped(run_id, ":"): run_id for run_id in run_ids}
    versions = dict.fromkeys(keys.values(), 0)
    for key, entry in (await read_each(stack, list(keys))).items():
        versions[keys[key]] = entry.version if isinstance(entry, Entry) else -1
    return versions
