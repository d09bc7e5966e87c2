"""What a run needs around it: an id, a context of its own in the caller's task, and to await some things to their end."""

from __future__ import annotations

import asyncio
import itertools
import os
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from pocket_plug.errors import SyncError
from pocket_plug.primitives.forking import after_fork
from pocket_plug.primitives.signals import run_loop
from pocket_plug.primitives.waiting import drive

if TYPE_CHECKING:
    from .runner import Execution

T = TypeVar("T")


@types.coroutine
def in_own_context(coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Await a coroutine in a copied context of its own, within the caller's task.

    So nothing that a run sets in context variables leaks into the caller, and spans close in the context that they were
    opened in. A task would do the same for ten times the price, and would not be the caller's to cancel.
    """
    context = copy_context()
    step: Callable[[Any], Any] = coroutine.send
    argument: Any = None
    while True:
        try:
            waiting = context.run(step, argument)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        try:
            step, argument = coroutine.send, (yield waiting)
        except GeneratorExit:
            context.run(coroutine.close)
            raise
        except BaseException as error:  # noqa: BLE001 - it is handed on to the coroutine
            step, argument = coroutine.throw, error


def go_in_place(execution: Execution, input: Any, is_sync: bool) -> Any:
    """Run it for a caller without `await`: with no event loop if every phase `is_sync`, else on one made for it."""
    stack = execution.stack
    if is_sync and not stack.needs_loop:
        if stack.is_new:
            stack.open_sync()
        return copy_context().run(drive, execution.go(input))
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise SyncError(
            f"graph {execution.run.graph!r} has async phases, and an event loop runs in this thread; use `await graph.run(…)`"
        )
    execution.loop = True
    if stack.needs_loop:  # what belongs to a loop can't follow a run from one loop to the next
        execution.threads = True
        if stack.is_new:
            stack.open_sync()
        return stack.run(execution.go(input))
    return run_loop(_open_and_go(execution, input))


async def _open_and_go(execution: Execution, input: Any) -> Any:
    if execution.stack.is_new:
        await execution.stack.ensure_open()
    return await execution.go(input)


async def to_its_end(coroutine: Coroutine[Any, Any, T],
                      grace: float | None) -> tuple[asyncio.Task[T], asyncio.CancelledError | None]:  # fmt: skip
    """Wait for it through any number of cancellations; give its task, which is done, and the last cancellation.

    With a `grace`, it has so many seconds from the first cancellation on, and is then cancelled itself.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(coroutine)
    cancelled: asyncio.CancelledError | None = None
    deadline: asyncio.TimerHandle | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            if cancelled is None and grace is not None:
                deadline = loop.call_later(grace, task.cancel, f"still running {grace:g} seconds after a cancellation")
            cancelled = error
    if deadline is not None:
        deadline.cancel()
    return task, cancelled


class _RunIds:
    """Unique without asking the system each time; a forked child gets a prefix of its own."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew."""
        self._prefix, self._count = os.urandom(6).hex(), itertools.count(1)

    def next(self) -> str:
        """The next id."""
        return f"{self._prefix}{next(self._count):08x}"


run_ids = _RunIds()
after_fork(run_ids.renew)
