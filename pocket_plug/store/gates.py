"""Gates: how callers that have lost a few conflicts wait in line, and how an update gets priority over plain writes.

Plain writes (`set`) never wait in line. But an update that has lost to plain writes of this process a few times gets priority:
they wait until it is done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic

from pocket_plug.errors import ConflictError, SyncError
from pocket_plug.primitives.forking import after_fork, new_rlock
from pocket_plug.primitives.waiting import Waiter, blocked_loop, wake

PRIORITY_WAIT = 1.0
"""Seconds that a plain write waits, at most, for an update with priority. Priority is for fairness; no promise depends on it."""


class _Priority:
    """The time in which one update has priority: plain writes of its keys wait for its end."""

    def __init__(self) -> None:
        self._loop = asyncio._get_running_loop()
        self.is_over = False
        self._waiting: list[Waiter[None]] = []

    def end(self) -> None:
        """Let those that wait continue. Called once it `is_over`."""
        wake(waiter.give(None) for waiter in self._waiting)

    async def ended(self, in_place: bool, seconds: float) -> None:
        """Wait for its end, at most so many seconds."""
        blocked = asyncio._get_running_loop() if in_place else blocked_loop()
        if blocked is not None and blocked is self._loop:
            return  # the update can't continue before this call is over
        waiter: Waiter[None] = Waiter(blocks=in_place)
        self._waiting.append(waiter)
        if self.is_over:
            return
        if waiter.loop is None:
            waiter.block(seconds)
            return
        timer = waiter.loop.call_later(seconds, wake, [waiter.give(None)])
        try:
            await waiter
        finally:
            timer.cancel()


_held: ContextVar[frozenset[tuple[Gates, str]]] = ContextVar("pocket_plug.held", default=frozenset())
"""The gates held around the current call, by a node that is tried again and by what it calls; also names with priority."""


def holds_gates() -> bool:
    """Does a node around this call hold a gate, or have priority? Then others may wait for it: it must not wait for them."""
    return bool(_held.get())


class Gates:
    """Fair locks by name, for tasks and threads alike; acquired by callers that have lost a few conflicts already.

    They order callers and protect no data: if an event loop stops while one of its tasks holds a gate, others pass.

    Plain writes acquire no gate. But `priority` gives a caller priority over plain writes of some names, which wait for its
    end in `yield_to_priority`. `on_priority` is called with True when anybody has priority, for any name, and with False when
    nobody has it any more.
    """

    def __init__(self, on_priority: Callable[[bool], None] = lambda has_priority: None) -> None:
        self._lock = new_rlock()
        self._queues: dict[str, deque[Waiter[None]]] = {}  # the first one holds the gate
        self._priorities: dict[str, _Priority] = {}
        self._on_priority = on_priority
        after_fork(self._forget_others)

    def _forget_others(self) -> None:
        """In a forked child: the callers in line are the parent's."""
        self._queues.clear()
        self._priorities.clear()
        self._on_priority(False)

    def hold(self, names: Iterable[str]) -> Hold:
        """`async with` it: hold the gates of these names; acquired in order, so that two holders never wait for each other.

        Gates that are held around this call already are not acquired again. Raises SyncError where it would wait for a task
        of the event loop that the caller blocks.
        """
        return Hold(self, names)

    @contextmanager
    def priority(self, names: Iterable[str]) -> Generator[None]:
        """Have priority: others' plain writes of these names wait meanwhile. For a caller that has lost to them a few times."""
        turn, mine = _Priority(), list[str]()
        added = frozenset[tuple[Gates, str]]()  # the caller's own writes don't wait for itself
        try:
            with self._lock:
                mine += (name for name in names if name not in self._priorities)
                self._priorities.update(dict.fromkeys(mine, turn))
                self._on_priority(bool(self._priorities))
            added = frozenset[tuple[Gates, str]]((self, name) for name in mine) - _held.get()
            _held.set(_held.get() | added)
            yield
        finally:
            turn.is_over = True
            try:
                self._end_priority(turn, added)
            except BaseException:
                self._end_priority(turn, added)
                raise

    def _end_priority(self, turn: _Priority, added: frozenset[tuple[Gates, str]]) -> None:
        """End a priority. Can be called again."""
        _held.set(_held.get() - added)
        with self._lock:
            for name in tuple(name for name, other in self._priorities.items() if other is turn):
                self._priorities.pop(name, None)
            self._on_priority(bool(self._priorities))
        turn.end()

    async def yield_to_priority(self, names: Iterable[str], in_place: bool) -> None:
        """Wait until nobody has priority for one of these names, `PRIORITY_WAIT` in all; `in_place`: block, don't suspend."""
        mine, until = self.held_here(), monotonic() + PRIORITY_WAIT
        for name in names:
            turn = self._priorities.get(name)
            if turn is not None and turn.is_over:  # its end was interrupted
                self._end_priority(turn, frozenset())
            elif turn is not None and name not in mine:
                if (left := until - monotonic()) <= 0:
                    return
                await turn.ended(in_place, left)

    def held_here(self) -> set[str]:
        """The gates that a node around this call holds."""
        return {name for gates, name in _held.get() if gates is self}

    def taken(self, names: Iterable[str]) -> list[str]:
        """Those of these names whose gate somebody else holds."""
        if not self._queues:
            return []
        mine = self.held_here()
        return [name for name in names if name in self._queues and name not in mine]

    def turn(self, names: Collection[str], in_line: bool) -> Hold:
        """A hold for another try: of the gates of these names if `in_line`, or if somebody else waits there; else of none."""
        return self.hold(names if in_line or self.taken(names) else ())

    def refuse_to_overtake(self, names: Iterable[str]) -> None:
        """Raise ConflictError where others wait in line for one of these: if newcomers passed them, they would lose for ever."""
        if self._queues and (taken := self.taken(names)):
            raise ConflictError(taken)

    async def enter(self, name: str, ticket: Waiter[None]) -> None:
        """Wait in line for a gate. `leave` must follow, also if the waiting was cancelled."""
        blocked = blocked_loop()
        with self._lock:
            queue = self._queues.setdefault(name, deque())
            if blocked is not None and any(other.loop is blocked for other in queue):
                raise SyncError(
                    f"{name!r} is locked by a task of the event loop that this sync call blocks; use `await`"
                )
            queue.append(ticket)
            if queue[0] is ticket or queue[0].is_orphaned:
                self._admit(queue)
        await ticket

    def leave(self, name: str, ticket: Waiter[None]) -> None:
        """Release a gate, or leave the line for it, and let the next one in. Can be called again if it was interrupted."""
        with self._lock:
            queue = self._queues.get(name)
            if queue is None:
                return
            if ticket in queue:  # else it was skipped
                queue.remove(ticket)
            if queue:
                self._admit(queue)
            else:
                del self._queues[name]

    def _admit(self, queue: deque[Waiter[None]]) -> None:
        """Let the first one in. Those that wait on an event loop that has stopped are skipped: they may never leave."""
        admitted: list[Waiter[None]] = []
        while queue and queue[0].is_orphaned:
            admitted.append(queue.popleft())
        admitted.extend(list(queue)[:1])
        wake(ticket.give(None) for ticket in admitted)


class Hold:
    """Some gates, held within `async with`.

    An interrupt (Ctrl-C) may come before `__aexit__` has begun. So callers call `leave` in a `finally` besides, or others
    might wait for ever.
    """

    __slots__ = ("_around", "_gates", "_names", "_tickets")

    def __init__(self, gates: Gates, names: Iterable[str]) -> None:
        self._gates = gates
        self._around = around = _held.get()
        self._names = sorted({name for name in names if (gates, name) not in around})
        self._tickets: dict[str, Waiter[None]] = {}

    async def __aenter__(self) -> None:
        try:
            for name in self._names:
                ticket = Waiter[None]()
                self._tickets[name] = ticket
                await self._gates.enter(name, ticket)
            if self._names:
                _held.set(self._around | {(self._gates, name) for name in self._names})
        except BaseException:
            self.leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Leave all gates that are held or waited for. Can be called again."""
        if not self._tickets:
            return
        _held.set(self._around)
        for name in self._names:
            ticket = self._tickets.get(name)
            if ticket is not None:
                self._gates.leave(name, ticket)
        self._tickets = {}
