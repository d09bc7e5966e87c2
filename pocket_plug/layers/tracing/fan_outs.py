"""Counts the items of a fan-out, and chooses which of them have spans: the important ones, and never too many."""

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
"""The first so many items all have spans; of later items fewer and fewer do."""

PER_OCTAVE = 10
"""How many later items have spans each time that their number doubles."""

SLOWEST = 20
"""How many of the slowest items have spans."""

MOST = 100
"""How many failed items have spans, and how many that were tried again, besides those of the sample."""

FAN_OUT: Final = otel_context.create_key("pocket_plug.fan_out")

clock = time.time_ns
"""The clock for items and their spans."""


class Durations:
    """A sketch of any number of durations, in nanoseconds: the least and the greatest are exact, quantiles within 1.1 %.

    >>> durations = Durations()
    >>> for took in range(1, 1001):
    ...     durations.add(took * 1_000_000)
    >>> durations.least, durations.greatest, round(durations.quantile(0.5) / 1e6), round(durations.quantile(0.95) / 1e6)
    (1000000, 1000000000, 503, 943)
    """

    PER_OCTAVE = 32
    """How many steps there are from a value to its double; each duration is counted in one."""

    def __init__(self) -> None:
        self.number, self.least, self.greatest = 0, 0, 0
        self._steps: Counter[int] = Counter()

    def add(self, took: int) -> None:
        """Count one more duration."""
        self.least = took if not self.number else min(self.least, took)
        self.greatest = max(self.greatest, took)
        self.number += 1
        self._steps[round(math.log2(took) * self.PER_OCTAVE) if took > 0 else -1] += 1

    def quantile(self, share: float) -> float:
        """The duration that this share (0 to 1) of them doesn't exceed. There must be at least one."""
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
        """Make its span."""
        ...

    def release(self) -> None:
        """It isn't one of the slowest any more."""
        ...


class FanOut:
    """One visit of a fan-out, in the context of its items."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.chooses = False
        """Is the fan-out's span recorded? If not, no item has one."""
        self.hidden = False
        """Is this fan-out itself an item without a span?"""
        self.untraced = False
        """Has it items with `trace=False`? Then its span has no attributes about items."""
        self.began = 0
        self.failed, self.retried = 0, 0
        self.suppressed, self.suppressed_failed = 0, 0
        self._room = {"failed": MOST, "retried": MOST}
        self._durations = Durations()
        self._slowest: list[tuple[int, int, Held | None]] = []  # a heap; None for an item that has its span already

    def begin(self) -> int:
        """Count one more item; returns its number, from 0."""
        self.began += 1
        return self.began - 1

    def is_sampled(self, index: int) -> bool:
        """Does this item have a span in any case?"""
        if index < SAMPLE:
            return True
        octave = (index // SAMPLE).bit_length() - 1
        return index % max((SAMPLE << octave) // PER_OCTAVE, 1) == 0

    def count(self, call: NodeCall, took: int) -> None:
        """Count an item that has ended."""
        self._durations.add(took)
        self.failed += call.outcome == "failed"
        self.retried += call.retries > 0

    def earns_span(self, call: NodeCall) -> bool:
        """Has it failed or been tried again, and is there room for one more span of that kind?"""
        for kind, is_so in (("failed", call.outcome == "failed"), ("retried", call.retries > 0)):
            if is_so and self._room[kind]:
                self._room[kind] -= 1
                return True
        return False

    def compare(self, index: int, took: int, item: Held | None) -> None:
        """Keep an item while it is one of the slowest, at most until the end; if it has no span, it gets one then."""
        if len(self._slowest) < SLOWEST:
            heappush(self._slowest, (took, index, item))
            return
        displaced = heappushpop(self._slowest, (took, index, item))[2]
        if displaced is not None:
            displaced.release()

    def close(self) -> Attributes:
        """Write the spans of the slowest items, and return the attributes about all items."""
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
