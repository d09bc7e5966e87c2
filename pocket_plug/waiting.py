"""Waiting that suits any caller: a task of any event loop, or a plain thread.

Parts of a store use thread primitives inside and the caller's loop outside, so any mix of threads, tasks and loops may
share one. (An asyncio lock or queue kept on a store would belong to one loop only.)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable
from typing import Any, Generic, TypeVar

from .errors import SyncError

T = TypeVar("T")
Runner = Callable[[Coroutine[Any, Any, Any]], Any]
"""How a sync caller runs a coroutine: `drive_inline`, `drive`, or on its home loop."""


class _Driving(threading.local):
    """Is this thread inside `drive`? Then waiters block it, even where an event loop runs below."""

    active = False


_driving = _Driving()


def may_block() -> bool:
    """May the caller be blocked? True in a plain thread and under `drive`, False in a task: that would stop its loop."""
    return _driving.active or asyncio._get_running_loop() is None


class Waiter(Generic[T]):
    """A result that some other thread or task will give, awaited once by whoever made the waiter.

    Made where a loop runs, it suspends the task; made under `drive`, it blocks the thread.
    """

    __slots__ = ("_error", "_future", "_lock", "_loop", "_result")
    _result: T

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._loop = None if may_block() else asyncio.get_running_loop()
        if self._loop is None:
            self._lock = threading.Lock()
            self._lock.acquire()
        else:
            self._future: asyncio.Future[None] = self._loop.create_future()

    def give(self, result: T) -> Waiter[T]:
        """Note the result; `wake` then lets the waiting side see it."""
        self._result = result
        return self

    def fail(self, error: BaseException) -> Waiter[T]:
        """Note that it failed."""
        self._error = error
        return self

    def __await__(self) -> Generator[Any, None, T]:
        if self._loop is None:
            yield self
        else:
            yield from self._future.__await__()
        return self.outcome()

    def outcome(self) -> T:
        """What was given, once the waiting is over."""
        if self._error is not None:
            raise self._error
        return self._result

    async def shielded(self) -> T:
        """Await the outcome through any number of cancellations; the last one is raised once it is known."""
        cancelled: asyncio.CancelledError | None = None
        while self._loop is not None and not self._future.done():
            try:
                await asyncio.shield(self._future)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        return await self

    def block(self, timeout: float = -1) -> bool:
        """Block the thread until somebody wakes it, at most `timeout` seconds; was it woken?"""
        return self._lock.acquire(timeout=timeout)


def _wake_here(waiters: list[Waiter[Any]]) -> None:
    for waiter in waiters:
        if not waiter._future.done():
            waiter._future.set_result(None)


def wake(waiters: Iterable[Waiter[Any]]) -> None:
    """Let the waiting sides go on, from any thread; one wake-up call per event loop, however many wait there."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Waiter[Any]]] = {}
    for waiter in waiters:
        if waiter._loop is None:
            waiter._lock.release()
        else:
            by_loop.setdefault(waiter._loop, []).append(waiter)
    here = asyncio._get_running_loop()
    for loop, group in by_loop.items():
        if loop is here:
            _wake_here(group)
        else:
            try:
                loop.call_soon_threadsafe(_wake_here, group)
            except RuntimeError:  # that loop is closed: nobody is waiting any more
                continue


def _title(coroutine: Coroutine[Any, Any, Any]) -> str:
    return getattr(coroutine, "__qualname__", repr(coroutine))


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in this thread, without a loop; where it waits on a Waiter the thread blocks."""
    outer, _driving.active = _driving.active, True
    try:
        while True:
            waiting = coroutine.send(None)
            if not isinstance(waiting, Waiter):
                coroutine.close()
                raise SyncError(f"{_title(coroutine)} awaits an event loop ({type(waiting).__name__}); "
                                "call it with `await`, or let its layer say needs_loop = True")
            waiting.block()
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    finally:
        _driving.active = outer


def drive_inline(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends. About a fifth of a microsecond."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    coroutine.close()
    raise SyncError(f"{_title(coroutine)} suspended although its part says that it is inline; "
                    "set inline_read or inline_write to False there")


class LoopThread:
    """An event loop in a daemon thread: the home of loop-bound parts whose user has no loop."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the loop and wait for its thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


def run_on(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop that it belongs to, and block this thread until it is done."""
    if asyncio._get_running_loop() is loop:
        coroutine.close()
        raise SyncError("a sync call on a store whose home is this very event loop would wait for itself; "
                        "use `await` here, or call it from another thread")
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()
