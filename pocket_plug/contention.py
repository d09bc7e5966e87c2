"""What callers do when they want the same key at once: combine their updates, or queue at a gate.

Retrying freely is quadratic: 800 writers of one key would make 320,000 tries. Who only sets a key queues nowhere, but
waits a moment where another one of this process has lost to such sets a few times. Other processes can't be told: between
the tries that are lost to them are pauses.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from .backend import Backend, Change, Entry, Put
from .errors import CodecError, Conflict, StoreError, SyncError
from .forking import after_fork, new_lock
from .waiting import Waiter, blocked_loop, may_block, pause, wake

Step = Callable[[Entry | None], tuple[Change | None, Any]]
"""What an update does: from the entry to the change that is wanted (None: none) and the caller's answer. It may be
called several times."""

FREE_TRIES = 3
TRIES = 20

FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.1
"""Seconds: what the pause between two tries is at most, at first and at last."""
COURTESY = 1.0
"""Seconds that a plain write waits for somebody ahead of it, at most: it orders them, and nothing depends on it."""


class Backoff:
    """The pauses between tries that were lost to other processes: each from 0 to a bound that doubles ("full jitter").

    So those that have met once don't meet again. `sleep` and `uniform` are replaced by tests.
    """

    def __init__(self, sleep: Callable[[float], Awaitable[None]] = pause,
                 uniform: Callable[[float, float], float] = random.uniform) -> None:  # fmt: skip
        self._sleep, self._uniform = sleep, uniform

    async def __call__(self, lost: int) -> None:
        """Pause, after so many lost tries; the first few are free."""
        if lost >= FREE_TRIES:
            longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (lost - FREE_TRIES))
            await self._sleep(self._uniform(0, longest))


Place = tuple[str, asyncio.AbstractEventLoop | None]
"""Callers that may combine: of one key, on one event loop or all in threads. So no loop's end is another one's."""


class _Request:
    __slots__ = ("is_begun", "is_withdrawn", "step", "waiter")

    def __init__(self, step: Step) -> None:
        self.step = step
        self.is_begun = self.is_withdrawn = False
        self.waiter: Waiter[tuple[bool, Any]] = Waiter()  # (is it served?, the answer); not served: take the lead


class _Line:
    """Those who wait at one place, and who serves them. Kept by the Combiner while there is anybody."""

    __slots__ = ("leader", "next", "requests")

    def __init__(self) -> None:
        self.requests: list[_Request] = []
        self.leader: object = None
        self.next: Waiter[tuple[bool, Any]] | None = None  # of a leader who is still to be told


class Combiner:
    """Applies concurrent updates of one key in one write.

    The first to come leads: it serves everybody queued so far as one batch, then hands the lead on. Leaders on several
    event loops, those in threads, and nodes that were in conflict take turns at a gate.

    Whoever leads may be interrupted (Ctrl-C) between any two steps. So each step of leaving can be done again.
    """

    def __init__(self, backend: Backend, gates: Gates, backoff: Callable[[int], Awaitable[None]]) -> None:
        self._backend = backend
        self._gates = gates
        self._backoff = backoff
        self._lock = new_lock()
        self._lines: dict[Place, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        after_fork(self._forget_others)

    def _forget_others(self) -> None:
        """In a forked child: those who queue are the parent's."""
        self._lines.clear()
        self._tasks.clear()

    async def apply(self, name: str, step: Step) -> Any:
        """The caller's answer. Raises what `step` raised, or Conflict when other processes never let go of the key."""
        request = _Request(step)
        # whoever leads may be a task that can't go on before this call is over, or wait for one who waits for a gate
        # held around it
        if blocked_loop() is not None or self._gates.held_here():
            await self._apply_all(name, [request])
            return request.waiter.outcome()[1]
        place = (name, request.waiter.loop)
        try:
            with self._lock:
                line = self._lines.setdefault(place, _Line())
                line.requests.append(request)
                if line.leader is None:
                    line.leader = request
                lead = line.leader is request
            while True:
                if lead:  # handed over later, it comes with a wake-up, which is to be awaited first
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
                with suppress(Exception):  # it is being written: it must not land after we said that it did not
                    await request.waiter.shielded()
            raise

    def _withdrew(self, place: Place, request: _Request) -> bool:
        """Take it out of the line, unless it is being served. It leads no longer."""
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
            self._hand_on(place, leader)  # in case that it was stopped before it had begun

        task.add_done_callback(done)

    async def _serve(self, place: Place, leader: object) -> None:
        name = place[0]
        batch: list[_Request] = []
        hold = self._gates.hold((name,))
        stopped = StoreError(f"{name!r}: who wrote for several callers was stopped; whether it landed is not known")
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
        """Let the first in line lead, if this one does."""
        with self._lock:
            line = self._lines.get(place)
            if line is None:
                return
            if line.leader is leader:
                if not line.requests:
                    del self._lines[place]
                    return
                first = line.requests[0]
                line.leader, line.next = first, first.waiter
            if line.next is not None:
                wake([line.next.give((False, None))])
                line.next = None

    async def _apply_all(self, name: str, batch: list[_Request]) -> None:
        with ExitStack() as turn:
            if await self._in_tries(turn, name, batch):
                return
        raise Conflict([name], f"{name!r} was changed by somebody else at each of {TRIES} tries")

    async def _in_tries(self, turn: ExitStack, name: str, batch: list[_Request]) -> bool:
        for lost in range(TRIES):
            if lost == FREE_TRIES:
                turn.enter_context(self._gates.ahead((name,)))
            await self._backoff(lost)
            if await self._applied(name, batch):
                return True
        return False

    async def _applied(self, name: str, batch: list[_Request]) -> bool:
        """One try; False where somebody else was faster."""
        entry = latest = await self._backend.read(name)
        wanted: Change | None = None
        answers: list[tuple[_Request, Any]] = []
        for request in batch:
            if request.is_withdrawn:
                continue
            try:
                change, answer = request.step(latest)
            except Exception as error:  # noqa: BLE001 - one caller's bug is that caller's alone
                request.waiter.fail(error)
                continue
            answers.append((request, answer))
            if change is not None:
                wanted = change
                latest = Entry(change.value, 1, change.expires_at) if isinstance(change, Put) else None
        try:
            if wanted is not None:
                await self._backend.write((wanted,), {name: entry.version if entry else 0})
        except Conflict:
            return False
        except CodecError:  # somebody's value can't be stored, so nothing was
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
            except Exception as error:  # noqa: BLE001 - this caller's alone
                request.waiter.fail(error)


class _Turn:
    """While it lasts, plain writes wait for its end."""

    def __init__(self) -> None:
        self._loop = asyncio._get_running_loop()
        self.is_over = False
        self._over = threading.Event()
        self._waiting: list[Waiter[None]] = []

    def end(self) -> None:
        self._over.set()
        wake(waiter.give(None) for waiter in self._waiting)

    async def ended(self, in_place: bool) -> None:
        if blocked_loop() is not None and blocked_loop() is self._loop:
            return  # whoever is ahead can't go on before this call is over
        if in_place or may_block():
            self._over.wait(COURTESY)
            return
        waiter: Waiter[None] = Waiter()
        self._waiting.append(waiter)
        if self._over.is_set():
            return
        assert waiter.loop is not None
        late = waiter.loop.call_later(COURTESY, wake, [waiter.give(None)])
        try:
            await waiter
        finally:
            late.cancel()


_held: ContextVar[frozenset[tuple[Gates, str]]] = ContextVar("pocket_plug.held", default=frozenset())
"""The gates held around the current call, by a node that is tried again and by what it calls."""


class Gates:
    """Fair locks by name, for tasks and threads alike; taken by those who have lost a few conflicts already.

    They order callers and guard nothing: where an event loop stops while one of its tasks holds a gate, others pass.

    Plain writes need no gate. `ahead` has those of some names wait, if they come by `let_by`; `on_ahead` is called with
    True and False as that begins and ends to be so for any name.
    """

    def __init__(self, on_ahead: Callable[[bool], None] = lambda ahead: None) -> None:
        self._lock = new_lock()
        self._queues: dict[str, deque[Waiter[None]]] = {}  # the first one holds the gate
        self._ahead: dict[str, _Turn] = {}
        self._on_ahead = on_ahead
        after_fork(self._forget_others)

    def _forget_others(self) -> None:
        """In a forked child nobody is in line."""
        self._queues.clear()
        self._ahead.clear()
        self._on_ahead(False)

    def hold(self, names: Iterable[str]) -> Hold:
        """`async with` it: hold the gates of these names; taken in order, so that two holders never wait for each other.

        Whoever holds some already, around this call, has them. Raises SyncError where it would wait for a task of the
        event loop that the caller blocks.
        """
        return Hold(self, names)

    @contextmanager
    def ahead(self, names: Iterable[str]) -> Generator[None]:
        """Plain writes of these names by others wait meanwhile: for who has lost to them a few times."""
        turn, mine = _Turn(), list[str]()
        added = frozenset[tuple[Gates, str]]()  # what whoever is ahead writes itself, waits for nobody
        try:
            with self._lock:
                mine += (name for name in names if name not in self._ahead)
                self._ahead.update(dict.fromkeys(mine, turn))
                self._on_ahead(bool(self._ahead))
            added = frozenset[tuple[Gates, str]]((self, name) for name in mine) - _held.get()
            _held.set(_held.get() | added)
            yield
        finally:
            turn.is_over = True
            try:
                self._leave_ahead(turn, added)
            except BaseException:
                self._leave_ahead(turn, added)
                raise

    def _leave_ahead(self, turn: _Turn, added: frozenset[tuple[Gates, str]]) -> None:
        """May be done again."""
        _held.set(_held.get() - added)
        with self._lock:
            for name in tuple(name for name, other in self._ahead.items() if other is turn):
                self._ahead.pop(name, None)
            self._on_ahead(bool(self._ahead))
        turn.end()

    async def let_by(self, names: Iterable[str], in_place: bool) -> None:
        """Wait, for `COURTESY` at most, until nobody is ahead at these names; `in_place`: without suspending."""
        mine = self.held_here()
        for name in names:
            turn = self._ahead.get(name)
            if turn is not None and turn.is_over:  # whose end was interrupted
                self._leave_ahead(turn, frozenset())
            elif turn is not None and name not in mine:
                await turn.ended(in_place)

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
        """In which to try again: in line for these names; at once where nobody queues and the caller need not."""
        return self.hold(names if in_line or self.taken(names) else ())

    def let_go_first(self, names: Iterable[str]) -> None:
        """Raise Conflict where others queue for one of these: newcomers that pass them by would make them lose for ever."""
        if self._queues and (taken := self.taken(names)):
            raise Conflict(taken)

    async def enter(self, name: str, ticket: Waiter[None]) -> None:
        """Wait in line for a gate. Who waits or was let in has to leave."""
        blocked = blocked_loop()
        with self._lock:
            queue = self._queues.setdefault(name, deque())
            if blocked is not None and any(other.loop is blocked for other in queue):
                raise SyncError(f"{name!r} is held by a task of the event loop that this sync call blocks; use `await`")
            queue.append(ticket)
            if queue[0] is ticket or queue[0].is_orphaned:
                self._admit(queue)
        await ticket

    def leave(self, name: str, ticket: Waiter[None]) -> None:
        """Let the next one in. If that is interrupted, it can be done again."""
        with self._lock:
            queue = self._queues.get(name)
            if queue is None:
                return
            if ticket in queue:  # else it was passed by
                queue.remove(ticket)
            if queue:
                self._admit(queue)
            else:
                del self._queues[name]

    def _admit(self, queue: deque[Waiter[None]]) -> None:
        """Let the first one in, and pass by those who wait on a loop that has stopped: they may never leave."""
        admitted: list[Waiter[None]] = []
        while queue and queue[0].is_orphaned:
            admitted.append(queue.popleft())
        admitted.extend(list(queue)[:1])
        wake(ticket.give(None) for ticket in admitted)


class Hold:
    """Some gates, and who holds them within `async with`.

    An interrupt (Ctrl-C) may come before `__aexit__` has begun. So whoever must not keep others waiting for ever calls
    `leave` besides.
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
        """Leave those that were entered or waited for. May be called again."""
        if not self._tickets:
            return
        _held.set(self._around)
        for name in self._names:
            ticket = self._tickets.get(name)
            if ticket is not None:
                self._gates.leave(name, ticket)
        self._tickets = {}
