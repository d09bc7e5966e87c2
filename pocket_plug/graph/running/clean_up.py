"""Calls a node's hooks once its outcome is known, also if the run is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any

from pocket_plug.errors import ConflictError, OutcomeUnknownError
from pocket_plug.graph.nodes.phases import Function
from pocket_plug.graph.observing.views import NodeCall
from pocket_plug.graph.observing.watching import report
from pocket_plug.graph.planning.step import Step
from pocket_plug.primitives.signals import raised_by_handler
from pocket_plug.primitives.waiting import to_its_end
from pocket_plug.store.backend import NO_EXPECTATIONS
from pocket_plug.store.store import StoreWriter
from pocket_plug.store.sync import SyncWriter
from pocket_plug.store.transaction import begin

from .phase_calls import checked, placed
from .protocols import ALL_IN_THREADS, FREE_CONFLICTS, MAX_CONFLICTS, Running


async def clean_up(
    run: Running, step: Step, call: NodeCall | None, hooks: tuple[str, str], outcome: object
) -> asyncio.CancelledError | None:
    """Call the node's hooks. If the run is cancelled meanwhile, they still end, and the cancellation is returned.

    Errors of hooks are reported, not raised: they must not hide the node's own error, and the node's writes stay. If it isn't
    known whether a durable run's node has failed, no hook is called; the next execution calls them.
    """
    if run.ledger is not None and isinstance(outcome, OutcomeUnknownError):
        return None
    cancelled = None
    for name in hooks:
        if name not in step.hooks:
            continue
        arguments = () if name == "on_complete" else (outcome,)
        hook = _error_of(run, _call(run, step, name, *step.hooks[name], *arguments))
        if run.loop:
            task, stopped = await to_its_end(hook, run.grace)
            cancelled = stopped or cancelled
            error = task.result()
        else:
            error = await hook
        if error is not None:
            run.event("clean_up_failed", call, {"hook": name, "error": error})
            report(f"{step.title}.{name}", error)
    return cancelled


async def _error_of(run: Running, hook: Coroutine[Any, Any, None]) -> BaseException | None:
    """Await a hook, and return its error; also SystemExit in a worker, which it would end.

    It is returned, not raised: asyncio raises a task's SystemExit in the loop, which it ends.
    """
    try:
        await hook
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - reported, as `clean_up` says
        return error
    except SystemExit as error:
        if run.ledger is None or not run.ledger.in_worker or raised_by_handler(error):
            raise
        return error
    return None


async def _call(run: Running, step: Step, name: str, function: Function, is_async: bool, *arguments: Any) -> None:
    """Call a hook with a transaction of its own. After a conflict call it again, as with post."""
    contested: set[str] = set()
    gates = run.stack.gates
    hook, awaits = placed(function, is_async, run.where == ALL_IN_THREADS)
    writer = StoreWriter if is_async else SyncWriter
    with ExitStack() as priority:
        for tries in range(1, MAX_CONFLICTS + 1):
            await run.stack.pause_after(tries - 1)
            if gates.taken(contested):
                priority.close()  # those before it in line write too, and would wait for its end
            turn = gates.turn(contested, tries > FREE_CONFLICTS)
            try:
                async with turn:
                    if tries > FREE_CONFLICTS:
                        priority.enter_context(gates.priority(contested))
                    transaction, fence = begin(run.stack, step.guard(run.prefix)), NO_EXPECTATIONS
                    try:
                        await checked(step, name, hook, awaits, writer(transaction, run.prefix), *arguments)
                        fence = run.ledger.fence if run.ledger is not None else NO_EXPECTATIONS
                        if (commit := transaction.end()) is not None:
                            gates.refuse_to_overtake(commit[1])
                            await run.stack.write(commit[0], {**commit[1], **fence})
                        return
                    except ConflictError as conflict:
                        if not transaction.ended and conflict is not transaction.stale:
                            raise  # the hook itself has raised it
                        is_ours = run.ledger is None or await run.ledger.refence(conflict)
                        contested |= conflict.keys - fence.keys()
                        if tries == MAX_CONFLICTS or not is_ours:
                            raise
            finally:
                turn.leave()
