"""What a worker calls: one function from bytes to bytes, which finds the nodes, runs their `exec`, and answers for each item.

It needs no run, no store and no Pocket. Spans that `exec` makes belong to the trace of the run; this process sends them with the
provider that it has set up.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import time
from collections.abc import Awaitable, Generator
from contextlib import closing, contextmanager
from contextvars import copy_context
from types import CoroutineType
from typing import Final

from opentelemetry import context
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context

from pocket_plug.codec import default_codec
from pocket_plug.errors import CodecError, WorkerCodeError
from pocket_plug.graph.addresses import MAIN, find
from pocket_plug.graph.following.events import NodePlace
from pocket_plug.graph.following.reports import AT_ONCE, reporter
from pocket_plug.graph.planning.step import Step
from pocket_plug.graph.running.context import idempotency
from pocket_plug.graph.running.phase_calls import unawaited
from pocket_plug.graph.running.workers import end_child, wrapped
from pocket_plug.primitives.failures import describe
from pocket_plug.primitives.spawned import WORKER
from pocket_plug.primitives.values import Value
from pocket_plug.propagation import context_of

from .failures import taken_apart
from .versions import declare, fingerprint, is_same
from .wire import Answer, Answers, Item, Node, Report, chunk_of, to_bytes

ENOUGH = 0.5
"""Seconds after which a worker begins no more items of a chunk: they take longer than expected, and other workers may be free."""

_NEW_WORKERS: Final = (
    "The module was changed after your program or the worker imported it. Load it again, and run the graph in a new Pocket, "
    "which has new workers: `with Pocket() as pocket: graph.run_sync(…, pocket=pocket)`; or start your program, or the "
    "notebook's kernel, again"
)
_LATE: Final = Answer()
_BAGGAGE = W3CBaggagePropagator()


def perform(request: bytes) -> bytes:
    """Execute a request, and return the answers. An item's error is its answer. Raises CodecError for invalid bytes.

    If it takes too long, only the first items have an answer; the others weren't begun.
    """
    came = time.perf_counter()
    chunk = chunk_of(request)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    with closing(asyncio.Runner()) as runner:  # it makes its event loop for the first `async def` exec
        nodes = [_found(node, worker) for node in chunk.nodes]
        answers: list[Answer] = []
        end = time.perf_counter() + ENOUGH
        for item in chunk.items:
            now = time.perf_counter()
            if answers and now >= end:
                break
            if item.seconds is not None and now >= came + item.seconds:
                answers.append(_LATE)
            else:
                answers.append(_answer(item, chunk.nodes[item.node], nodes[item.node], runner))
    return to_bytes(Answers(worker, answers))


class _Reports:
    """Keeps what an exec reports for its answer: whoever follows the run is in the other process."""

    def __init__(self, place: str) -> None:
        self.place = NodePlace.parse(place)
        self.kept: list[Report] = []

    def emit(self, value: object) -> Awaitable[None]:
        self.kept.append(Report(default_codec.encode(value)))
        return AT_ONCE

    def progress(self, done: float, total: float | None) -> None:
        if self.kept and self.kept[-1].value is None:  # only the newest is of interest
            self.kept.pop()
        self.kept.append(Report(None, done, total))


def _answer(item: Item, node: Node, found: Step | WorkerCodeError, runner: asyncio.Runner) -> Answer:
    began = time.perf_counter()
    reports = None if item.place is None else _Reports(item.place)
    try:
        if isinstance(found, WorkerCodeError):
            raise found
        result = copy_context().run(_in_context, found, item, runner, reports)
        try:
            record = default_codec.encode(result)
        except CodecError as error:
            raise type(error)(f"node {node.name!r}: the result of exec can't be sent back: {error}") from error
        failure = None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - it is raised in the process of the run
        failure, record = taken_apart(wrapped(error) if isinstance(error, StopIteration) else error), None
    kept = () if reports is None else tuple(reports.kept)
    return Answer(record, failure, time.perf_counter() - began, kept)


def _in_context(step: Step, item: Item, runner: asyncio.Runner, reports: _Reports | None) -> Value:
    """Call exec in a context of its own: the run's span is the current one, and `idempotency_key()` is known."""
    context.attach(_BAGGAGE.extract(item.carrier, context_of(item.carrier, Context())) if item.carrier else Context())
    idempotency.set(item.key)
    reporter.set(reports)
    assert step.exec is not None
    value = default_codec.decode(item.value)
    if step.exec_async:
        return runner.run(_awaited(step.exec(value)), context=copy_context())
    with _ending_children():
        result = step.exec(value)
    if result.__class__ is CoroutineType:
        raise unawaited(step, "exec", result)
    return result


async def _awaited(operation: Awaitable[Value]) -> Value:
    with _ending_children():  # here, since Python 3.14 has no running loop in a child: there the task would never end
        return await operation


@contextmanager
def _ending_children() -> Generator[None]:
    """If exec forks this process, end the child when exec ends in it: its answer would be taken for the next item's."""
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != process:
            end_child()


# ---------------------------------------------------------------- the node
_codes: dict[tuple[str, tuple[str, ...]], tuple[Value, str]] = {}
"""By node: the function of its exec, and that function's fingerprint."""


def _found(node: Node, worker: str) -> Step | WorkerCodeError:
    """The node's step, or an error that says why there is none: its code isn't here, or is another version."""
    module = node.reference.partition(":")[0]
    title = f"node {node.name!r} ({'/'.join((node.reference, *node.path))})"
    expected = f"version {node.version}, code {node.code}"
    try:
        step, version = find(node.reference, node.path)
        if step.exec is None:
            raise LookupError("it has no exec")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - importing a module runs the user's code; the error is raised in the process of the run
        why = describe(error)
        advice = "Install the code there, or put it on the worker's PYTHONPATH"
        if module == MAIN:
            advice = f'Define it above `if __name__ == "{MAIN}":`'
        return WorkerCodeError(f"worker {worker} has no {title}: {why}. {advice}", *(worker, module, expected, why))
    key = node.reference, node.path
    known = _codes.get(key)
    if known is None or known[0] != step.exec:
        declare(step.exec)
        known = _codes[key] = step.exec, fingerprint(step.exec)
    if version == node.version and is_same(node.code, known[1]):
        return step
    advice = f"Install the same {module!r} there, and restart the worker"
    if multiprocessing.current_process().name.startswith(WORKER):
        advice = _NEW_WORKERS
    return WorkerCodeError(
        f"worker {worker} has another version of {title}: version {version}, code {known[1]}; expected is {expected}. {advice}",
        *(worker, module, expected, f"version {version}, code {known[1]}"),
    )
