"""Waiting that suits any caller: a task of any event loop, or a plain thread.

Parts of a store use thread primitives inside and the caller's loop outside, so any mix of threads, tasks and loops may
share one. (An asyncio lock or queue kept on a store would belong to one loop only.)
"""

# The functions that wake a Waiter are friends of it.
# pyright: reportPrivateUsage=false
from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextlib import suppress
from threading import TIMEOUT_MAX
from typing import Any, Generic, Protocol, TypeVar

from pocket_plug.errors import StoreError, SyncError

from .forking import after_fork
from .locks import Flag

T = TypeVar("T")


class Runner(Protocol):
    """How a sync caller runs a coroutine: `drive_inline`, `drive`, or on its home loop."""

    def __call__(self, coroutine: Coroutine[object, object, T], /) -> T: ...


class _Driving(threading.local):
    """The event loop that this thread's `drive` blocks, if there is one, and the waiter that it waits for now."""

    over: asyncio.AbstractEventLoop | None = None
    blocked: Waiter[Any] | None = None


_driving = _Driving()


def _answer_in_child() -> None:
    """In a forked child: let a wait of this thread fail, if a signal's handler forked during it: the other thread is missing."""
    blocked, _driving.blocked = _driving.blocked, None
    error = StoreError(
        "this process was forked while this call waited for another thread, which only the parent has; only the parent "
        "learns its outcome"
    )
    if blocked is not None and not blocked.is_woken:
        wake([blocked.fail(error)])


after_fork(_answer_in_child)


def may_block() -> bool:
    """May the caller be blocked? Yes in a plain thread and under `drive`, not in a task: that would stop its loop."""
    loop = asyncio._get_running_loop()
    return loop is None or loop is _driving.over


def has_loop() -> bool:
    """Does an event loop run in this thread, or is one blocked by an outer caller?"""
    return asyncio._get_running_loop() is not None


def blocked_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that is blocked while the caller is driven: waiting for one of its tasks would never end."""
    return _driving.over


async def pause(seconds: float) -> None:
    """Wait a while: a task lets its event loop continue, a thread that is driven sleeps."""
    if may_block():
        time.sleep(seconds)  # noqa: ASYNC251 - no loop runs here
    else:
        await asyncio.sleep(seconds)


async def to_its_end(
    coroutine: Coroutine[Any, Any, T], grace: float | None
) -> tuple[asyncio.Task[T], asyncio.CancelledError | None]:
    """Run a coroutine to its end despite cancellations; returns its task, which is done, and the last cancellation.

    With a `grace`, the coroutine has so many seconds after the first cancellation, and is then cancelled itself.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(coroutine)
    cancelled: asyncio.CancelledError | None = None
    deadline: asyncio.TimerHandle | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            if cancelled is None and grace is not None:
                deadline = loop.call_later(grace, task.cancel, f"still running {grace:g} seconds after a cancellation")
            cancelled = error
    if deadline is not None:
        deadline.cancel()
    return task, cancelled


class Waiter(Generic[T]):
    """A result that another thread or task will set, awaited by the caller that made the waiter.

    Made where a loop runs, it suspends the task; made under `drive`, or if it always `blocks`, it blocks the thread. After a
    cancelled await it may be awaited again.
    """

    __slots__ = ("__weakref__", "_error", "_future", "_lock", "_result", "is_woken", "loop")
    _result: T

    def __init__(self, blocks: bool = False) -> None:
        self._error: BaseException | None = None
        self.is_woken = False
        """Is the waiting over?"""
        loop = None if blocks else asyncio._get_running_loop()
        if loop is None or loop is _driving.over:  # as `may_block`
            self.loop: asyncio.AbstractEventLoop | None = None
            """Where it is awaited; None for a thread."""
            self._lock = threading.Lock()
            self._lock.acquire()
        else:
            self.loop = loop
            self._future: asyncio.Future[None] = loop.create_future()

    def give(self, result: T) -> Waiter[T]:
        """Set the result; `wake` then passes it to the waiting side."""
        self._result, self._error = result, None
        return self

    def fail(self, error: BaseException) -> Waiter[T]:
        """Set an error in place of a result."""
        self._error = error
        return self

    def __await__(self) -> Generator[Any, None, T]:
        if self.is_woken:
            pass
        elif self.loop is None:
            yield self
        else:
            if self._future.cancelled():  # with the task that awaited it before
                self._future = self.loop.create_future()
            yield from self._future.__await__()
        return self.outcome()

    def outcome(self) -> T:
        """The result, once the waiting is over; raises the error if one was set."""
        if self._error is not None:
            raise self._error
        return self._result

    async def shielded(self) -> T:
        """Await the outcome through any number of cancellations; the last one is raised once it is known."""
        cancelled: asyncio.CancelledError | None = None
        while not self.is_woken:
            try:
                await self
            except asyncio.CancelledError as error:
                cancelled = error
            except Exception:
                if not self.is_woken:
                    raise
        if cancelled is not None:
            raise cancelled
        return self.outcome()

    def block(self, timeout: float = -1) -> bool:
        """Block the thread until somebody wakes it, at most `timeout` seconds; returns whether it was woken."""
        return self.is_woken or self._lock.acquire(timeout=min(timeout, TIMEOUT_MAX))

    @property
    def is_orphaned(self) -> bool:
        """Has the loop stopped on which it is awaited? Then the waiting side may never continue."""
        return self.loop is not None and not self.loop.is_running()


def _wake_here(waiters: list[Waiter[Any]]) -> None:
    try:
        _wake_each(waiters)
    except BaseException:  # interrupted; asyncio only reports what a callback raises
        _wake_each(waiters)
        raise


def _wake_each(waiters: list[Waiter[Any]]) -> None:
    for waiter in waiters:
        waiter.is_woken = True
        if not waiter._future.done():
            waiter._future.set_result(None)


def wake(waiters: Iterable[Waiter[Any]]) -> None:
    """Let the waiting sides continue, from any thread; one wake-up call per event loop, however many wait there.

    If it is interrupted, it may be called again with the same waiters.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[Waiter[Any]]] = {}
    for waiter in waiters:
        if waiter.loop is None:
            if not waiter.is_woken:
                waiter.is_woken = True
                waiter._lock.release()
        else:
            by_loop.setdefault(waiter.loop, []).append(waiter)
    here = asyncio._get_running_loop()
    for loop, group in by_loop.items():
        if loop is here:
            _wake_here(group)
        else:
            with suppress(RuntimeError):  # that loop is closed: nobody is waiting any more
                _call_on(loop, _wake_here, group)


def wake_once(waiter: Waiter[Any]) -> None:
    """`wake` one waiter by one call of its loop, which costs half as much as two.

    An interrupt may come at the entry of what is called: unless it `is_woken` a while later, call this again.
    """
    if waiter.loop is None:
        wake((waiter,))
        return
    try:
        waiter.loop.call_soon_threadsafe(_wake_here, [waiter])
    except RuntimeError:  # that loop is closed: nobody is waiting any more
        return


def _call_on(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: Any) -> None:
    """Let a loop call a function, from any thread, twice: the function must allow that. Raises RuntimeError if it is closed.

    In the main thread a signal's handler may raise at the function's entry, before any `try`. asyncio then only reports
    that, and without the second call the waiting side would wait for ever.
    """
    loop.call_soon_threadsafe(function, *arguments)
    loop.call_soon_threadsafe(function, *arguments)


def _title(coroutine: Coroutine[object, object, object]) -> str:
    return getattr(coroutine, "__qualname__", repr(coroutine))


def drive(coroutine: Coroutine[object, object, T]) -> T:
    """Run a coroutine to its end in this thread, without a loop; where it waits on a Waiter the thread blocks.

    What interrupts it (Ctrl-C) is raised in the coroutine, so that it can withdraw what it waits for.
    """
    step: Callable[[Any], Any] = coroutine.send
    argument: Any = None
    outer, _driving.over = _driving.over, asyncio._get_running_loop()
    try:
        while True:
            try:
                while True:
                    waiting = step(argument)
                    step, argument = coroutine.send, None
                    if not isinstance(waiting, Waiter):
                        raise SyncError(
                            f"{_title(coroutine)} needs an event loop ({type(waiting).__name__}); "
                            "call it with `await`, or set needs_loop = True in its layer"
                        )
                    _driving.blocked = waiting
                    waiting.block()
                    _driving.blocked = None
            except StopIteration as done:
                result: T = done.value
                return result
            except SyncError:
                raise
            except BaseException as error:
                if getattr(coroutine, "cr_frame", None) is None:  # it has ended with this error
                    raise
                step, argument = coroutine.throw, error
    finally:
        argument = None
        _driving.over = outer
        coroutine.close()  # in case the interrupt is interrupted itself


def drive_inline(coroutine: Coroutine[object, object, T]) -> T:
    """Run a coroutine that never suspends. About a fifth of a microsecond."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise SyncError(
        f"{_title(coroutine)} suspended, but its backend or layer declares it as inline; "
        "set inline_read or inline_write to False there"
    )


class LoopThread:
    """An event loop in a daemon thread: the home of loop-bound parts whose user has no loop."""

    loop: asyncio.AbstractEventLoop

    def __init__(self, name: str) -> None:
        self.is_closed = False
        """Has its end begun? It runs only once."""
        self._runs = Flag()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name=name, daemon=True)

    def start(self) -> None:
        """Start it, unless it runs, and wait until its loop runs. If this is interrupted, it is closed."""
        if hasattr(self, "loop"):
            return
        try:
            self._thread.start()
            self._runs.wait()
        except BaseException:
            self.stop()
            raise

    async def _live(self) -> None:
        self._closed = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self._runs.set()
        if not self.is_closed:
            await self._closed.wait()

    def stop(self) -> None:
        """Let its loop end soon. Can be called again."""
        self.is_closed = True
        if hasattr(self, "loop"):
            with suppress(RuntimeError):  # it is closed
                self.loop.call_soon_threadsafe(self._closed.set)

    def close(self) -> None:
        """Cancel its tasks, stop the loop and wait for its thread. If this is interrupted, it can be called again."""
        self.stop()
        self._thread.join()


def run_on(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[object, object, T]) -> T:
    """Run a coroutine on the loop that it belongs to, and block this thread until it is done.

    Raises SyncError in that loop's own thread and if the loop doesn't run, StoreError if it is stopped meanwhile.
    """
    running = Running(loop, coroutine)
    try:
        _driving.blocked = running.waiter
        try:
            running.start()
            running.wait()
        except BaseException:  # interrupted
            running.cancel()
            running.wait()  # so that nothing takes effect after this call, unless it is interrupted again
            raise
        return running.waiter.outcome()
    except asyncio.CancelledError:
        raise StoreError(
            f"{_title(coroutine)} was interrupted: the event loop that it ran on was stopped; "
            "if it was a write, it may have been stored, or not"
        ) from None
    finally:
        _driving.blocked = None


LOOK = 1.0
"""Seconds after which a thread that waits for a task of a loop looks whether that loop still runs."""


class Running(Generic[T]):
    """A coroutine that runs on a loop, for a thread that waits for its end.

    Raises SyncError in that loop's own thread, and if the loop doesn't run.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[object, object, T]) -> None:
        if asyncio._get_running_loop() is loop:
            coroutine.close()
            raise SyncError(
                "this sync call blocks the event loop that its store needs, so it would wait for itself; "
                "use `await` here, or call it from another thread. A function that `update` calls can't use the store: "
                "read what it needs before, or do all of it in a transaction"
            )
        if not loop.is_running():
            coroutine.close()
            raise SyncError(
                f"{_title(coroutine)} belongs to an event loop that doesn't run any more, or not yet; "
                "make sync calls while the loop that opened the store runs, or open it with SyncStore"
            )
        self._loop, self._coroutine = loop, coroutine
        self._task: asyncio.Task[T] | None = None
        self._is_cancelled = False
        self.waiter: Waiter[T] = Waiter(blocks=True)  # a Future of threads, interrupted, might keep its lock for good

    def start(self) -> None:
        self._call(self._begin)

    def cancel(self) -> None:
        """Let it end soon."""
        self._call(self._cancel)

    def wait(self) -> None:
        """Block until it has ended, or can't any more since the loop has stopped."""
        was_running = True
        while not self.waiter.block(LOOK):
            is_running = self._loop.is_running()
            if not is_running and not was_running:  # not just between two runs
                self.cancel()  # in case it runs once more
                if self._task is None:
                    self._coroutine.close()
                wake([self.waiter.fail(asyncio.CancelledError())])
            was_running = is_running

    def _call(self, step: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed, as `wait` finds out
            _call_on(self._loop, step)

    # ------------------------------------------------------------ on the loop, where each may be called twice
    def _begin(self) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._coroutine)
        _going.add(self._task)
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        self._begin()
        if self._task is not None and not self._is_cancelled:
            self._is_cancelled = True
            self._task.cancel()

    def _end(self, task: asyncio.Task[T]) -> None:
        _going.discard(task)
        if task.cancelled():
            self.waiter.fail(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.waiter.fail(error)
        else:
            self.waiter.give(task.result())
        wake([self.waiter])


_going: set[asyncio.Task[object]] = set()
"""The tasks that run for threads, kept here since an event loop holds its tasks weakly."""
