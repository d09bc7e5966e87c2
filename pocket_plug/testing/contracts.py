"""The promises of a backend as tests: inherit `BackendContract` to get the whole suite.

The tests know no particular backend and never wait for real time: they advance a `FakeClock`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine

import pytest

from pocket_plug.errors import StoreClosedError
from pocket_plug.primitives.waiting import drive, drive_inline, run_on
from pocket_plug.store.backend import Backend, Delete, Entry, Put
from pocket_plug.store.sync import SyncStore
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.concurrency_contract import ConcurrencyContract
from pocket_plug.testing.entry_contract import EntryContract
from pocket_plug.testing.list_contract import ListContract
from pocket_plug.testing.scan_contract import ScanContract
from pocket_plug.testing.scenarios import HANGS, Scenario, awaited_by, increment, keys_of, works_in_a_child
from pocket_plug.testing.store_contract import StoreContract


class BackendContract(ListContract, StoreContract, ConcurrencyContract, ScanContract, EntryContract):
    """Tests every promise of `Backend`. Inherit it, and override one fixture:

        class TestMine(BackendContract):
            @pytest.fixture
            def make_backend(self, tmp_path):
                return lambda: Mine(tmp_path / "state")

    The fixture returns a function that makes a backend, which isn't opened yet and is empty when a test begins. If the
    backend has `survives = True`, another call within a test must return a backend over the same data, as after a restart.

    One fault may fail many tests. The simplest promises are tested first (pytest begins with the last base class), so the
    first failure says most about the fault.
    """

    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        """A function that makes the backend under test; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture make_backend")

    @pytest.fixture
    def clock(self) -> FakeClock:
        """The clock of every backend in the test."""
        return FakeClock()

    @pytest.fixture
    def run(self, make_backend: Callable[[], Backend], clock: FakeClock) -> Callable[[Scenario], None]:
        """Runs a scenario with an open backend, on a new event loop. Another call is like a restart."""

        def run(scenario: Scenario) -> None:
            async def main() -> None:
                backend = make_backend()
                backend.clock = clock
                await backend.open()
                try:
                    await scenario(backend)
                finally:
                    await backend.close()

            asyncio.run(main())

        return run

    # ------------------------------------------------------------ kinds of callers
    @awaited_by("run")
    async def test_it_is_as_inline_as_it_says(self, backend: Backend) -> None:
        """Operations that are declared inline never suspend; without `needs_loop`, threads without a loop can run them."""
        version = await backend.write([Put("a", 1)])
        if backend.inline_read:
            assert drive_inline(backend.write([], {"a": version, "b": 0})) == version
            assert drive_inline(backend.read("a")) == await backend.read("a")
            assert drive_inline(backend.read_many(["a"])) == await backend.read_many(["a"])
            assert drive_inline(keys_of(backend)) == ["a"]
        if backend.inline_write:
            drive_inline(backend.write([Put("inline", 1)]))
        if not backend.needs_loop:
            drive(backend.write([Put("while this loop is blocked", 1)]))
        home = asyncio.get_running_loop()

        def from_a_thread() -> int:
            writing = backend.write([Put("from a thread", 1)])
            return run_on(home, writing) if backend.needs_loop else drive(writing)

        version = await asyncio.to_thread(from_a_thread)
        assert await backend.read("from a thread") == Entry(1, version)

    def test_any_loop_may_use_it(self, make_backend: Callable[[], Backend], clock: FakeClock) -> None:
        """Opened on a loop that has ended, it is used on twenty others one by one, on five at once, and closed on another one."""
        backend = make_backend()
        backend.clock = clock
        asyncio.run(backend.open())

        async def count() -> None:
            await increment(backend, "n", 2)
            assert await keys_of(backend) == ["n"]

        try:
            for _ in range(20):
                asyncio.run(count())
            threads = [threading.Thread(target=lambda: asyncio.run(count()), daemon=True) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(HANGS)
            counted = asyncio.run(backend.read("n"))
            assert counted is not None
            assert counted.value == 50
        finally:
            asyncio.run(backend.close())

    def test_a_hundred_threads_share_a_store(self, make_backend: Callable[[], Backend], clock: FakeClock) -> None:
        """Without event loops, by `SyncStore`: each update counts, and no thread hangs."""
        with SyncStore(make_backend(), clock=clock) as store:

            def count() -> None:
                store.update("n", lambda n: n + 1, default=0)

            threads = [threading.Thread(target=count, daemon=True) for _ in range(100)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(HANGS)
            assert store.get("n") == 100

    # ------------------------------------------------------------ forks of the process
    if hasattr(os, "fork"):

        def test_a_forked_child_works_or_says_that_it_cant(self, run: Callable[[Scenario], None]) -> None:
            """Forked while threads or tasks write: the child sees each write as a whole, and can read and write, or
            StoreError says why not. The parent loses nothing, and doesn't hang."""

            async def scenario(backend: Backend) -> None:
                home, done, written = asyncio.get_running_loop(), threading.Event(), threading.Semaphore(0)
                acknowledged = [0, 0, 0]

                async def write(n: int) -> None:
                    while not done.is_set():
                        await backend.write([Put(key, acknowledged[n] + 1) for key in (f"a{n}", f"b{n}")])
                        acknowledged[n] += 1
                        written.release()
                        if backend.needs_loop:
                            await asyncio.sleep(0)

                def writer(n: int) -> None:
                    run_on(home, write(n)) if backend.needs_loop else drive(write(n))

                async def use() -> None:
                    for n in range(3):
                        found = await backend.read_many([f"a{n}", f"b{n}"])
                        assert len({(entry.value, entry.version) for entry in found.values()}) < 2
                    await backend.read("a0")
                    await increment(backend, "by children", 1)
                    assert "by children" in await keys_of(backend)

                writing = [asyncio.ensure_future(asyncio.to_thread(writer, n)) for n in range(3)]
                try:
                    for _ in range(2):
                        assert await asyncio.to_thread(written.acquire, timeout=60)
                    worked = int(await asyncio.to_thread(works_in_a_child, use))
                    assert await asyncio.to_thread(written.acquire, timeout=60)
                    worked += works_in_a_child(use)
                finally:
                    done.set()
                await asyncio.gather(*writing)
                entries = await backend.read_many([f"{letter}{n}" for letter in "ab" for n in range(3)])
                assert {key: entry.value for key, entry in entries.items()} == {
                    f"{letter}{n}": acknowledged[n] for letter in "ab" for n in range(3) if acknowledged[n]
                }
                counted = await backend.read("by children")
                assert (counted.value if counted else 0) == (worked if backend.survives else 0)

            run(scenario)

    # ------------------------------------------------------------ opening and closing
    @awaited_by("run")
    async def test_after_close_everything_is_refused(self, backend: Backend) -> None:
        """StoreClosedError at once, never an answer that looks like missing data. Closing twice is allowed."""
        await backend.write([Put("a", 1)])
        await backend.close()
        await backend.close()
        uses: list[Callable[[], Coroutine[object, object, object]]] = [
            lambda: backend.read("a"),
            lambda: backend.read_many(["a"]),
            lambda: backend.write([Put("b", 1)]),
            lambda: backend.write([Put("b", 1)], {"a": 0}),
            lambda: backend.write([Delete("a")]),
            lambda: backend.write([], {"a": 0}),
            lambda: keys_of(backend),
        ]
        for use in uses:
            with pytest.raises(StoreClosedError):
                await use()

    def test_a_write_under_way_at_close_lands_or_says_so(self, run: Callable[[Scenario], None]) -> None:
        """Each write during a close is either acknowledged or refused, and after a restart it is there or not accordingly."""
        landed: set[str] = set()
        survives = True

        async def closing(backend: Backend) -> None:
            nonlocal survives
            survives = backend.survives
            writing = {f"k{n}": asyncio.ensure_future(backend.write([Put(f"k{n}", n)])) for n in range(30)}
            await asyncio.sleep(0)
            late = asyncio.ensure_future(backend.close())
            writing["late"] = asyncio.ensure_future(backend.write([Put("late", 0)]))
            outcomes = await asyncio.gather(*writing.values(), return_exceptions=True)
            await late
            for key, outcome in zip(writing, outcomes, strict=True):
                if isinstance(outcome, int):
                    landed.add(key)
                else:
                    assert isinstance(outcome, StoreClosedError)

        async def restarted(backend: Backend) -> None:
            assert set(await keys_of(backend)) == (landed if survives else set[str]())

        run(closing)
        run(restarted)

    def test_what_survives_is_there_after_a_restart(self, run: Callable[[Scenario], None], clock: FakeClock) -> None:
        """Entries, deadlines and the counter are as before; if `survives` is False, nothing is there."""
        entries: dict[str, Entry] = {}
        versions: list[int] = []

        async def before(backend: Backend) -> None:
            await backend.write([Put("lasting", [1]), Put("mortal", 2, clock() + 60), Put("dead", 3, clock() + 1)])
            await backend.write([Put("deleted", 4)])
            versions.append(await backend.write([Delete("deleted")]))
            entries.update(await backend.read_many(["lasting", "mortal"]) if backend.survives else {})
            clock.advance(1)

        async def after(backend: Backend) -> None:
            assert await backend.read_many(["lasting", "mortal", "dead", "deleted"]) == entries
            assert await keys_of(backend) == sorted(entries)
            await backend.write([], {"dead": 0, "deleted": 0} | {key: entry.version for key, entry in entries.items()})
            if backend.survives:
                assert await backend.version() >= versions[-1]
                assert await backend.write([Put("new", 5)]) > versions[-1]
            clock.advance(59)
            assert await backend.read("mortal") is None
            assert "mortal" not in await keys_of(backend)
            await backend.write([], {"mortal": 0})

        async def again(backend: Backend) -> None:
            assert await keys_of(backend) == (["lasting", "new"] if backend.survives else []), (
                "the last write before close"
            )

        run(before)
        run(after)
        run(again)
