"""Remove temporary data: in `post` together with the result, and in `on_complete` also after an error.

If a lock was not released after an error, all others would be locked out.
"""

from __future__ import annotations

import asyncio

from pocket_plug import Graph, Key, Node, Store, StoreWriter, node

LOCK = Key("temp:lock:{}", str)
DRAFT = Key("temp:draft:{}", str)
PUBLISHED = Key("published:{}", str)


@node.post
async def draft(store: StoreWriter, title: str) -> str:
    await store.set(DRAFT(title), f"{title}: a first draft")
    await store.set(LOCK("press"), title, ttl="1h")  # if the process dies, the lock expires
    return title


class Publish(Node[str, str]):
    async def exec(self, title: str) -> str:
        if title == "gossip":
            raise ValueError("we don't print gossip")
        return title.upper()

    async def post(self, store: StoreWriter, title: str, _: str, text: str) -> str:
        await store.set(PUBLISHED(title), text)
        await store.delete(DRAFT(title))  # in the same commit
        return text

    async def on_failure(self, store: StoreWriter, error: BaseException) -> None:
        print("   on_failure: ", error)

    async def on_complete(self, store: StoreWriter) -> None:
        print("   on_complete: lock freed:", await store.delete(LOCK("press")))


async def main() -> None:
    store = Store()
    press = Graph(draft >> Publish(), store=store, name="press")
    for title in ("news", "gossip"):
        print(title)
        try:
            print("  ", await press.run(title))
        except ValueError:
            print("   not published")
        print("   left in the store:", [name async for name in store.keys()])


if __name__ == "__main__":
    asyncio.run(main())
