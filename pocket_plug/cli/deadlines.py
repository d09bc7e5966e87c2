"""Work that is given up at its deadline, whatever it does: in a daemon thread, which keeps no process from ending."""

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
"""Seconds that a thread is waited for beyond what its work was given: its own words are better than that it says nothing."""


class Begun(Generic[T]):
    """A function that runs in a thread of its own from now on, for so many seconds at most."""

    def __init__(self, function: Callable[[], T], seconds: float) -> None:
        self._until = time.monotonic() + seconds + SPARE
        self._future: Future[T] = _in_thread(function)

    def result(self) -> T:
        """What it gives or raises; TimeoutError once its time is over. Its thread may go on then, and nobody waits for it."""
        return self._future.result(max(0.0, self._until - time.monotonic()))


def run_in_time(work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
    """Run a coroutine on a loop of its own. Raises TimeoutError at its deadline."""

    async def timed() -> T:
        async with asyncio.timeout(seconds):
            return await work()

    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(timed())


class _Loop(asyncio.SelectorEventLoop):
    """One whose blocking calls, such as looking up a host, are in daemon threads. asyncio's own are joined at the end."""

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        return asyncio.wrap_future(_in_thread(lambda: func(*args)), loop=self)


def _in_thread(function: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits for it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="pocket-plug doctor").start()
    return future
