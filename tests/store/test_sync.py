"""Stores without `await`: over parts that are inline, that wait for threads, and that belong to an event loop."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import count
from typing import Any

import pytest

from pocket_plug import (
    Backend,
    Change,
    ConflictError,
    Entry,
    Graph,
    Layer,
    Memory,
    Store,
    StoreClosedError,
    StoreError,
    SyncError,
    SyncStore,
    SyncWriter,
    node,
)
from pocket_plug.testing.interrupts import Between
from pocket_plug.testing.layer_contract import FaultyMemory


class Sleepy(Layer):
    """Awaits its event loop in chosen operations."""

    where: tuple[str, ...] = ("read", "write")

    async def _sleep(self, name: str) -> None:
        if name in self.where:
            await asyncio.sleep(0)

    async def read(self, key: str) -> Entry | None:
        await self._sleep("read")
        return await self.inner.read(key)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        await self._sleep("write")
        return await self.inner.write(changes, expect)


class SlowRead(Layer):
    """Overrides `read` only, and suspends there."""

    async def read(self, key: str) -> Entry | None:
        await asyncio.sleep(0)
        return await self.inner.read(key)


class SlowWrite(Layer):
    """Overrides `write` only, and suspends there."""

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        await asyncio.sleep(0)
        return await self.inner.write(changes, expect)


class SlowScan(Layer):
    """Overrides `scan` only, and suspends there."""

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        async for key in self.inner.scan(prefix, after=after, reverse=reverse, limit=limit):
            await asyncio.sleep(0)
            yield key


class SlowFlush(Layer):
    """Suspends only when a store is opened, flushed and closed."""

    async def open(self) -> None:
        await super().open()
        await asyncio.sleep(0)

    async def flush(self) -> None:
        await asyncio.sleep(0)
        await super().flush()

    async def close(self) -> None:
        await asyncio.sleep(0)
        await super().close()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """No thread of a store may outlive its test."""
    before = set(threading.enumerate())
    yield
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    assert [name for name in left if not name.startswith("pocket_plug-")] == []  # threads of the pool are kept


def use_everything(store: SyncStore) -> None:
    store.set("a", 1)
    store.set_many({"b": 1, "s:c": 1}, ttl=60)
    assert store.get("a") == store.require("a") == 1
    assert store.has("a")
    assert store.get_many(["a", "b"]) == {"a": 1, "b": 1}
    assert list(store.keys()) == ["a", "b", "s:c"]
    assert list(store.reader().scope("s").keys()) == ["c"]
    assert store.ttl("a") is None
    assert store.update("a", lambda n: n + 1) == 2
    assert store.delete("b")
    store.delete_many(["b"])
    typed = store.scope("s").typed(int)
    typed.set("d", 1)
    assert typed.update("d", lambda n: n + 1, default=0) == typed.get("d") == typed.require("d") == 2
    assert typed.delete("d")
    with store.transaction() as tx:
        tx.update("a", lambda n: n + 1)
        tx.set("t", list(tx.keys()))
        assert tx.delete("s:c")
    store.flush()
    assert store.get_many(["a", "t"]) == {"a": 3, "t": ["a", "s:c"]}
    with pytest.raises(ConflictError), store.transaction() as tx:
        tx.update("a", lambda n: n + 1)
        store.set("a", 0)


@pytest.mark.parametrize(
    "layers",
    [[], [Sleepy()], [Sleepy(where=("read",))],
     [SlowRead()], [SlowWrite()], [SlowScan()], [SlowFlush()], [SlowRead(), SlowFlush()]],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["memory", "threaded", "suspending"])
def test_every_operation_works_over_every_part(kind: str, layers: list[Layer], threaded: type[Backend]) -> None:
    """Whichever operations suspend and for what: opened in a thread without a loop, and within a running loop."""
    backends: dict[str, Callable[[], Backend]] = {"memory": Memory, "threaded": threaded, "suspending": FaultyMemory}
    with SyncStore(backends[kind](), layers=layers) as store:
        use_everything(store)

    async def main() -> None:
        with SyncStore(backends[kind](), layers=layers) as store:
            use_everything(store)

    asyncio.run(main())


def test_threads_use_a_store_that_belongs_to_a_loop() -> None:
    """A store opened with `await` serves sync callers in threads on its own loop, transactions included."""

    async def main() -> None:
        async with Store(FaultyMemory(), layers=[SlowRead()]) as store:
            await asyncio.to_thread(use_everything, store.sync)
            assert await store.get("a") == 0

    asyncio.run(main())


def test_the_function_of_an_update_that_uses_the_store_is_told_what_to_do_instead() -> None:
    """It runs on the store's loop, if the backend needs one. Its author, who writes no `await` at all, must find it."""
    with SyncStore(FaultyMemory()) as store:
        store.set("price", 3)
        with pytest.raises(
            SyncError, match="A function that `update` calls can't use the store: read what it needs before"
        ):
            store.update("total", lambda total: total + store.require("price"), default=0)
        assert not store.has("total")


def test_the_home_loops_own_thread_gets_an_error() -> None:
    """A sync call there would wait for itself: SyncError at once, for every operation, and nothing is done."""

    async def main() -> None:
        async with Store(FaultyMemory()) as store:
            for use in (
                lambda: store.sync.get("a"),
                lambda: store.sync.set("a", 1),
                lambda: list(store.sync.keys()),
                lambda: store.sync.update("a", lambda n: n, default=1),
                lambda: store.sync.flush(),
                lambda: store.sync.close(),
            ):
                with pytest.raises(SyncError, match="use `await` here"):
                    use()
            with pytest.raises(SyncError), store.sync.transaction() as tx:
                tx.set("a", 1)
            assert not await store.has("a")

    asyncio.run(main())


def test_inline_parts_are_called_in_the_callers_thread() -> None:
    """Over Memory a sync call works in a task, too: it never waits for the loop."""

    async def main() -> None:
        async with Store() as store:
            use_everything(store.sync)

    asyncio.run(main())


def test_a_store_that_needs_a_loop_starts_one_and_ends_it(
    new_threads: Callable[[], list[threading.Thread]],
) -> None:
    """One thread while it is open, however many callers start at once, and none after it."""
    start = threading.Barrier(8)
    homes: set[str] = set()

    class Who(Layer):
        async def read(self, key: str) -> Entry | None:
            await asyncio.sleep(0)
            homes.add(threading.current_thread().name)
            return await self.inner.read(key)

    store = SyncStore(layers=[Who()])  # not opened: it is in memory

    def call() -> None:
        start.wait(10)
        for _ in range(20):
            store.get("a")

    callers = [threading.Thread(target=call, daemon=True) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(10)
    assert len(homes) == 1
    assert len(new_threads()) == 1
    store.close()
    assert new_threads() == []
    with pytest.raises(StoreClosedError):
        store.get("a")
    assert new_threads() == []
    store.close()
    assert new_threads() == []


@pytest.mark.parametrize("opens", [True, False])
def test_a_deleted_store_ends_its_loop(new_threads: Callable[[], list[threading.Thread]], opens: bool) -> None:
    """Repeated attempts to open a store, or forgotten closes, leave no threads behind, nor the connections to a server."""

    class Refused(FaultyMemory):
        async def open(self) -> None:
            # as a connection does, it keeps the context in which it was made
            asyncio.get_running_loop().call_later(3600, int)
            if not opens:
                raise ConnectionError("no")

    def use() -> threading.Thread:
        store = SyncStore(Refused())
        with nullcontext() if opens else pytest.raises(ConnectionError):
            store.__enter__()
        [thread] = new_threads()
        return thread

    thread = use()
    for _ in range(1000):  # at the first collection the loop's thread may still hold what it has just executed
        gc.collect()
        thread.join(0.03)
        if not thread.is_alive():
            break
    assert new_threads() == []


def test_a_use_in_the_middle_of_the_start_of_its_loop_is_done_or_refused() -> None:
    """A signal's handler or a `__del__` may use the store in the thread that is just starting its loop: it must not wait for
    itself. Nor does a close.
    """
    refused: list[str] = []

    def use() -> None:
        try:
            store.set("inner", 1)
        except StoreError as error:
            refused.append(str(error))
            with pytest.raises(StoreError, match="in the middle of"):
                store.close()

    def sweep() -> None:
        nonlocal store
        for place in count(1):
            store = Store(FaultyMemory()).sync
            with Between(place, use) as between:
                store.set("outer", 1)
            assert store.get("outer") == 1
            store.close()
            if not between.where:
                break

    store = Store().sync
    thread = threading.Thread(target=sweep, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "a deadlock"
    assert any("in the middle of the start of this store's own event loop" in each for each in refused)


def test_a_failed_opening_can_be_tried_again() -> None:
    """On another loop, too: the end of the first loop doesn't matter."""

    class Reluctant(FaultyMemory):
        tries = 0

        async def open(self) -> None:
            self.tries += 1
            if self.tries == 1:
                raise ConnectionError("not yet")

    store = Store(Reluctant())

    async def main() -> None:
        async with store:
            await asyncio.to_thread(store.sync.set, "a", 1)
            assert await store.get("a") == 1

    with pytest.raises(ConnectionError):
        asyncio.run(main())
    asyncio.run(main())


def test_a_store_whose_loop_has_ended_uses_another_one() -> None:
    """Opened on a loop that has ended without closing it, as by an earlier run: sync calls don't hang."""
    store = Store(FaultyMemory())
    asyncio.run(store.open())
    store.sync.set("a", 1)
    assert store.sync.get("a") == 1
    asyncio.run(store.close())
    with pytest.raises(StoreClosedError):
        store.sync.get("a")
    with SyncStore(store) as again:
        use_everything(again)


def test_two_runs_on_two_loops_share_a_store() -> None:
    """A script that calls `asyncio.run` twice: `def` phases work in the second run as in the first."""

    @node.post
    def collect(store: SyncWriter, item: int) -> int:
        store.set("sum", store.get("sum", 0) + item)
        return item

    store = Store(layers=[SlowRead()])
    graph = Graph(collect, store=store)
    assert [asyncio.run(graph.run(1)), asyncio.run(graph.run(2)), graph.run_sync(3)] == [1, 2, 3]
    assert store.sync.get("sum") == 6
    store.sync.close()


def test_closing_ends_running_calls() -> None:
    """A thread that waits for a slow part when the store is closed gets an error, and does not hang."""
    entered = threading.Event()
    errors: list[Exception] = []

    class Endless(Layer):
        async def read(self, key: str) -> Entry | None:
            entered.set()
            await asyncio.Event().wait()
            return None

    def call() -> None:
        try:
            store.get("a")
        except Exception as error:  # noqa: BLE001 - looked at below
            errors.append(error)

    store = SyncStore(layers=[Endless()]).__enter__()
    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    assert entered.wait(10)
    store.close()
    caller.join(10)
    assert not caller.is_alive()
    assert [type(error).__name__ for error in errors] == ["StoreError"]
    assert "was interrupted" in str(errors[0])


def test_a_part_that_is_wrongly_declared_inline_is_named() -> None:
    """It declares itself inline and suspends: the error says which flag to change."""

    class Liar(Memory):
        async def read(self, key: str) -> Entry | None:
            await asyncio.sleep(0)
            return await super().read(key)

    store = SyncStore(Liar())
    with pytest.raises(SyncError, match="set inline_read or inline_write to False"):
        store.get("a")
    with pytest.raises(SyncError, match="needs_loop = True"):
        store.update("a", lambda n: n, default=0)


def test_keys_left_early_leave_nothing_behind(threaded: type[Backend]) -> None:
    """A scan that is not read to its end is dropped without a warning, over every part."""
    for make in (Memory, threaded, FaultyMemory):
        with SyncStore(make()) as store:
            store.set_many({f"k{n}": n for n in range(1000)})
            names: Any = store.keys()
            assert next(names) == "k0"
            del names
            assert store.get("k4") == 4


def test_callers_of_all_kinds_share_entries(threaded: type[Backend]) -> None:
    """What a thread writes a task reads, and the other way, whatever the store waits for."""

    async def main(backend: Backend) -> None:
        async with Store(backend) as store:
            await store.set("from a task", 1)
            assert await asyncio.to_thread(store.sync.get, "from a task") == 1
            await asyncio.to_thread(store.sync.set, "from a thread", 2)
            assert await store.get("from a thread") == 2

    for make in (Memory, threaded, FaultyMemory):
        asyncio.run(main(make()))


def test_a_scan_switches_to_the_loop_once_per_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each switch waits for another thread: one per name made a list of 50,000 take seconds over a server."""
    with SyncStore(Memory(), layers=[SlowScan()]) as store:
        store.set_many({f"k{n:04}": n for n in range(1000)})
        crossings, run = 0, store.stack.run_read

        def counting(coroutine: Any) -> Any:
            nonlocal crossings
            crossings += 1
            return run(coroutine)

        monkeypatch.setattr(store.stack, "run_read", counting)
        assert list(store.keys()) == [f"k{n:04}" for n in range(1000)]
        assert crossings < 10


@pytest.mark.parametrize("view", [SyncStore().reader(), Store().reader()], ids=["sync", "async"])
def test_a_reader_says_where_to_write(view: Any) -> None:
    """A write in `prep` is an AttributeError that names `post`, not a similar method; `hasattr` is False."""
    assert not any(hasattr(view, name) or hasattr(type(view), name) for name in ("set", "update", "delete", "nothing"))
    with pytest.raises(
        AttributeError, match=r"Reader only reads, so it has no 'set'; a node writes in its post"
    ) as error:
        view.set("a", 1)
    assert error.value.obj is None  # so that Python doesn't suggest `get`
    assert view.get
