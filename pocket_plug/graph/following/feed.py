"""The bounded buffer between a run and its reader: the run's tasks and threads write it, a task reads it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from pocket_plug.graph.running.protocols import STEPS_PER_LOOK
from pocket_plug.primitives.failures import log_failure
from pocket_plug.primitives.forking import new_rlock
from pocket_plug.primitives.waiting import Waiter, wake

from .events import RunEvent

AnyEvent = RunEvent[Any]


class Feed:
    """The events that are not read yet. Written in the run's event loop and in worker threads, read in any event loop.

    Adding an event never waits. A writer that may wait calls `room` or `block`, which wait while there are `size` events or more.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.is_closed = False
        """Has the reader stopped reading?"""
        self.is_over = False
        """Has the run ended?"""
        self._lock = new_rlock()
        self._events: OrderedDict[object, AnyEvent] = OrderedDict()
        self._keys = itertools.count()
        self._readers: dict[Waiter[None], None] = {}
        self._writers: dict[Waiter[None], None] = {}
        self._taken = 0
        self._error: BaseException | None = None

    @property
    def is_full(self) -> bool:
        """Are there `size` events or more, and a reader?"""
        return len(self._events) >= self.size and not self.is_closed

    # ------------------------------------------------------------ the run's side
    def add(self, event: AnyEvent, instead_of: object = None) -> None:
        """Add an event. With `instead_of`, it replaces an unread event that was added with an equal `instead_of`."""
        with self._lock:
            if self.is_closed:
                return
            if instead_of is not None:
                self._events.pop(instead_of, None)
            self._events[next(self._keys) if instead_of is None else instead_of] = event
            waiting = first(self._readers)
        wake(waiting)

    def end(self, error: BaseException | None = None) -> None:
        """Called when the run has ended, with its error if it has failed."""
        with self._lock:
            self.is_over, self._error = True, error
            waiting = first(self._readers)
        wake(waiting)
        if self.is_closed:
            self._report()

    async def room(self) -> None:
        """Wait until there are fewer than `size` events, or the reader waits for one, or has stopped reading."""
        if (waiter := self._line_up(blocks=False)) is not None:
            try:
                await waiter
            finally:
                self._writers.pop(waiter, None)

    def block(self) -> None:
        """`room` for a thread without an event loop."""
        if (waiter := self._line_up(blocks=True)) is not None:
            waiter.block()

    def _line_up(self, blocks: bool) -> Waiter[None] | None:
        """The waiter to wait for; None if there is room."""
        with self._lock:
            if not self.is_full:
                return None
            waiter = Waiter[None](blocks).give(None)
            self._writers[waiter] = None
            return waiter

    # ------------------------------------------------------------ the reader's side
    async def take(self) -> AnyEvent | None:
        """The next event; None at the end. After all events it raises, once, the error that has ended the run."""
        self._taken += 1
        if not self._taken % STEPS_PER_LOOK:
            await asyncio.sleep(0)  # if events never run out, other tasks must have a turn nevertheless
        while not (self._events or self.is_over or self.is_closed):
            await self._next()
        with self._lock:
            event = self._events.popitem(last=False)[1] if self._events else None
            waiting = first(self._writers, self.size - len(self._events))
        wake(waiting)
        if event is None and (error := self._error) is not None:
            self._error = None
            raise error
        return event

    async def _next(self) -> None:
        """Wait for an event. Writers that wait for the reader are woken, since the buffer is empty."""
        with self._lock:
            if self._events or self.is_over or self.is_closed:
                return
            waiter = Waiter[None]().give(None)
            self._readers[waiter] = None
            waiting = first(self._writers)
        wake(waiting)
        try:
            await waiter
        finally:
            self._readers.pop(waiter, None)

    def close(self) -> None:
        """Called when the reader stops reading: events are dropped, and no writer waits any more. Can be called again."""
        with self._lock:
            self.is_closed = True
            self._events.clear()
            waiting = first(self._writers)
        wake(waiting)
        self._report()

    def _report(self) -> None:
        """Log the error of a run if nobody reads it any more."""
        error, self._error = self._error, None
        if isinstance(error, Exception):
            log_failure(logging.ERROR, "a run failed, and its stream has no reader any more", error)


def first(waiters: dict[Waiter[None], None], count: int | None = None) -> Sequence[Waiter[None]]:
    """Remove and return the waiters that have waited longest: `count` of them, or all."""
    if not waiters:
        return ()
    found = list(waiters)[: None if count is None else max(count, 0)]
    for waiter in found:
        del waiters[waiter]
    return found
