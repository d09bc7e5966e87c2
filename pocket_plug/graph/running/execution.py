"""Executes a run of a graph, step by step.

An `Execution` is one run of one graph. It keeps nothing on the nodes, and its context variables don't leak into the caller.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import time
from collections import defaultdict
from collections.abc import Coroutine, Mapping
from contextvars import copy_context
from typing import Any

from pocket_plug.errors import (
    InputError,
    NodeTimeoutError,
    RunCancelledError,
    RunSuspendedError,
    RunTimeoutError,
    StepLimitError,
    SyncError,
    hide_own_frames,
)
from pocket_plug.graph.nodes.chain import DEFAULT, Next
from pocket_plug.graph.observing.host import RunHost
from pocket_plug.graph.observing.views import NodeCall, Run
from pocket_plug.graph.observing.watching import NOBODY, Entered, enter, leave, send_event, watched_by, watched_without
from pocket_plug.graph.planning.plan import PlannedGraph, refuse_read_only
from pocket_plug.graph.planning.step import Step, Visiting, Way
from pocket_plug.primitives.signals import run_loop
from pocket_plug.primitives.values import Value
from pocket_plug.primitives.waiting import drive
from pocket_plug.store.stack import StorePlace
from pocket_plug.store.store import MISSING, StoreReader

from .context import awaited_to_its_end, idempotency, in_own_context, run_ids
from .places import ACTIONS, name_source, uncalled
from .protocols import ALL_IN_THREADS, EXEC_IN_THREADS, IN_PLACE, STEPS_PER_LOOK, Ledger, Writing
from .watched import watched_visit

TURN = 0.001
"""Seconds after which a run that never suspends yields to the event loop."""

_runs = itertools.count(1)
"""Numbers runs, so that an error's note shows which run has written it: an exception may be raised again in a later run."""

NO_EXITS: Mapping[str, object] = {}


class Execution:
    """One run of one graph over one store. The outermost execution counts the steps of all nested ones.

    With a `ledger` the run is durable: the ledger says where to begin, and records the progress.
    """

    __slots__ = (
        *("above", "attempts", "began", "exits", "grace", "key", "ledger", "left_by", "look_at", "loop", "max_steps"),
        *("plan", "pocket", "prefix", "run", "stack", "steps", "threads", "timeout", "turn_ends", "visits"),
        *("watchers", "where"),
    )
    where: int
    """Where `def` phases are called."""
    attempts: int

    def __init__(
        self,
        graph: PlannedGraph,
        place: StorePlace,
        input: object,
        pocket: RunHost,
        loop: bool,
        parent: Execution | None = None,
        ledger: Ledger | None = None,
        run_id: str = "",
    ) -> None:
        self.plan, self.grace, self.max_steps = graph.plan, graph.clean_up_grace, graph.max_steps
        self.stack, self.prefix = place
        if self.stack.read_only:
            refuse_read_only(graph, place)
        self.pocket, self.loop, self.ledger = pocket, loop, ledger
        self.left_by = DEFAULT
        self.key: str | None = None  # the key of `idempotency_key()`, for a single node without a ledger
        self.steps = 0
        self.look_at = STEPS_PER_LOOK if graph.max_steps >= STEPS_PER_LOOK else graph.max_steps + 1
        self.turn_ends = 0.0
        if parent is None:
            self.above, self.exits, self.began, self.timeout = None, NO_EXITS, next(_runs), graph.timeout
            self.run = run = Run(run_id or run_ids.next(), graph.name, None, 0, input, self.plan.shape)
            self.threads = loop
        else:
            self.above, self.exits, self.began = parent.outermost, parent.exits, parent.began
            self.threads = parent.threads  # not `loop`: `go_in_place` may begin one without worker threads
            self.timeout = None  # only the outermost graph's timeout counts, for the whole run
            self.run = run = Run(run_ids.next(), graph.name, parent.run, parent.run.depth + 1, input, self.plan.shape)
            if run.depth > graph.max_depth:
                raise StepLimitError(
                    f"graph {graph.name!r} is nested {run.depth} levels deep; {graph.max_depth} are allowed: "
                    "does it contain itself? If not, increase Graph(…, max_depth=…)"
                )
        self.watchers = watched_by(pocket.observers(run))
        self.visits: dict[str, int] | None = None  # counted only if a node may be visited more than once
        if self.plan.repeats or ledger is not None:
            self.visits = defaultdict(int)

    @property
    def outermost(self) -> Execution:
        """The outermost run around this one, or itself. A property, since an attribute would be a reference cycle."""
        return self.above or self

    def visit_of(self, step: Step) -> int:
        """How often the run has entered a node, for errors."""
        return 1 if self.visits is None else self.visits.get(step.name, 1)

    # ------------------------------------------------------------ the run
    def go_in_place(self) -> Value:
        """Run for a caller without `await`: without an event loop if every phase is `def`, else on a new one.

        Raises SyncError if it needs an event loop, and one already runs in this thread.
        """
        stack = self.stack
        if self.plan.is_sync and not stack.needs_loop and self.timeout is None:
            if stack.is_new:
                stack.open_sync()
            return copy_context().run(drive, self.go())
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise SyncError(
                f"graph {self.run.graph!r} has async phases, a timeout or a store that need an event loop of their own, and one "
                "already runs in this thread; use `await graph.run(…)`"
            )
        self.loop = True
        if stack.needs_loop:  # the stack's objects belong to its own loop, so the run must execute there
            self.threads = True
            return stack.run(self.open_and_go())
        return run_loop(self.open_and_go())

    async def open_and_go(self) -> Value:
        """`go`, with a store that may not be open yet."""
        if self.stack.is_new:
            await self.stack.ensure_open()
        return await self.go()

    async def go(self) -> Value:
        """Run from the start, or from the recorded position, to the end; return the output of the last node."""
        ledger, value = self.ledger, self.run.input
        if ledger is None and self.above is None and idempotency.get() != self.key:
            # the key of a durable run's node that starts this run is not for this run's nodes
            idempotency.set(self.key)
        try:
            if ledger is not None and (result := await ledger.claim(self, value)) is not MISSING:
                return result
            if not self.stack.inline_read and (self.threads or self.stack.needs_loop):
                self.where = ALL_IN_THREADS  # a read may block the caller's event loop
            else:
                self.where = EXEC_IN_THREADS if self.threads else IN_PLACE
            output = await (self._watched(value) if self.watchers is not NOBODY else self._kept(value))
            if ledger is not None:
                await ledger.close()
            return output
        except BaseException as error:
            hide_own_frames(error)
            raise
        finally:
            if ledger is not None:
                ledger.unregister()

    def _kept(self, value: object) -> Coroutine[Any, Any, Value]:
        """Execute the nodes; for a durable run, also record how the run ends."""
        travel = self._travel if self.timeout is None else self._travel_in_time
        return travel(value) if self.ledger is None else self.ledger.hold(self, travel, value)

    async def _travel_in_time(self, value: object) -> Value:
        """Execute the nodes within the graph's timeout. Raises RunTimeoutError."""
        assert self.timeout is not None
        left = self.timeout if self.ledger is None else self.timeout - self.ledger.age
        late = RunTimeoutError(
            f"run {self.run.id!r} of graph {self.run.graph!r} took longer than {self.timeout:g} seconds"
        )
        if left <= 0:
            raise late
        limit = asyncio.timeout(left)
        try:
            async with limit:
                return await self._travel(value)
        except TimeoutError as error:
            if limit.expired():
                raise late from error
            raise

    async def _watched(self, value: object) -> Value:
        """Execute the nodes inside the context managers of the run's observers."""
        run = self.run
        entered: Entered = []
        failed: BaseException | None = None
        observers = self.watchers.observers
        parts = [(observer, observer.run) for observer in observers if observer.run is not None]
        try:
            if silent := enter(entered, parts, run):
                self.watchers = watched_without(silent, observers)
            run.output = await self._kept(value)
            run.outcome = "success"
        except RunSuspendedError:
            run.outcome = "suspended"
            raise
        except BaseException as error:
            run.error = failed = error
            cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit | RunCancelledError)
            late = isinstance(error, NodeTimeoutError | RunTimeoutError)
            run.outcome = "cancelled" if cancelled else "timeout" if late else "failure"
            raise
        finally:
            leave(entered, failed)
        return run.output

    async def _travel(self, value: object) -> Value:
        """Take the value from step to step, through each by the path that was made with the plan."""
        step: Step | None = self.plan.start
        cancelled: asyncio.CancelledError | None = None
        ledger, counter, where, watched = self.ledger, self.above or self, self.where, self.watchers is not NOBODY
        if ledger is not None:
            step, value, cancelled = await ledger.begin(self, value)
        visits = None if watched else self.visits
        before: Way | None = None
        way: Way | None = None
        try:
            while step is not None and cancelled is None:
                counter.steps = steps = counter.steps + 1
                if (steps >= counter.look_at or ledger is not None) and self._look(step):
                    await self.yield_to_loop()
                if visits is not None:
                    visits[step.name] += 1
                if ledger is not None:
                    ledger.stand_at(step)
                before, way = way, step.ways[where]
                step, value, cancelled = await (
                    watched_visit(self, step, value) if watched else way.take(self, value, None)
                )
        except InputError as error:
            if before is not None and step is not None:
                name_source(error, before.step, step, value)
            raise
        if isinstance(value, ACTIONS) and way is not None:
            raise uncalled(self, way.step, value)
        if ledger is not None and step is None:
            cancelled = await ledger.end(self) or cancelled
        if cancelled is not None:
            raise cancelled
        return value

    def _look(self, step: Step) -> bool:
        """Called once in a few steps. Raises StepLimitError for too many; is it time to yield to the event loop?"""
        counter = self.outermost
        limit, look_at = counter.max_steps, counter.steps + STEPS_PER_LOOK
        if look_at > limit:
            if counter.steps > limit:
                raise self._too_many(step)
            look_at = limit + 1
        counter.look_at = look_at
        return self.loop and counter.turn_is_over()

    def _too_many(self, step: Step) -> StepLimitError:
        limit = self.outermost.max_steps
        return StepLimitError(
            f"graph {self.run.graph!r} is about to enter {step.name!r} as step {limit + 1}; "
            f"{limit} are allowed: is there a loop that never ends? If not, increase Graph(…, max_steps=…)"
        )

    async def yield_to_loop(self) -> bool:
        """Yield to the event loop if this run has kept it for longer than TURN. Nested runs use the clock of the outermost one.

        All tasks of a run share one turn. Returns True if another task has begun the next turn: then call this again soon.
        """
        outermost = self.outermost
        if outermost.turn_is_over():
            over = outermost.turn_ends
            await asyncio.sleep(0)
            if outermost.turn_ends != over:
                return True
            outermost.turn_ends = time.perf_counter() + TURN
        return False

    def turn_is_over(self) -> bool:
        """Has this run, an outermost one, kept the event loop for longer than TURN? The first call begins the first turn."""
        now = time.perf_counter()
        if not self.turn_ends:
            self.turn_ends = now + TURN
        return now > self.turn_ends

    # ------------------------------------------------------------ its nodes
    def visit(self, step: Step, value: object, position: int | None = None) -> Visiting:
        """Take a value through a node, inside the observers of the run if it has any."""
        if self.watchers is NOBODY:
            return step.ways[self.where].take(self, value, None)
        return watched_visit(self, step, value, position)

    def event(self, name: str, call: NodeCall | None, attributes: Mapping[str, object]) -> None:
        """Send an event to the run's observers."""
        if call is not None:
            send_event(self.watchers.observers, name, call, attributes)

    async def to_its_end(self, writing: Writing) -> asyncio.CancelledError | None:
        """Await a write to its end once it has begun. A cancellation that comes meanwhile is returned."""
        if self.stack.inline_write or not self.loop:
            await writing
            return None
        return await awaited_to_its_end(writing, begins_here=not self.stack.needs_loop)

    async def nested(self, graph: PlannedGraph, value: object, exits: Mapping[str, Step] | None) -> Value:
        """Run a graph as a node of this one, and return its output, as a Next unless it left by "default".

        `exits` are the actions for which the node has an edge; None if no action may lead out of it.
        """
        place = graph.place(StoreReader(self.stack, self.prefix))
        stack, _ = place
        if stack.is_new:
            await stack.ensure_open()
        ledger = self.ledger.nested() if self.ledger is not None else None
        inner = Execution(graph, place, value, self.pocket, self.loop, parent=self, ledger=ledger)
        inner.exits = NO_EXITS if exits is None else {**self.exits, **exits}
        output = await in_own_context(inner.go())
        return output if inner.left_by == DEFAULT else Next(inner.left_by, output)

    def beside(self, ledger: Ledger) -> Execution:
        """A copy of this execution with another ledger, for an item of a fan-out."""
        beside = copy.copy(self)
        beside.ledger = ledger
        return beside
