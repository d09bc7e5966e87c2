"""`Graph.stream`: executes a run in a task of its own, and yields its events through a bounded buffer.

`StreamHost` adds an `Observer` to those of the run's Pocket. It puts events into a `Feed`, and the `RunStream` takes them from
there. Neither the run nor the observer refers to the RunStream. So it is garbage-collected as soon as its reader drops it, and
then the run is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Generator, Mapping
from contextlib import suppress
from contextvars import Token
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Self

from typing_extensions import TypeVar

from pocket_plug.errors import RunSuspendedError
from pocket_plug.graph.elsewhere import Elsewhere, ExecElsewhere
from pocket_plug.graph.observing.host import RunHost
from pocket_plug.graph.observing.views import NodeCall, Observer, PhaseCall, Run, RunNotice
from pocket_plug.graph.running.execution import Execution
from pocket_plug.primitives.failures import log_failure
from pocket_plug.primitives.waiting import has_loop
from pocket_plug.store.gates import holds_gates
from pocket_plug.store.store import MISSING, Store

from .events import (
    Asked,
    Emitted,
    Finished,
    ItemDone,
    NodeEntered,
    NodeLeft,
    NodePlace,
    NodeRetried,
    Progressed,
    RunEvent,
    Suspended,
)
from .feed import Feed
from .reports import AT_ONCE, Reporter, reporter

O = TypeVar("O", covariant=True)  # noqa: E741 - output


class RunStream(Generic[O]):
    """One run, and its events as they happen; made by `Graph.stream`.

    Iterating over it starts the run, in a task of its own, and so does `async with`. At the end of the `async with` block the
    run is cancelled, unless it has ended, and the block waits for its end. `aclose()` does the same. A stream that is dropped,
    as by `break` in `async for event in graph.stream(…)`, cancels its run too, but doesn't wait.
    """

    _task: asyncio.Task[None] | None = None

    def __init__(self, feed: Feed, execution: Execution) -> None:
        self._feed = feed
        self._start: Execution | None = execution
        self.run_id = execution.run.id
        """The run's id, as in plugins and traces. For a durable run, the `run_id` that it was given."""

    def __aiter__(self) -> AsyncIterator[RunEvent[O]]:
        return self

    async def __anext__(self) -> RunEvent[O]:
        self._begin()
        event = await self._feed.take()
        if event is None:
            raise StopAsyncIteration
        return event

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel the run unless it has ended, and wait for its end, hooks included.

        An error of the run is logged. If this is cancelled while it waits, it stops waiting, and the run ends by itself. Can
        be called again.
        """
        self._start = None
        self._feed.close()
        task = self._task
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task})

    def _begin(self) -> None:
        """Start the run, unless it was started before."""
        if self._start is not None:
            execution, self._start = self._start, None
            self._task = task = asyncio.get_running_loop().create_task(_execute(self._feed, execution))
            _tasks.add(task)
            task.add_done_callback(partial(_on_done, self._feed))

    def __del__(self) -> None:
        # Any thread may collect it, at any moment, so the only safe step is to schedule the rest in the loop.
        if self._task is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._task.get_loop().call_soon_threadsafe(_cancel, self._feed, self._task)


_tasks: set[asyncio.Task[None]] = set()
"""The tasks of the runs. An event loop refers to its tasks weakly, and the tasks of dropped streams must still end."""


def _on_done(feed: Feed, task: asyncio.Task[None]) -> None:
    _tasks.discard(task)
    if not feed.is_over:
        feed.end(asyncio.CancelledError())  # cancelled by others, before its first step


def _cancel(feed: Feed, task: asyncio.Task[None]) -> None:
    feed.close()
    task.cancel()


async def _execute(feed: Feed, execution: Execution) -> None:
    """Execute the run, as a task, which has a context of its own."""
    try:
        output = await execution.open_and_go()
    except RunSuspendedError as waits:
        feed.add(Suspended(waits.run_id, waits.questions, waits.wake_at))
        feed.end()
    except BaseException as error:
        feed.end(error)
        if not isinstance(error, Exception | asyncio.CancelledError):
            raise  # an interrupt must also end the event loop
    else:
        feed.add(Finished(output))
        feed.end()


# ---------------------------------------------------------------- the observer
class StreamHost:
    """The host of a run that is followed: the other host, with one more observer."""

    def __init__(self, host: RunHost, feed: Feed) -> None:
        self._host, self._feed = host, feed

    def default_store(self) -> Store | None:
        """The other host's default store."""
        return self._host.default_store()

    def notify(self, notice: RunNotice) -> None:
        """Pass the notice to the other host."""
        self._host.notify(notice)

    def executor(self, executor: Elsewhere) -> ExecElsewhere:
        """The other host's executor."""
        return self._host.executor(executor)

    def observers(self, run: Run) -> list[Observer]:
        """The other host's observers, and the one that puts events into the feed."""
        around = reporter.get() if run.parent is not None else None
        watcher = _Watcher(self._feed, around.place if around is not None else None)
        own = Observer(
            node=watcher.node, phase=watcher.attempt, event=watcher.event, pace=watcher.pace, guarded_only=True
        )
        object.__setattr__(own, "report", _report)
        return [*self._host.observers(run), own]


def _report(what: str, error: BaseException) -> None:
    """Log an error of the observer, since an event may be missing. The run continues."""
    log_failure(logging.ERROR, f"the stream of a run ({what}) failed", error)


class _Watcher:
    """Observes one run. `within` is the run's place in the run around it."""

    def __init__(self, feed: Feed, within: NodePlace | None) -> None:
        self._feed, self._within = feed, within

    def node(self, call: NodeCall) -> _Visit:
        if call.position is None:
            place = NodePlace(call.name, call.visit, within=self._within)
        else:
            around = _here()  # its fan-out
            place = replace(around, positions=(*around.positions, call.position))
        return _Visit(self._feed, place, call)

    def attempt(self, call: PhaseCall) -> _Reporting:
        return _Reporting(self._feed, _here())

    def event(self, name: str, call: NodeCall, details: Mapping[str, Any]) -> None:
        if name == "retry":
            self._feed.add(NodeRetried(_here(), details["attempt"], details["delay"], details["error"]))
        elif name == "question":
            self._feed.add(Asked(_here(), details["run_id"], details["question"]))

    async def pace(self) -> None:
        """Wait for the reader. But not while this run holds gates of the store: the reader might wait for one of them."""
        if self._feed.is_full and not holds_gates():
            await self._feed.room()
        if self._feed.is_closed:
            await asyncio.sleep(0)  # the run is being cancelled, which needs a point at which it suspends


def _here() -> NodePlace:
    here = reporter.get()
    assert here is not None  # a node of a run that is followed has one
    return here.place


class _Reporting:
    """A context manager that receives the reports from one place of the run, until the run leaves the place."""

    __slots__ = ("_feed", "_is_over", "_token", "place")
    _token: Token[Reporter | None]

    def __init__(self, feed: Feed, place: NodePlace) -> None:
        self._feed, self.place = feed, place
        self._is_over = False

    def __enter__(self) -> None:
        self._token = reporter.set(self)

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        with suppress(ValueError):  # the run is being garbage-collected, in another context
            reporter.reset(self._token)

    def emit(self, value: object) -> Awaitable[None]:
        feed = self._feed
        if self._is_over or feed.is_closed:
            return AT_ONCE
        feed.add(Emitted(self.place, value))
        if not feed.is_full or holds_gates():
            return AT_ONCE
        if has_loop():
            return _Room(feed)
        feed.block()
        return AT_ONCE

    def progress(self, done: float, total: float | None) -> None:
        if not self._is_over:
            self._feed.add(Progressed(self.place, done, total), instead_of=self.place)


class _Visit(_Reporting):
    """`_Reporting` for a visit of a node. It also adds the events of entering and leaving the node."""

    __slots__ = ("_call",)

    def __init__(self, feed: Feed, place: NodePlace, call: NodeCall) -> None:
        super().__init__(feed, place)
        self._call = call

    def __enter__(self) -> None:
        super().__enter__()
        if self._call.position is None:
            self._feed.add(NodeEntered(self.place, self._call.type))

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        call, output = self._call, self._call.output
        if call.outcome == "suspended":
            return  # the run waits there, so it hasn't left the node
        if call.outcome in ("failed", "cancelled"):
            output = MISSING
        if call.position is None:
            self._feed.add(NodeLeft(self.place, output, call.outcome or "ok", call.error))
        else:
            self._feed.add(ItemDone(self.place, output, call.error))


class _Room:
    """An awaitable that waits for room in a feed."""

    __slots__ = ("_feed",)

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def __await__(self) -> Generator[Any, None, None]:
        return self._feed.room().__await__()
