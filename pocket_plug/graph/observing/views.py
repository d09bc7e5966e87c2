"""What is seen of a run from outside: the views of a run, a node and a phase, and the observers that are handed them."""

# What makes a NodeCall, and notes its times, is a friend of it.
# pyright: reportPrivateUsage=false
from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from pocket_plug.primitives.values import SpanAttributes, Value

if TYPE_CHECKING:
    from .shape import Shape

RunOutcome = Literal["success", "failure", "timeout", "cancelled", "suspended"]
NodeOutcome = Literal["ok", "fallback", "failed", "cancelled", "suspended"]
Phase = Literal["prep", "exec", "fallback", "post"]
SILENT: Final = object()
"""What a run's context manager gives from `__enter__` where its observer has nothing more to say about this run: a trace,
say, that isn't sampled. The run then goes on as if the observer had no other part; it costs nothing any more."""

_new: Any = object.__new__

Carrier = str | Mapping[str, str]
"""A trace context from elsewhere: W3C's `traceparent` text, or what `pocket_plug.propagation.inject` gave."""


# The views of a run have no slots: what is None until later is the class's until then, which saves setting it.
@dataclass(eq=False)
class Run:
    """One run of a graph, as plugins see it. Read it, don't write it."""

    id: str
    graph: str
    parent: Run | None = None
    depth: int = 0
    traceparent: Mapping[str, str] | None = field(default=None, repr=False, init=False)
    """The trace context that `run(…, traceparent=…)` was given; there once the run is entered."""
    resumed: bool = field(default=False, init=False)
    """Does it go on with what an earlier execution has left? Then `id` is that one's, too: a durable run's own."""
    carrier: dict[str, str] | None = field(default=None, repr=False, init=False)
    """Of a durable run: the trace context that its checkpoint keeps. Tracing finds the former execution's and puts its own."""
    input: Value = field(default=None, repr=False)
    shape: Shape | None = field(default=None, repr=False)
    """The graph's nodes and edges, and their version. Never None in a run; a test of a plugin may leave it out."""
    output: Value = field(default=None, repr=False, init=False)
    steps: int = field(default=0, init=False)
    """How many nodes it has entered; a nested graph counts its own, the budget is shared."""
    outcome: RunOutcome | None = field(default=None, init=False)
    """None while it goes on."""
    error: BaseException | None = field(default=None, repr=False, init=False)


Time = float | None
Times = tuple[float, Time, Time, float]
"""When the node was begun, when prep and when exec were over, and when all was; None for what was left out."""


@dataclass(eq=False)
class NodeCall:
    """One visit of a node. Read it, don't write it. What happens later is None until then."""

    run: Run
    name: str
    type: Literal["node", "graph", "fan_out"]
    visit: int
    """1 on the node's first visit in this run."""
    trace: bool = True
    """As the node was declared: `trace=False` leaves out its spans."""
    guarded: bool = False
    """Does it have a retry, a time-out or a fallback, so that its attempts are worth telling apart?"""
    phases: tuple[Phase, ...] = ()
    """The phases that it overrides."""
    input: Value = field(default=None, repr=False)
    is_item: bool = False
    """Is it one of the items of a fan-out?"""
    position: int | None = None
    """Which one, from 0."""
    attributes: SpanAttributes = field(default_factory=dict[str, "str | bool | int | float"], repr=False)
    """What its span says of the node itself: where its code stands (`code.*`), as far as that is known, and what it was
    declared with, by `trace={…}`."""
    output: Value = field(default=None, repr=False, init=False)
    action: str | None = field(default=None, init=False)
    next: str | None = field(default=None, init=False)
    """The node that the action leads to; None where the run ends."""
    attempts: int = field(default=0, init=False)
    retries: int = field(default=0, init=False)
    """How many attempts failed and were followed by another one."""
    outcome: NodeOutcome | None = field(default=None, init=False)
    error: BaseException | None = field(default=None, repr=False, init=False)
    _durations: dict[str, float] | None = field(default=None, repr=False, init=False)
    _times: Times | None = field(default=None, repr=False, init=False)

    @property
    def durations(self) -> dict[str, float]:
        """Seconds by phase, of all attempts together."""
        durations = self._durations = {} if self._durations is None else self._durations
        if self._times is not None:
            (began, prepped, execed, ended), self._times = self._times, None
            if "prep" in self.phases and (prepped is not None or execed is None):
                durations["prep"] = durations.get("prep", 0.0) + (ended if prepped is None else prepped) - began
            if "exec" in self.phases and prepped is not None and not self.guarded:  # else each attempt is measured
                durations["exec"] = durations.get("exec", 0.0) + (ended if execed is None else execed) - prepped
            if "post" in self.phases and execed is not None:
                durations["post"] = durations.get("post", 0.0) + ended - execed
        return durations


def note_times(call: NodeCall, began: float, prepped: Time, execed: Time) -> None:
    """Note when the node was begun, when prep and when exec were over, and when all is: now.

    What the phases took is summed up when somebody asks: to do so takes as long as to make the NodeCall.
    """
    if call._times is not None:
        _ = call.durations
    call._times = began, prepped, execed, time.perf_counter()
    if prepped is not None and not call.guarded and "exec" in call.phases:
        call.attempts += 1


Facts = tuple[str, Literal["node", "graph", "fan_out"], bool, bool, tuple[Phase, ...], bool, SpanAttributes]
"""What all visits of a node have in common: name, type, trace, guarded, phases, is_item and attributes."""


def new_call(run: Run, facts: Facts, visit: int, input: Value, position: int | None) -> NodeCall:
    """`NodeCall`, in half the time that its `__init__` takes: a watched run makes one at each visit."""
    call: NodeCall = _new(NodeCall)
    call.name, call.type, call.trace, call.guarded, call.phases, call.is_item, call.attributes = facts
    call.run, call.visit, call.input, call.position = run, visit, input, position
    call.attempts, call.outcome, call._times = 0, None, None  # read in any case, and slow where they are the class's
    return call


@dataclass(eq=False)
class PhaseCall:
    """One attempt at a phase. Read it, don't write it."""

    node: NodeCall
    phase: Phase
    attempt: int = 1
    timeout: float | None = None
    """Seconds, for `exec` only."""
    will_retry: bool = False
    """Decided before the phase's context manager exits with the error."""
    delay: float | None = None
    """Seconds until the next attempt, where there will be one."""
    input: Value = field(default=None, repr=False)
    """What `prep` and `post` have for the node's input, and `exec` and `fallback` for what prep gave."""
    output: Value = field(default=None, repr=False, init=False)


@dataclass(frozen=True, slots=True)
class RunNotice:
    """What has become of a durable run, as soon as that is recorded; not of what an execution shows by itself."""

    what: Literal["submitted", "stalled", "stuck", "failed", "cancelled"]
    """It was submitted; it was found stalled, and is taken over; it was given up after too many executions without progress, so
    it has failed; it has failed; it was cancelled by an operator."""
    run_id: str
    graph: str
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Of a stalled run the process that was at it, `host`, `pid` and `since` (epoch seconds); of a stuck one `tries`; of a failed
    one `error_type`, and `node`, `visit`, `item` and `attempts` as far as they are known."""


def _ignore(what: str, error: BaseException) -> None:
    """An observer that no Pocket has asked for belongs to no plugin."""


@dataclass(frozen=True, slots=True)
class Observer:
    """How a plugin watches one run. A part left None costs nothing.

    `run`, `node` and `phase` give a context manager (or None) that is entered before and left after, in the context in
    which the user's code runs, so what they set in context variables is seen there. They are synchronous; what
    `__exit__` returns is ignored; what `__enter__` returns, too, but for `SILENT` from that of `run`. `event` tells of what
    has no duration: "retry", "fallback", "timeout", "conflict", "resume", "clean_up_failed".

    Whatever an observer raises is caught and said once; the run goes on as if it were not there.
    """

    run: Callable[[Run], AbstractContextManager[Any] | None] | None = None
    node: Callable[[NodeCall], AbstractContextManager[Any] | None] | None = None
    phase: Callable[[PhaseCall], AbstractContextManager[Any] | None] | None = None
    event: Callable[[str, NodeCall, Mapping[str, Any]], None] | None = None
    pace: Callable[[], Awaitable[None]] | None = None
    """Awaited before each node and each item where an event loop drives the run, which waits there until it returns. For an
    observer that hands on what it sees to somebody slower: it must not wait while `contention.holds_gates()`."""
    outermost: bool = False
    """True for tracing, so that what the others log inside carries its ids."""
    guarded_only: bool = False
    """True where `phase` has something to say for nodes with a retry, time-out or fallback only: the others are spared it."""
    failures_only: bool = False
    """True where `node` has something to say of visits that fail only, and `event` of nodes with a retry, a time-out or a
    fallback only. Where all observers of a run are so, other visits are spared what watching costs; `node` is then entered
    when the visit has failed, and of its phases nothing is known: no durations, and `attempts` is 0."""
    report: Callable[[str, BaseException], None] = field(default=_ignore, init=False, repr=False, compare=False)
    """Puts a failure of one of its parts down to its plugin; set by the Pocket that asked the plugin."""
