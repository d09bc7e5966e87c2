"""Your own layer: a class around the inner layers, whose fields are its options.

Batches, transactions and updates all use `read` and `write`, so these two methods see every operation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from pocket_plug import Change, Entry, Layer, Put, Store
from pocket_plug.layers import Bounding


class Journal(Layer):
    """Prints each read and write."""

    prefix: str = "store"

    inline_read = inline_write = True  # it doesn't wait itself, so sync callers run it in their own thread

    async def read(self, key: str) -> Entry | None:
        entry = await self.inner.read(key)
        print(f"   {self.prefix}: read {key}: {'hit' if entry else 'miss'}")
        return entry

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        version = await self.inner.write(changes, expect)
        for change in changes:
            what = f"set ({type(change.value).__name__})" if isinstance(change, Put) else "deleted"
            print(f"   {self.prefix}: write {version}: {change.key} {what}")
        return version


async def main() -> None:
    store = Store(layers=[Journal(prefix="shop"), Bounding(max_entries=100)])
    print(store)
    print("set, get")
    await store.set("user:1", "Alice")
    await store.get("user:1")
    print("get_many")
    await store.get_many(["user:1", "user:2"])
    print("update")
    await store.scope("stats").update("visits", lambda visits: visits + 1, default=0)
    print("transaction")
    async with store.transaction() as tx:
        await tx.set("user:2", "Bob")
        await tx.delete("user:1")
    print("without await")
    store.sync.get("user:2")


if __name__ == "__main__":
    asyncio.run(main())
