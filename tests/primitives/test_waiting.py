"""Waiting across threads, tasks and event loops: every waiter is woken, and none waits for itself."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import pytest

from pocket_plug.errors import StoreError, SyncError
from pocket_plug.primitives import waiting
from pocket_plug.primitives.waiting import (
    LoopThread,
    Waiter,
    blocked_loop,
    drive,
    drive_inline,
    may_block,
    run_on,
    wake,
)
from pocket_plug.store.memory import Memory
from pocket_plug.store.sync import SyncStore
from pocket_plug.testing.interrupts import Interrupted, Interrupter


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


# ------------------------------------------------------------ wake-ups
def test_a_task_waits_for_a_thread() -> None:
    """The await returns the value that another thread sets."""

    async def main() -> None:
        waiter: Waiter[int] = Waiter()
        thread = in_thread(lambda: wake([waiter.give(7)]))
        assert await waiter == 7
        thread.join(10)

    asyncio.run(main())


def test_a_thread_waits_for_a_task() -> None:
    """A driven coroutine blocks its thread until a task of some loop wakes it."""
    made: list[Waiter[int]] = []
    ready, given = threading.Event(), []

    async def waiting() -> int:
        made.append(Waiter())
        ready.set()
        return await made[0]

    async def main() -> None:
        wake([made[0].give(7)])

    thread = in_thread(lambda: given.append(drive(waiting())))
    assert ready.wait(10)
    asyncio.run(main())
    thread.join(10)
    assert given == [7]


def test_one_loop_wakes_another_loops_task() -> None:
    """And its own task, in the same call."""
    theirs: list[Waiter[str]] = []
    ready, got = threading.Event(), []

    async def elsewhere() -> None:
        theirs.append(Waiter())
        ready.set()
        got.append(await theirs[0])

    async def main() -> None:
        mine: Waiter[str] = Waiter()
        wake([mine.give("mine"), theirs[0].give("theirs")])
        assert await mine == "mine"

    thread = in_thread(lambda: asyncio.run(elsewhere()))
    assert ready.wait(10)
    asyncio.run(main())
    thread.join(10)
    assert got == ["theirs"]


def test_a_wake_up_before_the_await_is_not_lost() -> None:
    """If it is woken before it is awaited, by a task or a thread, it does not wait at all."""

    async def first() -> int:
        waiter: Waiter[int] = Waiter()
        wake([waiter.give(7)])
        assert await waiter == 7
        return await waiter  # and again

    assert asyncio.run(first()) == 7
    assert drive(first()) == 7
    assert drive_inline(first()) == 7


def test_a_failure_is_raised_where_it_is_awaited() -> None:
    """The same exception; after a failed try, a later value counts."""

    async def main() -> None:
        error = ValueError("no")
        waiter: Waiter[int] = Waiter()
        wake([waiter.fail(error)])
        with pytest.raises(ValueError, match="no") as caught:
            await waiter
        assert caught.value is error
        again: Waiter[int] = Waiter()
        wake([again.fail(error).give(7)])
        assert await again == 7

    asyncio.run(main())
    drive(main())


def test_a_closed_loop_is_skipped() -> None:
    """Nobody waits on it any more; waiters elsewhere are woken all the same."""
    dead: list[Waiter[int]] = []

    async def dying() -> None:
        dead.append(Waiter())

    async def main() -> None:
        waiter: Waiter[int] = Waiter()
        wake([dead[0].give(1), waiter.give(2)])
        assert await waiter == 2

    asyncio.run(dying())
    assert dead[0].is_orphaned
    asyncio.run(main())


def test_a_wake_up_that_a_signal_handler_interrupts_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a signal handler raises at the entry of the wake-up function, asyncio only reports it; the waiter
    is woken all the same.
    """
    stopped: list[object] = []

    def stopped_first(waiters: list[Waiter[Any]]) -> None:
        if not stopped:
            stopped.append(waiters)
            raise Interrupted
        woken(waiters)

    woken = waiting._wake_here
    monkeypatch.setattr(waiting, "_wake_here", stopped_first)

    async def main() -> None:
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        waiter: Waiter[int] = Waiter()
        thread = in_thread(lambda: wake([waiter.give(7)]))
        async with asyncio.timeout(30):
            assert await waiter == 7
        thread.join(10)
        assert len(reported) == len(stopped) == 1

    asyncio.run(main())


# ------------------------------------------------------------ cancellation
def test_a_cancelled_await_may_be_followed_by_another() -> None:
    """The second await gets the outcome, not the first one's cancellation."""

    async def main() -> None:
        waiter: Waiter[int] = Waiter()
        outcomes: list[object] = []

        async def patient() -> None:
            try:
                await waiter
            except asyncio.CancelledError:
                outcomes.append("cancelled")
            outcomes.append(await waiter)

        task = asyncio.ensure_future(patient())
        await settle()
        task.cancel()
        await settle()
        assert outcomes == ["cancelled"]
        wake([waiter.give(7)])
        await task
        assert outcomes == ["cancelled", 7]

    asyncio.run(main())


@pytest.mark.parametrize("before", [False, True], ids=["shielded at once", "after a cancelled await"])
@pytest.mark.parametrize("fails", [False, True])
def test_shielded_waits_despite_cancellations(before: bool, fails: bool) -> None:
    """However often it is cancelled, it keeps waiting; once the outcome is known, the cancellation is raised."""

    async def main() -> None:
        waiter: Waiter[int] = Waiter()

        async def shielded() -> None:
            if before:
                try:
                    await waiter
                except asyncio.CancelledError:
                    await waiter.shielded()
                    raise
            else:
                await waiter.shielded()

        task = asyncio.ensure_future(shielded())
        for _ in range(3):
            await settle()
            task.cancel()
        await settle()
        assert not task.done()
        wake([waiter.fail(ValueError()) if fails else waiter.give(1)])
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())


def test_shielded_gives_the_outcome() -> None:
    """Without a cancellation, it is an await like any other."""

    async def main() -> None:
        waiter: Waiter[int] = Waiter()
        asyncio.get_running_loop().call_soon(wake, [waiter.give(7)])
        assert await waiter.shielded() == 7
        failed: Waiter[int] = Waiter()
        asyncio.get_running_loop().call_soon(wake, [failed.fail(KeyError("k"))])
        with pytest.raises(KeyError):
            await failed.shielded()

    asyncio.run(main())


def test_a_timeout_may_be_longer_than_the_system_can_count() -> None:
    """As one of 300 years, which stands for none."""
    waiter: Waiter[int] = Waiter()
    here, is_over = threading.get_ident(), False

    def wake_the_blocked() -> None:
        while not is_over and sys._current_frames()[here].f_code is not Waiter.block.__code__:
            pass
        wake([waiter.give(7)])

    thread = in_thread(wake_the_blocked)
    try:
        assert waiter.block(1e10)
    finally:
        is_over = True
        thread.join()
    assert waiter.outcome() == 7


def test_an_interrupt_of_a_blocked_thread_is_raised_in_the_coroutine() -> None:
    """So it can withdraw its request, or keep waiting if it must; then the exception leaves `drive`."""
    seen: list[str] = []

    class Interrupted(Waiter[int]):
        """Blocking on it is interrupted as by Ctrl-C, the first time."""

        __slots__ = ()

        def block(self, timeout: float = -1) -> bool:
            if not seen:
                raise KeyboardInterrupt
            return super().block(timeout)

    async def waiting() -> None:
        waiter = Interrupted()
        try:
            await waiter
        except KeyboardInterrupt:
            seen.append("withdrawn")
            in_thread(lambda: wake([waiter.give(7)]))
            seen.append(f"told {await waiter}")
            raise

    with pytest.raises(KeyboardInterrupt):
        drive(waiting())
    assert seen == ["withdrawn", "told 7"]


# ------------------------------------------------------------ driving a coroutine without a loop
def test_which_callers_may_block() -> None:
    """A plain thread and what it drives; a task may not, unless it drives: then its loop is blocked, and this is known."""
    seen: dict[str, tuple[bool, object]] = {}

    async def look(where: str) -> None:
        seen[where] = (may_block(), blocked_loop())

    async def main() -> None:
        await look("task")
        drive(look("driven in a task"))
        await look("task again")
        await asyncio.to_thread(drive, look("driven in a thread"))
        await asyncio.to_thread(asyncio.run, look("a loop of its own"))
        seen["loop"] = (True, asyncio.get_running_loop())

    async def with_a_loop_inside() -> None:
        asyncio.run(look("a loop inside a driven call"))

    asyncio.run(main())
    drive(look("driven"))
    drive(with_a_loop_inside())
    assert may_block()
    loop = seen.pop("loop")[1]
    assert seen == {
        "task": (False, None),
        "driven in a task": (True, loop),
        "task again": (False, None),
        "driven in a thread": (True, None),
        "a loop of its own": (False, None),
        "driven": (True, None),
        "a loop inside a driven call": (False, None),
    }


@pytest.mark.parametrize("run", [drive, drive_inline])
def test_a_driven_coroutine_returns_and_raises(run: Callable[[Any], Any]) -> None:
    """Its result and its exception are passed on, and the thread's state is restored."""

    async def give() -> int:
        return 7

    async def fail() -> None:
        raise LookupError("no")

    assert run(give()) == 7
    with pytest.raises(LookupError, match="no"):
        run(fail())
    assert blocked_loop() is None


@pytest.mark.parametrize(
    ("run", "way_out"), [(drive, "needs_loop = True"), (drive_inline, "set inline_read or inline_write to False")]
)
def test_what_needs_a_loop_says_so(run: Callable[[Any], Any], way_out: str) -> None:
    """An asyncio wait in a driven coroutine is an error that names it and the way out; the coroutine is closed."""
    closed: list[bool] = []

    async def sleepy() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            closed.append(True)

    with pytest.raises(SyncError, match=f"sleepy.*{way_out}"):
        run(sleepy())
    assert closed == [True]


# ------------------------------------------------------------ on another loop
def test_a_loop_thread_serves_until_it_is_closed(new_threads: Callable[[], list[threading.Thread]]) -> None:
    """It runs as soon as it is created, and its thread has ended after close."""
    home = LoopThread("home of a test")
    home.start()

    async def where() -> object:
        return asyncio.get_running_loop()

    assert home.loop.is_running()
    assert run_on(home.loop, where()) is home.loop
    assert len(new_threads()) == 1
    home.close()
    assert new_threads() == []
    assert home.loop.is_closed()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python may lose the thread
@pytest.mark.filterwarnings("ignore:coroutine .*_live' was never awaited")
def test_an_interrupted_loop_thread_ends(new_threads: Callable[[], list[threading.Thread]]) -> None:
    """Wherever the exception of a signal handler comes: a failed start leaves no loop, and a close can be repeated."""
    for place in count(1):
        interrupter = Interrupter(place, (Interrupted, KeyboardInterrupt)[place % 2])
        home = LoopThread("home that is interrupted")
        closing = False
        try:
            with interrupter:
                home.start()
                closing = True
                home.close()
        except BaseException:
            if not interrupter.where:
                raise
        if closing:
            home.close()
        assert all_end(new_threads()), interrupter.where
        if not interrupter.where:
            gc.collect()  # while warnings about coroutines that were never awaited are ignored
            return


class AtHome(Memory):
    """A backend that belongs to an event loop."""

    needs_loop = True
    inline_read = inline_write = False


@pytest.mark.parametrize("by", [None, signal.SIGUSR1], ids=["outside asyncio", "within it, too"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_an_interrupted_store_on_a_loop_of_its_own_works_on(
    new_threads: Callable[[], list[threading.Thread]], by: int | None
) -> None:
    """Wherever the exception comes, while opening, using or closing: it can be repeated, and the loop has ended then."""

    def use(store: SyncStore, told: list[object]) -> None:
        try:
            store.__enter__()
            store.set("a", 1)
            store.close()
        except Exception as error:
            told.append(error)
            raise

    for place in count(1, 2):
        told: list[object] = []
        interrupter = Interrupter(place, (Interrupted, KeyboardInterrupt)[place // 2 % 2], by)
        store = SyncStore(AtHome())
        try:
            with interrupter:
                use(store, [])
        except BaseException:
            if not interrupter.where:
                raise
        again = in_thread(partial(use, store, told))
        again.join(30)
        assert not again.is_alive(), interrupter.where
        assert not told, interrupter.where
        assert all_end(new_threads()), interrupter.where
        if not interrupter.where:
            gc.collect()  # while warnings about coroutines that were never awaited are ignored
            return


def all_end(threads: list[threading.Thread]) -> bool:
    """Have all threads ended? A thread that ends is waited for; one that Python lost at its start isn't alive."""
    threads = [thread for thread in threads if thread.is_alive()]
    for thread in threads:
        thread.join(30)
    return not any(thread.is_alive() for thread in threads)


def test_the_operation_has_the_callers_context_variables() -> None:
    """The operation has the sync caller's context, for example its span."""
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="unset")

    async def look() -> str:
        return name.get()

    home = LoopThread("home of a test")
    home.start()
    name.set("caller's")
    assert run_on(home.loop, look()) == drive(look()) == "caller's"
    home.close()


def test_a_call_on_its_own_loop_is_refused() -> None:
    """It would wait for itself: an error with the way out, at once."""

    async def never() -> None:
        raise AssertionError

    async def main() -> None:
        with pytest.raises(SyncError, match="would wait for itself; use `await` here"):
            run_on(asyncio.get_running_loop(), never())

    asyncio.run(main())


def test_a_loop_that_does_not_run_is_refused() -> None:
    """Stopped or closed: it would never answer."""

    async def never() -> None:
        raise AssertionError

    loop = asyncio.new_event_loop()
    for _ in ("stopped", "closed"):
        with pytest.raises(SyncError, match=r"never.* belongs to an event loop that doesn't run"):
            run_on(loop, never())
        loop.close()


def test_a_loop_that_stops_before_it_has_begun_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop ends, for example because of a signal handler, and never reads another thread's request."""
    monkeypatch.setattr(waiting, "LOOK", 0.01)
    loop = asyncio.new_event_loop()
    busy, asked = threading.Event(), threading.Event()
    outcome: list[object] = []
    begun: list[bool] = []

    def keep_busy() -> None:
        busy.set()
        assert asked.wait(10)
        loop.stop()

    async def never() -> None:
        begun.append(True)

    def ask() -> None:
        try:
            run_on(loop, never())
        except StoreError as error:
            outcome.append(str(error))

    call_soon_threadsafe = loop.call_soon_threadsafe

    def told(*given: Any, **more: Any) -> Any:
        handle = call_soon_threadsafe(*given, **more)
        asked.set()
        return handle

    loop.call_soon(keep_busy)
    running = in_thread(loop.run_forever)
    assert busy.wait(10)
    monkeypatch.setattr(loop, "call_soon_threadsafe", told)
    asking = in_thread(ask)
    running.join(10)
    asking.join(10)
    assert not asking.is_alive()
    assert "never was interrupted: the event loop that it ran on was stopped" in str(outcome)
    loop.run_until_complete(asyncio.sleep(0))  # once more: the request isn't executed after all
    loop.close()
    assert begun == []


def test_callers_get_an_error_when_the_loop_ends() -> None:
    """Closing cancels running calls: their callers get a clear error, and do not hang."""
    home = LoopThread("home of a test")
    home.start()
    started = threading.Event()
    outcome: list[object] = []

    async def endless() -> None:
        started.set()
        await asyncio.Event().wait()

    def call() -> None:
        try:
            run_on(home.loop, endless())
        except StoreError as error:
            outcome.append(str(error))

    thread = in_thread(call)
    assert started.wait(10)
    home.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(outcome) == 1
    assert "endless was interrupted: the event loop that it ran on was stopped" in str(outcome[0])
