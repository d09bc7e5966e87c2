"""Worker threads for `def` phases: our own daemon threads, replaced when a timeout abandons one.

The event loop's default pool would fill up with abandoned threads, and `asyncio.run` would wait for them at its end. Also, a
function in a worker thread may itself run a workflow, and would then wait for a thread that may never be free. So a job from a
worker thread gets a thread at once, beyond the limit if necessary.
"""

from __future__ import annotations

import contextvars
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NoReturn

from pocket_plug.errors import ConfigError, WrappedStopIterationError
from pocket_plug.primitives.forking import after_fork, new_lock, new_rlock
from pocket_plug.primitives.values import Value
from pocket_plug.primitives.waiting import Waiter, wake_once

_logger = logging.getLogger("pocket_plug")

MAX_THREADS = 32
"""How many threads there are at most, unless `POCKET_PLUG_THREADS` has another number."""

SOON = 0.02
"""Seconds after which a thread without a new job checks that the task that waited for its last job was woken."""

_in_worker: contextvars.ContextVar[bool] = contextvars.ContextVar("pocket_plug.in_worker", default=False)
"""Does a worker thread wait for this code? Tasks, loops and asyncio's threads that the worker starts inherit the variable."""


class _Job:
    __slots__ = ("arguments", "caller_has_left", "context", "function", "is_done", "thread", "waiter")

    def __init__(self, function: Callable[..., Value], arguments: tuple[object, ...]) -> None:
        self.function, self.arguments = function, arguments
        self.context = contextvars.copy_context()
        self.waiter: Waiter[Value] = Waiter()
        self.thread: threading.Thread | None = None
        """The thread that executes the job now."""
        self.caller_has_left = self.is_done = False

    def do(self) -> None:
        """Call the function, and give its result or its error to the waiter."""
        try:
            self.waiter.give(self.context.run(self._call))
        except StopIteration as error:
            self.waiter.fail(wrapped(error))
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
            self.waiter.fail(error)

    def _call(self) -> Value:
        _in_worker.set(True)
        return self.function(*self.arguments)


class WorkerTimeout(Exception):
    """The function has not returned within the timeout."""


class Workers:
    """A pool of daemon threads. They are started when they are needed, and kept; those beyond `most` end after their first job.

    A signal handler may raise between any two steps of a caller. So there are no counters: jobs and threads are in sets, and
    each step can be repeated.
    """

    def __init__(self, most: int = MAX_THREADS) -> None:
        self._most = most
        self._queue: SimpleQueue[_Job] = SimpleQueue()
        self._lock = new_rlock()
        self._jobs: set[_Job] = set()  # those that a caller waits for
        self._threads: set[threading.Thread] = set()  # those that take jobs
        self._abandoned: set[_Job] = set()
        self.is_inherited = False
        """Is this pool from the process that this one was forked from?"""

    @property
    def abandoned(self) -> int:
        """How many threads still execute a job whose caller has stopped waiting."""
        return len(self._abandoned)

    async def call(self, function: Callable[..., Value], *arguments: object) -> Value:
        """Call a function in a thread, with the caller's context variables, and return its result.

        If this is cancelled before the function has begun, it is not called. If it has begun, its thread is abandoned: the
        function continues, its result is dropped, and another thread replaces its thread.
        """
        job = _Job(function, arguments)
        try:
            try:
                self._submit(job)
                return await job.waiter
            finally:
                self._leave(job)
        finally:
            self._leave(job)  # again, since a signal may have interrupted the first call

    def call_blocking(self, timeout: float, function: Callable[..., Value], *arguments: object) -> Value:
        """`call` for a caller without an event loop. Raises WorkerTimeout after `timeout` seconds."""
        job = _Job(function, arguments)
        try:
            try:
                self._submit(job)
                if job.waiter.block(timeout):
                    return job.waiter.outcome()
                raise WorkerTimeout
            finally:
                self._leave(job)
        finally:
            self._leave(job)

    def _submit(self, job: _Job) -> None:
        with self._lock:
            self._jobs.add(job)
            if len(self._jobs) > len(self._threads) >= self._most and _in_worker.get():
                self._start(job)
                return
            self._start_what_is_needed()
        self._queue.put(job)

    def _leave(self, job: _Job) -> None:
        """The caller doesn't wait for the job any more. Can be called again."""
        if job.is_done:
            return
        with self._lock:
            job.caller_has_left = True
            self._jobs.discard(job)
            if job.thread is not None:
                self._abandoned.add(job)
                self._threads.discard(job.thread)
            self._start_what_is_needed()  # for the jobs in the queue

    def _start_what_is_needed(self) -> None:
        while len(self._jobs) > len(self._threads) < self._most:
            self._start()

    def _start(self, *first: _Job) -> None:
        name = f"pocket_plug-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._work, args=first, name=name, daemon=True)
        try:
            self._threads.add(thread)
            thread.start()
        except BaseException:
            self._threads.discard(thread)  # if it was started nevertheless, it sees that it isn't in the set, and ends
            raise

    def _work(self, first: _Job | None = None) -> None:
        me = threading.current_thread()
        with self._lock:
            if me not in self._threads:
                return
        woken: list[weakref.ref[Waiter[Value]]] = []  # weak, so that a result is freed before the next job ends
        ends = False
        while not ends:
            job, first = first or self._next(woken), None
            with self._lock:
                if not job.caller_has_left:
                    job.thread = me
            if job.thread is me:
                job.do()
            if self.is_inherited:
                end_child()
            with self._lock:
                job.is_done, job.thread = True, None
                self._jobs.discard(job)
                self._abandoned.discard(job)
                if len(self._threads) > self._most:
                    self._threads.discard(me)
                ends = me not in self._threads
            _wake_again(woken)
            if not job.caller_has_left:
                woken.append(weakref.ref(job.waiter))
                wake_once(job.waiter)
            del job  # it would keep its result alive while this waits for the next job
        _wake_again(woken)

    def _next(self, woken: list[weakref.ref[Waiter[Value]]]) -> _Job:
        """The next job. If none comes soon, wake the waiters in `woken` again first."""
        if woken:
            try:
                return self._queue.get(timeout=SOON)
            except Empty:
                _wake_again(woken)
        return self._queue.get()


def _wake_again(woken: list[weakref.ref[Waiter[Value]]]) -> None:
    """Wake the waiters of finished jobs that still wait. Once is enough, except if a signal has interrupted the wake-up."""
    while woken:
        waiter = woken.pop()()
        if waiter is not None and not waiter.is_woken:
            wake_once(waiter)


def end_child() -> NoReturn:
    """End a process that a function in a worker has forked, once that function has returned in the child."""
    _logger.error(
        "a phase in a worker thread has forked this process, and returned in the child, where its result is not "
        "used; the child ends. Let the child end by os._exit() or os.exec…(), or use multiprocessing"
    )
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(1)


def wrapped(error: StopIteration) -> WrappedStopIterationError:
    """The error for a StopIteration. A future can't carry StopIteration: on Python 3.11, a task that awaits it would hang."""
    found = WrappedStopIterationError(
        "a `def` phase raised StopIteration; a bare next() on an empty iterator does that, "
        "next(iterator, default) does not"
    )
    found.__cause__ = error
    return found


_pool: Workers | None = None
_making = new_lock()


def pool() -> Workers:
    """The process's pool. Raises ConfigError if the environment has an invalid size for it."""
    global _pool
    made = _pool
    if made is None:
        with _making:
            made = _pool = _pool or Workers(_most())
    return made


def _most() -> int:
    text = os.environ.get("POCKET_PLUG_THREADS", "").strip() or str(MAX_THREADS)
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise ConfigError(
            f"POCKET_PLUG_THREADS is {text!r:.80}; give a whole number from 1 up, or leave it out: {MAX_THREADS}"
        )
    return int(text)


def _forget() -> None:
    """Called in a forked child: of its parent's threads it has only the one that forked, so it needs a new pool."""
    global _pool
    if _pool is not None:
        _pool.is_inherited = True
        _pool = None


after_fork(_forget)
