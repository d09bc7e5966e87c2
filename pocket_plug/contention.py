"""What callers do when they want the same key at once: combine their updates, or queue at a gate.

Retrying freely is quadratic: 800 writers of one key would make 320,000 tries.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from .backend import Backend, Change, Entry, Put
from .errors import Conflict
from .waiting import Waiter, wake

Step = Callable[[Entry | None], tuple[Change | None, Any]]
"""What an update does: from the entry to the change that is wanted (None: none) and the caller's answer. It may be
called several times."""

FREE_TRIES = 3
TRIES = 20


class _Request:
    __slots__ = ("step", "waiter")

    def __init__(self, step: Step) -> None:
        self.step = step
        self.waiter: Waiter[tuple[bool, Any]] = Waiter()  # (is it done?, the answer); not done: take the lead


class Combiner:
    """Applies concurrent updates of one key in one write.

    The first to come leads: it serves everybody queued so far as one batch, then hands the lead on.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self._queues: dict[str, list[_Request]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def apply(self, name: str, step: Step) -> Any:
        """The caller's answer. Raises what `step` raised, or Conflict when other processes never let go of the key."""
        request = _Request(step)
        with self._lock:
            leads = name not in self._queues
            self._queues.setdefault(name, []).append(request)
        while True:
            if leads:
                await self._start(name)
            try:
                leads_next, answer = await request.waiter
            except asyncio.CancelledError:
                with self._lock:
                    waiting = request in self._queues.get(name, ())
                    if waiting:
                        self._queues[name].remove(request)
                if not waiting:  # its step may be in a write by now: it must not land after we said it did not
                    await request.waiter.shielded()
                raise
            if not leads_next:
                return answer
            leads, request.waiter = True, Waiter()

    async def _start(self, name: str) -> None:
        """Serve in a task of its own, so that the leader's cancellation is not everybody's."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            await self._serve(name)
            return
        task = loop.create_task(self._serve(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, name: str) -> None:
        with self._lock:
            batch, self._queues[name] = self._queues[name], []
        try:
            await self._apply_all(name, batch)
        except BaseException as error:
            for request in batch:
                request.waiter.fail(error)
            if not isinstance(error, Exception):
                raise
        finally:
            with self._lock:
                queued = self._queues[name]
                if not queued:
                    del self._queues[name]
            wake(request.waiter for request in batch)
            if queued:
                wake([queued[0].waiter.give((True, None))])

    async def _apply_all(self, name: str, batch: list[_Request]) -> None:
        for _ in range(TRIES):
            entry = latest = await self._backend.read(name)
            wanted: Change | None = None
            for request in batch:
                try:
                    change, answer = request.step(latest)
                except Exception as error:  # one caller's bug is that caller's alone
                    request.waiter.fail(error)
                    continue
                request.waiter.give((False, answer))
                if change is not None:
                    wanted = change
                    latest = Entry(change.value, 1, change.expires_at) if isinstance(change, Put) else None
            try:
                if wanted is not None:
                    await self._backend.write((wanted,), {name: entry.version if entry else 0})
                return
            except Conflict:
                continue
        raise Conflict([name], f"{name!r} was changed by somebody else at each of {TRIES} tries")


class Gates:
    """Fair locks by name, for tasks and threads alike; taken by those who have lost a few conflicts already."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[str, deque[Waiter[None]]] = {}

    @asynccontextmanager
    async def hold(self, names: Iterable[str]) -> AsyncGenerator[None]:
        """Hold the gates of these names; taken in order, so that two holders never wait for each other."""
        held: list[str] = []
        try:
            for name in sorted(names):
                await self._enter(name)
                held.append(name)
            yield
        finally:
            for name in held:
                self._leave(name)

    async def _enter(self, name: str) -> None:
        with self._lock:
            queue = self._queues.get(name)
            if queue is None:
                self._queues[name] = deque()
                return
            waiter: Waiter[None] = Waiter()
            queue.append(waiter)
        try:
            await waiter
        except BaseException:
            with self._lock:
                queued = waiter in self._queues.get(name, ())
                if queued:
                    self._queues[name].remove(waiter)
            if not queued:
                self._leave(name)  # the gate was handed to us while we were being cancelled
            raise

    def _leave(self, name: str) -> None:
        with self._lock:
            queue = self._queues[name]
            if not queue:
                del self._queues[name]
                return
            waiter = queue.popleft()
        wake([waiter.give(None)])
