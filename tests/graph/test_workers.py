"""Worker threads: they pass on results, errors and context; abandoned threads are counted, replaced, and never awaited."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from pocket_plug import Node, Retry, node
from pocket_plug.errors import ConfigError, NodeTimeoutError, WrappedStopIterationError
from pocket_plug.graph.fan_out import fan_out
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.running import workers
from pocket_plug.graph.running.workers import Workers, WorkerTimeout, pool
from pocket_plug.primitives import waiting
from pocket_plug.primitives.waiting import Waiter
from pocket_plug.store.store import Store
from pocket_plug.testing.clock import run_virtual
from pocket_plug.testing.interrupts import Interrupted, Interrupter, under


@pytest.fixture
def own_pool(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Workers]:
    """Makes a small pool, and uses it instead of the process's."""

    def make(most: int) -> Workers:
        made = Workers(most)
        monkeypatch.setattr(workers, "_pool", made)
        return made

    return make


class Holding:
    """Functions that stay in their thread until the test ends."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.begun = threading.Semaphore(0)
        self.inside: set[int] = set()

    def stay(self, n: int = 0) -> int:
        self.begun.release()
        self.release.wait()
        return n

    async def has_begun(self) -> None:
        """Run the loop until one more has started, without moving virtual time."""
        while not self.begun.acquire(blocking=False):
            await asyncio.sleep(0)


@pytest.fixture
def holding() -> Iterator[Holding]:
    held = Holding()
    yield held
    held.release.set()


# ---------------------------------------------------------------- calls
def test_results_and_errors_are_passed_on() -> None:
    """A call returns what the function returns, or raises exactly its exception."""
    error = ValueError("from the thread")

    def fail() -> None:
        raise error

    async def main() -> None:
        assert await Workers().call(divmod, 7, 3) == (2, 1)
        with pytest.raises(ValueError, match="from the thread") as caught:
            await Workers().call(fail)
        assert caught.value is error

    asyncio.run(main())
    assert Workers().call_blocking(60, divmod, 7, 3) == (2, 1)
    with pytest.raises(ValueError, match="from the thread"):
        Workers().call_blocking(60, fail)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_are_passed_on_and_the_thread_lives(error: type[BaseException]) -> None:
    """SystemExit in a thread ends the caller's run, not the thread."""
    threads = Workers(1)

    def interrupt() -> None:
        raise error

    with pytest.raises(error):
        threads.call_blocking(60, interrupt)
    assert threads.call_blocking(60, len, "abc") == 3


@pytest.mark.parametrize(
    "options", [{}, {"timeout": 600}, {"retry": Retry(attempts=1)}], ids=["plain", "timeout", "retry"]
)
@pytest.mark.parametrize("sync", [False, True], ids=["run", "run_sync"])
def test_stop_iteration_does_not_hang_the_run(options: Any, sync: bool) -> None:
    """A bare `next()` in a `def exec` is an error that explains it; no future can carry StopIteration."""

    @node(**options)
    def take(n: int) -> int:
        return next(iter(()))

    graph = Graph(take)
    with pytest.raises(WrappedStopIterationError, match="next") as caught:
        graph.run_sync(1) if sync else asyncio.run(graph.run(1))
    assert isinstance(caught.value.__cause__, StopIteration)


@pytest.mark.parametrize("phase", ["prep", "post"])
@pytest.mark.parametrize("options", [{}, {"retry": Retry(attempts=2)}], ids=["plain", "guarded"])
def test_stop_iteration_of_a_phase_without_a_thread_is_explained(phase: str, options: Any) -> None:
    """Also of prep and post, which run in no thread: no coroutine can carry it either."""

    class Take(Node[int, int], **options):
        def prep(self, store: Any, n: int) -> int:
            return next(iter(())) if phase == "prep" else n

        def post(self, store: Any, n: int, prepared: int, result: int) -> int:
            return next(iter(()))

    for run in (lambda: Graph(Take()).run_sync(1), lambda: asyncio.run(Graph(Take()).run(1))):
        with pytest.raises(WrappedStopIterationError, match="next") as caught:
            run()
        assert isinstance(caught.value.__cause__, StopIteration)


def test_context_variables_reach_the_thread_but_do_not_come_back() -> None:
    """A thread sees the variables of the node's task; what it sets stays in its own context, and is gone at the next call."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    def swap(value: str) -> str:
        before = variable.get()
        variable.set(value)
        return before

    class See(Node[str, str]):
        async def prep(self, store: Any, value: str) -> str:
            variable.set("by prep")
            return value

        def exec(self, value: str) -> str:
            return swap(value)

    async def main() -> None:
        threads = Workers(1)
        variable.set("by the caller")
        assert [await threads.call(swap, "x") for _ in range(2)] == ["by the caller"] * 2
        assert variable.get() == "by the caller"

    asyncio.run(main())
    assert asyncio.run(Graph(See()).run("x")) == "by prep"
    assert Workers().call_blocking(60, swap, "x") == "unset"


@pytest.mark.parametrize("after", [0, 1], ids=["nothing more to do", "another job"])
def test_a_wake_up_that_a_signal_handler_interrupts_is_repeated(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the thread does next, the task is woken once more. asyncio only reports the exception."""
    lost: list[object] = []

    def lost_first(waiters: list[Waiter[Any]]) -> None:
        if not lost:
            lost.append(waiters)
            raise Interrupted
        woken(waiters)

    woken = waiting._wake_here
    monkeypatch.setattr(waiting, "_wake_here", lost_first)

    async def main() -> list[int]:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        threads = Workers(1)
        async with asyncio.timeout(30):
            return await asyncio.gather(*(threads.call(len, "abc") for _ in range(1 + after)))

    assert asyncio.run(main()) == [3] * (1 + after)
    assert len(lost) == 1


def test_a_thread_keeps_no_reference_to_its_last_result(holding: Holding) -> None:
    """The caller can drop it, however long the next job takes."""

    class Large:
        pass

    threads = Workers(1)

    async def main() -> None:
        first = asyncio.create_task(threads.call(Large))
        second = asyncio.create_task(threads.call(holding.stay))
        result = weakref.ref(await first)
        del first
        await holding.has_begun()
        await asyncio.sleep(0)  # the loop drops the first task
        gc.collect()
        assert result() is None
        holding.release.set()
        await second

    asyncio.run(main())


def test_threads_are_reused_and_limited() -> None:
    """Consecutive calls use one thread; concurrent ones no more than the limit; all are daemons with our name."""
    threads = Workers(4)
    names: set[str] = set()
    barrier = threading.Barrier(4)

    def note(_: int = 0) -> None:
        assert threading.current_thread().daemon
        names.add(threading.current_thread().name)

    def meet(n: int) -> int:
        note()
        barrier.wait()
        return n

    async def main() -> None:
        for _ in range(20):
            await threads.call(note)
        assert len(names) == 1
        assert await asyncio.gather(*(threads.call(meet, n) for n in range(40))) == list(range(40))
        assert len(names) == 4
        assert all(name.startswith("pocket_plug-") for name in names)

    asyncio.run(main())


def test_two_event_loops_share_the_pool() -> None:
    """Each result is returned on the loop that waits for it."""
    threads = Workers(2)
    results: dict[int, list[int]] = {}

    async def many(start: int) -> list[int]:
        return await asyncio.gather(*(threads.call(abs, n) for n in range(start, start + 50)))

    def loop(start: int) -> None:
        results[start] = asyncio.run(many(start))

    loops = [threading.Thread(target=loop, args=(start,)) for start in (0, 1_000)]
    for each_loop in loops:
        each_loop.start()
    for each_loop in loops:
        each_loop.join()
    assert results == {start: list(range(start, start + 50)) for start in (0, 1_000)}


# ---------------------------------------------------------------- abandoned threads
def test_a_hundred_timeouts_in_a_row_do_not_starve_the_pool(
    own_pool: Callable[[int], Workers], holding: Holding
) -> None:
    """Each abandoned thread is replaced and counted; other nodes continue, and the count falls as the threads end."""
    threads = own_pool(4)

    @node(timeout=5)
    def stuck(n: int) -> int:
        return holding.stay(n)

    @node
    def quick(n: int) -> int:
        return n + 1

    async def main() -> None:
        for n in range(100):
            run = asyncio.create_task(Graph(stuck).run(n))
            await holding.has_begun()
            with pytest.raises(NodeTimeoutError):
                await run
            assert threads.abandoned == n + 1
        assert await fan_out(quick, range(20)) == list(range(1, 21))

    run_virtual(main())
    before = threading.active_count()
    holding.release.set()
    while threads.abandoned:
        threading.Event().wait(0.001)
    assert threads.call_blocking(60, len, "ab") == 2
    assert threading.active_count() <= before


def test_run_sync_abandons_threads_as_well(own_pool: Callable[[int], Workers], holding: Holding) -> None:
    """There are more timeouts than allowed threads, and the next call still gets one."""
    threads = own_pool(2)
    for _ in range(6):
        with pytest.raises(WorkerTimeout):
            threads.call_blocking(0.001, holding.stay)
    holding.release.set()
    assert threads.call_blocking(60, len, "ab") == 2


def test_jobs_behind_abandoned_threads_get_new_ones(own_pool: Callable[[int], Workers], holding: Holding) -> None:
    """Jobs that wait for a thread are not lost; no other job has to be submitted first."""
    threads = own_pool(2)

    async def main() -> None:
        stuck = [asyncio.create_task(threads.call(holding.stay)) for _ in range(2)]
        for _ in stuck:
            await holding.has_begun()
        waiting = [asyncio.create_task(threads.call(abs, n)) for n in range(5)]
        await asyncio.sleep(0)
        for task in stuck:
            task.cancel()
        assert await asyncio.gather(*waiting) == list(range(5))
        assert threads.abandoned == 2

    asyncio.run(main())


def test_a_call_cancelled_in_the_queue_is_never_started(own_pool: Callable[[int], Workers], holding: Holding) -> None:
    """And needs no thread."""
    threads = own_pool(1)
    called: list[int] = []

    async def main() -> None:
        first = asyncio.create_task(threads.call(holding.stay, 7))
        await holding.has_begun()
        second = asyncio.create_task(threads.call(called.append, 1))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert threads.abandoned == 0
        holding.release.set()
        assert await first == 7
        assert await threads.call(len, "abc") == 3
        assert called == []

    asyncio.run(main())


def test_the_late_result_of_an_abandoned_thread_is_dropped(holding: Holding) -> None:
    """Nobody gets it, and it breaks no loop, neither a running nor a closed one."""
    threads = Workers(2)

    async def main() -> None:
        task = asyncio.create_task(threads.call(holding.stay))
        await holding.has_begun()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    holding.release.set()
    while threads.abandoned:
        threading.Event().wait(0.001)
    assert threads.call_blocking(60, len, "abc") == 3


def test_asyncio_run_and_the_process_end_at_once() -> None:
    """Neither waits for an abandoned thread, which might never end."""
    script = """
import asyncio, threading
from pocket_plug import Graph, NodeTimeoutError, node

@node(timeout=0.05)
def stuck(n: int) -> int:
    threading.Event().wait()
    return n

for run in (lambda: asyncio.run(Graph(stuck).run(1)), lambda: Graph(stuck).run_sync(1)):
    try:
        run()
    except NodeTimeoutError:
        print("timed out", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n") == ["timed out", "timed out", ""]
    assert done.stderr == ""


def test_a_forked_child_has_threads_of_its_own() -> None:
    """The parent's don't exist in it; it makes new ones instead of waiting for them."""
    assert pool().call_blocking(60, len, "abc") == 3
    child = os.fork()
    if child == 0:
        os._exit(pool().call_blocking(60, len, "abcd"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4


def test_a_child_forked_by_a_worker_continues() -> None:
    """The function continues in the child, and workflows work there; once it returns, the child reports it and ends."""
    script = """
import asyncio, os, sys, warnings
from pocket_plug import Graph, node
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads

@node
def add(n: int) -> int:
    return n + 1

@node
def forks(n: int) -> int:
    if os.fork() == 0:
        print("child:", asyncio.run(Graph(add).run(n)), Graph(add).run_sync(n), flush=True)
    else:
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 1
    return n

print("parent:", asyncio.run(Graph(forks).run(1)), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n") == ["child: 2 2", "parent: 1", ""]
    assert done.stderr.count("the child ends") == 1


# ---------------------------------------------------------------- interrupts
def test_a_call_may_be_garbage_collected_while_its_pool_starts_a_thread(
    own_pool: Callable[[int], Workers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Ctrl-C, when nobody can await it any more: the collection closes it, and the pool is locked just then."""
    threads, holding, start = own_pool(2), Holding(), Workers._start
    call = threads.call(holding.stay)
    call.send(None)
    assert holding.begun.acquire(timeout=60)
    circle: list[object] = [call]
    circle.append(circle)
    del call, circle

    def collecting(pool: Workers, *first: Any) -> None:
        gc.collect()
        start(pool, *first)

    monkeypatch.setattr(Workers, "_start", collecting)
    done: list[int] = []
    caller = threading.Thread(target=lambda: done.append(threads.call_blocking(60, abs, -7)), daemon=True)
    caller.start()
    caller.join(60)
    assert (done, threads.abandoned) == ([7], 1)
    holding.release.set()


def check_pool(threads: Workers, most: int, where: str) -> None:
    """It executes several jobs that need each other, and has no more threads than that."""
    together, done = threading.Barrier(most, timeout=30), list[int]()
    callers = [
        threading.Thread(target=lambda: done.append(threads.call_blocking(30, together.wait)), daemon=True)
        for _ in range(most)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert sorted(done) == list(range(most)), where
    for _ in range(30_000):  # until the remaining threads have ended
        if threads.abandoned == 0:
            break
        threading.Event().wait(0.001)
    assert (threads.abandoned, len(threads._jobs), len(threads._threads)) == (0, 0, most), where


def end_threads(threads: Workers) -> None:
    """So a test that makes many pools doesn't leave their threads behind."""
    threads._most, ending = 0, list(threads._threads)
    for _ in ending:
        threads._queue.put(workers._Job(len, ("",)))
    for thread in ending:
        thread.join(60)
        assert not thread.is_alive()


# an interrupt while Python starts a thread, or in a weak reference's callback, is only reported by Python
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("sync", [False, True], ids=["run", "run_sync"])
def test_an_interrupted_run_leaves_the_pool_as_it_was(own_pool: Callable[[int], Workers], sync: bool) -> None:
    """Wherever the exception of a signal handler comes: as many jobs run at once as before, and no thread is left over."""

    @node(timeout=600)
    def add(n: int) -> int:
        return n + 1

    graph = Graph(add)

    def run(interrupter: Interrupter) -> int:
        if not sync:
            return asyncio.run(under(interrupter, graph.run(1)))
        with interrupter:
            return graph.run_sync(1)

    assert run(Interrupter(0)) == 2  # one-time lookups are left out
    gc.disable()  # Python 3.12.1 crashes where a thread that starts collects a coroutine that was traced
    try:
        for place in count(1):
            threads = own_pool(2)
            interrupter = Interrupter(place, (Interrupted, KeyboardInterrupt)[place % 2])
            try:
                assert run(interrupter) == 2
            except BaseException:
                if not interrupter.where:
                    raise
            check_pool(threads, 2, interrupter.where)
            end_threads(threads)
            if not interrupter.where:
                break
    finally:
        gc.enable()
    gc.collect()  # while warnings about coroutines that were never awaited are ignored


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("blocking", [False, True], ids=["call", "call_blocking"])
def test_an_interrupt_while_a_thread_is_abandoned_loses_no_job(
    own_pool: Callable[[int], Workers], blocking: bool
) -> None:
    """Wherever it comes, the thread is replaced, and counted until it ends."""

    async def call(function: Callable[[], object]) -> None:
        async with asyncio.timeout(0.005):
            await pool().call(function)

    for place in count(1):
        threads, release, behind = own_pool(1), threading.Event(), Behind()

        def stay(behind: Behind = behind, release: threading.Event = release) -> None:
            behind.start()
            release.wait(60)

        interrupter = Interrupter(place, (Interrupted, KeyboardInterrupt)[place % 2])
        try:
            if blocking:
                with interrupter:
                    threads.call_blocking(0.005, stay)
            else:
                asyncio.run(under(interrupter, call(stay)))
        except BaseException as error:
            if not isinstance(error, WorkerTimeout | TimeoutError) and not interrupter.where:
                raise
        if threads.abandoned:  # otherwise `stay` was never started
            assert behind.begun.wait(60), interrupter.where
            behind.join(60)
            assert behind.done, interrupter.where
        release.set()
        check_pool(threads, 1, interrupter.where)
        end_threads(threads)
        if not interrupter.where:
            gc.collect()  # while warnings about coroutines that were never awaited are ignored
            break


class Behind(threading.Thread):
    """Calls a function in the pool."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.begun, self.done = threading.Event(), False

    def run(self) -> None:
        self.begun.set()
        self.done = pool().call_blocking(30, len, "ab") == 2


# ---------------------------------------------------------------- jobs that workers submit
@pytest.mark.parametrize("depth", [1, 3])
def test_a_job_of_a_worker_waits_for_no_worker(own_pool: Callable[[int], Workers], depth: int) -> None:
    """As many nodes as there are threads, each of which runs a workflow of its own, and so on: none waits for a thread."""
    made = own_pool(2)
    together = threading.Barrier(2, timeout=60)

    @node
    def leaf(x: int) -> int:
        return x + 1

    @node(timeout=600)
    def timed(x: int) -> int:
        return x + 1

    def outer(inner: Node[int, int]) -> Node[int, int]:
        @node
        def runs(x: int) -> int:
            together.wait()
            found = asyncio.run(fan_out(inner, [x]))[0] + Graph(timed).run_sync(x)
            return found + asyncio.run(asyncio.to_thread(asyncio.run, Graph(leaf).run(x)))

        return runs

    made_of: Node[int, int] = leaf
    for _ in range(depth):
        made_of = outer(made_of)
    found = asyncio.run(asyncio.wait_for(fan_out(made_of, [1, 1], concurrency=2), 60))
    assert found == [2 + 4 * depth] * 2
    assert pool() is made


def test_threads_above_the_limit_end_with_their_job(own_pool: Callable[[int], Workers]) -> None:
    """A later burst uses no more threads than the limit: the additional ones are gone."""
    own_pool(1)

    def names(prefix: str = "pocket_plug-") -> set[str]:
        return {thread.name for thread in threading.enumerate() if thread.name.startswith(prefix)}

    def inner() -> threading.Thread:
        return threading.current_thread()

    async def main() -> None:
        before = names()
        beyond = await pool().call(lambda: pool().call_blocking(60, inner))
        beyond.join(60)
        assert not beyond.is_alive()
        assert await pool().call(threading.current_thread) is await pool().call(threading.current_thread)
        assert len(names() - before) <= 1

    asyncio.run(main())


@pytest.mark.parametrize(("said", "most"), [("", 32), (" 3 ", 3), ("100", 100)])
def test_the_number_of_threads_is_a_setting(monkeypatch: pytest.MonkeyPatch, said: str, most: int) -> None:
    """`POCKET_PLUG_THREADS` is the maximum number."""
    monkeypatch.setenv("POCKET_PLUG_THREADS", said)
    monkeypatch.setattr(workers, "_pool", None)
    gate, inside = threading.Event(), threading.Semaphore(0)

    def stay() -> None:
        inside.release()
        gate.wait()

    async def main() -> None:
        staying = [asyncio.ensure_future(pool().call(stay)) for _ in range(most + 1)]
        for _ in range(most):
            while not inside.acquire(blocking=False):
                await asyncio.sleep(0)
        assert not inside.acquire(blocking=False)
        gate.set()
        await asyncio.gather(*staying)

    asyncio.run(main())


@pytest.mark.parametrize("said", ["0", "-1", "many", "1.5", "²"])
def test_an_invalid_number_of_threads_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """The error names the variable, its value, and the allowed values."""
    monkeypatch.setenv("POCKET_PLUG_THREADS", said)
    monkeypatch.setattr(workers, "_pool", None)
    with pytest.raises(ConfigError, match=rf"POCKET_PLUG_THREADS is '{said}'; give a whole number from 1 up"):
        pool()


def test_a_def_node_does_not_block_the_loop() -> None:
    """While a `def exec` blocks, other tasks run: here they let it end."""
    go = threading.Event()

    @node
    def blocks(n: int) -> int:
        assert go.wait(60)
        return n

    async def main() -> None:
        async def let_go() -> None:
            go.set()

        results = await asyncio.gather(Graph(blocks, store=Store()).run(1), let_go())
        assert results[0] == 1

    asyncio.run(main())


def test_run_sync_calls_all_def_phases_in_its_own_thread() -> None:
    """Also if it needs an event loop, and in nested graphs. With `run` they are called in worker threads."""

    @node
    def where(x: int) -> threading.Thread:
        return threading.current_thread()

    @node
    async def wait(x: int) -> int:
        return x

    graph = Graph(wait >> Graph(where, name="inner"))
    assert graph.run_sync(1) is threading.current_thread()
    assert asyncio.run(graph.run(1)) is not threading.current_thread()
