"""The migrate layer: values that a read has upgraded are written back, and nothing else; no other write is lost by it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import Store, SyncStore
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.codec import default_codec, upgraded
from pocket_plug.errors import StoreError
from pocket_plug.layers.bounding import Bounding
from pocket_plug.layers.migrate import Migrate
from pocket_plug.layers.persistence import Persistence
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Delete, Entry, Put
from pocket_plug.store.layer import Layer
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.contracts import BackendContract
from pocket_plug.testing.layer_contract import FaultyMemory, LayerContract


class TestMigrate(LayerContract):
    def recipe(self) -> Layer:
        return Migrate()


class TestMigrateOverSQLite(BackendContract):
    @pytest.fixture
    def make_backend(self, tmp_path: Path, clock: FakeClock) -> Callable[[], Backend]:
        def make() -> Backend:
            file = SQLite(tmp_path / "state.db", durability="process")
            file.clock = clock
            return Migrate().build(file)

        return make


# ---------------------------------------------------------------- a type of two versions
def note_of(*names: str, **options: Any) -> Any:
    """The class as a program had it at some time, registered with the process's codec."""
    cls: Any = make_dataclass("Note", names)
    cls.__module__ = __name__
    default_codec.register(cls, tag="tests.migrate.Note", **options)
    return cls


def old_note() -> Any:
    return note_of("text")


def new_note() -> Any:
    return note_of("text", "pinned", version=2, upgrade={1: lambda fields: {**fields, "pinned": False}})


class Spy(Layer):
    """The operations of the migrate layer on the backend; `before_write` is called once, just before it writes."""

    def on_build(self) -> None:
        self.written: list[tuple[Sequence[Change], Mapping[str, int]]] = []
        self.before_write: Any = None

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        self.written.append((list(changes), dict(expect)))
        between, self.before_write = self.before_write, None
        if between is not None:
            await between()
        return await self.inner.write(changes, expect)


async def stack_with(path: Path, values: Mapping[str, Any], clock: FakeClock) -> tuple[Backend, Spy, SQLite]:
    """A stack over a file with these values, some of an old version; they have versions 1, 2, … in order."""
    file = SQLite(path, durability="process")
    file.clock = clock
    await file.open()
    for key, value in values.items():
        await file.write([Put(key, value, clock() + 60 if key == "mortal" else None)])
    spy = Spy().build(file)
    assert isinstance(spy, Spy)
    return Migrate().build(spy), spy, file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "notes.db"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def version_stored(file: SQLite, key: str) -> int:
    """The type's version in the record itself."""
    (row,) = file._rows("SELECT value FROM entries WHERE key = ?", ((key,),))
    return row[0][row[0].index(b"tests.migrate.Note") + len(b"tests.migrate.Note")]


def test_an_upgraded_value_is_written_back_once(path: Path, clock: FakeClock) -> None:
    """The first read of an old record writes the new one and returns its version; the next read writes nothing."""
    old = old_note()

    async def main() -> None:
        stack, spy, file = await stack_with(path, {"a": old("x"), "b": [old("y"), {"deep": old("z")}]}, clock)
        new = new_note()
        for key, value in {"a": new("x", False), "b": [new("y", False), {"deep": new("z", False)}]}.items():
            assert version_stored(file, key) == 1
            first = await stack.read(key)
            assert first is not None
            assert first.value == value
            assert version_stored(file, key) == 2
            assert await stack.read(key) == await file.read(key) == first
        assert [list(expect) for _, expect in spy.written] == [["a"], ["b"]]
        await stack.close()

    asyncio.run(main())


def test_values_that_were_not_upgraded_are_never_written(path: Path, clock: FakeClock) -> None:
    """Values of the current version, of other types, and missing keys."""
    new = new_note()

    async def main() -> None:
        stack, spy, _ = await stack_with(path, {"a": new("x", True), "b": {1: (2,)}}, clock)
        assert (await stack.read_many(["a", "b", "c"])).keys() == {"a", "b"}
        for key in "abc":
            await stack.read(key)
        assert spy.written == []
        await stack.close()

    asyncio.run(main())


def test_in_a_batch_only_the_old_ones_are_written(path: Path, clock: FakeClock) -> None:
    """The others keep their versions."""
    old = old_note()

    async def main() -> None:
        stack, spy, file = await stack_with(path, {"a": 1, "b": old("x"), "c": 3, "d": old("y")}, clock)
        new = new_note()
        entries = await stack.read_many("abcde")
        assert {key: entry.value for key, entry in entries.items()} == {
            "a": 1, "b": new("x", False), "c": 3, "d": new("y", False),
        }  # fmt: skip
        assert entries == await file.read_many("abcd")
        assert entries["a"].version == 1
        assert [list(expect) for _, expect in spy.written] == [["b"], ["d"]]
        await stack.close()

    asyncio.run(main())


def test_the_deadline_stays(path: Path, clock: FakeClock) -> None:
    """It is written unchanged, so writing back doesn't renew it."""
    old = old_note()

    async def main() -> None:
        stack, spy, _ = await stack_with(path, {"mortal": old("x")}, clock)
        new_note()
        entry = await stack.read("mortal")
        assert entry is not None
        assert entry.expires_at == clock() + 60
        (change,) = spy.written[0][0]
        assert isinstance(change, Put)
        assert not change.renews
        clock.advance(61)
        assert await stack.read("mortal") is None
        await stack.close()

    asyncio.run(main())


@pytest.mark.parametrize("batch", [False, True], ids=["read", "read_many"])
def test_a_write_in_between_is_not_lost(
    path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture, batch: bool
) -> None:
    """Another caller sets the key between our read and our write: its value stays, the read returns what it has read."""
    old = old_note()

    async def main() -> None:
        stack, spy, file = await stack_with(path, {"a": old("x")}, clock)
        new = new_note()

        async def theirs() -> None:
            await file.write([Put("a", "theirs")])

        spy.before_write = theirs
        entry = (await stack.read_many(["a"]))["a"] if batch else await stack.read("a")
        assert entry == Entry(new("x", False), 1)
        kept = await stack.read("a")
        assert kept is not None
        assert kept.value == "theirs"
        assert caplog.records == []
        await stack.close()

    asyncio.run(main())


def test_an_entry_that_expires_or_is_removed_in_between_does_not_come_back(path: Path, clock: FakeClock) -> None:
    """A removed or expired entry isn't written again."""
    old = old_note()

    async def main() -> None:
        stack, spy, file = await stack_with(path, {"a": old("x"), "mortal": old("y")}, clock)
        new_note()

        async def remove() -> None:
            await file.write([Delete("a")])

        async def expire() -> None:
            clock.advance(61)

        for key, between in {"a": remove, "mortal": expire}.items():
            spy.before_write = between
            assert await stack.read(key) is not None
            assert await stack.read(key) is None
        await stack.close()

    asyncio.run(main())


def test_readers_in_threads_and_writers_lose_nothing(path: Path) -> None:
    """Counters of an old version, incremented by some threads while others only read: every increment counts."""
    old = old_note()
    with SyncStore(SQLite(path, durability="process")) as store:
        for n in range(20):
            store.set(f"n{n}", old(0))
    new = new_note()

    def more(note: Any) -> Any:
        return new(note.text + 1, note.pinned)

    with SyncStore(SQLite(path, durability="process", timeout=30), layers=[Migrate()]) as store:
        start = threading.Barrier(4)

        def write() -> None:
            start.wait()
            for n in range(20):
                store.update(f"n{n}", more)

        def read() -> None:
            start.wait()
            for n in range(20):
                store.get_many([f"n{n}", f"n{19 - n}"])

        threads = [threading.Thread(target=target) for target in (write, write, read, read)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [store.get(f"n{n}") for n in range(20)] == [new(2, False)] * 20


def test_a_failed_write_back_is_logged_and_the_value_is_returned(
    path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk or a read-only file is no reason to fail the read; the next read tries again."""
    old = old_note()

    async def main() -> None:
        stack, spy, file = await stack_with(path, {"a": old("x")}, clock)
        new = new_note()

        async def fail() -> None:
            raise StoreError("the disk is full")

        spy.before_write = fail
        with caplog.at_level(logging.WARNING, "pocket_plug"):
            assert await stack.read("a") == Entry(new("x", False), 1)
        assert "could not be written back" in caplog.text
        assert "the disk is full" in caplog.text
        await stack.read("a")
        assert version_stored(file, "a") == 2
        await stack.close()

    asyncio.run(main())


def test_a_cancelled_read_stops_watching_for_upgrades() -> None:
    """Later reads in the same thread are not affected."""
    stack = Migrate().build(FaultyMemory())
    reading = stack.read("a")
    reading.send(None)
    assert upgraded.get() == []
    with pytest.raises(asyncio.CancelledError):
        reading.throw(asyncio.CancelledError())
    assert upgraded.get() is None


def test_tasks_see_their_own_upgrades_only(path: Path, clock: FakeClock) -> None:
    """One task reads old records, another one current ones: only the first writes."""
    old = old_note()

    async def main() -> None:
        stack, spy, _ = await stack_with(path, {"old": old("x"), "other": 1}, clock)
        new_note()
        await asyncio.gather(*[stack.read(key) for key in ("other", "old", "other", "old")])
        assert {key for _, expect in spy.written for key in expect} == {"old"}
        await stack.close()

    asyncio.run(main())


def test_over_persistence_the_durable_record_is_renewed(path: Path) -> None:
    """With a cache in front as without; ordered by name, it is outside of layers that encode values."""
    old = old_note()
    with SyncStore(SQLite(path)) as store:
        store.set("a", old("x"))
    new = new_note()
    with SyncStore(layers=[Migrate(), Persistence(to=SQLite(path)), Bounding(max_entries=10)]) as store:
        assert store.get("a") == new("x", False)
        assert store.get("a") == new("x", False)
    note_of("text", "pinned", version=2)  # no upgrade any more: the stored record needs none
    with SyncStore(SQLite(path)) as store:
        assert store.get("a").pinned is False
    assert str(Store(layers={"migrate", "metrics"})) == "Store(Metrics() > Migrate() > memory)"


def test_a_transaction_reads_old_records(path: Path) -> None:
    """It expects the versions after the write-back, so it does not conflict with itself."""
    old = old_note()
    with SyncStore(SQLite(path)) as store:
        store.set_many({"a": old(1), "b": old(2)})
    new = new_note()
    with SyncStore(SQLite(path), layers=[Migrate()]) as store:
        with store.transaction() as tx:
            one, both = tx.get("a"), tx.get_many(["a", "b"])
            tx.set("a", both["b"])
            tx.set("b", one)
        assert store.get_many(["a", "b"]) == {"a": new(2, False), "b": new(1, False)}
