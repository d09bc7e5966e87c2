"""A store in a SQLite file, on a disk: acknowledged writes survive a crash of the process, or of the machine."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from pocket_plug import Store

from .harness import Bench, row

# SQLite doesn't write a page whose bytes don't change, so each write sets a new value.
KEYS = [f"key:{n}" for n in range(1000)]
VALUES = [{"n": n, "text": f"{n} " * 10} for n in range(4099)]
ENCODED = [msgspec.msgpack.encode(value) for value in VALUES]
KEY, VALUE = f"keys[i % {len(KEYS)}]", f"values[i % {len(VALUES)}]"


def folder(bench: Bench) -> Path:
    """A new folder on a disk: in memory no time would be lost to syncing."""
    place = Path(__file__).parents[2] / ".pocket_plug"
    place.mkdir(exist_ok=True)
    made = Path(bench.enter(TemporaryDirectory(dir=place, prefix="bench-")))
    mounts = Path("/proc/mounts")
    if mounts.exists():
        kinds = {point: kind for _, point, kind, *_ in map(str.split, mounts.read_text().splitlines())}
        kind = next(kinds[str(parent)] for parent in made.resolve().parents if str(parent) in kinds)
        assert kind not in ("tmpfs", "ramfs"), f"{made} is kept in memory ({kind})"
    return made


class Raw:
    """The minimum with SQLite's own module."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.execute = self.connection.cursor().execute
        self.execute("PRAGMA journal_mode = WAL")
        self.execute(f"PRAGMA synchronous = {synchronous}")
        self.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB)")
        self.execute("CREATE TABLE counter (version INTEGER)")
        self.execute("INSERT INTO counter VALUES (0)")

    def set(self, key: str, value: bytes) -> None:
        self.execute(
            "INSERT INTO entries VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
        )

    def set_counted(self, key: str, value: bytes) -> None:
        """The same, with a row that counts the writes."""
        self.execute("BEGIN IMMEDIATE")
        self.set(key, value)
        self.execute("UPDATE counter SET version = version + 1")
        self.execute("COMMIT")

    def set_many(self, pairs: Iterable[tuple[str, bytes]]) -> None:
        self.execute("BEGIN IMMEDIATE")
        for key, value in pairs:
            self.set(key, value)
        self.execute("COMMIT")

    def get(self, key: str) -> Any:
        row = self.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None else msgspec.msgpack.decode(row[0])

    def close(self) -> None:
        self.connection.close()


def raw(bench: Bench, path: Path, synchronous: str) -> Raw:
    """A filled table, checked to write each of its changes."""
    made: Raw = bench.enter(closing(Raw(path, synchronous)))
    made.set_many(zip(KEYS, ENCODED, strict=False))
    with writing(path):
        made.set(KEYS[0], ENCODED[1])
    return made


def ours(bench: Bench, path: Path, durability: str) -> Store:
    """A filled store, checked to write each of its changes."""
    store: Store = bench.enter(Store(f"sqlite:///{path}?durability={durability}"))
    bench.run(store.set_many(dict(zip(KEYS, VALUES, strict=False))))
    with writing(path):
        bench.run(store.set(KEYS[0], VALUES[1]))
    return store


class writing:
    """Within the block, the log of a SQLite file must grow."""

    def __init__(self, path: Path) -> None:
        self.log = Path(f"{path}-wal")

    def __enter__(self) -> None:
        self.size = os.stat(self.log).st_size

    def __exit__(self, *_: object) -> None:
        assert os.stat(self.log).st_size > self.size, f"{self.log} did not grow"


@row
def set_process(bench: Bench) -> None:
    """durable set that survives the process: WAL, synchronous=NORMAL"""
    import diskcache
    from key_value.aio.stores.disk import DiskStore
    from langgraph.store.sqlite import AsyncSqliteStore, SqliteStore

    at = folder(bench)
    names: dict[str, Any] = {"keys": KEYS, "values": VALUES}
    raws: dict[str, Any] = {"keys": KEYS, "values": ENCODED}
    bench.case("pocket_plug", f"await store.set({KEY}, {VALUE})", store=ours(bench, at / "ours", "process"), **names)
    bench.case("raw sqlite3", f"raw.set({KEY}, {VALUE})", raw=raw(bench, at / "raw", "NORMAL"), **raws)
    bench.case(
        "raw sqlite3 with a counter row",
        f"raw.set_counted({KEY}, {VALUE})",
        raw=raw(bench, at / "counted", "NORMAL"),
        **raws,
    )
    bench.target("pocket_plug", 2, "raw sqlite3")

    cache = bench.enter(diskcache.Cache(at / "diskcache"))
    bench.case("diskcache", f"cache.set({KEY}, {VALUE})", cache=cache, **names)
    disk = bench.enter(DiskStore(directory=at / "py-key-value"))
    bench.case("py-key-value DiskStore", f"await store.put({KEY}, {VALUE})", store=disk, **names)
    langgraph = bench.enter(SqliteStore.from_conn_string(str(at / "langgraph")))
    langgraph.setup()
    bench.case(
        "LangGraph SqliteStore (synchronous=FULL)",
        f"store.put(scope, {KEY}, {VALUE})",
        store=langgraph,
        scope=("scope",),
        **names,
    )
    asynchronous = bench.enter(AsyncSqliteStore.from_conn_string(str(at / "langgraph-async")))
    bench.run(asynchronous.setup())
    bench.case(
        "LangGraph AsyncSqliteStore (synchronous=FULL)",
        f"await store.aput(scope, {KEY}, {VALUE})",
        store=asynchronous,
        scope=("scope",),
        **names,
    )


TOGETHER = 100


@row
def set_power(bench: Bench) -> None:
    """durable set that survives a power failure: WAL, synchronous=FULL; wall time"""
    import lmdb

    at = folder(bench)
    store = ours(bench, at / "ours", "power")
    names: dict[str, Any] = {"keys": KEYS, "values": VALUES}
    raws: dict[str, Any] = {"keys": KEYS, "values": ENCODED}
    bench.case("pocket_plug, sync", f"store.set({KEY}, {VALUE})", store=store.sync, wall=True, **names)
    bench.case("raw sqlite3", f"raw.set({KEY}, {VALUE})", raw=raw(bench, at / "raw", "FULL"), wall=True, **raws)
    bench.target("pocket_plug, sync", 1.3, "raw sqlite3")

    bench.case("pocket_plug, async", f"await store.set({KEY}, {VALUE})", store=store, wall=True, **names)
    in_thread = partial(bench.run(running_loop()).run_in_executor, bench.enter(ThreadPoolExecutor(1)))
    bench.case(
        "raw sqlite3 in a thread",
        f"await in_thread(raw.set, {KEY}, {VALUE})",
        in_thread=in_thread,
        raw=raw(bench, at / "thread", "FULL"),
        wall=True,
        **raws,
    )
    bench.target("pocket_plug, async", 2, "raw sqlite3 in a thread")

    bench.case(
        "pocket_plug, 100 at once",
        "await set_at_once(store, next(batches))",
        set_at_once=set_at_once,
        store=store,
        batches=batches(VALUES),
        per=TOGETHER,
        wall=True,
    )
    batch, futures = "raw sqlite3, 100 in one transaction", "gather of 100 futures"
    bench.case(
        batch,
        "raw.set_many(next(batches))",
        raw=raw(bench, at / "batch", "FULL"),
        batches=batches(ENCODED),
        per=TOGETHER,
        wall=True,
    )
    bench.case(futures, futures_at_once, per=TOGETHER, wall=True)
    bench.target("pocket_plug, 100 at once", 2, batch, futures)

    environment = bench.enter(lmdb.open(str(at / "lmdb"), map_size=1 << 28))
    bench.case(
        "lmdb, sync",
        f"put(keys[i % {len(KEYS)}], {VALUE})",
        put=lmdb_put(environment),
        wall=True,
        keys=[key.encode() for key in KEYS],
        values=ENCODED,
    )


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def batches(values: list[Any]) -> Iterator[list[tuple[str, Any]]]:
    """Pairs of keys and values, without end, this many at a time."""
    while True:
        for first in range(0, len(KEYS), TOGETHER):
            start = random.randrange(len(values) - TOGETHER)
            yield list(zip(KEYS[first : first + TOGETHER], values[start : start + TOGETHER], strict=True))


async def set_at_once(store: Store, batch: list[tuple[str, Any]]) -> None:
    await asyncio.gather(*(store.set(key, value) for key, value in batch))


async def futures_at_once(times: int) -> None:
    async def wait(future: asyncio.Future[None]) -> None:
        await future

    def resolve(futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            future.set_result(None)

    loop = asyncio.get_running_loop()
    for _ in range(times):
        futures = [loop.create_future() for _ in range(TOGETHER)]
        loop.call_soon(resolve, futures)
        await asyncio.gather(*map(wait, futures))


def lmdb_put(environment: Any) -> Any:
    def put(key: bytes, value: bytes) -> None:
        with environment.begin(write=True) as transaction:
            transaction.put(key, value)

    return put


@row
def get(bench: Bench) -> None:
    """durable get"""
    import diskcache
    from key_value.aio.stores.disk import DiskStore
    from langgraph.store.sqlite import AsyncSqliteStore, SqliteStore

    at = folder(bench)
    names: dict[str, Any] = {"keys": KEYS}
    bench.case("pocket_plug", f"await store.get({KEY})", store=ours(bench, at / "ours", "power"), **names)
    bench.case("raw sqlite3 + decode", f"raw.get({KEY})", raw=raw(bench, at / "raw", "FULL"), **names)
    bench.target("pocket_plug", 1.3, "raw sqlite3 + decode")

    cache = bench.enter(diskcache.Cache(at / "diskcache"))
    disk = bench.enter(DiskStore(directory=at / "py-key-value"))
    langgraph = bench.enter(SqliteStore.from_conn_string(str(at / "langgraph")))
    langgraph.setup()
    asynchronous = bench.enter(AsyncSqliteStore.from_conn_string(str(at / "langgraph-async")))
    bench.run(asynchronous.setup())
    for key, value in zip(KEYS, VALUES, strict=False):
        cache.set(key, value)
        bench.run(disk.put(key, value))
        langgraph.put(("scope",), key, value)
        bench.run(asynchronous.aput(("scope",), key, value))
    bench.case("diskcache", f"cache.get({KEY})", cache=cache, **names)
    bench.case("py-key-value DiskStore", f"await store.get({KEY})", store=disk, **names)
    bench.case("LangGraph SqliteStore", f"store.get(scope, {KEY})", store=langgraph, scope=("scope",), **names)
    bench.case(
        "LangGraph AsyncSqliteStore", f"await store.aget(scope, {KEY})", store=asynchronous, scope=("scope",), **names
    )
