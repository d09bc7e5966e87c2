"""Many nodes that write the same key: each gets its turn, so none conflicts without end, and nothing is lost."""

from __future__ import annotations

import asyncio

import pytest

import pocket_plug as pp
from pocket_plug.testing.layer_contract import FaultyMemory

MANY = 300


@pp.node.post
async def in_post(store: pp.StoreWriter, n: int) -> int:
    await store.update("total", lambda total: total + 1, default=0)
    await store.update(f"part:{n % 3}", lambda total: total + 1, default=0)
    return n


class InPrepAndPost(pp.Node[int, int]):
    async def prep(self, store: pp.StoreReader, n: int) -> int:
        return await store.get("total", 0)  # type: ignore[no-any-return]

    async def post(self, store: pp.StoreWriter, n: int, total: int, result: int) -> int:
        await store.set("total", total + 1)
        return n


class InHook(pp.Node[int, int]):
    async def on_success(self, store: pp.StoreWriter, n: int) -> None:
        await store.update("total", lambda total: total + 1, default=0)


@pytest.mark.parametrize("concurrency", [2, 8, 40])
@pytest.mark.parametrize("node", [in_post, InPrepAndPost(), InHook()], ids=["post", "prep and post", "hook"])
def test_a_fan_out_over_one_key_counts_everything(node: pp.Node[int, int], concurrency: int) -> None:
    """Any number at a time: new items don't overtake those that had a conflict before."""

    async def main() -> None:
        async with pp.Store(FaultyMemory()) as store:
            items = pp.each(pp.Graph(node, name="item"), concurrency=concurrency)
            assert await pp.Graph(items, store=store).run(range(MANY)) == [*range(MANY)]
            assert await store.get("total") == MANY

    asyncio.run(main())


def test_nodes_and_updates_of_one_key_both_succeed() -> None:
    """Neither a fan-out nor concurrent updates conflict without end."""

    async def main() -> None:
        async with pp.Store(FaultyMemory()) as store:

            async def beside() -> None:
                for _ in range(MANY):
                    await store.update("total", lambda total: total + 1, default=0)

            items = pp.each(pp.Graph(in_post, name="item"), concurrency=8)
            await asyncio.gather(beside(), beside(), pp.Graph(items, store=store).run(range(MANY)))
            assert await store.get("total") == 3 * MANY

    asyncio.run(main())


def test_a_node_that_waits_for_a_key_may_update_it_in_exec() -> None:
    """It conflicts with itself, since it changes what its prep has read; that is an error, not a deadlock."""

    async def main() -> None:
        async with pp.Store(FaultyMemory()) as store:

            class Defeating(InPrepAndPost):
                async def exec(self, total: int) -> int:
                    return await store.update("total", lambda total: total + 1, default=0)

            with pytest.raises(pp.ConflictError, match="total"):
                async with asyncio.timeout(30):
                    await pp.Graph(Defeating(), store=store).run(1)

    asyncio.run(main())
