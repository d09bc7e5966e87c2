"""Time under a test's control: a clock that moves when the test moves it, and an event loop on which sleeping takes no time.

`asyncio.sleep`, `asyncio.timeout` and `call_later` jump to their end as soon as there is nothing else to do.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import TypeVar

from pocket_plug.primitives.signals import run_loop

T = TypeVar("T")


class FakeClock:
    """Epoch seconds that stand still until `advance` moves them. What a Store takes as its `clock`.

    >>> from pocket_plug import SyncStore
    >>> clock = FakeClock()
    >>> store = SyncStore(clock=clock)
    >>> store.set("guest", "Alice", ttl=60)
    >>> clock.advance(60)
    >>> store.has("guest")
    False
    """

    def __init__(self, start: float = 1_000_000_000.0) -> None:
        self.start = start
        self.elapsed = 0.0
        """Seconds since the start; kept apart, since epoch seconds are too coarse to add small steps to."""

    def __call__(self) -> float:
        return self.start + self.elapsed

    def advance(self, seconds: float) -> None:
        """Move on. Raises ValueError for a step back: a deadline that has passed once must stay passed."""
        if seconds < 0:
            raise ValueError(f"a clock can't be advanced by {seconds} seconds")
        self.elapsed += seconds


def run_virtual(main: Coroutine[object, object, T], clock: FakeClock | None = None) -> T:
    """`asyncio.run` in virtual time, which `clock` shows: what waits for a time is woken when nothing else can go on.

    Worker threads don't count as something that goes on: while one works, time jumps to the next timer, and where there
    is none it is waited for. So a test of a time-out is exact, and one of a thread that is in time has no other timer.

    >>> clock = FakeClock()
    >>> run_virtual(asyncio.sleep(3600, "done"), clock)
    'done'
    >>> clock.elapsed
    3600.0
    """
    owned = FakeClock() if clock is None else clock
    return run_loop(main, lambda: _VirtualLoop(owned))


class _VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is a FakeClock's."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        super().__init__(_Jumping(clock))

    def time(self) -> float:
        return self._clock.elapsed


class _Jumping(selectors.DefaultSelector):
    """Where the loop would wait for a timer, its time is moved there instead."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout else timeout)
        if timeout and not ready:
            self._clock.advance(timeout)
            if (now := self._clock.elapsed) + 1e-9 == now:
                # the loop takes timers that are due within a nanosecond, which is nothing any more after half a year
                self._clock.elapsed = math.nextafter(now, math.inf)
        return ready
