"""Calls one phase of a node: async, in place or in a worker thread, observed or not; and `exec` with its attempts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from types import CoroutineType
from typing import Any

from pocket_plug.errors import (
    NodeTimeoutError,
    OtherRunError,
    OutcomeUnknownError,
    PhaseError,
    RunCancelledError,
    RunFencedError,
    RunSuspendedError,
    WrappedCancelledError,
)
from pocket_plug.graph.elsewhere import Elsewhere, Work
from pocket_plug.graph.nodes.phases import Function
from pocket_plug.graph.nodes.retry import Retry
from pocket_plug.graph.observing.views import NodeCall, Phase, PhaseCall
from pocket_plug.graph.observing.watching import Part, Watching
from pocket_plug.graph.planning.step import Step
from pocket_plug.primitives.values import Value
from pocket_plug.primitives.waiting import pause

from .protocols import Running
from .workers import WorkerTimeout, pool, wrapped

AsyncFunction = Callable[..., Coroutine[Any, Any, Any]]


def placed(function: Function | None, is_async: bool, in_thread: bool) -> tuple[Any, bool]:
    """What to call for a phase: its function, or one that calls it in a worker thread; and whether the call is awaited."""
    if in_thread and function is not None and not is_async:
        return partial(_in_thread, function), True
    return function, is_async


def _in_thread(function: Function, *arguments: object) -> Coroutine[Any, Any, Any]:
    return pool().call(function, *arguments)


async def checked(step: Step, phase: str, function: Function, awaits: bool, *arguments: object) -> Value:
    """Call a phase, and return its result. Raises PhaseError if the result is a coroutine, which nobody would await."""
    try:
        result = await function(*arguments) if awaits else function(*arguments)
    except StopIteration as error:
        raise wrapped(error) from error
    if result.__class__ is CoroutineType:
        raise unawaited(step, phase, result)
    return result


def unawaited(step: Step, phase: str, coroutine: Any) -> PhaseError:
    """The error for a phase that returned a coroutine."""
    coroutine.close()
    name = getattr(coroutine, "__qualname__", "a coroutine")
    why = f"a call lacks `await` (probably {name})"
    if name == getattr(step.functions.get(phase), "__qualname__", None):  # functools.wraps gave the wrapper its name
        why = f"{name} is `async def`, but is decorated by a function that is not; let the decorator return an `async def`"
    return PhaseError(f"{step.title}.{phase} returned a coroutine: {why}")


_RUN_ERRORS = (RunSuspendedError, RunCancelledError, RunFencedError, OutcomeUnknownError)
"""Errors that a durable run raises itself. If a phase raises one of them, it comes from another run."""


def error_of_node(run: Running, step: Step, phase: str, error: BaseException) -> BaseException:
    """The error that a node raises for an error in a phase. One that belongs to another durable run becomes OtherRunError."""
    if isinstance(error, StopIteration):
        return wrapped(error)
    if isinstance(error, asyncio.CancelledError) and run.ledger is not None and phase in step.phases:
        return _cancellation_error(run, step, phase, error)
    is_own = not phase or step.perform is not None or run.ledger is None or run.ledger.has_released(error)
    if is_own or not isinstance(error, _RUN_ERRORS):
        return error
    other = OtherRunError(
        f"{step.title}.{phase} has ended with {type(error).__name__} of another run, not of its own run {run.run.id!r}: {error}. "
        "Catch it in the phase, or make the other run's graph a node of this graph, so that both wait together"
    )
    other.__cause__ = error
    return other


def _cancellation_error(run: Running, step: Step, phase: str, error: asyncio.CancelledError) -> BaseException:
    """The error for a CancelledError in a durable run's node: WrappedCancelledError if nobody has cancelled the run's task.

    A plain CancelledError would be taken for the end of the process, and would leave the run stalled.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # the run has no event loop
        task = None
    if task is not None and task.cancelling():
        return error
    found = WrappedCancelledError(
        f"{step.title}.{phase} raised CancelledError, but run {run.run.id!r} was not cancelled: what the phase awaited was "
        "cancelled"
    )
    found.__cause__ = error
    return found


# ---------------------------------------------------------------- observed runs
async def watch(
    observers: Sequence[Part], step: Step, call: Any, phase: Phase, function: Function, awaits: bool, *arguments: object
) -> Value:
    """Call a phase inside these observers, measure it, and return its result."""
    is_exec = phase == "exec"
    if is_exec:
        call.attempts += 1
    about = PhaseCall(call, phase, input=arguments[0] if is_exec else arguments[1])
    with Watching(observers, about):
        about.output = await checked(step, phase, function, awaits, *arguments)
    return about.output


# ---------------------------------------------------------------- exec
def attempts(step: Step, exec: Any, in_threads: Collection[str]) -> AsyncFunction:
    """The function that runs `exec` of a guarded node: attempts as its retry allows, then the fallback."""
    attempt, fall_back = _attempt(step, exec, "exec" in in_threads), _fallback(step, "fallback" in in_threads)
    retry = step.retry

    async def work(run: Running, call: NodeCall | None, prepared: Value) -> Value:
        number = 0
        while True:
            number += 1
            if call is not None:
                call.attempts += 1
            about = PhaseCall(call, "exec", number, step.timeout, input=prepared) if call is not None else None
            watching = Watching(run.watchers.of_phases, about)
            try:
                with watching:
                    try:
                        result = await attempt(run, prepared)
                        if result.__class__ is CoroutineType:
                            raise unawaited(step, "exec", result)
                    except Exception as error:
                        watching.retry(_may_retry(retry, number, error), retry, number)
                        raise
                    if about is not None:
                        about.output = result
                    return result
            except Exception as error:  # noqa: BLE001 - the fallback handles it, or it is raised again
                if isinstance(error, NodeTimeoutError):
                    run.event("timeout", call, {"attempt": number, "timeout": step.timeout, "error": error})
                if watching.delay is None:
                    run.attempts = number
                    return await fall_back(run, call, prepared, error)
                if call is not None:
                    call.retries += 1
                run.event("retry", call, {"attempt": number, "delay": watching.delay, "error": error})
            if watching.delay:
                await (pause(watching.delay) if run.ledger is None else run.ledger.pause(watching.delay))

    return work


def _may_retry(retry: Retry | None, number: int, error: Exception) -> bool:
    if retry is None or number >= retry.attempts or isinstance(error, PhaseError):
        return False
    return retry.covers(error)


def _attempt(step: Step, function: Function, in_thread: bool) -> AsyncFunction:
    """The function for one attempt at `exec`, within the node's timeout."""
    timeout = step.timeout
    if step.executor is not None:
        return _attempt_by_executor(step, step.executor)
    if timeout is None:
        function, awaits = placed(function, step.exec_async, in_thread)

        async def attempt_at_once(run: Running, prepared: Value) -> Value:
            return await checked(step, "exec", function, awaits, prepared)

        return attempt_at_once
    late = _timeout_message(step)
    beside = partial(checked, step, "exec", *placed(function, step.exec_async, in_thread=True))

    def blocking(prepared: Value) -> Value:
        return pool().call_blocking(timeout, function, prepared)

    async def attempt(run: Running, prepared: Value) -> Value:
        if not run.loop:
            try:
                return await checked(step, "exec", blocking, False, prepared)
            except WorkerTimeout as error:
                raise NodeTimeoutError(late) from error
        deadline = asyncio.timeout(timeout)
        try:
            async with deadline:
                return await beside(prepared)
        except TimeoutError as error:
            if deadline.expired():
                raise NodeTimeoutError(late) from error
            raise

    return attempt


def _attempt_by_executor(step: Step, executor: Elsewhere) -> AsyncFunction:
    """The function for one attempt by an executor. The executor applies the timeout, since it knows when the attempt begins."""

    def perform(run: Running, prepared: Value) -> Coroutine[Any, Any, Value]:
        work = Work(step.name, step.exec, step.exec_async, prepared, step.address, step.timeout)
        return run.pocket.executor(executor).perform(work)

    async def attempt(run: Running, prepared: Value) -> Value:
        try:
            return await perform(run, prepared)
        except WorkerTimeout as error:
            raise NodeTimeoutError(_timeout_message(step)) from error

    # Thousands may wait in it at a time, so without a timeout it has one coroutine less.
    return perform if step.timeout is None else attempt


def _timeout_message(step: Step) -> str:
    return f"node {step.name!r}: exec took longer than timeout={step.timeout:g} seconds"


def _fallback(step: Step, in_thread: bool) -> AsyncFunction:
    """The function that is called when `exec` has no attempts left: it calls the fallback, or raises the error."""
    fallback, awaits = placed(step.fallback, step.fallback_async, in_thread)

    async def fall_back(run: Running, call: NodeCall | None, prepared: Value, error: Exception) -> Value:
        if fallback is None or isinstance(error, PhaseError):
            raise error
        about = PhaseCall(call, "fallback", input=prepared) if call is not None else None
        with Watching(run.watchers.of_phases, about):
            result = await checked(step, "fallback", fallback, awaits, prepared, error)
            if about is not None:
                about.output = result
        if call is not None:
            call.outcome = "fallback"
        run.event("fallback", call, {"error": error})
        return result

    return fall_back
