"""How a run travels through a graph: the phases of each node, its commit, its hooks, and what observers see of them.

An `Execution` is one run of one graph. Nothing of it is kept on a node, and nothing it sets leaks into the caller.
"""

# What drives a node makes its views; what is measured is set wherever there is a call.
# pyright: reportPrivateUsage=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from pocket_plug.errors import (
    ConflictError,
    InputError,
    MissingKeyError,
    NodeTimeoutError,
    PhaseError,
    RunSuspendedError,
    StepLimitError,
)
from pocket_plug.graph.observing import NodeCall, Observer, Phase, PhaseCall, Run
from pocket_plug.primitives.typechecks import type_name
from pocket_plug.store.backend import Change
from pocket_plug.store.stack import Stack
from pocket_plug.store.store import StoreReader, StoreWriter
from pocket_plug.store.sync import SyncReader, SyncWriter
from pocket_plug.store.transaction import Transaction

from .chain import DEFAULT, END, Next
from .context import run_ids, to_its_end
from .host import RunHost
from .places import note_node
from .plan import Step
from .watching import Entered, Part, Watching, end, enter, leave, measure, report, tell
from .workers import Late, pool, wrapped

if TYPE_CHECKING:
    from .graph import Graph


FREE_CONFLICTS = 3
"""How often a node is tried again at once after a conflict; from then on it queues for the keys it lost."""
MAX_CONFLICTS = 20
"""After so many it is an error."""
TURN = 0.001
"""Seconds after which a run that never suspends gives way to the event loop."""
STEPS_PER_LOOK = 16
"""How often it looks at the clock for that."""

_runs = itertools.count(1)
"""Numbers them, so that an error's note tells what has come out of a run from what was written before."""

NO_EXITS: Mapping[str, Any] = {}

Commit = tuple[Sequence[Change], Mapping[str, int]]
"""What to write, and the versions that it expects."""
Visited = tuple[Step | None, Any, asyncio.CancelledError | None]
"""Where to go (None: the run ends), with what, and a cancellation that came while the node was past stopping."""


class Execution:
    """One run of one graph over one store. The outermost one keeps the steps that nested ones share."""

    __slots__ = ("above", "began", "exits", "grace", "in_place", "left_by", "loop", "max_steps", "observers", "on_every_phase",
                 "on_node", "on_phase", "plan", "pocket", "prefix", "run", "stack", "steps", "threads", "turn_ends",
                 "visits")  # fmt: skip
    fence: Mapping[str, int] = {}
    """What every write of a durable run expects."""

    def __init__(self, graph: Graph[Any, Any], place: tuple[Stack, str], input: Any, pocket: RunHost, loop: bool,
                 threads: bool, parent: Execution | None = None, run_id: str = "") -> None:  # fmt: skip
        self.plan, self.grace, self.max_steps = graph.plan, graph.clean_up_grace, graph.max_steps
        self.stack, self.prefix = place
        self.pocket, self.loop, self.threads = pocket, loop, threads
        # `def` prep and post run where they are called if the stack reads inline, or else if they may block there
        self.in_place = self.stack.inline_read or not (threads or self.stack.needs_loop)
        self.left_by = DEFAULT
        self.steps = 0
        self.turn_ends = 0.0
        if parent is None:
            self.above, self.exits, self.began = None, NO_EXITS, next(_runs)
            self.run = run = Run(run_id or run_ids.next(), graph.name, None, 0, input, self.plan.shape)
        else:
            self.above, self.exits = parent.outermost, parent.exits
            self.run = run = Run(run_ids.next(), graph.name, parent.run, parent.run.depth + 1, input, self.plan.shape)
            if run.depth > graph.max_depth:
                raise StepLimitError(
                    f"graph {graph.name!r} is nested {run.depth} deep, and may be {graph.max_depth}: "
                    "does it contain itself? Else raise Graph(…, max_depth=…)"
                )
        self.on_node: Sequence[Part] = ()
        self.on_phase: Sequence[Part] = ()  # of guarded nodes
        self.on_every_phase: Sequence[Part] = ()
        self.observers = observers = pocket.observers(run)
        if observers or self.plan.loops:
            self.visits: dict[str, int] = defaultdict(int)
        if observers:
            self._listen(observers)

    def _listen(self, observers: list[Observer]) -> None:
        self.observers = observers
        self.on_node = [(observer, observer.node) for observer in observers if observer.node is not None]
        self.on_phase = [(observer, observer.phase) for observer in observers if observer.phase is not None]
        self.on_every_phase = [part for part in self.on_phase if not part[0].guarded_only]

    @property
    def outermost(self) -> Execution:
        """The run that this one is nested in, or itself. Kept as an attribute it would be a cycle, and garbage to collect."""
        return self.above or self

    def visit_of(self, step: Step) -> int:
        """How often the run has entered a node, for errors. It is counted only if the run is watched or the graph has loops."""
        return self.visits.get(step.name, 1) if self.observers or self.plan.loops else 1

    def too_many(self, step: Step) -> StepLimitError:
        """The error for one step more than the run may take."""
        limit = self.outermost.max_steps
        return StepLimitError(
            f"graph {self.run.graph!r} is about to enter {step.name!r} as step {limit + 1}, and may take "
            f"{limit}: a loop that never ends? Else raise Graph(…, max_steps=…)"
        )

    async def give_way(self) -> None:
        """Let the event loop go on where this run has kept it for long enough. Of nested runs the outermost one asks."""
        now = time.perf_counter()
        if not self.turn_ends:
            self.turn_ends = now + TURN
        elif now > self.turn_ends:
            await asyncio.sleep(0)
            self.turn_ends = time.perf_counter() + TURN

    # ------------------------------------------------------------ the run
    async def go(self, value: Any) -> Any:
        """Run from the start to the end, and give the output of the last node."""
        if not self.observers:
            return await self._walk(value)
        run = self.run
        entered: Entered = []
        failed: BaseException | None = None
        try:
            parts = list((observer, observer.run) for observer in self.observers if observer.run is not None)
            if silent := enter(entered, parts, run):
                heard = (observer for observer in self.observers if all(observer is not each for each in silent))
                self._listen(list(heard))
            run.output = await self._walk(value)
            run.outcome = "success"
        except RunSuspendedError:
            run.outcome = "suspended"
            raise
        except BaseException as error:
            run.error = failed = error
            cancelled = isinstance(error, asyncio.CancelledError | GeneratorExit)
            run.outcome = "cancelled" if cancelled else "timeout" if isinstance(error, NodeTimeoutError) else "failure"
            raise
        finally:
            leave(entered, failed)
        return run.output

    async def _walk(self, value: Any) -> Any:
        step: Step | None = self.plan.start
        counter, stack, prefix, yields = self.outermost, self.stack, self.prefix, self.loop
        watched, new, clock = bool(self.observers), object.__new__, time.perf_counter
        visits = self.visits if self.plan.loops and not watched else None
        in_place = not self.threads and stack.inline_read
        simply = not watched or not self.on_every_phase
        while step is not None:
            counter.steps = steps = counter.steps + 1
            if steps > counter.max_steps:
                raise self.too_many(step)
            if yields and not steps % STEPS_PER_LOOK:
                await counter.give_way()
            if visits is not None:
                visits[step.name] += 1
            # Where no phase is watched, and there is nothing to the node but prep, exec and post, what `watch`, `visit` and
            # `_try` do is done right here, with the store's objects made by hand: it takes a fifth of the time. Keep it in
            # step with them.
            plain = None
            if simply and (step.input_class is None or issubclass(value.__class__, step.input_class)):
                plain = step.plain_async or (step.plain_def if in_place else None)
            if plain is None:
                step, value, cancelled = await (self.watch(step, value) if watched else self.visit(step, value, None))
                if cancelled is not None:
                    raise cancelled
                continue
            prep, exec, post = plain
            call = transaction = None
            prepared, phase = value, "prep"
            try:
                if watched:
                    entered: Entered = []
                    call = self._begin(step, value, entered)
                    started = clock()
                if step.plain_async is not None:
                    if prep is not None:
                        transaction = Transaction(stack)
                        reader = new(StoreReader)
                        reader._source, reader._prefix = transaction, prefix
                        prepared = await prep(reader, value)
                        if prepared.__class__ is CoroutineType:
                            raise _unawaited(step, phase, prepared)
                        if call is not None:
                            now = clock()
                            call.durations["prep"] = now - started
                            started = now
                    phase = "exec"
                    output = result = prepared
                    if exec is not None:
                        output = result = await exec(prepared)
                        if result.__class__ is CoroutineType:
                            raise _unawaited(step, phase, result)
                        if call is not None:
                            call.attempts = 1
                            now = clock()
                            call.durations["exec"] = now - started
                            started = now
                    if post is not None:
                        phase = "post"
                        if transaction is None:
                            transaction = Transaction(stack)
                        transaction.in_post = True
                        writer = new(StoreWriter)
                        writer._source, writer._prefix = transaction, prefix
                        output = await post(writer, value, prepared, result)
                        if output.__class__ is CoroutineType:
                            raise _unawaited(step, phase, output)
                        if call is not None:
                            call.durations["post"] = clock() - started
                else:
                    if prep is not None:
                        transaction = Transaction(stack)
                        prepared = prep(SyncReader(transaction, prefix), value)
                        if prepared.__class__ is CoroutineType:
                            raise _unawaited(step, phase, prepared)
                        if call is not None:
                            now = clock()
                            call.durations["prep"] = now - started
                            started = now
                    phase = "exec"
                    output = result = prepared
                    if exec is not None:
                        output = result = exec(prepared)
                        if result.__class__ is CoroutineType:
                            raise _unawaited(step, phase, result)
                        if call is not None:
                            call.attempts = 1
                            now = clock()
                            call.durations["exec"] = now - started
                            started = now
                    if post is not None:
                        phase = "post"
                        if transaction is None:
                            transaction = Transaction(stack)
                        transaction.in_post = True
                        output = post(SyncWriter(transaction, prefix), value, prepared, result)
                        if output.__class__ is CoroutineType:
                            raise _unawaited(step, phase, output)
                        if call is not None:
                            call.durations["post"] = clock() - started
                action, target = DEFAULT, step.next
                if output.__class__ is Next:
                    action, output = _way(output)
                    target = step.actions.get(action) or self._leave(step, action)
                if call is not None:
                    call.action, call.next = action, target.name if target is not None else None
                cancelled = None
                if transaction is None:
                    pass
                elif transaction.changes is None and transaction.seen is None:
                    transaction.ended = True
                elif (commit := transaction.end(serializable=step.serializable)) is not None:
                    try:
                        stack.gates.refuse_to_overtake(commit[1])
                        if stack.inline_write or not commit[0]:
                            await stack.write(*commit)
                        else:
                            cancelled = await self._commit(stack.write(*commit))
                    except ConflictError as conflict:
                        lost = _Lost(conflict, transaction, prepared, result)
                        target, output, cancelled = await self._try_again(step, value, call, lost)
            except BaseException as error:
                if transaction is not None:
                    transaction.ended = True
                if call is not None and phase in step.phases and phase not in call.durations:
                    if phase == "exec":
                        call.attempts = 1
                    measure(call, phase, started)
                if isinstance(error, MissingKeyError):
                    _name_the_phase(error, step, phase)
                elif isinstance(error, StopIteration):
                    error = wrapped(error)
                note_node(error, self, step)
                if watched:
                    end(call, entered, error)
                raise error
            if call is not None:
                call.output, call.outcome = output, call.outcome or "ok"
                leave(entered, None)
            if cancelled is not None:
                raise cancelled
            step, value = target, output
        return value

    # ------------------------------------------------------------ one node
    def _begin(self, step: Step, value: Any, entered: Entered) -> NodeCall:
        """What observers see of a visit, and what they do before it."""
        run, visits, name = self.run, self.visits, step.name
        run.steps += 1
        visits[name] = visit = visits.get(name, 0) + 1
        call = NodeCall(run, name, step.kind, visit, step.trace, step.guarded, step.phases, value,
                        step.is_item)  # fmt: skip
        if self.on_node:
            enter(entered, self.on_node, call)
        return call

    async def watch(self, step: Step, value: Any) -> Visited:
        """`visit`, between what the observers do before and after."""
        entered: Entered = []
        call = None
        try:
            call = self._begin(step, value, entered)
            visited = await self.visit(step, value, call)
        except BaseException as error:
            end(call, entered, error)
            raise
        call.output = visited[1]
        end(call, entered, None)
        return visited

    async def visit(self, step: Step, value: Any, call: NodeCall | None) -> Visited:
        """Take a value through a node: check it, run the phases, commit, then the hooks."""
        wanted = step.input_class
        if (wanted is not None and not isinstance(value, wanted)) or (
                wanted is None and step.fits is not None and not step.fits(value)):  # fmt: skip
            refused = InputError(
                f"node {step.name!r} of graph {self.run.graph!r} takes {type_name(step.input_type)}, "
                f"not {type(value).__name__}"
            )
            note_node(refused, self, step)
            raise refused
        try:
            try:
                visited = await self._try(step, value, call, None)
            except _Lost as lost:
                visited = await self._try_again(step, value, call, lost)
        except (GeneratorExit, RunSuspendedError):
            raise  # the run is being garbage-collected: nothing can be awaited any more; or it only waits
        except BaseException as error:
            note_node(error, self, step)
            if step.hooks:
                cancelled = await self._clean_up(step, call, ("on_failure", "on_complete"), error)
                if cancelled is not None and isinstance(error, Exception):
                    raise cancelled from error  # whoever cancelled must not take the run for one that goes on
            raise
        if step.hooks:
            cancelled = await self._clean_up(step, call, ("on_success", "on_complete"), visited[1])
            return (*visited[:2], visited[2] or cancelled)
        return visited

    async def _try_again(self, step: Step, value: Any, call: NodeCall | None, lost: _Lost) -> Visited:
        """After a conflict: at once a few times, then in line for the keys that were lost."""
        contested: set[str] = set()
        self.left_by = DEFAULT
        gates = self.stack.gates
        with ExitStack() as priority:
            for tries in range(1, MAX_CONFLICTS):
                self.event("conflict", call, {"tries": tries})
                contested |= lost.conflict.keys
                await self.stack.pause_after(tries)
                in_line = tries >= FREE_CONFLICTS
                turn = gates.turn(contested, in_line)
                try:
                    async with turn:
                        post_alone = await lost.transaction.prep_stands(lost.conflict.keys)
                        if not post_alone:
                            priority.close()  # plain writes don't wait for an exec
                        elif in_line:
                            priority.enter_context(gates.priority(contested))
                        return await self._try(step, value, call, lost if post_alone else None)
                except _Lost as again:
                    lost = again
                finally:
                    turn.leave()
        raise lost.conflict

    async def _try(self, step: Step, value: Any, call: NodeCall | None, lost: _Lost | None) -> Visited:
        """prep, exec, post and the commit. After a `lost` try whose prep stands, post and the commit only."""
        transaction: Transaction | None = None
        if lost is not None:
            transaction, prepared, result = lost.transaction.again(), lost.prepared, lost.result
        else:
            if step.prep is not None or step.post is not None:
                transaction = Transaction(self.stack, step.guard(self.prefix))
            prepared = value
            if step.prep is not None:
                assert transaction is not None
                await self._prefetch(step, transaction)
                prepared = await self._phase(step, "prep", step.prep, step.prep_async, call, transaction, value)
            if step.perform is not None:
                result = await step.perform(self, value, call)
            elif step.exec is not None:
                try:
                    result = await self._exec(step, step.exec, prepared, call)
                except MissingKeyError as error:
                    _name_the_phase(error, step, "exec")
                    raise
            else:
                result = prepared
        output = result
        if step.post is not None:
            assert transaction is not None
            if step.prep is None:
                await self._prefetch(step, transaction)
            transaction.in_post = True
            output = await self._phase(
                step, "post", step.post, step.post_async, call, transaction, value, prepared, result
            )
        commit = transaction.end(serializable=step.serializable) if transaction is not None else None
        action, target = DEFAULT, step.next
        if output.__class__ is Next:
            action, output = _way(output)
            target = step.actions.get(action) or self._leave(step, action)  # before anything is committed
        if call is not None:
            call.action, call.next = action, target.name if target is not None else None
        try:
            return target, output, await self._land(step, target, output, commit)
        except ConflictError as conflict:
            if transaction is None:
                raise
            raise _Lost(conflict, transaction, prepared, result) from conflict

    async def _prefetch(self, step: Step, transaction: Transaction) -> None:
        """Read the keys that the node declares to read, templates aside, in one go."""
        if names := [self.prefix + str(key) for key in step.reads if key.is_filled]:
            await transaction.read_many(names)

    def _leave(self, step: Step, action: str) -> Step | None:
        """The run ends here, by this action, or it may not: there is no next step."""
        if action == END.name or action == DEFAULT:
            action = DEFAULT
        elif step.is_item or action not in self.exits:
            raise step.no_route(action, self.run.graph)
        self.left_by = action
        return None

    async def _land(self, step: Step, target: Step | None, output: Any,
                    commit: Commit | None) -> asyncio.CancelledError | None:  # fmt: skip
        """Write what the node has changed, on its way to `target` with `output`."""
        if commit is None:
            return None
        self.stack.gates.refuse_to_overtake(commit[1])
        if not commit[0]:  # a check alone, which may be cancelled at any point
            await self.stack.write(*commit)
            return None
        return await self._commit(self.stack.write(*commit))

    async def _commit(self, writing: Coroutine[Any, Any, Any]) -> asyncio.CancelledError | None:
        """Await a write; once begun to its end, and a cancellation that came meanwhile is handed back."""
        if self.stack.inline_write or not self.loop:
            await writing
            return None
        task, cancelled = await to_its_end(writing, None)
        if cancelled is not None and (task.cancelled() or task.exception() is not None):
            raise cancelled  # nothing landed, so the run may end here
        task.result()
        return cancelled

    def in_order(self, items: Iterable[Any]) -> Iterable[Any]:
        """The items of a fan-out."""
        return items

    def item(self, step: Step, item: Any, position: int) -> Coroutine[Any, Any, Visited]:
        """Take one item of a fan-out through its node."""
        return self.watch(step, item) if self.observers else self.visit(step, item, None)

    def must_end(self, error: Exception) -> bool:
        """Does an error that left an item end the run even with `errors="collect"`?"""
        return False

    def collected(self, error: Exception) -> Exception:
        """The result of an item that raised this error, with `errors="collect"`."""
        return error

    # ------------------------------------------------------------ phases
    async def _phase(self, step: Step, phase: Phase, function: Callable[..., Any], is_async: bool, call: NodeCall | None,
                     transaction: Transaction, *arguments: Any) -> Any:  # fmt: skip
        """prep or post: with a store of its colour, watched."""
        view: Any = _VIEWS[phase, is_async](transaction, self.prefix)
        try:
            if call is None:
                return await self._call(step, phase, function, is_async, self.in_place, view, *arguments)
            watching = self.on_phase if step.guarded else self.on_every_phase
            if not watching and is_async:  # what nobody watches is only measured
                started = time.perf_counter()
                try:
                    result = await function(view, *arguments)
                finally:
                    measure(call, phase, started)
                if result.__class__ is CoroutineType:
                    raise _unawaited(step, phase, result)
                return result
            with Watching(watching, of_phase := PhaseCall(call, phase, input=arguments[0])):
                of_phase.output = await self._call(step, phase, function, is_async, self.in_place, view, *arguments)
            return of_phase.output
        except BaseException as error:
            transaction.ended = True
            if isinstance(error, MissingKeyError):
                _name_the_phase(error, step, phase)
            raise

    async def _call(self, step: Step, phase: str, function: Callable[..., Any], is_async: bool, in_place: bool,
                    *arguments: Any) -> Any:  # fmt: skip
        """The function itself: awaited, called in place, or in a worker thread."""
        if is_async:
            result = await function(*arguments)
        elif in_place:
            try:
                result = function(*arguments)
            except StopIteration as error:
                raise wrapped(error) from error
        else:
            result = await pool().call(function, *arguments)
        if result.__class__ is CoroutineType:
            raise _unawaited(step, phase, result)
        return result

    async def _exec(self, step: Step, function: Callable[..., Any], prepared: Any, call: NodeCall | None) -> Any:
        """`exec`, as often as its retry allows, then the fallback."""
        if step.exec_async and not step.guarded and (call is None or not self.on_every_phase):
            started = time.perf_counter()
            try:
                result = await function(prepared)
            finally:
                if call is not None:
                    call.attempts += 1
                    measure(call, "exec", started)
            if result.__class__ is CoroutineType:
                raise _unawaited(step, "exec", result)
            return result
        attempt = 0
        while True:
            attempt += 1
            if call is not None:
                call.attempts += 1
            phase = PhaseCall(call, "exec", attempt, step.timeout, input=prepared) if call is not None else None
            try:
                with Watching(self.on_phase if step.guarded else self.on_every_phase, phase) as watching:
                    try:
                        result = await self._attempt(step, function, prepared)
                        if phase is not None:
                            phase.output = result
                        return result
                    except Exception as error:
                        retry = step.retry
                        watching.retry(retry is not None and attempt < retry.attempts and
                                       not isinstance(error, PhaseError) and retry.covers(error), retry, attempt)  # fmt: skip
                        raise
            except Exception as error:  # noqa: BLE001 - what exec raises is the fallback's to answer, or raised again
                if isinstance(error, NodeTimeoutError):
                    self.event("timeout", call, {"attempt": attempt, "timeout": step.timeout, "error": error})
                if watching.delay is None:
                    return await self._fall_back(step, prepared, error, call)
                self.event("retry", call, {"attempt": attempt, "delay": watching.delay, "error": error})
            if watching.delay and self.loop:
                await asyncio.sleep(watching.delay)
            elif watching.delay:
                time.sleep(watching.delay)  # noqa: ASYNC251 - no event loop runs here

    async def _attempt(self, step: Step, function: Callable[..., Any], prepared: Any) -> Any:
        if step.timeout is None:
            return await self._call(step, "exec", function, step.exec_async, not self.threads, prepared)
        if not self.loop:
            try:
                result = pool().call_blocking(step.timeout, function, prepared)
            except Late as error:
                raise _timed_out(step) from error
            if result.__class__ is CoroutineType:
                raise _unawaited(step, "exec", result)
            return result
        try:
            async with asyncio.timeout(step.timeout) as deadline:
                return await self._call(step, "exec", function, step.exec_async, False, prepared)
        except TimeoutError as error:
            if deadline.expired():
                raise _timed_out(step) from error
            raise

    async def _fall_back(self, step: Step, prepared: Any, error: Exception, call: NodeCall | None) -> Any:
        if step.fallback is None or isinstance(error, PhaseError):
            raise error
        phase = PhaseCall(call, "fallback", input=prepared) if call is not None else None
        with Watching(self.on_phase, phase):
            result = await self._call(
                step, "fallback", step.fallback, step.fallback_async, not self.threads, prepared, error
            )
            if phase is not None:
                phase.output = result
        if call is not None:
            call.outcome = "fallback"
        self.event("fallback", call, {"error": error})
        return result

    # ------------------------------------------------------------ hooks
    async def _clean_up(self, step: Step, call: NodeCall | None, hooks: tuple[str, str],
                        outcome: Any) -> asyncio.CancelledError | None:  # fmt: skip
        """Run the node's hooks, whatever happens meanwhile; a cancellation that comes is handed back.

        What they raise is reported: it must not hide the node's own error, nor undo what has landed.
        """
        cancelled = None
        for name in hooks:
            if name not in step.hooks:
                continue
            arguments = () if name == "on_complete" else (outcome,)
            hook = self._hook(step, name, *step.hooks[name], *arguments)
            try:
                if self.loop:
                    task, stopped = await to_its_end(hook, self.grace)
                    cancelled = stopped or cancelled
                    task.result()
                else:
                    await hook
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - reported, as the docstring says
                self.event("clean_up_failed", call, {"hook": name, "error": error})
                report(f"{step.title}.{name}", error)
        return cancelled

    async def _hook(self, step: Step, name: str, function: Callable[..., Any], is_async: bool, *arguments: Any) -> None:
        contested: set[str] = set()
        gates = self.stack.gates
        with ExitStack() as priority:
            for tries in range(1, MAX_CONFLICTS + 1):
                await self.stack.pause_after(tries - 1)
                turn = gates.turn(contested, tries > FREE_CONFLICTS)
                try:
                    async with turn:
                        if tries > FREE_CONFLICTS:
                            priority.enter_context(gates.priority(contested))
                        transaction = Transaction(self.stack, step.guard(self.prefix))
                        view: Any = _VIEWS["post", is_async](transaction, self.prefix)
                        await self._call(step, name, function, is_async, self.in_place, view, *arguments)
                        try:
                            if (commit := transaction.end()) is not None:
                                gates.refuse_to_overtake(commit[1])
                                await self.stack.write(commit[0], {**commit[1], **self.fence})
                            return
                        except ConflictError as conflict:
                            contested |= conflict.keys
                            if tries == MAX_CONFLICTS or not contested.isdisjoint(self.fence):
                                raise
                finally:
                    turn.leave()

    def event(self, name: str, call: NodeCall | None, attributes: Mapping[str, Any]) -> None:
        """Tell the observers."""
        if call is not None:
            tell(self.observers, name, call, attributes)


class _Lost(Exception):
    """The commit met a conflict: what another try needs to know."""

    def __init__(self, conflict: ConflictError, transaction: Transaction, prepared: Any, result: Any) -> None:
        self.conflict, self.transaction, self.prepared, self.result = conflict, transaction, prepared, result


def _way(left: Next[Any]) -> tuple[str, Any]:
    return left.action, left.output


def _timed_out(step: Step) -> NodeTimeoutError:
    return NodeTimeoutError(f"node {step.name!r}: exec took longer than timeout={step.timeout:g} seconds")


def _name_the_phase(error: MissingKeyError, step: Step, phase: str) -> None:
    if "needed by" not in str(error):
        error.args = (f"{error}, needed by {step.title}.{phase}",)


def _unawaited(step: Step, phase: str, coroutine: Coroutine[Any, Any, Any]) -> PhaseError:
    coroutine.close()
    name = getattr(coroutine, "__qualname__", "a coroutine")
    return PhaseError(f"{step.title}.{phase} returned a coroutine: a call lacks `await` (probably {name})")


_VIEWS: dict[tuple[str, bool], Callable[[Transaction, str], Any]] = {
    ("prep", True): StoreReader, ("prep", False): SyncReader, ("post", True): StoreWriter, ("post", False): SyncWriter,
}  # fmt: skip
