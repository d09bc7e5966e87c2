"""Simulated time, and the event loops of simulated processes: what runs next depends on the seed alone.

A process is an event loop of its own. All of them share one `Scheduler`, which has the time and the order of what is ready.
A process that is killed never runs a step again; one that is stopped goes on later, and finds that its timers are overdue.
"""

from __future__ import annotations

import asyncio
import heapq
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
    """The world doesn't come to an end."""


class Task(asyncio.Task[T]):
    """A task whose place in a set does not depend on where it lies in memory: a TaskGroup cancels in the order of a set."""

    def __init__(self, number: int, coroutine: Coroutine[Any, Any, T], **options: Any) -> None:
        self._number = number
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number


class Scheduler:
    """The time, and what all processes have to do next."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0
        self._ready: deque[tuple[Process | None, asyncio.Handle | Callable[[], None]]] = deque()
        self._timers: list[tuple[float, int, Process | None, asyncio.Handle | Callable[[], None]]] = []
        self._numbers = 0

    def number(self) -> int:
        """The next one; no two things have the same."""
        self._numbers += 1
        return self._numbers

    def soon(self, process: Process, handle: asyncio.Handle) -> None:
        """Have a process do this next."""
        self._ready.append((process, handle))

    def at(self, time: float, process: Process | None, handle: asyncio.Handle | Callable[[], None]) -> None:
        """Have it done at that time; by nobody's process where that is None, so that no kill prevents it."""
        heapq.heappush(self._timers, (time, self.number(), process, handle))

    def after(self, seconds: float, function: Callable[[], None]) -> None:
        """Call it later, whatever becomes of the processes: what is on its way through the network."""
        self.at(self.now + seconds, None, function)

    def run(self, main: asyncio.Future[T]) -> T:
        """Go on until this is done. Raises Hang."""
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
    """The event loop of one simulated process. `fails` is called with what asyncio would log, `enter` before each step."""

    def __init__(
        self, name: str, scheduler: Scheduler, fails: Callable[[str], None], enter: Callable[[], None]
    ) -> None:
        self.name, self.scheduler, self._fails, self._enter = name, scheduler, fails, enter
        self.is_dead = self.is_stopped = False
        self._held: list[asyncio.Handle] = []
        self.tasks: list[Task[Any]] = []
        """All of them: the garbage collector must not end what a kill has left half done."""

    # ------------------------------------------------------------ what happens to it
    def step(self, handle: asyncio.Handle) -> None:
        """One step of it, unless that is cancelled; a stopped one takes it later."""
        if self.is_stopped:
            self._held.append(handle)
        elif not handle.cancelled():
            around = asyncio._get_running_loop()  # where a world is played in a step of another one, for comparison
            asyncio._set_running_loop(self)
            self._enter()
            try:
                handle._run()
            finally:
                asyncio._set_running_loop(around)

    def kill(self) -> None:
        """SIGKILL: it never runs again, and nothing of it is cleaned up."""
        self.is_dead = True

    def stop(self) -> None:
        """SIGSTOP: it does nothing until `go_on`."""
        self.is_stopped = True

    def go_on(self) -> None:
        """SIGCONT: it does what it would have done meanwhile."""
        self.is_stopped = False
        held, self._held = self._held, []
        for handle in held:
            self.scheduler.soon(self, handle)

    # ------------------------------------------------------------ what asyncio asks of a loop
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
        """It stays where it is, and is passed over."""

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
