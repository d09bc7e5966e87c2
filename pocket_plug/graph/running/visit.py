"""The one path through a node: an object that takes a value through the node's phases, made with the plan.

When the plan is made, it is known which phases the node has, which of them are async, and whether it has a retry, hooks or
declared keys. So no visit looks this up again. Observed and unobserved runs take the same path; observers are called around the
phases.
"""

# This module makes the store's views itself, so it sets their private attributes.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack, nullcontext
from types import CoroutineType
from typing import Any, cast

from pocket_plug.errors import ConflictError, InputError, MissingKeyError, RunSuspendedError
from pocket_plug.graph.nodes.chain import DEFAULT, END, Next
from pocket_plug.graph.nodes.node import AnyNode
from pocket_plug.graph.nodes.phases import PHASES
from pocket_plug.graph.observing.views import NodeCall, Time, note_times
from pocket_plug.graph.planning.step import Step, Visited, make_step
from pocket_plug.primitives.typechecks import type_found, type_name
from pocket_plug.primitives.values import Value
from pocket_plug.store.store import StoreReader, StoreWriter
from pocket_plug.store.sync import SyncReader, SyncWriter
from pocket_plug.store.transaction import Transaction, begin

from .clean_up import clean_up
from .phase_calls import attempts, error_of_node, placed, unawaited, watch
from .places import note_node
from .protocols import FREE_CONFLICTS, LATE_CONFLICTS, MAX_CONFLICTS, Running

NO_TRANSACTION: Any = begin(cast(Any, None))
"""Stands for the transaction of a node that has neither prep nor post."""


new_view: Any = object.__new__
"""Makes a view without a call of its `__init__`, to save time: each visit makes two."""


def step_of(node: AnyNode) -> Step:
    """The step for a node of any kind, with the paths through it."""
    step = make_step(node)
    kind = PhasesAndHooks if step.hooks else Phases
    in_threads: Sequence[Collection[str]] = ((), ("exec", "fallback"), PHASES)
    step.ways = (kind(step, ()),) * 3 if step.is_async else tuple(kind(step, phases) for phases in in_threads)
    return step


class Phases:
    """The path through one node: prep, exec, post, the choice of the edge, and the commit."""

    __slots__ = (
        *("awaits_exec", "awaits_post", "awaits_prep", "checks", "declares", "exec", "input_class", "post", "prep"),
        *("guarded", "reader", "step", "wraps_exec", "writer"),
    )

    def __init__(self, step: Step, in_threads: Collection[str]) -> None:
        self.step = step
        self.prep, self.awaits_prep = placed(step.prep, step.prep_async, "prep" in in_threads)
        self.exec, self.awaits_exec = placed(step.exec, step.exec_async, "exec" in in_threads)
        self.post, self.awaits_post = placed(step.post, step.post_async, "post" in in_threads)
        self.wraps_exec = step.wraps_exec
        if self.wraps_exec:
            self.exec = step.perform or attempts(step, step.exec, in_threads)
        self.reader = StoreReader if step.prep_async else SyncReader
        self.writer = StoreWriter if step.post_async else SyncWriter
        self.input_class, self.checks = step.input_class, step.fits is not None and not step.hooks
        self.declares, self.guarded = step.declares_keys, step.guarded

    async def take(self, run: Running, value: object, call: NodeCall | None, lost: Lost = None) -> Visited:
        """Take a value through the node. After a conflict (`lost`), take it again: from prep, or only post."""
        step, ready, transaction = self.step, value, NO_TRANSACTION
        if self.checks and value.__class__ is not self.input_class:
            check(run, step, value)
        observers = () if call is None else run.watchers.of_phases if self.guarded else run.watchers.of_every_phase
        began = None if call is None or observers else time.perf_counter()
        phase, prepped, execed, done = "prep", None, None, None
        try:
            if lost is not None and lost.prep_stands:
                transaction, ready, done, output = lost.transaction.again(), lost.prepared, lost.result, lost.result
            else:
                if (prep := self.prep) is not None:
                    transaction = await _declared_transaction(run, step) if self.declares else begin(run.stack)
                    view = new_view(self.reader)
                    view._source, view._prefix = transaction, run.prefix
                    ready = (
                        await watch(observers, step, call, "prep", prep, self.awaits_prep, view, value)
                        if observers
                        else (await prep(view, value) if self.awaits_prep else prep(view, value))
                    )
                    if ready.__class__ is CoroutineType:
                        raise unawaited(step, phase, ready)
                phase, prepped = "exec", time.perf_counter() if began is not None else None
                output = done = ready
                if (exec := self.exec) is not None:
                    output = done = (
                        await exec(run, call, ready)
                        if self.wraps_exec
                        else await watch(observers, step, call, "exec", exec, self.awaits_exec, ready)
                        if observers
                        else (await exec(ready) if self.awaits_exec else exec(ready))
                    )
                    if done.__class__ is CoroutineType:
                        raise unawaited(step, phase, done)
            if (post := self.post) is not None:
                phase, execed = "post", time.perf_counter() if began is not None else None
                if transaction is NO_TRANSACTION:
                    transaction = await _declared_transaction(run, step) if self.declares else begin(run.stack)
                transaction.in_post = True
                view = new_view(self.writer)
                view._source, view._prefix = transaction, run.prefix
                output = (
                    await watch(observers, step, call, "post", post, self.awaits_post, view, value, ready, done)
                    if observers
                    else (await post(view, value, ready, done) if self.awaits_post else post(view, value, ready, done))
                )
                if output.__class__ is CoroutineType:
                    raise unawaited(step, phase, output)
            phase, target, transaction.ended = "", step.next, True
            if call is not None or output.__class__ is Next:
                target, output = _next_step(run, step, output, call, began, prepped, execed)
            is_done = not transaction.changes and not transaction.seen and run.ledger is None
            return target, output, None if is_done else await _commit(run, step, transaction, target, output)
        except BaseException as error:  # noqa: BLE001 - raised again, except for a conflict
            times, made = (began, prepped, execed), (ready, done)
            missed = _failed(run, step, phase, transaction, error, lost is None, call, times, made)
        return await _try_again(run, self, value, call, missed, lost)


def check(run: Running, step: Step, value: object) -> None:
    """Raise InputError if the value doesn't have the type of the node's input."""
    if step.fits is not None and not step.fits(value):
        wanted, found = type_name(step.input_type), type_found(step.input_type, value)
        refused = InputError(f"node {step.name!r} of graph {run.run.graph!r} takes {wanted}, not {found}")
        note_node(refused, run, step)
        raise refused


async def _declared_transaction(run: Running, step: Step) -> Transaction:
    """A transaction for the declared keys only. The keys in `reads`, except templates, are already read, in one call."""
    transaction = begin(run.stack, step.guard(run.prefix))
    if names := [run.prefix + key.full_name() for key in step.reads if key.is_filled]:
        await transaction.read_many(names)
    return transaction


def _next_step(
    run: Running, step: Step, output: Value, call: NodeCall | None, began: Time, prepped: Time, execed: Time
) -> tuple[Step | None, Value]:
    """The step that comes next (None: the run ends), and its input."""
    if began is not None and call is not None:
        note_times(call, began, prepped, execed)
    action, target = DEFAULT, step.next
    if output.__class__ is Next:
        action, output = output.action, output.output
        target = step.actions.get(action)
        if target is None:
            _end_run(run, step, action)
    if call is not None:
        call.action, call.next = action, target.name if target is not None else None
    return target, output


def _end_run(run: Running, step: Step, action: str) -> None:
    """End the run by an action for which the node has no edge. Raises RouteError if no outer graph has one either."""
    if action == END.name or action == DEFAULT:
        action = DEFAULT
    elif step.is_item or action not in run.exits:
        raise step.no_route(action, run.run.graph)
    run.left_by = action


def _failed(
    run: Running,
    step: Step,
    phase: str,
    transaction: Transaction,
    error: BaseException,
    is_last: bool,
    call: NodeCall | None,
    times: tuple[Time, Time, Time],
    made: tuple[Value, Value],
) -> CommitConflict:
    """Raise the node's error for an error in a phase, with a note that says where, unless another try follows.

    Returns the conflict if the commit has found one, or a read in the phase already.
    """
    transaction.ended = True
    is_ours = error is transaction.stale or (not phase and transaction is not NO_TRANSACTION)
    if isinstance(error, ConflictError) and is_ours:
        return CommitConflict(error, transaction, *made)
    began, prepped, execed = times
    if began is not None and call is not None and phase:
        note_times(call, began, prepped, execed)
    if isinstance(error, MissingKeyError) and phase in step.phases and "needed by" not in str(error):
        error.args = (f"{error}, needed by {step.title}.{phase}",)
    error = error_of_node(run, step, phase, error)
    if is_last and not isinstance(error, RunSuspendedError):
        note_node(error, run, step)
    try:
        raise error
    finally:
        del error  # its traceback refers to this frame: a cycle


# ---------------------------------------------------------------- the commit
class CommitConflict(Exception):
    """A commit failed with a conflict; this has what another try needs."""

    prep_stands = False
    """Would prep read the same again, so that only post has to be tried again?"""

    def __init__(self, conflict: ConflictError, transaction: Transaction, prepared: Value, result: Value) -> None:
        self.conflict, self.transaction, self.prepared, self.result = conflict, transaction, prepared, result


Lost = CommitConflict | None


async def _commit(
    run: Running, step: Step, transaction: Transaction, target: Step | None, output: Value
) -> asyncio.CancelledError | None:
    """Write the node's changes. A cancellation that comes meanwhile is returned."""
    commit = None if transaction is NO_TRANSACTION else transaction.end(serializable=step.serializable)
    if run.ledger is not None:
        return await run.ledger.commit(run, step, target, output, commit)
    if commit is not None:
        stack, (changes, expect) = run.stack, commit
        if expect:
            stack.gates.refuse_to_overtake(expect)
        if not stack.inline_write and changes:  # a check alone may be cancelled at any point
            return await run.to_its_end(stack.write(changes, expect))
        await stack.write(changes, expect)
    return None


async def _try_again(
    run: Running, way: Phases, value: object, call: NodeCall | None, lost: CommitConflict, before: Lost
) -> Visited:
    """Try the node again after a conflict, and note on an error where it was raised."""
    if before is not None:
        raise lost  # inside another try, whose loop continues
    try:
        return await _tries(run, way, value, call, lost)
    except BaseException as error:
        if not isinstance(error, RunSuspendedError):
            note_node(error, run, way.step)
        raise


async def _tries(run: Running, way: Phases, value: object, call: NodeCall | None, lost: CommitConflict) -> Visited:
    """Try the node again: at once a few times, then in a queue for the keys in conflict."""
    contested: set[str] = set()
    run.left_by = DEFAULT
    gates = run.stack.gates
    with ExitStack() as priority:
        for tries in range(1, MAX_CONFLICTS):
            run.event("conflict", call, {"tries": tries})
            contested |= lost.conflict.keys
            await run.stack.pause_after(tries)
            in_line = tries >= FREE_CONFLICTS
            if gates.taken(contested):
                priority.close()  # those before it in line write too, and would wait for its end
            turn = gates.turn(contested, in_line)
            try:
                async with turn:
                    lost.prep_stands = await lost.transaction.prep_stands(lost.conflict.keys)
                    if not lost.prep_stands:
                        priority.close()  # plain writes don't wait for an exec
                    elif in_line:
                        priority.enter_context(gates.priority(contested))
                    # The turn blocks writers in other processes: for a post, which is usually short, but never for an exec.
                    kept_off = run.stack.turn(contested) if tries >= LATE_CONFLICTS and lost.prep_stands else None
                    async with kept_off or nullcontext():
                        return await Phases.take(way, run, value, call, lost)
            except CommitConflict as again:
                lost = again
            finally:
                turn.leave()
    raise lost.conflict


# ---------------------------------------------------------------- hooks
class PhasesAndHooks(Phases):
    """The path through a node, and then its hooks. They aren't called if the input has the wrong type."""

    __slots__ = ()

    async def take(
        self, run: Running, value: object, call: NodeCall | None, lost: CommitConflict | None = None
    ) -> Visited:
        step = self.step
        check(run, step, value)
        try:
            target, output, cancelled = await super().take(run, value, call, lost)
        except BaseException as error:
            if isinstance(error, GeneratorExit) or (run.ledger is not None and isinstance(error, RunSuspendedError)):
                raise  # the run is being garbage-collected: nothing can be awaited any more; or it only waits
            cancelled = await clean_up(run, step, call, ("on_failure", "on_complete"), error)
            if cancelled is not None and isinstance(error, Exception):
                raise cancelled from error  # the caller has cancelled the run, and must see that it has ended
            raise
        late = await clean_up(run, step, call, ("on_success", "on_complete"), output)
        return target, output, cancelled or late
