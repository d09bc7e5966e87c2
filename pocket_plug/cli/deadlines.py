"""Runs work in a daemon thread until a deadline: the process can end even if the work hangs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any, Generic, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SPARE = 0.5
"""More seconds to wait for a thread than its work has: the work's own error says more than a TimeoutError here."""


class Begun(Generic[T]):
    """A function that is started in its own thread. Its result is awaited for `seconds` at most."""

    def __init__(self, function: Callable[[], T], seconds: float) -> None:
        self._until = time.monotonic() + seconds + SPARE
        self._future: Future[T] = _in_thread(function)

    def result(self) -> T:
        """What the function returns or raises; TimeoutError at the deadline. Its thread may continue; nobody waits for it."""
        return self._future.result(max(0.0, self._until - time.monotonic()))


def run_in_time(work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
    """Run a coroutine on a new event loop. Raises TimeoutError after `seconds`."""

    async def timed() -> T:
        async with asyncio.timeout(seconds):
            return await work()

    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(timed())


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that makes blocking calls, such as a host look-up, in daemon threads. asyncio would join its own threads."""

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        return asyncio.wrap_future(_in_thread(lambda: func(*args)), loop=self)


def _in_thread(function: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="pocket-plug doctor").start()
    return future
