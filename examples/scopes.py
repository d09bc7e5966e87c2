"""Scopes: a part of a store, in which names need no prefix. For components, for tenants, for whole graphs.

The parts that fill a `Key` are escaped, so a tenant called "acme:admin" can't reach the scope "admin" of "acme".
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pocket_plug import Graph, Key, Store, StoreWriter, node


@dataclass(frozen=True)
class Order:
    id: str
    amount: int


TENANT = Key("tenant:{}")
LAST = Key("last_order", Order)
REVENUE = Key("revenue", int)


@node.post
async def book(store: StoreWriter, order: Order) -> int:
    """Doesn't depend on tenants: its store is the tenant's scope."""
    await store.set(LAST, order)
    return await store.update(REVENUE, lambda total: total + order.amount, default=0)


async def main() -> None:
    store = Store()

    users = store.scope("user")
    await users.set("7", "Alice")
    await users.scope("admin").set("1", "Bob")
    print("from the root:", await store.get("user:7"), "and", await store.get("user:admin:1"))
    print("from within:  ", [name async for name in users.keys()])

    for tenant, amount in [("acme", 30), ("globex", 5), ("acme", 12), ("acme:admin", 1)]:
        graph = Graph(book, store=store.scope(TENANT(tenant)), name="book")
        print(f"{tenant} has turned over {await graph.run(Order('o-1', amount))}")

    for name in [name async for name in store.keys("tenant:")]:
        print("  ", name, "=", await store.get(name))


if __name__ == "__main__":
    asyncio.run(main())
