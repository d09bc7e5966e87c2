"""The backend in memory: a dict and one lock; it hands out what was put in, so treat that as frozen.

Expired entries are invisible at once and removed little by little: each write looks at a few that have a deadline.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from typing import Any, NoReturn

from .backend import NO_EXPECTATIONS, Backend, Change, Entry, Put
from .errors import Conflict, StoreClosedError

REAPED_PER_WRITE = 2


class Memory(Backend):
    """Entries in a dict. Threads, tasks and loops may share it; no critical section ever awaits.

    A scan sorts the keys once after the set of keys has changed, and is a bisection otherwise.
    """

    inline_read = inline_write = True
    needs_loop = False

    def __init__(self) -> None:
        self._entries: MutableMapping[str, Entry] = {}
        self._lock = threading.Lock()
        self._version = 0
        self._sorted: list[str] | None = None
        self._mortal: deque[str] = deque()  # keys set with a deadline, to be looked at again

    def __repr__(self) -> str:
        return "memory"

    async def read(self, key: str) -> Entry | None:
        """One dict look-up; no lock, since a dict's `get` is atomic."""
        entry = self._entries.get(key)
        if entry is None or entry.expires_at is None or self.clock() < entry.expires_at:
            return entry
        return None

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """All under the lock; nothing in it can fail half way."""
        now = self.clock()
        with self._lock:
            entries = self._entries
            if expect:
                self._check(expect, now)
            if not changes:
                return self._version
            version = self._version = self._version + 1
            for change in changes:
                old = entries.get(key := change.key)
                if change.version is not None:
                    if old is not None and old.version > change.version - isinstance(change, Put):
                        continue
                    self._version = max(self._version, change.version)
                if isinstance(change, Put):
                    entries[key] = Entry(change.value, change.version or version, change.expires_at)
                    if change.expires_at is not None:
                        self._mortal.append(key)
                    if old is None:
                        self._sorted = None
                elif old is not None:
                    del entries[key]
                    self._sorted = None
            if self._mortal:
                self._reap(now, REAPED_PER_WRITE)
            return version

    def _check(self, expect: Mapping[str, int], now: float) -> None:
        changed = []
        for key, version in expect.items():
            entry = self._entries.get(key)
            alive = entry is not None and (entry.expires_at is None or now < entry.expires_at)
            if (entry.version if entry is not None and alive else 0) != version:
                changed.append(key)
        if changed:
            raise Conflict(changed)

    def _reap(self, now: float, look_at: int) -> None:
        for _ in range(min(look_at, len(self._mortal))):
            key = self._mortal.popleft()
            entry = self._entries.get(key)
            if entry is None or entry.expires_at is None:
                continue
            if now >= entry.expires_at:
                del self._entries[key]
                self._sorted = None
            else:
                self._mortal.append(key)

    async def scan(self, prefix: str = "") -> AsyncIterator[str]:
        """The live keys as they were when the scan began, less those gone when it comes to them."""
        with self._lock:
            if self._sorted is None:
                self._sorted = sorted(self._entries)
            keys = self._sorted
        for position in range(bisect_left(keys, prefix), len(keys)):
            key = keys[position]
            if not key.startswith(prefix):
                return
            if await self.read(key) is not None:
                yield key

    async def version(self) -> int:
        """The last version given."""
        return self._version

    async def open(self) -> None:
        """Nothing to acquire; after a close it begins empty."""
        if isinstance(self._entries, _Closed):
            self._entries = {}

    async def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries = _Closed()
            self._sorted = None
            self._mortal.clear()


class _Closed(MutableMapping[str, Any]):
    """Stands in for a closed store's entries, so that the open one need not check a flag on every read."""

    def _refuse(self, *_: object) -> NoReturn:
        raise StoreClosedError("this memory store is closed, and what was in it is gone")

    __getitem__ = __setitem__ = __delitem__ = __iter__ = __len__ = _refuse
