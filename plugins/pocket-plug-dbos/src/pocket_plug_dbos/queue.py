"""A queue of DBOS whose workflows are durable runs.

A workflow is a turn: it goes on with a run until that is finished or has to wait. The first one has the run's id, the next ones
the id and a number. All that a turn needs is in the store, so it may be begun any number of times: whoever claims the run goes on
with it. What was never begun is what must not happen: so a run that is pending, or will be, has a turn that has not begun yet.
"""

from __future__ import annotations

import asyncio
import logging
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
"""Seconds between two looks for workflows that were cancelled, and at a run whose executor has died."""
LONGEST_PAUSE = 30.0
"""Seconds between two tries of a turn whose store can't be reached, at most."""
_NOT_BEGUN: Final = ("ENQUEUED", "DELAYED")


class QueueRateLimit(TypedDict):
    """At most `limit` turns are begun in `period` seconds, by all executors together. As DBOS has it."""

    limit: int
    period: float


class RunFailedError(PocketError):
    """What a workflow ends with whose run has failed: of its error the type and the place, as nothing more is DBOS's to keep."""


class DBOSQueue:
    """A queue of DBOS for the runs of some graphs. Make it in each process before `DBOS.launch()`, and call `register` after it.

    - `name`: the queue's in DBOS. `graphs`: whose runs it takes, found by their names.
    - `store`: for graphs that have no store of their own, as for a `Worker`.
    - `concurrency`: how many of its runs are gone on with at one time by all executors, `worker_concurrency` by each of them.
    - `limiter`: how many turns may begin in a time: `{"limit": 50, "period": 1}`.
    - `poll`: seconds between two looks of an executor for what is queued.

    Raises ConfigError for what is no graph, and for two of one name.
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
            raise ConfigError(
                f"queue {name!r} needs at least one graph, whose runs it takes: DBOSQueue({name!r}, [graph])"
            )

    def __repr__(self) -> str:
        return f"DBOSQueue({self.name!r}, {[*self._graphs]})"

    def _take(self, graph: AnyGraph) -> None:
        if not isinstance(graph, Graph):
            raise ConfigError(f"queue {self.name!r} takes the runs of graphs, not of {type(graph).__name__}")
        if graph.name in self._graphs:
            raise ConfigError(
                f"two graphs of queue {self.name!r} are called {graph.name!r}, and runs are found by that name"
            )
        self._graphs[graph.name] = graph

        async def turn(run_id: str, priority: int | None, carrier: dict[str, str]) -> dict[str, str]:
            return await _Turn(self, graph, run_id, priority, carrier).go()

        decorate = DBOS.workflow(name=self._workflow(graph), serialization_type=WorkflowSerializationFormat.PORTABLE)
        decorate(turn)

    def _workflow(self, graph: AnyGraph) -> str:
        return f"{self.name}/{graph.name}"

    # ------------------------------------------------------------ once DBOS is launched
    async def register(self) -> None:
        """Tell DBOS of the queue's limits and of its schedules; call it in each process, once DBOS is launched.

        The limits count for all executors from then on, if this process has the latest version of the application.
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

        A run's id is the schedule's `name` (by default the graph's) and the time, so each time has one run, by whichever
        executor. `input` is the run's, or gives it for the time. Raises ConfigError for a graph that the queue doesn't have.
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
        """Record a run in the graph's store, and queue it; give its state. The workflow has the run's id.

        `priority` is DBOS's: 1 is before 2, and without one it is before all others. The same id with the same input may be
        submitted again, and should be if this raises: it is recorded and queued once. Raises as `Graph.submit` does, and
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
        """`Runs.answer`, and the run is queued to go on. May be done again, if it raises in between."""
        graph, runs = await self._find(run_id)
        await runs.answer(run_id, answer, question=question, graph=graph)
        return await self._queued(graph, await runs.get(run_id))

    async def retry(self, run_id: str, /) -> RunInfo:
        """`Runs.retry`, and the run is queued to go on at the node that has failed."""
        graph, runs = await self._find(run_id)
        await runs.retry(run_id)
        return await self._queued(graph, await runs.get(run_id))

    async def cancel(self, run_id: str, /) -> RunInfo:
        """`Runs.cancel`. Workflows of the run that have not begun are cancelled too; one that is at it ends as cancelled."""
        _, runs = await self._find(run_id)
        info = await runs.cancel(run_id)
        ids = [_turn_id(run_id, number) for number in range(1, (info.executions or 0) + 3)]
        queued = await DBOS.list_workflows_async(workflow_ids=ids, status=[*_NOT_BEGUN], load_input=False)
        if queued:
            await DBOS.cancel_workflows_async([each.workflow_id for each in queued])
        return info

    async def catch_up(self) -> int:
        """Queue what others have made ready: submitted, answered or retried without this queue, as by `pocket-plug runs answer`.

        Gives how many runs were looked at. Call it at a program's start, or by a schedule of DBOS.
        """
        count = 0
        for graph in self._graphs.values():
            after: str | None = None
            while True:
                page = await self.runs(graph).list(
                    state=("pending", "waiting", "stalled"), graph=graph.name, after=after
                )
                for info in page.runs:
                    await self._queued(graph, info)
                count, after = count + len(page.runs), page.after
                if after is None:
                    break
        return count

    # ------------------------------------------------------------ turns
    async def _queued(self, graph: AnyGraph, info: RunInfo) -> RunInfo:
        """The same run, after it was seen to; as important as its first turn, and in its trace unless the caller has one."""
        first = await DBOS.get_workflow_status_async(info.run_id)
        priority: int | None = None
        carrier: dict[str, str] = {}
        if first is not None and first.name == self._workflow(graph) and first.input is not None:
            _, priority, carrier = first.input["args"]
        await self.see_to(graph, info, priority, inject() or carrier)
        return info

    async def see_to(
        self, graph: AnyGraph, info: RunInfo, priority: int | None, carrier: Mapping[str, str], *, after: int = 0
    ) -> None:
        """Have a turn queued for a run that nobody is at, unless one is that has not begun; `after` is one that has."""
        if info.state not in ("pending", "stalled") and (info.state != "waiting" or info.wake_at is None):
            return
        number = max((info.executions or 0) + 1, after + 1)
        while True:
            workflow_id = _turn_id(info.run_id, number)
            try:
                return await self._enqueue(workflow_id, graph, info, priority, carrier)
            except dbos_error.DBOSWorkflowIDInUseError as used:
                if used.workflow_status == "DELAYED":
                    until = time.time() if info.wake_at is None else info.wake_at
                    await DBOS.set_workflow_delay_async(workflow_id, delay_until_epoch_ms=int(until * 1000))
                if used.workflow_status in _NOT_BEGUN:
                    return None
            number += 1

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
                f"queue {self.name!r} doesn't have the graph {graph.name!r}, but {', '.join(self._graphs)}."
                f"{suggest(graph.name, self._graphs)} Give it as one of DBOSQueue's graphs, in each process"
            )

    def runs(self, graph: AnyGraph) -> Runs:
        """The runs of the store that the graph's are in."""
        return Runs(StoreScope(*graph.own_place(default_host(), self.store)))

    async def _find(self, run_id: str) -> tuple[AnyGraph, Runs]:
        """The graph of a run, and the runs of its store. Raises UnknownRunError, ConfigError for one of another graph."""
        unknown: UnknownRunError | None = None
        for runs in (self.runs(graph) for graph in self._graphs.values()):
            try:
                name = (await runs.get(run_id)).graph
            except UnknownRunError as error:
                unknown = error
            else:
                if name in self._graphs:
                    return self._graphs[name], runs
                raise ConfigError(f"run {run_id!r} is one of graph {name!r}, which queue {self.name!r} doesn't have")
        assert unknown is not None
        raise unknown


class _Turn:
    """One workflow: goes on with a run, says what has become of it, and sees to the next turn."""

    def __init__(
        self, queue: DBOSQueue, graph: AnyGraph, run_id: str, priority: int | None, carrier: dict[str, str]
    ) -> None:
        self._queue, self._graph, self._run_id, self._priority = queue, graph, run_id, priority
        self._carrier = inject() or carrier
        self._runs = queue.runs(graph)
        self._workflow_id = str(DBOS.workflow_id)
        self._takes_over = False

    async def go(self) -> dict[str, str]:
        """Until the run is finished, or waits. Raises RunFailedError, or what tells DBOS that the run was cancelled."""
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
                except Exception as error:  # noqa: BLE001 - the run's own, or the store's
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
        """The run waits: for an answer, which queues it; for a time, until which the next turn is delayed."""
        info = await self._runs.get(self._run_id)
        number = int(self._workflow_id.removeprefix(self._run_id).removeprefix("~") or 1)
        await _outside(self._queue.see_to(self._graph, info, self._priority, self._carrier, after=number))
        return self._said("waiting")

    async def _is_left(self) -> bool:
        """Wait for whoever is at the run: may it be gone on with here? After some more than a lease he is alive, and goes on.

        He may be an executor that was killed: then this workflow is his, recovered, and there is no other one.
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
        """Raise what the workflow ends with, unless the store can't be reached: then the turn is tried again."""
        try:
            info = await self._runs.get(self._run_id)
        except StoreError as unreachable:
            error, info = unreachable, None
        if info is not None and info.state == "failed":
            failure = info.failure
            kind, node = (failure.type, failure.node) if failure is not None else (type(error).__name__, info.node)
            raise RunFailedError(
                f"run {self._run_id!r} of graph {self._graph.name!r} has failed with {kind} at node {node!r}; "
                f"`pocket-plug runs show {self._run_id}` tells more, and DBOSQueue.retry lets it go on"
            ) from None
        if not isinstance(error, StoreError):
            raise error
        _logger.warning("run %r can't go on (%s); it is tried again", self._run_id, type(error).__name__)

    async def _cancel(self) -> None:
        with suppress(RunStateError, UnknownRunError):  # it has ended
            await self._runs.cancel(self._run_id)


class _Cancellations:
    """Looks which workflows under way here were cancelled in DBOS, and cancels their runs: no step of theirs would notice."""

    def __init__(self) -> None:
        self._turns: dict[str, Callable[[], Awaitable[None]]] = {}
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self, workflow_id: str, cancel: Callable[[], Awaitable[None]]) -> Generator[None]:
        """Call `cancel` if the workflow is cancelled while the block goes on."""
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
                self._looking = None  # it ends later, and the next turn may begin before

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            try:
                for each in await DBOS.list_workflows_async(
                    workflow_ids=[*self._turns], status="CANCELLED", load_input=False, load_output=False
                ):
                    if (cancel := self._turns.pop(each.workflow_id, None)) is not None:
                        await cancel()
            except Exception as error:  # noqa: BLE001 - whatever DBOS's database raises, the next look may go well
                _logger.warning("can't look for cancelled workflows (%s); it is tried again", type(error).__name__)


async def _outside(coroutine: Coroutine[Any, Any, T]) -> T:
    """Do it as no part of the workflow: DBOS would record it as a step, and expect the same steps when it recovers."""
    return await asyncio.create_task(coroutine, context=Context())


def _turn_id(run_id: str, number: int) -> str:
    """The id of a turn's workflow: the first one's is the run's."""
    return run_id if number == 1 else f"{run_id}~{number}"
