"""How callers share a key that several want to update at once: they combine their updates, and wait in line at `gates`.

Retrying freely is quadratic: 800 writers of one key would make 320,000 tries. Writes of other processes wait if the backend has
turns; if it has none, and for nodes, there are pauses between the tries.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from pocket_plug.errors import CodecError, ConflictError, StoreError, WriteSizeError
from pocket_plug.primitives.forking import after_fork, new_rlock
from pocket_plug.primitives.waiting import Waiter, blocked_loop, pause, wake

from .backend import Backend, Change, Entry, Put
from .gates import Gates, Hold

Step = Callable[[Entry | None], tuple[Sequence[Change], Any]]
"""What an update does: takes the entry; returns the changes, at most one of the entry's key, and the caller's answer. It may be
called several times."""

FREE_TRIES = 3
"""Tries before a caller waits for others. Over a network it takes a turn after the first: a second try would wait for the
turns of others, and lose."""
TRIES = 20

FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.1
"""Upper bounds of the pauses, in seconds: after the first lost tries, and after many."""


class Backoff:
    """The pauses after tries that were lost to other processes: random, from 0 to a bound that doubles ("full jitter").

    So two processes that collided once don't collide again and again. Tests replace `sleep` and `uniform`.
    """

    def __init__(
        self,
        sleep: Callable[[float], Awaitable[None]] = pause,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._sleep, self._uniform = sleep, uniform

    async def __call__(self, lost: int) -> None:
        """Pause after that many lost tries; after the first few there is no pause."""
        if lost >= FREE_TRIES:
            longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (lost - FREE_TRIES))
            await self._sleep(self._uniform(0, longest))


Place = tuple[str, asyncio.AbstractEventLoop | None]
"""Callers whose updates may be combined: of one key, on one event loop or in threads. So a loop that stops blocks no others."""


class _Request:
    __slots__ = ("is_begun", "is_withdrawn", "step", "thread", "waiter")

    def __init__(self, step: Step) -> None:
        self.step = step
        self.thread = threading.get_ident()
        self.is_begun = self.is_withdrawn = False
        self.waiter: Waiter[tuple[bool, Any]] = Waiter()  # (is it served?, the answer); not served: take the lead


class _Line:
    """The requests that wait at one place, and the leader that serves them. The Combiner keeps it while there are requests."""

    __slots__ = ("leader", "next", "requests")

    def __init__(self) -> None:
        self.requests: list[_Request] = []
        self.leader: object = None
        self.next: Waiter[tuple[bool, Any]] | None = None  # the waiter of a new leader that wasn't notified yet


class Combiner:
    """Applies concurrent updates of one key in one write.

    The first caller leads: it serves all requests queued so far as one batch, then passes the lead on. Leaders on several
    event loops, those in threads, and nodes that had a conflict take turns at a gate.

    A leader may be interrupted (Ctrl-C) between any two steps. So each step of its end can be repeated.
    """

    def __init__(self, backend: Backend, gates: Gates, backoff: Callable[[int], Awaitable[None]]) -> None:
        self._backend = backend
        self._gates = gates
        self._backoff = backoff
        self._lock = new_rlock()
        self._lines: dict[Place, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        after_fork(self._forget_others)

    def _forget_others(self) -> None:
        """In a forked child: the requests that wait are the parent's."""
        self._lines.clear()
        self._tasks.clear()

    async def apply(self, name: str, step: Step) -> Any:
        """The caller's answer. Raises what `step` raised, or ConflictError when other processes change the key at each try."""
        request = _Request(step)
        # Waiting in line could last for ever: the leader may be a task of the event loop that this call blocks, wait for a gate
        # that is held around this call, or be what this call has interrupted.
        place = (name, request.waiter.loop)
        if blocked_loop() is not None or self._gates.held_here() or self._has_interrupted(place):
            await self._apply_all(name, [request])
            return request.waiter.outcome()[1]
        try:
            with self._lock:
                line = self._lines.setdefault(place, _Line())
                line.requests.append(request)
                self._lines[place] = line  # again: its last request may just have been garbage-collected
                if line.leader is None:
                    line.leader = request
                lead = line.leader is request
            while True:
                if lead:  # a lead that is passed on later is received by the await below
                    await self._start(place, line, request)
                served, answer = await request.waiter
                if served:
                    return answer
                lead, request.waiter = True, Waiter()
        except BaseException as stopped:
            request.is_withdrawn = True
            try:
                withdrawn = self._withdrew(place, request)
            except BaseException:
                self._withdrew(place, request)
                raise
            if not withdrawn and not isinstance(stopped, GeneratorExit):
                with suppress(Exception):  # it is being written, and must not take effect after this returns
                    await request.waiter.shielded()
            raise

    def _has_interrupted(self, place: Place) -> bool:
        """Is a request of this thread in line there already? Then a signal's handler or `__del__` has interrupted that."""
        line, here = self._lines.get(place), threading.get_ident()
        if line is None or place[1] is not None:
            return False
        return any(isinstance(other, _Request) and other.thread == here for other in (line.leader, *line.requests))

    def _withdrew(self, place: Place, request: _Request) -> bool:
        """Take a request out of the line and let another one lead. Returns False if it is being served already."""
        with self._lock:
            line = self._lines.get(place)
            if line is not None and request in line.requests:
                request.is_begun = False
                line.requests.remove(request)
        self._hand_on(place, request)
        return not request.is_begun

    async def _start(self, place: Place, line: _Line, request: _Request) -> None:
        """Serve in a task of its own where a loop runs, so that the leader's cancellation is not everybody's."""
        if place[1] is None:
            await self._serve(place, request)
            return
        leader = object()
        task = place[1].create_task(self._serve(place, leader))
        line.leader = leader
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._hand_on(place, leader)  # in case the task was cancelled before it ran

        task.add_done_callback(done)

    async def _serve(self, place: Place, leader: object) -> None:
        name = place[0]
        batch: list[_Request] = []
        hold = self._gates.hold((name,))
        stopped = StoreError(
            f"{name!r}: the task that wrote for several callers was stopped; the writes may have been stored"
        )
        try:
            async with hold:
                with self._lock:
                    line = self._lines.get(place)
                    if line is not None:
                        for request in line.requests:
                            request.is_begun = True
                            request.waiter.fail(stopped)  # until more is known
                        batch, line.requests = line.requests, []
                await self._apply_all(name, batch)
        except Exception as error:
            if not batch:
                raise
            for request in batch:  # each of them raises it
                request.waiter.fail(error)
        finally:
            try:
                self._end(place, leader, batch, hold)
            except BaseException:
                self._end(place, leader, batch, hold)
                raise

    def _end(self, place: Place, leader: object, batch: list[_Request], hold: Hold) -> None:
        hold.leave()
        wake(request.waiter for request in batch)
        self._hand_on(place, leader)

    def _hand_on(self, place: Place, leader: object) -> None:
        """Let the first request in line lead, if `leader` leads now."""
        with self._lock:
            line = self._lines.get(place)
            if line is None:
                return
            if line.leader is leader:
                if not line.requests:
                    line.leader = None
                    del self._lines[place]
                    return
                first = line.requests[0]
                line.leader, line.next = first, first.waiter
            if line.next is not None:
                wake([line.next.give((False, None))])
                line.next = None

    async def _apply_all(self, name: str, batch: list[_Request]) -> None:
        with ExitStack() as priority:
            if await self._in_tries(priority, name, batch):
                return
        raise ConflictError([name], f"{name!r} was changed by other writes at each of {TRIES} tries")

    async def _in_tries(self, priority: ExitStack, name: str, batch: list[_Request]) -> bool:
        for lost in range(TRIES):
            if lost == FREE_TRIES:
                priority.enter_context(self._gates.priority((name,)))
            turn = self._backend.turn((name,)) if lost >= (1 if self._backend.needs_loop else FREE_TRIES) else None
            if turn is None:
                await self._backoff(lost)
                done = await self._applied(name, batch)
            else:
                async with turn:
                    done = await self._applied(name, batch)
            if done:
                return True
        return False

    async def _applied(self, name: str, batch: list[_Request]) -> bool:
        """One try; False where somebody else was faster."""
        entry = latest = await self._backend.read(name)
        wanted: dict[str, Change] = {}
        answers: list[tuple[_Request, Any]] = []
        for request in batch:
            if request.is_withdrawn:
                continue
            try:
                changes, answer = request.step(latest)
            except Exception as error:  # noqa: BLE001 - one caller's bug is raised to that caller only
                request.waiter.fail(error)
                continue
            answers.append((request, answer))
            wanted.update((change.key, change) for change in changes)
            if changes and (own := wanted.get(name)) is not None:
                latest = Entry(own.value, 1, own.expires_at) if isinstance(own, Put) else None
        try:
            if wanted:
                await self._backend.write([*wanted.values()], {name: entry.version if entry else 0})
        except ConflictError:
            return False
        except (CodecError, WriteSizeError):  # one value can't be stored, or there are too many: nothing was
            if len(batch) == 1:
                raise
            await self._apply_singly(name, batch)
            return True
        for request, answer in answers:
            request.waiter.give((True, answer))
        return True

    async def _apply_singly(self, name: str, batch: list[_Request]) -> None:
        for request in batch:
            try:
                await self._apply_all(name, [request])
            except Exception as error:  # noqa: BLE001 - raised to this caller only
                request.waiter.fail(error)
