"""Many callers write the same key at the same time: nothing is lost, nobody hangs, and a failing caller affects no other."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Context, copy_context
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import (
    Backend,
    Change,
    ConflictError,
    Delete,
    Graph,
    Layer,
    Memory,
    Node,
    Put,
    Store,
    StoreBusyError,
    StoreError,
    StoreReader,
    StoreWriter,
    SyncError,
    UnregisteredTypeError,
    each,
    node,
)
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.graph.running.protocols import LATE_CONFLICTS
from pocket_plug.layers.bounding import Bounding
from pocket_plug.layers.persistence import Persistence
from pocket_plug.primitives.waiting import Waiter, drive, pause
from pocket_plug.store import gates as gates_module
from pocket_plug.store.contention import FREE_TRIES, TRIES, Backoff
from pocket_plug.store.gates import Gates
from pocket_plug.store.layer import parts
from pocket_plug.testing.interrupts import Between, Interrupted, Interrupter
from pocket_plug.testing.layer_contract import FaultyMemory

PATIENCE = 60  # seconds until a hang is called a hang


def all_of(works: Iterable[Callable[[], object]]) -> None:
    """Run each in a thread of its own; raises the first error, and fails if one hangs."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    until = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0, until - time.monotonic()))
    assert not [thread for thread in threads if thread.is_alive()], "a deadlock"
    for error in errors:
        raise error


def without_hanging(main: Callable[[], Any]) -> None:
    """Run a scenario on a loop in a thread of its own, so that a hang becomes a failure."""
    all_of([lambda: asyncio.run(main())])


async def settle(rounds: int = 20) -> None:
    for _ in range(rounds):
        await asyncio.sleep(0)


def add(item: object) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    return lambda items: (*items, item)


@pytest.fixture(autouse=True)
def eager_switching() -> Iterator[None]:
    """Threads switch every few bytecodes, so that unprotected code shows."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(params=["memory", "suspending", "threaded", "sqlite"])
def backend(request: pytest.FixtureRequest, threaded: type[Backend], tmp_path: Path) -> Backend:
    """Backends that are inline, that await a loop, that await another thread, and one that does a bit of each."""
    kinds: dict[str, Callable[[], Backend]] = {
        "memory": Memory,
        "suspending": FaultyMemory,
        "threaded": threaded,
        "sqlite": lambda: SQLite(tmp_path / "state.db", durability="process"),
    }
    return kinds[request.param]()


class Held(FaultyMemory):
    """Writes wait until the test releases them. A write that is cancelled meanwhile is withdrawn."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.go = asyncio.Event()

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        self.waiting += 1
        try:
            await self.go.wait()
        finally:
            self.waiting -= 1
        return await super().write(changes, expect)

    @property
    def writes(self) -> int:
        """How many were done or begun."""
        return len([use for use in self.used if use.startswith("write")])


# ------------------------------------------------------------ no lost updates
def test_eight_threads_lose_no_update(backend: Backend) -> None:
    """Every increment of every thread counts, and every caller gets a different value."""
    with Store(backend).sync as store:
        got: list[int] = []
        all_of([lambda: got.extend(store.update("n", lambda n: n + 1, default=0) for _ in range(25))] * 8)
        assert store.get("n") == 200
        assert sorted(got) == list(range(1, 201))


def test_a_hundred_tasks_lose_no_update(backend: Backend) -> None:
    """The same on one event loop; some tasks write by other operations."""

    async def main() -> None:
        async with Store(backend) as store:
            got: list[int] = []

            async def count() -> None:
                for _ in range(3):
                    got.append(await store.update("n", lambda n: n + 1, default=0))
                    await store.set("other", 1)

            await asyncio.gather(*(count() for _ in range(100)))
            assert await store.get("n") == 300
            assert sorted(got) == list(range(1, 301))

    without_hanging(main)


def test_threads_tasks_and_loops_lose_no_update(backend: Backend) -> None:
    """Four event loops with twenty tasks each, four threads, and the home loop: all at once on three keys."""

    async def main() -> None:
        async with Store(backend) as store:

            async def tasks() -> None:
                await asyncio.gather(*(store.update(f"k{n % 3}", add(n), default=()) for n in range(20)))

            def a_loop() -> None:
                asyncio.run(tasks())

            def a_thread() -> None:
                for n in range(20):
                    store.sync.update(f"k{n % 3}", add(n), default=())

            threads = [asyncio.to_thread(work) for work in (a_loop, a_thread) for _ in range(4)]
            await asyncio.gather(tasks(), *threads)
            for k in range(3):
                assert Counter(await store.get(f"k{k}")) == {n: 9 for n in range(20) if n % 3 == k}

    without_hanging(main)


def test_one_of_many_deletes_returns_true(backend: Backend) -> None:
    """Of concurrent deletes of a key exactly one returns True, among tasks and among threads."""

    async def main() -> None:
        async with Store(backend) as store:
            await store.set("a", 1)
            assert sum(await asyncio.gather(*(store.delete("a") for _ in range(50)))) == 1
            await store.set("a", 1)
            assert sum(await asyncio.gather(*(asyncio.to_thread(store.sync.delete, "a") for _ in range(8)))) == 1
            assert not await store.has("a")

    without_hanging(main)


def test_a_thread_that_becomes_leader_before_it_waits_is_served(threaded: type[Backend]) -> None:
    """A thread that has queued and not yet checked is the leader all the same: it took its wake-up for
    another one's, and hung.
    """
    store = Store(threaded())
    combiner = store.stack.combiner
    lock, hand_on = combiner._lock, combiner._hand_on
    queued, handed = threading.Event(), threading.Event()

    class Halting:
        """The second one is held where it has just queued."""

        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()
            if threading.current_thread() is second and not queued.is_set():
                queued.set()
                assert handed.wait(PATIENCE)

    def handing(place: Any, leader: object) -> None:
        hand_on(place, leader)
        handed.set()

    def first(n: int) -> int:
        second.start()
        assert queued.wait(PATIENCE)
        return n + 1

    combiner._lock, combiner._hand_on = Halting(), handing  # type: ignore[assignment, method-assign]
    got: list[int] = []
    second = threading.Thread(
        target=lambda: got.append(store.sync.update("n", lambda n: n + 1, default=0)), daemon=True
    )
    all_of([lambda: store.sync.update("n", first, default=0)])
    second.join(PATIENCE)
    assert got == [2]


# ------------------------------------------------------------ the number of writes
def test_concurrent_updates_are_combined() -> None:
    """A hundred updates of one key are two writes: the first one, and one for all that came meanwhile."""

    async def main() -> None:
        backend = FaultyMemory()
        async with Store(backend) as store:
            await asyncio.gather(*(store.update("n", lambda n: n + 1, default=0) for _ in range(100)))
            assert await store.get("n") == 100
            assert [use for use in backend.used if use.startswith("write")] in (["write n"], ["write n", "write n"])
            backend.used.clear()
            await asyncio.gather(*(store.update(f"k{n % 4}", lambda n: n + 1, default=0) for n in range(100)))
            assert len([use for use in backend.used if use.startswith("write")]) <= 8

    without_hanging(main)


def test_loops_and_threads_take_turns(threaded: type[Backend]) -> None:
    """Eight event loops and two threads on one key never overtake each other: no try conflicts."""
    conflicts: list[ConflictError] = []

    class Counting(threaded):  # type: ignore[misc, valid-type]
        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
            try:
                return int(await super().write(changes, expect))
            except ConflictError as conflict:
                conflicts.append(conflict)
                raise

    store = Store(Counting())

    async def tasks() -> None:
        for _ in range(5):
            await asyncio.gather(*(store.update("n", lambda n: n + 1, default=0) for _ in range(10)))

    def a_thread() -> None:
        for _ in range(10):
            store.sync.update("n", lambda n: n + 1, default=0)

    all_of([*[lambda: asyncio.run(tasks())] * 8, a_thread, a_thread])
    assert store.sync.get("n") == 8 * 50 + 2 * 10
    assert conflicts == []


# ------------------------------------------------------------ failures of one caller
def test_an_exception_in_an_update_is_raised_to_its_caller_only(backend: Backend) -> None:
    """All others in the same batch are done; an exception of a function is raised to its own caller."""

    async def main() -> None:
        async with Store(backend) as store:

            def faulty(n: int) -> int:
                if n >= 0:
                    raise ArithmeticError("no")
                return n

            calls = [store.update("n", faulty if i % 3 == 0 else lambda n: n + 1, default=0) for i in range(60)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [isinstance(o, ArithmeticError) for o in outcomes] == [i % 3 == 0 for i in range(60)]
            assert sorted(o for o in outcomes if isinstance(o, int)) == list(range(1, 41))
            assert await store.get("n") == 40

    without_hanging(main)


def test_a_value_that_cant_be_stored_is_its_callers_alone(tmp_path: Path) -> None:
    """A backend that refuses one of the values in a batch: the others are stored."""

    class Unknown:
        pass

    async def main() -> None:
        async with Store(SQLite(tmp_path / "state.db")) as store:
            calls = [
                store.update("items", (lambda items: Unknown()) if i == 20 else add(i), default=()) for i in range(40)
            ]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(outcomes.pop(20), UnregisteredTypeError)
            assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
            assert sorted(await store.get("items")) == [i for i in range(40) if i != 20]

    without_hanging(main)


def test_a_success_after_a_conflict_is_no_failure() -> None:
    """A function that raised on the first try, and not on the second, was done: its caller gets no error."""

    class SetMeanwhile(FaultyMemory):
        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
            if len(self.used) < 3:
                await Memory.write(self, [Put("n", 10)])
            return await super().write(changes, expect)

    async def main() -> None:
        async with Store(SetMeanwhile()) as store:
            needs_it, has_default = await asyncio.gather(
                store.update("n", lambda n: n + 1), store.update("n", lambda n: n + 1, default=0)
            )
            assert (needs_it, has_default) == (11, 12)
            assert await store.get("n") == 12

    without_hanging(main)


def test_a_failing_backend_fails_all_waiting_callers_and_no_later_one() -> None:
    """Each caller gets the error; the key is free again afterwards, for updates and deletes."""

    async def main() -> None:
        backend = FaultyMemory()
        async with Store(backend) as store:
            backend.error = ConnectionError("lost")
            outcomes = await asyncio.gather(
                *(store.update("n", lambda n: n + 1, default=0) for _ in range(20)), return_exceptions=True
            )
            assert outcomes == [backend.error] * 20
            backend.error = None
            assert await store.update("n", lambda n: n + 1, default=0) == 1
            assert await store.delete("n")

    without_hanging(main)


# ------------------------------------------------------------ conflicts with other processes
class Overtaken(Layer):
    """Another process is faster, this many times."""

    times: list[int]
    inline_read = inline_write = True

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        if expect and self.times[0]:
            self.times[0] -= 1
            await self.inner.write([Put(key, ("theirs",)) for key in expect])
        return await self.inner.write(changes, expect)


@pytest.mark.parametrize("times", [1, 3, 4, 15])
def test_after_a_few_conflicts_it_succeeds(backend: Backend, times: int) -> None:
    """It is retried, however the caller waits: awaited, in a thread, in a call that blocks the loop."""
    left = [0]

    async def main() -> None:
        async with Store(backend, layers=[Overtaken(times=left)]) as store:

            async def in_a_thread(key: str) -> None:
                await asyncio.to_thread(store.sync.update, key, add("ours"), default=())

            async def blocking(key: str) -> None:
                store.sync.update(key, add("ours"), default=())

            async def awaited(key: str) -> None:
                await store.update(key, add("ours"), default=())

            for way in (awaited, in_a_thread) if store.stack.needs_loop else (awaited, in_a_thread, blocking):
                left[0] = times
                await way(way.__name__)
                assert await store.get(way.__name__) == ("theirs", "ours")
                assert left[0] == 0

    without_hanging(main)


def test_endless_conflicts_are_an_error(backend: Backend) -> None:
    """After a limited number of tries, with the key; nothing of it was written, and the key can be used."""
    left = [10**6]

    async def main() -> None:
        async with Store(backend, layers=[Overtaken(times=left)]) as store:
            with pytest.raises(
                ConflictError, match=f"'n' was changed by other writes at each of {TRIES} tries"
            ) as caught:
                await store.update("n", add("ours"), default=())
            assert caught.value.keys == {"n"}
            assert await store.get("n") == ("theirs",)
            left[0] = 0
            assert await store.update("n", add("ours")) == ("theirs", "ours")

    without_hanging(main)


@pytest.mark.parametrize("theirs", [Put("n", "theirs"), Delete("n")], ids=["set", "delete"])
def test_a_delete_never_conflicts(backend: Backend, theirs: Change) -> None:
    """However often another process changes the key between its read and its write, it is done at the first try, and returns the
    truth.
    """
    writes: list[Mapping[str, int]] = []

    class Busy(Layer):
        inline_read = inline_write = True
        needs_loop = False

        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
            if expect:
                writes.append(expect)
                await self.inner.write([theirs])
            return await self.inner.write(changes, expect)

    async def main() -> None:
        async with Store(backend, layers=[Busy()]) as store:
            deletes: list[Callable[[], Any]] = [
                lambda: store.delete("n"),
                lambda: store.typed(str).delete("n"),
                lambda: asyncio.to_thread(store.sync.delete, "n"),
            ]
            for delete in deletes:
                await store.set("n", "ours")
                assert await delete() is isinstance(theirs, Put)
                assert not await store.has("n")
                assert await delete() is False
            assert len(writes) == len(deletes)

    without_hanging(main)


@pytest.mark.parametrize("stack", ["process", "power", "through"])
def test_an_update_loses_to_other_processes_a_few_times_at_most(stack: str, tmp_path: Path) -> None:
    """Then it has a turn: one that sets the key at each try, as another process would, is locked out until it is done."""
    file = f"sqlite:///{tmp_path}/state.db"
    url, layers = STACKS[stack](file)
    tries: list[int] = []

    async def main() -> None:
        async with Store(url, layers=layers) as store, Store(f"{file}?durability=process&timeout=0") as other:

            def overtaken(n: int) -> int:
                tries.append(n)
                with suppress(StoreBusyError):
                    other.sync.set("n", 100)
                return n + 1

            for update in (store.update, functools.partial(asyncio.to_thread, store.sync.update)):
                tries.clear()
                await store.set("n", 0)
                assert await update("n", overtaken) == 101
                assert await other.get("n") == 101
                assert len(tries) <= FREE_TRIES + 2

    without_hanging(main)


# ------------------------------------------------------------ cancellation
@pytest.mark.parametrize("cancels", [1, 2])
@pytest.mark.parametrize("victim", [0, 1, 5], ids=["the leader", "the next", "another"])
def test_a_cancelled_update_is_done_or_never_will_be(victim: int, cancels: int) -> None:
    """At any moment: what its caller can read after the cancellation stays so, and every other caller is served once."""

    async def main() -> None:
        outcomes = set()
        for patience in range(16):
            async with Store(FaultyMemory()) as store:
                early = [asyncio.ensure_future(store.update("k", add(n), default=())) for n in range(4)]
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                late = [asyncio.ensure_future(store.update("k", add(n), default=())) for n in range(4, 8)]
                calls = early + late
                for _ in range(patience):
                    await asyncio.sleep(0)
                for _ in range(cancels):
                    calls[victim].cancel()
                    await asyncio.sleep(0)
                await asyncio.wait([calls[victim]])
                told = victim in (await store.get("k", ()))
                assert told or calls[victim].cancelled()
                await asyncio.wait(calls)
                await settle()
                final = await store.get("k")
                assert (victim in final) == told
                assert Counter(final) == {n: 1 for n in range(8) if n != victim or told}
                for n, call in enumerate(calls):
                    assert n == victim or n in call.result()
                outcomes.add((told, calls[victim].cancelled()))
                await store.update("k", add("free"))
        assert {cancelled for _, cancelled in outcomes} == {True, False}

    without_hanging(main)


def test_an_update_that_is_being_written_is_awaited() -> None:
    """Cancelled twice while the backend writes, the caller is notified only when the outcome is known: it was done."""

    async def main() -> None:
        backend = Held()
        async with Store(backend) as store:
            calls = [asyncio.ensure_future(store.update("k", add(n), default=())) for n in range(3)]
            await settle()
            assert backend.waiting == 1
            for call in (calls[0], calls[2], calls[0]):
                call.cancel()
                await settle()
            assert not [call for call in calls if call.done()]
            backend.go.set()
            await asyncio.wait(calls)
            assert [call.cancelled() for call in calls] == [True, False, True]
            assert await store.get("k") == (0, 1, 2)

    without_hanging(main)


def test_a_queued_update_is_withdrawn_at_once() -> None:
    """While another batch is written, a caller that waits for the next one can leave, and its update is never done."""

    async def main() -> None:
        backend = Held()
        async with Store(backend) as store:
            first = asyncio.ensure_future(store.update("k", add(0), default=()))
            await settle()
            queued = [asyncio.ensure_future(store.update("k", add(n), default=())) for n in range(1, 4)]
            await settle()
            queued[1].cancel()
            await settle()
            assert queued[1].cancelled()
            assert not first.done()
            backend.go.set()
            await asyncio.wait([first, *queued])
            assert await store.get("k") == (0, 1, 3)
            assert backend.writes == 2

    without_hanging(main)


@pytest.mark.parametrize("patience", range(8))
def test_the_lead_of_a_cancelled_caller_is_passed_on(patience: int) -> None:
    """If the next leader is cancelled, it passes the lead on; nobody behind it hangs."""

    async def main() -> None:
        backend = Held()
        async with Store(backend) as store:
            first = asyncio.ensure_future(store.update("k", add(0), default=()))
            await settle()
            queued = [asyncio.ensure_future(store.update("k", add(n), default=())) for n in range(1, 4)]
            await settle()
            backend.go.set()
            for _ in range(patience):
                await asyncio.sleep(0)
            queued[0].cancel()
            await asyncio.wait([first, *queued])
            assert Counter(await store.get("k")) - Counter([1]) == Counter([0, 2, 3])
            await store.update("k", add("free"))

    without_hanging(main)


def test_ended_updates_leave_nothing_behind() -> None:
    """A thousand keys updated, some updates cancelled: no queue and no gate is left."""

    async def main() -> None:
        async with Store(FaultyMemory()) as store:
            calls = [asyncio.ensure_future(store.update(f"k{n % 500}", add(n), default=())) for n in range(1000)]
            for n, call in enumerate(calls):
                if n % 7 == 0:
                    await asyncio.sleep(0)
                    call.cancel()
            await asyncio.wait(calls)
            await settle()
            combiner = store.stack.combiner
            assert not combiner._lines
            assert not combiner._tasks
            assert not combiner._gates._queues

    without_hanging(main)


# ------------------------------------------------------------ loops that end, threads that block
@pytest.mark.parametrize("end", [RuntimeError("a crash"), KeyboardInterrupt()], ids=["crash", "ctrl-c"])
def test_a_loop_that_ends_during_updates_blocks_nobody(end: BaseException) -> None:
    """`asyncio.run` is ended during its updates: those of another loop and of threads are done, each once."""
    backend = FaultyMemory()
    store = Store(backend)
    landed: list[int] = []

    async def dying() -> None:
        for n in range(50):
            asyncio.ensure_future(store.update("k", add(f"dying {n}"), default=()))  # noqa: RUF006
        await settle(3)
        raise end

    async def living() -> None:
        for n in range(20):
            await asyncio.gather(*(store.update("k", add(10 * n + i), default=()) for i in range(10)))

    def die() -> None:
        for _ in range(10):
            with pytest.raises(type(end)):
                asyncio.run(dying())

    all_of([die, lambda: asyncio.run(living())])
    landed = drive(Memory.read(backend, "k")).value
    assert Counter(item for item in landed if isinstance(item, int)) == {n: 1 for n in range(200)}
    asyncio.run(store.update("k", add("free")))


def test_a_loop_that_stops_during_updates_is_skipped() -> None:
    """Stopped during an update and never run again, as after `run_until_complete`: others don't wait for it."""
    backend = Held()
    store = Store(backend)
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        for n in range(3):
            calls.append(asyncio.ensure_future(store.update("k", add(f"stopped {n}"), default=())))
            await settle()

    calls: list[asyncio.Future[Any]] = []
    loop.run_until_complete(begin())

    async def go_on() -> None:
        backend.go = asyncio.Event()
        backend.go.set()
        for n in range(3):
            await store.update("k", add(n), default=())

    held = backend.go
    all_of([lambda: asyncio.run(go_on())])
    assert drive(Memory.read(backend, "k")).value == (0, 1, 2)

    held.set()  # and if it is run again after all, it finds the others' changes
    loop.run_until_complete(asyncio.wait(calls))
    loop.close()
    assert drive(Memory.read(backend, "k")).value == (0, 1, 2, "stopped 0", "stopped 1", "stopped 2")


def test_a_sync_update_never_waits_for_its_own_loop(threaded: type[Backend], tmp_path: Path) -> None:
    """Called in a task, it blocks the loop where other tasks update the key: it is done all the same."""

    async def main(backend: Backend) -> None:
        async with Store(backend) as store:
            calls: list[asyncio.Future[Any]] = []
            for n in range(10):
                calls.append(asyncio.ensure_future(store.update("k", add(n), default=())))
                for _ in range(n):
                    await asyncio.sleep(0)
                store.sync.update("k", add(f"sync {n}"), default=())
            store.sync.delete("other")
            await asyncio.gather(*calls)
            assert Counter(await store.get("k")) == Counter([*range(10), *(f"sync {n}" for n in range(10))])

    without_hanging(lambda: main(threaded()))
    without_hanging(lambda: main(SQLite(tmp_path / "state.db")))


def test_an_update_within_an_update_ends(threaded: type[Backend]) -> None:
    """Of another key it is done; of the same key it conflicts with the outer one each time: a ConflictError, not a hang."""

    def nested() -> None:
        with Store(threaded()).sync as store:
            store.update("k", lambda items: (*items, store.update("other", add(1), default=())), default=())
            assert store.get_many(["k", "other"]) == {"k": ((1,),), "other": (1,)}
            with pytest.raises(ConflictError, match="'k' was changed by other writes"):
                store.update("k", lambda items: store.update("k", add("inner")) and (*items, "outer"), default=())
            assert "outer" not in store.get("k")

    all_of([nested])


def test_an_update_that_interrupts_another_ends(threaded: type[Backend]) -> None:
    """A signal's handler or a `__del__` may update the key that its own thread is just updating, or waits to update: it must not
    wait for that in line. No update is lost.
    """

    def update() -> None:
        nonlocal inner
        with suppress(StoreError):  # in the middle of a write of the memory
            store.update("k", add("inner"), default=())
            inner += 1

    def sweep() -> None:
        for outer in itertools.count(1):
            with Between(outer, update) as between:
                store.update("k", add("outer"), default=())
            if not between.where:
                break
        assert inner > 100
        assert Counter(store.get("k")) == {"outer": outer, "inner": inner}

    store, inner = Store(threaded()).sync, 0
    all_of([sweep])


# ------------------------------------------------------------ gates
def test_a_gate_has_one_holder(threaded: type[Backend]) -> None:
    """By one task or thread at a time, on any loop."""
    gates = Gates()
    inside: list[int] = []
    seen: list[int] = []

    async def work() -> None:
        for _ in range(20):
            async with gates.hold(["a"]):
                inside.append(1)
                seen.append(len(inside))
                inside.pop()

    async def tasks() -> None:
        await asyncio.gather(*(work() for _ in range(5)))

    all_of([lambda: asyncio.run(tasks()), lambda: asyncio.run(tasks()), *[lambda: drive(work())] * 4])
    assert seen == [1] * (2 * 100 + 4 * 20)


def test_gates_are_fair() -> None:
    """They admit callers in the order of arrival; a caller that leaves and comes back waits behind the others."""

    async def main() -> None:
        gates = Gates()
        order: list[str] = []

        async def work(name: str) -> None:
            for turn in range(2):
                async with gates.hold(["a"]):
                    order.append(f"{name}{turn}")
                    await settle()

        await asyncio.gather(*(work(name) for name in "xyz"))
        assert order == ["x0", "y0", "z0", "x1", "y1", "z1"]

    without_hanging(main)


def test_overlapping_holders_never_wait_for_each_other() -> None:
    """In whatever order they name the gates; naming one twice is allowed."""
    gates = Gates()

    async def work(names: list[str]) -> None:
        for _ in range(30):
            async with gates.hold(names):
                await asyncio.sleep(0)

    sets = [["a", "b"], ["b", "a"], ["b", "c", "a"], ["c", "b", "c"], ["a", "a"]]

    async def tasks() -> None:
        await asyncio.gather(*(work(names) for names in sets))

    all_of([lambda: asyncio.run(tasks())] * 2)
    assert not gates._queues


@pytest.mark.parametrize("patience", range(6))
def test_a_cancelled_holder_or_waiter_leaves_the_gate_free(patience: int) -> None:
    """While it waits, while it is admitted, while it is inside: the next caller is admitted."""

    async def main() -> None:
        gates = Gates()
        entered: list[int] = []

        async def work(n: int) -> None:
            async with gates.hold(["a", "b"]):
                entered.append(n)
                await asyncio.sleep(0)

        for victim in range(4):
            entered.clear()
            tasks = [asyncio.ensure_future(work(n)) for n in range(4)]
            for _ in range(patience):
                await asyncio.sleep(0)
            tasks[victim].cancel()
            await asyncio.wait(tasks)
            assert set(entered) >= {n for n in range(4) if n != victim}
        assert not gates._queues

    without_hanging(main)


def test_a_call_that_blocks_its_loop_does_not_wait_for_its_tasks() -> None:
    """A clear error if a task of the blocked loop holds the gate or waits for it; a free one is acquired."""

    async def main() -> None:
        gates = Gates()

        async def enter(name: str) -> str:
            async with gates.hold([name]):
                return "entered"

        async with gates.hold(["a"]):
            with pytest.raises(SyncError, match="'a' is locked by a task of the event loop that this sync call blocks"):
                Context().run(drive, enter("a"))  # called by a caller that doesn't hold it
            assert drive(enter("a")) == drive(enter("b")) == "entered"
        assert drive(enter("a")) == "entered"

    without_hanging(main)


def test_a_holder_of_a_gate_waits_for_no_other() -> None:
    """Two nodes in their turn, each updating the key for which the other one waits, are both done."""

    async def main() -> None:
        async with Store(FaultyMemory()) as store:

            async def in_turn(mine: str, other: str) -> None:
                async with store.stack.gates.hold([mine]):
                    for n in range(5):
                        await store.update(other, add(n), default=())
                        await store.update(mine, add(n), default=())

            background = [asyncio.ensure_future(store.update(key, add("x"), default=())) for key in "abab"]
            await asyncio.gather(in_turn("a", "b"), in_turn("b", "a"), *background)
            for key in "ab":
                assert Counter(await store.get(key)) == {**dict.fromkeys(range(5), 2), "x": 2}

    without_hanging(main)


# ------------------------------------------------------------ beside plain writes
class Losses(Layer):
    """Counts the writes that had a conflict."""

    inline_read = inline_write = True
    needs_loop = False

    def on_build(self) -> None:
        self.count = 0

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        try:
            return await self.inner.write(changes, expect)
        except ConflictError:
            self.count += 1
            raise


STACKS: dict[str, Callable[[str], tuple[str, list[Layer]]]] = {
    "memory": lambda file: ("memory://", []),
    "bounded": lambda file: ("memory://", [Bounding(max_bytes=10_000)]),
    "process": lambda file: (f"{file}?durability=process", []),
    "power": lambda file: (file, []),
    "through": lambda file: ("memory://", [Persistence(to=f"{file}?durability=process")]),
    "behind": lambda file: ("memory://", [Persistence(to=f"{file}?durability=process", mode="behind")]),
}


class Rivals:
    """Threads that set a key as fast as they can, and a task that does so on a loop of its own."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._over = threading.Event()
        self._moved = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._sets, self._sets, self._loop)]

    def _sets(self) -> None:
        while not self._over.is_set():
            self._store.sync.set(self._key, 0)
            self._moved.set()

    def _loop(self) -> None:
        async def sets() -> None:
            while not self._over.is_set():
                await self._store.set_many({self._key: 0, "other": 0})
                self._moved.set()

        asyncio.run(sets())

    def overtake(self) -> None:
        """Give them the time for a set, if they may: a slow function between the read and the write."""
        self._moved.clear()
        self._moved.wait(0.02)

    def __enter__(self) -> Rivals:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a deadlock"


@pytest.mark.parametrize("stack", STACKS)
def test_plain_sets_make_nobody_conflict_for_long(stack: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Updates, deletes and nodes beside threads that only set the key, and would win each time: no conflict."""
    url, layers = STACKS[stack](f"sqlite:///{tmp_path}/state.db")
    losses, times = Losses(), 4
    hooked: list[int] = []

    async def main() -> None:
        async with Store(url, layers=[losses, *layers]) as store:
            counted = next(part for part in parts(store.stack) if isinstance(part, Losses))
            with Rivals(store, "k") as rivals:

                def slow(n: int) -> int:
                    rivals.overtake()
                    return n + 1

                class InPostAndHook(Node[int, int]):
                    async def post(self, view: StoreWriter, n: int, prepared: int, result: int) -> int:
                        await view.set("k", slow(await view.get("k", 0)))
                        return n

                    async def on_success(self, view: StoreWriter, n: int) -> None:
                        hooked.append(await view.update("k", lambda k: slow(k) * 0 + n, default=0))

                graph = Graph(InPostAndHook(), store=store, name="rivals")
                for n in range(times):
                    await store.update("k", slow, default=0)
                    await asyncio.to_thread(store.sync.update, "k", slow, default=0)
                    await store.delete("k")
                    await graph.run(n)
            assert counted.count <= times * 5 * (FREE_TRIES + 6)
            assert set(hooked) == {*range(times)}
            assert "on_success" not in caplog.text
            assert store.stack.write == store.stack.inner.write, "plain writes pass nothing of the stack's any more"

    without_hanging(main)


@pytest.mark.parametrize("kind", ["post", "hook"])
def test_nodes_that_update_the_same_keys_do_not_wait_for_each_other(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with priority waits in line behind others, whose writes wait for its end: it gives its priority up first."""
    monkeypatch.setattr("pocket_plug.store.gates.PRIORITY_WAIT", 3600.0)
    numbers, keys = random.Random(1), 100
    items = [[numbers.randrange(keys) for _ in range(60)] for _ in range(60)]

    async def count(view: StoreWriter, chosen: list[int]) -> None:
        for key in chosen:
            await view.update(f"k{key:02}", lambda n: n + 1, default=0)
            await asyncio.sleep(0)

    class Counts(Node[list[int], list[int]]):
        if kind == "post":

            async def post(self, view: StoreWriter, chosen: list[int], prepared: object, result: object) -> list[int]:
                await count(view, chosen)
                return chosen

        else:

            async def on_success(self, view: StoreWriter, chosen: list[int]) -> None:
                await count(view, chosen)

    async def main() -> None:
        async with Store() as store:
            await Graph(each(Counts(), concurrency=8), store=store, name="many").run(items)
            expected = Counter(key for chosen in items for key in chosen)
            assert await store.get_many([f"k{key:02}" for key in range(keys)]) == {
                f"k{key:02}": expected[key] for key in range(keys)
            }

    without_hanging(main)


def test_a_write_of_many_keys_waits_for_priority_no_longer_than_one_of_a_single_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pocket_plug.store.gates.PRIORITY_WAIT", 0.01)
    names, waits = [f"k{number}" for number in range(100)], list[float]()
    ended = gates_module._Priority.ended

    async def counted(self: gates_module._Priority, in_place: bool, seconds: float) -> None:
        waits.append(seconds)
        await ended(self, in_place, seconds)

    monkeypatch.setattr(gates_module._Priority, "ended", counted)

    async def main() -> None:
        gates = Gates()
        context = copy_context()
        priority = gates.priority(names)
        context.run(priority.__enter__)  # another caller's
        await gates.yield_to_priority(names, in_place=False)
        context.run(priority.__exit__, None, None, None)

    without_hanging(main)
    assert 1 <= len(waits) < len(names) / 2


@pytest.mark.parametrize("stack", STACKS)
def test_a_write_beside_priority_does_not_block_the_event_loop_that_it_waits_for(
    stack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write to memory blocks its thread, and the task with priority may be one of the event loop that runs there."""
    monkeypatch.setattr("pocket_plug.store.gates.PRIORITY_WAIT", 3600.0)
    url, layers = STACKS[stack](f"sqlite:///{tmp_path}/state.db")

    async def main() -> None:
        async with Store(url, layers=layers) as store:
            begun = asyncio.Event()

            async def update() -> None:
                with store.stack.gates.priority(["k"]):
                    begun.set()
                    await asyncio.sleep(0)

            async with asyncio.TaskGroup() as group:
                group.create_task(update())
                await begun.wait()
                await store.set("k", 1)
            assert await store.get("k") == 1

    without_hanging(main)


def test_an_update_that_sets_its_own_key_is_an_error() -> None:
    """It conflicts with itself at each try, also through a thread that it waits for: an error, not a deadlock."""

    async def main() -> None:
        async with Store() as store:

            def itself(n: int) -> int:
                store.sync.set("k", n)
                return n

            with pytest.raises(ConflictError, match="at each of 20 tries"):
                await store.update("k", itself, default=0)
            assert await store.get("k") == 0

    without_hanging(main)


def test_pauses_double_up_to_a_limit() -> None:
    """None after the first conflicts; then a random pause up to a limit, by a random generator that can be seeded."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    backoff = Backoff(sleep, lambda low, high: high)
    for lost in range(TRIES):
        drive(backoff(lost))
    assert slept[:4] == [0.002, 0.004, 0.008, 0.016]
    assert slept[6:] == [0.1] * (TRIES - FREE_TRIES - 6)
    slept.clear()
    for _ in range(2):
        seeded = Backoff(sleep, random.Random(1).uniform)
        for lost in range(TRIES):
            drive(seeded(lost))
    half = len(slept) // 2
    assert slept[:half] == slept[half:]
    assert len(set(slept[:half])) == half


def test_callers_that_conflict_with_other_processes_pause() -> None:
    """Updates and nodes pause between their tries; if a stack writes in place there is no other process."""

    class Contested(FaultyMemory):
        """Another caller is faster, eight times."""

        def __init__(self) -> None:
            super().__init__()
            self.left = 8

        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
            if expect and self.left:
                self.left -= 1
                await Memory.write(self, [Put("k", self.left)])
            return await super().write(changes, expect)

    class ContestedInPlace(Contested):
        inline_read = inline_write = True
        needs_loop = False

        async def _reach(self, what: str) -> None:
            pass

        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
            if expect and self.left:
                self.left -= 1
                await Memory.write(self, [Put("k", self.left)])
            return await Memory.write(self, changes, expect)

    @node.post
    async def add(store: StoreWriter, n: int) -> int:
        return await store.update("k", lambda value: value + n, default=0)

    async def main() -> None:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        for backend in (Contested(), ContestedInPlace()):
            async with Store(backend) as store:
                store.stack.backoff = Backoff(sleep)
                await store.update("k", lambda value: value + 1, default=0)
                backend.left = 8
                await Graph(add, store=store, name="adds").run(1)
                assert await store.get("k") == 1
        assert len(slept) == 2 * (8 - FREE_TRIES + 1)

    without_hanging(main)


class Exclusive(FaultyMemory):
    """Another caller writes `k` before each write with an expectation, but not within a turn."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[list[str]] = []
        self.in_turn = False
        self.written = 0

    @asynccontextmanager
    async def turn(self, names: Collection[str]) -> AsyncGenerator[None]:
        self.turns.append(sorted(names))
        self.in_turn = True
        try:
            yield
        finally:
            self.in_turn = False

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        if expect and changes and not self.in_turn:
            self.written += 1
            await Memory.write(self, [Put("k", self.written)])
        return await super().write(changes, expect)


class PreparesElsewhere(Node[int, int]):
    """prep doesn't read the contested key, so only post is repeated."""

    async def prep(self, store: StoreReader, n: int) -> int:
        return await store.get("steady", 1)  # type: ignore[no-any-return]

    async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
        return await store.update("k", lambda value: value + n, default=0)


class PreparesThere(Node[int, int]):
    """prep reads the contested key, so exec would be in the turn, and that may take long."""

    async def prep(self, store: StoreReader, n: int) -> int:
        return await store.get("k", 0)  # type: ignore[no-any-return]

    async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.set("k", prepared + n)
        return n


def test_a_node_that_keeps_conflicting_gets_a_turn_for_its_post() -> None:
    """As an update does, but later: after ten conflicts, for their keys. An exec is in no turn: such a node fails."""

    async def main() -> None:
        backend = Exclusive()
        async with Store(backend) as store:
            store.stack.backoff = Backoff(lambda seconds: asyncio.sleep(0))
            assert await Graph(PreparesElsewhere(), store=store, name="turns").run(1) == backend.written + 1
            assert (backend.turns, backend.written) == ([["k"]], LATE_CONFLICTS)
            backend.turns.clear()
            with pytest.raises(ConflictError):
                await Graph(PreparesThere(), store=store, name="loses").run(1)
            assert backend.turns == []

    without_hanging(main)


def test_a_pause_blocks_no_event_loop() -> None:
    """A task that pauses lets others run; a thread without a loop sleeps."""

    async def main() -> None:
        order: list[str] = []

        async def pausing() -> None:
            order.append("pauses")
            await pause(0.001)
            order.append("goes on")

        task = asyncio.ensure_future(pausing())
        await asyncio.sleep(0)
        order.append("another")
        await task
        assert order == ["pauses", "another", "goes on"]

    without_hanging(main)
    drive(pause(0))


# ------------------------------------------------------------ all of it at once
@pytest.mark.parametrize("over", ["memory", "another backend"])
def test_a_bounded_store_under_fire(over: str) -> None:
    """Eight threads and a hundred tasks, scopes, evictions, a callback that uses the store: no lost update, no deadlock, and at
    the end not more entries than the limit.
    """

    class Other(Memory):
        """Another class than Memory, so bounding has an index of its own."""

    lock = threading.Lock()
    evicted: Counter[str] = Counter()
    told: Counter[str] = Counter()

    def on_evict(key: str, value: Any, reason: str) -> None:
        store.sync.get("hot:0")
        store.sync.scope("evicted").update(reason, lambda n: n + 1, default=0)
        with lock:
            told[reason] += 1
            if key.startswith("hot:"):
                evicted[key] += value

    bound = 40
    backend: Backend = Memory() if over == "memory" else Other()
    store = Store(backend, layers=[Bounding(max_entries=bound, on_evict=on_evict)])

    def hot(n: int) -> str:
        return f"{n % 4}"

    def a_thread(number: int) -> Callable[[], None]:
        def work() -> None:
            scope = store.sync.scope("hot")
            cold = store.sync.scope("cold").scope(str(number))
            for n in range(60):
                scope.update(hot(n), lambda count: count + 1, default=0)
                cold.set(str(n), n)
                cold.get(str(n - 3))

        return work

    async def tasks() -> None:
        async def work(number: int) -> None:
            for n in range(6):
                await store.scope("hot").update(hot(n + number), lambda count: count + 1, default=0)
                await store.scope("cold").set(f"{number}:{n}", n)
                await asyncio.sleep(0)

        await asyncio.gather(*(work(number) for number in range(100)))

    all_of([*(a_thread(number) for number in range(8)), lambda: asyncio.run(tasks())])
    names = list(store.sync.keys())
    assert len(names) <= bound
    counted = sum(store.sync.get(f"hot:{n}", 0) + evicted[f"hot:{n}"] for n in range(4))
    assert counted == 8 * 60 + 100 * 6
    assert told["size"] > 100
    assert not told["expired"]


# If an interrupt comes in a coroutine that is being closed, Python only reports it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_write_blocks_no_update_with_priority() -> None:
    """A plain write waits for its end in the main thread. Wherever Ctrl-C comes there, the update ends."""
    store = Store().sync
    gates = store.stack.gates

    def update(has_priority: threading.Event, is_over: threading.Event) -> None:
        with gates.priority(("key",)):
            has_priority.set()
            while not gates._priorities["key"]._waiting and not is_over.wait(0.001):
                pass

    for place in itertools.count(1):
        has_priority, is_over = threading.Event(), threading.Event()
        updating = threading.Thread(target=update, args=(has_priority, is_over), daemon=True)
        updating.start()
        has_priority.wait()
        interrupter = Interrupter(place)
        with suppress(Interrupted), interrupter:
            store.set("key", place)
        is_over.set()
        updating.join(30)
        assert not updating.is_alive(), interrupter.where
        if not interrupter.where:
            break
    assert store.get("key") == place


# ---------------------------------------------------------------- garbage
def test_a_caller_in_line_may_be_garbage_collected_while_the_gates_are_locked() -> None:
    """As after Ctrl-C, when nobody can await it any more: its coroutine is closed, and leaves the line."""
    gates = Gates(lambda has_priority: gc.collect())  # called while they are locked

    async def in_line() -> None:
        hold = gates.hold(("a",))
        try:
            async with hold:
                await Waiter[None]()
        finally:
            hold.leave()

    waiting = in_line()
    copy_context().run(waiting.send, None)
    assert gates.taken(["a"]) == ["a"]
    circle: list[object] = [waiting]
    circle.append(circle)
    del waiting, circle

    def with_priority() -> None:
        with gates.priority(("b",)):
            pass

    caller = threading.Thread(target=with_priority, daemon=True)
    caller.start()
    caller.join(60)
    assert not caller.is_alive()
    assert gates.taken(["a"]) == []
