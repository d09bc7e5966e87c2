"""A DBOS queue: the states of runs and of their workflows. DBOS's tables are in SQLite, or in PostgreSQL if SQLite is too old."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from dbos import DBOS, EnqueueOptions, WorkflowSerializationFormat, WorkflowStatus
from opentelemetry import trace
from pocket_plug_dbos import DBOSQueue, PocketSerializer
from pocket_plug_dbos.queue import _Turn  # pyright: ignore[reportPrivateUsage] - whose moments are tested

import pocket_plug as pp
from pocket_plug.errors import ConfigError, RunMismatchError, UnknownRunError
from pocket_plug.testing.servers import Server
from pocket_plug.testing.spans import SpanCapture

SECRET = "4711-is-what-nobody-shall-read"  # noqa: S105 - it is what the test looks for
SECONDS = 120.0
"""After which something is taken for hanging."""

begun: list[str] = []
"""The inputs of `noted`, in the order in which they began."""
at_once = [0, 0]
"""How many of `noted` are under way, and were at most."""
gate = threading.Event()
failing = [True]


@pp.node.post
async def book(store: pp.StoreWriter, order: object) -> object:
    await store.update("booked", lambda n: n + 1, default=0)
    return order


@pp.node
async def passing(second: int) -> int:
    return second


@pp.node
async def noted(order: str) -> str:
    begun.append(order)
    at_once[0] += 1
    at_once[1] = max(at_once)
    while not gate.is_set():
        await asyncio.sleep(0.005)
    at_once[0] -= 1
    return order


@pp.node
async def failed(order: str) -> str:
    if failing[0]:
        raise ValueError(order)
    return order


@pp.node
async def hanging(order: str) -> str:
    begun.append(order)
    await asyncio.sleep(60)
    return order


orders = pp.Graph(book, name="orders")
noting = pp.Graph(noted >> book, name="noting")
asking = pp.Graph(pp.Ask[object, bool](bool, question="Send?", name="approve") >> book, name="asking")
sleeping = pp.Graph(pp.Sleep[object]("300ms") >> book, name="sleeping")
fails = pp.Graph(failed >> book, name="fails")
hangs = pp.Graph(hanging >> book, name="hangs")
ticking = pp.Graph(passing, name="ticking")


@dataclass
class World:
    """One executor in this process, with two queues over one store."""

    folder: Path
    url: str
    """Of DBOS's tables."""
    store: pp.Store
    wide: DBOSQueue
    narrow: DBOSQueue
    """One turn at a time."""
    other: DBOSQueue
    """Over another store."""

    @property
    def runs(self) -> pp.SyncRuns:
        return pp.SyncRuns(self.store)

    def do(self, operation: Awaitable[Any]) -> Any:
        async def main() -> Any:
            return await asyncio.wait_for(operation, SECONDS)

        return asyncio.run(main())

    def workflow(self, workflow_id: str, *states: str) -> WorkflowStatus:
        """The workflow, once it has one of these states."""

        def is_there() -> bool:
            status = DBOS.get_workflow_status(workflow_id)
            return status is not None and status.status in (states or ("SUCCESS", "ERROR", "CANCELLED"))

        until(is_there, lambda: f"workflow {workflow_id} is {DBOS.get_workflow_status(workflow_id)}")
        status = DBOS.get_workflow_status(workflow_id)
        assert status is not None
        return status

    def booked(self) -> int:
        return self.store.sync.get("booked", 0)


def until(holds: Callable[[], bool], what: Callable[[], object] = lambda: "") -> None:
    """Wait until the condition holds; fail after a timeout."""
    last = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < last, what()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, has_sqlite: bool, request: pytest.FixtureRequest
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("dbos")
    url = f"sqlite:///{folder}/dbos.db"
    if not has_sqlite:
        server: Server = request.getfixturevalue("postgres_server")
        url = f"{server.url.rpartition('/')[0]}/dbos_queue"
    store = pp.Store(f"sqlite:///{folder}/state.db")
    other_store = pp.Store(f"sqlite:///{folder}/other.db")
    with store.sync, other_store.sync:
        DBOS(
            config={
                "name": "tests",
                "system_database_url": url,
                "executor_id": "here",
                "application_version": "1",
                "serializer": PocketSerializer(),
                "enable_otlp": True,
                "log_level": "CRITICAL",
                "console_log_level": "CRITICAL",
                "notification_listener_polling_interval_sec": 0.05,
                "scheduler_polling_interval_sec": 0.1,
            }
        )
        graphs = [orders, asking, sleeping, fails, hangs, ticking]
        wide = DBOSQueue(
            "wide", graphs, store=store, worker_concurrency=8, limiter={"limit": 1000, "period": 1}, poll=0.02
        )
        narrow = DBOSQueue("narrow", [noting, asking], store=store, concurrency=1, poll=0.02)
        other = DBOSQueue("other", [orders], store=other_store, poll=0.02)
        wide.schedule(ticking, "* * * * * *", lambda at: at.second, name="tick")
        try:
            DBOS.launch()
            asyncio.run(wide.register())
            asyncio.run(narrow.register())
            asyncio.run(other.register())
            yield World(folder, url, store, wide, narrow, other)
        finally:
            DBOS.destroy(destroy_registry=True)


@pytest.fixture(autouse=True)
def fresh() -> None:
    begun.clear()
    at_once[:] = [0, 0]
    gate.clear()
    failing[0] = True


def everything_in(url: str) -> str:
    """All rows of DBOS's tables."""
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        tables = sqlalchemy.MetaData(schema="dbos" if engine.dialect.name == "postgresql" else None)
        tables.reflect(engine)
        with engine.connect() as connection:
            return "\n".join(
                str(row) for table in tables.sorted_tables for row in connection.execute(sqlalchemy.select(table))
            )
    finally:
        engine.dispose()


# ---------------------------------------------------------------- submitting
def test_a_submitted_run_is_a_workflow_of_its_id(world: World) -> None:
    """A run is executed once, however often it is submitted; another input for the same id is refused."""
    before = world.booked()
    assert world.do(world.wide.submit(orders, 5, run_id="o-1")) == "pending"
    assert world.workflow("o-1").output == {"run_id": "o-1", "state": "finished"}
    assert world.do(world.wide.submit(orders, 5, run_id="o-1")) == "finished"
    with pytest.raises(RunMismatchError):
        world.do(world.wide.submit(orders, 6, run_id="o-1"))
    assert orders.resume_sync("o-1", store=world.store) == 5
    assert world.booked() == before + 1
    assert DBOS.get_workflow_status("o-1~2") is None


def test_a_run_that_was_recorded_and_not_queued_is_queued_by_the_next_submit(world: World) -> None:
    """As after a crash between recording and queueing: if the caller submits again, nothing is lost."""
    orders.submit_sync(7, run_id="o-2", store=world.store)
    world.do(world.wide.submit(orders, 7, run_id="o-2"))
    assert world.workflow("o-2").status == "SUCCESS"


def test_a_run_whose_id_looks_like_a_later_turn_of_another_one_disturbs_neither(world: World) -> None:
    """Both have turns of their own: each finishes, and a cancelled one takes no turn of the other from the queue."""
    world.do(world.narrow.submit(noting, "first", run_id="i-0"))  # while it is under way, the others stay in the queue
    world.do(world.narrow.submit(noting, "other", run_id="i-1~2"))
    world.do(world.narrow.submit(noting, "another", run_id="i-2~2"))
    for run_id in ("i-1", "i-2"):
        world.do(world.wide.submit(asking, "book", run_id=run_id))
        until(lambda run_id=run_id: world.runs.get(run_id).state == "suspended")  # type: ignore[misc]
    world.do(world.wide.answer("i-1", True))
    until(lambda: world.runs.get("i-1").state == "finished")
    world.do(world.wide.cancel("i-2"))
    gate.set()
    until(lambda: {world.runs.get(f"i-{n}~2").state for n in (1, 2)} == {"finished"})


def test_runs_of_two_stores_may_have_the_same_id(world: World) -> None:
    """Each has turns of its own: it is queued though a turn of the other one waits, and cancelled without it."""
    there = pp.SyncRuns(world.other.store)
    for run_id in ("y-0", "y-1", "y-2"):  # while the first one is under way, the others stay in the queue
        world.do(world.narrow.submit(noting, run_id, run_id=run_id))
    world.do(world.other.submit(orders, "mine", run_id="y-1"))
    until(lambda: there.get("y-1").state == "finished")
    orders.submit_sync("mine", run_id="y-2", store=world.other.store)
    world.do(world.other.cancel("y-2"))
    gate.set()
    until(lambda: {world.runs.get(f"y-{n}").state for n in range(3)} == {"finished"})


def test_runs_of_a_queue_begin_by_priority_and_no_more_at_once_than_it_allows(world: World) -> None:
    """Priority 1 comes before 5; running workflows are not interrupted."""
    world.do(world.narrow.submit(noting, "first", run_id="p-1"))
    until(lambda: begun == ["first"])
    for run_id, order, priority in [("p-2", "low", 5), ("p-3", "high", 1), ("p-4", "middle", 3)]:
        world.do(world.narrow.submit(noting, order, run_id=run_id, priority=priority))
    gate.set()
    for n in range(1, 5):
        world.workflow(f"p-{n}", "SUCCESS")
    assert begun == ["first", "high", "middle", "low"]
    assert at_once[1] == 1


def test_the_limits_are_dbos_s_own(world: World) -> None:
    """DBOS stores the limits that were given, for all executors."""
    queue = DBOS.retrieve_queue("wide")
    assert queue is not None
    assert queue.limiter == {"limit": 1000, "period": 1}
    assert queue.worker_concurrency == 8
    assert DBOS.retrieve_queue("narrow").global_concurrency == 1  # type: ignore[union-attr]


def test_dbos_has_neither_values_nor_pickles(world: World) -> None:
    """DBOS's tables contain ids and states only; values and error messages are in pocket_plug's store."""
    world.do(world.wide.submit(orders, SECRET, run_id="s-1"))
    world.do(world.wide.submit(fails, SECRET, run_id="s-2"))
    assert world.workflow("s-1").status == "SUCCESS"
    status = world.workflow("s-2")
    assert status.status == "ERROR"
    assert "ValueError" in str(status.error)
    dump = everything_in(world.url)
    assert "s-2" in dump
    assert SECRET not in dump
    assert "py_pickle" not in dump
    assert "gASV" not in dump  # how pickles begin in base64


# ---------------------------------------------------------------- waiting
def test_a_run_that_waits_for_an_answer_holds_no_place_in_the_queue(world: World) -> None:
    """Its workflow ends as waiting; the answer queues the next workflow."""
    world.do(world.narrow.submit(asking, 1, run_id="a-1", priority=2))
    assert world.workflow("a-1").output == {"run_id": "a-1", "state": "suspended"}
    gate.set()
    world.do(world.narrow.submit(noting, "meanwhile", run_id="a-2"))
    assert world.workflow("a-2").status == "SUCCESS"
    before = world.booked()
    for _ in range(2):
        world.do(world.narrow.answer("a-1", True))
    status = world.workflow("a-1~2")
    assert (status.output, status.priority) == ({"run_id": "a-1", "state": "finished"}, 2)
    assert world.booked() == before + 1


def test_what_was_answered_elsewhere_is_caught_up(world: World) -> None:
    """`pocket-plug runs answer` doesn't notify DBOS; `catch_up` queues the run."""
    world.do(world.wide.submit(asking, 1, run_id="a-3"))
    world.workflow("a-3")
    world.runs.answer("a-3", True)
    assert world.do(world.wide.catch_up()) >= 1
    assert world.workflow("a-3~2").output == {"run_id": "a-3", "state": "finished"}


def test_a_run_that_sleeps_is_delayed(world: World) -> None:
    """The next workflow is queued at once, and starts when the time has come."""
    world.do(world.wide.submit(sleeping, 1, run_id="z-1"))
    assert world.workflow("z-1").output == {"run_id": "z-1", "state": "suspended"}
    delayed = world.workflow("z-1~2", "DELAYED", "ENQUEUED", "PENDING", "SUCCESS")
    assert delayed.delay_until_epoch_ms is not None
    assert world.workflow("z-1~2").output == {"run_id": "z-1", "state": "finished"}
    assert DBOS.list_workflow_steps("z-1") == []  # else a workflow that is recovered would have to take the same ones


def test_an_answer_is_not_lost_between_the_run_s_wait_and_the_workflow_s_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workflow is still running, but has already read the run's state, so it won't continue the run:
    another turn is queued.
    """
    wait = _Turn._wait

    async def long_wait(turn: _Turn) -> dict[str, str]:
        said = await wait(turn)
        while not gate.is_set():
            await asyncio.sleep(0.005)
        return said

    monkeypatch.setattr(_Turn, "_wait", long_wait)
    world.do(world.wide.submit(asking, 1, run_id="z-2"))
    until(lambda: world.runs.get("z-2").state == "suspended")
    world.do(world.wide.answer("z-2", True))
    assert world.workflow("z-2~2").output == {"run_id": "z-2", "state": "finished"}
    assert world.workflow("z-2", "PENDING").status == "PENDING"
    gate.set()
    assert world.workflow("z-2").output == {"run_id": "z-2", "state": "suspended"}


# ---------------------------------------------------------------- failing, and being cancelled
def test_a_failed_run_has_a_failed_workflow_and_can_be_retried(world: World) -> None:
    """`retry` queues the run again; it continues at the node that has failed."""
    world.do(world.wide.submit(fails, "x", run_id="f-1"))
    assert world.workflow("f-1").status == "ERROR"
    assert world.runs.get("f-1").state == "failed"
    failing[0] = False
    world.do(world.wide.retry("f-1"))
    assert world.workflow("f-1~2").output == {"run_id": "f-1", "state": "finished"}


@pytest.mark.parametrize("by", ["the workflow", "the run", "the queue"])
def test_a_run_at_work_and_its_workflow_are_cancelled_together(world: World, by: str) -> None:
    """Whichever of the two is cancelled: `exec` is cancelled, the run is `cancelled`, the workflow CANCELLED."""
    run_id = f"c-{by[4:]}"
    world.do(world.wide.submit(hangs, run_id, run_id=run_id))
    until(lambda: run_id in begun)
    if by == "the workflow":
        DBOS.cancel_workflow(run_id)
    elif by == "the run":
        world.runs.cancel(run_id)
    else:
        world.do(world.wide.cancel(run_id))
    assert world.runs.wait(run_id, timeout=SECONDS).state == "cancelled"
    assert world.workflow(run_id).status == "CANCELLED"


def test_a_run_that_waits_is_cancelled_with_its_delayed_workflow(world: World) -> None:
    """Nothing of the run stays in the queue."""
    long = pp.Graph(pp.Sleep[object]("1h") >> book, name="sleeping")
    long.submit_sync(1, run_id="c-5", store=world.store)
    with pytest.raises(pp.RunSuspendedError):
        long.resume_sync("c-5", store=world.store)
    world.do(world.wide.catch_up())
    world.workflow("c-5~2", "DELAYED")
    world.do(world.wide.cancel("c-5"))
    assert world.runs.get("c-5").state == "cancelled"
    assert world.workflow("c-5~2").status == "CANCELLED"


def test_a_turn_of_a_run_that_is_already_finished_returns_finished(world: World) -> None:
    """If another executor has finished the run meanwhile, the turn returns "finished"."""
    orders.submit_sync(1, run_id="e-1", store=world.store)
    orders.resume_sync("e-1", store=world.store)
    world.do(world.wide.submit(orders, 1, run_id="e-1"))
    assert DBOS.get_workflow_status("e-1") is None


def test_a_turn_waits_while_another_executor_executes_the_run(world: World) -> None:
    """It waits while the other executor is alive, and then finds the run's new state; here the run was cancelled."""
    hangs.submit_sync("w", run_id="w-1", store=world.store)
    thread = threading.Thread(target=lambda: _ends_cancelled("w-1", world.store))
    thread.start()
    until(lambda: "w" in begun)
    DBOS.enqueue_workflow_with_options(_turn("wide", hangs, "w-1"), "w-1", None, {})
    world.workflow("w-1", "PENDING")
    world.runs.cancel("w-1")
    assert world.workflow("w-1").status == "CANCELLED"
    thread.join(SECONDS)


def _ends_cancelled(run_id: str, store: pp.Store) -> None:
    with pytest.raises(pp.RunCancelledError):
        asyncio.run(hangs.resume(run_id, store=store))


def test_a_turn_takes_a_run_over_from_a_stalled_executor(world: World) -> None:
    """The other process exists but is stopped. It could be alive, so the turn waits until its lease is over."""
    url = f"sqlite:///{world.folder}/state.db"
    with subprocess.Popen([sys.executable, "-c", STOPPED, url]) as process:
        try:
            until(lambda: any(info.run_id == "w-2" for info in world.runs.list(state="running").runs))
            process.send_signal(signal.SIGSTOP)
            gate.set()
            DBOS.enqueue_workflow_with_options(_turn("narrow", noting, "w-2"), "w-2", None, {})
            assert world.workflow("w-2").output == {"run_id": "w-2", "state": "finished"}
        finally:
            process.kill()


def _turn(queue: str, graph: pp.Graph[Any, Any], run_id: str) -> EnqueueOptions:
    return {
        "workflow_name": f"{queue}/{graph.name}",
        "queue_name": queue,
        "workflow_id": run_id,
        "serialization_type": WorkflowSerializationFormat.PORTABLE,
    }


STOPPED = """
import asyncio, sys
import pocket_plug as pp

@pp.node
async def noted(order: str) -> str:
    await asyncio.sleep(60)
    return order

@pp.node.post
async def book(store: pp.StoreWriter, order: object) -> object:
    return order

async def main() -> None:
    async with pp.Store(sys.argv[1]) as store:
        graph = pp.Graph(noted >> book, name="noting", store=store)
        await graph.submit("w", run_id="w-2")
        await pp.Worker([graph], lease=0.5).run()

asyncio.run(main())
"""


# ---------------------------------------------------------------- schedules and traces
def test_a_schedule_submits_one_run_for_each_time(world: World) -> None:
    """The run's id is the schedule's name and the time; its input is the one that was given for this time."""
    until(lambda: len(world.runs.list(graph="ticking", state="finished").runs) >= 2)
    DBOS.pause_schedule("wide/tick")
    for info in world.runs.list(graph="ticking", state="finished").runs:
        name, _, at = info.run_id.partition("@")
        assert name == "tick"
        assert ticking.resume_sync(info.run_id, store=world.store) == datetime.fromisoformat(at).second
        assert world.workflow(info.run_id).output == {"run_id": info.run_id, "state": "finished"}


def test_submit_workflow_and_run_are_one_trace(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """DBOS's span is a child of the submitter's span, and the run's span a child of DBOS's; after an answer too."""
    with SpanCapture() as captured:
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: captured.tracer_provider)  # for DBOS's spans
        with trace.get_tracer("tests").start_as_current_span("request"):
            world.do(world.wide.submit(asking, 1, run_id="t-1"))
        world.workflow("t-1")
        world.do(world.wide.answer("t-1", True))
        world.workflow("t-1~2", "SUCCESS")
        until(lambda: len([span for span in captured.spans if span.name == "wide/asking"]) == 2)
        spans = {span.name: span for span in captured.spans}
        traces = {
            span.context.trace_id
            for span in captured.spans
            if span.name in ("request", "wide/asking", "run asking", "node approve", "node book")
        }
    assert len(traces) == 1
    run, workflow = spans["run asking"], spans["wide/asking"]
    assert run.parent is not None
    assert run.parent.span_id == workflow.context.span_id
    assert workflow.parent is not None
    assert workflow.parent.span_id == spans["request"].context.span_id


# ---------------------------------------------------------------- what is refused
def test_a_queue_refuses_what_it_does_not_have(world: World) -> None:
    """A queue finds a run's graph by name, so each process that has the queue needs it."""
    with pytest.raises(ConfigError, match="'noting'"):
        world.do(world.wide.submit(noting, "x", run_id="r-1"))
    with pytest.raises(UnknownRunError):
        world.do(world.wide.answer("never", True))
    failing[0] = True
    world.do(world.wide.submit(fails, "x", run_id="g-1"))
    assert world.workflow("g-1").status == "ERROR"
    with pytest.raises(ConfigError, match="has no such graph"):
        world.do(world.narrow.retry("g-1"))
    for graphs, why in [([], "at least"), ([orders, orders], "two graphs"), ([book], "is not a Graph")]:
        with pytest.raises(ConfigError, match=why):
            DBOSQueue("refused", graphs)  # type: ignore[arg-type]


def test_the_serializer_keeps_errors_and_refuses_pickles() -> None:
    """Values that DBOS stores for its own workflows' steps and events are restored without executing anything."""
    serializer = PocketSerializer()
    error = serializer.deserialize(serializer.serialize(ValueError("x")))
    assert (type(error), error.args) == (ValueError, ("x",))
    with pytest.raises(pp.CodecError):
        serializer.deserialize("gASVBQAAAAAAAABLAS4=")
    with pytest.raises(pp.CorruptRecordError, match="it is not base64"):
        serializer.deserialize("no base64 at all")
