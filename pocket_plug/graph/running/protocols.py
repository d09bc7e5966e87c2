"""What a run is for its steps, and what a durable one is kept in: all that steps, visits and errors' notes know of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pocket_plug.errors import ConflictError, RunSuspendedError
from pocket_plug.graph.observing.host import RunHost
from pocket_plug.graph.observing.views import NodeCall, Run, RunNotice
from pocket_plug.graph.observing.watching import Watchers
from pocket_plug.graph.planning.plan import Plan, PlannedGraph
from pocket_plug.graph.planning.step import Step, Visited, Visiting
from pocket_plug.primitives.values import Value
from pocket_plug.store.backend import Change
from pocket_plug.store.stack import Stack

Writing = Coroutine[Any, Any, object]
Travel = Callable[[object], Coroutine[Any, Any, Value]]
"""Takes a value through a run's graph."""
Commit = tuple[Sequence[Change], Mapping[str, int]]
"""What to write, and the versions that it expects."""

FREE_CONFLICTS = 3
"""How often a node is tried again at once after a conflict; from then on it queues for the keys it lost."""
LATE_CONFLICTS = 10
"""After so many its `post` gets a turn at the backend, if that has turns: others, in other processes too, wait for it."""
MAX_CONFLICTS = 20
"""After so many it is an error."""

STEPS_PER_LOOK = 16
"""How often a run that never suspends looks at the clock, to give way to the event loop."""

IN_PLACE, EXEC_IN_THREADS, ALL_IN_THREADS = 0, 1, 2
"""Where a run calls its `def` phases: its own thread, or worker threads for `exec` or for all of them."""


@dataclass(frozen=True, slots=True)
class Asking:
    """What a node asks."""

    question: object
    answer_type: str
    """That of an answer, in words."""
    choices: list[Any] | None = None
    """What may be answered, where that is a few values."""
    timeout: float | None = None
    """Seconds until it goes on without an answer."""


class Running(Protocol):
    """One run of one graph."""

    run: Run
    pocket: RunHost
    stack: Stack
    prefix: str
    ledger: Ledger | None
    """What a durable run is kept in."""
    loop: bool
    """Is it driven by an event loop?"""
    threads: bool
    """Are there worker threads beside it, for `def` phases?"""
    where: int
    """`IN_PLACE`, `EXEC_IN_THREADS` or `ALL_IN_THREADS`."""
    grace: float
    """Seconds that a hook has to end once the run has been cancelled."""
    exits: Mapping[str, object]
    """The actions that graphs around this one take care of."""
    left_by: str
    """The action by which it has ended."""
    attempts: int
    """How many attempts the last guarded node has taken that failed; there only then."""
    plan: Plan
    steps: int
    visits: dict[str, int] | None
    """How often it has entered each node, where somebody wants to know."""
    began: int
    """Its number, and that of all graphs nested in it."""
    watchers: Watchers
    """Who watches it."""

    @property
    def outermost(self) -> Running:
        """The run that this one is nested in, or itself. It counts the steps of all."""
        ...

    def visit_of(self, step: Step) -> int:
        """How often the run has entered a node."""
        ...

    def visit(self, step: Step, value: object, position: int | None = None) -> Visiting:
        """Take a value through a node, watched if the run is; an item of a fan-out has a `position` there."""
        ...

    def event(self, name: str, call: NodeCall | None, attributes: Mapping[str, object]) -> None:
        """Tell the observers."""
        ...

    def notify(self, notice: RunNotice) -> None:
        """Tell the plugins."""
        ...

    async def to_its_end(self, writing: Writing) -> asyncio.CancelledError | None:
        """Await a write; once begun to its end, and a cancellation that came meanwhile is handed back."""
        ...

    async def give_way(self) -> bool:
        """Let the event loop go on where this run has kept it for long enough."""
        ...

    async def nested(self, graph: PlannedGraph, value: object, exits: Mapping[str, Step] | None) -> Value:
        """Run a graph as a node of this one, and give what it left with. With None for its exits no action leads out of it."""
        ...

    def beside(self, ledger: Ledger) -> Running:
        """The same run, kept in another ledger: for an item of a fan-out."""
        ...

    async def ask(self, step: Step, made: Callable[[], Asking]) -> Value:
        """The answer to a question of a node, which is made if it has not been asked before; MISSING once its time is over."""
        ...

    async def sleep(self, until: Callable[[], float]) -> None:
        """Wait until a time, in epoch seconds; it is asked for if it is not known yet."""
        ...

    async def suspend(self, waiting: Sequence[RunSuspendedError]) -> None:
        """Items wait: so does the run. Gives where one of them can go on by now."""
        ...

    def item(self, step: Step, item: object, position: int) -> Visiting:
        """Take one item of a fan-out through its node."""
        ...


class Ledger(Protocol):
    """What a durable run is kept in. It is asked as the run begins, before each node, at each commit, and as the run ends."""

    @property
    def fence(self) -> Mapping[str, int]:
        """What every write of the run expects, so that it fails once another execution has taken it over, or it is cancelled."""
        ...

    @property
    def age(self) -> float:
        """Seconds since the run began."""
        ...

    async def refence(self, conflict: ConflictError) -> bool:
        """After a conflict of such a write: is it only that somebody has left word for the run? Then `fence` is another one."""
        ...

    async def claim(self, run: Running, value: object) -> Value:
        """Make the run this execution's own; give its result where it is finished, else MISSING."""
        ...

    async def hold(self, run: Running, travel: Travel, value: object) -> Value:
        """Take the value through the run's graph by `travel`; record it where that ends otherwise than by the last node."""
        ...

    async def begin(self, run: Running, value: object) -> Visited:
        """Where to begin: at the graph's start, or where it was left."""
        ...

    def stand_at(self, step: Step) -> None:
        """The run comes to a node."""
        ...

    def tell_resumed(self, run: Running, call: NodeCall) -> None:
        """Tell the observers, once, if the run goes on where an earlier execution has left it."""
        ...

    async def commit(
        self, run: Running, step: Step, target: Step | None, output: object, commit: Commit | None
    ) -> asyncio.CancelledError | None:
        """Write what a node has changed, with where the run goes on; a cancellation that comes meanwhile is handed back."""
        ...

    async def end(self, run: Running) -> asyncio.CancelledError | None:
        """The last node's hooks are over."""
        ...

    def let_go(self) -> None:
        """This execution is at the run no more, however it ended."""
        ...

    async def close(self) -> None:
        """The run is over."""
        ...

    def nested(self) -> Ledger:
        """The same for a graph that is nested in this one."""
        ...

    async def ask(self, run: Running, step: Step, made: Callable[[], Asking]) -> Value:
        """The answer to a question; MISSING once its time is over. Raises RunSuspendedError where there is none yet."""
        ...

    async def sleep(self, run: Running, until: Callable[[], float]) -> None:
        """Raises RunSuspendedError until that time has come."""
        ...

    async def suspend(self, run: Running, waits: Sequence[Any]) -> None:
        """Record what the run's items wait for. Raises RunSuspendedError, ConflictError where that is not so any more."""
        ...

    def in_order(self, items: Iterable[Value]) -> Iterable[Value]:
        """The items of a fan-out as any process finds them."""
        ...

    def item(self, run: Running, step: Step, item: object, position: int) -> Visiting:
        """Take one item of a fan-out through its node, under a record of its own."""
        ...

    def must_end(self, error: Exception) -> bool:
        """Does an error that left an item end the run even where errors are collected?"""
        ...

    def collected(self, error: Exception) -> Exception:
        """The result of an item that raised this error, as it can be stored."""
        ...
