"""Time under a test's control: a clock that only the test advances, and an event loop on which sleeping takes no real time.

On that loop, `asyncio.sleep`, `asyncio.timeout` and `call_later` end at once when nothing else can run.
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
    """A clock for a Store's `clock`: epoch seconds that change only by `advance`.

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
        """Seconds since the start. Kept separately, since floats of epoch seconds are too coarse for small steps."""

    def __call__(self) -> float:
        return self.start + self.elapsed

    def advance(self, seconds: float) -> None:
        """Advance by some seconds. Raises ValueError for a negative number: a deadline that has passed must stay passed."""
        if seconds < 0:
            raise ValueError(f"a clock can't be advanced by {seconds} seconds")
        self.elapsed += seconds


def run_virtual(main: Coroutine[object, object, T], clock: FakeClock | None = None) -> T:
    """`asyncio.run` in virtual time, which `clock` shows: when no task can run, time jumps to the next timer.

    Worker threads don't stop time: while one works, time jumps to the next timer; without a timer, the loop waits for the
    thread. So a test of a timeout is exact, and a test of a thread that ends in time must have no other timer.

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
    """A selector that advances the clock when the loop would wait for a timer."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout else timeout)
        if timeout and not ready:
            self._clock.advance(timeout)
            if (now := self._clock.elapsed) + 1e-9 == now:
                # the loop runs timers that are due within a nanosecond, which a float can't add after half a year
                self._clock.elapsed = math.nextafter(now, math.inf)
        return ready
