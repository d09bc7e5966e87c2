"""How executions end if the store fails: what they report is true, whatever other executions have done since."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import (
    Ask,
    ConflictError,
    Graph,
    Node,
    OutcomeUnknownError,
    Pocket,
    Put,
    RunFencedError,
    Runs,
    RunSuspendedError,
    RunTimeoutError,
    Store,
    StoreError,
    StoreWriter,
    Worker,
    WorkerReport,
    hookimpl,
    node,
)
from pocket_plug.graph.durable.records import RUN
from pocket_plug.graph.nodes.node import AnyNode
from pocket_plug.hookspecs import RunNotice
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Entry
from pocket_plug.store.layer import Layer
from pocket_plug.testing.clock import FakeClock, run_virtual

LOST = StoreError("the answer is lost")
REFUSED = StoreError("the server is gone")


class Leaving(Layer):
    """Something happens to the write by which a run reaches a state, and to the read that follows."""

    name = "leaving"
    inline_write = False
    status: str = ""
    lands: bool = True
    answer: Any = None
    """The error that comes in place of the answer, if one does."""
    look: Any = None
    """The error of each look afterwards."""
    meanwhile: Any = None
    """What others do before that."""
    happened: Any = None
    """A list, to which it adds that it has happened."""

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        leaves = any(
            isinstance(each, Put) and each.key.startswith(RUN) and each.value["status"] == self.status
            for each in changes
        )
        if not leaves or self.happened:
            return await self.inner.write(changes, expect)
        self.happened.append(True)
        version = await self.inner.write(changes, expect) if self.lands else 0
        if self.meanwhile is not None:
            await self.meanwhile()
        if self.answer is not None:
            raise self.answer
        return version

    async def read(self, key: str) -> Entry | None:
        return (await self.read_many((key,))).get(key)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        if self.happened and self.look is not None:
            raise self.look
        return await self.inner.read_many(keys)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state.db?durability=process"


class Told:
    """What a worker reports, and the notifications of plugins."""

    def __init__(self) -> None:
        self.reports: list[WorkerReport] = []
        self.notices: list[RunNotice] = []

    def report(self, report: WorkerReport) -> None:
        self.reports.append(report)

    @property
    def became(self) -> list[str]:
        return [report.became for report in self.reports]

    @hookimpl
    def pocket_run_notice(self, notice: RunNotice) -> None:
        self.notices.append(notice)


asking: Graph[int, bool] = Graph(Ask[int, bool](bool, question="Really?"), name="asking")


async def answered(store: Store) -> None:
    await Runs(store).answer("r", True)


async def cancelled(store: Store) -> None:
    await Runs(store).cancel("r")


async def resumed(store: Store) -> None:
    assert await asking.resume("r", answer=True, store=store)


async def answered_and_resumed(store: Store) -> None:
    await answered(store)
    assert await asking.resume("r", store=store)


@pytest.mark.parametrize("answer", [LOST, ConflictError(["x"])], ids=["lost", "met itself"])
@pytest.mark.parametrize("by", ["run", "worker"])
@pytest.mark.parametrize("others", [answered, cancelled, resumed, answered_and_resumed])
def test_an_execution_that_suspended_its_run_says_so_though_others_have_continued_it(
    url: str, others: Callable[[Store], Awaitable[None]], by: str, answer: Exception
) -> None:
    """Only the answer to that write was lost. Nobody has taken the run from this execution, and it was waiting."""
    happened, told = list[bool](), Told()

    async def main() -> None:
        async with Store(url) as other:
            leaving = Leaving(status="suspended", answer=answer, meanwhile=lambda: others(other), happened=happened)
            async with Store(url, layers=[leaving]) as store:
                if by == "run":
                    with pytest.raises(RunSuspendedError) as error:
                        await asking.run(1, run_id="r", store=store)
                    assert error.value.question == "Really?"
                else:
                    await asking.submit(1, run_id="r", store=store)
                    await Worker([asking], store=store, report=told.report, concurrency=1).run(once=True)
                    assert told.became[:2] == ["taken", "suspended"]

    run_virtual(main())
    assert happened


@pytest.mark.parametrize("operators_follow", [False, True])
def test_an_execution_that_was_overtaken_before_it_could_suspend_its_run_says_so(
    url: str, operators_follow: bool
) -> None:
    """The other execution has reached the same question; the first one's write was not done.

    The record contains which write of an execution was the last one, and that was none of the first one's.
    """
    happened: list[bool] = []

    async def main() -> None:
        async with Store(url) as other:

            async def overtake() -> None:
                with pytest.raises(RunSuspendedError):
                    await asking.run(1, run_id="r", store=other, takeover=True)
                if operators_follow:
                    await Runs(other).answer("r", True)
                    await Runs(other).cancel("r")

            leaving = Leaving(status="suspended", lands=False, answer=REFUSED, meanwhile=overtake, happened=happened)
            async with Store(url, layers=[leaving]) as store:
                with pytest.raises(RunFencedError, match="epoch 2 owns it, this is epoch 1"):
                    await asking.run(1, run_id="r", store=store)

    run_virtual(main())
    assert happened


@pytest.mark.parametrize("lands", [True, False])
@pytest.mark.parametrize("look", [None, REFUSED], ids=["it can be looked for", "no look succeeds"])
def test_a_worker_reports_failed_only_if_it_is_recorded(url: str, lands: bool, look: Exception | None) -> None:
    """Otherwise it reports that it has lost the run, with the run's error: the run stalls, and another execution retries it."""
    happened, told, tries = list[bool](), Told(), list[int]()

    @node
    async def fail_once(n: int) -> int:
        tries.append(n)
        if len(tries) == 1:
            raise ValueError("once")
        return n

    graph = Graph(fail_once, name="failing")

    async def main() -> None:
        async with Store(url) as other:

            async def retry() -> None:
                await Runs(other).retry("r")
                assert await graph.resume("r", store=other) == 1

            meanwhile = retry if lands else None
            leaving = Leaving(
                status="failed", lands=lands, answer=LOST, look=look, meanwhile=meanwhile, happened=happened
            )
            async with Store(url, layers=[leaving]) as store:
                await graph.submit(1, run_id="r", store=store)
                pocket = Pocket(plugins=[told], autoload=False)

                def stop(report: WorkerReport) -> None:
                    told.report(report)
                    if report.became != "taken":
                        worker.stop()

                worker = Worker([graph], store=store, report=stop, pocket=pocket)
                await worker.run()
            if not lands:
                assert (await Runs(other).get("r")).state == "stalled"
                assert await graph.resume("r", store=other) == 1

    run_virtual(main())
    assert happened
    is_recorded = lands and look is None
    assert told.became == ["taken", "failed" if is_recorded else "lost"]
    assert str(told.reports[-1].error) == "once"
    assert ("failed" in [notice.what for notice in told.notices]) == is_recorded
    assert tries == [1, 1]


@pytest.mark.parametrize("lands", [True, False])
@pytest.mark.parametrize("look", [None, REFUSED], ids=["it can be looked for", "no look succeeds"])
def test_a_worker_reports_released_only_if_it_is_recorded(url: str, lands: bool, look: Exception | None) -> None:
    """Otherwise it reports that it has lost the run, with the store's error: the run stalls, and others take it over."""
    happened, told, done = list[bool](), Told(), list[str]()

    @node
    async def first(n: int) -> int:
        done.append("first")
        worker[0].stop()
        return n

    @node
    async def second(n: int) -> int:
        done.append("second")
        return n

    graph, worker = Graph(first >> second, name="two"), list[Worker]()

    async def main() -> None:
        async with Store(url) as other:

            async def go_on() -> None:
                await Worker([graph], store=other).run(once=True)

            meanwhile = go_on if lands else None
            leaving = Leaving(
                status="pending", lands=lands, answer=LOST, look=look, meanwhile=meanwhile, happened=happened
            )
            async with Store(url) as plain:
                await graph.submit(1, run_id="r", store=plain)
            async with Store(url, layers=[leaving]) as store:
                worker.append(Worker([graph], store=store, report=told.report))
                await worker[0].run()
            if not lands:
                assert (await Runs(other).get("r")).state == "stalled"
                await go_on()
            assert await graph.resume("r", store=other) == 1

    run_virtual(main())
    assert happened
    is_recorded = lands and look is None
    assert told.became == ["taken", "released" if is_recorded else "lost"]
    error = told.reports[-1].error
    assert type(error) is (type(None) if is_recorded else StoreError if look is None else OutcomeUnknownError)
    assert done == ["first", "second"]


class Slow(Layer):
    """The write by which a run reaches a state takes ten seconds to answer."""

    inline_write = False
    status: str = "suspended"

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        version = await self.inner.write(changes, expect)
        if any(
            isinstance(each, Put) and each.key.startswith(RUN) and each.value["status"] == self.status
            for each in changes
        ):
            await asyncio.sleep(10)
        return version


def test_a_run_that_times_out_as_it_starts_to_wait_is_in_one_state(tmp_path: Path) -> None:
    """It waits, and the next execution finds that its time is over: then no record of its waiting is left."""
    clock = FakeClock()

    async def main() -> None:
        async with Store(f"sqlite:///{tmp_path}/state.db?durability=process", layers=[Slow()]) as store:
            store.stack.clock = clock
            graph = Graph(Ask(bool, question="Really?"), store=store, name="timed", timeout=5)
            with pytest.raises(RunTimeoutError):
                await graph.run(1, run_id="r")
            states = [key async for key in store.stack.scan("pocket:run-state:")]
            assert [key.split(":")[2] for key in states] == ["suspended"]
            with pytest.raises(RunTimeoutError):
                await graph.resume("r")
            states = [key async for key in store.stack.scan("pocket:run-state:")]
            assert [key.split(":")[2] for key in states] == ["failed"]
            assert [key async for key in store.stack.scan("pocket:run-wake:")] == []

    run_virtual(main(), clock)


@node
async def greeting(name: str) -> str:
    return f"Hello, {name}!"


class Greeting(Node[str, str]):
    """A node with a hook, after which the end of a run is a write of its own."""

    async def post(self, store: StoreWriter, name: str, prepared: str, result: str) -> str:
        return f"Hello, {name}!"

    async def on_success(self, store: StoreWriter, output: str) -> None:
        await store.set("greeted", output)


@pytest.mark.parametrize("last", [greeting, Greeting()], ids=["without", "hook"])
@pytest.mark.parametrize("by", ["run", "worker"])
def test_a_run_that_times_out_as_its_end_is_written_has_finished(tmp_path: Path, by: str, last: AnyNode) -> None:
    """Its end is recorded in one state, and callers that wait for it get the result."""
    clock, told = FakeClock(), Told()

    async def main() -> None:
        async with Store(
            f"sqlite:///{tmp_path}/state.db?durability=process", layers=[Slow(status="finished")]
        ) as store:
            store.stack.clock = clock
            graph: Graph[str, str] = Graph(last, store=store, name="timed", timeout=5)
            if by == "run":
                assert await graph.run("Ann", run_id="r") == "Hello, Ann!"
            else:
                await graph.submit("Ann", run_id="r")
                await Worker([graph], report=told.report).run(once=True)
                assert told.became == ["taken", "finished"]
            states = [key async for key in store.stack.scan("pocket:run-state:")]
            assert [key.split(":")[2] for key in states] == ["finished"]
            assert await graph.run("Ann", run_id="r") == "Hello, Ann!"

    run_virtual(main(), clock)
    assert clock.elapsed >= 10


def test_a_cancellation_while_a_failure_is_recorded_is_raised(url: str) -> None:
    """Whoever cancels the task must not get the node's error instead; the run has failed all the same."""

    @node
    async def fails(n: int) -> int:
        raise LookupError

    async def main() -> None:
        async def cancel() -> None:
            running.cancel()
            await asyncio.sleep(0)

        async with Store(url, layers=[Leaving(status="failed", meanwhile=cancel, happened=[])]) as store:
            running = asyncio.create_task(Graph(fails, store=store).run(1, run_id="r"))
            with pytest.raises(asyncio.CancelledError) as caught:
                await running
            assert isinstance(caught.value.__cause__, LookupError)
            assert (await Runs(store).get("r")).state == "failed"

    asyncio.run(main())
