"""The backend in memory: a dict and one lock. It returns the same objects that were written, so treat them as frozen.

Expired entries are invisible at once. Now and then a write removes them, so that each write pays for a few.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from math import inf

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.forking import new_rlock
from pocket_plug.primitives.locks import HAS_GIL, in_the_middle

from .backend import NO_EXPECTATIONS, Backend, Change, Entry, Reason
from .entry_table import FEW, Closed, EntryTable
from .scanning import stretch


class Memory(Backend):
    """Entries in a dict. Threads, tasks and loops may share it; no critical section ever awaits.

    The first scan sorts the names. Later scans insert the names that were added since, and bisect.
    """

    inline_read = inline_write = True
    needs_loop = False

    def __init__(self) -> None:
        self._table = EntryTable()
        self.lock = new_rlock(self._cut_off)
        """Reentrant: code that a signal or the garbage collector runs may use the store in a thread that holds it."""
        self.is_free = True
        """False while an operation holds the lock. A write or scan of the same thread, in the middle of it, is refused."""

    def __repr__(self) -> str:
        return "memory"

    def adopt(self, table: EntryTable) -> None:
        """Keep the entries in another table from now on. Raises ConfigError if that was done before."""
        with self.lock:
            former, now = self._table, self.clock()
            if type(former) is not EntryTable:
                raise ConfigError(
                    "this Memory is bounded by another stack already; share that stack's store, or use another Memory"
                )
            table.version, table.evictions = former.version, former.evictions
            table.take_over(former.read_many(former.entries, now), now)
            self._table = table

    @property
    def entries(self) -> int:
        """The number of entries, including expired ones that no write has removed yet."""
        return len(self._table)

    @property
    def evictions(self) -> Mapping[Reason, int]:
        """The number of evicted entries so far, by reason; always the same mapping, which is updated."""
        return self._table.evictions

    async def read(self, key: str) -> Entry | None:
        """One dict look-up. No lock: with the GIL, a reader sees all of a write or nothing, since `|=` adds its entries."""
        entry: Entry | None = self._table.entries.get(key)
        if entry is None or entry.expires_at is None or self.clock() < entry.expires_at:
            return entry
        return None

    async def locked_read(self, key: str) -> Entry | None:
        """The `read` of a Python without the GIL."""
        return (await Memory.read_many(self, (key,))).get(key)  # a subclass may read one by one

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """All entries as of one moment: under the lock, as writes are."""
        names, now = list(keys), self.clock()
        with self.lock:
            was_free, self.is_free = self.is_free, False
            try:
                return self._table.read_many(names, now)
            finally:
                self.is_free = was_free

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """All under the lock; nothing in it can fail half way."""
        with self.lock:
            was_free, self.is_free = self.is_free, False
            try:
                if not was_free:
                    raise in_the_middle("an operation of this memory store", "write or scan")
                table = self._table
                now = self.clock() if table.has_ttl or table.earliest < inf else 0.0  # nothing can expire: no clock
                if expect:
                    table.check(expect, now)
                if not changes:
                    return table.version
                version = table.version = table.version + 1
                table.apply(changes, version, now)
                if not table.dropped:
                    return version
                dropped, table.dropped = table.dropped, []
                table.count(dropped)
            finally:
                self.is_free = was_free
        if table.notify is not None:
            await table.notify(dropped)
        return version

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        """The live keys as of the beginning of the scan, without those that are removed before it lists them.

        With a `limit` it may have to look for more keys, in place of expired ones; these are as of that moment.
        """
        table, given = self._table, 0
        while given != limit:
            size = None if limit is None else max(limit - given, FEW)
            with self.lock:
                was_free, self.is_free = self.is_free, False
                try:
                    if not was_free:
                        raise in_the_middle("an operation of this memory store", "write or scan")
                    names = stretch(table.names(), prefix, after=after, reverse=reverse, limit=size)
                finally:
                    self.is_free = was_free
            for key in names:
                entry = table.entries.get(key)
                if entry is not None and table.alive(entry, self.clock()):
                    yield key
                    given += 1
                    if given == limit:
                        return
            if size is None or len(names) < size:
                return
            after = names[-1]

    async def version(self) -> int:
        """The last version given."""
        return self._table.version

    async def open(self) -> None:
        """Nothing to acquire; after `close` it starts empty."""
        if isinstance(self._table.entries, Closed):
            self._table.clear()

    async def close(self) -> None:
        """Forget everything."""
        with self.lock:
            self._table.sorted, self._table.moved, self._table.entries = None, {}, Closed()

    def _cut_off(self) -> None:
        """In a forked child: another thread held the lock at the fork, so a write may be half done."""
        self.is_free = True
        closed = Closed(
            "this process was forked during a write to this memory store, which may be incomplete; close it and open it again"
        )
        self._table.sorted, self._table.entries = None, closed


if not HAS_GIL:
    Memory.read = Memory.locked_read  # type: ignore[method-assign]  # a choice at each read would be a tenth of its time
