"""Removes old runs that have ended, a few at a time, while other runs continue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from pocket_plug.errors import CodecError, ConflictError, PocketError
from pocket_plug.graph.retention import Retention
from pocket_plug.primitives.durations import seconds
from pocket_plug.primitives.waiting import pause
from pocket_plug.store.backend import Delete, Entry
from pocket_plug.store.reading import read_each
from pocket_plug.store.stack import Stack

from .indexing import index_old
from .moving import seen_of
from .records import RUN
from .removal import take_apart
from .states import StateKey, prefixes_in, state_of, states_of

SLICE = 3
"""How many runs a slice reads. A few, since other writers wait for a slice, and more would show in their p99 latency."""
BATCH = 16
"""Records of several runs are removed in one write, once there are this many."""
GIVEN_BACK = 16 * 1024
"""About how many bytes of the store's file a slice frees."""
REST = 0.002
"""Seconds between two batches when runs of older versions get their states: many reads, but only once for each store."""
PAUSE = 0.03
"""Seconds between two slices while others write, so that few of their writes have to wait for a slice."""
EVERY = 60.0
"""Seconds between two passes of a worker."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed; in a dry run, what would be removed."""

    runs: int = 0
    records: int = 0
    """How many keys these runs had."""
    freed: int = 0
    """By how many bytes the store's file shrinks."""
    unreadable: int = 0
    """How many runs were kept since their records are damaged."""


@dataclass(slots=True)
class _Range:
    """The runs of one graph in one state, in the order in which they began."""

    prefix: str
    end: str | None = None
    """The first key of the newest runs, which `keep` keeps."""
    after: str = ""
    """The last key that was read."""


class Pruning:
    """One pass over the runs of a store, in slices: each is a few reads and short writes, so that other runs continue.

    After a stop between two slices, or a kill inside one, the next pass removes any run that is only partly removed.
    """

    def __init__(self, stack: Stack, retention: Retention, *, dry_run: bool = False, now: float | None = None) -> None:
        self.stack, self.retention, self.dry_run = stack, retention, dry_run
        older = None if retention.older is None else seconds(retention.older, or_zero=True)
        self.before = None if older is None else (stack.clock() if now is None else now) - older
        """Runs that ended later are kept, in epoch seconds; None: no limit."""
        self.runs = self.records = self.freed = self.unreadable = 0
        self._ranges: list[_Range] | None = None
        self._version: int | None = None
        """The version that the store has if nobody else writes: the last one read, and one more for each own write."""

    @property
    def pruned(self) -> Pruned:
        """What was removed so far."""
        return Pruned(self.runs, self.records, self.freed, self.unreadable)

    async def slice(self) -> float | None:
        """Remove some runs; when there are no more, let the store's file shrink a little.

        Returns how many seconds to wait before the next slice: 0 if nobody else has written since the last one. None: there is
        nothing left to do.
        """
        if self._ranges is None:
            await index_old(self.stack, REST)
        version = await self.stack.version()
        is_alone = self._version in (None, version)
        self._version = version
        if not await self._go_on():
            return None
        return 0.0 if is_alone or self.dry_run else PAUSE

    async def _go_on(self) -> bool:
        if self._ranges is None:
            self._ranges = [each async for each in self._find()]
        if self._ranges:
            if not await self._look(self._ranges[-1]):
                self._ranges.pop()
            return True
        if not self.runs or self.dry_run:
            return False
        freed = await self.stack.compact(GIVEN_BACK)
        self.freed += freed
        return freed > 0

    async def _find(self) -> AsyncIterator[_Range]:
        keep, graph = self.retention.keep, self.retention.graph
        for status in self.retention.states:
            for prefix in [states_of(status, graph)] if graph is not None else await prefixes_in(self.stack, status):
                if not keep:
                    yield _Range(prefix)
                elif len(last := [key async for key in self.stack.scan(prefix, reverse=True, limit=keep)]) == keep:
                    yield _Range(prefix, last[-1])

    async def _look(self, runs: _Range) -> bool:
        """Remove those of the next few runs that are old enough. Returns True if there may be more."""
        page = [key async for key in self.stack.scan(runs.prefix, after=runs.after, limit=SLICE)]
        begun: list[str] = []
        is_over = len(page) < SLICE
        for key in page:
            started = _started(key)
            if (runs.end is not None and key >= runs.end) or (started is not None and not self._is_old(started)):
                is_over = True
                break
            begun += [key] if started is not None else []
        await self._remove(begun)
        runs.after = page[-1] if page else ""
        return not is_over

    def _is_old(self, time: float) -> bool:
        return self.before is None or time <= self.before

    async def _remove(self, keys: list[str]) -> None:
        old = {RUN + key.rpartition(":")[2]: (key, state) for key, state in (await self._read(keys)).items()}
        batch: dict[str, tuple[int, list[str]]] = {}
        for run, entry in (await self._read(old)).items():
            try:
                seen = seen_of(run, entry, *old[run])
            except PocketError:
                self.unreadable += 1
                continue
            if not self._is_old(seen.state.since) or seen.state_key != state_of(seen.record, seen.name):
                continue  # it ended later, or has entered another state meanwhile
            if self.dry_run:
                self.runs += 1
                self.records += len([key async for key in self.stack.scan(seen.part)])
                self.records += 2 + (seen.state.look_at is not None)
                continue
            try:
                batch[run] = await take_apart(self.stack, seen)
            except ConflictError:
                continue  # another execution or operator has changed it
            if sum(len(doomed) for _, doomed in batch.values()) >= BATCH:
                await self._write(batch)
                batch = {}
        await self._write(batch)

    async def _write(self, batch: dict[str, tuple[int, list[str]]]) -> None:
        """Remove the last records of these runs, except of runs that were changed by others meanwhile."""
        while batch:
            doomed = [Delete(key) for _, keys in batch.values() for key in keys]
            try:
                await self.stack.write(doomed, {run: version for run, (version, _) in batch.items()})
            except ConflictError as conflict:
                left = {run: each for run, each in batch.items() if run not in conflict.keys}
                if len(left) == len(batch):
                    raise
                batch = left
            else:
                self.runs += len(batch)
                self.records += len(doomed)
                self._version = None if self._version is None else self._version + 1
                return

    async def _read(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The entries that can be read."""
        wanted = list(keys)
        found = await read_each(self.stack, wanted)
        readable = {key: entry for key, entry in found.items() if isinstance(entry, Entry)}
        self.unreadable += len(found) - len(readable)
        return readable


async def prune(stack: Stack, retention: Retention, *, dry_run: bool = False) -> Pruned:
    """Remove old runs, by the clock of this process, and let the store's file shrink. Other runs continue meanwhile."""
    pruning = Pruning(stack, retention, dry_run=dry_run)
    while (rest := await pruning.slice()) is not None:
        await pause(rest)
    return pruning.pruned


class Pruner:
    """Applies a retention policy for a worker, which calls `slice` again and again, after the seconds that it returns.

    Nobody watches a worker, so a single wrong clock must not remove young runs. Ages are counted up to the earlier of this
    process's clock and the start of the newest run in the store. So a worker whose clock is ahead removes no run too early, and a
    run that was begun by a clock that is ahead makes no other run look older.
    """

    def __init__(self, stack: Stack, policy: Retention) -> None:
        self.stack, self.policy = stack, policy
        self._pass: Pruning | None = None

    async def slice(self) -> float:
        """Do one slice of the current pass, or of a new one. Returns how many seconds to wait before the next call."""
        if self._pass is None:
            now = self.stack.clock()
            self._pass = Pruning(self.stack, self.policy, now=min(now, await newest(self.stack)))
        rest = await self._pass.slice()
        if rest is None:
            self._pass = None
        return EVERY if rest is None else rest


async def newest(stack: Stack) -> float:
    """When the newest of all runs began, by the clock of the process that began it; 0 if there is none."""
    times = [0.0]
    for prefix in await prefixes_in(stack):
        last = [_started(key) async for key in stack.scan(prefix, reverse=True, limit=1)]
        times += [time for time in last if time is not None]
    return max(times)


def _started(key: str) -> float | None:
    """The time in a state's key; None for a damaged key."""
    try:
        return StateKey.parse(key).started
    except CodecError:
        return None
