"""The bounding layer: over Memory, which then evicts itself, and over another backend, with an index."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import weakref
from collections import OrderedDict
from dataclasses import replace
from datetime import timedelta
from itertools import count
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pocket_plug import Store, SyncStore
from pocket_plug.errors import ConfigError, ConflictError, StoreError
from pocket_plug.layers.bounding import Bounding, size_of
from pocket_plug.layers.persistence import Persistence
from pocket_plug.primitives.waiting import drive, drive_inline
from pocket_plug.store.backend import Backend, Delete, Entry, Put
from pocket_plug.store.layer import Layer, build_stack
from pocket_plug.store.memory import Memory
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.interrupts import Between
from pocket_plug.testing.layer_contract import FaultyMemory
from pocket_plug.testing.scenarios import keys_of


class Plain(Memory):
    """As inline as Memory, but another class, so bounding needs an index."""


class Flaky(Plain):
    """Can't delete while it is `broken`."""

    broken = False

    async def write(self, changes: Any, expect: Any = {}) -> int:  # noqa: B006
        if self.broken and isinstance(changes[0], Delete):
            raise StoreError("no deletes today")
        return await super().write(changes, expect)


class Surviving(Memory):
    """Declares itself durable."""

    survives = True


class Record:
    """An `on_evict` that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, str]] = []

    def __call__(self, key: str, value: Any, reason: str) -> None:
        self.calls.append((key, value, reason))


@pytest.fixture(params=[Memory, Plain], ids=["memory", "other"])
def backend(request: pytest.FixtureRequest) -> Memory:
    """Both ways of bounding have the same guarantees."""
    return request.param()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def stacked(backend: Backend, clock: FakeClock, **options: Any) -> Backend:
    """The stack under a store with the layer."""
    return Store(backend, layers=[Bounding(**options)], clock=clock).stack


def bounded(backend: Backend, clock: FakeClock, **options: Any) -> SyncStore:
    return SyncStore(backend, layers=[Bounding(**options)], clock=clock)


# ---------------------------------------------------------------- which entries stay
def test_the_least_recently_used_entry_is_evicted_first(backend: Memory, clock: FakeClock) -> None:
    """Setting and reading both count as use; the order of use decides, not that of insertion."""
    evicted = Record()
    store = bounded(backend, clock, max_entries=3, on_evict=evicted)
    for key in "abc":
        store.set(key, key)
    store.get("a")
    store.set("b", "B")
    store.set("d", "d")
    assert evicted.calls == [("c", "c", "size")]
    assert list(store.keys()) == ["a", "b", "d"]


def test_a_batch_above_the_limit_keeps_its_last_keys(backend: Memory, clock: FakeClock) -> None:
    """One write of more keys than allowed is done, and leaves the newest."""
    store = bounded(backend, clock, max_entries=2)
    store.set_many({"a": 1, "b": 2, "c": 3})
    assert list(store.keys()) == ["b", "c"]


def test_bytes_are_bounded_by_the_estimate(backend: Memory, clock: FakeClock) -> None:
    """Values count as `size_of` says when they are set; overwriting and deleting free the space."""
    evicted = Record()
    room = 3 * (size_of("x" * 1000) + size_of("a"))
    store = bounded(backend, clock, max_bytes=room, on_evict=evicted)
    for key in "abc":
        store.set(key, "x" * 1000)
    store.set("a", "x" * 1000)
    store.delete("b")
    store.set("d", "x" * 1000)
    assert evicted.calls == []
    store.set("e", "x" * 1000)
    assert [(key, reason) for key, _, reason in evicted.calls] == [("c", "bytes")]


@pytest.mark.parametrize("spare", [0, -1])
def test_an_entry_of_exactly_max_bytes_stays(backend: Memory, clock: FakeClock, spare: int) -> None:
    """The limit is allowed: for one entry, and for several together. One more byte causes an eviction."""
    evicted = Record()
    one = size_of("x" * 1000) + size_of("a")
    alone = bounded(backend, clock, max_bytes=one + spare, on_evict=evicted)
    alone.set("a", "x" * 1000)
    assert alone.get("a") == (None if spare else "x" * 1000)
    beside = bounded(Memory(), clock, max_bytes=one + spare)
    beside.set("small", 1)
    beside.set("a", "x" * 1000)
    assert list(beside.keys()) == (["small"] if spare else ["a"])
    both = bounded(Memory(), clock, max_bytes=2 * one + spare, on_evict=evicted)
    both.set("a", "x" * 1000)
    both.set("b", "x" * 1000)
    assert both.get("a") == (None if spare else "x" * 1000)
    assert both.get("b") == "x" * 1000
    assert [(key, reason) for key, _, reason in evicted.calls] == ([("a", "bytes")] * 2 if spare else [])


def test_a_value_above_the_limit_evicts_only_itself(backend: Memory, clock: FakeClock) -> None:
    """It can't stay; evicting all other entries first would lose everything and gain nothing."""
    evicted = Record()
    store = bounded(backend, clock, max_bytes=2000, on_evict=evicted)
    store.set("small", "s")
    store.set("big", "x" * 5000)
    assert [(key, reason) for key, _, reason in evicted.calls] == [("big", "bytes")]
    assert store.get("small") == "s"


def test_size_of_follows_what_a_value_holds() -> None:
    """Containers and objects count with their parts, shared parts once, and a __sizeof__ that raises does no harm."""

    class Heavy:
        def __init__(self) -> None:
            self.payload = bytes(10_000)

        def __sizeof__(self) -> int:
            raise RuntimeError("no")

    part = "x" * 10_000
    assert size_of({"k": [part]}) > 10_000
    assert size_of({part: 1}) > 10_000
    assert size_of(OrderedDict({part: 1})) > 10_000
    assert size_of(vars(SimpleNamespace(part=part))) > 10_000
    assert size_of([part, part]) < 11_000
    assert 10_000 < size_of(Heavy()) < 12_000
    assert size_of(int) < 10_000


def test_records_of_pocket_plug_are_exempt(backend: Memory, clock: FakeClock) -> None:
    """If a checkpoint was evicted, or evicted the user's data, runs would break: these records aren't counted."""
    stack = stacked(backend, clock, max_entries=2, max_bytes=100_000, ttl=10)
    drive_inline(stack.write([Put(f"pocket:{n}", "x" * 50_000) for n in range(5)]))
    drive_inline(stack.write([Put(key, 0) for key in "abc"]))
    clock.advance(100)
    drive_inline(stack.write([Put("d", 0)]))
    assert drive_inline(keys_of(stack, "pocket:")) == [f"pocket:{n}" for n in range(5)]
    drive_inline(stack.write([Delete("pocket:0"), Put("pocket:1", 1)]))
    drive_inline(stack.write([Put(key, 0) for key in "efg"]))
    assert drive_inline(keys_of(stack)) == ["f", "g", *(f"pocket:{n}" for n in range(1, 5))]


# ---------------------------------------------------------------- time to live
def test_the_ttl_counts_from_the_last_set(backend: Memory, clock: FakeClock) -> None:
    """Overwriting renews the expiry, reading doesn't."""
    store = bounded(backend, clock, ttl=10)
    store.set_many({"read": 1, "set": 1})
    clock.advance(9)
    assert store.get("read") == 1
    store.set("set", 2)
    clock.advance(1)
    assert store.get("read") is None
    assert store.get("set") == 2
    assert list(store.keys()) == ["set"]


def test_an_update_does_not_renew(backend: Memory, clock: FakeClock) -> None:
    """A rate limiter counts within a window: regular updates must not extend it."""
    hits = bounded(backend, clock, ttl="1m")
    counts: list[int] = []
    for _ in range(4):
        counts.append(hits.update("hits:me", lambda n: n + 1, default=0))
        clock.advance(25)
    assert counts == [1, 2, 3, 1]


@pytest.mark.parametrize("ttl", [600, timedelta(minutes=10), "10m"])
def test_a_ttl_is_written_in_three_ways(clock: FakeClock, ttl: Any) -> None:
    """Seconds, a timedelta and a text mean the same."""
    store = bounded(Memory(), clock, ttl=ttl)
    store.set("a", 1)
    clock.advance(599)
    assert store.has("a")
    clock.advance(1)
    assert not store.has("a")


def test_the_earlier_deadline_counts(backend: Memory, clock: FakeClock) -> None:
    """A ttl of its own makes an entry expire earlier, never later than the layer's ttl."""
    store = bounded(backend, clock, ttl=10)
    store.set("shorter", 1, ttl=5)
    store.set("longer", 1, ttl=50)
    clock.advance(5)
    assert list(store.keys()) == ["longer"]
    clock.advance(5)
    assert list(store.keys()) == []


def test_the_layers_deadline_is_not_part_of_the_entry(backend: Memory, clock: FakeClock) -> None:
    """If it was in Entry, a caller that writes back what it read would copy it into a durable tier, and delete there."""
    store = Store(backend, layers=[Bounding(ttl=10)], clock=clock)
    store.sync.set("a", 1)
    entry = drive_inline(store.stack.read("a"))
    assert entry is not None
    assert entry.expires_at is None
    assert store.sync.ttl("a") is None
    assert entry == Entry(1, entry.version)
    assert replace(entry, value=2) == Entry(2, entry.version)


def test_a_set_after_an_expired_entry_is_readable(backend: Memory, clock: FakeClock) -> None:
    """An expired entry still in the index must not hide its successor, nor fail a write that expects no entry."""
    root = Store(backend, layers=[Bounding(max_entries=5, ttl=10)], clock=clock)
    store = root.sync
    store.set("a", "old")
    store.update("b", lambda n: n + 1, default=0)
    clock.advance(10)
    store.set("a", "new")
    assert store.get("a") == "new"
    assert store.update("b", lambda n: n + 1, default=0) == 1
    assert drive_inline(root.stack.write([Put("c", 1)], {"c": 0})) > 0


def test_an_expired_entry_counts_as_absent_for_expectations(backend: Memory, clock: FakeClock) -> None:
    """A caller that saw it alive and writes after its expiry gets a conflict; a caller that saw nothing doesn't."""
    stack = stacked(backend, clock, ttl=10)
    version = drive_inline(stack.write([Put("a", 1)]))
    clock.advance(10)
    with pytest.raises(ConflictError) as caught:
        drive_inline(stack.write([Put("a", 2)], {"a": version}))
    assert caught.value.keys == {"a"}
    drive_inline(stack.write([], {"a": 0}))


def test_a_store_full_of_expired_entries_evicts_no_live_one(backend: Memory, clock: FakeClock) -> None:
    """Recently used expired entries must be removed before live entries that were used less recently."""
    evicted = Record()
    store = bounded(backend, clock, max_entries=40, ttl=10, on_evict=evicted)
    store.set_many({f"dying{n}": n for n in range(20)})
    clock.advance(5)
    store.set_many({f"live{n}": n for n in range(20)})
    for n in range(20):
        store.get(f"dying{n}")
    clock.advance(5)
    for n in range(20):
        store.set(f"new{n}", n)
    assert {reason for _, _, reason in evicted.calls} == {"expired"}
    assert len([key for key in store.keys() if key.startswith("live")]) == 20


def test_in_a_large_store_all_entries_that_expired_together_are_removed(clock: FakeClock) -> None:
    """With a search of a few at a time they would stay longer than many live entries."""
    evicted = Record()
    store = bounded(Memory(), clock, max_entries=2000, ttl=10, on_evict=evicted)
    store.set_many({f"dying{n}": n for n in range(1000)})
    clock.advance(5)
    for n in range(1000):
        store.set(f"live{n}", n)
    for n in range(1000):
        store.get(f"dying{n}")
    clock.advance(5)
    store.set("new", 1)
    assert len(evicted.calls) == 1000
    assert {reason for _, _, reason in evicted.calls} == {"expired"}


@pytest.mark.parametrize("layers", [[], [Bounding(ttl=1000)]], ids=["plain", "bounded"])
def test_expired_entries_are_removed(clock: FakeClock, layers: list[Layer]) -> None:
    """Memory doesn't grow with expired entries, nor with overwrites of a key with a deadline."""

    class Big:
        pass

    store = SyncStore(layers=layers, clock=clock)
    alive: list[weakref.ref[Big]] = []
    for n in range(300):
        big = Big()
        alive.append(weakref.ref(big))
        store.set(f"k{n % 150}", big, ttl=5)
        del big
        clock.advance(1)
    gc.collect()
    assert sum(ref() is not None for ref in alive) <= 40


# ---------------------------------------------------------------- on_evict
def test_neither_delete_nor_overwrite_is_an_eviction(backend: Memory, clock: FakeClock) -> None:
    """`on_evict` is called for entries that the store removes itself, not for the user's own removals."""
    evicted = Record()
    store = bounded(backend, clock, max_entries=2, max_bytes=10_000, ttl=10, on_evict=evicted)
    store.set("a", 1)
    store.set("a", 2)
    store.delete("a")
    store.set("a", 3)
    store.delete_many(["a", "absent"])
    assert evicted.calls == []


def test_an_expiry_is_notified_once(backend: Memory, clock: FakeClock) -> None:
    """Whether a sweep, a set or a delete finds it: one call each, with the expired value."""
    evicted = Record()
    store = bounded(backend, clock, ttl=10, on_evict=evicted)
    store.set_many({"swept": 1, "set": 2, "deleted": 3})
    clock.advance(10)
    store.set("set", "new")
    store.delete_many(["deleted"])
    store.set("another", 1)
    assert sorted(evicted.calls) == [("deleted", 3, "expired"), ("set", 2, "expired"), ("swept", 1, "expired")]


def test_on_evict_may_use_the_store(backend: Memory, clock: FakeClock) -> None:
    """If it was called under the store's lock, it would wait for itself."""
    seen: list[Any] = []

    def on_evict(key: str, value: Any, reason: str) -> None:
        seen.append((key, store.get(key), store.get("c")))
        store.set("count", len(seen))

    store = bounded(backend, clock, max_entries=2, on_evict=on_evict)
    for key in "abc":
        store.set(key, key)
    assert seen == [("a", None, "c")]
    assert store.get("count") == 1


def test_evictions_by_on_evict_are_not_notified(backend: Memory, clock: FakeClock) -> None:
    """Otherwise an `on_evict` that sets a key would call itself without end."""
    calls: list[str] = []

    def on_evict(key: str, value: Any, reason: str) -> None:
        calls.append(key)
        store.set(f"gone:{key}", value)

    store = bounded(backend, clock, max_entries=2, on_evict=on_evict)
    for key in "abcd":
        store.set(key, key)
    assert calls == ["a", "c"]
    assert list(store.keys()) == ["d", "gone:c"]


def test_an_error_in_on_evict_is_logged_once_and_fails_nothing(
    backend: Memory, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The write is done: if the caller got the error, it would write again."""

    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even that")

    def on_evict(key: str, value: Any, reason: str) -> None:
        raise Unprintable

    root = Store(backend, layers=[Bounding(max_entries=1, on_evict=on_evict)], clock=clock)
    store = root.sync
    with caplog.at_level(logging.WARNING, "pocket_plug"):
        for key in "abcd":
            store.set(key, key)
    assert store.get("d") == "d"
    assert [record.name for record in caplog.records] == ["pocket_plug"]
    assert "on_evict" in caplog.records[0].getMessage()
    layer = root.stack.inner
    assert isinstance(layer, Bounding)
    assert layer.failures == 3


def test_an_interrupt_in_on_evict_is_raised(backend: Memory, clock: FakeClock) -> None:
    """Whoever presses Ctrl-C means the program, not the callback that happens to run."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    store = bounded(backend, clock, max_entries=1, on_evict=interrupted)
    store.set("a", 1)
    with pytest.raises(KeyboardInterrupt):
        store.set("b", 1)
    assert list(store.keys()) == ["b"]


def test_an_async_on_evict_is_awaited_by_the_write(backend: Memory, clock: FakeClock) -> None:
    """When `set` returns, the callback has ended, on the caller's loop and with the store available."""
    done: list[tuple[str, Any]] = []

    async def main() -> None:
        async def on_evict(key: str, value: Any, reason: str) -> None:
            await asyncio.sleep(0)
            done.append((key, await store.get("c")))

        store = Store(backend, layers=[Bounding(max_entries=2, on_evict=on_evict)], clock=clock)
        for key in "abc":
            await store.set(key, key)
        assert done == [("a", "c")]
        assert not store.stack.inline_write

    asyncio.run(main())


def test_an_async_on_evict_works_for_sync_callers(clock: FakeClock) -> None:
    """The write uses the store's loop, since otherwise nobody would await the callback."""
    done: list[str] = []

    class Callback:
        async def __call__(self, key: str, value: Any, reason: str) -> None:
            await asyncio.sleep(0)
            done.append(key)

    with bounded(Memory(), clock, max_entries=1, on_evict=Callback()) as store:
        store.set("a", 1)
        store.set("b", 1)
        assert done == ["a"]


def test_a_callback_that_returns_a_coroutine_is_reported(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """A lambda around an async function can't be awaited if writes are inline: this is logged, not silently dropped."""

    async def end(key: str) -> None:
        raise AssertionError("never awaited")

    store = bounded(Memory(), clock, max_entries=1, on_evict=lambda key, value, reason: end(key))
    with caplog.at_level(logging.WARNING, "pocket_plug"):
        store.set_many({"a": 1, "b": 2})
    assert "async def" in caplog.messages[0]


def test_a_cancellation_skips_no_callback(clock: FakeClock) -> None:
    """If it is cancelled during one callback, the write still calls the others, then raises."""
    told: list[str] = []

    async def main() -> None:
        begun = asyncio.Event()

        async def on_evict(key: str, value: Any, reason: str) -> None:
            told.append(key)
            begun.set()
            await asyncio.sleep(0)

        store = Store(layers=[Bounding(max_entries=1, on_evict=on_evict)], clock=clock)
        writing = asyncio.ensure_future(store.set_many({"a": 1, "b": 2, "c": 3}))
        await begun.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert told == ["a", "b"]
        assert await store.get("c") == 3

    asyncio.run(main())


# ---------------------------------------------------------------- over another backend
def test_only_the_version_that_was_chosen_is_evicted() -> None:
    """Between choosing a key and deleting it, another caller may set it: the new value must stay."""

    async def main() -> None:
        inner = FaultyMemory()
        stack = Bounding(max_entries=1).build(inner)
        await stack.write([Put("a", "old")])
        writing = asyncio.ensure_future(stack.write([Put("b", 1)]))
        while inner.used[-1:] != ["read a"]:
            await asyncio.sleep(0)
        await Memory.write(inner, [Put("a", "new")])  # another process
        await writing
        entry = await stack.read("a")
        assert entry is not None
        assert entry.value == "new"

    asyncio.run(main())


def test_a_failed_eviction_is_logged_and_done_later(caplog: pytest.LogCaptureFixture) -> None:
    """The write that caused it is done, so it doesn't fail; the limit is kept again once the backend works."""

    async def main() -> None:
        inner = Flaky()
        stack = Bounding(max_entries=1).build(inner)
        await stack.write([Put("a", 1)])
        inner.broken = True
        await stack.write([Put("b", 1)])
        assert await keys_of(stack) == ["a", "b"]
        inner.broken = False
        await stack.write([Put("c", 1)])
        assert await keys_of(stack) == ["c"]

    with caplog.at_level(logging.WARNING, "pocket_plug"):
        asyncio.run(main())
    assert "could not evict" in caplog.text
    assert "StoreError" in caplog.text


def test_existing_entries_count_when_the_store_opens() -> None:
    """A durable backend has older entries: if they weren't counted, they would never be evicted."""

    async def main() -> None:
        for options in ({"max_entries": 2}, {"max_bytes": 2 * size_of("x" * 1000) + 500}):
            inner = Surviving()
            await inner.write([Put(f"k{n}", "x" * 1000) for n in range(5)])
            stack = Bounding(durable=True, **options).build(inner)
            await stack.open()
            assert len(await keys_of(stack)) == 2
            await stack.write([Put("new", "x" * 1000)])
            assert len(await keys_of(stack)) == 2

    asyncio.run(main())


def test_when_it_opens_again_it_counts_what_is_there_then() -> None:
    """Others may have removed entries since. So there is room for new ones, and for what was chosen for eviction before."""

    async def main() -> None:
        inner = Flaky()
        stack = Bounding(max_entries=2).build(inner)
        inner.broken = True
        await stack.write([Put(key, 0) for key in "abc"])
        inner.broken = False
        await inner.write([Delete("b"), Delete("c")])
        await stack.open()
        assert stack.entries == 1
        await stack.write([Put("d", 0)])
        assert await keys_of(stack) == ["a", "d"]

    asyncio.run(main())


def test_entries_of_other_processes_are_counted_when_they_are_read() -> None:
    """Two processes over one backend: each bounds the entries it knows, and a read makes an entry known."""

    async def main() -> None:
        inner = Plain()
        stack = Bounding(max_entries=2).build(inner)
        await inner.write([Put(key, 0) for key in "abc"])
        for key in "abc":
            assert await stack.read(key) is not None
        await stack.write([Put("d", 0)])
        assert await keys_of(stack) == ["c", "d"]

    asyncio.run(main())


def test_a_write_with_an_unknown_outcome_is_counted() -> None:
    """If it is cancelled after it was done, its key must not be forgotten: it would never be evicted."""

    async def main() -> None:
        inner = FaultyMemory()
        stack = Bounding(max_entries=1).build(inner)
        writing = asyncio.ensure_future(stack.write([Put("a", 1)]))
        while await Memory.read(inner, "a") is None:
            await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await stack.write([Put("b", 1)])
        assert await keys_of(stack) == ["b"]

    asyncio.run(main())


# ---------------------------------------------------------------- threads
def test_threads_and_tasks_never_exceed_the_bound(backend: Memory) -> None:
    """Eight threads set, read, update and delete, with a callback that uses the store; never more entries than the limit plus the
    running writes, no error, no deadlock, no lost update.
    """
    threads, bound = 8, 20
    most = 0

    def on_evict(key: str, value: Any, reason: str) -> None:
        store.get(key)
        store.set("evicted", value)

    root = Store(backend, layers=[Bounding(max_entries=bound, ttl=3600, on_evict=on_evict)])
    store = root.sync
    errors: list[BaseException] = []

    def work(me: int) -> None:
        nonlocal most
        try:
            for n in range(150):
                store.set(f"k{(n * 7 + me * 13) % 60}", n)
                store.get(f"k{(n * 5 + me) % 60}")
                store.get("hits")
                store.update("hits", lambda n: n + 1, default=0)
                if n % 10 == 0:
                    store.delete(f"k{n % 60}")
                    most = max(most, len(list(store.keys())))
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    workers = [threading.Thread(target=work, args=(me,)) for me in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    assert errors == []
    assert most <= bound + 2 * threads
    assert len(list(store.keys())) <= bound
    layer = root.stack.inner
    assert isinstance(layer, Bounding)
    assert layer.failures == 0


@pytest.mark.parametrize("bounds", [{"max_entries": 3, "ttl": "1m"}, {"max_bytes": 1_300}], ids=["entries", "bytes"])
def test_a_use_in_the_middle_of_a_change_of_the_index_is_counted(bounds: dict[str, Any]) -> None:
    """A signal's handler, a `__del__` or the end of a dropped coroutine may use the store in a thread that is just changing the
    index: it must not wait for itself, nor change the index under that.
    """

    def use() -> None:
        nonlocal refused
        try:
            drive(stack.write([Put("inner", "x" * 300)]))
        except StoreError:  # by the memory below, in the middle of a write; so it counts as one that may be stored
            refused = 1
        drive(stack.read("gone"))

    for changes in ([Put("new", "x" * 300)], [Put("a", "x" * 300), Delete("b"), Put("c", "x" * 300), Put("d", 1)]):
        for place in count(1):
            stack = Bounding(**bounds).build(inner := Plain())
            drive(stack.write([Put(key, "x" * 200) for key in ("a", "b", "gone")]))
            drive(inner.write([Delete("gone")]))
            refused = 0
            with Between(place, use) as between:
                drive(stack.write(changes))
                drive(stack.read("gone"))
            if not between.where:
                break
            drive(stack.write([Put("last", 1)]))
            entries = drive(inner.read_many(drive(keys_of(inner))))
            assert stack.entries <= bounds.get("max_entries", inf), between.where
            assert stack.entries - len(entries) in (0, refused), between.where
            sizes = (sys.getsizeof(key) + size_of(entry.value) for key, entry in entries.items())
            assert sum(sizes) <= bounds.get("max_bytes", inf), between.where


# ---------------------------------------------------------------- refused options and stacks
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "max_entries, max_bytes or ttl"),
        ({"max_entries": 0}, "max_entries can't be 0"),
        ({"max_entries": -5, "ttl": 1}, "max_entries can't be -5"),
        ({"max_entries": True}, "option 'max_entries' must be int . None, not True"),
        ({"max_entries": 2.5}, "option 'max_entries' must be int . None, not 2.5"),
        ({"max_bytes": "1MB"}, "option 'max_bytes' must be int . None, not '1MB'"),
        ({"ttl": 0}, "ttl can't be 0"),
        ({"ttl": "soon"}, "ttl can't be 'soon'"),
        ({"ttl": 1, "on_evict": lambda key, value: None}, "on_evict takes key, value, but is called with 3 arguments"),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], says: str) -> None:
    """A limit that limits nothing, or evicts everything, is an error when the stack is built."""
    with pytest.raises(ConfigError, match=says):
        build_stack(Memory(), [Bounding(**options)])


def test_durable_data_is_evicted_only_on_request() -> None:
    """Over a durable backend it would delete data that the user wanted to keep: `durable=True` allows it."""
    with pytest.raises(ConfigError, match="durable=True"):
        build_stack(Surviving(), [Bounding(max_entries=1)])
    stack = build_stack(Surviving(), [Bounding(max_entries=1, durable=True)])
    assert stack.survives


@pytest.mark.parametrize("durable", [False, True])
def test_persistence_inside_bounding_is_refused(durable: bool) -> None:
    """Evicting in front of the durable tier would delete from it; `durable=True` doesn't change that."""
    layers = [Bounding(max_entries=1, durable=durable), Persistence(to=Memory())]
    with pytest.raises(ConfigError, match="persistence first"):
        build_stack(Memory(), layers)


def test_one_memory_has_one_bound() -> None:
    """Two stacks with different limits over one Memory would contradict each other."""
    memory = Memory()
    Bounding(max_entries=1).build(memory)
    with pytest.raises(ConfigError, match="bounded"):
        Bounding(max_entries=2).build(memory)


# ---------------------------------------------------------------- costs
@given(data=st.data(), ttl=st.sampled_from([None, 5]))
def test_the_fast_way_gives_the_same_result(data: st.DataObject, ttl: int | None) -> None:
    """A single put without callbacks uses a faster way: the same entries stay, in the same order."""
    clock, gone = FakeClock(), list[str]()
    short, long = Memory(), Memory()
    short.clock = long.clock = clock
    stacks = [
        Bounding(max_entries=3, ttl=ttl).build(short),
        Bounding(max_entries=3, ttl=ttl, on_evict=lambda key, value, reason: gone.append(key)).build(long),
    ]
    assert stacks[0].write != short.write
    assert stacks[1].write == long.write
    keys = st.sampled_from(["a", "b", "c", "d", "e", "pocket:x"])
    for _ in range(data.draw(st.integers(1, 30))):
        clock.advance(data.draw(st.sampled_from([0, 0, 1, 6])))
        key = data.draw(keys)
        deadline = data.draw(st.sampled_from([None, None, clock() + 2, clock() + 8]))
        change = Put(key, object(), deadline, renews=data.draw(st.booleans()))
        seen = drive_inline(long.read(key)) if data.draw(st.booleans()) else None
        expect = {key: seen.version} if seen else data.draw(st.sampled_from([{}, {key: 0}]))
        outcomes: list[object] = []
        for stack in stacks:
            try:
                outcomes.append(drive_inline(stack.write([change], expect)))
            except ConflictError as conflict:
                outcomes.append(conflict.keys)
        assert outcomes[0] == outcomes[1]
        read = data.draw(keys)
        assert drive_inline(stacks[0].read(read)) == drive_inline(stacks[1].read(read))
        assert ordered(short) == ordered(long)


def ordered(memory: Memory) -> list[tuple[str, Any, float | None]]:
    """Its entries, the least recently used first, with deadlines."""
    kept: Any = memory._table
    return [(key, entry, kept.deadline(entry)) for key, entry in kept.entries.items()]


def test_over_memory_there_is_no_second_index() -> None:
    """A second index would cost more than twice per set, 40 bytes per entry, and a race: so Memory evicts itself."""
    memory = Memory()
    stack = Bounding(max_entries=10).build(memory)
    assert stack.inline_read
    assert stack.inline_write
    drive_inline(stack.write([Put("a", 1)]))
    assert drive_inline(stack.read("a")) is drive_inline(memory.read("a"))


def test_entries_that_were_there_before_are_bounded(clock: FakeClock) -> None:
    """A Memory may be filled before a store uses it."""
    memory = Memory()
    drive_inline(memory.write([Put(key, key) for key in "abc"]))
    evicted = Record()
    store = bounded(memory, clock, max_entries=2, on_evict=evicted)
    assert store.get("a") == "a"
    store.set("d", "d")
    assert list(store.keys()) == ["a", "d"]
    assert evicted.calls == [("b", "b", "size"), ("c", "c", "size")]


def test_a_closed_memory_refuses_and_begins_anew(clock: FakeClock) -> None:
    """The bounded read notices a close too; opened again it is empty, and bounded as before."""

    async def main() -> None:
        stack = Bounding(max_entries=1).build(Memory())
        await stack.write([Put("a", 1)])
        await stack.close()
        with pytest.raises(StoreError):
            await stack.read("a")
        await stack.open()
        assert await stack.read("a") is None
        await stack.write([Put("b", 1), Put("c", 1)])
        assert await keys_of(stack) == ["c"]

    asyncio.run(main())


# ---------------------------------------------------------------- against a model
KEYS = st.sampled_from("abcdefgh")
TTLS = st.one_of(st.none(), st.integers(1, 12))


class AgainstAModel(RuleBasedStateMachine):
    """After any operations in any order, the store has what an OrderedDict with deadlines has."""

    backend: type[Memory]

    @initialize(most=st.integers(1, 5), ttl=st.one_of(st.none(), st.integers(3, 10)))
    def begin(self, most: int, ttl: int | None) -> None:
        self.clock = FakeClock()
        self.told: list[tuple[str, Any, str]] = []
        self.model: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self.pushed_out: list[tuple[str, Any]] = []
        self.expired: set[tuple[str, Any]] = set()
        self.most, self.ttl, self.count = most, ttl, 0
        layer = Bounding(max_entries=most, ttl=ttl, on_evict=lambda *told: self.told.append(told))
        self.store = SyncStore(self.backend(), layers=[layer], clock=self.clock)

    # ------------------------------------------------------------ the model
    def forget_expired(self) -> None:
        for key, (value, deadline) in list(self.model.items()):
            if deadline <= self.clock():
                self.expired.add((key, value))
                del self.model[key]

    def put(self, keys: list[str], ttl: float | None) -> dict[str, int]:
        self.forget_expired()
        values = {}
        for key in dict.fromkeys(keys):
            self.count += 1
            values[key] = self.count
            lives = min(ttl or float("inf"), self.ttl or float("inf"))
            self.model[key] = self.count, self.clock() + lives
            self.model.move_to_end(key)
        while len(self.model) > self.most:
            key, (value, _) = self.model.popitem(last=False)
            self.pushed_out.append((key, value))
        return values

    def found(self, key: str) -> int | None:
        self.forget_expired()
        if key not in self.model:
            return None
        self.model.move_to_end(key)
        return self.model[key][0]

    # ------------------------------------------------------------ operations
    @rule(key=KEYS, ttl=TTLS)
    def set(self, key: str, ttl: int | None) -> None:
        value = self.put([key], ttl)[key]
        self.store.set(key, value, ttl=ttl)

    @rule(keys=st.lists(KEYS, max_size=7), ttl=TTLS)
    def set_many(self, keys: list[str], ttl: int | None) -> None:
        if keys:
            self.store.set_many(self.put(keys, ttl), ttl=ttl)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        assert self.store.get(key) == self.found(key)

    @rule(keys=st.lists(KEYS, unique=True))
    def get_many(self, keys: list[str]) -> None:
        found = {key: self.found(key) for key in keys}
        assert self.store.get_many(keys) == {key: value for key, value in found.items() if value is not None}

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        there = self.found(key) is not None
        self.model.pop(key, None)
        assert self.store.delete(key) is there

    @rule(key=KEYS)
    def update(self, key: str) -> None:
        """It keeps both deadlines, the entry's own and the layer's."""
        before = self.found(key)
        deadline = self.model[key][1] if before is not None else None
        value = self.put([key], None)[key]
        if deadline is not None:
            self.model[key] = value, deadline
        assert self.store.update(key, lambda old: value if old == before else -1, default=None) == value

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    # ------------------------------------------------------------ invariants
    @invariant()
    def it_has_what_the_model_has(self) -> None:
        if not hasattr(self, "store"):
            return
        self.forget_expired()
        assert list(self.store.keys()) == sorted(self.model)
        assert [(key, value) for key, value, reason in self.told if reason == "size"] == self.pushed_out
        told = [(key, value) for key, value, reason in self.told if reason == "expired"]
        assert len(set(told)) == len(told)
        assert set(told) <= self.expired

    def teardown(self) -> None:
        if self.backend is Memory and hasattr(self, "store"):
            self.set("a", None)
            assert {(key, value) for key, value, reason in self.told if reason == "expired"} == self.expired


class OverMemory(AgainstAModel):
    backend = Memory


class OverAnother(AgainstAModel):
    backend = Plain


TestOverMemory = OverMemory.TestCase
TestOverAnother = OverAnother.TestCase
TestOverMemory.settings = TestOverAnother.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
