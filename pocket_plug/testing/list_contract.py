"""Tests of append-only lists, for any backend and layer: no appended item is lost, and no removed one is seen again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import pytest

from pocket_plug.codec import default_codec
from pocket_plug.errors import CodecError, ConfigError, ConflictError, MissingKeyError, StoreError, ValueTypeError
from pocket_plug.primitives.lists import ItemList, place_of
from pocket_plug.primitives.names import ITEMS
from pocket_plug.primitives.values import Value
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Delete, Put
from pocket_plug.store.keys import Key
from pocket_plug.store.layer import Layer
from pocket_plug.store.store import Store, StoreWriter
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.scenarios import awaited_by

StoreScenario = Callable[[Store], Awaitable[None]]
Use = Callable[[StoreWriter], Awaitable[object]]

_LOG = Key("log:{}", list[int])
APPENDERS = 8


class _Unregistered:
    """A type that the codec doesn't know."""


async def all_items(store: Store, key: str) -> list[Value]:
    """The items of a list, the oldest one first."""
    return [item async for item in store.each_item(key)]


async def left_of(store: Store, key: str) -> list[int]:
    """The numbers of all items that the backend still has, of the current and former lists at a key."""
    places = [place_of(name) async for name in store.stack.scan(ITEMS)]
    return [place.number for place in places if place is not None and place.owner == key]


class Weighed(Layer):
    """Counts the bytes of names and records that writes pass on."""

    inline_read = inline_write = True

    def on_build(self) -> None:
        self.written = [0]

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """Count the bytes, and write to the inner backend."""
        for change in changes:
            record = default_codec.encode(change.value) if isinstance(change, Put) else b""
            self.written[0] += len(change.key.encode()) + len(record)
        return await self.inner.write(changes, expect)


class ListContract:
    """The promises of `append`, `tail`, `trim`, `length` and `each_item`; `BackendContract` inherits it."""

    @awaited_by("run_store")
    async def test_items_come_in_the_order_of_their_appends(self, store: Store) -> None:
        """`append` returns the length, `tail` the last items, `each_item` all, also over several pages."""
        assert (await store.length("l"), await store.tail("l", 5), await all_items(store, "l")) == (0, [], [])
        for n in range(230):
            assert await store.append("l", {"n": n}) == n + 1
        items = [{"n": n} for n in range(230)]
        assert await store.length("l") == 230
        for n in (0, 1, 3, 229, 230, 1000):
            assert await store.tail("l", n) == items[len(items) - min(n, 230) :]
        assert await all_items(store, "l") == items
        assert await store.has("l")
        assert [name async for name in store.keys()] == ["l"]
        assert [pair async for pair in store.items()] == [("l", ItemList(230))]
        assert await store.count() == 1

    @awaited_by("run_store")
    async def test_an_item_that_a_store_refuses_is_named_by_its_list(self, store: Store) -> None:
        """An item that can't be encoded raises an error with the list's key, and isn't appended. Memory takes any object."""
        said: str | None = None
        await store.append("chat:7", 1)
        try:
            await store.append("chat:7", _Unregistered())
        except CodecError as error:
            said = str(error)
        assert await store.length("chat:7") == (2 if said is None else 1)
        if said is not None:
            assert ITEMS not in said
            assert "'chat:7'" in said, "the error must name the key: encode values by pocket_plug.codec.record_of"

    @awaited_by("run_store")
    async def test_a_scope_s_lists_are_its_own(self, store: Store) -> None:
        """Lists of different keys are separate, also those of scopes, and those whose names look like names of items."""
        names = ["a", "a:", "a:b", "a:b:c", "b", "a\x00", "a:00000000:0000000000", "\U0010ffff", "k" * 1000, "%"]
        for name in names:
            for n in range(3):
                await store.append(name, [name, n])
        await store.scope("a").append("b", "of the scope")
        for name in names:
            expected: list[object] = [[name, n] for n in range(3)]
            assert await store.tail(name, 9) == expected + ["of the scope"] * (name == "a:b")
        assert await store.delete("a")
        assert await store.delete_prefix("a:b") == 2
        assert await store.delete_many(["b", "absent"]) == 1
        for name in names:
            gone = name in ("a", "a:b", "a:b:c", "b")
            assert await store.length(name) == (0 if gone else 3)
            assert await left_of(store, name) == ([] if gone else [0, 1, 2])

    @awaited_by("run_store")
    async def test_a_trimmed_list_has_its_last_items(self, store: Store) -> None:
        """`trim` keeps the last items, removes the others from the backend, and returns their number. Appends continue."""
        assert await store.trim("l", keep=1) == 0
        for n in range(250):
            await store.append("l", n)
        assert await store.trim("l", keep=300) == 0
        assert await store.trim("l", keep=230) == 20
        assert await store.trim("l", keep=10) == 220
        assert await left_of(store, "l") == list(range(240, 250))
        assert await store.append("l", 250) == 11
        assert await store.tail("l", 20) == await all_items(store, "l") == list(range(240, 251))
        assert await store.trim("l", keep=0) == 11
        assert (await store.length("l"), await store.has("l"), await left_of(store, "l")) == (0, True, [])
        assert await store.append("l", 251) == 1
        assert await store.tail("l", 2) == [251]

    @awaited_by("run_store")
    async def test_a_list_that_is_begun_again_has_no_old_items(self, store: Store, clock: FakeClock) -> None:
        """After a list was deleted, overwritten or has expired, its items are never seen again; later appends remove them."""
        for n in range(5):
            await store.append("l", f"old {n}")
        assert await store.delete("l")
        assert not await store.delete("l")
        assert await left_of(store, "l") == []
        for n in range(5):
            await store.append("l", f"older {n}", ttl=10)
        clock.advance(10)
        assert (await store.length("l"), await store.tail("l", 9)) == (0, [])
        assert await store.append("l", "new") == 1
        assert await store.tail("l", 9) == ["new"]
        await store.set("l", "a value")
        assert await store.get("l") == "a value"
        await store.append("another", 1)
        assert await left_of(store, "l") == []
        assert await store.delete("l")
        assert await store.append("l", "newest") == 1
        assert await all_items(store, "l") == ["newest"]

    @awaited_by("run_store")
    async def test_a_list_has_one_deadline(self, store: Store, clock: FakeClock) -> None:
        """An append keeps the deadline of the key, or sets it by `ttl`; `touch` changes it. The list expires as a whole."""
        await store.append("l", 1, ttl=10)
        await store.append("l", 2)
        assert await store.ttl("l") == 10
        clock.advance(6)
        await store.append("l", 3, ttl=10)
        clock.advance(6)
        assert await store.tail("l", 3) == [1, 2, 3]
        assert await store.touch("l", ttl=None)
        await store.trim("l", keep=2)
        clock.advance(100)
        assert await store.tail("l", 3) == [2, 3]
        assert await store.ttl("l") is None
        await store.touch("l", ttl=1)
        clock.advance(1)
        assert (await store.tail("l", 3), await store.has("l")) == ([], False)

    @awaited_by("run_store")
    async def test_a_list_is_no_value_and_a_value_no_list(self, store: Store) -> None:
        """Operations on single values raise for a list, and operations on lists for a value; nothing is changed."""
        await store.append("l", 1)
        await store.set("v", [1])
        for use in (
            lambda: store.get("l"),
            lambda: store.require("l"),
            lambda: store.entry("l"),
            lambda: store.get_many(["v", "l"]),
            lambda: store.update("l", lambda value: value, default=0),
            lambda: store.pop("l"),
            lambda: store.get(_LOG(1)),
        ):
            await store.append("log:1", 1)
            with pytest.raises(ValueTypeError, match=r"'l(og:1)?' is an append-only list .* tail"):
                await use()
        for use in (
            lambda: store.append("v", 1),
            lambda: store.tail("v", 1),
            lambda: store.trim("v", keep=1),
            lambda: store.length("v"),
            lambda: all_items(store, "v"),
        ):
            with pytest.raises(ValueTypeError, match="'v' holds a value of type list"):
                await use()
        assert not await store.add("l", 2)
        assert (await store.tail("l", 2), await store.get("v")) == ([1], [1])
        for number in (-1, True, 1.5):
            with pytest.raises(ConfigError, match="number of items"):
                await store.tail("l", _any(number))
            with pytest.raises(ConfigError, match="number of items"):
                await store.trim("l", keep=_any(number))

    @awaited_by("run_store")
    async def test_a_list_s_items_are_of_the_declared_type(self, store: Store) -> None:
        """A `Key` declares the type of the list, a typed view that of its items; other types are refused on appends and reads."""
        assert await store.append(_LOG(7), 1) == 1
        with pytest.raises(ValueTypeError, match=r"log:7.*, the value is list\[str\]"):
            await store.append(_LOG(7), _any("two"))
        typed = store.typed(int)
        assert await typed.append("log:7", 2) == 2
        with pytest.raises(ValueTypeError):
            await typed.append("log:7", _any("three"))
        assert await typed.tail("log:7", 3) == await store.tail(_LOG(7), 3) == [1, 2]
        assert [item async for item in typed.each_item("log:7")] == [1, 2]
        assert (await typed.length("log:7"), await typed.trim("log:7", keep=1)) == (2, 1)
        await store.append("log:7", "three")
        with pytest.raises(ValueTypeError):
            await store.tail(_LOG(7), 1)
        with pytest.raises(ValueTypeError):
            await typed.tail("log:7", 1)

    @awaited_by("run_store")
    async def test_no_append_is_lost(self, store: Store) -> None:
        """Concurrent appenders all have their items in the list, each in its order; a concurrent trim loses none."""

        async def appender(who: int) -> None:
            for n in range(10):
                await store.append("l", (who, n))

        await asyncio.gather(*map(appender, range(APPENDERS)))
        items = await store.tail("l", 1000)
        assert len(items) == APPENDERS * 10
        for who in range(APPENDERS):
            assert [item for item in items if item[0] == who] == [(who, n) for n in range(10)]
        trimming = asyncio.ensure_future(store.trim("l", keep=5))
        await asyncio.gather(*map(appender, range(APPENDERS)))
        assert await store.length("l") == 2 * APPENDERS * 10 - await trimming
        assert len(await all_items(store, "l")) == await store.length("l")

    @awaited_by("run_store")
    async def test_an_item_that_can_t_be_stored_is_its_appender_s(self, store: Store) -> None:
        """If an item is refused, concurrent appends of others are not affected."""
        tried = [store.append("l", object() if n == 3 else n) for n in range(6)]
        done = await asyncio.gather(*tried, return_exceptions=True)
        failed = [each for each in done if isinstance(each, BaseException)]
        assert all(isinstance(each, CodecError) for each in failed)
        assert [item for item in await store.tail("l", 9) if isinstance(item, int)] == [0, 1, 2, 4, 5]
        assert await store.length("l") == 6 - len(failed)

    @awaited_by("run_store")
    async def test_a_transaction_appends_at_its_commit(self, store: Store) -> None:
        """A transaction sees its own appends and trims; others see them after the commit, all at once."""
        for n in range(4):
            await store.append("l", n)
        async with store.transaction() as tx:
            assert await tx.append("l", 4) == 5
            assert await tx.append("l", 5) == 6
            assert await tx.append("new", "a") == 1
            assert await tx.trim("l", keep=3) == 3
            assert await tx.tail("l", 9) == [item async for item in tx.each_item("l")] == [3, 4, 5]
            assert await store.tail("l", 9) == [0, 1, 2, 3]
            assert await store.length("new") == 0
        assert await store.tail("l", 9) == [3, 4, 5]
        assert (await store.tail("new", 9), await left_of(store, "l")) == (["a"], [3, 4, 5])
        async with store.transaction() as tx:
            assert await tx.delete("l")
            assert await tx.tail("l", 9) == []
            assert await tx.append("l", "again") == 1
            assert await tx.delete_many(["new"]) == 1
        assert (await all_items(store, "l"), await left_of(store, "new")) == (["again"], [])
        assert await left_of(store, "l") == [0]
        with pytest.raises(ZeroDivisionError):
            async with store.transaction() as tx:
                await tx.append("l", 1 / 0)
        assert await store.tail("l", 9) == ["again"]

    @awaited_by("run_store")
    async def test_a_transaction_that_read_a_list_expects_it(self, store: Store) -> None:
        """A transaction that read a list, its length or an item conflicts with an append, a trim or a delete: no phantoms."""

        async def in_between(read: Use, change: Use) -> None:
            async with store.transaction() as tx:
                await read(tx)
                await tx.set("derived", 1)
                await change(store)

        reads: list[Use] = [
            lambda view: view.tail("l", 1),
            lambda view: view.length("l"),
            lambda view: view.append("l", "mine"),
            lambda view: view.trim("l", keep=1),
        ]
        changes: list[Use] = [
            lambda view: view.append("l", 3),
            lambda view: view.trim("l", keep=1),
            lambda view: view.delete("l"),
        ]
        for read in reads:
            for change in changes:
                await store.delete("l")
                await store.append("l", 1)
                await store.append("l", 2)
                with pytest.raises(ConflictError) as caught:
                    await in_between(read, change)
                assert caught.value.keys == {"l"}
        assert not await store.has("derived")

    @awaited_by("run_store")
    async def test_a_reader_beside_trims_sees_the_list_of_a_moment(self, store: Store) -> None:
        """`tail` returns consecutive items, however the list is trimmed meanwhile; `each_item` skips removed items."""
        for n in range(40):
            await store.append("l", n)
        over = asyncio.Event()

        async def change() -> None:
            for n in range(40, 100):
                await store.append("l", n)
                await store.trim("l", keep=6)
            over.set()

        async def read() -> None:
            while not over.is_set():
                items = await store.tail("l", 5)
                assert items == list(range(items[0], items[0] + 5))
                all_of_them = await all_items(store, "l")
                assert all_of_them == sorted(all_of_them)
                await asyncio.sleep(0)

        await asyncio.gather(change(), read())
        iteration = store.each_item("l")
        assert await anext(iteration) == 94
        await store.delete("l")
        await store.append("l", "of the next one")
        assert "of the next one" not in [item async for item in iteration]

    @awaited_by("run_store")
    async def test_an_append_writes_little_besides_its_item(self, store: Store) -> None:
        """For an item of 400 bytes, an append writes at most 1.3 times as many bytes, whatever the list's length."""
        weighed, head_key = Weighed(), "chat:1234567"
        over = Store(store.stack.inner, layers=[weighed], clock=store.stack.clock)
        layer = over.stack.inner
        assert isinstance(layer, Weighed)
        for _ in range(3):
            await over.append(head_key, "x" * 400)
        for n in (3, 100_000, 4_000_000_000):
            head = await over.stack.read(head_key)
            assert head is not None
            await over.stack.write([Put(head_key, head.value._replace(first=n, next=n))])
            before = layer.written[0]
            await over.append(head_key, "x" * 400)
            assert layer.written[0] - before <= 1.3 * 400

    @awaited_by("run_store")
    async def test_items_that_are_missing_are_an_error(self, store: Store) -> None:
        """If items were removed behind the list's back, reading them raises; only a store that evicts leaves them out."""
        for n in range(3):
            await store.append("l", n)
        names = [name async for name in store.stack.scan(ITEMS)]
        await store.stack.write([Delete(names[1])])
        if store.stack.evicts:
            assert await store.tail("l", 3) == [0, 2]
            return
        assert await store.tail("l", 1) == [2]
        with pytest.raises(StoreError, match="'l' is a list that lacks 1 of the 3 items"):
            await store.tail("l", 3)
        async with store.transaction() as tx:
            with pytest.raises(StoreError, match="lacks 1"):
                await tx.tail("l", 3)
        assert await store.delete("l")
        assert await left_of(store, "l") == []
        with pytest.raises(MissingKeyError):
            await store.require("l")


def _any(value: Value) -> Value:
    """A value that a type checker would refuse."""
    return value
