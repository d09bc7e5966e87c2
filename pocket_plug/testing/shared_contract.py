"""The promises of a backend whose data several processes share, as tests: inherit `SharedBackendContract`.

The promises of a single instance are in `contracts`. Here several instances use the same data at once: on this loop, on
loops of other threads, in forked children, and in other processes. `server_contract` has further tests for backends with a
server.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from pocket_plug.errors import (
    ConflictError,
)
from pocket_plug.primitives.names import ITEMS
from pocket_plug.store.backend import Backend, Change, Delete, Entry, Put
from pocket_plug.store.resolving import resolve_backend
from pocket_plug.store.store import Store
from pocket_plug.store.sync import SyncStore
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.contracts import BackendContract
from pocket_plug.testing.interrupts import Between, Interrupter
from pocket_plug.testing.scenarios import HANGS, increment, interrupted, keys_of, works_in_a_child
from pocket_plug.testing.several import (
    append_on,
    count_on,
    elsewhere,
    in_threads,
    on_loops_of_threads,
    opened,
    write_in_turns,
    write_together,
)


class SharedBackendContract(BackendContract):
    """Tests a backend whose data several processes share. Inherit it, and override the fixture `url`:

        class TestMine(SharedBackendContract):
            @pytest.fixture
            def url(self, tmp_path):
                return f"mine:///{tmp_path}/state"

    The fixture returns the URL of an empty data set. Any process must be able to open it, so the scheme must be registered by
    an entry point.
    """

    @pytest.fixture
    def url(self) -> str:
        """The URL of an empty data set for the test; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture url")

    @pytest.fixture
    def make_backend(self, url: str) -> Callable[[], Backend]:
        """A function that makes instances over the data."""
        return lambda: resolve_backend(url)

    @pytest.fixture
    def instances(
        self, make_backend: Callable[[], Backend], clock: FakeClock
    ) -> Callable[[Callable[..., Awaitable[Any]]], Any]:
        """Runs a scenario with three open instances on one loop."""

        def run(use: Callable[..., Awaitable[Any]]) -> Any:
            async def main() -> Any:
                made = [make_backend() for _ in range(3)]
                for each in made:
                    each.clock = clock
                    await each.open()
                try:
                    return await use(*made)
                finally:
                    for each in made:
                        await each.close()

            return asyncio.run(main())

        return run

    # ------------------------------------------------------------ several instances
    def test_what_one_has_acknowledged_all_see(self, instances: Callable[..., Any], clock: FakeClock) -> None:
        """All instances see an acknowledged write at once, as a whole, by every operation. If two writes expect the same, one is
        stored."""

        async def scenario(first: Backend, second: Backend, third: Backend) -> None:
            for n in range(20):
                writer, reader = (first, second) if n % 2 else (second, third)
                version = await writer.write([Put("a", n), Put("b", n, clock() + 60)])
                assert await reader.read("a") == Entry(n, version)
                assert await reader.read_many(["a", "b"]) == {
                    "a": Entry(n, version),
                    "b": Entry(n, version, clock() + 60),
                }
                assert await reader.version() >= version
                assert await reader.write([], {"a": version}) >= version
                with pytest.raises(ConflictError):
                    await reader.write([Put("a", -1)], {"a": version - 1})
                assert await reader.write([Delete("b"), Put(f"c{n:02}", n)], {"a": version}) > version
                assert await writer.read("b") is None
            assert await keys_of(first) == ["a", *(f"c{n:02}" for n in range(20))]

        instances(scenario)

    def test_what_another_process_has_acknowledged_all_see(self, instances: Callable[..., Any], url: str) -> None:
        """At once, by every operation, also of keys that were read before: no cache of this process hides it."""

        async def seen(backend: Backend) -> list[object]:
            one_by_one = {key: entry for key in "abc" if (entry := await backend.read(key)) is not None}
            assert await backend.read_many("abc") == one_by_one
            assert dict(await backend.read_page(limit=10)) == one_by_one
            assert await keys_of(backend) == [*one_by_one]
            await backend.write([], {key: one_by_one[key].version if key in one_by_one else 0 for key in "abc"})
            return [entry.value for entry in one_by_one.values()]

        async def scenario(*made: Backend) -> None:
            for times, values in ((0, []), (2, [1, 1, 1]), (4, [3, 3, 3]), (5, [])):
                with elsewhere(url, write_together, times, processes=1) as others:
                    others.go()
                    await asyncio.to_thread(others.done)
                assert [await seen(each) for each in made] == [values] * 3

        instances(scenario)

    def test_several_may_open_it_at_once(self, make_backend: Callable[[], Backend], clock: FakeClock) -> None:
        """Threads open it while it is new, and open and close it while others use it: every increment counts."""
        barrier = threading.Barrier(8)

        def use() -> None:
            barrier.wait(HANGS)
            for _ in range(5):
                backend = make_backend()
                backend.clock = clock
                asyncio.run(opened(backend, lambda backend: increment(backend, "n", 1)))

        failed = in_threads([use] * 8)
        assert not failed, failed[0]
        entry = asyncio.run(opened(make_backend(), lambda backend: backend.read("n")))
        assert entry.value == 40

    def test_no_update_is_lost_between_instances(self, instances: Callable[..., Any], url: str) -> None:
        """Tasks, threads with their own loops and other processes increment the same keys: every increment counts."""

        async def scenario(first: Backend, second: Backend, third: Backend) -> None:
            with elsewhere(url, count_on, 15) as others:
                others.go()
                await asyncio.gather(
                    count_on(first, 15),
                    count_on(second, 15),
                    on_loops_of_threads([lambda: count_on(third, 15), lambda: count_on(first, 15)]),
                )
                await asyncio.to_thread(others.done)
            found = await first.read_many(["c0", "c1"])
            assert {key: entry.value for key, entry in found.items()} == {"c0": 90, "c1": 90}

        instances(scenario)

    def test_no_append_is_lost_between_instances(self, instances: Callable[..., Any], url: str) -> None:
        """Tasks, threads with their own loops and other processes append to one list: all are there, each one's in order."""

        async def scenario(first: Backend, second: Backend, third: Backend) -> None:
            with elsewhere(url, append_on, 15) as others:
                others.go()
                await asyncio.gather(
                    append_on(first, 15), append_on(second, 15), on_loops_of_threads([lambda: append_on(third, 15)])
                )
                await asyncio.to_thread(others.done)
            store = Store(first)
            items = await store.tail("l", 1000)
            assert await store.length("l") == len(items) == 5 * 15
            for who in {who for who, _ in items}:
                assert [n for each, n in items if each == who] == list(range(15))
            assert await store.tail("short", 100) == [item async for item in store.each_item("short")]
            await store.trim("short", keep=3)
            assert len(await keys_of(first, ITEMS)) == 5 * 15 + 3

        instances(scenario)

    def test_a_write_of_another_process_is_seen_whole(self, instances: Callable[..., Any], url: str) -> None:
        """A batch sees all of it or nothing, and so does a check of several keys."""

        async def scenario(*made: Backend) -> None:
            async def look(backend: Backend) -> None:
                for _ in range(100):
                    found = await backend.read_many(["a", "b", "c", "never there"])
                    assert sorted(found) in ([], ["a", "b", "c"])
                    assert len({(entry.value, entry.version) for entry in found.values()}) <= 1
                    try:
                        await backend.write([], {key: found[key].version if found else 0 for key in "abc"})
                    except ConflictError as conflict:
                        if conflict.keys != frozenset("abc"):
                            raise

            with elsewhere(url, write_together, 200, processes=1) as others:
                others.go()
                await asyncio.gather(look(made[0]), look(made[1]), on_loops_of_threads([lambda: look(made[2])]))
                await asyncio.to_thread(others.done)

        instances(scenario)

    def test_the_version_tells_whether_somebody_has_written(self, instances: Callable[..., Any]) -> None:
        """For all instances, the version changes after each write, however many writes one instance makes in a row."""

        async def scenario(first: Backend, second: Backend, third: Backend) -> None:
            for writes in (1, 40, 2):
                version = 0
                for n in range(writes):
                    version = await first.write([Put(f"k{n % 7}", n)])
                    assert await first.version() == version
                before = await second.version()
                assert version <= before == await second.version() == await third.version()
                landed = await first.write([Delete("k0")])
                assert before < landed <= await third.version()
                assert await second.version() == await third.version() == await first.version()

        instances(scenario)

    def test_writers_of_the_same_keys_never_block_each_other_for_good(
        self, instances: Callable[..., Any], url: str
    ) -> None:
        """Whatever order writes have their keys in, there is no deadlock. Each write gets its own version, and none is above
        `version`."""

        async def scenario(*made: Backend) -> None:
            with elsewhere(url, write_in_turns, 20) as others:
                others.go()
                here = await asyncio.gather(*(write_in_turns(each, 20) for each in made))
                beside = await on_loops_of_threads([lambda: write_in_turns(made[0], 20)])
                given = [version for each in (*here, *beside) for version in each]
                given += await asyncio.to_thread(others.done)
            assert len(set(given)) == len(given) == 120
            for each in made:
                assert await each.version() >= max(given)
            assert {entry.version for entry in (await made[0].read_many(["k00", "k39"])).values()} == {max(given)}

        instances(scenario)

    def test_versions_of_a_key_rise_whoever_writes_it(self, instances: Callable[..., Any]) -> None:
        """A reader never sees an older version, or value, after a newer one."""

        async def scenario(*made: Backend) -> None:
            async def write(backend: Backend) -> None:
                for _ in range(40):
                    await increment(backend, "n", 1)

            async def watch(backend: Backend) -> None:
                seen, over = Entry(0, 0), False
                while not over:
                    over = writing.done()  # if so, the next read sees the last write
                    entry = await backend.read("n") or Entry(0, 0)
                    assert (entry.version, entry.value) >= (seen.version, seen.value)
                    assert await backend.version() >= entry.version
                    seen = entry
                    await asyncio.sleep(0)
                assert seen.value == 80

            writing = asyncio.gather(write(made[0]), on_loops_of_threads([lambda: write(made[2])]))
            await asyncio.gather(writing, watch(made[1]))

        instances(scenario)

    # ------------------------------------------------------------ one store for all callers
    def test_a_store_of_a_module_serves_every_kind_of_caller(self, url: str) -> None:
        """Consecutive `asyncio.run`, loops of threads, a hundred threads without a loop, and forked children."""
        store = Store(url)
        sync = SyncStore(store)
        used = 0

        async def use() -> None:
            await store.stack.ensure_open()
            await store.update("n", lambda n: n + 1, default=0)

        for _ in range(20):
            asyncio.run(use())
        asyncio.run(on_loops_of_threads([use] * 8))
        failed = in_threads([lambda: sync.update("n", lambda n: n + 1, default=0)] * 100)
        assert not failed, failed[0]
        used += 128
        for _ in range(2 if hasattr(os, "fork") else 0):

            async def use_in_child() -> None:
                await use()
                await asyncio.to_thread(sync.update, "n", lambda n: n + 1, default=0)

            assert works_in_a_child(use_in_child)
            asyncio.run(use())
            used += 3
        assert sync.get("n") == used
        sync.close()

    # ------------------------------------------------------------ the end of a process
    if hasattr(os, "fork"):

        def test_a_process_that_dies_in_a_write_leaves_all_of_it_or_nothing(
            self, make_backend: Callable[[], Backend], clock: FakeClock
        ) -> None:
            """Killed at forty places, without clean-up: the write is stored as a whole or not at all, and others can write."""

            def on_its_own(use: Callable[[Backend], Awaitable[Any]]) -> Coroutine[Any, Any, Any]:
                backend = make_backend()
                backend.clock = clock
                return opened(backend, use)

            def write(value: int, places: Interrupter) -> Coroutine[Any, Any, Any]:
                changes: list[Change] = [Put("a", value), Delete("b"), Put("b", value)]
                return on_its_own(lambda backend: interrupted(backend, backend.write(changes), places))

            counting = Interrupter(0)
            asyncio.run(write(0, counting))
            landed = 0
            for value, place in enumerate(range(1, counting.places, counting.places // 40 + 1), 1):
                survived = works_in_a_child(partial(write, value, Between(place, die)))
                found = asyncio.run(on_its_own(lambda backend: backend.read_many(["a", "b"])))
                values = {key: entry.value for key, entry in found.items()}
                may_be = [value] if survived else [landed, value]
                assert values in [{"a": n, "b": n} for n in may_be], (
                    f"killed at place {place}: the last traceback on stderr shows where"
                )
                landed = values["a"]
                asyncio.run(on_its_own(lambda backend: increment(backend, "after", 1)))


def die() -> None:
    """End the process as SIGKILL does, but print a traceback first."""
    faulthandler.dump_traceback(2)
    os._exit(1)
