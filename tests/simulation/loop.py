"""Simulated time, and the event loops of simulated processes: the order of all steps depends on the seed alone.

A process is an event loop of its own, perhaps with threads. All of them share one `Scheduler`, which has the time and the order
of what is ready. A killed process never takes another step; a stopped one continues later, and finds its timers overdue; so does
a blocked loop, while the threads beside it continue.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")

STEPS = 300_000
"""After so many steps a world hangs: something is done again and again."""
LONGEST = 1000 * 86_400.0
"""After so many simulated seconds as well: something is waited for that never comes."""


class Hang(Exception):
    """The world doesn't end."""


class Task(asyncio.Task[T]):
    """A task whose position in a set does not depend on its memory address: a TaskGroup cancels in the order of a set."""

    def __init__(self, number: int, coroutine: Coroutine[Any, Any, T], **options: Any) -> None:
        self._number = number
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number


class Scheduler:
    """The time, and the next steps of all processes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._ready: deque[tuple[Process | None, asyncio.Handle | Callable[[], None]]] = deque()
        self._timers: list[tuple[float, int, Process | None, asyncio.Handle | Callable[[], None]]] = []
        self._numbers = 0

    def number(self) -> int:
        """The next number; all are different."""
        self._numbers += 1
        return self._numbers

    def soon(self, process: Process, handle: asyncio.Handle) -> None:
        """Let a process do this next."""
        self._ready.append((process, handle))

    def at(self, time: float, process: Process | None, handle: asyncio.Handle | Callable[[], None]) -> None:
        """Do it at that time; without a process if that is None, so that no kill prevents it."""
        heapq.heappush(self._timers, (time, self.number(), process, handle))

    def after(self, seconds: float, function: Callable[[], None]) -> None:
        """Call it later, whatever happens to the processes: for messages in the network."""
        self.at(self.now + seconds, None, function)

    def run(self, main: asyncio.Future[T]) -> T:
        """Run until this is done. Raises Hang."""
        ready, timers = self._ready, self._timers
        while not main.done():
            self.steps += 1
            if ready:
                process, handle = ready.popleft()
            elif timers:
                time, _, process, handle = heapq.heappop(timers)
                if time > self.now:
                    self.now = time
            else:
                raise Hang(f"nothing is left to be done at {self.now:.3f} s, and the world has not ended")
            if self.steps > STEPS or self.now > LONGEST:
                raise Hang(f"{self.steps:,} steps and {self.now:,.0f} s, and the world has not ended")
            if process is None:
                handle()  # type: ignore[operator]
            elif not process.is_dead:
                process.step(handle)  # type: ignore[arg-type]
        return main.result()


class Process(asyncio.AbstractEventLoop):
    """The event loop of one simulated process. `fails` gets what asyncio would log, `enter` is called before each step."""

    def __init__(
        self, name: str, scheduler: Scheduler, fails: Callable[[str], None], enter: Callable[[], None]
    ) -> None:
        self.name, self.scheduler, self._fails, self._enter = name, scheduler, fails, enter
        self.is_dead = self.is_stopped = self.is_blocked = False
        self._held: list[asyncio.Handle] = []
        self.tasks: list[Task[Any]] = []
        """All of them: the garbage collector must not end what a kill has left half done."""
        self.threads: list[Thread] = []
        """Those that have not ended."""

    # ------------------------------------------------------------ what happens to it
    def step(self, handle: asyncio.Handle) -> None:
        """One step of it, unless that is cancelled; a stopped process takes it later."""
        if self.is_stopped or self.is_blocked:
            self._held.append(handle)
        elif not handle.cancelled():
            asyncio._set_running_loop(self)
            self._enter()
            try:
                handle._run()
            finally:
                asyncio._set_running_loop(None)

    def kill(self) -> None:
        """SIGKILL: it never runs again, and nothing of it is cleaned up."""
        for each in (self, *self.threads):
            each.is_dead = True

    def stop(self) -> None:
        """SIGSTOP: it does nothing until `go_on`."""
        for each in (self, *self.threads):
            each.is_stopped = True

    def go_on(self) -> None:
        """SIGCONT: it does what it would have done meanwhile."""
        for each in (self, *self.threads):
            each.is_stopped = False
            each._release()

    async def block(self, seconds: float, *, and_threads: bool) -> None:
        """A call that doesn't return for so long, and lets nothing else of this loop run; nor the threads, if it keeps the GIL.

        What awaits this goes on before all that came meanwhile, so no step is between, as after a call.
        """
        returned = self.create_future()
        for each in (self, *(self.threads if and_threads else ())):
            each.is_blocked = True
        self.scheduler.after(seconds, lambda: self._unblock(returned))
        await returned

    def _unblock(self, returned: asyncio.Future[None]) -> None:
        for each in (self, *self.threads):
            each.is_blocked = False
        returned.set_result(None)  # nothing else is ready as a moment begins, so what awaits it is next
        for each in (self, *self.threads):
            each._release()

    def _release(self) -> None:
        """Do now what was delayed."""
        held, self._held = self._held, []
        for handle in held:
            self.scheduler.soon(self, handle)

    # ------------------------------------------------------------ methods that asyncio calls
    def time(self) -> float:
        return self.scheduler.now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.scheduler.soon(self, handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.scheduler.now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.scheduler.at(when, self, handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It stays in the queue, and is skipped."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None, **options: Any
    ) -> Task[Any]:
        number = self.scheduler.number()
        task: Task[Any] = Task(number, coro, loop=self, name=name or f"{self.name}-{number}", context=context)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.is_dead:  # else nobody was left to take it
            self._fails(f"{context.get('message')}: {context.get('exception')!r}")

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.is_dead

    def is_closed(self) -> bool:
        return self.is_dead


# ---------------------------------------------------------------- threads
class _Thrown(BaseException):
    """Raised in a thread when the world is over, to end the thread."""


class _Here(threading.local):
    thread: Thread | None = None


_here = _Here()


def this_thread() -> Thread | None:
    """The simulated thread that runs now; None in a step of an event loop."""
    return _here.thread


class Thread(Process):
    """A thread of a process: it dies and stops with that, and has no event loop, nor is it blocked where that is.

    It is a real one, but nothing else goes on until it waits for something simulated. So it is interleaved with all else where
    it asks the store, sleeps, or waits for a lock that another thread or a task has: and nowhere else.
    """

    def __init__(self, main: Process, function: Callable[[], object], context: Context) -> None:
        super().__init__(main.name, main.scheduler, main._fails, main._enter)
        self._main, self._function, self._context = main, function, context
        self._its_turn, self._others_turn = threading.Lock(), threading.Lock()
        self._its_turn.acquire()
        self._others_turn.acquire()
        self._is_thrown = False
        self._real = threading.Thread(target=self._live, name=f"simulated {main.name}", daemon=True)
        main.threads.append(self)
        self.call_soon(self._begin)

    # ------------------------------------------------------------ outside of it
    def _begin(self) -> None:
        self._real.start()
        self._others_turn.acquire()

    def _go_on(self, _: object = None) -> None:
        self._its_turn.release()
        self._others_turn.acquire()

    def throw_away(self) -> None:
        """End it where it is, at the world's end: its further actions don't count."""
        self._is_thrown = True
        if self._real.ident is None:  # never started
            return
        if self in self._main.threads:  # else it has ended and takes no turn, though it may be alive a moment longer
            self._go_on()
        self._real.join()

    # ------------------------------------------------------------ in it
    def _live(self) -> None:
        _here.thread = self
        try:
            self._context.run(self._function)
        except _Thrown:
            pass
        except BaseException as error:  # noqa: BLE001 - it is the thread's last word
            if not self._is_thrown:
                self._fails(f"a thread of {self.name} ended by {error!r}")
        finally:
            self._main.threads.remove(self)
            self._others_turn.release()

    def wait(self, future: asyncio.Future[T], timeout: float | None = None) -> bool:
        """Wait for one of this thread's futures (`create_future`), with a time limit. Is it done?"""
        if self._is_thrown:
            raise _Thrown
        timer = None if timeout is None else self.call_later(timeout, future.cancel)
        if not future.done():
            future.add_done_callback(self._go_on)
            self._others_turn.release()
            self._its_turn.acquire()
            if self._is_thrown:
                raise _Thrown
        if timer is not None:
            timer.cancel()
        return not future.cancelled()

    def sleep(self, seconds: float) -> None:
        """Replaces `time.sleep`."""
        self.wait(self.create_future(), seconds)


class Lock:
    """A `threading.Lock` for simulated threads."""

    def __init__(self) -> None:
        self._is_held = False
        self._line: list[asyncio.Future[None]] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait for it; a loop may only acquire a free one."""
        if not self._is_held:
            self._is_held = True
            return True
        if (thread := _here.thread) is None:
            raise Hang("an event loop waits for a lock")
        future = thread.create_future()
        self._line.append(future)
        return thread.wait(future, None if timeout < 0 else timeout)

    def release(self) -> None:
        """Pass it to the first waiter."""
        self._line = [future for future in self._line if not future.done()]
        if self._line:
            self._line.pop(0).set_result(None)
        else:
            self._is_held = False


class Flag:
    """The Flag of `primitives.locks` for simulated threads."""

    def __init__(self) -> None:
        self._is_up = False
        self._waiting: list[asyncio.Future[None]] = []

    def set(self) -> None:
        """Set it."""
        self._is_up = True
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, with a time limit, and clear it. Was it set?"""
        thread = _here.thread
        assert thread is not None
        if not self._is_up:
            future = thread.create_future()
            self._waiting.append(future)
            thread.wait(future, timeout)
        was_up, self._is_up = self._is_up, False
        return was_up
