"""A durable run is followed from another process, by its records."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import pocket_plug as pp
from pocket_plug.graph.runs import following
from pocket_plug.store.backend import Put
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.spans import SpanCapture


def said(event: Any) -> str:
    """An event in one line."""
    match event:
        case pp.NodeEntered():
            return f"> {event.place} {event.type}"
        case pp.NodeLeft():
            return f"< {event.place}"
        case pp.ItemDone():
            return f"* {event.place}: {event.output}"
        case pp.Asked():
            return f"? {event.place}: {event.question}"
        case pp.Suspended():
            return f"suspended {dict(event.questions)} {event.wake_at}"
        case pp.StateChanged():
            return event.state + (f" {event.failure.type}" if event.failure else "")
        case pp.Finished():
            return f"= {event.output}"
        case _:
            raise AssertionError(event)


class Paused:
    """Replaces a pause: does something between two reads, step by step."""

    def __init__(self, *steps: Callable[[], Any]) -> None:
        self.steps, self.pauses = list(steps), list[float]()

    async def __call__(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await self.steps.pop(0)()


@asynccontextmanager
async def stored(folder: Path) -> AsyncGenerator[pp.Store]:
    async with pp.Store(f"sqlite:///{folder}/state.db?durability=process", clock=FakeClock()) as store:
        yield store


async def told(store: pp.Store, run_id: str, *steps: Callable[[], Any]) -> list[str]:
    return [said(event) async for event in pp.Runs(store, pause=Paused(*steps)).follow(run_id)]


@pp.node
async def add(n: int) -> int:
    return n + 1


@pp.node
async def count(n: int) -> list[int]:
    return list(range(n))


@pp.node
async def add_up(ns: list[int]) -> int:
    return sum(ns)


@pp.node
async def fail(n: int) -> int:
    raise ValueError(n)


def checking(done: asyncio.Event, go_on: asyncio.Event) -> pp.Node[int, int]:
    """A node for items; item 2 reports that the items before it are done, and waits."""

    @pp.node
    async def check(n: int) -> int:
        if n == 2:
            done.set()
            await go_on.wait()
        return 10 * n

    return check


def test_the_path_of_a_finished_run_is_reported_from_its_start(tmp_path: Path) -> None:
    """Nested graphs are entered and left around their nodes; a node's type is known without the graph."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            graph = pp.Graph(add >> pp.Graph(add >> count, name="inner") >> pp.each(add) >> add_up, store=store)
            await graph.run(1, run_id="a")
            assert await told(store, "a") == [
                "> add#1 node",
                "< add#1",
                "> inner#1 graph",
                "> inner#1/add#1 node",
                "< inner#1/add#1",
                "> inner#1/count#1 node",
                "< inner#1/count#1",
                "< inner#1",
                "> each_add#1 fan_out",
                "< each_add#1",
                "> add_up#1 node",
                "< add_up#1",
                "= 6",
            ]

    asyncio.run(main())


def test_a_run_is_followed_while_it_is_executed(tmp_path: Path) -> None:
    """Pending, taken, at a node, waiting with its question, answered, and finished; each is reported once."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            ask = pp.Ask[int, bool](bool, question=lambda n: f"Is {n} right?", name="approve")

            @pp.node
            async def take(answered: pp.Answered[int, bool]) -> int:
                entered.set()
                await go_on.wait()
                return answered.input

            entered, go_on = asyncio.Event(), asyncio.Event()
            graph = pp.Graph(add >> ask >> take, store=store)
            await graph.submit(1, run_id="a")
            going: list[asyncio.Task[Any]] = []

            async def begin() -> None:
                with suppress(pp.RunSuspendedError):
                    await graph.resume("a")

            async def nothing() -> None: ...

            async def answer() -> None:
                await pp.Runs(store).answer("a", True)

            async def resume() -> None:
                going.append(asyncio.create_task(graph.resume("a")))
                await entered.wait()

            async def end() -> None:
                go_on.set()
                await going[0]

            assert await told(store, "a", begin, nothing, answer, resume, end) == [
                "pending",
                "> add#1 node",
                "< add#1",
                "> approve#1 node",
                "? approve#1: Is 2 right?",
                "suspended {'approve#1': 'Is 2 right?'} None",
                "pending",
                "running",
                "< approve#1",
                "> take#1 node",
                "< take#1",
                "= 2",
            ]

    asyncio.run(main())


def test_items_are_reported_as_they_end(tmp_path: Path) -> None:
    """With their actions; an item's question is reported while others continue."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            done, go_on = asyncio.Event(), asyncio.Event()

            check = checking(done, go_on)
            graph = pp.Graph(count >> pp.each(check, concurrency=1) >> add_up, store=store)
            run = asyncio.create_task(graph.run(3, run_id="a"))
            await done.wait()

            async def end() -> None:
                go_on.set()
                await run

            assert await told(store, "a", end) == [
                "running",
                "> count#1 node",
                "< count#1",
                "> each_check#1 fan_out",
                "* each_check#1[0]: 0",
                "* each_check#1[1]: 10",
                "< each_check#1",
                "> add_up#1 node",
                "< add_up#1",
                "= 30",
            ]

    asyncio.run(main())


def test_questions_of_items_are_reported_separately(tmp_path: Path) -> None:
    """By the nodes that ask; an answered one is not reported again."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            ask = pp.Ask[int, bool](bool, question=str, name="ask")
            graph = pp.Graph(count >> pp.each(ask), store=store)
            with pytest.raises(pp.RunSuspendedError):
                await graph.run(2, run_id="a")

            async def answer(question: str) -> None:
                with suppress(pp.RunSuspendedError):
                    await graph.resume("a", answer=True, question=question)

            ids = [each.id for each in await pp.Runs(store).questions("a")]
            found = await told(store, "a", lambda: answer(ids[1]), lambda: answer(ids[0]))
            assert [line for line in found if line.startswith(("?", "suspended", "*"))] == [
                f"? {ids[0]}: 0",
                f"? {ids[1]}: 1",
                f"suspended {{'{ids[0]}': '0', '{ids[1]}': '1'}} None",
                f"* {ids[1].partition('/')[0]}: Answered(input=1, answer=True)",
                f"suspended {{'{ids[0]}': '0'}} None",
            ]

    asyncio.run(main())


def test_a_failure_and_a_cancellation_end_it(tmp_path: Path) -> None:
    """By a last event with the failure."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            with pytest.raises(ValueError, match="2"):
                await pp.Graph(add >> fail, store=store).run(1, run_id="a")
            events = [event async for event in pp.Runs(store).follow("a")]
            assert list(map(said, events)) == ["> add#1 node", "< add#1", "> fail#1 node", "failed ValueError"]
            last = events[-1]
            assert isinstance(last, pp.StateChanged)
            assert last.failure is not None
            assert (last.failure.node, last.failure.message) == ("fail", "2")
            await pp.Graph(add, store=store).submit(1, run_id="b")

            async def cancel() -> None:
                await pp.Runs(store).cancel("b")

            assert await told(store, "b", cancel) == ["pending", "cancelled"]

    asyncio.run(main())


def test_a_removed_run_is_reported(tmp_path: Path) -> None:
    """Never there, removed meanwhile, or started again since: UnknownRunError each time."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            graph, runs = pp.Graph(add, store=store), pp.Runs(store)
            with pytest.raises(pp.UnknownRunError):
                await told(store, "a")

            async def remove() -> None:
                await runs.remove("a")

            async def again() -> None:
                await runs.remove("a")
                clock = store.stack.clock
                assert isinstance(clock, FakeClock)
                clock.advance(1)
                await graph.submit(2, run_id="a")

            for step in (remove, again):
                await graph.submit(1, run_id="a")
                with pytest.raises(pp.UnknownRunError):
                    await told(store, "a", step)

    asyncio.run(main())


def test_it_polls_less_often_the_longer_nothing_is_new(tmp_path: Path) -> None:
    """Up to a second apart, and at once again after something new."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            graph = pp.Graph(add >> pp.Ask[int, bool](bool, question="?"), store=store)
            await graph.submit(1, run_id="a")

            async def nothing() -> None: ...

            async def begin() -> None:
                with suppress(pp.RunSuspendedError):
                    await graph.resume("a")

            async def end() -> None:
                await pp.Runs(store).cancel("a")

            paused = Paused(*[nothing] * 12, begin, nothing, end)
            async for _ in pp.Runs(store, pause=paused).follow("a"):
                pass
            assert paused.pauses[:2] == [0.02, 0.03]
            assert sorted(paused.pauses[:13]) == paused.pauses[:13]
            assert paused.pauses[11:] == [1.0, 1.0, 0.02, 0.03]

    asyncio.run(main())


@pytest.mark.parametrize("detail", ["phase", "debug"])
def test_its_polls_are_not_in_the_trace_around_it(tmp_path: Path, detail: Any) -> None:
    """A web request that follows a run for an hour would have thousands of spans; what its loop does has spans as ever."""

    async def main() -> None:
        with SpanCapture(detail) as capture:
            async with pp.Store(f"sqlite:///{tmp_path}/state.db?durability=process", layers=["tracing"]) as store:
                graph = pp.Graph(add, name="words", store=store)
                await graph.run(1, run_id="w")
                await store.set("seen", 0)
                runs = pp.Runs(store)
                with capture.tracer_provider.get_tracer("").start_as_current_span("request"):
                    async for _ in runs.follow("w"):
                        await store.get("seen")
                    await runs.wait("w")
            request = capture.one("request")
            below = [span.name for span in capture.spans if span.parent == request.context]
            assert below == ["get"] * 3

    asyncio.run(main())


def test_a_run_that_moves_during_a_read_is_reported_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened after the run was read is left for the next read: no node is left before the run has reached it."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            ask = pp.Ask[int, bool](bool, question="?", name="ask")
            graph = pp.Graph(add >> ask, store=store)
            with pytest.raises(pp.RunSuspendedError):
                await graph.run(1, run_id="a")
            see = following.must_see

            async def moves(place: Any, run_id: str) -> Any:
                seen = await see(place, run_id)
                if seen.status == "suspended":
                    await graph.resume("a", answer=True)
                return seen

            async def nothing() -> None: ...

            monkeypatch.setattr(following, "must_see", moves)
            assert await told(store, "a", nothing) == [
                "> add#1 node",
                "< add#1",
                "> ask#1 node",
                "suspended {} None",
                "< ask#1",
                "= Answered(input=2, answer=True)",
            ]

    asyncio.run(main())


def test_items_of_a_node_reached_during_a_read_are_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the next read, after the node itself was entered. (The simulation found them reported twice: seed 4548.)"""

    async def main() -> None:
        async with stored(tmp_path) as store:
            begun, counts, done, go_on = (asyncio.Event() for _ in range(4))

            @pp.node
            async def slow_count(n: int) -> list[int]:
                begun.set()
                await counts.wait()
                return list(range(n))

            check = checking(done, go_on)
            graph = pp.Graph(slow_count >> pp.each(check, concurrency=1) >> add_up, store=store)
            run = asyncio.create_task(graph.run(3, run_id="a"))
            await begun.wait()
            see = following.must_see

            async def moves(place: Any, run_id: str) -> Any:
                seen = await see(place, run_id)
                counts.set()
                await done.wait()
                return seen

            async def nothing() -> None: ...

            async def end() -> None:
                go_on.set()
                await run

            monkeypatch.setattr(following, "must_see", moves)
            assert await told(store, "a", nothing, end) == [
                "running",
                "> slow_count#1 node",
                "< slow_count#1",
                "> each_check#1 fan_out",
                "* each_check#1[0]: 0",
                "* each_check#1[1]: 10",
                "< each_check#1",
                "> add_up#1 node",
                "< add_up#1",
                "= 30",
            ]

    asyncio.run(main())


def test_a_long_path_is_read_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node once, in order; leaving the loop early leaves nothing open."""
    monkeypatch.setattr(following, "PAGE", 2)

    async def main() -> None:
        async with stored(tmp_path) as store:
            step = pp.Node[int, int]

            class Loop(step):
                again = pp.Action[int]()

                async def exec(self, n: int) -> int:
                    return n - 1

                async def post(self, store: pp.StoreWriter, n: int, prepared: int, left: int) -> int | pp.Next[int]:
                    return self.again(left) if left else left

            loop = Loop().with_options(name="loop")
            await pp.Graph(loop >> add, loop.again >> loop, store=store).run(5, run_id="a")
            found = [line for line in await told(store, "a") if line.startswith("<")]
            assert found == [*(f"< loop#{visit}" for visit in range(1, 6)), "< add#1"]
            async for event in pp.Runs(store).follow("a"):
                assert said(event) == "> loop#1 node"
                break

    asyncio.run(main())


def test_damaged_records_are_skipped(tmp_path: Path) -> None:
    """A damaged record of its path, of an item or of its start is skipped, and all others are reported."""

    async def main() -> None:
        async with stored(tmp_path) as store:
            await pp.Graph(add >> pp.Graph(add, name="inner") >> count, store=store).run(1, run_id="a")
            part = "pocket:run-part:a:"
            first = await anext(store.stack.scan(f"{part}path:"))
            await store.stack.write([Put(first, "nonsense"), Put(f"{part}start", [1])])
            assert await told(store, "a") == [
                "> inner#1 node",
                "> inner#1/add#1 node",
                "< inner#1/add#1",
                "< inner#1",
                "> count#1 node",
                "< count#1",
                "= [0, 1, 2]",
            ]

    asyncio.run(main())


RUNNING = """
import sys
import pocket_plug as pp

@pp.node
def add(n: int) -> int:
    return n + 1

graph = pp.Graph(add >> pp.Ask[int, bool](bool, question="Really?", name="approve"), store=pp.SyncStore(sys.argv[1]))
try:
    graph.run_sync(1, run_id="a")
except pp.RunSuspendedError:
    graph.resume_sync("a", answer=True)
"""


def test_another_process_is_followed_without_await(tmp_path: Path) -> None:
    """By a SyncRuns, with neither the graph nor its types."""
    url = f"sqlite:///{tmp_path}/state.db?durability=process"
    with pp.SyncStore(url) as store:
        done = subprocess.run([sys.executable, "-c", RUNNING, url], check=False, timeout=60)
        assert done.returncode == 0
        lines = [said(event) for event in pp.SyncRuns(store).follow("a")]
    assert lines[:-1] == ["> add#1 node", "< add#1", "> approve#1 node", "< approve#1"]
    assert lines[-1] == "= Answered(input=2, answer=True)"
