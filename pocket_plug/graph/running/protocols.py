"""The interfaces of a run, and of a durable run's ledger, for steps, visits and notes on errors. See `docs/architecture.md`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pocket_plug.errors import ConflictError
from pocket_plug.graph.observing.host import RunHost
from pocket_plug.graph.observing.views import NodeCall, Run
from pocket_plug.graph.observing.watching import Watchers
from pocket_plug.graph.planning.plan import Plan, PlannedGraph
from pocket_plug.graph.planning.step import Step, Visited, Visiting
from pocket_plug.primitives.values import Value
from pocket_plug.store.backend import Change
from pocket_plug.store.stack import Stack

Writing = Coroutine[Any, Any, object]
Travel = Callable[[object], Coroutine[Any, Any, Value]]
"""A function that takes a value through a run's graph."""
RecordedState = Literal["pending", "running", "suspended", "failed", "cancelled", "finished"]
"""The recorded state of a durable run. Whether a running one is stalled is not recorded: each observer finds it out."""
Commit = tuple[Sequence[Change], Mapping[str, int]]
"""The changes to write, and the versions that they expect."""

FREE_CONFLICTS = 3
"""How often a node is tried again at once after a conflict; after that it queues for the keys in conflict."""
LATE_CONFLICTS = 10
"""After so many conflicts `post` gets a turn at the backend, if that has turns: other writers, in other processes too, wait."""
MAX_CONFLICTS = 20
"""After so many conflicts the node fails with ConflictError."""

STEPS_PER_LOOK = 16
"""After so many steps a run that never suspends looks at the clock, to yield to the event loop."""

IN_PLACE, EXEC_IN_THREADS, ALL_IN_THREADS = 0, 1, 2
"""Where a run calls its `def` phases: all in its own thread, `exec` in a worker thread, or all in worker threads."""


@dataclass(frozen=True, slots=True)
class Asking:
    """A question that a node asks."""

    question: object
    answer_type: str
    """The name of the answer's type."""
    choices: list[Any] | None = None
    """The possible answers, if the type has only a few values."""
    timeout: float | None = None
    """Seconds after which the run continues without an answer."""


class Running(Protocol):
    """One run of one graph: the part of `Execution` that other modules use."""

    run: Run
    pocket: RunHost
    stack: Stack
    prefix: str
    ledger: Ledger | None
    """The ledger of a durable run; None for other runs."""
    loop: bool
    """Does an event loop drive the run?"""
    where: int
    """`IN_PLACE`, `EXEC_IN_THREADS` or `ALL_IN_THREADS`."""
    grace: float
    """Seconds that a hook may still take once the run was cancelled."""
    exits: Mapping[str, object]
    """The actions for which the graphs around this one have edges."""
    left_by: str
    """The action by which the run has ended."""
    attempts: int
    """How many attempts the last guarded node took that failed. Not set before a node has failed."""
    plan: Plan
    steps: int
    visits: dict[str, int] | None
    """How often the run has entered each node; None if it isn't counted."""
    began: int
    """The run's number, which graphs nested in it share."""
    watchers: Watchers
    """The observers of the run."""

    @property
    def outermost(self) -> Running:
        """The outermost run around this one, or itself. It counts the steps of all nested ones."""
        ...

    def visit_of(self, step: Step) -> int:
        """How often the run has entered a node."""
        ...

    def visit(self, step: Step, value: object, position: int | None = None) -> Visiting:
        """Take a value through a node, inside the run's observers; an item of a fan-out has a `position`."""
        ...

    def event(self, name: str, call: NodeCall | None, attributes: Mapping[str, object]) -> None:
        """Send an event to the run's observers."""
        ...

    async def to_its_end(self, writing: Writing) -> asyncio.CancelledError | None:
        """Await a write to its end once it has begun. A cancellation that comes meanwhile is returned."""
        ...

    async def yield_to_loop(self) -> bool:
        """Yield to the event loop if this run has kept it for too long."""
        ...

    async def nested(self, graph: PlannedGraph, value: object, exits: Mapping[str, Step] | None) -> Value:
        """Run a graph as a node of this one, and return its output. `exits` None: no action may lead out of it."""
        ...

    def beside(self, ledger: Ledger) -> Running:
        """The same run with another ledger, for an item of a fan-out."""
        ...


class Ledger(Protocol):
    """Records a durable run: called when the run begins, before each node, at each commit, and when the run ends."""

    @property
    def fence(self) -> Mapping[str, int]:
        """The versions that every write of the run expects. So it fails once the run was taken over or cancelled."""
        ...

    @property
    def age(self) -> float:
        """Seconds since the run began."""
        ...

    @property
    def in_worker(self) -> bool:
        """Does a worker execute the run?"""
        ...

    async def refence(self, conflict: ConflictError) -> bool:
        """After a conflict of such a write: does this execution still own the run? Then `fence` is updated, so try again."""
        ...

    async def claim(self, run: Running, value: object) -> Value:
        """Record this execution as the run's owner. Returns the result of a finished run, else MISSING."""
        ...

    async def hold(self, run: Running, travel: Travel, value: object) -> Value:
        """Take the value through the run's graph by `travel`. If that doesn't reach the end, record why."""
        ...

    async def begin(self, run: Running, value: object) -> Visited:
        """Where to begin: at the graph's start, or at the recorded position."""
        ...

    def stand_at(self, step: Step) -> None:
        """Called before each node. Sets the run's position."""
        ...

    async def pause(self, seconds: float) -> None:
        """Wait before the next attempt at an `exec`. If the run is to be released, raise the error that releases it."""
        ...

    def has_released(self, error: BaseException) -> bool:
        """Has `pause` raised this error?"""
        ...

    def report_resumed(self, run: Running, call: NodeCall) -> None:
        """Notify the observers, once, if the run resumes after an earlier execution."""
        ...

    async def commit(
        self, run: Running, step: Step, target: Step | None, output: object, commit: Commit | None
    ) -> asyncio.CancelledError | None:
        """Write a node's changes, with the next position. A cancellation that comes meanwhile is returned."""
        ...

    async def end(self, run: Running) -> asyncio.CancelledError | None:
        """Called after the last node's hooks. Records that the run has finished."""
        ...

    def unregister(self) -> None:
        """Called last, however the execution ended: the process doesn't list it as active any more."""
        ...

    async def close(self) -> None:
        """Called after a run that has finished."""
        ...

    def nested(self) -> Ledger:
        """The ledger for a graph that is nested in this one."""
        ...

    async def ask(self, run: Running, step: Step, made: Callable[[], Asking]) -> Value:
        """The answer to a question; MISSING once its timeout is over. Raises RunSuspendedError if there is none yet.

        `made` is called if it was not asked before.
        """
        ...

    async def sleep(self, run: Running, until: Callable[[], float]) -> None:
        """Return once the time has come; before, raise RunSuspendedError. `until` is called if the time is not recorded yet."""
        ...

    async def suspend(self, run: Running, waits: Sequence[Any]) -> None:
        """Record what the run's items wait for, and raise RunSuspendedError. ConflictError if one of them can continue by now."""
        ...

    def in_order(self, items: Iterable[Value]) -> Iterable[Value]:
        """The items of a fan-out, in an order that is the same in each process."""
        ...

    def item(self, run: Running, step: Step, item: object, position: int) -> Visiting:
        """Take one item of a fan-out through its node, with a record of its own."""
        ...

    def must_end(self, error: Exception) -> bool:
        """Does an item's error end the run even if errors are collected?"""
        ...

    def collected(self, error: Exception) -> Exception:
        """The error as an item's result: in a form that can be stored."""
        ...
