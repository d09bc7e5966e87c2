"""Default arguments of scans: with a prefix only, all names from the first on."""

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


def test_pages_continue_as_long_as_needed() -> None:
    """`size` is the number per read: it doesn't end the pages, and a source without more isn't read again."""
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
