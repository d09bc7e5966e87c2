"""What scans are made of, where nothing but the prefix is given: from the first key on, all of them."""

from __future__ import annotations

import asyncio

from pocket_plug import Memory, Put
from pocket_plug.store.scanning import merged, paged, stretch


def test_forward_and_all_is_the_default() -> None:
    """As for the `scan` of a backend."""

    async def main() -> None:
        memory = Memory()
        await memory.write([Put(name, 0) for name in ("a", "b:1", "b:3", "c")])
        assert stretch(["a", "b:1", "b:3", "c"], "b:") == ["b:1", "b:3"]
        assert [key async for key in paged(memory, "b:")] == ["b:1", "b:3"]
        assert [key async for key in merged(memory, ["b:2", "d"], "b:")] == ["b:1", "b:2", "b:3"]

    asyncio.run(main())


def test_pages_go_on_for_whoever_needs_more() -> None:
    """`size` is how many are asked for at a time: it doesn't end them, and a source that has no more isn't asked again."""
    asked: list[tuple[str, int | None]] = []

    class Asked(Memory):
        def scan(self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None):
            asked.append((after, limit))
            return super().scan(prefix, after=after, reverse=reverse, limit=limit)

    async def main() -> None:
        memory = Asked()
        await memory.write([Put(name, 0) for name in "abcde"])
        assert [key async for key in paged(memory, "", size=2)] == list("abcde")
        assert asked == [("", 2), ("b", 2), ("d", 2)]

    asyncio.run(main())
