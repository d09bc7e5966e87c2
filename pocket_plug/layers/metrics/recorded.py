"""Metrics of the durable runs that a store keeps. They are read when metrics are collected, but only every few seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pocket_plug.errors import is_fault
from pocket_plug.otel.reporting import silenced
from pocket_plug.primitives.failures import say_once
from pocket_plug.primitives.forking import new_lock
from pocket_plug.primitives.waiting import Running, drive
from pocket_plug.store.backend import Backend

from .counting import Attributes, graphs

if TYPE_CHECKING:
    from pocket_plug.graph.runs.figures import RunFigures, RunsWatch

FRESH = 10.0
"""Seconds for which the numbers are valid: all metrics of one collection are of one look, and two readers cost no more."""

PATIENCE = 0.5
"""Seconds that a collection waits for the store's event loop. All other metrics wait with it, and the loop may be blocked for
long: by a database that doesn't answer, by a function of the program, or by a `flush()` that waits for this collection."""


class RecordedRuns:
    """The durable runs of one stack, read below the layer that publishes them, so that these reads aren't counted."""

    def __init__(self, inner: Backend, durable: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self._inner, self._clock = inner, clock
        self.place = repr(durable)
        """Equal for two stores of one process that keep the same runs."""
        self._lock = new_lock()
        self._home: asyncio.AbstractEventLoop | None = None
        self._is_open = False
        self._watch: RunsWatch | None = None
        self._found: RunFigures | None = None
        self._under_way: Running[RunFigures] | None = None
        """The look that takes longer than a collection waits."""
        self._look_next = 0.0

    def open(self) -> None:
        """Read the runs from now on."""
        self._home = asyncio.get_running_loop() if self._inner.needs_loop else None
        self._is_open, self._under_way = True, None

    def close(self) -> None:
        """Don't read them any more."""
        if (under_way := self._under_way) is not None:
            under_way.cancel()
        self._is_open, self._home, self._found, self._under_way = False, None, None, None

    def figures(self) -> RunFigures | None:
        """The numbers as of now, or of a few seconds ago; None if they can't be read, which is reported once.

        If the look takes long, the numbers are those of the last one, and a later collection gets the new ones.
        """
        if not self._lock.acquire(blocking=False):
            return self._found  # another thread is reading them
        try:
            if self._is_open and self._clock() >= self._look_next and self._may_look():
                self._look()
        except BaseException as error:  # a failing store must not end the collection of the other figures
            if not is_fault(error):
                raise
            self._found, self._under_way, self._look_next = None, None, self._clock() + FRESH
            say_once("counting the durable runs of a store", error)
        finally:
            self._lock.release()
        return self._found if self._is_open else None

    def _may_look(self) -> bool:
        """False in the store's event loop's own thread, which would wait for itself: then a later collection reads them."""
        return self._home is None or asyncio._get_running_loop() is not self._home

    def _look(self) -> None:
        if self._home is None:
            self._found = drive(self._in_silence())
        else:
            running = self._under_way
            if running is None or not self._home.is_running():
                running = self._under_way = Running(self._home, self._in_silence())  # a SyncError if the loop has ended
                running.start()
            if not running.waiter.block(PATIENCE):
                self._look_next = self._clock() + PATIENCE  # the other figures of this collection don't wait again
                return
            self._under_way = None
            try:
                self._found = running.waiter.outcome()
            except asyncio.CancelledError:  # the store was closed meanwhile
                self._found = None
        self._look_next = self._clock() + FRESH

    async def _in_silence(self) -> RunFigures:
        from pocket_plug.graph.runs.figures import RunsWatch  # not before metrics are collected

        if self._watch is None:
            self._watch = RunsWatch(self._inner)
        with silenced():
            return await self._watch.look()


def recorded(found: RunFigures) -> Iterable[tuple[float, Attributes]]:
    """For `pocket_plug.run.recorded`."""
    for (graph, state), number in found.runs.items():
        yield number, {"pocket_plug.graph.name": graphs[graph], "pocket_plug.run.state": state}


def questions(found: RunFigures) -> Iterable[tuple[float, Attributes]]:
    """For `pocket_plug.run.question.age`."""
    for graph, age in found.questions.items():
        yield age, {"pocket_plug.graph.name": graphs[graph]}


def stalled(found: RunFigures) -> Iterable[tuple[float, Attributes]]:
    """For `pocket_plug.run.stalled.age`."""
    for graph, age in found.stalled.items():
        yield age, {"pocket_plug.graph.name": graphs[graph]}
