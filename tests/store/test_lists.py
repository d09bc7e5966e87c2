"""Append-only lists, in addition to the contract: limits of a backend, leftovers of lists, nodes, bounds, tiers, damage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import (
    Change,
    ConflictError,
    Delete,
    Graph,
    ItemList,
    Key,
    Memory,
    Node,
    Put,
    Store,
    StoreError,
    StoreReader,
    StoreWriter,
    SyncReader,
    SyncStore,
    SyncWriter,
    UndeclaredKeyError,
    ValueTypeError,
    WriteSizeError,
    node,
)
from pocket_plug.layers import Bounding, Persistence
from pocket_plug.primitives.lists import ListHead, item_of
from pocket_plug.primitives.names import ITEMS
from pocket_plug.store import lists
from pocket_plug.testing.clock import FakeClock

CHAT = Key("chat:{}", list[str])


class Counting(Memory):
    """Limits the changes and expectations of a write, and counts its calls."""

    def __init__(self, max_changes: int | None = None) -> None:
        super().__init__()
        self.max_changes = max_changes
        self.writes: list[int] = []
        self.scans = 0
        self.broken = False

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        if self.max_changes is not None and len(changes) + len(expect) > self.max_changes:
            raise WriteSizeError(f"{len(changes) + len(expect)} is too much")
        self.writes.append(len(changes))
        return await super().write(changes, expect)

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        self.scans += 1
        if self.broken:
            raise StoreError("no scan today")
        async for key in super().scan(prefix, after=after, reverse=reverse, limit=limit):
            yield key


def items_in(store: SyncStore) -> list[str]:
    """The names of all items that the backend has."""

    async def found() -> list[str]:
        return [name async for name in store.stack.scan(ITEMS)]

    return asyncio.run(found())


def test_an_append_is_one_write_of_two_entries() -> None:
    """Also the hundredth: it reads the head, and nothing else."""
    backend = Counting()
    store = SyncStore(backend)
    store.append("l", 0)
    backend.writes.clear()
    backend.scans = 0
    for n in range(200):
        store.append("l", n)
    assert backend.writes == [2] * 200
    assert backend.scans == 0


@pytest.mark.parametrize("most", [3, 4, 7, 150])
def test_no_write_has_more_changes_than_a_backend_takes(most: int) -> None:
    """Large appends, trims, deletes and removals of leftovers respect `max_changes`."""
    backend = Counting(most)

    async def main() -> None:
        store = Store(backend)
        await asyncio.gather(*(store.append("l", n) for n in range(300)))
        assert sorted(await store.tail("l", 300)) == list(range(300))
        assert await store.trim("l", keep=40) == 260
        assert len([item async for item in store.each_item("l")]) == 40
        await store.delete("l")
        for n in range(30):
            await store.append("m", n)
        await store.set("m", "a value")
        await store.append("n", 1)
        await store.delete_prefix("")
        assert [name async for name in store.stack.scan()] == []

    asyncio.run(main())
    assert max(backend.writes) <= most


def test_leftovers_of_many_lists_are_removed_by_later_appends() -> None:
    """However long the overwritten lists were: a store with appends doesn't grow without end."""
    store = SyncStore()
    for n in range(3000):
        store.append("long", n)
    for round in range(60):
        for n in range(10):
            store.append(f"l:{round}", n)
        store.append("kept", round)
        store.set(f"l:{round}", "overwritten")
    store.set("long", "overwritten")
    for n in range(64 * 6):
        store.append("kept", n)
        if n == 0:
            store.append("another", n)
    assert {name.split(":")[1].removeprefix("+") for name in items_in(store)} == {"kept", "another"}
    assert store.length("kept") == 60 + 64 * 6


def test_a_removal_of_leftovers_skips_uncertain_ones(caplog: pytest.LogCaptureFixture) -> None:
    """If a list has changed since, or the store fails, nothing is removed; the appended item stays."""
    backend = Counting()
    store = SyncStore(backend)
    store.append("l", 1)
    store.set("l", "overwritten")
    backend.broken = True
    with caplog.at_level(logging.WARNING, "pocket_plug"):
        assert store.append("m", 1) == 1
    assert "could not be deleted" in caplog.text
    backend.broken = False
    assert store.tail("m", 1) == [1]
    assert len(items_in(store)) == 2
    assert store.append("n", 1) == 1
    assert len(items_in(store)) == 2


def test_items_of_a_list_that_a_cache_does_not_know_yet_stay() -> None:
    """A near tier may be behind: what looks like a leftover there is none, and isn't removed."""
    shelf = Memory()
    first = SyncStore(layers=[Persistence(to=shelf)])
    second = SyncStore(layers=[Persistence(to=shelf)])
    first.set("l", "a value")
    assert second.get("l") == "a value"  # which it keeps in its cache
    first.delete("l")
    first.append("l", 1)
    first.append("l", 2)
    second.append("m", 1)
    assert first.tail("l", 2) == [1, 2]
    assert second.append("l", 3) == 3
    assert second.tail("l", 3) == SyncStore(shelf).tail("l", 3) == [1, 2, 3]


def test_a_cache_with_an_old_head_reads_again_what_was_trimmed() -> None:
    """Items that another process has trimmed are no damage: the head is read again from the durable tier."""
    shelf = Memory()
    first = SyncStore(layers=[Persistence(to=shelf)])
    second = SyncStore(layers=[Persistence(to=shelf)])
    for n in range(9):
        first.append("l", n)
    assert second.length("l") == 9
    first.append("l", 9)
    first.trim("l", keep=2)
    assert second.tail("l", 5) == [8, 9]
    assert second.length("l") == 2


def test_bounds_evict_the_oldest_items() -> None:
    """Items count as entries, so a list in a bounded store keeps its newest items; an unused list is evicted."""
    evicted: list[tuple[str, object]] = []
    store = SyncStore(
        layers=[Bounding(max_entries=5, on_evict=lambda key, value, reason: evicted.append((key, value)))]
    )
    for n in range(20):
        store.append("l", n)
    assert store.tail("l", 20) == [16, 17, 18, 19]
    assert list(store.each_item("l")) == [16, 17, 18, 19]
    assert [value for _, value in evicted] == list(range(16))
    for n in range(5):
        store.set(f"k{n}", n)
    assert (store.tail("l", 5), items_in(store)) == ([], [])


def test_a_bound_in_time_removes_old_items() -> None:
    """With a layer's `ttl` each item expires after that time, and the list lives as long as items are appended."""
    clock = FakeClock()
    store = SyncStore(layers=[Bounding(ttl=60)], clock=clock)
    for n in range(4):
        store.append("l", n)
        clock.advance(25)
    assert store.tail("l", 4) == [2, 3]
    clock.advance(60)
    assert store.tail("l", 4) == []
    assert store.append("l", 4) == 1


class Ask(Node[str, str], reads=(CHAT,)):
    async def prep(self, store: StoreReader, text: str) -> str:
        return " ".join([*await store.tail(CHAT(7), 2), text])

    async def exec(self, prepared: str) -> str:
        return prepared.upper()


class Note(Node[str, str], writes=(CHAT,)):
    def post(self, store: SyncWriter, text: str, prepared: object, result: object) -> str:
        store.append(CHAT(7), text)
        store.trim(CHAT(7), keep=3)
        return text


class Stray(Node[str, str], writes=(Key("other"),)):
    async def post(self, store: StoreWriter, text: str, prepared: object, result: object) -> str:
        await store.append(CHAT(7), text)
        return text


class Add(Node[int, int], writes=(Key("new", list[int]),)):
    async def post(self, store: StoreWriter, n: int, prepared: object, result: object) -> int:
        return await store.append("new", n)


def test_nodes_keep_a_conversation() -> None:
    """`post` appends, `prep` reads the last items, async and sync; a declared list includes its items."""
    store = Store()
    graph = Graph(Ask() >> Note(), store=store, name="chat")
    said = [graph.run_sync(text) for text in "abcd"]
    assert said == ["A", "A B", "A A B C", "A B A A B C D"]
    assert store.sync.tail(CHAT(7), 9) == ["A B", "A A B C", "A B A A B C D"]
    with pytest.raises(UndeclaredKeyError, match="'chat:7'"):
        Graph(Stray(), store=store, name="stray").run_sync("e")


def test_nodes_that_append_to_one_list_lose_nothing() -> None:
    """Concurrent runs, each with an append in `post`: all items are there, though each commit expects the unchanged list."""

    async def main() -> None:
        store = Store()
        graph = Graph(Add(), store=store, name="adding")
        lengths = await asyncio.gather(*(graph.run(n) for n in range(40)))
        assert sorted(lengths) == list(range(1, 41))
        assert sorted(await store.tail("new", 99)) == list(range(40))

    asyncio.run(main())


def test_a_node_that_appends_removes_leftovers() -> None:
    """A transaction looks for leftovers too; removing them needs no declaration, and causes no conflict."""
    store = SyncStore()
    for n in range(5):
        store.append("old", n)
    store.set("old", 0)
    Graph(Add(), store=store, name="adding").run_sync(1)
    assert len(items_in(store)) == 1
    assert store.get("old") == 0


def test_a_transaction_leaves_items_above_the_limit_of_one_write() -> None:
    """A commit removes some hundred items; later appends remove the rest, without starting a list."""
    store = SyncStore()
    store.append("kept", 0)
    for n in range(1200):
        store.append("trimmed", n)
        store.append("gone", n)
    with store.transaction() as tx:
        assert tx.trim("trimmed", keep=10) == 1190
        assert tx.delete("gone")
    assert (store.length("trimmed"), store.length("gone")) == (10, 0)
    assert len(items_in(store)) > 1000
    for n in range(64 * 8):
        store.append("kept", n)
    assert len(items_in(store)) == 1 + 64 * 8 + 10


def test_items_read_in_a_transaction_are_copies() -> None:
    """Changing an item in place changes a private copy."""
    store = SyncStore()
    store.append("l", {"n": 1})
    with store.transaction() as tx:
        tx.tail("l", 1)[0]["n"] = 2
    assert store.tail("l", 1) == [{"n": 1}]


def test_sync_views_and_readers_have_lists_too() -> None:
    """Each kind of view has the operations that it may use; a reader has no `append`."""
    store = SyncStore()
    assert (store.append(CHAT(1), "a"), store.scope("chat").append("1", "b")) == (1, 2)
    reader = store.reader()
    assert isinstance(reader, SyncReader)
    assert not hasattr(reader, "append")
    assert (reader.tail(CHAT(1), 1), reader.length(CHAT(1)), list(reader.each_item(CHAT(1)))) == (["b"], 2, ["a", "b"])
    assert list(reader.items()) == [("chat:1", ItemList(2))]
    typed = store.typed(str)
    assert (typed.append("chat:1", "c"), typed.tail("chat:1", 1), typed.length("chat:1")) == (3, ["c"], 3)
    assert (list(typed.each_item("chat:1")), typed.trim("chat:1", keep=1)) == (["a", "b", "c"], 2)
    with pytest.raises(ValueTypeError, match="chat:1"):
        list(typed.items())


def test_a_damaged_head_keeps_its_items(tmp_path: Path) -> None:
    """If a list's head can't be read, its items are unknown: removal of leftovers skips them."""
    import sqlite3

    url = f"sqlite:///{tmp_path}/state.db"
    with SyncStore(url) as store:
        store.append("l", 1)
        store.append("m", 1)
        store.delete("m")
    connection = sqlite3.connect(tmp_path / "state.db")
    with connection:
        (table,) = [
            name
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if "entr" in name
        ]
        connection.execute(f"UPDATE {table} SET value = x'00' WHERE key = 'l'")
    connection.close()
    with SyncStore(url) as store:
        store.append("n", 1)
        assert len(items_in(store)) == 2
        assert (store.delete("l"), store.delete("l"), store.append("l", 2), store.tail("l", 5)) == (True, False, 1, [2])


def test_an_items_name_has_the_template_only() -> None:
    """Telemetry shows a Key's template; the name of an item has it too."""
    name: Any = item_of(Key("chat:{}")("secret").full_name(), "c0ffee00", 1)
    assert getattr(name, "template", "") == "chat:{}"


def test_a_conflict_in_the_middle_of_a_list_s_read_is_the_transaction_s() -> None:
    """If its list is trimmed during its read, it can't continue with items of two moments: ConflictError."""
    store = SyncStore()
    for n in range(5):
        store.append("l", n)
    with pytest.raises(ConflictError) as caught, store.transaction() as tx:
        assert tx.length("l") == 5
        store.trim("l", keep=1)
        tx.tail("l", 5)
    assert caught.value.keys == {"l"}


@pytest.mark.parametrize("phase", ["prep", "post", "on_success"])
@pytest.mark.parametrize("times", [1, 5], ids=["once", "until it has its turn"])
def test_a_node_whose_list_was_trimmed_during_a_read_is_repeated(phase: str, times: int) -> None:
    """As after a conflict of its commit, which would find the same."""
    store, tries = SyncStore(), list[str]()
    for n in range(10):
        store.append("l", n)

    def read(view: SyncReader) -> list[int]:
        length = view.length("l")
        tries.append(phase)
        if len(tries) <= times:
            store.trim("l", keep=length - 1)
        items: list[int] = view.tail("l", length)
        return items

    class Reads(Node[str, list[int]]):
        def prep(self, store: SyncReader, name: str) -> list[int]:
            return read(store) if phase == "prep" else []

        def post(self, store: SyncWriter, name: str, prepared: list[int], found: list[int]) -> list[int]:
            found = read(store) if phase == "post" else found
            store.set("found", found)
            return found

        def on_success(self, store: SyncWriter, found: list[int]) -> None:
            if phase == "on_success":
                store.set("found", read(store))

    Graph(Reads()).run_sync("", store=store)
    assert store.get("found") == list(range(times, 10))
    assert len(tries) == times + 1


def test_a_conflict_that_a_phase_raises_itself_is_its_own() -> None:
    """Only a conflict that its transaction has found is a reason to repeat it."""
    store, tries = SyncStore(), list[int]()

    @node.post
    def adds(store: SyncWriter, n: int) -> int:
        tries.append(n)
        store.set("k", n, expect=7)
        return n

    with pytest.raises(ConflictError):
        Graph(adds).run_sync(1, store=store)
    assert tries == [1]


def test_endless_trims_during_a_read_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the head has changed at each try to read, the read ends with an error that says so."""

    class Restless(Counting):
        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
            if not changes:
                raise ConflictError([*expect])
            return await super().write(changes, expect)

    store = SyncStore(Restless())
    monkeypatch.setattr(lists, "READ_TRIES", 3)

    async def torn() -> None:
        await store.stack.write([Put("l", ListHead("c0ffee00", 0, 2)), Delete("absent")])

    asyncio.run(torn())
    with pytest.raises(StoreError, match="trimmed or replaced at each of 3 tries"):
        store.tail("l", 2)
