"""A queue of DBOS whose workflows are durable runs.

A workflow is a turn: it executes a run until the run finishes or has to wait. The first turn has the run's id, later ones the
id and a number. All that a turn needs is in the store, so it may start any number of times: the executor that claims the run
continues it. But a run must never be without a turn: for each run that is pending, or will be, a turn is queued or delayed.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context
from datetime import UTC, datetime
from typing import Any, Final, TypedDict, TypeVar

from dbos import DBOS, EnqueueOptions, ScheduleInput, WorkflowSerializationFormat
from dbos import error as dbos_error
from opentelemetry import context as otel_context
from opentelemetry import trace

from pocket_plug import Graph, RunInfo, Runs, StoreScope, SyncScope
from pocket_plug.errors import (
    ConfigError,
    PocketError,
    RunBusyError,
    RunCancelledError,
    RunFencedError,
    RunStateError,
    RunSuspendedError,
    StoreError,
    UnknownRunError,
    suggest,
)
from pocket_plug.graph.observing.host import default_host
from pocket_plug.propagation import context_of, inject

_logger = logging.getLogger("pocket_plug")
T = TypeVar("T")
AnyGraph = Graph[Any, Any]

LOOK = 1.0
"""Seconds between two checks for cancelled workflows, and between two checks of a run that another executor holds."""
LONGEST_PAUSE = 30.0
"""The most seconds between two tries of a turn if its store can't be reached."""
_LATER: Final = re.compile(r"~[0-9]+\Z")
"""The end of the id of a turn after the first one."""
_NOT_BEGUN: Final = ("ENQUEUED", "DELAYED")


class QueueRateLimit(TypedDict):
    """At most `limit` turns start in `period` seconds, on all executors together. It has the fields of DBOS's own."""

    limit: int
    period: float


class RunFailedError(PocketError):
    """The error of a workflow whose run has failed. It names the type and the node only, so that DBOS stores nothing more."""


class DBOSQueue:
    """A queue of DBOS for the runs of some graphs. Make it in each process before `DBOS.launch()`, and call `register` after it.

    - `name`: the queue's name in DBOS. `graphs`: the graphs whose runs it takes; it finds a run's graph by name.
    - `store`: for graphs that have no store of their own, as for a `Worker`.
    - `concurrency`: how many of its runs all executors together execute at a time, `worker_concurrency`: how many each.
    - `limiter`: how many turns may start in a period: `{"limit": 50, "period": 1}`.
    - `poll`: seconds between two checks of an executor for queued workflows.

    Raises ConfigError for anything that isn't a graph, for two graphs of the same name, and if there is none.
    """

    def __init__(
        self,
        name: str,
        graphs: Sequence[AnyGraph],
        /,
        *,
        store: StoreScope | SyncScope | None = None,
        concurrency: int | None = None,
        worker_concurrency: int | None = None,
        limiter: QueueRateLimit | None = None,
        poll: float = 1.0,
    ) -> None:
        self.name, self.store, self._poll = name, store, poll
        self._limits: dict[str, Any] = {
            "global_concurrency": concurrency,
            "worker_concurrency": worker_concurrency,
            "limiter": limiter,
        }
        self._graphs: dict[str, AnyGraph] = {}
        self._schedules: list[ScheduleInput] = []
        self.cancellations = _Cancellations()
        for graph in graphs:
            self._take(graph)
        if not self._graphs:
            raise ConfigError(f"queue {name!r} has no graph; give at least one: DBOSQueue({name!r}, [graph])")

    def __repr__(self) -> str:
        return f"DBOSQueue({self.name!r}, {[*self._graphs]})"

    def _take(self, graph: AnyGraph) -> None:
        if not isinstance(graph, Graph):
            raise ConfigError(f"queue {self.name!r}: {type(graph).__name__} is not a Graph; give only graphs")
        if graph.name in self._graphs:
            raise ConfigError(
                f"two graphs of queue {self.name!r} have the name {graph.name!r}; give each graph a name of its own"
            )
        self._graphs[graph.name] = graph

        async def turn(run_id: str, priority: int | None, carrier: dict[str, str]) -> dict[str, str]:
            return await _Turn(self, graph, run_id, priority, carrier).go()

        decorate = DBOS.workflow(name=self._workflow(graph), serialization_type=WorkflowSerializationFormat.PORTABLE)
        decorate(turn)

    def _workflow(self, graph: AnyGraph) -> str:
        return f"{self.name}/{graph.name}"

    # ------------------------------------------------------------ after DBOS is launched
    async def register(self) -> None:
        """Register the queue's limits and schedules with DBOS. Call it in each process, after DBOS is launched.

        The limits apply to all executors from then on, if this process has the latest version of the application.
        """
        await DBOS.register_queue_async(self.name, polling_interval_sec=self._poll, **self._limits)
        if self._schedules:
            await DBOS.apply_schedules_async(self._schedules)

    def schedule(
        self,
        graph: AnyGraph,
        cron: str,
        input: object | Callable[[datetime], object],
        /,
        *,
        name: str | None = None,
        timezone: str | None = None,
        priority: int | None = None,
    ) -> None:
        """Submit a run at the times of a crontab (with seconds, if it has six fields). Call it before `DBOS.launch()`.

        A run's id is the schedule's `name` (by default the graph's) and the time, so each time has one run, whichever executor
        submits it. `input` is the run's input, or a function that returns it for the time in UTC. Raises ConfigError for a
        graph that the queue doesn't have.
        """
        self._check(graph)
        name = name or graph.name

        async def tick(scheduled_at: datetime, context: object) -> None:
            at = scheduled_at.astimezone(UTC)
            value = input(at) if callable(input) else input
            run_id = f"{name}@{at:%Y-%m-%dT%H:%M:%SZ}"
            await _outside(self._submit(graph, value, run_id, priority, inject()))

        workflow = DBOS.workflow(name=f"{self.name}/schedule/{name}")(tick)
        planned = ScheduleInput(schedule_name=f"{self.name}/{name}", workflow_fn=workflow, schedule=cron)
        if timezone is not None:
            planned["cron_timezone"] = timezone
        self._schedules.append(planned)

    # ------------------------------------------------------------ runs
    async def submit(self, graph: AnyGraph, input: object, /, *, run_id: str, priority: int | None = None) -> str:
        """Record a run in the graph's store, and queue it; return its state. The first workflow has the run's id.

        `priority` is DBOS's: 1 is before 2, and a run without one is before all others. If this raises, submit the same id with
        the same input again: the run is recorded and queued only once. Raises the errors of `Graph.submit`, and
        ConfigError for a graph that the queue doesn't have.
        """
        return await self._submit(graph, input, run_id, priority, inject())

    async def _submit(
        self, graph: AnyGraph, input: object, run_id: str, priority: int | None, carrier: dict[str, str]
    ) -> str:
        self._check(graph)
        state = await graph.submit(input, run_id=run_id, store=self.store, traceparent=carrier or None)
        if state == "pending":
            await self.see_to(graph, await self.runs(graph).get(run_id), priority, carrier)
        return state

    async def answer(self, run_id: str, answer: object, /, *, question: str | None = None) -> RunInfo:
        """Answer as `Runs.answer` does, and queue the run to continue. If this raises, it may be called again."""
        graph, runs = await self._find(run_id)
        await runs.answer(run_id, answer, question=question, graph=graph)
        return await self._queued(graph, await runs.get(run_id))

    async def retry(self, run_id: str, /) -> RunInfo:
        """Retry as `Runs.retry` does, and queue the run to continue at the node that has failed."""
        graph, runs = await self._find(run_id)
        await runs.retry(run_id)
        return await self._queued(graph, await runs.get(run_id))

    async def cancel(self, run_id: str, /) -> RunInfo:
        """Cancel as `Runs.cancel` does. Workflows that have not started are cancelled too; a running one ends as cancelled."""
        graph, runs = await self._find(run_id)
        info = await runs.cancel(run_id)
        ids = [_turn_id(run_id, number) for number in range(1, (info.executions or 0) + 3)]
        queued = await DBOS.list_workflows_async(workflow_ids=ids, status=[*_NOT_BEGUN], load_input=False)
        if own := [each.workflow_id for each in queued if each.name == self._workflow(graph)]:
            await DBOS.cancel_workflows_async(own)
        return info

    async def catch_up(self) -> int:
        """Queue runs that were submitted, answered or retried without this queue, for example by `pocket-plug runs answer`.

        Returns how many runs were checked. Call it when a program starts, or by a schedule of DBOS.
        """
        count = 0
        for graph in self._graphs.values():
            after: str | None = None
            while True:
                page = await self.runs(graph).list(
                    state=("pending", "suspended", "stalled"), graph=graph.name, after=after
                )
                for info in page.runs:
                    await self._queued(graph, info)
                count, after = count + len(page.runs), page.after
                if after is None:
                    break
        return count

    # ------------------------------------------------------------ turns
    async def _queued(self, graph: AnyGraph, info: RunInfo) -> RunInfo:
        """Queue the run's next turn, with the first turn's priority, and its trace if the caller has none; return `info`."""
        first = await DBOS.get_workflow_status_async(_turn_id(info.run_id, 1))
        priority: int | None = None
        carrier: dict[str, str] = {}
        if first is not None and first.name == self._workflow(graph) and first.input is not None:
            _, priority, carrier = first.input["args"]
        await self.see_to(graph, info, priority, inject() or carrier)
        return info

    async def see_to(
        self, graph: AnyGraph, info: RunInfo, priority: int | None, carrier: Mapping[str, str], *, after: int = 0
    ) -> None:
        """Queue a turn for a run that is ready, or a delayed one if it waits for a time, unless one is queued already.

        `after` is the number of a turn that has started; the queued one has a higher number.
        """
        if info.state not in ("pending", "stalled") and (info.state != "suspended" or info.wake_at is None):
            return
        number = max((info.executions or 0) + 1, after + 1)
        while True:
            workflow_id = _turn_id(info.run_id, number)
            try:
                return await self._enqueue(workflow_id, graph, info, priority, carrier)
            except dbos_error.DBOSWorkflowIDInUseError as used:
                if used.workflow_status in _NOT_BEGUN and await self._has_queued(workflow_id, graph):
                    if used.workflow_status == "DELAYED":
                        until = time.time() if info.wake_at is None else info.wake_at
                        await DBOS.set_workflow_delay_async(workflow_id, delay_until_epoch_ms=int(until * 1000))
                    return None
            number += 1

    async def _has_queued(self, workflow_id: str, graph: AnyGraph) -> bool:
        """Is it a workflow of this queue and graph? Another queue may have a run with the same id, in another store."""
        status = await DBOS.get_workflow_status_async(workflow_id)
        return status is not None and status.name == self._workflow(graph)

    async def _enqueue(
        self, workflow_id: str, graph: AnyGraph, info: RunInfo, priority: int | None, carrier: Mapping[str, str]
    ) -> None:
        options = EnqueueOptions(
            workflow_name=self._workflow(graph),
            queue_name=self.name,
            workflow_id=workflow_id,
            workflow_id_reuse_policy="reject",
            serialization_type=WorkflowSerializationFormat.PORTABLE,
            attributes={"pocket_plug.run.id": info.run_id},
        )
        if priority is not None:
            options["priority"] = priority
        if info.wake_at is not None:
            options["delay_seconds"] = max(0.0, info.wake_at - time.time())
        if carrier:
            options["otel_context"] = context_of(carrier, otel_context.Context())
        await DBOS.enqueue_workflow_with_options_async(options, info.run_id, priority, dict(carrier))

    # ------------------------------------------------------------ graphs and their stores
    def _check(self, graph: AnyGraph) -> None:
        if self._graphs.get(graph.name) is not graph:
            raise ConfigError(
                f"queue {self.name!r} has no graph {graph.name!r}; it has: {', '.join(self._graphs)}."
                f"{suggest(graph.name, self._graphs)} Pass this graph to DBOSQueue, in each process"
            )

    def runs(self, graph: AnyGraph) -> Runs:
        """The runs of the store that contains the graph's runs."""
        return Runs(StoreScope(*graph.own_place(default_host(), self.store)))

    async def _find(self, run_id: str) -> tuple[AnyGraph, Runs]:
        """The graph of a run, and the runs of its store. Raises UnknownRunError; ConfigError if the queue has no such graph."""
        unknown: UnknownRunError | None = None
        for runs in (self.runs(graph) for graph in self._graphs.values()):
            try:
                name = (await runs.get(run_id)).graph
            except UnknownRunError as error:
                unknown = error
            else:
                if name in self._graphs:
                    return self._graphs[name], runs
                raise ConfigError(
                    f"run {run_id!r} belongs to graph {name!r}, and queue {self.name!r} has no such graph"
                )
        assert unknown is not None
        raise unknown


class _Turn:
    """One workflow: it resumes a run, returns the run's state, and queues the next turn."""

    def __init__(
        self, queue: DBOSQueue, graph: AnyGraph, run_id: str, priority: int | None, carrier: dict[str, str]
    ) -> None:
        self._queue, self._graph, self._run_id, self._priority = queue, graph, run_id, priority
        self._carrier = inject() or carrier
        self._runs = queue.runs(graph)
        self._workflow_id = str(DBOS.workflow_id)
        self._takes_over = False

    async def go(self) -> dict[str, str]:
        """Execute the run until it finishes or waits. Raises RunFailedError, or DBOS's error for a cancelled workflow."""
        pause = LOOK
        with self._queue.cancellations.watching(self._workflow_id, self._cancel):
            while True:
                try:
                    await self._resume()
                    return self._said("finished")
                except RunSuspendedError:
                    return await self._wait()
                except RunCancelledError:
                    await _outside(DBOS.cancel_workflow_async(self._workflow_id))
                    raise dbos_error.DBOSWorkflowCancelledError(f"run {self._run_id!r} was cancelled") from None
                except RunFencedError:
                    return self._said("elsewhere")
                except RunBusyError:
                    if not await self._is_left():
                        return self._said("elsewhere")
                except Exception as error:  # noqa: BLE001 - an error of the run, or of the store
                    await self._failed(error)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)

    def _said(self, state: str) -> dict[str, str]:
        return {"run_id": self._run_id, "state": state}

    async def _resume(self) -> None:
        is_traced = trace.get_current_span().get_span_context().is_valid
        await self._graph.resume(
            self._run_id,
            store=self._queue.store,
            takeover=self._takes_over,
            traceparent=None if is_traced or not self._carrier else self._carrier,
        )

    async def _wait(self) -> dict[str, str]:
        """Queue the next turn, delayed, if the run waits for a time. If it waits for an answer, `answer` queues the turn."""
        info = await self._runs.get(self._run_id)
        number = int(self._workflow_id.removeprefix(self._run_id).removeprefix("~") or 1)
        await _outside(self._queue.see_to(self._graph, info, self._priority, self._carrier, after=number))
        return self._said("suspended")

    async def _is_left(self) -> bool:
        """Wait until nobody executes the run; may this turn continue it? No, if an executor is alive after 1.5 leases.

        If the executor was killed, DBOS may have recovered its workflow as this one: then no other turn would continue the run.
        """
        until: float | None = None
        while (info := await self._runs.get(self._run_id)).state == "running":
            lease = LONGEST_PAUSE if info.owner is None else info.owner.lease
            until = until or time.monotonic() + 1.5 * lease
            if time.monotonic() > until:
                return False
            await asyncio.sleep(LOOK)
        self._takes_over = info.state == "stalled"
        return True

    async def _failed(self, error: Exception) -> None:
        """Raise the workflow's error. If the store can't be reached, log it and return, so that the turn is tried again."""
        try:
            info = await self._runs.get(self._run_id)
        except StoreError as unreachable:
            error, info = unreachable, None
        if info is not None and info.state == "failed":
            failure = info.failure
            kind, node = (failure.type, failure.node) if failure is not None else (type(error).__name__, info.node)
            raise RunFailedError(
                f"run {self._run_id!r} of graph {self._graph.name!r} has failed with {kind} at node {node!r}; "
                f"`pocket-plug runs show {self._run_id}` shows details, and DBOSQueue.retry continues it"
            ) from None
        if not isinstance(error, StoreError):
            raise error
        _logger.warning("run %r can't continue now (%s); it is tried again", self._run_id, type(error).__name__)

    async def _cancel(self) -> None:
        with suppress(RunStateError, UnknownRunError):  # the run has ended
            await self._runs.cancel(self._run_id)


class _Cancellations:
    """Cancels the runs of workflows that were cancelled in DBOS. It polls, since DBOS stops a workflow only at a step."""

    def __init__(self) -> None:
        self._turns: dict[str, Callable[[], Awaitable[None]]] = {}
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self, workflow_id: str, cancel: Callable[[], Awaitable[None]]) -> Generator[None]:
        """Call `cancel` if the workflow is cancelled while the block runs."""
        self._turns[workflow_id] = cancel
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), context=Context())
        try:
            yield
        finally:
            if self._turns.get(workflow_id) == cancel:
                del self._turns[workflow_id]
            if not self._turns:
                self._looking.cancel()
                self._looking = None  # the task ends later, and the next turn may start before that

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                for each in await DBOS.list_workflows_async(
                    workflow_ids=[*self._turns], status="CANCELLED", load_input=False, load_output=False
                ):
                    if (cancel := self._turns.pop(each.workflow_id, None)) is not None:
                        await cancel()
            except Exception as error:  # noqa: BLE001 - whatever DBOS's database raises, the next check may succeed
                _logger.warning("can't check for cancelled workflows (%s); it is tried again", type(error).__name__)


async def _outside(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await it outside the workflow: DBOS would record it as a step, and expect the same steps at a recovery."""
    return await asyncio.create_task(coroutine, context=Context())


def _turn_id(run_id: str, number: int) -> str:
    """The id of a turn's workflow; that of the first turn is the run's id, unless it could be a later turn of another run.

    >>> _turn_id("order", 1), _turn_id("order", 2), _turn_id("order~2", 1)
    ('order', 'order~2', 'order~2~1')
    """
    return run_id if number == 1 and not _LATER.search(run_id) else f"{run_id}~{number}"
