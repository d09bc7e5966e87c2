"""The backend in memory: a dict and one lock; it hands out what was put in, so treat that as frozen.

Expired entries are invisible at once. Now and then a write sweeps them out: each pays for looking at a few.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from math import inf
from typing import Any, Literal, NoReturn

from .backend import NO_EXPECTATIONS, Backend, Change, Entry, Put
from .errors import ConfigError, Conflict, StoreClosedError

Reason = Literal["size", "bytes", "expired"]
Dropped = tuple[str, Any, Reason]
"""A key, the entry that was there, and why it had to go."""


class Sweeps:
    """When to look for what has expired: not before the earliest deadline, and at four entries per write on average.

    Where there are no more than 64 entries, whenever one of them is due.
    """

    __slots__ = ("_last", "earliest")

    def __init__(self) -> None:
        self.earliest = inf
        """Nothing expires before; whoever notes a deadline lowers it."""
        self._last = 0

    def due(self, writes: int, size: int) -> bool:
        """May a write that comes after `earliest` sweep? `writes` counts all that there were."""
        return writes - self._last >= size // 4 - 16

    def expired(self, deadlines: Iterable[tuple[str, float | None]], now: float, writes: int) -> list[str]:
        """The keys whose deadline has passed. About 50 ns for each that there is."""
        self._last, self.earliest = writes, inf
        found: list[str] = []
        for key, deadline in deadlines:
            if deadline is not None:
                if deadline <= now:
                    found.append(key)
                elif deadline < self.earliest:
                    self.earliest = deadline
        return found


class Keeping:
    """How a Memory keeps its entries; the bounding layer has another way. Called with the Memory's lock held."""

    tell: Callable[[Sequence[Dropped]], Awaitable[None]] | None = None
    """Awaited after a write that dropped something, with no lock held."""

    entries: Any
    """A mapping from each key to its entry."""
    sweeps: Sweeps

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin empty."""
        self.entries, self.sweeps = {}, Sweeps()

    def deadline(self, entry: Any) -> float | None:
        """When the entry stops being readable."""
        return entry.expires_at  # type: ignore[no-any-return]

    def put(self, change: Put, old: Any, version: int, now: float) -> None:
        """Keep what was put, in the place of `old` or of None."""
        self.entries[change.key] = Entry(change.value, version, change.expires_at)
        if change.expires_at is not None and change.expires_at < self.sweeps.earliest:
            self.sweeps.earliest = change.expires_at

    def delete(self, key: str, old: Any, now: float) -> None:
        """Let go of `old`."""
        del self.entries[key]

    def settle(self, now: float, writes: int) -> Sequence[Dropped]:
        """Called once after a write's changes: drop what has to go."""
        if now < self.sweeps.earliest or not self.sweeps.due(writes, len(self.entries)):
            return ()
        deadlines = ((key, entry.expires_at) for key, entry in self.entries.items())
        expired = self.sweeps.expired(deadlines, now, writes)
        return [(key, self.entries.pop(key), "expired") for key in expired]


class Memory(Backend):
    """Entries in a dict. Threads, tasks and loops may share it; no critical section ever awaits.

    A scan sorts the keys once after the set of keys has changed, and is a bisection otherwise.
    """

    inline_read = inline_write = True
    needs_loop = False

    def __init__(self) -> None:
        self._keeping = Keeping()
        self._lock = threading.Lock()
        self._version = 0
        self._sorted: list[str] | None = None

    def __repr__(self) -> str:
        return "memory"

    def adopt(self, keeping: Keeping) -> None:
        """Keep the entries in another way from now on. Raises ConfigError where that was done before."""
        with self._lock:
            if type(self._keeping) is not Keeping:
                raise ConfigError("this Memory is bounded by another stack already; share that stack's store, "
                                  "or use a Memory of its own")  # fmt: skip
            now = self.clock()
            for key, entry in self._keeping.entries.items():
                keeping.put(Put(key, entry.value, entry.expires_at), None, entry.version, now)
            self._keeping = keeping

    async def read(self, key: str) -> Entry | None:
        """One dict look-up; no lock, since a dict's `get` is atomic."""
        entry: Entry | None = self._keeping.entries.get(key)
        if entry is None or entry.expires_at is None or self.clock() < entry.expires_at:
            return entry
        return None

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """All under the lock; nothing in it can fail half way."""
        now = self.clock()
        with self._lock:
            keeping = self._keeping
            entries = keeping.entries
            if expect:
                self._check(expect, now)
            if not changes:
                return self._version
            version = self._version = self._version + 1
            for change in changes:
                old = entries.get(key := change.key)
                if change.version is not None:
                    if old is not None and not self._gives_way(old, change, now):
                        continue
                    self._version = max(self._version, change.version)
                if isinstance(change, Put):
                    keeping.put(change, old, change.version or version, now)
                    if old is None:
                        self._sorted = None
                elif old is not None:
                    keeping.delete(key, old, now)
                    self._sorted = None
            dropped = keeping.settle(now, version)
            if dropped:
                self._sorted = None
        if dropped and keeping.tell is not None:
            await keeping.tell(dropped)
        return version

    def _alive(self, entry: Any, now: float) -> bool:
        deadline = self._keeping.deadline(entry)
        return deadline is None or now < deadline

    def _gives_way(self, old: Any, change: Change, now: float) -> bool:
        """Is `old` to be replaced by a change with a version? What was read elsewhere renews what has expired here."""
        if old.version != change.version:
            return bool(old.version < change.version)
        return not (isinstance(change, Put) and self._alive(old, now))

    def _check(self, expect: Mapping[str, int], now: float) -> None:
        changed: list[str] = []
        for key, version in expect.items():
            entry = self._keeping.entries.get(key)
            if (entry.version if entry is not None and self._alive(entry, now) else 0) != version:
                changed.append(key)
        if changed:
            raise Conflict(changed)

    async def scan(self, prefix: str = "") -> AsyncIterator[str]:
        """The live keys as they were when the scan began, less those gone when it comes to them."""
        with self._lock:
            if self._sorted is None:
                self._sorted = sorted(self._keeping.entries)
            keys = self._sorted
        for position in range(bisect_left(keys, prefix), len(keys)):
            key = keys[position]
            if not key.startswith(prefix):
                return
            entry = self._keeping.entries.get(key)
            if entry is not None and self._alive(entry, self.clock()):
                yield key

    async def version(self) -> int:
        """The last version given."""
        return self._version

    async def open(self) -> None:
        """Nothing to acquire; after a close it begins empty."""
        if isinstance(self._keeping.entries, Closed):
            self._keeping.clear()

    async def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._keeping.entries = Closed()
            self._sorted = None


class Closed(MutableMapping[str, Any]):
    """Stands in for a closed store's entries, so that the open one need not check a flag on every read."""

    def _refuse(self, *_: object) -> NoReturn:
        raise StoreClosedError("this memory store is closed, and what was in it is gone")

    __getitem__ = __setitem__ = __delitem__ = __iter__ = __len__ = _refuse
