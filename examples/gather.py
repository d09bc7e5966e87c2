"""Branches at the same time: `gather` takes one value through several branches, and joins their results.

A branch is a node or a chain of nodes. Its nodes keep their own retries, transactions and spans.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pocket_plug import Graph, Key, Node, Retry, Store, StoreReader, gather, node

PRICE = Key("price:{}", float)


@dataclass
class Stock:
    product: str
    pieces: int


class Price(Node[str, float]):
    """Reads from the store."""

    async def prep(self, store: StoreReader, product: str) -> float:
        return await store.require(PRICE(product))


calls = 0


@node(retry=Retry(attempts=2))
async def stock(product: str) -> Stock:
    """Pretends to ask a warehouse, which doesn't answer the first time."""
    global calls
    calls += 1
    if calls == 1:
        raise ConnectionError("no answer")
    return Stock(product, 3)


@node
async def reviews(product: str) -> list[int]:
    return [5, 4, 3]


@node
def mean(stars: list[int]) -> float:
    return sum(stars) / len(stars)


@node
def page(found: tuple[float, Stock, float]) -> str:
    price, there, stars = found
    return f"{there.product}: {price:.2f}, {there.pieces} pieces, {stars:.1f} stars"


async def main() -> None:
    store = Store()
    await store.set(PRICE("tea"), 4.5)
    graph = Graph(gather(Price(), stock, reviews >> mean) >> page, store=store, name="page")
    print(await graph.run("tea"))
    try:
        await graph.run("milk")
    except LookupError as error:
        print("refused:", error)


if __name__ == "__main__":
    asyncio.run(main())
