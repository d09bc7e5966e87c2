"""Nodes that wait for a time. A durable run is suspended there; meanwhile no process is needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any, Generic

from typing_extensions import TypeVar

from pocket_plug.errors import ConfigError
from pocket_plug.graph.nodes.node import Node
from pocket_plug.graph.nodes.options import Options
from pocket_plug.graph.observing.views import NodeCall
from pocket_plug.graph.planning.step import Step, make_step
from pocket_plug.graph.running.protocols import Running
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.redaction import found
from pocket_plug.primitives.values import Value
from pocket_plug.primitives.waiting import pause

X = TypeVar("X", default=Any)

_DURATION = "Sleep: the duration"
_1973 = 94_694_400
"""The year's first second, in epoch seconds."""


class Sleep(Node[X, X], Generic[X]):
    """A node that waits, and then returns its input.

    `Sleep("1h")` waits that long. `Sleep(until=…)` waits until a moment: a `datetime` with its time zone, or epoch seconds. Both
    may be functions that get the input: `Sleep(lambda tries: 2**tries)`. A durable run is suspended meanwhile: it raises
    RunSuspendedError with `wake_at`, and then a worker resumes it, or `graph.resume(run_id)`. Any other run waits in its process.

    >>> from pocket_plug import Graph
    >>> Graph(Sleep[str]("10ms")).run_sync("done")
    'done'

    Raises ConfigError for an invalid duration or moment, and if none or both are given.
    """

    _takes = frozenset({"name", "trace"})

    def __init__(
        self,
        duration: Duration | Callable[[X], Duration] | None = None,
        /,
        *,
        until: datetime | float | Callable[[X], datetime | float] | None = None,
        name: str = "sleep",
    ) -> None:
        if (duration is None) == (until is None):
            raise ConfigError("Sleep: give either a duration, such as Sleep('1h'), or until=…")
        self.duration = duration if duration is None or callable(duration) else seconds(duration, _DURATION)
        self.until = until
        if until is not None and not callable(until):
            _moment(until)
        self._options = Options().changed(self._takes, name=name)


def _moment(given: object) -> float:
    """Epoch seconds of a moment. Raises ConfigError for anything but a datetime with a time zone, or a finite number.

    Also for a number that is too small for a moment: it is meant as a duration, and the sleep would be over at once. With 0 both
    is over at once.
    """
    if isinstance(given, datetime) and given.tzinfo is not None:
        return given.timestamp()
    if isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given):
        if 0 < given < _1973:
            raise ConfigError(
                f"Sleep: until can't be {given!r}: as epoch seconds that is before 1973. To wait for some seconds, give a "
                "duration: Sleep(60), or Sleep(lambda input: 60)"
            )
        return float(given)
    raise ConfigError(f"Sleep: until can't be {found(given)}; give a datetime with its time zone, or epoch seconds")


class SleepStep(Step):
    """The step of a `Sleep`."""

    node: Sleep[Any]

    @property
    def returns_input(self) -> bool:
        return self.prep is None and self.post is None  # a subclass may have them

    async def perform(self, run: Running, call: NodeCall | None, value: object) -> Value:
        node = self.node

        def until() -> float:
            if node.duration is not None:
                given = node.duration(value) if callable(node.duration) else node.duration
                return run.stack.clock() + seconds(given, _DURATION, or_zero=True)
            return _moment(node.until(value) if callable(node.until) else node.until)

        if run.ledger is not None:
            await run.ledger.sleep(run, until)
        else:
            await pause(max(until() - run.stack.clock(), 0))
        return value


make_step.register(Sleep, SleepStep)
