"""Tests of concurrency, cancellation and interrupts, for any backend and layer: a write is stored as a whole or not at all."""

import asyncio
import gc
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from itertools import count

import pytest

from pocket_plug.errors import CodecError, ConflictError, StoreError
from pocket_plug.primitives.waiting import drive, run_on
from pocket_plug.store.backend import Backend, Delete, Entry, Put
from pocket_plug.testing.interrupts import Between, Interrupted, Interrupter
from pocket_plug.testing.scenarios import (
    awaited_by,
    beside,
    hasty_threads,
    in_a_thread,
    increment,
    interrupted,
    keys_of,
    leaves_things_behind,
    rival,
)

SHORT = 0.5
"""Seconds for which a turn keeps others off. After that its time limit may have ended it, as when the machine is busy."""


class ConcurrencyContract:
    """Promises for concurrent use, and for operations that are stopped; `BackendContract` inherits it."""

    # ------------------------------------------------------------ many at once
    @awaited_by("run")
    async def test_a_write_comes_between_no_two_steps_of_another(self, backend: Backend) -> None:
        """Two threads write the same key, one at each step of the other's write: exactly one of the writes is stored."""
        if backend.needs_loop:  # its writes run on one loop, so threads can't interleave
            return
        for place in count(1):
            expect = {"n": await backend.write([Put("n", 0)])}

            def lands(value: str, expect: Mapping[str, int] = expect) -> bool:
                try:
                    drive(backend.write([Put("n", value)], expect))
                except ConflictError:
                    return False
                return True

            with rival(lambda: lands("theirs")) as (go, theirs), Between(place, go) as between:
                mine = lands("mine")
            entry = await backend.read("n")
            assert entry is not None
            landed = mine + theirs[0]
            assert landed == 1, f"{landed} of the two writes were stored; the other one came {between.where}"
            assert entry.value == ("mine" if mine else "theirs")
            if not between.where:
                break

    @awaited_by("run")
    async def test_no_increment_is_lost(self, backend: Backend) -> None:
        """Threads, tasks and several event loops increment the same keys by `expect`: each increment counts."""
        home = asyncio.get_running_loop()

        async def tasks(count: int, times: int) -> None:
            await asyncio.gather(*(increment(backend, f"c{n % 2}", times) for n in range(count)))

        def loop_of_its_own() -> None:
            asyncio.run(tasks(4, 5))

        def plain_thread() -> None:
            drive(tasks_in_turn())

        async def tasks_in_turn() -> None:
            await increment(backend, "c0", 10)
            await increment(backend, "c1", 10)

        def on_its_home() -> None:
            run_on(home, tasks_in_turn())

        workers = [on_its_home] if backend.needs_loop else [loop_of_its_own, plain_thread]
        await asyncio.gather(tasks(20, 3), *(asyncio.to_thread(worker) for worker in 2 * workers))
        counted = sum(entry.value for entry in (await backend.read_many(["c0", "c1"])).values())
        assert counted == 20 * 3 + 2 * (20 if backend.needs_loop else 4 * 5 + 20)

    @awaited_by("run")
    async def test_a_write_is_seen_whole_or_not_at_all(self, backend: Backend) -> None:
        """If two keys are always written together, a check of both never finds only one of them changed."""
        version = await backend.write([Put("a", 0), Put("b", 0)])

        async def write() -> None:
            for n in range(50):
                await backend.write([Put("a", n), Put("b", n)])

        async def check(version: int) -> None:
            for _ in range(50):
                try:
                    await backend.write([], {"a": version, "b": version})
                except ConflictError as conflict:
                    if conflict.keys != frozenset({"a", "b"}):
                        raise
                    seen = await backend.read("a")
                    assert seen is not None
                    version = seen.version
                await asyncio.sleep(0)

        if backend.needs_loop:
            await asyncio.gather(write(), check(version), check(version))
        else:
            in_thread = asyncio.to_thread(lambda: asyncio.run(check(version)))
            await asyncio.gather(write(), check(version), in_thread)

    @awaited_by("run")
    async def test_a_batch_is_read_at_one_moment(self, backend: Backend) -> None:
        """`read_many` sees all of another write or nothing of it; the entries of a page are of one write."""
        keys = ["a", "b", "c"]

        async def write(n: int) -> None:
            await backend.write([Put(key, n) if n % 4 else Delete(key) for key in keys])

        async def read() -> None:
            found = await backend.read_many([*keys, "never there"])
            assert sorted(found) == (keys if found else [])
            assert len({(entry.value, entry.version) for entry in found.values()}) <= 1
            page = await backend.read_page(limit=10)
            assert len({(entry.value, entry.version) for _, entry in page if entry is not None}) <= 1

        await beside(backend, write, read, 300)

    @awaited_by("run")
    async def test_what_is_seen_of_a_write_stays_seen(self, backend: Backend) -> None:
        """After one key of a write was read, the other keys are read as of that write or a later one."""

        async def write(n: int) -> None:
            await backend.write([Put("a", n), Put("b", n)])

        async def read() -> None:
            for first, second in ("ab", "ba"):
                one, other = await backend.read(first), await backend.read(second)
                assert one is None or (other is not None and one.value <= other.value)

        await beside(backend, write, read, 300)

    @awaited_by("run")
    async def test_nobody_writes_within_a_turn(self, backend: Backend) -> None:
        """If the backend has turns: what a turn has read is unchanged at its write. Unused, failed and cancelled turns end."""

        async def increment(times: int) -> None:
            done = 0
            while done < times:
                asked = time.monotonic()
                try:
                    async with backend.turn(("n", "theirs")) or nullcontext():
                        found = await backend.read_many(["n", "theirs"])
                        count = found["n"].value if "n" in found else 0
                        expect = {key: found[key].version if key in found else 0 for key in ("n", "theirs")}
                        await backend.write([Put("n", count + 1)], expect)
                    done += 1
                except ConflictError:
                    if time.monotonic() < asked + SHORT:
                        raise

        async def rival(times: int) -> None:
            for n in range(times):
                await backend.write([Put("theirs", n)])
                with suppress(ZeroDivisionError):
                    async with backend.turn(("theirs",)) or nullcontext():
                        if n % 2:
                            raise ZeroDivisionError

        if backend.turn(("n",)) is None:
            return
        workers = [increment(20), increment(20), rival(20)]
        if not backend.needs_loop:
            workers += [
                asyncio.to_thread(lambda: drive(increment(20))),
                asyncio.to_thread(lambda: drive(rival(20))),
            ]
        await asyncio.gather(*workers)
        for patience in range(6):
            given_up = asyncio.ensure_future(increment(20))
            for _ in range(patience):
                await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.gather(given_up, return_exceptions=True)
        entry = await backend.read("n")
        assert entry is not None
        assert entry.value >= (40 if backend.needs_loop else 60)
        await increment(1)
        assert await backend.read("n") == Entry(entry.value + 1, await backend.version())

    @awaited_by("run")
    async def test_of_two_that_expect_the_same_one_lands(self, backend: Backend) -> None:
        """Also if one of the expected keys was just written, and another one never."""

        async def append(key: str, item: int) -> bool:
            found = await backend.read_many([key, "never there"])
            await asyncio.sleep(0)
            entry = found.get(key, Entry([], 0))
            try:
                await backend.write([Put(key, [*entry.value, item])], {"never there": 0, key: entry.version})
            except ConflictError as conflict:
                if conflict.keys != frozenset({key}):
                    raise
                return False
            return True

        async def append_in_turn(item: int) -> list[bool]:
            return [await append(f"k{n}", item) for n in range(40)]

        def in_a_thread() -> list[bool]:
            return asyncio.run(append_in_turn(2))

        others = [] if backend.needs_loop else [asyncio.to_thread(in_a_thread)]
        with hasty_threads():
            told = await asyncio.gather(append_in_turn(0), append_in_turn(1), *others)
        for n in range(40):
            entry = await backend.read(f"k{n}")
            assert entry is not None
            assert sorted(entry.value) == [item for item, landed in enumerate(told) if landed[n]]

    @awaited_by("run")
    async def test_a_conflict_is_its_own_writers_only(self, backend: Backend) -> None:
        """If some of many concurrent writes are in conflict, the others are stored."""
        await backend.write([Put("taken", 0)])
        outcomes = await asyncio.gather(
            *(backend.write([Put(f"k{n}", n)], {"taken": 0} if n % 3 == 0 else {}) for n in range(60)),
            return_exceptions=True,
        )
        assert [isinstance(outcome, ConflictError) for outcome in outcomes] == [n % 3 == 0 for n in range(60)]
        assert await keys_of(backend, "k") == sorted(f"k{n}" for n in range(60) if n % 3)

    # ------------------------------------------------------------ cancellation
    @pytest.mark.parametrize("cancels", [1, 2])
    @awaited_by("run")
    async def test_a_cancelled_write_never_lands_later(self, backend: Backend, cancels: int) -> None:
        """After the call has returned or raised, it doesn't change any more whether the write is stored."""
        told: dict[str, bool] = {}

        async def one(key: str, patience: int) -> None:
            writing = asyncio.ensure_future(backend.write([Put(key, 0), Put(f"{key}'", 0)]))
            for _ in range(patience):
                await asyncio.sleep(0)
            for _ in range(cancels):
                writing.cancel()
                await asyncio.sleep(0)
            try:
                await writing
                acknowledged = True
            except asyncio.CancelledError:
                acknowledged = False
            told[key] = await backend.read(key) is not None
            assert told[key] or not acknowledged
            assert (await backend.read(f"{key}'") is not None) == told[key]

        for turn in range(8):
            await asyncio.gather(*(one(f"{turn}.{patience}", patience) for patience in range(12)))
        await backend.write([Put("after all of them", 0)])
        await backend.flush()
        assert {key: await backend.read(key) is not None for key in told} == told

    # ------------------------------------------------------------ interrupts
    @leaves_things_behind
    @awaited_by("run")
    async def test_an_interrupted_write_is_there_as_a_whole_or_not_at_all(self, backend: Backend) -> None:
        """Wherever a signal handler raises, all of the write is stored or nothing; and others can write."""
        # a KeyboardInterrupt would end the event loop itself
        errors: list[type[BaseException]] = [Interrupted] if backend.needs_loop else [Interrupted, KeyboardInterrupt]
        version = await backend.write([Put("a", 0), Put("b", 0)])
        for place in count(1, 3):
            error = errors[place % len(errors)]
            writing = backend.write([Put("a", place), Delete("b"), Put("b", place)], {"a": version})
            interrupter = Interrupter(place, error)
            try:
                await interrupted(backend, writing, interrupter)
                landed = {place}
            except (error, StoreError, CodecError):  # a part may treat the interrupt as its own failure
                assert interrupter.where
                landed = {0, place}
            found = await backend.read_many(["a", "b"])
            assert {entry.value for entry in found.values()} in [{value} for value in landed], interrupter.where
            assert len(found) == 2, interrupter.where
            version = await in_a_thread(backend, backend.write([Put("a", 0), Put("b", 0)]), interrupter.where)
            assert await keys_of(backend) == ["a", "b"]
            if not interrupter.where:
                gc.collect()  # here, where its warnings are ignored
                return

    @leaves_things_behind
    @awaited_by("run")
    async def test_an_interrupted_read_leaves_nothing_behind(self, backend: Backend) -> None:
        """Others can read and write, and their writes are seen at once."""
        await backend.write([Put("a", 0), Put("b", 0)])
        for place in count(1, 3):
            interrupter = Interrupter(place)
            with suppress(Interrupted, StoreError, CodecError):
                await interrupted(backend, backend.read_many(["a", "b", "never there"]), interrupter)
            await in_a_thread(backend, backend.write([Put("a", place), Put("b", place)]), interrupter.where)
            found = await backend.read_many(["a", "b"])
            assert {key: entry.value for key, entry in found.items()} == {"a": place, "b": place}
            assert (await backend.read("a")) == found["a"], interrupter.where
            if not interrupter.where:
                gc.collect()  # here, where its warnings are ignored
                return

    @leaves_things_behind
    @awaited_by("run")
    async def test_an_interrupted_turn_ends(self, backend: Backend) -> None:
        """If the backend has turns: wherever one is interrupted, its write is stored or not, and others can write soon."""

        async def in_turn(value: int) -> None:
            async with backend.turn(("a",)) or nullcontext():
                entry = await backend.read("a") or Entry(0, 0)
                await backend.write([Put("a", value)], {"a": entry.version})

        for place in count(1, 3) if backend.turn(("a",)) is not None else ():
            interrupter = Interrupter(place)
            landed = {place}
            try:
                await interrupted(backend, in_turn(place), interrupter)
            except (Interrupted, StoreError, CodecError):  # a part may treat the interrupt as its own failure
                landed = {0, place}
            entry = await backend.read("a") or Entry(0, 0)
            assert entry.value in landed, interrupter.where
            await in_a_thread(backend, backend.write([Put("a", 0)]), interrupter.where)
            if not interrupter.where:
                gc.collect()  # here, where its warnings are ignored
                return
