"""Cancellation at every moment of a run: the store, the hooks, the observers and the raised error agree."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import types
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pocket_plug import Node, Retry, node
from pocket_plug.errors import StoreError
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.kinds.each import each
from pocket_plug.graph.running.context import awaited_to_its_end
from pocket_plug.hookspecs import NodeCall, Observer, PhaseCall, Run, hookimpl
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.store.backend import Backend, Put
from pocket_plug.store.layer import Layer
from pocket_plug.store.memory import Memory
from pocket_plug.store.store import Store, StoreReader, StoreWriter
from pocket_plug.store.sync import SyncReader, SyncStore, SyncWriter
from pocket_plug.testing.clock import FakeClock, run_virtual
from pocket_plug.testing.layer_contract import FaultyMemory

current: contextvars.ContextVar[int] = contextvars.ContextVar("current")


class Work(Node[int, int]):
    """Suspends in each phase; `hooks` has the hooks called for each input, in order."""

    def __init__(self) -> None:
        self.hooks: dict[int, list[str]] = {}
        self.failures = 0

    async def prep(self, store: StoreReader, n: int) -> int:
        current.set(n)
        self.hooks[n] = []
        return int(await store.get("base", 0)) + n

    async def exec(self, n: int) -> int:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise OSError
        return n

    async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.get(f"seen:{n}")
        await store.set(f"posted:{n}", result)
        return result

    async def on_success(self, store: StoreWriter, output: int) -> None:
        await asyncio.sleep(0)
        await store.update("succeeded", lambda times: times + 1, default=0)
        self.hooks[current.get()].append("on_success")

    async def on_failure(self, store: StoreWriter, error: BaseException) -> None:
        await store.update("failed", lambda times: times + 1, default=0)
        self.hooks[current.get()].append("on_failure")

    async def on_complete(self, store: StoreWriter) -> None:
        await asyncio.sleep(0)
        await store.update("completed", lambda times: times + 1, default=0)
        self.hooks[current.get()].append("on_complete")


class Watch:
    """A plugin that records what was entered and left, and how."""

    def __init__(self) -> None:
        self.open = 0
        self.nodes: list[tuple[NodeCall, BaseException | None]] = []
        self.runs: list[tuple[Run, BaseException | None]] = []

    @hookimpl
    def pocket_observe(self) -> Observer:
        return Observer(run=lambda run: self._watch(run, self.runs), node=lambda call: self._watch(call, self.nodes),
                        phase=lambda phase: self._watch(phase, []))  # fmt: skip

    @contextmanager
    def _watch(self, about: Run | NodeCall | PhaseCall, kept: list[Any]) -> Iterator[None]:
        self.open += 1
        try:
            yield
        except BaseException as error:
            kept.append((about, error))
            raise
        else:
            kept.append((about, None))
        finally:
            self.open -= 1


class World:
    """A graph over a store, and a check after a run that everything agrees."""

    def __init__(self, shape: str, backend: Backend, watched: bool) -> None:
        self.work = work = Work()
        self.store = store = Store(backend)
        self.watch = Watch()
        self.pocket = Pocket(plugins=[self.watch] if watched else [], autoload=False)
        self.watched = watched
        self.input: Any = 1
        self.contended = shape == "contended"
        guarded = work.with_options(retry=Retry(attempts=2, delay=3), timeout=1_000)
        if shape == "plain":
            graph: Any = Graph(work, store=store)
        elif shape == "two nodes":
            graph = Graph(work >> _negate >> work.with_options(name="again"), store=store)
        elif shape == "retried":
            work = self.work = guarded
            work.failures = 1
            graph = Graph(work, store=store)
        elif shape == "nested":
            graph = Graph(Graph(work, name="inner", scope="s"), store=store)
            self.store = Store(backend).scope("s")
        elif shape == "contended":
            store.stack.write = _interfering(store.stack.write)  # type: ignore[method-assign]
            graph = Graph(work, store=store)
        else:
            graph = Graph(each(work, concurrency=2), store=store)
            self.input = [1, 2, 3]
        self.graph = graph

    async def cancel_at(self, ticks: tuple[int, ...], clock: FakeClock) -> bool:
        """Run it, cancel it at these turns of the event loop; returns whether the run was cancelled."""
        task = asyncio.create_task(self.graph.run(self.input, pocket=self.pocket))
        turn = 0
        while not task.done():
            if turn in ticks:
                task.cancel()
            turn += 1
            clock.advance(1)
            await asyncio.sleep(0)
        error = None if task.cancelled() else task.exception()
        assert error is None, error
        await self.check(task.cancelled())
        return task.cancelled()

    async def check(self, cancelled: bool) -> None:
        entered = self.work.hooks
        landed = {n for n in entered if await self.store.has(f"posted:{n}")}
        for n, hooks in entered.items():
            called = list(dict.fromkeys(hooks))  # a hook is called again if its commit had a conflict
            assert called == ["on_success" if n in landed else "on_failure", "on_complete"], (n, entered)
        counted = await self.store.get_many(["succeeded", "failed", "completed"])
        assert counted.get("succeeded", 0) == len(landed)
        assert counted.get("failed", 0) == len(entered) - len(landed)
        assert counted.get("completed", 0) == len(entered)
        if not cancelled:
            assert len(landed) == len(entered) > 0
            assert await self.store.has("seen:1") == self.contended
        if self.watched:
            self.check_observers(cancelled, landed)

    def check_observers(self, cancelled: bool, landed: set[int]) -> None:
        watch = self.watch
        assert watch.open == 0
        for call, error in watch.nodes:
            ok = call.outcome == "ok"
            assert ok == (error is None)
            assert ok or (call.outcome == "cancelled" and isinstance(error, asyncio.CancelledError))
            if call.name in ("work", "again"):
                assert ok == (call.input in landed)
        for run, error in watch.runs:
            assert run.outcome == ("success" if error is None else "cancelled")
        if watch.runs:
            outermost, error = watch.runs[-1]
            assert outermost.parent is None
            assert (error is not None) == cancelled


@node
def _negate(n: int) -> int:
    return -n


def _interfering(write: Any) -> Any:
    """The first commit of a node conflicts: another caller has written a key that only post has read."""
    lost = False

    async def interfering(changes: Any, expect: Any = types.MappingProxyType({})) -> int:
        nonlocal lost
        if not lost and "seen:1" in expect:
            lost = True
            await write([Put("seen:1", True)])
        return int(await write(changes, expect))

    return interfering


class Begun(FaultyMemory):
    """Its writes start in the run's own task, and continue in another task if they wait."""

    needs_loop = False


SHAPES = ["plain", "two nodes", "retried", "nested", "contended", "each"]


@pytest.mark.parametrize("watched", [False, True], ids=["unwatched", "watched"])
@pytest.mark.parametrize("backend", [Memory, FaultyMemory, Begun], ids=["memory", "suspending", "begun"])
@pytest.mark.parametrize("shape", SHAPES)
def test_cancelled_at_any_moment_everything_agrees(shape: str, backend: type[Backend], watched: bool) -> None:
    """Either a node's writes are committed, its on_success ran, it is ok and the run is cancelled after it; or nothing of this.

    At each turn of the event loop in turn, until the run ends before it.
    """
    if shape == "two nodes" and backend is Memory:
        backend = FaultyMemory  # another thread takes part, so once is enough
    seen = 0
    for tick in range(1_000):
        clock = FakeClock()
        if not run_virtual(World(shape, backend(), watched).cancel_at((tick,), clock), clock):
            break
        seen += 1
    assert 5 < seen < 999


@pytest.mark.parametrize(
    ("shape", "backend"),
    [("plain", FaultyMemory), ("contended", FaultyMemory), ("each", FaultyMemory), ("plain", Begun)],
)
def test_cancelled_twice_everything_agrees(shape: str, backend: type[Backend]) -> None:
    """As above, with a second cancellation at every later moment: also within the commit and within hooks."""
    first = 0
    while True:
        turns = run_virtual(_turns(shape, backend, first), FakeClock())
        for second in range(first + 1, max(first + 2, turns + 1)):
            clock = FakeClock()
            world = World(shape, backend(), watched=True)
            if not run_virtual(world.cancel_at((first, second), clock), clock):
                assert first > 10
                return
        first += 1 if shape == "plain" else 3


async def _turns(shape: str, backend: type[Backend], tick: int) -> int:
    """The number of turns of a run that is cancelled at one turn."""
    world = World(shape, backend(), watched=False)
    task = asyncio.create_task(world.graph.run(world.input, pocket=world.pocket))
    turn = 0
    while not task.done():
        if turn == tick:
            task.cancel()
        turn += 1
        await asyncio.sleep(0)
    return turn


# ---------------------------------------------------------------- `def` phases, in worker threads
class Gate:
    """Holds a worker thread in one phase until the test releases it."""

    def __init__(self, phase: str) -> None:
        self.phase, self.loop = phase, asyncio.get_running_loop()
        self.entered, self.release = asyncio.Event(), threading.Event()

    def at(self, phase: str) -> None:
        if phase == self.phase:
            self.loop.call_soon_threadsafe(self.entered.set)
            self.release.wait()


class DefWork(Node[int, int]):
    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.hooks: list[str] = []

    def prep(self, store: SyncReader, n: int) -> int:
        self.gate.at("prep")
        return n

    def exec(self, n: int) -> int:
        self.gate.at("exec")
        return n

    def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int:
        store.set("posted", result)
        self.gate.at("post")
        return result

    def on_success(self, store: SyncWriter, output: int) -> None:
        self.gate.at("on_success")
        self.hooks.append("on_success")

    def on_failure(self, store: SyncWriter, error: BaseException) -> None:
        self.hooks.append("on_failure")

    def on_complete(self, store: SyncWriter) -> None:
        self.gate.at("on_complete")
        store.set("completed", True)
        self.hooks.append("on_complete")


@pytest.mark.parametrize("phase", ["prep", "exec", "post", "on_success", "on_complete"])
def test_cancelled_while_a_thread_is_in_a_phase(phase: str) -> None:
    """A thread can't be stopped, but its result is ignored: if it was cancelled before the commit, nothing is written."""

    async def main() -> None:
        gate = Gate(phase)
        store = Store(FaultyMemory())
        work = DefWork(gate)
        task = asyncio.create_task(Graph(work, store=store).run(1))
        await gate.entered.wait()
        task.cancel()
        if phase in ("prep", "exec", "post"):
            with pytest.raises(asyncio.CancelledError):
                await task  # at once: nobody waits for the thread
            gate.release.set()
            assert work.hooks == ["on_failure", "on_complete"]
            assert await store.get("posted") is None
        else:
            gate.release.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert work.hooks == ["on_success", "on_complete"]
            assert await store.get("posted") == 1
        assert await store.get("completed") is True

    asyncio.run(main())


# ---------------------------------------------------------------- around a run
class Sleep(Node[int, int]):
    def __init__(self) -> None:
        self.hooks: list[str] = []

    async def exec(self, n: int) -> int:
        await asyncio.sleep(n)
        return n

    async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.set(f"slept:{n}", True)
        return n

    async def on_failure(self, store: StoreWriter, error: BaseException) -> None:
        await store.set("failed", type(error).__name__)
        self.hooks.append("on_failure")


def test_a_timeout_around_a_run() -> None:
    """`asyncio.timeout` and `wait_for` raise TimeoutError; the task itself isn't cancelled, and the node has cleaned up."""

    async def main() -> None:
        store, sleep = Store(FaultyMemory()), Sleep()
        graph = Graph(sleep, store=store)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await graph.run(50)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(graph.run(60), 5)
        assert sleep.hooks == ["on_failure", "on_failure"]
        assert await store.get("failed") == "CancelledError"
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert await graph.run(1) == 1

    run_virtual(main())


def test_a_timeout_during_the_commit_lets_it_complete() -> None:
    """The caller gets the TimeoutError, and the writes are stored: late, but never half."""

    class SlowWrites(FaultyMemory):
        async def write(self, changes: Any, expect: Any = types.MappingProxyType({})) -> int:
            await asyncio.sleep(10)
            return await super().write(changes, expect)

    async def main() -> None:
        store = Store(SlowWrites())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await Graph(Sleep(), store=store).run(1)
        assert await store.get("slept:1") is True

    run_virtual(main())


def test_a_commit_that_fails_while_the_run_is_cancelled_is_not_done() -> None:
    """Then the node counts as cancelled: the hooks say so, and the cancellation is raised."""

    class Breaks(FaultyMemory):
        async def write(self, changes: Any, expect: Any = types.MappingProxyType({})) -> int:
            if any(change.key.startswith("slept") for change in changes):
                await asyncio.sleep(10)
                raise StoreError("disk full")
            return await super().write(changes, expect)

    async def main() -> None:
        store, sleep = Store(Breaks()), Sleep()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await Graph(sleep, store=store).run(1)
        assert sleep.hooks == ["on_failure"]
        assert await store.get_many(["slept:1", "failed"]) == {"failed": "CancelledError"}

    run_virtual(main())


def test_runs_in_a_task_group() -> None:
    """A run that fails cancels the others, each of which cleans up before the group ends."""

    class Fails(Sleep):
        async def exec(self, n: int) -> int:
            await asyncio.sleep(n)
            raise ValueError(n)

    async def main() -> None:
        store, sleep = Store(FaultyMemory()), Sleep()
        graph = Graph(sleep, store=store)
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                for seconds in (1, 50, 60):
                    group.create_task(graph.run(seconds))
                group.create_task(Graph(Fails(), store=store).run(5))
        assert [str(error) for error in caught.value.exceptions] == ["5"]
        assert sleep.hooks == ["on_failure", "on_failure"]
        assert await store.has("slept:1")
        assert not await store.has("slept:50")

    run_virtual(main())


class FailsSlowlyCleaned(Node[int, int]):
    """Fails, and then takes a while to clean up."""

    async def exec(self, n: int) -> int:
        raise ValueError(n)

    async def on_failure(self, store: StoreWriter, error: BaseException) -> None:
        await asyncio.sleep(10)
        await store.update("cleaned", lambda times: times + 1, default=0)


def test_a_cancellation_while_a_failed_node_cleans_up_is_raised() -> None:
    """The hook ends, and the canceller gets the cancellation, with the node's error as its cause."""

    async def main() -> None:
        store = Store()
        task = asyncio.create_task(Graph(FailsSlowlyCleaned(), store=store, clean_up_grace=60).run(1))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert isinstance(caught.value.__cause__ or caught.value.__context__, ValueError | asyncio.CancelledError)
        assert await store.get("cleaned") == 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await Graph(FailsSlowlyCleaned(), store=store, clean_up_grace=60).run(1)

    run_virtual(main())


def test_a_cancelled_fan_out_stops_though_it_collects_errors() -> None:
    """`errors="collect"` never collects a cancellation, at whatever moment it comes."""
    begun: list[int] = []

    class Item(FailsSlowlyCleaned):
        async def prep(self, store: StoreReader, n: int) -> int:
            begun.append(n)
            return n

    async def main() -> None:
        store = Store()
        graph = Graph(each(Item(), concurrency=3, errors="collect"), store=store, clean_up_grace=60)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await graph.run(range(100))
        assert begun == [0, 1, 2]
        assert await store.get("cleaned") == 3

    run_virtual(main())


def test_a_run_that_is_closed_leaves_its_observers() -> None:
    """Without a caller that awaits it, the run can't clean up with `await`; but its observers are closed, as cancelled."""
    watch = Watch()
    pocket = Pocket(plugins=[watch], autoload=False)
    hooks: list[str] = []

    @types.coroutine
    def suspend() -> Generator[str, None, None]:
        yield "suspended"

    class Waits(Node[int, int]):
        async def exec(self, n: int) -> int:
            await suspend()
            return n

        async def on_complete(self, store: StoreWriter) -> None:
            hooks.append("on_complete")

    run = Graph(Waits()).run(1, pocket=pocket)
    assert run.send(None) == "suspended"  # type: ignore[comparison-overlap]
    run.close()
    assert watch.open == 0
    assert [call.outcome for call, _ in watch.nodes] == ["cancelled"]
    assert [run.outcome for run, _ in watch.runs] == ["cancelled"]
    assert hooks == []


def test_a_sync_store_is_untouched_by_a_run_cancelled_before_it_began() -> None:
    """A task that never started has entered nothing."""
    watch = Watch()
    store = SyncStore()

    async def main() -> None:
        graph = Graph(Work(), store=store)
        task = asyncio.create_task(graph.run(1, pocket=Pocket(plugins=[watch], autoload=False)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert list(store.keys()) == []
    assert (watch.runs, watch.nodes) == ([], [])


def test_an_interrupted_run_sync_can_be_run_again() -> None:
    """KeyboardInterrupt in a phase leaves no gate locked and no transaction open."""
    store = SyncStore()

    class Once(Node[int, int]):
        interrupted: Callable[[], None] | None = None

        def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int:
            total: int = store.update("n", lambda old: old + n, default=0)
            if self.interrupted is not None:
                self.interrupted()
            return total

    def interrupt() -> None:
        raise KeyboardInterrupt

    once = Once()
    graph = Graph(once, store=store)
    once.interrupted = interrupt
    with pytest.raises(KeyboardInterrupt):
        graph.run_sync(1)
    assert store.get("n") is None
    once.interrupted = None
    assert graph.run_sync(1) == 1


def test_a_write_that_waits_keeps_the_context_that_it_began_in() -> None:
    """A layer can reset what it sets during a write, although the write continues in another task; the run sees none of it."""

    class Marks(Layer):
        needs_loop = False

        async def write(self, changes: Any, expect: Any = types.MappingProxyType({})) -> int:
            token = current.set(99)
            try:
                return await self.inner.write(changes, expect)
            finally:
                assert current.get() == 99
                current.reset(token)

    seen: list[int] = []

    @node.post
    async def writes(store: StoreWriter, n: int) -> int:
        await store.set("k", n)
        seen.append(current.get(0))
        return n

    store = Store(Begun(), layers=[Marks()])
    assert asyncio.run(Graph(writes >> writes.with_options(name="again"), store=store).run(1)) == 1
    assert seen == [0, 0]


def test_a_write_that_has_begun_is_done_also_if_all_tasks_are_cancelled() -> None:
    """As at a loop's end, even before the first step of the task that continues the write."""
    assert [asyncio.run(_all_cancelled_after(turns)) for turns in range(1, 6)] == [(True, True)] * 5


async def _all_cancelled_after(turns: int) -> tuple[bool, bool]:
    """Was a write acknowledged, and was it done?"""
    landed: list[bool] = []
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def write() -> None:
        try:
            await asyncio.shield(answer)
        except asyncio.CancelledError:  # it has begun, so it can't be withdrawn
            await answer
        finally:
            landed.append(answer.done())

    writing = asyncio.create_task(awaited_to_its_end(write(), begins_here=True))
    for _ in range(turns):
        await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    answer.set_result(None)
    try:
        return isinstance(await writing, asyncio.CancelledError), landed == [True]
    except asyncio.CancelledError:
        return False, bool(landed)
