"""Many items at a time: `each` turns a node for one item into a node for many, and `fan_out` does it without a graph.

Results have the order of the items. The first error cancels the other items, unless errors are collected.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from pocket_plug import Graph, Node, each, fan_out, node


@dataclass
class Fetch(Node[str, bytes]):
    """Pretends to fetch a page, and counts how many are fetched at the same time."""

    running: int = 0
    most: int = 0
    pages: dict[str, bytes] = field(
        default_factory=lambda: {f"/{n}": b"x" * n for n in range(20)},
    )

    async def exec(self, url: str) -> bytes:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0)
            return self.pages[url]
        finally:
            self.running -= 1


@node
def total(pages: list[bytes]) -> int:
    return sum(map(len, pages))


async def main() -> None:
    fetch = Fetch()
    crawl = Graph(each(fetch, concurrency=5) >> total, name="crawl")
    print(await crawl.run([f"/{n}" for n in range(20)]), "bytes, at most", fetch.most, "pages at a time")

    print(await fan_out(fetch, ["/3", "/1", "/2"]))
    print(await fan_out(fetch, ["/1", "/nowhere"], errors="collect"))
    try:
        await fan_out(fetch, ["/1", "/nowhere", "/2"])
    except KeyError as error:
        print("refused:", error)


if __name__ == "__main__":
    asyncio.run(main())
