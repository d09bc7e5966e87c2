"""One computes a value, and the others that want it wait: threads, tasks and event loops of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection
from contextvars import ContextVar

from pocket_plug.errors import SyncError
from pocket_plug.primitives.forking import after_fork, new_rlock
from pocket_plug.primitives.values import Value
from pocket_plug.primitives.waiting import Waiter, may_block, wake


class Flight:
    """One call for one value: it computes the value, and other calls may wait for it, or it waits for another call."""

    __slots__ = ("error", "is_landed", "is_void", "loop", "thread", "value", "waiters", "waits_for")

    def __init__(self) -> None:
        self.value: Value = None
        self.error: Exception | None = None
        self.is_landed = False
        """Is there a value? If there is neither a value nor an error, the computation was cancelled."""
        self.is_void = False
        """Has it been invalidated? Then its result must not be kept."""
        self.waiters: list[Waiter[None]] = []
        self.waits_for: set[Flight] = set()
        """The call that it waits for; if it computes, the calls within its computation that wait."""
        self.loop = asyncio._get_running_loop()
        self.thread = threading.get_ident()

    @property
    def is_orphaned(self) -> bool:
        """Has the loop stopped that it is computed on? Then the computation may never continue."""
        return self.loop is not None and not self.loop.is_running()

    def needs(self, others: Collection[Flight]) -> bool:
        """Does it wait for one of these calls, directly or through others? Each call is looked at once only."""
        found = ahead = {self}
        while ahead and found.isdisjoint(others):
            ahead = {needed for each in ahead for needed in each.waits_for} - found
            found |= ahead
        return not found.isdisjoint(others)


_leading: ContextVar[tuple[Flight, ...]] = ContextVar("pocket_plug.cached", default=())
"""The computations that the current call is part of."""


_lock = new_rlock()  # one for all functions, since their calls may wait for each other in a circle


class Flights:
    """The running computations of one function, by the names of their keys.

    A call may be interrupted (Ctrl-C) between any two steps. So `_end` can be called again.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, Flight] = {}
        after_fork(self._forget_others)

    def _forget_others(self) -> None:
        """In a forked child: these computations run in the parent."""
        self._by_name = {}

    async def once(self, name: str, compute: Callable[[Flight], Awaitable[Value]]) -> Value:
        """The result of `compute`, which one caller calls. Raises SyncError if a call would wait for itself."""
        around = _leading.get()
        while True:
            flight = mine = Flight()
            try:
                waiter = self._join(name, mine, around)
                if waiter is None:
                    return await _computed(mine, compute, around)
                flight, wakes = waiter
                await wakes
            finally:
                try:
                    self._end(name, mine, around)
                except BaseException:
                    self._end(name, mine, around)
                    raise
            if flight.error is not None:
                raise flight.error
            if flight.is_landed:
                return flight.value

    def _join(self, name: str, mine: Flight, around: tuple[Flight, ...]) -> tuple[Flight, Waiter[None]] | None:
        """The running computation, and a waiter that its end wakes; None: the caller has to compute."""
        with _lock:
            flight = self._by_name.setdefault(name, mine)
            if flight.is_orphaned:
                mine.waiters = flight.waiters  # they try again when this one ends
                flight = self._by_name[name] = mine
            if flight is mine:
                return None
            if flight.needs(around) or (may_block() and flight.thread == threading.get_ident()):
                raise SyncError(
                    f"{name!r} can't be computed: the cached function that computes it needs {name!r} itself"
                )
            waiter = Waiter[None]()
            mine.waits_for.add(flight)
            for each in around:
                each.waits_for.add(mine)
            flight.waiters.append(waiter)
            return flight, waiter

    def _end(self, name: str, mine: Flight, around: tuple[Flight, ...]) -> None:
        with _lock:
            if self._by_name.get(name) is mine:
                del self._by_name[name]
            for each in around:
                each.waits_for.discard(mine)
        wake(waiter.give(None) for waiter in mine.waiters)

    def invalidate(self, name: str) -> None:
        """Let the result of a running computation not be kept; new callers don't wait for it."""
        with _lock:
            flight = self._by_name.pop(name, None)
            if flight is not None:
                flight.is_void = True


async def _computed(flight: Flight, compute: Callable[[Flight], Awaitable[Value]], around: tuple[Flight, ...]) -> Value:
    _leading.set((*around, flight))
    try:
        flight.value = await compute(flight)
        flight.is_landed = True
        return flight.value
    except Exception as error:
        flight.error = error
        raise
    finally:
        _leading.set(around)
