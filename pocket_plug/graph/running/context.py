"""Ids of runs and visits, a context of its own for each run in the caller's task, and writes that are awaited to their end."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar
from urllib.parse import unquote

from pocket_plug.errors import UnknownRunError
from pocket_plug.primitives.forking import after_fork
from pocket_plug.primitives.waiting import to_its_end

T = TypeVar("T")

idempotency: ContextVar[str | None] = ContextVar("pocket_plug.idempotency_key", default=None)
"""The idempotency key of the current visit, in a durable run."""


def idempotency_key() -> str:
    """A string that is the same for each try of this visit of this node, in any process, and different for any other visit.

    `exec` runs at least once: pass the key to a service that ignores a second request with the same key. It is made of the run's
    id, the node and the visit. Raises UnknownRunError outside of durable runs. A run without an id that a node of a durable run
    starts has no key either, since all of its nodes would have the same one: pass the key in its input, or give it a run_id.
    """
    return _key_for("idempotency_key()")


def current_run_id() -> str:
    """The id of the durable run in which this is called, the outermost one: for keys of the run's own state, or another service.

    Can be called in all phases and hooks of a node, and in functions that they call. Raises UnknownRunError as
    `idempotency_key()`.
    """
    return unquote(_key_for("current_run_id()").partition("/")[0])


def _key_for(caller: str) -> str:
    key = idempotency.get()
    if key is None:
        raise UnknownRunError(
            f"{caller}: there is no durable run here; start it with run(…, run_id=…). To test the node alone, give "
            "run_node(…, run_id=…)"
        )
    return key


@types.coroutine
def in_own_context(coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Await a coroutine in a copied context of its own, within the caller's task.

    So context variables that a run sets don't leak into the caller, and spans close in the context that they were opened in.
    A task would do the same, but costs ten times as much, and a cancellation of the caller would not be the run's.
    """
    context = copy_context()
    try:
        waiting = context.run(coroutine.send, None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # what it returns is T
    return (yield from _rest(coroutine, waiting, context))


async def awaited_to_its_end(
    writing: Coroutine[Any, Any, object], *, begins_here: bool
) -> asyncio.CancelledError | None:
    """Await a write to its end once it has begun. A cancellation that comes meanwhile is returned.

    A write that `begins_here` begins in the caller's task, in a context of its own, and mostly ends there. If it waits, another
    task continues it. So it must await only objects that any task may await: a future, a Waiter.
    """
    going, waiting, context = writing, object(), copy_context()
    if begins_here:
        try:
            waiting = context.run(writing.send, None)
        except StopIteration:
            return None
        going = _go_on(writing, waiting, context)
    task, cancelled = await to_its_end(going, None)
    while begins_here and task.cancelled() and inspect.getcoroutinestate(writing) == inspect.CORO_SUSPENDED:
        # All tasks were cancelled, as when a loop ends, before that task's first step: it has ended without the write.
        task, later = await to_its_end(_go_on(writing, waiting, context), None)
        cancelled = later or cancelled
    if cancelled is not None and (task.cancelled() or task.exception() is not None):
        raise cancelled  # nothing was written, so the run may end here
    task.result()
    return cancelled


async def _go_on(coroutine: Coroutine[Any, Any, T], waiting: object, context: Context) -> T:
    return await types.coroutine(_rest)(coroutine, waiting, context)


def _rest(coroutine: Coroutine[Any, Any, T], waiting: object, context: Context) -> Generator[Any, Any, T]:
    """Await the rest of a coroutine that waits for `waiting`."""
    step: Callable[[Any], Any]
    while True:
        try:
            step, argument = coroutine.send, (yield waiting)
        except GeneratorExit:
            context.run(coroutine.close)
            raise
        except BaseException as error:  # noqa: BLE001 - it is raised inside the coroutine
            step, argument = coroutine.throw, error
        try:
            waiting = context.run(step, argument)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # what it returns is T


class _RunIds:
    """Unique ids without a system call for each: a random prefix and a counter. A forked child gets a new prefix."""

    next: Callable[[], str]
    """The next id."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start with a new prefix."""
        prefix = int.from_bytes(os.urandom(6), "big") << 32  # prefix and counter are one number, which is faster shown
        self.next = map("%020x".__mod__, itertools.count(prefix + 1)).__next__


run_ids = _RunIds()
after_fork(run_ids.renew)
