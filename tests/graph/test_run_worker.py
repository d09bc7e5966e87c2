"""Workers: they take pending, stalled or due runs, each run by one of them, and leave the ones that they can't continue."""

from __future__ import annotations

import asyncio
import gc
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from pocket_plug import (
    Answered,
    AnswerLostError,
    Ask,
    ConfigError,
    Delete,
    Graph,
    Node,
    Pocket,
    Put,
    RecordedError,
    Retry,
    RunBusyError,
    Runs,
    RunStuckError,
    RunSuspendedError,
    Sleep,
    Store,
    StoreBusyError,
    StoreClosedError,
    StoreError,
    StoreReader,
    StoreTimeoutError,
    StoreUnreachableError,
    StoreWriter,
    SyncStore,
    SyncWriter,
    Worker,
    WorkerReport,
    WrappedCancelledError,
    each,
    fan_out,
    hookimpl,
    join_name,
    node,
    register_type,
)
from pocket_plug.backends.sqlite import opened
from pocket_plug.backends.sqlite.refusals import explained
from pocket_plug.graph.durable.heartbeat import BEAT, beat
from pocket_plug.graph.durable.journal import Journal, Wanted
from pocket_plug.graph.durable.processes import this_process
from pocket_plug.graph.durable.ready import AHEAD, Finder
from pocket_plug.graph.durable.records import RUN, keys_of
from pocket_plug.graph.durable.stalled import StallWatch
from pocket_plug.graph.durable.states import State, plain_state, read_state, states_of
from pocket_plug.graph.durable.worker import ALONE, MAX_TRIES, SUSPECT, Became
from pocket_plug.graph.observing.host import RunHost
from pocket_plug.graph.retention import Retention
from pocket_plug.hookspecs import RunNotice
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Entry
from pocket_plug.store.layer import Layer
from pocket_plug.telemetry import TraceLimits
from pocket_plug.testing.clock import FakeClock, run_virtual

ELSEWHERE = {"id": "elsewhere", "host": "another machine", "pid": 7, "machine": "another boot", "began": "1"}


@node
async def double(n: int) -> int:
    return 2 * n


@node.post
async def count(store: StoreWriter, n: int) -> int:
    await store.update("counted", lambda times: times + 1, default=0)
    return n


graph = Graph(double >> count, name="doubling")
nested = Graph(Graph(double >> count, name="inner"), name="nested")


@pytest.fixture
def fresh_structlog() -> Iterator[None]:
    """What captures its events configures it, and that would stay."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state.db?durability=process"


class Said:
    """The reports of a worker."""

    def __init__(self) -> None:
        self.reports: list[WorkerReport] = []
        self._more = asyncio.Event()

    def __call__(self, report: WorkerReport) -> None:
        self.reports.append(report)
        self._more.set()

    def of(self, run_id: str) -> list[str]:
        return [report.became for report in self.reports if report.run_id == run_id]

    async def until(self, is_enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_enough():
                self._more.clear()
                await self._more.wait()


class Idle(Worker):
    """A worker that signals when it sleeps, and polls only once an hour."""

    is_asleep = False

    async def _sleep(self, pause: float) -> None:
        self.is_asleep = True
        with suppress(TimeoutError):
            async with asyncio.timeout(3600):
                await self._woken.wait()
        self.is_asleep = False

    async def until_asleep(self) -> None:
        """Wait until it has nothing to do, and knows it."""
        async with asyncio.timeout(60):
            while self._tasks or self._woken.is_set() or not self.is_asleep:
                await asyncio.sleep(0.001)


@asynccontextmanager
async def working(worker: Worker) -> AsyncGenerator[asyncio.Task[None]]:
    """A worker that runs beside the test, and is stopped at its end."""
    task = asyncio.create_task(worker.run())
    try:
        yield task
    finally:
        worker.stop()
        await task


async def keys(store: Store, state: str) -> list[str]:
    return [key async for key in store.stack.scan(states_of(state))]


async def left_running(store: Store, run_id: str = "d-1", process: Mapping[str, Any] = ELSEWHERE, **facts: Any) -> str:
    """A run that is executed elsewhere, by its records; returns the key of its state."""
    await graph.submit(1, run_id=run_id, store=store)
    key, _ = keys_of(run_id)
    (pending,) = [key for key in await keys(store, "pending") if key.endswith(f":{run_id}")]
    entry = await store.stack.read(key)
    assert entry is not None
    running = pending.replace(":pending:", ":running:")
    state = State(0.0, owner="somebody", process=process, tries=1, commits=entry.value["commits"])
    from pocket_plug import Delete

    await store.stack.write(
        [
            Put(key, {**entry.value, "status": "running", "owner": "somebody.1"}),
            Delete(pending),
            Put(running, plain_state(replace(state, **facts))),
        ]
    )
    return running


# ---------------------------------------------------------------- taking
def test_a_submitted_run_is_taken_and_told(url: str) -> None:
    """A worker executes it and reports that, and its result can be read."""

    async def main() -> None:
        async with Store(url) as store:
            said = Said()
            async with working(Worker([graph], store=store, report=said)):
                await graph.submit(21, run_id="d-1", store=store)
                await said.until(lambda: "finished" in said.of("d-1"))
            assert said.of("d-1") == ["taken", "finished"]
            assert await graph.resume("d-1", store=store) == 42

    asyncio.run(main())


def test_a_run_submitted_in_the_same_process_wakes_its_worker(url: str) -> None:
    """It doesn't wait for the worker's next poll, which here would come in an hour."""

    async def main() -> None:
        async with Store(url) as store:
            said = Said()
            async with working(worker := Idle([graph], store=store, report=said)):
                for number in range(3):
                    await worker.until_asleep()
                    await graph.submit(number, run_id=f"d-{number}", store=store)
                    await said.until(lambda number=number: "finished" in said.of(f"d-{number}"))

    asyncio.run(main())


def test_a_run_that_ends_makes_room_for_the_next_one_at_once(url: str) -> None:
    """A worker with its maximum number of runs doesn't poll; when one ends, it does."""

    async def main() -> None:
        async with Store(url) as store:
            said = Said()
            for number in range(3):
                await graph.submit(number, run_id=f"d-{number}", store=store)
            async with working(Idle([graph], store=store, concurrency=1, report=said)):
                await said.until(lambda: all("finished" in said.of(f"d-{number}") for number in range(3)))

    asyncio.run(main())


def test_an_answer_and_a_retry_wake_the_workers_of_their_process(url: str) -> None:
    """A run that becomes pending by an operation in the same process is taken at once, as a submitted one is."""
    broken = True

    @node
    async def decide(answered: Answered[int, bool]) -> int:
        if broken:
            raise ValueError
        return answered.input

    asking = Graph(Ask[int, bool](bool, question="Really?") >> decide, name="asking")

    async def main() -> None:
        nonlocal broken
        async with Store(url) as store:
            said, runs = Said(), Runs(store)
            async with working(worker := Idle([asking], store=store, report=said)):
                await asking.submit(1, run_id="a", store=store)
                await said.until(lambda: "suspended" in said.of("a"))
                await worker.until_asleep()
                await runs.answer("a", True)
                await said.until(lambda: "failed" in said.of("a"))
                await worker.until_asleep()
                broken = False
                await runs.retry("a")
                await said.until(lambda: "finished" in said.of("a"))

    asyncio.run(main())


def test_a_run_that_sleeps_is_woken_when_its_time_has_come(url: str) -> None:
    """By the store's clock; before that nobody takes it, and no process waits."""
    clock = FakeClock()
    napping = Graph(double >> Sleep[int]("1h", name="nap") >> count, name="napping")

    async def main() -> None:
        async with Store(url, clock=clock) as store:
            said = Said()
            await napping.submit(1, run_id="n", store=store)
            await Worker([napping], store=store, report=said).run(once=True)
            assert said.of("n") == ["taken", "suspended"]
            clock.advance(3599)
            assert await Finder(napping, napping.own_place(Pocket(), store)).find(1) == []
            await Worker([napping], store=store, report=said).run(once=True)
            assert said.of("n") == ["taken", "suspended"]
            clock.advance(1)
            await Worker([napping], store=store, report=said).run(once=True)
            assert said.of("n") == ["taken", "suspended", "taken", "finished"]
            assert await store.get("counted") == 1

    asyncio.run(main())


@pytest.mark.parametrize("phase", ["exec", "post"])
def test_a_node_that_raises_the_cancellation_of_another_task_has_failed(url: str, phase: str) -> None:
    """The awaited task was cancelled, not the run: that is an ordinary error, with its place, and not the end of a process."""

    async def await_what_is_cancelled() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    class Fetch(Node[int, int]):
        async def exec(self, prepared: int) -> int:
            if phase == "exec":
                await await_what_is_cancelled()
            return prepared

        async def post(self, store: StoreWriter, number: int, prepared: int, result: int) -> int:
            await await_what_is_cancelled()
            return result

    async def main() -> None:
        fetching = Graph(Fetch(), name="fetching")
        async with Store(url) as store:
            said = Said()
            await fetching.submit(1, run_id="f", store=store)
            await Worker([fetching], store=store, report=said).run(once=True)
            assert said.of("f") == ["taken", "failed"]
            info = await Runs(store).get("f")
            assert info.failure is not None
            assert (info.state, info.failure.node) == ("failed", "fetch")
            assert info.failure.message.startswith(
                f"Fetch.{phase} raised CancelledError, but run 'f' was not cancelled"
            )
            with pytest.raises(WrappedCancelledError):
                await fetching.resume("f", store=store)

    asyncio.run(main())


def test_an_item_that_raises_the_cancellation_of_another_task_is_collected(url: str) -> None:
    """By `errors="collect"`; the other items are done."""

    @node
    async def fetch(number: int) -> int:
        if number == 1:
            raise asyncio.CancelledError
        return number

    async def main() -> None:
        async with Store(url) as store:
            zero, one = await fan_out(fetch, [0, 1], errors="collect", store=store, run_id="r")
            assert zero == 0
            assert isinstance(one, RecordedError)
            assert one.type == "pocket_plug.errors.WrappedCancelledError"

    asyncio.run(main())


@pytest.mark.parametrize("is_async", [True, False], ids=["async def", "def"])
@pytest.mark.parametrize("is_item", [False, True], ids=["node", "item"])
def test_a_node_that_exits_has_failed_and_its_worker_goes_on(url: str, is_async: bool, is_item: bool) -> None:
    """Else the process would end with its other runs, and then the process of the worker that takes the run over."""

    @node
    async def exits(n: int) -> int:
        sys.exit(f"no {n}")

    @node
    def exits_in_thread(n: int) -> int:
        sys.exit(f"no {n}")

    at = (exits if is_async else exits_in_thread).with_options(name="exits")

    async def main() -> None:
        leaving = Graph(each(at, concurrency=1), name="leaving") if is_item else Graph(at, name="leaving")
        async with Store(url) as store:
            said = Said()
            await leaving.submit([1, 2] if is_item else 1, run_id="out", store=store)
            await graph.submit(1, run_id="on", store=store)
            await Worker([leaving, graph], store=store, report=said).run(once=True)
            assert said.of("on") == ["taken", "finished"]
            assert said.of("out") == ["taken", "failed"]
            info = await Runs(store).get("out")
            assert info.failure is not None
            assert (info.failure.type, info.failure.node) == (
                "pocket_plug.errors.WrappedSystemExitError",
                "each_exits/exits" if is_item else "exits",
            )
            assert info.failure.message.startswith("a node of run 'out' raised SystemExit: no ")  # any of the items
            with pytest.raises(SystemExit):  # this process executes it itself
                await leaving.resume("out", store=store)

    asyncio.run(main())


class ExitsAfter(Node[int, int]):
    """Fails for odd numbers, and then its hook exits."""

    async def exec(self, n: int) -> int:
        if n % 2:
            raise ValueError(n)
        return n

    async def on_failure(self, store: StoreWriter, error: BaseException) -> None:
        sys.exit("failed")

    async def on_success(self, store: StoreWriter, result: int) -> None:
        sys.exit("succeeded")

    async def on_complete(self, store: StoreWriter) -> None:
        await store.update("completed", lambda times: times + 1, default=0)


class ExitsAfterInThread(ExitsAfter):
    def on_failure(self, store: SyncWriter, error: BaseException) -> None:  # type: ignore[override]
        sys.exit("failed")

    def on_success(self, store: SyncWriter, result: int) -> None:  # type: ignore[override]
        sys.exit("succeeded")


@pytest.mark.parametrize("kind", [ExitsAfter, ExitsAfterInThread], ids=["async def", "def"])
def test_a_hook_that_exits_is_reported_and_its_worker_goes_on(
    url: str, kind: type[Node[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    """As any error of a hook: it doesn't hide the node's own error, and the hooks after it are called."""
    leaving = Graph(kind(), name="leaving")

    async def main() -> None:
        async with Store(url) as store:
            said = Said()
            for number in (1, 2):
                await leaving.submit(number, run_id=f"out-{number}", store=store)
            await Worker([leaving], store=store, report=said).run(once=True)
            assert (said.of("out-1"), said.of("out-2")) == (["taken", "failed"], ["taken", "finished"])
            failure = (await Runs(store).get("out-1")).failure
            assert failure is not None
            assert failure.type == "ValueError"
            assert await store.get("completed") == 2

    asyncio.run(main())
    for hook in ("on_failure", "on_success"):
        assert f"{kind.__name__}.{hook} failed; the run goes on" in caplog.text
    with pytest.raises(SystemExit, match="succeeded"):  # this process executes it itself
        leaving.run_sync(4)


@pytest.mark.parametrize("in_hook", [False, True], ids=["node", "hook"])
def test_a_signal_that_ends_the_process_fails_no_run(url: str, in_hook: bool) -> None:
    """Its handler may raise SystemExit while a node or its hook is at work. Another worker takes the run over."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # a second one is ignored
        sys.exit(3)

    class AtWork(Node[int, int]):
        async def exec(self, n: int) -> int:
            if not in_hook:
                signal.raise_signal(signal.SIGUSR1)
            return n

        async def on_success(self, store: StoreWriter, result: int) -> None:
            signal.raise_signal(signal.SIGUSR1)

    at_work = AtWork()

    async def main() -> None:
        async with Store(url) as store:
            await Worker([Graph(at_work, name="work")], store=store).run(once=True)

    async def state() -> str:
        async with Store(url) as store:
            return (await Runs(store).get("w")).state

    async def submit() -> None:
        async with Store(url) as store:
            await Graph(at_work, name="work").submit(1, run_id="w", store=store)

    asyncio.run(submit())
    former = signal.signal(signal.SIGUSR1, end)
    try:
        with pytest.raises(SystemExit):
            asyncio.run(main())
    finally:
        signal.signal(signal.SIGUSR1, former)
    gc.collect()  # asyncio logs an error when it collects the tasks of a loop that ended so: here, and not in a later test
    assert asyncio.run(state()) == "stalled"


def test_several_workers_share_a_store(url: str) -> None:
    """A hundred runs, four workers with a store each: each run is taken once, and every effect is there once."""

    async def main() -> None:
        async with Store(url) as store, Store(url) as other:
            said = Said()
            workers = [Worker([graph], store=each, concurrency=5, report=said) for each in (store, other, store, other)]
            for number in range(100):
                await graph.submit(number, run_id=f"d-{number}", store=store)
            await asyncio.gather(*(worker.run(once=True) for worker in workers))
            await said.until(lambda: sum(report.became == "finished" for report in said.reports) == 100)
            assert all(said.of(f"d-{number}") == ["taken", "finished"] for number in range(100))
            assert await store.get("counted") == 100
            assert not await keys(store, "pending") + await keys(store, "running")

    asyncio.run(main())


def test_once_ends_when_nothing_is_ready(url: str) -> None:
    """A failed run is recorded as failed; a run that waits for an answer is left; the worker itself ends without an error."""

    async def main() -> None:

        @node
        async def fail(n: int) -> int:
            raise ValueError("no")

        asking = Graph(Ask(bool, question="Really?"), name="asking")
        failing = Graph(fail, name="failing")
        async with Store(url) as store:
            said = Said()
            await asking.submit(1, run_id="a", store=store)
            await failing.submit(1, run_id="f", store=store)
            await Worker([asking, failing], store=store, report=said).run(once=True)
            assert said.of("a") == ["taken", "suspended"]
            assert said.of("f") == ["taken", "failed"]
            assert [str(report.error) for report in said.reports if report.became == "failed"] == ["no"]
            assert len(await keys(store, "suspended")) == len(await keys(store, "failed")) == 1

    asyncio.run(main())


class Counting(Worker):
    begun = 0

    async def _take(self, pocket: RunHost, is_review: bool) -> int:
        begun = await super()._take(pocket, is_review)
        self.begun += begun
        return begun


def test_a_worker_executes_the_runs_of_all_scopes_of_its_store(url: str) -> None:
    """A service gives each tenant a scope; each run reads and writes in the scope in which it was submitted."""

    async def main() -> None:
        async with Store(url) as store:
            said = Said()
            tenants = {name: store.scope(join_name(name)) for name in ("acme", "a:b")}
            for name, tenant in tenants.items():
                await nested.submit(1, run_id=name, store=tenant)
            await nested.submit(1, run_id="base", store=store)
            assert [check.verdict for check in await nested.check_runs(store=store)] == ["unchanged"] * 3
            worker = Counting([nested], store=store, report=said)
            await worker.run(once=True)
            assert worker.begun == 3  # a run of a scope isn't left for another poll, where another worker may have it
            assert {report.became for report in said.reports} == {"taken", "finished"}
            assert [await tenant.get("counted") for tenant in tenants.values()] == [1, 1]
            assert await store.get("counted") == 1
            assert await nested.resume("a:b", store=tenants["a:b"]) == 2

    asyncio.run(main())


def test_a_worker_over_a_scope_leaves_the_runs_outside(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """They are reported once, as refused, with the reason; they stay as they are."""

    async def main() -> None:
        async with Store(url) as store:
            said = Said()
            await nested.submit(1, run_id="other", store=store.scope("other"))
            await nested.submit(1, run_id="within", store=store.scope("acme").scope("shop"))
            assert [check.run_id for check in await nested.check_runs(store=store.scope("acme"))] == ["within"]
            await Worker([nested], store=store.scope("acme"), report=said).run(once=True)
            assert (said.of("within"), said.of("other")) == (["taken", "finished"], ["refused"])
            (refused,) = [report.error for report in said.reports if report.became == "refused"]
            assert "in scope 'other:', not to 'nested' in scope 'acme:'; resume it with that scope" in str(refused)
            assert (await Runs(store).get("other")).state == "pending"

    asyncio.run(main())
    assert "skips run 'other' of graph 'nested'" in caplog.text
    assert "it is in another scope" in caplog.text


def test_a_worker_can_run_again_in_another_event_loop(url: str) -> None:
    """As in a test that lets a worker do what is ready, advances the clock, and calls it again."""
    asleep = asyncio.Event()

    class Signalling(Worker):
        async def _sleep(self, pause: float) -> None:
            asleep.set()
            await super()._sleep(3600)

    @node
    async def until_asleep(n: int) -> int:
        await asleep.wait()
        return n

    waiting = Graph(until_asleep, name="waiting")
    with SyncStore(url) as store:
        worker = Signalling([waiting], store=store)
        for run_id in ("a", "b"):
            asleep = asyncio.Event()
            waiting.submit_sync(1, run_id=run_id, store=store)
            asyncio.run(worker.run(once=True))
            assert waiting.resume_sync(run_id, store=store) == 1


@pytest.mark.parametrize("became", ["taken", "finished"])
def test_a_report_that_raises_stops_no_run(url: str, became: str, caplog: pytest.LogCaptureFixture) -> None:
    """The error is logged, and the run continues."""

    def report(report: WorkerReport) -> None:
        if report.became == became:
            raise ValueError("the report's own")

    @node
    async def double(n: int) -> int:
        return 2 * n

    async def main() -> None:
        async with Store(url) as store:
            graph = Graph(double, store=store, name="doubling")
            await graph.submit(21, run_id="r")
            await Worker([graph], report=report).run(once=True)
            assert [run.state for run in (await Runs(store).list()).runs] == ["finished"]
            assert await graph.resume("r") == 42

    asyncio.run(main())
    (said,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert f"a worker's report of run 'r' ({became}) failed" in said.getMessage()


def test_a_cancelled_worker_ends_its_runs_and_others_take_them_at_once(url: str) -> None:
    """As after a second Ctrl-C: nobody executes the run any more, so another worker takes it without waiting for a lease."""

    async def main() -> None:
        started, go_on = asyncio.Event(), asyncio.Event()

        @node
        async def wait(n: int) -> int:
            started.set()
            await go_on.wait()
            return n

        slow = Graph(wait >> count, name="slow")
        async with Store(url) as store:
            await slow.submit(1, run_id="s", store=store)
            task = asyncio.create_task(Worker([slow], store=store).run())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(await keys(store, "running")) == 1
            go_on.set()
            await Worker([slow], store=store).run(once=True)
            assert await slow.resume("s", store=store) == 1

    asyncio.run(main())


# ---------------------------------------------------------------- stopping
def test_a_stopped_worker_releases_its_runs_between_two_nodes(url: str) -> None:
    """The running node is completed and committed, the next one isn't started; the run is pending, and another worker continues
    it.
    """

    async def main() -> None:
        started, go_on, done = asyncio.Event(), asyncio.Event(), list[str]()

        @node
        async def wait(n: int) -> int:
            done.append("wait")
            started.set()
            await go_on.wait()
            return n

        class After(Node[int, int], name="after"):
            async def exec(self, prepared: int) -> int:
                done.append("after")
                return prepared

        slow = Graph(Graph(wait >> After(), name="inner") >> count, name="slow")
        async with Store(url) as store:
            said = Said()
            await slow.submit(1, run_id="s", store=store)
            await slow.submit(1, run_id="t", store=store)
            worker = Worker([slow], store=store, concurrency=1, report=said)
            task = asyncio.create_task(worker.run())
            await started.wait()
            worker.stop()
            go_on.set()
            await task
            assert done == ["wait"]
            assert [report.became for report in said.reports] == ["taken", "released"]
            assert len(await keys(store, "pending")) == 2
            assert await keys(store, "running") == []
            await Worker([slow], store=store, concurrency=1).run(once=True)
            assert sorted(done) == ["after", "after", "wait", "wait"]
            assert await store.get("counted") == 2

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["node", "graph", "collected"])
def test_running_items_are_completed_when_a_worker_stops_and_no_others_start(url: str, kind: str) -> None:
    """Nothing of a fan-out is done twice because a worker stops; nested fan-outs are completed too."""

    async def main() -> None:
        begun, done, go_on, several = list[int](), list[int](), asyncio.Event(), asyncio.Event()

        @node
        async def work(n: int) -> int:
            begun.append(n)
            if len(begun) == 3:
                several.set()
            await go_on.wait()
            done.append(n)
            return n

        way: Any = Graph(work >> double, name="way") if kind == "graph" else work
        errors: Any = "collect" if kind == "collected" else "raise"
        wide: Any = Graph(each(way, concurrency=3, errors=errors) >> node(sum).with_options(name="total"), name="wide")
        async with Store(url) as store:
            said = Said()
            await wide.submit(list(range(8)), run_id="w", store=store)
            worker = Worker([wide], store=store, report=said)
            task = asyncio.create_task(worker.run())
            await several.wait()
            worker.stop()
            go_on.set()
            await task
            assert said.of("w") == ["taken", "released"]
            assert sorted(done) == sorted(begun) == [0, 1, 2]
            await Worker([wide], store=store).run(once=True)
            assert sorted(done) == sorted(begun) == list(range(8))
            assert await wide.resume("w", store=store) == (56 if kind == "graph" else 28)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["node", "in a thread", "in a nested graph", "item", "collected"])
def test_a_node_that_waits_for_its_next_attempt_is_released_at_once(url: str, kind: str) -> None:
    """A deploy waits for work, not for a pause. It is no failure, and the next worker begins with the first attempt."""

    async def main() -> None:
        attempts, hooks, tried, is_down = list[int](), list[str](), asyncio.Event(), True
        loop = asyncio.get_running_loop()

        def work(n: int) -> int:
            attempts.append(n)
            if is_down:
                loop.call_soon_threadsafe(tried.set)
                raise ConnectionError
            return n

        class Call(Node[int, int], retry=Retry(attempts=3, delay="50s"), name="call"):
            if kind == "in a thread":

                def exec(self, prepared: int) -> int:
                    return work(prepared)
            else:

                async def exec(self, prepared: int) -> int:
                    return work(prepared)

            async def on_failure(self, store: StoreWriter, error: BaseException) -> None:
                hooks.append("failure")

        way: Any = Call()
        if kind == "in a nested graph":
            way = Graph(way, name="inner")
        elif kind in ("item", "collected"):
            way = each(way, errors="collect" if kind == "collected" else "raise") >> node(sum).with_options(
                name="total"
            )
        flaky: Any = Graph(way >> count, name="flaky")
        async with Store(url) as store:
            said = Said()
            await flaky.submit([1] if kind in ("item", "collected") else 1, run_id="f", store=store)
            worker = Worker([flaky], store=store, report=said)
            task = asyncio.create_task(worker.run())
            await tried.wait()
            worker.stop()
            async with asyncio.timeout(20):
                await task
            assert said.of("f") == ["taken", "released"]
            assert (attempts, hooks) == ([1], [])
            is_down = False
            await Worker([flaky], store=store).run(once=True)
            assert await store.get("counted") == 1
            assert attempts == [1, 1]

    asyncio.run(main())


def test_hooks_that_have_ended_are_not_called_again_after_a_release(url: str) -> None:
    """The run is released after them, and its record says that they have ended."""

    async def main() -> None:
        called: list[str] = []
        worker: list[Worker] = []

        class Hooked(Node[int, int], name="hooked"):
            async def exec(self, prepared: int) -> int:
                return prepared

            async def on_complete(self, *_: object) -> None:
                called.append("on_complete")
                worker[0].stop()

        hooked = Graph(Hooked() >> count, name="hooked")
        async with Store(url) as store:
            await hooked.submit(1, run_id="h", store=store)
            worker.append(Worker([hooked], store=store))
            await worker[0].run()
            assert len(await keys(store, "pending")) == 1
            await Worker([hooked], store=store).run(once=True)
            assert called == ["on_complete"]

    asyncio.run(main())


# ---------------------------------------------------------------- stalled
def test_a_run_is_stalled_when_nothing_has_moved_for_its_lease_by_the_observers_clock(url: str) -> None:
    """Whatever its age by other clocks: a lease from the first observation on, and again from each progress."""

    async def main() -> None:
        clock = FakeClock()
        async with Store(url) as store:
            running = await left_running(store, lease=30.0)
            watch = StallWatch(store.stack, clock)
            assert await watch.look([running]) == []
            clock.advance(29)
            assert await watch.look([running]) == []
            clock.advance(1)
            (stalled,) = await watch.look([running])
            assert (stalled.run_id, stalled.graph, stalled.versions.keys()) == (
                "d-1",
                "doubling",
                {running, keys_of("d-1")[0], "pocket:run-beat:elsewhere"},  # it doesn't exist yet
            )
            for key in (running, keys_of("d-1")[0]):  # its state, its record
                entry = await store.stack.read(key)
                assert entry is not None
                await store.stack.write([Put(key, entry.value)])
                assert await watch.look([running]) == []
                clock.advance(30)
                assert len(await watch.look([running])) == 1

    asyncio.run(main())


def test_a_heartbeat_counts_for_the_executions_that_it_names(url: str) -> None:
    """A heartbeat with another execution's id keeps nothing alive; one with this id does, and is part of
    the expected versions.
    """

    async def main() -> None:
        clock = FakeClock()
        async with Store(url) as store:
            running = await left_running(store, lease=30.0)
            watch, spoken = StallWatch(store.stack, clock), BEAT + "elsewhere"
            await watch.look([running])
            clock.advance(30)
            await store.stack.write([Put(spoken, {"owners": ["another"]})])
            assert len(await watch.look([running])) == 1
            await store.stack.write([Put(spoken, {"owners": ["another", "somebody"]})])
            assert await watch.look([running]) == []
            clock.advance(30)
            (stalled,) = await watch.look([running])
            assert spoken in stalled.versions

    asyncio.run(main())


def test_a_heartbeat_counts_if_clocks_differ_by_a_day(url: str) -> None:
    """It is stored for longer than that: for an observer whose clock is ahead it must not have expired."""

    async def main() -> None:
        ahead, ticking = FakeClock(), FakeClock()
        ahead.advance(86_400)
        async with Store(url, clock=FakeClock()) as store, Store(url, clock=ahead) as observer:
            running = await left_running(store, lease=30.0)
            held = Journal(Wanted("d-1"), graph, graph.own_place(Pocket(), store))
            held.owner, held.state_key = "somebody", running
            watch = StallWatch(observer.stack, ticking)
            await watch.look([running])
            ticking.advance(30)
            await beat(store.stack, "elsewhere", [held], {"somebody"})
            assert await watch.look([running]) == []

    asyncio.run(main())


def test_a_run_of_a_process_that_has_ended_is_stalled_at_once(url: str) -> None:
    """On the same machine that is known: here an execution of this process that no longer exists."""

    async def main() -> None:
        async with Store(url) as store:
            running = await left_running(store, process=this_process().record)
            assert [each.run_id for each in await StallWatch(store.stack).look([running])] == ["d-1"]

    asyncio.run(main())


def test_a_takeover_expects_the_versions_that_were_read(url: str) -> None:
    """If the run, its state or the heartbeat has changed since it was read, the run isn't taken. If not, it is."""

    async def main() -> None:
        async with Store(url) as store:
            for moved in ("run", "state", "beat", None):
                running = await left_running(store, run_id=f"d-{moved}")
                await store.stack.write([Put(BEAT + "elsewhere", {"owners": ["somebody"]})])
                clock = FakeClock()
                watch = StallWatch(store.stack, clock)
                await watch.look([running])
                clock.advance(30)
                (stalled,) = await watch.look([running])
                names = {"run": keys_of(f"d-{moved}")[0], "state": running, "beat": BEAT + "elsewhere"}
                if moved is not None:
                    entry = await store.stack.read(names[moved])
                    assert entry is not None
                    await store.stack.write([Put(names[moved], entry.value)])
                from pocket_plug import MISSING
                from pocket_plug.graph.durable.request import Request
                from pocket_plug.graph.observing.host import default_host

                host = default_host()
                request = Request(f"d-{moved}", takeover=False, allow_changed=False, stalled_at=stalled.versions)
                execution = request.execution(graph, graph.own_place(host, store), MISSING, host, True)
                if moved is None:
                    assert await execution.go() == 2
                else:
                    with pytest.raises(RunBusyError, match=r"'another machine' has executed it.*resume --takeover`"):
                        await execution.go()

    asyncio.run(main())


def test_a_worker_takes_over_a_stalled_run(url: str) -> None:
    """Its lease, here a short one, has passed without progress: the worker continues it."""

    async def main() -> None:
        async with Store(url) as store:
            await left_running(store, lease=0.2)
            said = Said()
            async with working(Worker([graph], store=store, lease="200ms", report=said)):
                await said.until(lambda: "finished" in said.of("d-1"))
            assert await store.get("counted") == 1

    asyncio.run(main())


def test_a_run_without_progress_has_failed_after_some_executions(url: str) -> None:
    """A node that ends its process would end one worker after the other. It can still be resumed by hand."""

    async def main() -> None:
        async with Store(url) as store:
            running = await left_running(store, process=this_process().record, tries=MAX_TRIES)
            said = Said()
            await Worker([graph], store=store, report=said).run(once=True)
            assert said.of("d-1") == ["failed"]
            (error,) = [report.error for report in said.reports]
            assert isinstance(error, RunStuckError)
            assert "5 executions in a row have ended at node 'double' without an error and without progress" in str(
                error
            )
            (failed,) = await keys(store, "failed")
            entry = await store.stack.read(failed)
            assert entry is not None
            failure = read_state(failed, entry).failure
            assert failure is not None
            assert (failure.type, failure.node, failure.attempts) == (
                "pocket_plug.errors.RunStuckError",
                "double",
                MAX_TRIES,
            )
            assert await store.stack.read(running) is None
            assert await graph.resume("d-1", store=store) == 2

    asyncio.run(main())


def test_once_leaves_no_stalled_run_behind(url: str) -> None:
    """Also if there are more of them than it may execute at the same time: a worker that cron starts is the only one."""

    async def main() -> None:
        async with Store(url) as store:
            for number in range(5):
                await left_running(store, f"d-{number}", process=this_process().record)
            await Worker([graph], store=store, concurrency=2).run(once=True)
            assert await keys(store, "running") == []

    asyncio.run(main())


def test_runs_that_may_have_ended_their_process_are_executed_alone(url: str) -> None:
    """A run that ends each process also ends those executed beside it, and they would be given up too."""
    beside = dict[str, int]()

    class Counting(Worker):
        def _tell(self, became: Became, journal: Journal, error: Exception | None = None) -> None:
            if became == "taken":
                beside[journal.id] = len(self._tasks) - 1

    async def main() -> None:
        async with Store(url) as store:
            for number in range(3):
                await graph.submit(number, run_id=f"new-{number}", store=store)
            for number in range(3):
                await left_running(store, f"once-{number}", process=this_process().record, tries=1)
            for number in range(3):
                await left_running(store, f"often-{number}", process=this_process().record, tries=3)
            await Counting([graph], store=store).run(once=True)
            assert await keys(store, "running") == []
            assert len(await keys(store, "finished")) == len(beside) == 9
            assert [beside[f"often-{number}"] for number in range(3)] == [0, 0, 0]
            assert max(beside.values()) > 0

    asyncio.run(main())


def test_a_run_that_may_end_its_process_delays_others_for_a_limited_time(url: str) -> None:
    """It is executed even beside a run that takes hours, and so are new runs, once the worker has waited for a while."""

    @node
    async def hours(n: int) -> int:
        await asyncio.sleep(2 * 3600)
        return n

    async def main() -> None:
        time, slow = asyncio.get_running_loop().time, Graph(hours, name="slow")
        began, ended = asyncio.Event(), asyncio.Event()
        seen: dict[tuple[str, str], float] = {}

        def report(report: WorkerReport) -> None:
            seen[report.run_id, report.became] = time()
            began.set()
            if {("often", "finished"), ("new", "finished")} <= seen.keys():
                ended.set()

        async with Store(url) as store:
            await slow.submit(1, run_id="slow", store=store)
            worker = Worker([graph, slow], store=store, report=report)
            running = asyncio.create_task(worker.run())
            await began.wait()
            await left_running(store, "often", process=this_process().record, tries=SUSPECT)
            await asyncio.sleep(2)  # in virtual time: the worker has seen it
            await graph.submit(1, run_id="new", store=store)
            await ended.wait()
            worker.stop()
            await running
        assert ALONE <= seen["often", "taken"] < 2 * ALONE
        assert ALONE <= seen["new", "taken"] < 2 * ALONE
        assert seen["slow", "finished"] == 2 * 3600

    run_virtual(main())


def test_progress_in_an_item_is_progress(url: str) -> None:
    """Items don't change their run's record; an execution that has completed one has made progress, so its run isn't given up."""

    async def main() -> None:
        stumble = True

        class Stop(BaseException):
            pass

        @node
        async def work(n: int) -> int:
            if n == 1 and stumble:
                raise Stop
            return n

        wide = Graph(each(work, concurrency=1), name="wide")
        async with Store(url) as store:
            with suppress(Stop):
                await wide.run([0, 1, 2], run_id="w", store=store)
            (running,) = await keys(store, "running")
            for expected in (1, 2, 3):  # the first one follows an execution that has completed an item
                entry = await store.stack.read(running)
                assert entry is not None
                with suppress(Stop):
                    await wide.resume("w", store=store)
                entry = await store.stack.read(running)
                assert entry is not None
                assert read_state(running, entry).tries == expected

    asyncio.run(main())


def test_plugins_are_notified_of_changes_without_an_execution(url: str) -> None:
    """A submitted run, once; a stalled run that is taken over, with its former owner; a run that is given up."""
    told: list[tuple[str, str, dict[str, Any]]] = []

    class Told:
        @hookimpl
        def pocket_run_notice(self, notice: RunNotice) -> None:
            told.append((notice.what, notice.run_id, dict(notice.attributes)))

    async def main() -> None:
        pocket = Pocket(plugins=[Told()], autoload=False)
        async with Store(url) as store:
            await graph.submit(1, run_id="d-0", store=store, pocket=pocket)
            await graph.submit(1, run_id="d-0", store=store, pocket=pocket)
            process = {**this_process().record, "host": "here", "pid": 7}
            await left_running(store, "d-1", process)
            await left_running(store, "d-2", process, tries=MAX_TRIES)
            await Worker([graph], store=store, pocket=pocket).run(once=True)
        assert sorted(told) == [
            ("failed", "d-2", {"error_type": "pocket_plug.errors.RunStuckError"}),
            ("stalled", "d-1", {"host": "here", "pid": 7, "since": 0.0}),
            ("stuck", "d-2", {"tries": MAX_TRIES}),
            ("submitted", "d-0", {}),
        ]

    asyncio.run(main())


def test_these_changes_are_logged(url: str, tmp_path: Path, fresh_structlog: None) -> None:
    """Submitted at info, stalled at warning, by structlog, if events are enabled."""

    async def main() -> None:
        async with Store(url) as store:
            await graph.submit(1, run_id="d-0", store=store, pocket=pocket)
            await left_running(store, "d-1", {**this_process().record, "host": "here", "pid": 7})
            await Worker([graph], store=store, pocket=pocket).run(once=True)

    try:
        with structlog.testing.capture_logs() as logs:
            (tmp_path / "pocket.toml").write_text("[plugins.logging]\nevents = true\n")
            pocket = Pocket(tmp_path / "pocket.toml", autoload=False)
            asyncio.run(main())
    finally:
        structlog.reset_defaults()  # `capture_logs` configures it
    asked = [("pocket_plug.run.submitted", "d-0"), ("pocket_plug.run.stalled", "d-1")]
    told = [each for each in logs if (each["event"], each.get("run_id")) in asked]
    assert told == [
        {"event": "pocket_plug.run.submitted", "log_level": "info", "run_id": "d-0", "graph": "doubling"},
        {
            "event": "pocket_plug.run.stalled",
            "log_level": "warning",
            "run_id": "d-1",
            "graph": "doubling",
            "host": "here",
            "pid": 7,
            "since": 0.0,
        },
    ]


# ---------------------------------------------------------------- runs that can't be continued
def test_a_run_that_does_not_fit_the_graph_is_left_and_reported_once(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its graph has changed: reported once until its record changes; other runs are taken, and it isn't changed."""

    async def main() -> None:

        @node
        async def triple(n: str) -> int:
            return 3 * int(n)

        changed = Graph(triple >> count, name="doubling")
        async with Store(url) as store:
            await graph.submit(1, run_id="d-1", store=store)
            before = await store.stack.read(keys_of("d-1")[0])
            said = Said()
            worker = Worker([changed], store=store, lease="40ms", report=said)
            async with working(worker):
                for number in range(20):
                    await changed.submit(str(number), run_id=f"n-{number}", store=store)
                    await said.until(lambda number=number: "finished" in said.of(f"n-{number}"))
            assert said.of("d-1") == ["refused"]
            assert caplog.text.count("`pocket-plug runs check` or `graph.check_runs()` shows the reason") == 1
            assert "can't resume in the current graph 'doubling'" in str(
                next(r.error for r in said.reports if r.run_id == "d-1")
            )
            assert await store.stack.read(keys_of("d-1")[0]) == before
            assert await graph.resume("d-1", store=store) == 2

    asyncio.run(main())
    (warning,) = [record.getMessage() for record in caplog.records if "skips run" in record.getMessage()]
    assert "it is at node 'double', which doesn't exist there" in warning


class Ticket:
    """A class of a program whose fields change with each release."""

    def __init__(self, **fields: int) -> None:
        self.fields = fields


def release(*fields: str) -> None:
    """From now on this process is a program in which the class has these fields."""

    def decode(state: dict[str, int]) -> Ticket:
        if set(state) != set(fields):
            raise LookupError("other fields")
        return Ticket(**state)

    register_type(Ticket, encode=lambda ticket: ticket.fields, decode=decode)


@pytest.mark.parametrize("where", ["value", "outer value", "result of an item", "answer", "answer of an item"])
def test_a_run_with_a_value_that_this_program_can_not_read_is_left_too(url: str, where: str) -> None:
    """In a deploy the class of a value has changed. The worker that can't read it must not fail the run: the other one can."""
    broken = ["here"]

    @node
    async def make(n: int) -> Ticket:
        return Ticket(seats=n)

    @node
    async def use(ticket: Any) -> int:
        if broken and not (where == "result of an item" and ticket == 1):
            raise RuntimeError("down")
        return 1

    ask = Ask[int, Any](Ticket, question="Which?", name="which")
    graphs: dict[str, Graph[Any, Any]] = {
        "value": Graph(make >> use, name="g"),
        "outer value": Graph(make >> Graph(node(_seats) >> use, name="inner"), name="g"),
        "result of an item": Graph(each(Graph(use >> make, name="item"), concurrency=1), name="g"),
        "answer": Graph(ask >> use, name="g"),
        "answer of an item": Graph(each(Graph(ask >> use, name="item"), concurrency=1), name="g"),
    }
    graph = graphs[where]

    async def main() -> None:
        async with Store(url) as store:
            release("seats")
            await graph.submit([1, 2] if "item" in where else 1, run_id="r", store=store)
            with suppress(RuntimeError, RunSuspendedError):
                await graph.resume("r", store=store)
            if "answer" in where:
                for question in (await Runs(store).questions("r"))[:1]:
                    await Runs(store).answer("r", Ticket(seats=1), question=question.id)
            else:
                await Runs(store).retry("r")
            before = await store.stack.read(keys_of("r")[0])
            release("seats", "row")
            said = Said()
            await Worker([graph], store=store, report=said).run(once=True)
            assert said.of("r") == ["refused"]
            (check,) = await graph.check_runs(store=store)
            assert check.verdict == "refused"
            assert "Ticket" in check.why
            assert await store.stack.read(keys_of("r")[0]) == before
            release("seats")
            broken.clear()
            said = Said()
            await Worker([graph], store=store, report=said).run(once=True)
            assert said.of("r") == ["taken", "suspended" if where == "answer of an item" else "finished"]

    asyncio.run(main())


def _seats(ticket: Ticket) -> int:
    return ticket.fields["seats"]


def test_many_such_runs_do_not_hide_others(url: str) -> None:
    """More than one poll reads: the runs behind them are found, and a changed one is found again."""

    async def main() -> None:
        async with Store(url) as store:
            place = graph.own_place(object(), store)  # type: ignore[arg-type]  # a given store asks no Pocket
            finder = Finder(graph, place)
            for number in range(3 * AHEAD):
                await graph.submit(number, run_id=f"d-{number:03}", store=store)
                entry = await store.stack.read(keys_of(f"d-{number:03}")[0])
                assert entry is not None
                finder.refuse(f"d-{number:03}", entry.version)
            assert await finder.find(1) == []
            await graph.submit(1, run_id="last", store=store)
            assert [ready.run_id for ready in await finder.find(1)] == ["last"]
            await finder.review()
            assert [ready.run_id for ready in await finder.find(1)] == ["last"]
            entry = await store.stack.read(keys_of("d-007")[0])
            assert entry is not None
            await store.stack.write([Put(keys_of("d-007")[0], entry.value)])
            await finder.review()
            assert [ready.run_id for ready in await finder.find(1)] == ["d-007", "last"]

    asyncio.run(main())


def test_a_review_reads_no_records_of_the_runs_that_are_skipped(tmp_path: Path) -> None:
    """Thousands may wait for workers of another version, each with its input: all of them were read once a second."""
    read: list[str] = []

    class Seen(Layer):
        async def read(self, key: str) -> Entry | None:
            read.append(key)
            return await self.inner.read(key)

    async def main() -> None:
        async with Store(f"sqlite:///{tmp_path}/state.db?durability=process", layers=[Seen()]) as store:
            finder = Finder(graph, graph.own_place(object(), store))  # type: ignore[arg-type]  # as above
            for number in range(3):
                await graph.submit(number, run_id=f"d-{number}", store=store)
                entry = await store.stack.read(keys_of(f"d-{number}")[0])
                finder.refuse(f"d-{number}", entry.version if entry is not None and number else -1)
            read.clear()
            await finder.review()
            assert {key for key in read if key.startswith(RUN)} == {f"{RUN}d-0"}  # that one could not be read before
            assert [ready.run_id for ready in await finder.find(1)] == ["d-0"]

    asyncio.run(main())


def test_runs_of_other_graphs_are_left_alone(url: str) -> None:
    """They stay pending, for a worker that has their graph."""

    async def main() -> None:
        other = Graph(double, name="other")
        async with Store(url) as store:
            said = Said()
            await other.submit(1, run_id="o", store=store)
            await Worker([graph], store=store, report=said).run(once=True)
            assert said.reports == []
            assert len(await keys(store, "pending")) == 1

    asyncio.run(main())


def test_a_damaged_record_stops_no_worker(url: str) -> None:
    """It is reported once, and others are taken."""

    async def main() -> None:
        async with Store(url) as store:
            await graph.submit(1, run_id="damaged", store=store)
            await store.stack.write([Put(keys_of("damaged")[0], {"format": 2})])
            await graph.submit(1, run_id="d-1", store=store)
            said = Said()
            await Worker([graph], store=store, report=said).run(once=True)
            assert said.of("damaged") == ["refused"]
            assert said.of("d-1") == ["taken", "finished"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("graphs", "why"),
    [
        ([], "has no graph; give at least one"),
        ([double], "is not a graph"),
        ([graph, Graph(double, name="doubling")], "two graphs of this worker have the name 'doubling'"),
    ],
)
def test_invalid_graphs_are_refused(graphs: Any, why: str) -> None:
    """No graph, a node, two graphs with one name: each with its reason."""
    with pytest.raises(ConfigError, match=why):
        Worker(graphs)


def test_the_limits_of_a_trace_file_are_no_retention_of_runs() -> None:
    """They are refused when the worker is made, not when it first removes old runs."""
    with pytest.raises(ConfigError, match=r"can't be TraceLimits; give pocket_plug\.Retention\(older=…, keep=…\)"):
        Worker([graph], retention=TraceLimits())  # type: ignore[arg-type]


def test_a_store_that_is_not_durable_is_refused_before_anything_is_taken() -> None:
    """As by `run`: a worker over memory would never find runs that others submit."""

    async def main() -> None:
        async with Store() as store:
            with pytest.raises(ConfigError, match="is not persistent"):
                await Worker([graph], store=store).run(once=True)

    asyncio.run(main())


def test_once_raises_a_stores_failure_at_a_claim(tmp_path: Path) -> None:
    """It ends with that error, so that a timer that starts it reports that runs are left."""

    full: list[bool] = []

    class Full(Layer):
        name = "full"

        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
            if full and changes:
                raise StoreError("the disk is full")
            return await self.inner.write(changes, expect)

    async def main() -> None:
        async with Store(f"sqlite:///{tmp_path}/full.db?durability=process", layers=[Full()]) as store:
            await graph.submit(1, run_id="d-0", store=store)
            full.append(True)
            with pytest.raises(StoreError, match="the disk is full"):
                await Worker([graph], store=store).run(once=True)

    asyncio.run(main())


def test_a_worker_names_the_server_that_it_can_not_reach(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The warning says what to do; of other errors it has only the type, since their texts may quote values."""
    errors = [
        StoreUnreachableError(
            "redis at db.example:6379 can't be reached; check that it runs redis://:hunter2@db.example"
        ),
        StoreError("entry 'card 4711' is damaged"),
    ]

    class Down(Layer):
        name = "down"

        async def scan(
            self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
        ) -> AsyncGenerator[str]:
            if errors:
                raise errors.pop(0)
            worker.stop()
            async for key in self.inner.scan(prefix, after=after, reverse=reverse, limit=limit):
                yield key

    async def main() -> None:
        async with store:
            await worker.run()

    store = Store(url, layers=[Down()])
    worker = Worker([graph], store=store)
    asyncio.run(main())
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    assert "StoreUnreachableError: redis at db.example:6379 can't be reached; check that it runs" in warnings[0]
    assert "hunter2" not in warnings[0]
    assert "4711" not in warnings[1]


@pytest.mark.parametrize("while_executing", [False, True], ids=["idle", "executing a run"])
def test_a_worker_ends_if_its_file_is_replaced(
    tmp_path: Path, while_executing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could never take a run again, so whoever has started it must know, and start it again: it opens the new file then."""
    monkeypatch.setattr(opened, "LOOK_EVERY", 0)
    path = tmp_path / "state.db"

    @node
    async def replaced(n: int) -> int:
        path.unlink()
        return n

    async def main() -> None:
        async with Store(f"sqlite:///{path}?durability=process") as store:
            replacing = Graph(replaced, store=store, name="replacing")
            if while_executing:
                await replacing.submit(1, run_id="d-1")
            else:
                path.unlink()
            with pytest.raises(StoreClosedError, match=r"state\.db was deleted, moved or replaced"):
                await Worker([replacing]).run()

    asyncio.run(main())


@pytest.mark.parametrize("away", [StoreUnreachableError, StoreBusyError, StoreTimeoutError, AnswerLostError])
@pytest.mark.parametrize("phase", ["prep", "commit", "an item's commit"])
def test_a_run_whose_store_was_away_for_a_while_is_executed_again(url: str, phase: str, away: type[StoreError]) -> None:
    """The store is back before the worker gives up: the run has not failed, so nobody needs to retry it."""
    left = [phase]

    class Away(Layer):
        name = "away"

        async def read(self, key: str) -> Entry | None:
            if key == "seen" and left == ["prep"]:
                raise away(left.pop())
            return await self.inner.read(key)

        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
            if any(change.key == "seen" for change in changes) and left and left != ["prep"]:
                raise away(left.pop())
            return await self.inner.write(changes, expect)

    class See(Node[int, int], name="see"):
        async def prep(self, store: StoreReader, n: int) -> int:
            return int(await store.get("seen", 0))

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            await store.set("seen", prepared + 1)
            return prepared + 1

    async def main() -> None:
        async with Store(url, layers=[Away()]) as store:
            seeing: Graph[Any, Any] = Graph(each(See()) if "item" in phase else See(), store=store, name="seeing")
            given: Any = [1] if "item" in phase else 1
            await seeing.submit(given, run_id="d-1")
            said = Said()
            async with working(Worker([seeing], report=said)):
                await said.until(lambda: {"finished", "failed"} & {*said.of("d-1")})
            assert said.of("d-1") == ["taken", "lost", "taken", "finished"]
            assert await store.get("seen") == 1
            left.append(phase)
            with pytest.raises(away):
                await seeing.run(given, run_id="d-2")  # here the caller decides
            assert (await Runs(store).get("d-2")).state == "failed"

    asyncio.run(main())


class Slow(Layer):
    """Reads of keys that begin with `slow` fail as if the store were away; with `most`, only so many times for each."""

    name = "slow"

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self.most, self.failed = most, Counter[str]()

    async def read(self, key: str) -> Entry | None:
        if key.startswith("slow") and (self.most is None or self.failed[key] < self.most):
            self.failed[key] += 1
            raise StoreUnreachableError("no answer")
        return await self.inner.read(key)


class ReadSlowly(Node[int, int], name="read"):
    async def prep(self, store: StoreReader, n: int) -> int:
        return int(await store.get(f"slow-{n}", n))


def test_a_run_whose_node_makes_the_store_fail_each_time_has_failed_in_the_end(url: str) -> None:
    """A value may take too long to read, while all else is quick: its exec must not be repeated for ever."""

    async def main() -> None:
        async with Store(url, layers=[slow := Slow()]) as store:
            reading = Graph(count >> ReadSlowly(), store=store, name="reading")
            await reading.submit(1, run_id="d-1")
            said = Said()
            await Worker([reading], report=said).run(once=True)
            assert said.of("d-1") == ["taken", "lost"] * MAX_TRIES + ["taken", "failed"]
            assert slow.failed == {"slow-1": MAX_TRIES + 1}  # in the first execution, `count` made progress
            failure = (await Runs(store).get("d-1")).failure
            assert failure is not None
            assert failure.type.endswith("StoreUnreachableError")

    asyncio.run(main())


def test_an_execution_that_makes_progress_before_its_store_is_away_does_not_count(url: str) -> None:
    """In nodes and in items: each execution takes one of them further."""

    async def main() -> None:
        async with Store(url, layers=[Slow(1)]) as store:
            items = [*range(MAX_TRIES + 3)]
            reading = Graph(each(ReadSlowly(), concurrency=1), store=store, name="reading")
            await reading.submit(items, run_id="d-1")
            said = Said()
            await Worker([reading], report=said).run(once=True)
            assert said.of("d-1") == ["taken", "lost"] * len(items) + ["taken", "finished"]

    asyncio.run(main())


def test_a_worker_says_once_what_is_wrong_with_its_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk fails each ready run, at each try: the log says that it is full, and isn't filled itself."""
    full: list[bool] = []
    tries: list[int] = []

    class Full(Layer):
        name = "full"

        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
            if full and any(change.key.startswith(RUN) for change in changes):
                tries.append(1)
                if len(tries) == 30:
                    full.clear()
                error = sqlite3.OperationalError("database or disk is full, of 'card 4711'")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise explained(error, "state.db", 5.0)
            return await self.inner.write(changes, expect)

    async def main() -> None:
        async with Store(f"sqlite:///{tmp_path}/full.db?durability=process", layers=[Full()]) as store:
            for at in range(10):
                await graph.submit(1, run_id=f"d-{at}", store=store)
            full.append(True)
            said = Said()
            async with working(Worker([graph], store=store, report=said, lease=0.2)):
                await said.until(lambda: all("finished" in said.of(f"d-{at}") for at in range(10)))

    asyncio.run(main())
    (warning,) = [record.getMessage() for record in caplog.records if "could not take" in record.getMessage()]
    assert "StoreError: state.db: the disk is full, and nothing of the write was stored; free some space" in warning
    assert "4711" not in warning


# ---------------------------------------------------------------- old runs
class KeepsRecords(Layer):
    """Refuses to remove the record of a run."""

    name = "keeps_records"

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        if any(isinstance(change, Delete) and change.key.startswith(RUN) for change in changes):
            raise StoreError("the disk is full")
        return await self.inner.write(changes, expect)


def test_a_worker_that_cannot_remove_old_runs_says_so_and_executes_runs(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With `once` it raises the error, at its end: whoever has started it would take them for removed."""

    async def main() -> None:
        async with Store(url, layers=[KeepsRecords()]) as store:
            doubling = Graph(double, store=store, name="doubling")
            for run_id in ("a", "b"):
                await doubling.run(1, run_id=run_id)
            await doubling.submit(1, run_id="c")
            with pytest.raises(StoreError, match="the disk is full"):
                await Worker([doubling], retention=Retention(keep=1)).run(once=True)
            assert (await Runs(store).get("c")).state == "finished"
            assert "could not remove" not in caplog.text
            said = Said()
            async with working(Worker([doubling], retention=Retention(keep=1), report=said)), asyncio.timeout(60):
                while "a worker could not remove old runs; it tries again" not in caplog.text:
                    await asyncio.sleep(0)
                await doubling.submit(1, run_id="d")
                await said.until(lambda: "finished" in said.of("d"))

    asyncio.run(main())
