"""Threads for `def` phases: our own, daemons, and replaced when a time-out abandons one.

The loop's default pool would fill up with abandoned threads, and `asyncio.run` would wait for them at its end.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from .errors import WrappedStopIteration
from .forking import after_fork
from .waiting import Waiter, wake

MAX_THREADS = 32


class _Job:
    __slots__ = ("abandoned", "arguments", "context", "function", "running", "waiter")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments
        self.context = contextvars.copy_context()
        self.waiter: Waiter[Any] = Waiter()
        self.running = self.abandoned = False


class Late(Exception):
    """The function is not done in time."""


class Workers:
    """A pool of daemon threads, started as they are needed and kept.

    `abandoned` counts the threads that still run what nobody waits for any more.
    """

    def __init__(self, most: int = MAX_THREADS) -> None:
        self._most = most
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._busy = self.abandoned = 0

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run it in a thread, with the caller's context variables, and give what it gives.

        Cancelled while it waits, the function is not begun; while it runs, its thread is abandoned: it goes on, its
        result is dropped, and another thread takes its place.
        """
        job = self._submit(function, arguments)
        try:
            return await job.waiter
        except BaseException:
            self._abandon(job)
            raise

    def call_blocking(self, timeout: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """The same for a caller without a loop: it waits `timeout` seconds at most, then raises Late."""
        job = self._submit(function, arguments)
        try:
            if job.waiter.block(timeout):
                return job.waiter.outcome()
        except BaseException:
            self._abandon(job)
            raise
        self._abandon(job)
        raise Late

    def _submit(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> _Job:
        job = _Job(function, arguments)
        with self._lock:
            self._busy += 1
            self._start_if_needed()
        self._jobs.put(job)
        return job

    def _start_if_needed(self) -> None:
        if self._busy > self._threads < self._most:
            self._threads += 1
            threading.Thread(target=self._work, name=f"pocket_plug-{self._threads}", daemon=True).start()

    def _abandon(self, job: _Job) -> None:
        with self._lock:
            job.abandoned = True
            if job.running:
                self._busy -= 1
                self._threads -= 1
                self.abandoned += 1
                self._start_if_needed()  # for those that queue behind it

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            with self._lock:
                if job.abandoned:
                    self._busy -= 1
                    continue
                job.running = True
            try:
                job.waiter.give(job.context.run(job.function, *job.arguments))
            except StopIteration as error:
                job.waiter.fail(wrapped(error))
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
                job.waiter.fail(error)
            with self._lock:
                if job.abandoned:
                    self.abandoned -= 1
                    return
                job.running = False
                self._busy -= 1
            wake([job.waiter])
            del job  # don't keep its result alive while waiting for the next one


def wrapped(error: StopIteration) -> WrappedStopIteration:
    """A future can't carry StopIteration: on Python 3.11 the one who waits for it would hang."""
    found = WrappedStopIteration("a `def` phase raised StopIteration; a bare next() on an empty iterator does that, "
                                 "next(iterator, default) does not")  # fmt: skip
    found.__cause__ = error
    return found


_pool = Workers()


def pool() -> Workers:
    """The process's pool."""
    return _pool


def _forget() -> None:
    global _pool
    _pool = Workers()  # a forked child has none of its parent's threads


after_fork(_forget)
