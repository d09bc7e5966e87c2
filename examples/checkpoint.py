"""Save results that took long, so that the next attempt need not compute them again: a checkpoint, which the first node reads.

The store is a SQLite file, so the next attempt can be made by another process.
"""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pocket_plug import Action, Graph, Key, Next, Node, Store, StoreReader, StoreWriter, node


@dataclass(frozen=True)
class Scan:
    pages: int
    words: int


@dataclass(frozen=True)
class Checkpoint:
    step: str
    scan: Scan
    at: datetime


LATEST = Key("checkpoint:{}:latest", Checkpoint)


class Recover(Node[str, str, "Checkpoint | None"]):
    """Continues from the checkpoint of an earlier attempt, if there is one."""

    resume = Action[Scan]()

    async def prep(self, store: StoreReader, book: str) -> Checkpoint | None:
        return await store.get(LATEST(book))

    async def post(
        self, store: StoreWriter, book: str, found: Checkpoint | None, _: Checkpoint | None
    ) -> str | Next[Scan]:
        return book if found is None else self.resume(found.scan)


class ScanBook(Node[str, Scan]):
    async def exec(self, book: str) -> Scan:
        print(f"   scanning {book!r} for hours")
        return Scan(pages=320, words=96_000)

    async def post(self, store: StoreWriter, book: str, _: str, scan: Scan) -> Scan:
        await store.set(LATEST(book), Checkpoint("scanned", scan, datetime.now(UTC)))
        return scan


@node
async def print_book(scan: Scan) -> str:
    if not printer["has paper"]:
        raise RuntimeError("the printer is out of paper")
    return f"printed {scan.pages} pages, {scan.words} words"


printer = {"has paper": False}


async def attempt(file: Path) -> None:
    async with Store(f"sqlite:///{file}") as store:
        recover, printing = Recover(), print_book
        graph = Graph(recover >> ScanBook() >> printing, recover.resume >> printing, store=store, name="reprint")
        try:
            print("  ", await graph.run("Moby-Dick"))
        except RuntimeError as error:
            print("   failed:", error)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print("first attempt")
        await attempt(Path(folder, "books.db"))
        printer["has paper"] = True
        print("second attempt")
        await attempt(Path(folder, "books.db"))


if __name__ == "__main__":
    asyncio.run(main())
