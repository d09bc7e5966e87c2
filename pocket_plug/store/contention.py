"""How callers share a key that several want to change at once: they combine their updates, or wait in line at a gate.

Retrying freely is quadratic: 800 writers of one key would make 320,000 tries. Plain writes (`set`) never wait in line. But an
update that has lost to plain writes of this process a few times gets priority: they wait until it is done. Writes of other
processes wait if the backend has turns; if it has none, and for nodes, there are pauses between the tries.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from pocket_plug.errors import CodecError, ConflictError, StoreError, SyncError, WriteSizeError
from pocket_plug.primitives.forking import after_fork, new_rlock
from pocket_plug.primitives.waiting import Waiter, blocked_loop, pause, wake

from .backend import Backend, Change, Entry, Put

Step = Callable[[Entry | None], tuple[Sequence[Change], Any]]
"""What an update does: takes the entry; returns the changes, at most one of the entry's key, and the caller's answer. It may be
called several times."""

FREE_TRIES = 3
"""Tries before a caller waits for others. Over a network it takes a turn after the first: a second try would wait for the
turns of others, and lose."""
TRIES = 20

FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.1
"""Upper bounds of the pauses, in seconds: after the first lost tries, and after many."""
PRIORITY_WAIT = 1.0
"""Seconds that a plain write waits, at most, for an update with priority. Priority is for fairness; no promise depends on it."""


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
        self._lock = new_rlock()  # reentrant: garbage collection may close a caller's coroutine while this is held
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


class _Priority:
    """The time in which one update has priority: plain writes of its keys wait for its end."""

    def __init__(self) -> None:
        self._loop = asyncio._get_running_loop()
        self.is_over = False
        self._waiting: list[Waiter[None]] = []

    def end(self) -> None:
        """Let those that wait continue. Called once it `is_over`."""
        wake(waiter.give(None) for waiter in self._waiting)

    async def ended(self, in_place: bool) -> None:
        if blocked_loop() is not None and blocked_loop() is self._loop:
            return  # the update can't continue before this call is over
        waiter: Waiter[None] = Waiter(blocks=in_place)
        self._waiting.append(waiter)
        if self.is_over:
            return
        if waiter.loop is None:
            waiter.block(PRIORITY_WAIT)
            return
        timer = waiter.loop.call_later(PRIORITY_WAIT, wake, [waiter.give(None)])
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
        self._lock = new_rlock()  # reentrant: garbage collection may close a caller's coroutine while this is held
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
        """Wait until nobody has priority for these names, `PRIORITY_WAIT` at most; `in_place`: block, don't suspend."""
        mine = self.held_here()
        for name in names:
            turn = self._priorities.get(name)
            if turn is not None and turn.is_over:  # its end was interrupted
                self._end_priority(turn, frozenset())
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
