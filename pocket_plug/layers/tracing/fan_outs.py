"""What is known of the items of a fan-out, and which of them have spans: those that matter, and never too many."""

from __future__ import annotations

import math
import time
from collections import Counter
from heapq import heappush, heappushpop
from typing import Final, Protocol

from opentelemetry import context as otel_context

from pocket_plug.hookspecs import NodeCall, Run

from .spans import Attributes

SAMPLE = 100
"""So many items have spans from the start; of those after, fewer and fewer do."""

PER_OCTAVE = 10
"""So many more whenever their number doubles."""

SLOWEST = 20
"""So many of the slowest have spans."""

MOST = 100
"""So many that failed have spans, and so many that were tried again, besides those of the sample."""

FAN_OUT: Final = otel_context.create_key("pocket_plug.fan_out")

clock = time.time_ns
"""Of items, and of the spans that stand for them."""


class Durations:
    """A sketch of any number of durations, in nanoseconds: the least and the greatest are exact, quantiles within 1.1 %.

    >>> durations = Durations()
    >>> for took in range(1, 1001):
    ...     durations.add(took * 1_000_000)
    >>> durations.least, durations.greatest, round(durations.quantile(0.5) / 1e6), round(durations.quantile(0.95) / 1e6)
    (1000000, 1000000000, 503, 943)
    """

    PER_OCTAVE = 32
    """Each is counted in one of so many steps from a value to its double."""

    def __init__(self) -> None:
        self.number, self.least, self.greatest = 0, 0, 0
        self._steps: Counter[int] = Counter()

    def add(self, took: int) -> None:
        """Count one more."""
        self.least = took if not self.number else min(self.least, took)
        self.greatest = max(self.greatest, took)
        self.number += 1
        self._steps[round(math.log2(took) * self.PER_OCTAVE) if took > 0 else -1] += 1

    def quantile(self, share: float) -> float:
        """What that share of them, of 1, doesn't exceed. There must be one at least."""
        left, step = math.ceil(share * self.number), 0
        for step in sorted(self._steps):
            left -= self._steps[step]
            if left <= 0:
                break
        found: float = 2.0 ** (step / self.PER_OCTAVE)
        return min(max(found, self.least), self.greatest)


class Held(Protocol):
    """An item that has no span so far."""

    def write(self) -> None:
        """It gets one."""
        ...

    def let_go(self) -> None:
        """It is none of the slowest any more."""
        ...


class FanOut:
    """One visit of a fan-out, in the context of its items."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.chooses = False
        """Is its span recorded? Else there is nothing to choose."""
        self.hidden = False
        """Is it itself an item without a span?"""
        self.untraced = False
        """Has it items that are not to be traced? Then nothing is said of them."""
        self.began = 0
        self.failed, self.retried = 0, 0
        self.suppressed, self.suppressed_failed = 0, 0
        self._room = {"failed": MOST, "retried": MOST}
        self._durations = Durations()
        self._slowest: list[tuple[int, int, Held | None]] = []  # a heap; None: it has its span already

    def begin(self) -> int:
        """One more item; gives its number, from 0."""
        self.began += 1
        return self.began - 1

    def is_sampled(self, index: int) -> bool:
        """Has this item a span, however it goes?"""
        if index < SAMPLE:
            return True
        octave = (index // SAMPLE).bit_length() - 1
        return index % max((SAMPLE << octave) // PER_OCTAVE, 1) == 0

    def count(self, call: NodeCall, took: int) -> None:
        """An item has ended."""
        self._durations.add(took)
        self.failed += call.outcome == "failed"
        self.retried += call.retries > 0

    def earns_span(self, call: NodeCall) -> bool:
        """Is how it ended worth a span, and is there room for one more of that kind?"""
        for kind, is_so in (("failed", call.outcome == "failed"), ("retried", call.retries > 0)):
            if is_so and self._room[kind]:
                self._room[kind] -= 1
                return True
        return False

    def compare(self, index: int, took: int, item: Held | None) -> None:
        """Is it one of the slowest so far? An item that has no span is held until it is not, or until the end."""
        if len(self._slowest) < SLOWEST:
            heappush(self._slowest, (took, index, item))
            return
        displaced = heappushpop(self._slowest, (took, index, item))[2]
        if displaced is not None:
            displaced.let_go()

    def close(self) -> Attributes:
        """Write the slowest, and give what is said of all."""
        for _, _, item in sorted(self._slowest, key=lambda each: each[1]):
            if item is not None:
                item.write()
        self._slowest.clear()
        durations = self._durations
        if self.untraced or not self.chooses:
            return {}
        said: Attributes = {
            "pocket_plug.fan_out.items": durations.number,
            "pocket_plug.fan_out.failed": self.failed,
            "pocket_plug.fan_out.retried": self.retried,
            "pocket_plug.fan_out.suppressed": self.suppressed,
        }
        if self.suppressed_failed:
            said["pocket_plug.fan_out.suppressed_failed"] = self.suppressed_failed
        if durations.number:
            said |= {
                "pocket_plug.fan_out.duration.min": durations.least / 1e9,
                "pocket_plug.fan_out.duration.median": durations.quantile(0.5) / 1e9,
                "pocket_plug.fan_out.duration.p95": durations.quantile(0.95) / 1e9,
                "pocket_plug.fan_out.duration.max": durations.greatest / 1e9,
            }
        return said
