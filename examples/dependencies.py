"""A node declares what it reads from the store and what it writes. The graph's picture shows it, and the store enforces it.

The keys of `reads` are read together before prep. Access to a key that was not declared raises an error.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pocket_plug import Graph, Key, Node, Store, StoreReader, StoreWriter, UndeclaredKeyError


@dataclass(frozen=True)
class Order:
    id: str
    user: str
    items: int
    price: float = 0.0


PRICE = Key("config:price_per_item", float)
DISCOUNT = Key("user:{}:discount", float)
ORDER = Key("order:{}", Order)
SOLD = Key("metrics:items_sold", int)


class PriceOrder(Node[Order, Order], reads=(PRICE, DISCOUNT), writes=(ORDER, SOLD)):
    """Prices an order, and stores it."""

    async def prep(self, store: StoreReader, order: Order) -> tuple[Order, float]:
        discount = await store.get(DISCOUNT(order.user), 0.0)
        return order, await store.require(PRICE) * (1 - discount)

    async def exec(self, prepared: tuple[Order, float]) -> Order:
        order, price = prepared
        return Order(order.id, order.user, order.items, round(order.items * price, 2))

    async def post(self, store: StoreWriter, order: Order, _: tuple[Order, float], priced: Order) -> Order:
        await store.set(ORDER(order.id), priced)
        await store.update(SOLD, lambda sold: sold + order.items, default=0)
        return priced


class Nosy(Node[Order, Order], reads=(PRICE,)):
    async def prep(self, store: StoreReader, order: Order) -> object:
        return await store.get("user:alice:diary")


async def main() -> None:
    store = Store()
    await store.set(PRICE, 9.99)
    await store.set(DISCOUNT("alice"), 0.1)

    graph = Graph(PriceOrder(), store=store, name="pricing")
    print(await graph.run(Order("o-1", "alice", 3)))
    print(await graph.run(Order("o-2", "bob", 1)))
    print("sold:", await store.get(SOLD))
    try:
        await Graph(Nosy(), store=store).run(Order("o-3", "alice", 1))
    except UndeclaredKeyError as error:
        print("refused:", error)
    print(graph.mermaid())


if __name__ == "__main__":
    asyncio.run(main())
