"""Your own backend: implement read, write, scan and version, and all operations of a store work with it.

This backend is a ledger: it keeps every value that a key has had.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from pocket_plug import Backend, Change, ConflictError, Entry, Put, Store, StoreClosedError
from pocket_plug.primitives.forking import new_lock
from pocket_plug.store.backend import is_expected
from pocket_plug.store.scanning import stretch

History = tuple[Entry | None, ...]


class Ledger(Backend):
    """Every version of every key, in memory; None means deleted."""

    inline_read = inline_write = True  # no operation waits, so sync callers run them in their own thread
    needs_loop = False

    def __init__(self) -> None:
        self.entries: dict[str, History] = {}
        self._version = 0
        self._lock = new_lock()  # so that a fork waits until nobody holds it
        self._is_closed = False

    async def read(self, key: str) -> Entry | None:
        if self._is_closed:
            raise StoreClosedError("the ledger is closed")
        return self._live(key)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        if self._is_closed:
            raise StoreClosedError("the ledger is closed")
        with self._lock:  # no loop in this block: Python 3.12 and 3.13 leave it at Ctrl-C without releasing the lock
            return self._written(changes, expect)

    def _written(self, changes: Sequence[Change], expect: Mapping[str, int]) -> int:
        found = {key: entry.version if (entry := self._live(key)) else 0 for key in expect}
        if changed := [key for key in expect if not is_expected(found[key], expect[key])]:
            raise ConflictError(changed)
        self._version += bool(changes)
        new: dict[str, History] = {}  # prepared first: a reader, or Ctrl-C, may come between any two steps
        for change in changes:
            history = new.get(change.key) or self.entries.get(change.key, ())
            if self._supersedes(change, history):
                self._version = max(self._version, change.version or 0)
                new[change.key] = (*history, self._entry(change))
        self.entries |= new  # a single step
        return self._version

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        given = 0
        # with many keys, keep them sorted
        for key in stretch(sorted(self.entries), prefix, after=after, reverse=reverse):
            if given == limit:
                return
            if await self.read(key):  # only existing keys count
                yield key
                given += 1

    async def version(self) -> int:
        return self._version

    async def close(self) -> None:
        self._is_closed = True

    def _entry(self, change: Change) -> Entry | None:
        if isinstance(change, Put):
            return Entry(change.value, change.version or self._version, change.expires_at)
        return None

    def _live(self, key: str) -> Entry | None:
        return self._readable(self.entries.get(key, ()))

    def _readable(self, history: History) -> Entry | None:
        entry = history[-1] if history else None
        return entry if entry and (entry.expires_at is None or self.clock() < entry.expires_at) else None

    def _supersedes(self, change: Change, history: History) -> bool:
        """A change with a version of its own comes from another tier; it must not replace a newer entry."""
        last = history[-1] if history else None
        if change.version is None or last is None or last.version < change.version:
            return True
        return last.version == change.version and not (isinstance(change, Put) and self._readable(history))


async def main() -> None:
    ledger = Ledger()
    store = Store(ledger)
    prices = store.scope("price")
    await prices.set("tea", 3)
    await prices.update("tea", lambda price: price + 1, default=0)
    async with store.transaction() as tx:
        await tx.set("price:tea", 5)
        await tx.set("price:milk", 1)
    await store.delete("price:milk")
    store.sync.set("price:tea", 6)

    print("now:   ", {name: await store.get(name) for name in [name async for name in store.keys()]})
    for key, entries in ledger.entries.items():
        print(f"before: {key}:", [entry and entry.value for entry in entries])


if __name__ == "__main__":
    asyncio.run(main())
