"""The persistence layer, mode `through` (for `behind`: test_write_behind): a near tier that caches, a
durable one that decides.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pocket_plug import Store, SyncStore
from pocket_plug.errors import ConfigError, ConflictError, StoreClosedError, StoreError
from pocket_plug.layers.bounding import Bounding
from pocket_plug.layers.persistence import Persistence
from pocket_plug.primitives.waiting import drive_inline
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Delete, Entry, Put
from pocket_plug.store.layer import build_stack
from pocket_plug.store.memory import Memory
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.layer_contract import FaultyMemory
from pocket_plug.testing.scenarios import keys_of, works_in_a_child


class Surviving(Memory):
    """Declares itself durable."""

    survives = True


class Gated(Memory):
    """Memory whose operations stop twice: before the operation for `go`, and after it for `back`."""

    inline_read = inline_write = False
    needs_loop = True

    def __init__(self, *gated: str) -> None:
        super().__init__()
        self.gated = gated
        self.reached, self.go, self.done, self.back = (asyncio.Event() for _ in range(4))

    async def _pass(self, what: str, reached: asyncio.Event, gate: asyncio.Event) -> None:
        if what in self.gated:
            reached.set()
            await gate.wait()

    async def read_many(self, keys: Any) -> dict[str, Entry]:
        names = list(keys)
        await self._pass("read", self.reached, self.go)
        found = {key: entry for key in names if (entry := await Memory.read(self, key))}
        await self._pass("read", self.done, self.back)
        return found

    async def read(self, key: str) -> Entry | None:
        return await super().read(key)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        await self._pass("write", self.reached, self.go)
        version = await super().write(changes, expect)
        await self._pass("write", self.done, self.back)
        return version


def tiers(near: Memory | None = None, durable: Memory | None = None) -> tuple[Backend, Memory, Memory]:
    """The stack, its near tier and its durable one."""
    near, durable = near or Memory(), durable or Memory()
    return Persistence(to=durable).build(near), near, durable


# ---------------------------------------------------------------- two tiers as one
def test_a_write_is_in_both_tiers_with_one_version() -> None:
    """The near tier has the durable one's entry, with its version and deadline."""

    async def main() -> None:
        stack, near, durable = tiers()
        await durable.write([Put("before", 0)])
        version = await stack.write([Put("a", 1, expires_at=4e9), Put("b", 2)])
        assert await near.read("a") == await durable.read("a") == Entry(1, version, 4e9)
        await stack.write([Delete("b")])
        assert await near.read("b") is await durable.read("b") is None

    asyncio.run(main())


def test_of_two_changes_of_a_key_the_near_tier_has_the_last() -> None:
    """Both have one version, and the near tier would ignore a second change with the same version."""

    async def main() -> None:
        stack, near, _ = tiers()
        version = await stack.write([Put("a", 1), Put("a", 2), Put("b", 1), Delete("b")])
        assert await near.read_many("ab") == {"a": Entry(2, version)}

    asyncio.run(main())


def test_a_read_fills_the_near_tier() -> None:
    """An entry in the durable tier only is read from there once, then near, with its version and absolute deadline."""

    async def main() -> None:
        durable = FaultyMemory()
        clock = FakeClock()
        near = Memory()
        near.clock = clock
        stack = Persistence(to=durable).build(near)
        version = await durable.write([Put("a", 1, clock() + 10), Put("b", 2)])
        await durable.write([Put("c", 3)])
        durable.used.clear()
        for _ in range(2):
            assert await stack.read("a") == Entry(1, version, clock() + 10)
            assert (await stack.read_many(["a", "b", "absent"])).keys() == {"a", "b"}
        assert durable.used.count("read a") == 1
        assert durable.used[1:] == ["read b absent", "read absent"]
        clock.advance(10)
        assert await stack.read("a") is None

    asyncio.run(main())


def test_several_keys_keep_the_order_of_the_call() -> None:
    """Whichever of them are in memory already."""
    durable = Memory()
    SyncStore(durable).set_many({name: 0 for name in "abcd"})
    store = SyncStore(layers=[Persistence(to=durable)])
    assert store.get("c") == 0
    assert list(store.get_many(["b", "d", "c", "absent", "a"])) == ["b", "d", "c", "a"]


def test_scan_and_version_are_the_durable_ones() -> None:
    """The near tier has only a part, and a counter of its own."""

    async def main() -> None:
        stack, _, durable = tiers()
        await durable.write([Put("a", 1)])
        await durable.write([Put("b", 1)])
        assert await keys_of(stack) == ["a", "b"]
        assert await stack.version() == 2

    asyncio.run(main())


def test_opening_closing_and_flushing_reach_both() -> None:
    """Closing reaches the durable tier even if the near one fails."""

    class Noting(Memory):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        async def open(self) -> None:
            calls.append(f"open {self.name}")

        async def flush(self) -> None:
            calls.append(f"flush {self.name}")

        async def close(self) -> None:
            calls.append(f"close {self.name}")
            if self.name == "near":
                raise StoreError("the near one fails")

    calls: list[str] = []

    async def main() -> None:
        stack, _, _ = tiers(Noting("near"), Noting("durable"))
        await stack.open()
        await stack.flush()
        with pytest.raises(StoreError, match="near one"):
            await stack.close()
        assert sorted(calls) == sorted(
            f"{what} {tier}" for what in ("open", "flush", "close") for tier in ("near", "durable")
        )

    asyncio.run(main())


def test_a_near_tier_that_does_not_open_leaves_none_open() -> None:
    """Otherwise the durable tier's file would stay locked."""

    class Broken(Memory):
        async def open(self) -> None:
            raise StoreError("no")

    async def main() -> None:
        stack, _, durable = tiers(Broken())
        with pytest.raises(StoreError, match="no"):
            await stack.open()
        with pytest.raises(StoreClosedError):
            await durable.read("a")

    asyncio.run(main())


def test_it_is_durable_if_its_durable_tier_is() -> None:
    """Outer layers see that it is durable, and bounding around it is refused."""
    assert Persistence(to=Surviving()).build(Memory()).survives
    assert not Persistence(to=Memory()).build(Memory()).survives


@pytest.mark.parametrize(
    ("near", "durable", "inline"),
    [(Memory, Memory, True), (FaultyMemory, Memory, False), (Memory, FaultyMemory, False)],
)
def test_it_is_inline_if_both_tiers_are(near: type[Memory], durable: type[Memory], inline: bool) -> None:
    """A read that may reach a tier that suspends isn't inline, whichever tier has the key."""
    stack = Persistence(to=durable()).build(near())
    assert (stack.inline_read, stack.inline_write, not stack.needs_loop) == (inline, inline, inline)


def test_both_tiers_use_the_stores_clock() -> None:
    """With different clocks, an entry would be valid in one and expired in the other."""
    clock = FakeClock()
    durable = Memory()
    store = SyncStore(layers=[Persistence(to=durable), Bounding(max_entries=1)], clock=clock)
    store.set("a", 1, ttl=5)
    store.set("b", 1)
    clock.advance(5)
    assert store.get("a") is None
    assert list(store.keys()) == ["b"]


# ---------------------------------------------------------------- the durable tier decides
def test_expectations_are_checked_by_the_durable_tier() -> None:
    """If an outdated near tier answered, a write would overwrite another process's write."""

    async def main() -> None:
        stack, near, durable = tiers()
        seen = await stack.write([Put("a", "mine")])
        await durable.write([Put("a", "theirs")])
        assert await near.read("a") == Entry("mine", seen)
        with pytest.raises(ConflictError) as caught:
            await stack.write([Put("a", "mine again")], {"a": seen})
        assert caught.value.keys == {"a"}
        with pytest.raises(ConflictError):
            await stack.write([], {"a": seen})

    asyncio.run(main())


@pytest.mark.parametrize("changes", [[Put("b", 1)], []], ids=["write", "check"])
def test_on_a_conflict_the_near_tier_drops_the_keys(changes: list[Change]) -> None:
    """Otherwise a retry would read the same outdated version again and again, and conflict each time."""

    async def main() -> None:
        stack, near, durable = tiers()
        seen = await stack.write([Put("a", "mine"), Put("b", 0)])
        theirs = await durable.write([Put("a", "theirs")])
        with pytest.raises(ConflictError):
            await stack.write(changes, {"a": seen})
        assert await near.read("a") is None
        assert await stack.read("a") == Entry("theirs", theirs)

    asyncio.run(main())


def test_an_update_succeeds_with_an_outdated_near_tier() -> None:
    """Another process's update is not lost, and ours succeeds."""
    durable = Memory()
    here, there = (SyncStore(layers=[Persistence(to=durable)]) for _ in range(2))
    for _ in range(3):
        here.update("hits", lambda n: n + 1, default=0)
        there.update("hits", lambda n: n + 1, default=0)
    assert here.update("hits", lambda n: n + 1, default=0) == 7


# ---------------------------------------------------------------- failures and cancellations
def test_a_write_that_fails_leaves_nothing_near() -> None:
    """It may be done or not: both the old and the new value could be wrong."""

    async def main() -> None:
        durable = FaultyMemory()
        stack, near, _ = tiers(durable=durable)
        await stack.write([Put("a", "old"), Put("b", "old")])
        durable.error = StoreError("the disk is full")
        with pytest.raises(StoreError, match="disk"):
            await stack.write([Put("a", "new"), Delete("b")])
        assert await near.read_many("ab") == {}
        with pytest.raises(StoreError, match="disk"):
            await stack.read("a")
        durable.error = None
        assert {key: entry.value for key, entry in (await stack.read_many("ab")).items()} == {"a": "old", "b": "old"}

    asyncio.run(main())


@pytest.mark.parametrize("moment", ["before", "after"])
def test_cancelled_between_the_tiers_the_near_one_drops_the_keys(moment: str) -> None:
    """The durable tier has the write, the near one hasn't: it would return the old value from then on."""

    async def main() -> None:
        durable = Gated()
        stack, near, _ = tiers(durable=durable)
        await stack.write([Put("a", "old")])
        durable.gated = ("write",)
        writing = asyncio.ensure_future(stack.write([Put("a", "new")]))
        await durable.reached.wait()
        if moment == "after":
            durable.go.set()
            await durable.done.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert await near.read("a") is None
        entry = await stack.read("a")
        assert entry is not None
        assert entry.value == ("new" if moment == "after" else "old")

    asyncio.run(main())


def test_a_child_that_is_forked_during_a_write_reads_its_key_from_the_durable_tier() -> None:
    """Nobody finishes the write there, so the old value would stay near for ever."""
    durable = FaultyMemory()
    stack, _, _ = tiers(durable=durable)
    asyncio.run(stack.write([Put("a", "old")]))
    writing: Any = stack.write([Put("a", "new")])
    while drive_inline(Memory.read(durable, "a")) == Entry("old", 1):
        writing.send(None)

    async def use() -> None:
        assert await stack.read("a") == Entry("new", 2)

    assert works_in_a_child(use)
    writing.close()


def test_a_forked_child_reads_what_is_near() -> None:
    """Unless the durable tier notifies of writes (test_near): those of other processes are noticed by neither process then."""
    durable = FaultyMemory()
    stack, _, _ = tiers(durable=durable)
    asyncio.run(stack.write([Put("a", 1)]))
    durable.error = StoreError("this was not to be read")

    async def use() -> None:
        assert await stack.read("a") == Entry(1, 1)

    assert works_in_a_child(use)


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("patience", range(14))
def test_after_any_cancellations_it_never_reads_stale_values(patience: int, times: int) -> None:
    """With tiers that both suspend, even dropping the key may be cancelled: the key is then not trusted until dropped."""

    async def main() -> None:
        stack, _, durable = tiers(FaultyMemory(), FaultyMemory())
        await stack.write([Put("a", "old"), Put("b", "old")])
        writing = asyncio.ensure_future(stack.write([Put("a", "new"), Delete("b")]))
        for _ in range(patience):
            await asyncio.sleep(0)
        for _ in range(times):
            writing.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(writing, return_exceptions=True)
        for key in "ab":
            assert await stack.read(key) == await durable.read(key)

    asyncio.run(main())


def test_a_near_tier_that_fails_fails_no_write(caplog: pytest.LogCaptureFixture) -> None:
    """The durable tier has the write: if the caller got an error, it would write twice. The old value isn't returned."""

    async def main() -> None:
        near = FaultyMemory()
        stack, _, durable = tiers(near)
        await stack.write([Put("a", "old")])
        near.error = StoreError("no memory")
        version = await stack.write([Put("a", "new")])
        assert await durable.read("a") == Entry("new", version)
        with pytest.raises(StoreError, match="no memory"):
            await stack.read("a")
        near.error = None
        assert await stack.read("a") == Entry("new", version)

    with caplog.at_level(logging.WARNING, "pocket_plug"):
        asyncio.run(main())
    assert "near tier could not store a write" in caplog.text
    assert "near tier could not remove 1 key(s)" in caplog.text


# ---------------------------------------------------------------- leases
def test_a_fill_that_comes_after_a_write_is_read_by_nobody() -> None:
    """It is in the near tier for a moment, until its own reader drops it: it must not return a deleted value."""

    class SlowFirst(Gated):
        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
            if self.reached.is_set():
                return await Memory.write(self, changes, expect)
            return await super().write(changes, expect)

    async def main() -> None:
        near = SlowFirst("write")
        stack, _, durable = tiers(near)
        await durable.write([Put("a", "old")])
        filling = asyncio.ensure_future(stack.read("a"))
        await near.reached.wait()
        await stack.write([Delete("a")])
        assert await stack.read("a") is None
        near.go.set()
        await near.done.wait()
        assert await near.read("a") is not None
        assert await stack.read("a") is None
        assert await stack.read_many(["a", "b"]) == {}
        near.back.set()
        assert await filling == Entry("old", 1)
        assert await near.read("a") is None
        assert await stack.read("a") is None

    asyncio.run(main())


@pytest.mark.parametrize("change", [Delete("a"), Put("a", "new")], ids=["delete", "put"])
def test_a_write_breaks_the_lease_of_a_fill(change: Change) -> None:
    """A reader that was overtaken would fill the near tier with a deleted value, which would stay there."""

    async def main() -> None:
        durable = Gated("read")
        stack, near, _ = tiers(durable=durable)
        await durable.write([Put("a", "old")])
        reading = asyncio.ensure_future(stack.read("a"))
        durable.go.set()
        await durable.done.wait()  # it has read the old entry
        await stack.write([change])
        durable.back.set()
        await reading
        assert await near.read("a") == await durable.read("a")

    asyncio.run(main())


@pytest.mark.parametrize("change", [Delete("a"), Put("a", "new")], ids=["delete", "put"])
def test_a_fill_that_was_overtaken_is_dropped(change: Change) -> None:
    """The lease was valid when the fill started, and broken when it arrived."""

    async def main() -> None:
        near = Gated("write")
        stack, _, durable = tiers(near)
        await durable.write([Put("a", "old")])
        reading = asyncio.ensure_future(stack.read("a"))
        await near.reached.wait()  # the fill is under way
        near.gated = ()
        await stack.write([change])
        near.go.set()
        await reading
        assert await stack.read("a") == await durable.read("a")
        assert await near.read("a") == await durable.read("a")

    asyncio.run(main())


def test_no_fill_while_a_write_is_under_way() -> None:
    """Between the durable tier's write and the near tier's, a read must neither see the old value nor fill with it."""

    async def main() -> None:
        durable = Gated()
        stack, near, _ = tiers(durable=durable)
        await stack.write([Put("a", "old")])
        durable.gated = ("write",)
        durable.go.set()
        writing = asyncio.ensure_future(stack.write([Delete("a")]))
        await durable.done.wait()
        assert await stack.read("a") is None
        assert await stack.read_many(["a"]) == {}
        durable.back.set()
        await writing
        assert await near.read("a") is None

    asyncio.run(main())


def test_a_read_during_a_write_fills_nothing() -> None:
    """It may have read the durable tier before the write: its fill would arrive when the write is over."""

    async def main() -> None:
        near, durable = Gated(), Gated()
        stack, _, _ = tiers(near, durable)
        await durable.write([Put("a", "old")])
        durable.gated = near.gated = ("write",)
        writing = asyncio.ensure_future(stack.write([Delete("a")]))
        await durable.reached.wait()  # not done yet
        reading = asyncio.ensure_future(stack.read("a"))
        for _ in range(5):
            await asyncio.sleep(0)
        near.gated = ()
        for gate in (durable.go, durable.back):
            gate.set()
        await writing
        near.go.set()
        await reading
        assert await near.read("a") is None

    asyncio.run(main())


def test_writes_that_overlap_leave_the_near_tier_right() -> None:
    """They may reach the near tier in another order than the durable one: the earlier value must not stay there."""

    async def main() -> None:
        near = Gated("write")
        stack, _, durable = tiers(near)
        first = asyncio.ensure_future(stack.write([Put("a", "first")]))
        await near.reached.wait()  # the durable tier has it
        near.gated = ()
        await stack.write([Delete("a")])
        near.go.set()
        await first
        assert await durable.read("a") is None
        assert await stack.read("a") is None
        assert await near.read("a") is None

    asyncio.run(main())


def test_threads_read_what_was_written_last() -> None:
    """Eight threads set, delete, update and read a few keys: in the end both tiers agree, and no update is lost."""
    durable = Memory()
    near = Memory()
    store = SyncStore(near, layers=[Persistence(to=durable), Bounding(max_entries=3)])
    errors: list[Exception] = []

    def work(me: int) -> None:
        try:
            for n in range(100):
                key = f"k{(n + me) % 5}"
                store.set(key, (me, n))
                store.get(f"k{n % 5}")
                if n % 3 == 0:
                    store.delete(key)
                store.update("hits", lambda n: n + 1, default=0)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []
    assert store.get("hits") == 800
    for key in ("k0", "k1", "k2", "k3", "k4"):
        assert store.get(key) == getattr(drive_inline(durable.read(key)), "value", None)


# ---------------------------------------------------------------- what is refused
def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    """When it is written."""
    with pytest.raises(
        ConfigError, match="persistence's option 'mode' must be one of 'through', 'behind', not 'trough'"
    ):
        Persistence(to=Memory(), mode="trough")  # type: ignore[arg-type]


def test_a_durable_near_tier_is_refused() -> None:
    """A cache that survives the process would return old values without reading the durable tier."""
    with pytest.raises(ConfigError, match="cache"):
        build_stack(Surviving(), [Persistence(to=Surviving())])


def test_one_backend_is_not_both_tiers() -> None:
    """Each write would be done twice to it."""
    memory = Memory()
    with pytest.raises(ConfigError, match="same backend"):
        Persistence(to=memory).build(memory)


def test_a_url_names_the_durable_tier(tmp_path: Any) -> None:
    """`to` accepts what Store accepts; after a restart everything is there."""

    async def main() -> None:
        url = f"sqlite:///{tmp_path}/state.db"
        for expected in (None, {"n": 1}):
            async with Store(layers=[Persistence(to=url), Bounding(max_entries=10)]) as store:
                assert await store.get("a") == expected
                await store.set("a", {"n": 1})

    asyncio.run(main())
