"""Tests of the methods that users call, for any backend and layer: backends and layers must not break them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pocket_plug.errors import ConflictError, MissingKeyError
from pocket_plug.store.backend import Backend, Put
from pocket_plug.store.store import Store
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.scenarios import awaited_by

StoreScenario = Callable[[Store], Awaitable[None]]

CALLERS = 8


class StoreContract:
    """The promises of a store over the backend under test; `BackendContract` inherits it."""

    @pytest.fixture
    def run_store(self, make_backend: Callable[[], Backend], clock: FakeClock) -> Callable[[StoreScenario], None]:
        """Runs a scenario with an open store over the backend."""

        def run(scenario: StoreScenario) -> None:
            async def main() -> None:
                async with Store(make_backend(), clock=clock) as store:
                    await scenario(store)

            asyncio.run(main())

        return run

    @awaited_by("run_store")
    async def test_names_come_in_pages(self, store: Store) -> None:
        """`keys` yields the names of a scope after `after`, or in reverse before it, at most `limit`, and no reserved names."""
        await store.stack.write([Put("pocket:mine:1", 1), Put("pocket:mine:2", 2)])
        names = ["o", "pocket", "pocket;", "q", *(f"s:{n}" for n in range(5))]
        await store.set_many(dict.fromkeys(names, 0))
        for limit in (None, 0, 1, 2, 3, 20):
            for after in (None, "a", "o", "pocket", "pocket:", "pocket:n", "q", "s:3", "t"):
                behind = [name for name in names if after is None or name > after]
                before = [name for name in reversed(names) if after is None or name < after]
                found = [name async for name in store.keys(after=after, limit=limit)]
                assert found == (behind if limit is None else behind[:limit])
                found = [name async for name in store.keys(after=after, reverse=True, limit=limit)]
                assert found == (before if limit is None else before[:limit])
        scope = store.scope("s")
        assert [name async for name in scope.keys(after="1", limit=2)] == ["2", "3"]
        assert [name async for name in scope.keys(after="3", limit=2, reverse=True)] == ["2", "1"]
        assert [name async for name in store.keys("pocket:")] == []
        assert (await store.count(), await store.count("pocket"), await scope.count()) == (9, 2, 5)

    @awaited_by("run_store")
    async def test_items_are_pairs_of_what_is_there(self, store: Store, clock: FakeClock) -> None:
        """`items` yields names with values, as many as `limit` if there are enough, and no expired ones."""
        scope = store.scope("i")
        names = [f"{n:03}" for n in range(230)]
        await scope.set_many({name: [name] for name in names})
        await scope.set("100", None)
        await scope.set("101", 0, ttl=5)
        clock.advance(5)
        left = [name for name in names if name != "101"]
        pairs = [pair async for pair in scope.items()]
        assert pairs == [(name, None if name == "100" else [name]) for name in left]
        assert [pair async for pair in scope.items("1", after="099", limit=150)] == pairs[100:199]
        assert [pair async for pair in scope.items(reverse=True, limit=120)] == pairs[::-1][:120]
        assert [pair async for pair in scope.items("2", after="227")] == pairs[-2:]

    @awaited_by("run_store")
    async def test_removing_several_gives_how_many_were_there(self, store: Store) -> None:
        """`delete_many` and `delete_prefix` remove exactly the named keys, and return how many existed."""
        await store.stack.write([Put("pocket:mine", 1)])
        await store.set_many({f"d:{n}": n for n in range(12)} | {"c": 0, "d": 0, "e": 0})
        assert await store.delete_many(["d:0", "d:1", "d:1", "absent"]) == 2
        assert await store.delete_many(["absent"]) == await store.delete_many([]) == 0
        assert await store.scope("d").delete_prefix("1") == 2
        assert await store.delete_prefix("d:") == 8
        assert await store.delete_prefix("d:") == 0
        assert [name async for name in store.keys()] == ["c", "d", "e"]
        assert await store.delete_prefix("") == 3
        assert await store.stack.read("pocket:mine") is not None

    @awaited_by("run_store")
    async def test_one_value_is_popped_by_one_caller(self, store: Store) -> None:
        """If several callers pop a key at once, one gets the value; the others, and later ones, get their default."""
        for _ in range(5):
            await store.set("p", ["job"])
            popped = await asyncio.gather(*(store.pop("p", None) for _ in range(CALLERS)))
            assert sorted(popped, key=bool) == [None] * (CALLERS - 1) + [["job"]]
        assert not await store.has("p")
        with pytest.raises(MissingKeyError, match="'p'"):
            await store.pop("p")

    @awaited_by("run_store")
    async def test_one_of_several_adds(self, store: Store, clock: FakeClock) -> None:
        """If several callers add a key at once, one gets True, and its value is stored until it expires."""
        for _ in range(3):
            added = await asyncio.gather(*(store.add("a", n, ttl=10) for n in range(CALLERS)))
            assert sorted(added) == [False] * (CALLERS - 1) + [True]
            assert await store.get("a") == added.index(True)
            clock.advance(10)
        await store.set("none", None)
        assert not await store.add("none", 1)

    @awaited_by("run_store")
    async def test_a_touch_changes_the_deadline_only(self, store: Store, clock: FakeClock) -> None:
        """`touch` sets or removes the deadline of an entry; `update` does with `ttl`."""
        assert not await store.touch("t", ttl=5)
        assert not await store.has("t")
        await store.set("t", {"n": 1}, ttl=5)
        assert await store.touch("t", ttl="1m")
        assert await store.ttl("t") == 60
        clock.advance(30)
        assert await store.update("t", lambda value: {**value, "m": 2}) == {"n": 1, "m": 2}
        assert await store.ttl("t") == 30
        await store.update("t", lambda value: value, ttl=90)
        assert await store.ttl("t") == 90
        assert await store.touch("t", ttl=None)
        clock.advance(1000)
        assert await store.get("t") == {"n": 1, "m": 2}
        assert await store.ttl("t") is None
        await store.update("new", lambda value: value + 1, default=0, ttl=3)
        assert await store.ttl("new") == 3

    @awaited_by("run_store")
    async def test_an_entry_s_version_can_be_expected(self, store: Store, clock: FakeClock) -> None:
        """`entry` returns value, version and deadline; `set` with `expect` writes if the entry has this version, or raises
        ConflictError."""
        assert await store.entry("e") is None
        await store.set("e", "old", expect=0, ttl=7)
        first = await store.entry("e")
        assert first is not None
        assert (first.value, first.expires_at) == ("old", clock() + 7)
        await store.set("e", "new", expect=first.version)
        for version in (first.version, 0):
            with pytest.raises(ConflictError) as caught:
                await store.set("e", "lost", expect=version)
            assert caught.value.keys == {"e"}
        second = await store.entry("e")
        assert second is not None
        assert (second.value, second.expires_at) == ("new", None)
        assert second.version != first.version

    @awaited_by("run_store")
    async def test_a_transaction_has_all_of_it(self, store: Store) -> None:
        """Each operation in a transaction sees the earlier ones; others see nothing until the commit."""
        await store.set_many({"x:1": 1, "x:2": 2, "x:3": 3})
        async with store.transaction() as tx:
            assert await tx.pop("x:1") == 1
            assert await tx.pop("x:1", None) is None
            assert await tx.add("x:1", "again")
            assert not await tx.add("x:2", "other")
            await tx.set("x:4", 4)
            own = await tx.entry("x:4")
            assert own is not None
            await tx.set("x:4", 44, expect=own.version)
            with pytest.raises(ConflictError):
                await tx.set("x:4", 0, expect=0)
            assert await tx.delete_many(["x:3", "x:9"]) == 1
            assert [pair async for pair in tx.items("x:")] == [("x:1", "again"), ("x:2", 2), ("x:4", 44)]
            assert await tx.count("x:") == 3
            assert await store.count("x:") == 3
            assert await store.get("x:1") == 1
            assert await tx.delete_prefix("x:4") == 1
            assert await tx.touch("x:2", ttl=9)
        assert [pair async for pair in store.items("x:")] == [("x:1", "again"), ("x:2", 2)]
        assert await store.ttl("x:2") == 9
