"""What observers see: the views of a run, of a visit of a node and of a phase; and `Observer` itself."""

# The functions that make a NodeCall and note its times set its private attributes.
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
"""`__enter__` of a run's context manager returns this if its observer needs no more of this run, such as a trace that isn't
sampled. The rest of the run then doesn't call the observer's other parts, and they cost nothing."""

_new: Any = object.__new__

Carrier = str | Mapping[str, str]
"""A trace context from elsewhere: W3C's `traceparent` text, or what `pocket_plug.propagation.inject` returned."""


# These views have no slots, so that a field that is None at first needn't be set: reading it finds the class's default.
@dataclass(eq=False)
class Run:
    """One run of a graph, as plugins see it. Read it, don't write it."""

    id: str
    graph: str
    parent: Run | None = None
    depth: int = 0
    traceparent: Mapping[str, str] | None = field(default=None, repr=False, init=False)
    """The trace context that was given as `run(…, traceparent=…)`. It is set when the run is entered."""
    resumed: bool = field(default=False, init=False)
    """Does the run continue an earlier execution? All executions of a durable run have the same `id`."""
    carrier: dict[str, str] | None = field(default=None, repr=False, init=False)
    """The trace context in a durable run's checkpoint. Tracing reads the former execution's, and replaces it by its own."""
    input: Value = field(default=None, repr=False)
    shape: Shape | None = field(default=None, repr=False)
    """The graph's nodes and edges, and their version. It is None only if a plugin's test leaves it out."""
    output: Value = field(default=None, repr=False, init=False)
    steps: int = field(default=0, init=False)
    """How many nodes the run has entered. A nested graph counts its own; `max_steps` limits the sum."""
    outcome: RunOutcome | None = field(default=None, init=False)
    """None until the run has ended."""
    error: BaseException | None = field(default=None, repr=False, init=False)


Time = float | None
Times = tuple[float, Time, Time, float]
"""When the node began, when prep ended, when exec ended, and when the node ended; None for a phase that was not reached."""


@dataclass(eq=False)
class NodeCall:
    """One visit of a node. Read it, don't write it. A field is None until its value is known."""

    run: Run
    name: str
    type: Literal["node", "graph", "fan_out"]
    visit: int
    """1 on the node's first visit in this run."""
    trace: bool = True
    """The node's option: with `trace=False` it has no spans."""
    guarded: bool = False
    """Does it have a retry, a timeout, a fallback or an executor, so that each attempt is reported?"""
    phases: tuple[Phase, ...] = ()
    """The phases that it overrides."""
    input: Value = field(default=None, repr=False)
    is_item: bool = False
    """Is it one of the items of a fan-out?"""
    position: int | None = None
    """The position of that item, from 0."""
    attributes: SpanAttributes = field(default_factory=dict[str, "str | bool | int | float"], repr=False)
    """Attributes for its span: the place of its code in the source (`code.*`), if that is known, and those of `trace={…}`."""
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
        """Seconds by phase; all attempts are added up."""
        durations = self._durations = {} if self._durations is None else self._durations
        if self._times is not None:
            (began, prepped, execed, ended), self._times = self._times, None
            if "prep" in self.phases and (prepped is not None or execed is None):
                durations["prep"] = durations.get("prep", 0.0) + (ended if prepped is None else prepped) - began
            # The attempts of a guarded node are measured one by one.
            if "exec" in self.phases and prepped is not None and not self.guarded:
                durations["exec"] = durations.get("exec", 0.0) + (ended if execed is None else execed) - prepped
            if "post" in self.phases and execed is not None:
                durations["post"] = durations.get("post", 0.0) + ended - execed
        return durations


def note_times(call: NodeCall, began: float, prepped: Time, execed: Time) -> None:
    """Note when the node began, when prep and exec ended, and that the node ends now.

    The durations are computed on request, since that takes as long as making the NodeCall.
    """
    if call._times is not None:
        _ = call.durations
    call._times = began, prepped, execed, time.perf_counter()
    if prepped is not None and not call.guarded and "exec" in call.phases:
        call.attempts += 1


Facts = tuple[str, Literal["node", "graph", "fan_out"], bool, bool, tuple[Phase, ...], bool, SpanAttributes]
"""The fields that are the same for all visits of a node: name, type, trace, guarded, phases, is_item and attributes."""


def new_call(run: Run, facts: Facts, visit: int, input: Value, position: int | None) -> NodeCall:
    """Make a `NodeCall` in half the time of its `__init__`: an observed run makes one at each visit."""
    call: NodeCall = _new(NodeCall)
    call.name, call.type, call.trace, call.guarded, call.phases, call.is_item, call.attributes = facts
    call.run, call.visit, call.input, call.position = run, visit, input, position
    call.attempts, call.outcome, call._times = 0, None, None  # always read, and slower if only the class has them
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
    """Does another attempt follow? It is set before the phase's context manager exits with the error."""
    delay: float | None = None
    """Seconds until the next attempt, if one follows."""
    input: Value = field(default=None, repr=False)
    """For `prep` and `post` the node's input; for `exec` and `fallback` the result of prep."""
    output: Value = field(default=None, repr=False, init=False)


@dataclass(frozen=True, slots=True)
class RunNotice:
    """An event of a durable run that its execution's own observers don't see, sent as soon as it is recorded."""

    what: Literal["submitted", "stalled", "stuck", "failed", "cancelled"]
    """`submitted`; `stalled`: it was found stalled, and is taken over; `stuck`: too many executions made no progress, so it has
    failed; `failed`; `cancelled`: by an operator."""
    run_id: str
    graph: str
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """For a stalled run, the process that executed it: `host`, `pid` and `since` (epoch seconds). For a stuck one `tries`. For a
    failed one `error_type`, and `node`, `visit`, `item` and `attempts` if they are known."""


def _ignore(what: str, error: BaseException) -> None:
    """The default of `Observer.report`, for an observer that was not made by a plugin of a Pocket."""


@dataclass(frozen=True, slots=True)
class Observer:
    """How a plugin observes one run. A part that is None costs nothing.

    `run`, `node` and `phase` return a context manager (or None), which is entered before the run, the visit or the phase, and
    left after it, in the context of the user's code: so the code sees context variables that they set. They are synchronous.
    The results of `__enter__` and `__exit__` are ignored, except `SILENT` from `__enter__` of `run`. `event` is called for
    events without a duration: "retry", "fallback", "timeout", "conflict", "question", "resume", "clean_up_failed".

    If an observer raises, the error is caught and reported once, and the run continues without it.
    """

    run: Callable[[Run], AbstractContextManager[Any] | None] | None = None
    node: Callable[[NodeCall], AbstractContextManager[Any] | None] | None = None
    phase: Callable[[PhaseCall], AbstractContextManager[Any] | None] | None = None
    event: Callable[[str, NodeCall, Mapping[str, Any]], None] | None = None
    pace: Callable[[], Awaitable[None]] | None = None
    """Awaited before each node and each item if an event loop drives the run; the run waits until it returns. For an observer
    that sends what it sees to a slower reader. It must not wait while `gates.holds_gates()`."""
    outermost: bool = False
    """True for tracing: it is entered first, so that what the other observers log has its ids."""
    guarded_only: bool = False
    """True if `phase` is only needed for guarded nodes; it is then not called for others."""
    failures_only: bool = False
    """True if `node` is only needed for visits that fail, and `event` only for guarded nodes. If this is true for all observers
    of a run, other visits don't pay for being observed. `node` is then entered after the visit has failed, and nothing is known
    of its phases: there are no durations, and `attempts` is 0."""
    report: Callable[[str, BaseException], None] = field(default=_ignore, init=False, repr=False, compare=False)
    """Reports an error of one of its parts as one of its plugin. The Pocket that asked the plugin sets it."""
