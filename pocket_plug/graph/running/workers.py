"""Threads for `def` phases: our own, daemons, and replaced when a time-out abandons one.

The loop's default pool would fill up with abandoned threads, and `asyncio.run` would wait for them at its end. And a
function in a worker that itself runs a workflow would wait for a thread that may never be free: what comes from a worker
gets a thread at once, beyond the bound if need be.
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
from pocket_plug.primitives.forking import after_fork, new_lock
from pocket_plug.primitives.values import Value
from pocket_plug.primitives.waiting import Waiter, wake_once

_logger = logging.getLogger("pocket_plug")

MAX_THREADS = 32
"""How many there are at most, unless `POCKET_PLUG_THREADS` says another number."""

SOON = 0.02
"""Seconds until a thread without a job sees whether the task that waited for its last one was woken."""

_in_worker: contextvars.ContextVar[bool] = contextvars.ContextVar("pocket_plug.in_worker", default=False)
"""Does a worker wait for what goes on here? Tasks, loops and threads of asyncio that it starts take the variable along."""


class _Job:
    __slots__ = ("arguments", "context", "function", "is_left", "is_over", "thread", "waiter")

    def __init__(self, function: Callable[..., Value], arguments: tuple[object, ...]) -> None:
        self.function, self.arguments = function, arguments
        self.context = contextvars.copy_context()
        self.waiter: Waiter[Value] = Waiter()
        self.thread: threading.Thread | None = None
        """Where it is being done."""
        self.is_left = self.is_over = False

    def do(self) -> None:
        """Call the function, and note what comes of it."""
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
    """The function is not done in time."""


class Workers:
    """A pool of daemon threads, started as they are needed and kept; those beyond `most` end with their first job.

    The exception of a signal's handler may come between any two steps of who calls. So nothing is counted up and down:
    the jobs and the threads are in sets, and each step can be done again.
    """

    def __init__(self, most: int = MAX_THREADS) -> None:
        self._most = most
        self._queue: SimpleQueue[_Job] = SimpleQueue()
        self._lock = new_lock()
        self._jobs: set[_Job] = set()  # that somebody waits for
        self._threads: set[threading.Thread] = set()  # that do them, or will
        self._abandoned: set[_Job] = set()
        self.is_inherited = False
        """Is it that of the process that this one was forked from?"""

    @property
    def abandoned(self) -> int:
        """How many threads still run what nobody waits for any more."""
        return len(self._abandoned)

    async def call(self, function: Callable[..., Value], *arguments: object) -> Value:
        """Run it in a thread, with the caller's context variables, and give what it gives.

        Cancelled while it waits, the function is not begun; while it runs, its thread is abandoned: it goes on, its
        result is dropped, and another thread takes its place.
        """
        job = _Job(function, arguments)
        try:
            try:
                self._submit(job)
                return await job.waiter
            finally:
                self._leave(job)
        finally:
            self._leave(job)  # again, for that may have been interrupted

    def call_blocking(self, timeout: float, function: Callable[..., Value], *arguments: object) -> Value:
        """The same for a caller without a loop: it waits `timeout` seconds at most, then raises WorkerTimeout."""
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
        """Nobody waits for it any more."""
        if job.is_over:
            return
        with self._lock:
            job.is_left = True
            self._jobs.discard(job)
            if job.thread is not None:
                self._abandoned.add(job)
                self._threads.discard(job.thread)
            self._start_what_is_needed()  # for those that queue behind it

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
            self._threads.discard(thread)  # if it has been started all the same, it sees that it isn't one of them
            raise

    def _work(self, first: _Job | None = None) -> None:
        me = threading.current_thread()
        with self._lock:
            if me not in self._threads:
                return
        told: list[weakref.ref[Waiter[Value]]] = []  # weakly: a result mustn't live on while the next job is done
        ends = False
        while not ends:
            job, first = first or self._next(told), None
            with self._lock:
                if not job.is_left:
                    job.thread = me
            if job.thread is me:
                job.do()
            if self.is_inherited:
                end_child()
            with self._lock:
                job.is_over, job.thread = True, None
                self._jobs.discard(job)
                self._abandoned.discard(job)
                if len(self._threads) > self._most:
                    self._threads.discard(me)
                ends = me not in self._threads
            _wake_again(told)
            if not job.is_left:
                told.append(weakref.ref(job.waiter))
                wake_once(job.waiter)
            del job  # don't keep its result alive while waiting for the next one
        _wake_again(told)

    def _next(self, told: list[weakref.ref[Waiter[Value]]]) -> _Job:
        """The next job; if it doesn't come soon, whoever was `told` last is looked after before."""
        if told:
            try:
                return self._queue.get(timeout=SOON)
            except Empty:
                _wake_again(told)
        return self._queue.get()


def _wake_again(told: list[weakref.ref[Waiter[Value]]]) -> None:
    """Wake those who were told that their job is done, and still wait: once is enough but after an interrupt."""
    while told:
        waiter = told.pop()()
        if waiter is not None and not waiter.is_woken:
            wake_once(waiter)


def end_child() -> NoReturn:
    """This process was forked by a function in a worker, which has returned here too: it was all there was to do."""
    _logger.error(
        "a phase in a worker has forked this process, and returned in the child, where nobody waits for its "
        "result; the child ends. Let it end by os._exit() or os.exec…(), or use multiprocessing"
    )
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(1)


def wrapped(error: StopIteration) -> WrappedStopIterationError:
    """A future can't carry StopIteration: on Python 3.11 the one who waits for it would hang."""
    found = WrappedStopIterationError(
        "a `def` phase raised StopIteration; a bare next() on an empty iterator does that, "
        "next(iterator, default) does not"
    )
    found.__cause__ = error
    return found


_pool: Workers | None = None
_making = new_lock()


def pool() -> Workers:
    """The process's pool. Raises ConfigError where the environment gives it a size that can't be."""
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
    """In a forked child, which has none of its parent's threads but the one that forked."""
    global _pool
    if _pool is not None:
        _pool.is_inherited = True
        _pool = None


after_fork(_forget)
