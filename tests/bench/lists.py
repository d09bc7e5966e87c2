"""Append-only lists: an append costs the same at any length, compared with a list that an update rewrites."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

from pocket_plug import Put, Store, SyncStore
from pocket_plug.codec import default_codec
from pocket_plug.primitives.lists import ListHead, item_of

from .harness import Bench, row
from .sqlite import folder

FEW, MANY = 100, 100_000
PAYLOAD = "x" * 400
SAMPLE = 150
"""Appends of which the written bytes are measured: fewer than fill a write-ahead log."""


async def fill(store: Store, length: int) -> None:
    """Make a list of this many items."""
    for _ in range(min(length, FEW)):
        await store.append("l", PAYLOAD)
    entry = await store.stack.read("l")
    assert entry is not None
    generation = entry.value.generation
    for start in range(FEW, length, 1000):
        end = min(start + 1000, length)
        items = [Put(item_of("l", generation, n), PAYLOAD) for n in range(start, end)]
        await store.stack.write([*items, Put("l", ListHead(generation, 0, end))])


def cases(bench: Bench, kind: str, few: Store, many: Store) -> None:
    """An append at both lengths, and an update that rewrites a list."""
    for store, length in ((few, FEW), (many, MANY)):
        bench.run(fill(store, length))
        bench.case(f"{kind}, append at {length:,}", "await store.append('l', text)", store=store, text=PAYLOAD)
    bench.target(f"{kind}, append at {MANY:,}", 1.2, f"{kind}, append at {FEW:,}")
    for length in (FEW, 2000):
        bench.run(few.set(f"rewritten {length}", [PAYLOAD] * length))
        bench.case(
            f"{kind}, rewritten by update at {length:,}",
            "await store.update(key, lambda items: [*items[1:], text])",
            store=few,
            key=f"rewritten {length}",
            text=PAYLOAD,
        )


@row
def append_memory(bench: Bench) -> None:
    """append of 400 bytes to a list in memory; its length stays what it is for an update"""
    cases(bench, "memory", Store(), Store())


@row
def append_sqlite(bench: Bench) -> None:
    """append of 400 bytes to a list in SQLite, durability=process; what it writes is in the next row"""
    at = folder(bench)
    few, many = (bench.enter(Store(f"sqlite:///{at}/{name}.db?durability=process")) for name in ("few", "many"))
    cases(bench, "SQLite", few, many)


def written(path: Path, store: SyncStore, number: int, work: Any) -> float:
    """By how many bytes the write-ahead log grows per call."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for _ in range(number):
        work(store)
    return path.with_name(f"{path.name}-wal").stat().st_size / number


@row
def bytes_written(bench: Bench) -> None:
    """bytes that an append of 400 bytes writes: as entries, and of SQLite's pages; beside a set of the same to a new key"""
    bench.unit = "bytes"
    at, names = folder(bench), count()
    for length in (FEW, MANY):
        path = at / f"{length}.db"
        store = bench.enter(Store(f"sqlite:///{path}?durability=process"))
        bench.run(fill(store, length))
        bench.value(f"entries, append at {length:,}", entries_of(length))
        bench.value(
            f"pages, append at {length:,}", written(path, store.sync, SAMPLE, lambda sync: sync.append("l", PAYLOAD))
        )
        bench.value(
            f"pages, set beside it at {length:,}",
            written(path, store.sync, SAMPLE, lambda sync: sync.set(f"new:{next(names):09}", PAYLOAD)),
        )
        # plus the head's page; it was 1.3 while a set also wrote the counter's page
        bench.target(f"pages, append at {length:,}", 1.4, f"pages, set beside it at {length:,}")
    bench.value("payload", len(PAYLOAD))
    bench.target(f"entries, append at {MANY:,}", 1.3, "payload")
    store = bench.enter(Store(f"sqlite:///{at}/rewritten.db?durability=process"))
    bench.run(store.set("l", [PAYLOAD] * 2000))
    bench.value(
        "pages, rewritten by update at 2,000",
        written(at / "rewritten.db", store.sync, 3, lambda sync: sync.update("l", lambda items: [*items[1:], PAYLOAD])),
    )


def entries_of(length: int) -> float:
    """Names and records that an append passes to the backend."""
    head = ListHead("c0ffee00", 0, length)
    pairs: list[tuple[str, object]] = [("l", head), (item_of("l", head.generation, length), PAYLOAD)]
    return float(sum(len(name.encode()) + len(default_codec.encode(value)) for name, value in pairs))
