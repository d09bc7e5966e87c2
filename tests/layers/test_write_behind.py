"""Persistence, mode `behind`: a write is acknowledged when queued, and written by a thread. Each test would lose data if its rule
was broken.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocket_plug import SyncStore, register_type
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.errors import (
    CodecError,
    ConfigError,
    ConflictError,
    StoreBusyError,
    StoreClosedError,
    StoreError,
    UnregisteredTypeError,
)
from pocket_plug.layers.bounding import Bounding
from pocket_plug.layers.persistence import MAX_PENDING, Persistence
from pocket_plug.layers.persistence.write_behind import DELAYS, WriteBehind
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Delete, Entry, Put
from pocket_plug.store.layer import Layer, build_stack
from pocket_plug.store.memory import Memory
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.interrupts import Between
from pocket_plug.testing.layer_contract import FaultyMemory
from pocket_plug.testing.scenarios import keys_of

T = TypeVar("T")
LONG = 30
"""Seconds after which something that was to happen never will."""


class Shelf(Memory):
    """A durable tier whose writes wait while the gate is shut, and then fail as told."""

    survives = True

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Semaphore(0)  # released by each write that starts
        self.errors: list[Exception] = []
        self.landed = True  # whether a write that fails was done all the same
        self.batches: list[dict[str, Any]] = []
        self.owned = 0

    async def own(self) -> None:
        self.owned += 1

    async def close(self) -> None:
        """Durable data stays."""

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        self.reached.release()
        assert self.gate.wait(LONG)
        if self.errors:
            raise self.errors.pop(0)
        version = await super().write(changes, expect)
        self.batches.append({change.key: getattr(change, "value", None) for change in changes})
        return version

    @contextmanager
    def shut(self) -> Iterator[None]:
        """No write is done meanwhile."""
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()

    def has(self) -> dict[str, Any]:
        """The live values."""
        return drive(self._live())

    async def _live(self) -> dict[str, Any]:
        found = await self.read_many(await keys_of(self))
        return {key: entry.value for key, entry in found.items()}


def behind(shelf: Backend, max_pending: int = MAX_PENDING, **options: Any) -> WriteBehind:
    """An open queue."""
    queue = WriteBehind(shelf, max_pending, **options)
    drive(queue.open())
    return queue


def no_sleep(seconds: float) -> None:
    raise AssertionError("this was not to be tried again")


def put(queue: Backend, key: str, value: Any, **expect: int) -> int:
    return drive(queue.write([Put(key, value)], expect))


def value_of(backend: Backend, key: str) -> Any:
    return getattr(drive(backend.read(key)), "value", None)


def in_thread(work: Callable[[], T]) -> Callable[[], T]:
    """Start it in a thread; the returned function waits for its outcome."""
    outcome: list[Any] = []

    def target() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001
            outcome.append(error)

    thread = threading.Thread(target=target)
    thread.start()

    def join() -> T:
        thread.join(LONG)
        assert outcome, "it never came to an end"
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    return join


# ---------------------------------------------------------------- queued, then written
def test_a_write_does_not_wait_for_the_durable_tier() -> None:
    """It is acknowledged, and readable, while the durable tier has none of it; `flush` returns when that has all."""
    shelf = Shelf()
    with SyncStore(layers=[Persistence(to=shelf, mode="behind")]) as store:
        with shelf.shut():
            store.set("a", 1)
            store.set("b", 2)
            assert store.get("a") == 1
            assert shelf.has() == {}
        store.flush()
        assert shelf.has() == {"a": 1, "b": 2}


def test_flush_waits_for_what_was_queued_at_the_call() -> None:
    """Not for later writes: while others keep writing it would never return. A flush of nothing returns at once."""
    shelf = Shelf()
    queue = behind(shelf)
    drive(queue.flush())

    async def main() -> None:
        shelf.gate.clear()
        await queue.write([Put("before", 1)])
        flushing = asyncio.ensure_future(queue.flush())
        await asyncio.sleep(0)
        assert shelf.reached.acquire(timeout=LONG)
        await queue.write([Put("after", 1)])
        assert not flushing.done()
        shelf.gate.set()
        await flushing
        assert shelf.batches[0] == {"before": 1}

    asyncio.run(main())
    drive(queue.close())


def test_a_cancelled_flush_leaves_no_waiter() -> None:
    """And the writes are done all the same: flushing only waits."""
    shelf = Shelf()
    queue = behind(shelf)

    async def main() -> None:
        with shelf.shut():
            await queue.write([Put("a", 1)])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(queue.flush(), 0)
            flushing = asyncio.ensure_future(queue.flush())
            await asyncio.sleep(0)
            flushing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await flushing
        await queue.flush()

    asyncio.run(main())
    assert shelf.has() == {"a": 1}
    drive(queue.close())


def test_a_change_after_the_set_is_not_stored() -> None:
    """If the thread encoded the value later, a list that the program changes would be stored in a state that was never set."""
    shelf = Shelf()
    queue = behind(shelf)
    items = [1]
    with shelf.shut():
        put(queue, "a", items)
        items.append(2)
        value_of(queue, "a").append(3)
        assert value_of(queue, "a") == [1]
    drive(queue.close())
    assert shelf.has() == {"a": [1]}


def test_a_value_that_cannot_be_stored_is_an_error_at_the_set() -> None:
    """The error names the key, nothing of the write is queued, and other writes work."""
    shelf = Shelf()
    with SyncStore(layers=[Persistence(to=shelf, mode="behind")]) as store:
        with pytest.raises(UnregisteredTypeError, match="'bad'"):
            store.set_many({"good": 1, "bad": object()})
        assert store.get_many(["good", "bad"]) == {}
        store.set("other", 2)
    assert shelf.has() == {"other": 2}


class Fragile:
    """Can be stored, but not read."""


def test_a_record_that_cannot_be_read_delays_nothing(tmp_path: Path) -> None:
    """Only its reader fails: it is written byte for byte, with everything queued before and after it."""

    def decode(state: Any) -> Fragile:
        raise ValueError("no")

    register_type(Fragile, tag=f"fragile {tmp_path}", encode=lambda value: 1, decode=decode)
    file = SQLite(tmp_path / "state.db", durability="process")
    queue = behind(file)
    put(queue, "a", 1)
    put(queue, "fragile", Fragile())
    put(queue, "b", 2)
    with pytest.raises(CodecError, match="'fragile'"):
        drive(queue.read("fragile"))
    drive(queue.flush())
    assert (value_of(file, "a"), value_of(file, "b")) == (1, 2)
    assert drive(keys_of(file)) == ["a", "b", "fragile"]
    drive(queue.close())


# ---------------------------------------------------------------- a prefix of history
def test_all_that_is_queued_is_one_atomic_write() -> None:
    """In parts, the durable tier would sometimes have a later write without an earlier one."""
    shelf = Shelf()
    queue = behind(shelf)
    with shelf.shut():
        put(queue, "first", 0)
        assert shelf.reached.acquire(timeout=LONG)
        for n in range(10):
            drive(queue.write([Put("left", n), Put("right", n), Put(f"k{n}", n)]))
        drive(queue.write([Delete("k3")]))
    drive(queue.flush())
    assert shelf.batches == [
        {"first": 0},
        {"left": 9, "right": 9, **{f"k{n}": n for n in range(10)}, "k3": None},
    ]
    drive(queue.close())


WRITES = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abcd"), st.none() | st.integers(0, 9), min_size=1),
        st.sampled_from(["hold", "let go", "fail", "busy"]),
    ),
    max_size=40,
)


@given(WRITES)
@settings(max_examples=60, deadline=None)
def test_the_durable_state_is_always_a_prefix_of_history(writes: list[tuple[dict[str, int | None], str]]) -> None:
    """Whatever is written, delayed, or fails: the durable state is that after one of the writes, in order.

    And at every moment reads, scans and versions are as if there was one store.
    """
    shelf = Shelf()
    queue = behind(shelf, sleep=lambda seconds: None)
    history: dict[int, dict[str, Any]] = {0: {}}
    seen: list[dict[str, Any]] = []

    landing = shelf.write

    async def watched(changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        version = await landing(changes, expect)
        seen.append(await shelf._live())
        return version

    shelf.write = watched  # type: ignore[method-assign]
    state: dict[str, Any] = {}
    for write, then in writes:
        changes = [Delete(key) if value is None else Put(key, value) for key, value in write.items()]
        try:
            version = drive(queue.write(changes))
        except StoreError:
            continue  # refused, since the last try has failed; this one causes a new try
        state = {key: value for key, value in {**state, **write}.items() if value is not None}
        history[version] = state
        if then == "hold":
            shelf.gate.clear()
        elif then == "fail":
            shelf.errors.append(StoreError("no"))
        elif then == "busy":
            shelf.errors.append(StoreBusyError("busy"))
        else:
            shelf.gate.set()
        assert drive(keys_of(queue)) == sorted(state)
        found = drive(queue.read_many("abcd"))
        assert {key: entry.value for key, entry in found.items()} == state
    shelf.gate.set()
    shelf.errors.clear()
    drive(queue.close())
    states = list(history.values())
    at = 0
    for landed in seen:
        at = next((n for n in range(at, len(states)) if states[n] == landed), -1)
        assert at >= 0, f"{landed} is no state that came after the one before"
    assert shelf.has() == state


# ---------------------------------------------------------------- a consistent read of both tiers
class Looked(Shelf):
    """Executes `meanwhile` between its read of the queue and the answer."""

    meanwhile: Callable[[], object] | None = None

    async def read(self, key: str) -> Entry | None:
        return await super().read(key)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        found = await super().read_many(keys)
        happens, self.meanwhile = self.meanwhile, None
        if happens is not None:
            happens()
        return found


class Looking:
    """A queue with "a" on its way to the durable tier, where "b" is."""

    def __init__(self) -> None:
        self.shelf = Looked()
        self.queue = behind(self.shelf)
        self.b = put(self.queue, "b", "old")
        drive(self.queue.flush())
        assert self.shelf.reached.acquire(timeout=LONG)
        self.shelf.gate.clear()
        self.a = put(self.queue, "a", "old")
        assert self.shelf.reached.acquire(timeout=LONG)

    def land(self) -> None:
        self.shelf.gate.set()
        drive(self.queue.flush())

    def change_both(self) -> None:
        """Let "a" be written, then write both."""
        self.land()
        drive(self.queue.write([Put("a", "new"), Put("b", "new")]))
        drive(self.queue.flush())

    def change_both_twice(self) -> None:
        """The second write stays in the queue."""
        self.change_both()
        self.shelf.gate.clear()
        drive(self.queue.write([Put("a", "newer"), Put("b", "newer")]))


def test_an_entry_that_is_written_during_a_read_is_found() -> None:
    """It has left the queue, and the durable tier was read before: together they would say "missing"."""
    looking = Looking()
    looking.shelf.meanwhile = looking.land
    with pytest.raises(ConflictError) as caught:
        put(looking.queue, "a", "other", a=0, never=0)
    assert caught.value.keys == {"a"}
    looking = Looking()
    looking.shelf.meanwhile = looking.land
    assert put(looking.queue, "a", "other", a=looking.a, b=looking.b) > looking.a
    looking = Looking()
    looking.shelf.meanwhile = looking.land
    drive(looking.queue.write([Put("a", "older", version=looking.a - 1), Put("never", 1, version=1)]))
    assert value_of(looking.queue, "a") == "old"


@pytest.mark.parametrize("change", [Looking.change_both, Looking.change_both_twice], ids=["once", "twice"])
def test_a_write_during_a_read_counts(change: Callable[[Looking], None]) -> None:
    """Whether it is written by the end of the read or not: for a check, and for a batch, which shows one moment."""
    looking = Looking()
    looking.shelf.meanwhile = lambda: change(looking)
    with pytest.raises(ConflictError) as caught:
        put(looking.queue, "a", "other", a=looking.a, b=looking.b, never=0)
    assert caught.value.keys == {"a", "b"}
    looking.shelf.gate.set()
    looking = Looking()
    looking.shelf.meanwhile = lambda: change(looking)
    found = drive(looking.queue.read_many(["a", "b", "never"]))
    assert found.keys() == {"a", "b"}
    assert found["a"].version == found["b"].version > looking.a
    looking.shelf.gate.set()


def test_an_expired_write_is_still_written() -> None:
    """If it was left out, the value that it replaced would come back."""
    shelf, clock = Shelf(), FakeClock()
    shelf.clock = clock
    queue = behind(shelf)
    put(queue, "a", "old")
    drive(queue.flush())
    with shelf.shut():
        drive(queue.write([Put("a", "new", clock() + 1)]))
        clock.advance(1)
        assert drive(queue.read("a")) is None
        assert drive(queue.read_many(["a"])) == {}
        assert drive(keys_of(queue)) == []
    drive(queue.close())
    assert shelf.has() == {}
    assert len(shelf.batches) == 2


# ---------------------------------------------------------------- reads
@pytest.mark.parametrize("taken", [False, True], ids=["queued", "in flight"])
def test_an_entry_evicted_from_the_near_tier_is_found_in_the_queue(taken: bool) -> None:
    """If only the durable tier was read, it would be missing, or old, until it is written."""
    shelf = Shelf()
    with SyncStore(layers=[Persistence(to=shelf, mode="behind"), Bounding(max_entries=1)]) as store:
        store.set("a", "old")
        store.flush()
        while shelf.reached.acquire(blocking=False):
            pass
        with shelf.shut():
            if not taken:
                store.set("the thread is busy with this", 0)
                assert shelf.reached.acquire(timeout=LONG)
            store.set("a", "new")
            if taken:
                assert shelf.reached.acquire(timeout=LONG)
            store.set("b", 1)  # evicts a
            assert store.get("a") == "new"
            assert store.get_many(["a", "b", "c"]) == {"a": "new", "b": 1}


def test_a_queued_delete_hides_what_the_durable_tier_has() -> None:
    """Otherwise a deleted entry would be there again until the delete is written."""
    shelf = Shelf()
    with SyncStore(layers=[Persistence(to=shelf, mode="behind")]) as store:
        store.set_many({"a": 1, "b": 2})
        store.flush()
        with shelf.shut():
            store.delete("a")
            assert store.get("a") is None
            assert store.get_many(["a", "b"]) == {"b": 2}
            assert list(store.keys()) == ["b"]


def test_a_scan_merges_queue_and_durable_tier() -> None:
    """In one order, each key once, also keys of only one of them."""
    shelf = Shelf()
    queue = behind(shelf)
    drive(queue.write([Put(key, 0) for key in ("k:b", "k:d", "k:f", "other")]))
    drive(queue.flush())
    with shelf.shut():
        drive(queue.write([Put(key, 1) for key in ("k:a", "k:b", "k:e", "k:g", "later")]))
        drive(queue.write([Delete("k:d"), Delete("k:z")]))
        assert drive(keys_of(queue, "k:")) == ["k:a", "k:b", "k:e", "k:f", "k:g"]
    drive(queue.close())


def test_a_scan_is_right_if_entries_are_written_meanwhile() -> None:
    """A key that was queued when the scan started, and was written or deleted since, is returned once, or not at all."""
    shelf = Shelf()
    queue = behind(shelf)
    drive(queue.write([Put("b", 0), Put("d", 0)]))
    drive(queue.flush())

    async def main() -> None:
        shelf.gate.clear()
        await queue.write([Put("a", 1), Put("c", 1), Put("e", 1), Put("f", 1), Delete("d")])
        found: list[str] = []
        async for key in queue.scan():
            found.append(key)
            if key == "a":
                shelf.gate.set()
                await queue.flush()
                await queue.write([Delete("e")])
                await queue.flush()
                shelf.gate.clear()
                await queue.write([Delete("b")])  # stays queued
        shelf.gate.set()
        assert found == ["a", "c", "f"]

    asyncio.run(main())
    drive(queue.close())


# ---------------------------------------------------------------- expectations
class Stuck(Memory):
    """A near tier that accepts only the first write of each key."""

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        new = [change for change in changes if await self.read(change.key) is None]
        return await super().write(new, expect)


def test_expectations_are_not_checked_by_the_near_tier() -> None:
    """The near tier may be outdated: a write based on it would undo queued writes."""
    shelf = Shelf()

    async def main() -> None:
        near = Stuck()
        stack = Persistence(to=shelf, mode="behind").build(near)
        await stack.open()
        first = await stack.write([Put("a", 1)])
        with shelf.shut():
            second = await stack.write([Put("a", 2)])
            assert await near.read("a") == Entry(1, first)
            with pytest.raises(ConflictError) as caught:
                await stack.write([Put("a", 3)], {"a": first})
            assert caught.value.keys == {"a"}
            await stack.write([Put("a", 3)], {"a": second})
        await stack.close()

    asyncio.run(main())


@pytest.mark.parametrize("landed", [False, True], ids=["queued", "landed"])
def test_expectations_are_checked_by_queue_or_durable_tier(landed: bool) -> None:
    """The version of the last write of a key counts, wherever that is."""
    shelf = Shelf()
    queue = behind(shelf)
    old = put(queue, "a", 1)
    gone = put(queue, "gone", 1)
    drive(queue.flush())
    with shelf.shut():
        new = put(queue, "a", 2)
        drive(queue.write([Delete("gone")]))
        if landed:
            shelf.gate.set()
            drive(queue.flush())
        for wrong in ({"a": old}, {"a": 0}, {"gone": gone}, {"b": new}):
            for changes in ([Put("x", 1)], []):
                with pytest.raises(ConflictError):
                    drive(queue.write(changes, wrong))
        put(queue, "x", 1, a=new, gone=0, b=0)
    drive(queue.close())


def test_a_write_that_is_completed_during_a_read_counts_as_newer() -> None:
    """It was in neither place: not queued yet when the queue was read, written after the durable tier was read."""

    class Slow(Shelf):
        def __init__(self) -> None:
            super().__init__()
            self.looks, self.looked = threading.Event(), threading.Event()

        async def read_many(self, keys: Any) -> dict[str, Entry]:
            found = await super().read_many(keys)
            if threading.current_thread() is not threading.main_thread():
                self.looks.set()
                assert self.looked.wait(LONG)
            return found

    shelf = Slow()
    queue = behind(shelf)
    creating = in_thread(lambda: put(queue, "a", "late", a=0))
    assert shelf.looks.wait(LONG)
    put(queue, "a", "first")
    drive(queue.flush())
    shelf.looked.set()
    with pytest.raises(ConflictError):
        creating()
    drive(queue.close())
    assert shelf.has() == {"a": "first"}


def test_threads_lose_no_update_while_it_drains(tmp_path: Path) -> None:
    """Eight threads count through a cache of three entries and a queue of four; in the end a file has the sum."""
    url = f"sqlite:///{tmp_path}/state.db?durability=process"
    with SyncStore(layers=[Persistence(to=url, mode="behind", max_pending=4), Bounding(max_entries=3)]) as store:

        def work() -> None:
            for n in range(60):
                store.update(f"k{n % 6}", lambda n: n + 1, default=0)

        for join in [in_thread(work) for _ in range(8)]:
            join()
    with SyncStore(url) as store:
        assert store.get_many([f"k{n}" for n in range(6)]) == {f"k{n}": 80 for n in range(6)}


# ---------------------------------------------------------------- versions
def test_versions_are_the_same_in_all_tiers() -> None:
    """From the near tier, the queue or the durable one, an entry has one version: otherwise each update would conflict."""
    shelf = Shelf()
    queue = behind(shelf)
    with shelf.shut():
        version = put(queue, "a", 1)
        put(queue, "b", 1)
        queued = drive(queue.read("a"))
    drive(queue.flush())
    assert queued == drive(shelf.read("a")) == drive(queue.read("a")) == Entry(1, version)
    assert drive(queue.version()) == drive(shelf.version())
    drive(queue.close())


def test_versions_continue_after_a_restart(tmp_path: Path) -> None:
    """They start above the durable tier's counter, including deletes and coalesced writes."""
    given = 0
    for turn in range(3):
        file = SQLite(tmp_path / "state.db", durability="process")
        queue = behind(file)
        assert drive(queue.version()) == given
        for n in range(5):
            version = put(queue, "a", n)
            assert version > given
            given = version
        given = drive(queue.write([Delete("a"), Put(f"turn {turn}", 0)]))
        drive(queue.close())


# ---------------------------------------------------------------- back-pressure
def test_a_full_queue_makes_writes_wait() -> None:
    """Writes that are being written count too: otherwise a slow durable tier would let the queue grow without limit."""
    shelf = Shelf()
    queue = behind(shelf, 2)

    async def main() -> None:
        shelf.gate.clear()
        await queue.write([Put("in flight", 0)])
        assert shelf.reached.acquire(timeout=LONG)
        await queue.write([Put("queued", 0)])
        waiting = [asyncio.ensure_future(queue.write([Put(key, 0)])) for key in "ab"]
        for _ in range(5):
            await asyncio.sleep(0)
        assert not any(write.done() for write in waiting)
        assert queue.length == 2
        shelf.gate.set()
        await asyncio.gather(*waiting)

    asyncio.run(main())
    drive(queue.close())
    assert shelf.has().keys() == {"in flight", "queued", "a", "b"}


def test_threads_wait_for_room_too() -> None:
    """With room for one key nothing is queued while another one is being written, however many threads write."""
    shelf = Shelf()
    queue = behind(shelf, 1)
    for join in [in_thread(lambda me=me: [put(queue, f"{me}.{n}", n) for n in range(10)]) for me in range(4)]:
        join()
    drive(queue.close())
    assert len(shelf.has()) == 40
    assert {len(batch) for batch in shelf.batches} == {1}


def test_a_large_write_waits_for_an_empty_queue_and_is_not_overtaken() -> None:
    """A write with more keys than the queue's limit is accepted alone; smaller writes that come later wait behind it."""
    shelf = Shelf()
    queue = behind(shelf, 3)

    async def main() -> None:
        shelf.gate.clear()
        await queue.write([Put("first", 0)])
        assert shelf.reached.acquire(timeout=LONG)
        large = asyncio.ensure_future(queue.write([Put(f"k{n}", n) for n in range(10)]))
        await asyncio.sleep(0)
        small = asyncio.ensure_future(queue.write([Put("small", 0)]))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not large.done()
        assert not small.done()
        shelf.gate.set()
        assert await large < await small

    asyncio.run(main())
    drive(queue.close())
    assert shelf.has() == {"first": 0, "small": 0, **{f"k{n}": n for n in range(10)}}


@pytest.mark.parametrize("room", [False, True], ids=["waiting", "let in"])
def test_a_write_cancelled_while_it_waits_for_room_is_never_done(room: bool) -> None:
    """Neither while it waits nor at the moment it is accepted; and its place goes to the next."""
    shelf = Shelf()
    queue = behind(shelf, 1)

    async def main() -> None:
        shelf.gate.clear()
        await queue.write([Put("a", 0)])
        cancelled = asyncio.ensure_future(queue.write([Put("cancelled", 0)]))
        await asyncio.sleep(0)
        following = asyncio.ensure_future(queue.write([Put("following", 0)]))
        await asyncio.sleep(0)
        if room:
            shelf.gate.set()
            drive(queue.flush())  # keeps this loop from running while the thread accepts the next one
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        shelf.gate.set()
        await following

    asyncio.run(main())
    in_thread(lambda: put(queue, "again", 0))()
    drive(queue.close())
    assert shelf.has() == {"a": 0, "following": 0, "again": 0}


# ---------------------------------------------------------------- failures
def test_a_busy_durable_tier_is_retried() -> None:
    """With growing pauses, and no error is raised."""
    shelf = Shelf()
    slept: list[float] = []
    queue = behind(shelf, sleep=slept.append)
    shelf.errors = [StoreBusyError("busy")] * 3
    put(queue, "a", 1)
    drive(queue.flush())
    assert slept == list(DELAYS[:3])
    assert shelf.has() == {"a": 1}
    drive(queue.close())


def test_there_are_eight_tries_with_six_seconds_of_pauses() -> None:
    """The pauses that the reference states."""
    shelf = Shelf()
    slept: list[float] = []
    queue = behind(shelf, sleep=slept.append)
    shelf.errors = [StoreBusyError("busy")] * 7
    put(queue, "a", 1)
    drive(queue.flush())
    assert shelf.has() == {"a": 1}
    assert slept == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
    assert int(sum(slept)) == 6
    drive(queue.close())


def fail(queue: WriteBehind, shelf: Shelf, *errors: Exception, then: Sequence[Change] = ()) -> StoreError:
    """Let a try to write `a` fail, with `then` executed meanwhile; returns what its flush raised."""

    async def main() -> StoreError:
        shelf.errors = list(errors)
        shelf.gate.clear()
        await queue.write([Put("a", 1), Put("b", 1)])
        assert shelf.reached.acquire(timeout=LONG)
        if then:
            await queue.write(then)
        flushing = asyncio.ensure_future(queue.flush())
        await asyncio.sleep(0)
        shelf.gate.set()
        with pytest.raises(StoreError) as caught:
            await flushing
        return caught.value

    return asyncio.run(main())


def test_a_durable_tier_that_stays_busy_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    """If it was retried silently for ever, the queue would be full and every write would wait without a reason."""
    shelf = Shelf()
    queue = behind(shelf, sleep=lambda seconds: None)
    assert isinstance(fail(queue, shelf, *[StoreBusyError("busy")] * (len(DELAYS) + 1)), StoreBusyError)
    drive(queue.flush())
    assert shelf.has() == {"a": 1, "b": 1}
    drive(queue.close())
    assert "busy" in caplog.text


@pytest.mark.parametrize("error", [StoreError("the disk is full"), ZeroDivisionError("a bug")], ids=["ours", "any"])
def test_other_errors_are_raised_and_nothing_is_dropped(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """Not retried by itself, logged, raised by the next write; queued entries are readable, and written when possible."""
    shelf = Shelf()
    queue = behind(shelf, sleep=no_sleep)
    fail(queue, shelf, error)
    assert queue.failure is error
    assert str(error) in caplog.text
    assert value_of(queue, "a") == 1
    assert drive(keys_of(queue)) == ["a", "b"]
    with shelf.shut():
        for _ in range(2):
            with pytest.raises(StoreError, match="stay queued") as caught:
                put(queue, "c", 2)
            assert caught.value.__cause__ is error
        assert drive(queue.read("c")) is None
    drive(queue.flush())  # those writes caused a new try
    assert queue.failure is None
    put(queue, "c", 2)
    drive(queue.close())
    assert shelf.has() == {"a": 1, "b": 1, "c": 2}


def test_a_write_that_is_refused_causes_a_new_try() -> None:
    """So a program that only writes continues once the cause is gone."""
    shelf = Shelf()
    queue = behind(shelf)
    fail(queue, shelf, StoreError("full"))
    with pytest.raises(StoreError, match="full"):
        put(queue, "c", 1)
    assert shelf.reached.acquire(timeout=LONG)
    drive(queue.close())
    assert shelf.has() == {"a": 1, "b": 1}


def test_a_flush_that_fails_raises_each_time() -> None:
    """It tries again, and raises as long as that fails: it never pretends success."""
    shelf = Shelf()
    queue = behind(shelf)
    fail(queue, shelf, StoreError("full"), StoreError("still full"))
    with pytest.raises(StoreError, match="still full"):
        drive(queue.flush())
    drive(queue.flush())
    drive(queue.close())
    assert shelf.has() == {"a": 1, "b": 1}


def test_a_close_that_cannot_write_reports_what_is_lost() -> None:
    """It is the last chance: one more try, then an error with how much is lost; and the durable tier is released."""
    shelf = Shelf()
    queue = behind(shelf)
    fail(queue, shelf, StoreError("full"), StoreError("still full"))
    with pytest.raises(StoreError, match=r"2 key\(s\), which are lost: still full"):
        drive(queue.close())
    drive(behind(shelf).close())


def test_a_write_during_a_failing_batch_is_newer() -> None:
    """If the failed batch was put in front of it, the newer value would be replaced."""
    shelf = Shelf()
    queue = behind(shelf)
    fail(queue, shelf, StoreError("full"), then=[Put("a", "newer")])
    assert {key: value_of(queue, key) for key in "ab"} == {"a": "newer", "b": 1}
    drive(queue.close())
    assert shelf.has() == {"a": "newer", "b": 1}
    assert len(shelf.batches) == 1


def test_writes_that_wait_for_room_get_the_failure() -> None:
    """No room will be made: they would wait without end."""
    shelf = Shelf()
    queue = behind(shelf, 1)
    shelf.errors = [StoreError("full")]

    async def main() -> None:
        shelf.gate.clear()
        await queue.write([Put("a", 1)])
        waiting = [asyncio.ensure_future(queue.write([Put(key, 0)])) for key in "bc"]
        for _ in range(5):
            await asyncio.sleep(0)
        shelf.gate.set()
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, StoreError)
            assert "full" in str(outcome)

    asyncio.run(main())
    drive(queue.close())
    assert shelf.has() == {"a": 1}


def test_a_lost_answer_does_no_harm() -> None:
    """The batch was done and is written again; this is not taken for another process's write."""

    class Forgetful(Shelf):
        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
            errors, self.errors = self.errors, []
            version = await super().write(changes, expect)
            if errors:
                raise errors[0]
            return version

    shelf = Forgetful()
    queue = behind(shelf)
    fail(queue, shelf, StoreError("connection lost"))
    drive(queue.flush())
    versions = [put(queue, "b", n) for n in range(3)]
    drive(queue.flush())
    assert drive(shelf.read("b")) == Entry(2, versions[-1])
    drive(queue.close())
    assert shelf.has() == {"a": 1, "b": 2}


# ---------------------------------------------------------------- closing, and the end of the process
def test_close_writes_what_is_queued_and_refuses_the_rest() -> None:
    """A write that waits for room gets an error: it neither hangs nor is done."""
    shelf = Shelf()
    queue = behind(shelf, 1)

    async def main() -> None:
        shelf.gate.clear()
        await queue.write([Put("a", 1)])
        waiting = asyncio.ensure_future(queue.write([Put("b", 2)]))
        await asyncio.sleep(0)
        closing = [asyncio.ensure_future(queue.close()) for _ in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert not any(each.done() for each in closing)
        with pytest.raises(StoreClosedError):
            await waiting
        with pytest.raises(StoreClosedError):
            await queue.write([Put("c", 3)])
        shelf.gate.set()
        await asyncio.gather(*closing)

    asyncio.run(main())
    assert shelf.has() == {"a": 1}


def test_a_cancelled_close_still_writes_everything() -> None:
    """This is done before the cancellation is raised."""
    shelf = Shelf()
    queue = behind(shelf)

    async def main() -> None:
        shelf.gate.clear()
        await queue.write([Put("a", 1)])
        closing = asyncio.ensure_future(queue.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.sleep(0)
        shelf.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await closing

    asyncio.run(main())
    assert shelf.has() == {"a": 1}


def test_opened_again_after_an_interrupted_close_it_has_lost_nothing() -> None:
    """Ctrl-C came while the close waited: the queue is written first."""
    shelf = Shelf()
    queue = behind(shelf)
    shelf.gate.clear()
    put(queue, "a", 1)
    closing = queue.close()
    closing.send(None)
    with pytest.raises(KeyboardInterrupt):
        closing.throw(KeyboardInterrupt)
    opening = in_thread(lambda: drive(queue.open()))
    shelf.gate.set()
    opening()
    put(queue, "b", 2)
    drive(queue.close())
    assert shelf.has() == {"a": 1, "b": 2}


@pytest.mark.parametrize("step", ["open", "own", "version"])
def test_after_a_failed_open_the_same_store_can_be_opened_again(
    new_threads: Callable[[], list[threading.Thread]], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whichever step failed: the durable backend is closed, locked by nobody, and no thread is left."""

    async def fails() -> None:
        raise StoreBusyError("held by another process")

    class Closes(Shelf):
        closed = 0

        async def close(self) -> None:
            self.closed += 1

    shelf = Closes()
    store = SyncStore(layers=[Persistence(to=shelf, mode="behind")])
    for tried in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(shelf, step, fails)
            with pytest.raises(StoreBusyError, match="another process"), store:
                raise AssertionError("it was not opened")
        assert new_threads() == []
        assert shelf.closed == (0 if step == "open" else tried + 1)
    other = behind(shelf)  # nobody has locked it
    drive(other.close())
    with store:
        store.set("a", 1)
    assert shelf.has() == {"a": 1}


def test_a_queue_of_one_key_takes_writes_one_after_another() -> None:
    """`max_pending=1`: a write waits until the previous one is written, a batch for an empty queue; none waits without end."""
    shelf = Shelf()
    with SyncStore(layers=[Persistence(to=shelf, mode="behind", max_pending=1)]) as store:
        with shelf.shut():
            store.set("a", 1)
            assert shelf.reached.acquire(timeout=LONG)  # it is being written, and takes the only place
            second = in_thread(lambda: store.set("b", 2))
            batch = in_thread(lambda: store.set_many({"c": 3, "d": 4}))
            assert store.get("b") is None
        second()
        batch()
        for number in range(20):
            store.set("a", number)
        store.delete("b")
    assert shelf.has() == {"a": 19, "c": 3, "d": 4}
    assert all(len(landed) <= 2 for landed in shelf.batches)


def test_a_use_in_the_middle_of_a_write_is_done_or_refused(tmp_path: Path) -> None:
    """A signal's handler, a `__del__` or the end of a dropped coroutine may use the queue in a thread that is queuing: it must
    not change what that write has compared. A flush there would wait for ever: the thread that drains waits for this one.
    """
    refused: list[str] = []

    def use() -> None:
        nonlocal total
        try:
            store.update("n", lambda n: n + 100, default=0)
            total += 100
            store.flush()
        except StoreError as error:
            refused.append(str(error))

    to = SQLite(tmp_path / "state.db", durability="process")
    with SyncStore(layers=[Persistence(to=to, mode="behind")]) as store:
        total = 0
        for place in count(1):
            with Between(place, use) as between:
                store.update("n", lambda n: n + 1, default=0)
            total += 1
            assert store.get("n") == total, between.where
            if not between.where:
                break
    assert total > 100
    assert refused
    assert all("in the middle of an operation of the queue" in each for each in refused)


def test_it_can_be_opened_again() -> None:
    """After a close it continues where it was."""
    shelf = Shelf()
    queue = behind(shelf)
    put(queue, "a", 1)
    drive(queue.close())
    drive(queue.open())
    put(queue, "b", value_of(queue, "a") + 1)
    drive(queue.close())
    assert shelf.has() == {"a": 1, "b": 2}
    assert shelf.owned == 2


ENDINGS = {
    "its end": "",
    "an error": "raise SystemError('as it is meant to be')",
    "sys.exit": "sys.exit(1)",
    "Ctrl-C": "raise KeyboardInterrupt",
    "no loop": "",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_queue_is_written_at_exit(tmp_path: Path, ending: str) -> None:
    """However the program ends, without a close of the store: a daemon thread alone would end with it."""
    url = f"sqlite:///{tmp_path}/state.db"
    use = "store.sync.set" if ending == "no loop" else "await store.set"
    main = "def main():" if ending == "no loop" else "async def main():"
    begin = "store.sync.open()" if ending == "no loop" else "await store.open()"
    go = "main()" if ending == "no loop" else "asyncio.run(main())"
    begin = "store.sync.__enter__()" if ending == "no loop" else begin
    code = f"""
import asyncio, sys
from pocket_plug import Store
from pocket_plug.layers import Persistence

store = Store(layers=[Persistence(to={url!r}, mode="behind")])

{main}
    {begin}
    for n in range(500):
        {use}(f"k{{n}}", n)
    {ENDINGS[ending]}

{go}
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    with SyncStore(url) as store:
        assert len(list(store.keys())) == 500


def test_a_failed_write_at_exit_is_reported(tmp_path: Path) -> None:
    """On stderr, with how much is lost: there is no caller left to catch an exception."""
    code = """
from pocket_plug import SyncStore, Memory
from pocket_plug.errors import StoreError
from pocket_plug.layers import Persistence

class Full(Memory):
    async def write(self, changes, expect={}):
        raise StoreError("the disk is full")

store = SyncStore(layers=[Persistence(to=Full(), mode="behind")])
store.__enter__()
store.set("a", 1)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "at the end of the process" in answer.stderr
    assert "1 key(s), which are lost: the disk is full" in answer.stderr


def test_a_forked_child_leaves_the_queue_to_its_parent(tmp_path: Path) -> None:
    """It has no thread: its own writes would be lost silently, and its parent's written twice."""
    code = f"""
import os, sys
from pocket_plug import SyncStore
from pocket_plug.errors import StoreClosedError
from pocket_plug.layers import Persistence

store = SyncStore(layers=[Persistence(to="sqlite:///{tmp_path}/state.db", mode="behind")])
with store:
    for n in range(100):
        store.set(f"k{{n}}", n)
    child = os.fork()
    if not child:
        for use in (lambda: store.set("child", 1), store.flush, lambda: store.get("nothing"), lambda: list(store.keys()),
                    lambda: store.get("k1"), lambda: store.get_many(["k1", "k2"]), lambda: store.update("k1", str)):
            try:
                use()
            except StoreClosedError:
                continue
            os._exit(1)
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    store.set("parent", 1)
print(os.waitstatus_to_exitcode(status))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout == "0\n", answer.stderr
    with SyncStore(f"sqlite:///{tmp_path}/state.db") as store:
        assert len(list(store.keys())) == 101
        assert not store.has("child")


def test_a_forked_child_may_open_it_when_its_parent_has_closed(tmp_path: Path) -> None:
    """Not before; then it continues from what the parent has written, which its own near tier doesn't hide."""
    code = f"""
import os
from pocket_plug import StoreBusyError, SyncStore
from pocket_plug.layers import Persistence

store = SyncStore(layers=[Persistence(to="sqlite:///{tmp_path}/state.db", mode="behind")])
busy, closed = os.pipe(), os.pipe()
store.__enter__()
store.set_many({{"a": "old", "b": 1}})
child = os.fork()
if not child:
    try:
        store.__enter__()
    except StoreBusyError:
        os.write(busy[1], b".")
    os.read(closed[0], 1)
    with store:
        assert store.get("a") == "new", store.get("a")
        store.update("b", lambda n: n + 1)
    os._exit(0)
os.read(busy[0], 1)
store.set("a", "new")
store.close()
os.write(closed[1], b".")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with store:
    print(store.get("b"))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout == "0\n2\n", answer.stderr


# ---------------------------------------------------------------- locked exclusively
def test_one_backend_has_one_queue() -> None:
    """Two would give the same versions to different writes. After a close another one may have it."""
    shelf = Memory()
    queue = behind(shelf)
    with pytest.raises(StoreBusyError, match="share this other store"):
        behind(shelf)
    put(queue, "a", 1)
    drive(queue.close())
    drive(behind(shelf).close())


def test_one_file_has_one_queue(tmp_path: Path) -> None:
    """By whatever path: the second open raises at once, and doesn't affect the first; after a close the file is free."""
    path = tmp_path / "state.db"
    first = behind(SQLite(path))
    (tmp_path / "link.db").symlink_to(path)
    for name in ("state.db", "link.db"):
        with pytest.raises(StoreBusyError, match="locked by another store"):
            behind(SQLite(tmp_path / name))
    put(first, "a", 1)
    drive(first.close())
    second = behind(SQLite(path))
    assert value_of(second, "a") == 1
    drive(second.close())


def test_another_process_cannot_open_the_file_either(tmp_path: Path) -> None:
    """The error says so."""
    url = f"sqlite:///{tmp_path}/state.db"
    code = f"""
from pocket_plug import SyncStore
from pocket_plug.errors import StoreBusyError
from pocket_plug.layers import Persistence
try:
    SyncStore(layers=[Persistence(to={url!r}, mode="behind")]).__enter__()
except StoreBusyError as error:
    print(error)
"""

    def answer() -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    with SyncStore(layers=[Persistence(to=url, mode="behind")]):
        assert "locked by another store" in answer()
    assert answer() == ""


@pytest.mark.parametrize("told", ["write", "flush", "close"])
def test_another_programs_write_is_noticed(
    tmp_path: Path, told: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another program writes to the locked file, its write may have replaced queued ones: this is reported, once."""
    url = f"sqlite:///{tmp_path}/state.db?durability=process"
    noticed = threading.Event()
    monkeypatch.setattr(caplog.handler, "emit", lambda record: noticed.set())
    raised = pytest.raises(StoreError, match="another writer has written") if told == "close" else nullcontext()
    with raised, SyncStore(layers=[Persistence(to=url, mode="behind")]) as store:
        store.set("a", 1)
        store.flush()
        with SyncStore(url) as intruder:
            for _ in range(5):
                intruder.set("a", "theirs")
        store.set("a", 2)
        if told == "flush":
            with pytest.raises(StoreError, match="another writer has written"):
                store.flush()
        if told == "write":
            assert noticed.wait(LONG)
            with pytest.raises(StoreError, match="another writer has written"):
                store.set("b", 1)
        if told != "close":
            store.set("a", 3)
            store.flush()
    assert noticed.is_set()
    if told != "close":
        with SyncStore(url) as store:
            assert store.get("a") == 3, "versions go on above what the intruder was given"


def test_a_backend_that_can_not_be_locked_is_refused() -> None:
    """A backend that is durable, and to which two processes could write behind at the same time."""

    class Plain(Memory):
        survives = True

    with pytest.raises(ConfigError, match="can't be locked"):
        behind(Plain())


def test_a_backend_that_needs_a_loop_is_refused() -> None:
    """At exit there is no loop, so the queue would be lost."""
    with pytest.raises(ConfigError, match=r"needs an event loop.*mode='through'"):
        build_stack(Memory(), [Persistence(to=FaultyMemory(), mode="behind")])


@pytest.mark.parametrize("options", [{"max_pending": 0, "mode": "behind"}, {"max_pending": 5}])
def test_invalid_options_are_refused(options: dict[str, Any]) -> None:
    """A queue without room, and a limit without a queue."""
    with pytest.raises(ConfigError, match="max_pending"):
        build_stack(Memory(), [Persistence(to=Memory(), **options)])


# ---------------------------------------------------------------- properties
def test_it_is_marked_as_buffered() -> None:
    """Through every outer layer: a durable run must not take queued writes for durable ones."""

    class Idle(Layer):
        pass

    stack = build_stack(Memory(), [Idle(), Persistence(to=Shelf(), mode="behind")])
    assert stack.buffered
    assert stack.survives
    assert not build_stack(Memory(), [Idle(), Persistence(to=Shelf())]).buffered


def test_length_and_age_of_the_queue() -> None:
    """The number of keys to write, and how long the oldest has been waiting."""
    shelf, clock = Shelf(), FakeClock()
    shelf.clock = clock
    queue = behind(shelf)
    assert (queue.length, queue.age) == (0, 0)
    with shelf.shut():
        put(queue, "a", 1)
        assert shelf.reached.acquire(timeout=LONG)
        clock.advance(2)
        drive(queue.write([Put("a", 2), Put("b", 2)]))
        clock.advance(3)
        assert (queue.length, queue.age) == (2, 5)
    drive(queue.flush())
    assert (queue.length, queue.age) == (0, 0)
    drive(queue.close())
