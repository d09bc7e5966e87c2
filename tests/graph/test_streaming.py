"""A run is followed while it is executed: its events, their order, and that the reader controls it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import pocket_plug as pp
from pocket_plug.graph.following import streaming
from pocket_plug.graph.following.feed import Feed
from pocket_plug.graph.running.execution import Execution
from pocket_plug.hookspecs import Observer, hookimpl
from pocket_plug.testing.clock import run_virtual
from pocket_plug.testing.spans import SpanCapture


def said(event: Any) -> str:
    """An event in one line."""
    match event:
        case pp.NodeEntered():
            return f"> {event.place}"
        case pp.NodeLeft(outcome="ok"):
            return f"< {event.place}: {event.output}"
        case pp.NodeLeft():
            return f"< {event.place}: {event.outcome} {type(event.error).__name__} {event.output}"
        case pp.ItemDone(error=None):
            return f"* {event.place}: {event.output}"
        case pp.ItemDone():
            return f"* {event.place}: {type(event.error).__name__} {event.output}"
        case pp.NodeRetried():
            return f"~ {event.place}: attempt {event.attempt} {type(event.error).__name__}, again in {event.delay:g}"
        case pp.Progressed():
            return f"% {event.place}: {event.done} of {event.total}"
        case pp.Emitted():
            return f"! {event.place}: {event.value}"
        case pp.Asked():
            return f"? {event.place}: {event.question}"
        case pp.Suspended():
            return f"- {event.questions}"
        case pp.Finished():
            return f"= {event.output}"
        case _:
            raise AssertionError(event)


async def all_of(stream: pp.RunStream[Any]) -> list[str]:
    return [said(event) async for event in stream]


@pp.node
async def add(n: int) -> int:
    return n + 1


@pp.node
def double(n: int) -> int:
    return 2 * n


@pp.node
async def fail(n: int) -> int:
    raise ValueError(n)


@pp.node
async def count(n: int) -> list[int]:
    return list(range(n))


# ---------------------------------------------------------------- events
def test_a_chain_has_events_for_each_node() -> None:
    """Each node is entered and left, with its action; the run's output comes last."""
    graph = pp.Graph(add >> double)
    assert asyncio.run(all_of(graph.stream(1))) == ["> add#1", "< add#1: 2", "> double#1", "< double#1: 4", "= 4"]


def test_events_come_while_the_run_is_executed() -> None:
    """The first node's events come while the second node waits for the reader."""

    async def main() -> None:
        go_on = asyncio.Event()

        @pp.node
        async def wait(n: int) -> int:
            await go_on.wait()
            return n

        async for event in pp.Graph(add >> wait).stream(1):
            if isinstance(event, pp.NodeEntered) and event.node == "wait":
                go_on.set()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_branch_has_events_of_the_edge_that_was_taken() -> None:
    """Nodes that were not entered have no events; a second visit has its number."""

    class Halve(pp.Node[int, int]):
        again = pp.Action[int]()

        async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> int | pp.Next[int]:
            return self.again(n // 2) if n > 1 else n

    halve = Halve()
    graph = pp.Graph(halve >> double, halve.again >> halve, halve.on("never") >> add)

    async def visits() -> list[tuple[str, int]]:
        return [(event.node, event.visit) async for event in graph.stream(4) if isinstance(event, pp.NodeEntered)]

    assert asyncio.run(visits()) == [("halve", 1), ("halve", 2), ("halve", 3), ("double", 1)]
    assert asyncio.run(all_of(graph.stream(4))) == [
        "> halve#1",
        "< halve#1: 2",
        "> halve#2",
        "< halve#2: 1",
        "> halve#3",
        "< halve#3: 1",
        "> double#1",
        "< double#1: 2",
        "= 2",
    ]


def test_a_fan_out_has_events_for_each_item() -> None:
    """Position, and output or error; with `collect` the run continues."""

    @pp.node
    async def inverse(n: int) -> float:
        return 1 / n

    graph = pp.Graph(count >> pp.each(inverse, errors="collect", concurrency=1))
    lines = asyncio.run(all_of(graph.stream(3)))
    assert lines[2:-2] == [
        "> each_inverse#1",
        "* each_inverse#1[0]: ZeroDivisionError MISSING",
        "* each_inverse#1[1]: 1.0",
        "* each_inverse#1[2]: 0.5",
    ]


def test_an_items_events_have_its_position() -> None:
    """In whatever order items end, with and without a store for the run."""

    async def main() -> None:
        @pp.node
        async def late(n: int) -> int:
            await asyncio.sleep(10 - n)
            return 10 * n

        done = [e for e in [e async for e in pp.Graph(pp.each(late)).stream([1, 2, 3])] if isinstance(e, pp.ItemDone)]
        assert [(event.item, event.output) for event in done] == [(2, 30), (1, 20), (0, 10)]

    run_virtual(main())


def test_events_of_nested_graphs_have_the_path() -> None:
    """From the outermost graph inwards; an item has the place of its fan-out, and nodes within it know the item."""
    inner = pp.Graph(add >> double, name="inner")
    middle = pp.Graph(count >> pp.each(inner, concurrency=1), name="middle")

    async def main() -> list[Any]:
        return [event async for event in pp.Graph(add >> middle, name="outer").stream(1)]

    events = asyncio.run(main())
    left = [event for event in events if isinstance(event, pp.NodeLeft) and event.node == "double"]
    assert [event.path for event in left] == [("middle", "each_inner", "double")] * 2
    assert [event.item for event in left] == [0, 1]
    assert [str(event.place) for event in left] == [f"middle#1/each_inner#1[{n}]/double#1" for n in (0, 1)]
    done = [event for event in events if isinstance(event, pp.ItemDone)]
    assert [(str(event.place), event.output) for event in done] == [
        ("middle#1/each_inner#1[0]", 2),
        ("middle#1/each_inner#1[1]", 4),
    ]
    assert [said(event) for event in events[-2:]] == ["< middle#1: [2, 4]", "= [2, 4]"]


def test_items_of_items_have_both_positions() -> None:
    """A fan-out may be the item of another one."""
    lines = asyncio.run(all_of(pp.Graph(pp.each(pp.each(add, concurrency=1), concurrency=1)).stream([[1, 2], [3]])))
    assert [line for line in lines if line.startswith("*")] == [
        "* each_each_add#1[0][0]: 2",
        "* each_each_add#1[0][1]: 3",
        "* each_each_add#1[0]: [2, 3]",
        "* each_each_add#1[1][0]: 4",
        "* each_each_add#1[1]: [4]",
    ]


def test_two_places_never_have_the_same_text() -> None:
    """Separators in a node's name are escaped."""
    assert str(pp.NodePlace("a/b#1[0]")) == "a%2Fb%231%5B0]#1"


def test_retries_and_fallbacks_have_events() -> None:
    """Each failed attempt before a retry, with the pause."""

    class Flaky(pp.Node[int, int], retry=pp.Retry(attempts=3, delay=2, backoff=1, jitter=0)):
        async def exec(self, n: int) -> int:
            await pp.emit("trying")
            raise OSError

        async def fallback(self, n: int, error: Exception) -> int:
            return -1

    assert run_virtual(all_of(pp.Graph(Flaky()).stream(1))) == [
        "> flaky#1",
        "! flaky#1: trying",
        "~ flaky#1: attempt 1 OSError, again in 2",
        "! flaky#1: trying",
        "~ flaky#1: attempt 2 OSError, again in 2",
        "! flaky#1: trying",
        "< flaky#1: fallback NoneType -1",
        "= -1",
    ]


def test_an_error_of_the_run_is_raised_out_of_the_loop() -> None:
    """After the events before it; the failed node and the graph around it have events with the error."""

    async def main() -> list[str]:
        lines: list[str] = []
        stream = pp.Graph(add >> pp.Graph(fail, name="inner")).stream(1)
        with pytest.raises(ValueError, match="2") as raised:
            async for event in stream:
                lines += [said(event)]
        assert "at node 'fail' of graph 'inner'" in raised.value.__notes__[0]
        assert [event async for event in stream] == []
        return lines

    assert asyncio.run(main())[-2:] == [
        "< inner#1/fail#1: failed ValueError MISSING",
        "< inner#1: failed ValueError MISSING",
    ]


def test_invalid_arguments_are_refused_at_once() -> None:
    """An invalid graph and an invalid buffer by the call itself, a wrong input by the loop."""
    with pytest.raises(pp.GraphError, match="can't run"):
        pp.Graph(add >> double, fail >> add).stream(1)
    with pytest.raises(pp.ConfigError, match="buffer can't be 0; give a whole number from 1 up"):
        pp.Graph(add).stream(1, buffer=0)
    with pytest.raises(pp.InputError, match="takes int, not str"):
        wrong: Any = "1"
        asyncio.run(all_of(pp.Graph(add).stream(wrong)))


def test_a_stream_that_nobody_reads_starts_nothing() -> None:
    """Nor does it need an event loop."""
    entered: list[int] = []

    @pp.node
    def note(n: int) -> int:
        entered.append(n)
        return n

    stream = pp.Graph(note).stream(1)
    asyncio.run(stream.aclose())
    assert asyncio.run(all_of(stream)) == []
    assert entered == []


# ---------------------------------------------------------------- durable runs
@pytest.fixture
def file(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state.db'}"


def test_a_resumed_durable_run_has_events_from_where_it_stopped(file: str) -> None:
    """The same call: completed nodes and items have no events, and a finished run gives only its output."""
    broken = {2}

    @pp.node
    async def inverse(n: int) -> int:
        if n in broken:
            raise OSError
        return 10 * n

    async def main() -> None:
        async with pp.Store(file) as store:
            graph = pp.Graph(count >> pp.each(inverse, concurrency=1), store=store)
            stream = graph.stream(3, run_id="r")
            assert stream.run_id == "r"
            with pytest.raises(OSError):  # noqa: PT011 - it has no text
                await all_of(stream)
            broken.clear()
            assert await all_of(graph.stream(3, run_id="r")) == [
                "> each_inverse#1",
                "* each_inverse#1[2]: 20",
                "< each_inverse#1: [0, 10, 20]",
                "= [0, 10, 20]",
            ]
            assert await all_of(graph.stream(3, run_id="r")) == ["= [0, 10, 20]"]

    asyncio.run(main())


def test_a_question_ends_the_stream(file: str) -> None:
    """The run waits, and nothing has failed: the nodes around are not left, and the last event has the open questions."""
    ask = pp.Ask[int, bool](bool, question=lambda n: f"{n}?", name="ok")

    async def main() -> None:
        async with pp.Store(file) as store:
            graph = pp.Graph(add >> pp.Graph(ask, name="inner"), store=store)
            stream = graph.stream(1, run_id="r")
            assert (await all_of(stream))[2:] == [
                "> inner#1",
                "> inner#1/ok#1",
                "? inner#1/ok#1: 2?",
                "- {'inner#1/ok#1': '2?'}",
            ]
            assert await graph.resume("r", answer=True) == pp.Answered(2, True)
            assert await all_of(graph.stream(1, run_id="r")) == ["= Answered(input=2, answer=True)"]

    asyncio.run(main())


def test_a_durable_run_whose_reader_has_left_can_be_resumed(file: str) -> None:
    """Leaving the loop doesn't cancel the durable run: commits stay, and the same call resumes it."""
    go_on = asyncio.Event()

    @pp.node
    async def wait(n: int) -> int:
        await go_on.wait()
        return n

    async def main() -> None:
        async with pp.Store(file) as store:
            graph = pp.Graph(add >> wait, store=store)
            async with graph.stream(1, run_id="r") as events:
                async for event in events:
                    if isinstance(event, pp.NodeEntered) and event.node == "wait":
                        break
            go_on.set()
            assert await all_of(graph.stream(1, run_id="r")) == ["> wait#1", "< wait#1: 2", "= 2"]

    asyncio.run(main())


def test_questions_of_items_have_events(file: str) -> None:
    """When it reaches its question; the others continue meanwhile. The last event has the open questions."""
    ask = pp.Ask[int, bool](bool, question=lambda n: f"{n}?", name="ok")

    async def main() -> None:
        async with pp.Store(file) as store:
            graph = pp.Graph(count >> pp.each(ask, concurrency=1), store=store)
            lines = await all_of(graph.stream(2, run_id="r"))
            assert [line for line in lines if line[0] in "?-"] == [
                "? each_ok#1[0]: 0?",
                "? each_ok#1[1]: 1?",
                "- {'each_ok#1[0]': '0?', 'each_ok#1[1]': '1?'}",
            ]
            with pytest.raises(pp.RunSuspendedError):
                await graph.resume("r", answer=True, question="each_ok#1[1]")
            assert (await all_of(graph.stream(2, run_id="r")))[-1] == "- {'each_ok#1[0]': '0?'}"

    asyncio.run(main())


def test_a_run_that_sleeps_says_until_when(file: str) -> None:
    """The last event has the time, in epoch seconds."""

    async def main() -> None:
        async with pp.Store(file) as store:
            graph = pp.Graph(add >> pp.Sleep[int](until=4_000_000_000.0), store=store)
            events = [event async for event in graph.stream(1, run_id="r")]
            assert events[-1] == pp.Suspended("r", {}, 4_000_000_000.0)
            assert said(events[-2]) == "> sleep#1"

    asyncio.run(main())


def test_a_place_has_the_text_of_the_idempotency_key(file: str) -> None:
    """So events of a durable run can be compared with its records."""
    keys: list[str] = []

    @pp.node
    async def note(n: int) -> int:
        keys.append(pp.idempotency_key())
        return n

    async def main() -> None:
        async with pp.Store(file) as store:
            inner = pp.Graph(add >> note, name="in/ner")
            graph = pp.Graph(count >> pp.each(inner) >> pp.each(note, concurrency=1), store=store)
            events = [event async for event in graph.stream(2, run_id="r")]
        told = [f"r/{e.place}" for e in events if isinstance(e, pp.NodeEntered) and e.node == "note"]
        told += [f"r/{e.place}" for e in events if isinstance(e, pp.ItemDone) and e.node == "each_note"]
        assert sorted(told) == sorted(keys)
        assert len(keys) == 4

    asyncio.run(main())


# ---------------------------------------------------------------- what the work reports
@pp.node
def sync_work(n: int) -> int:
    pp.progress(n, 10)
    pp.emit(f"sync {n} {threading.current_thread() is threading.main_thread()}")
    return n


@pp.node
async def async_work(n: int) -> int:
    await pp.emit(f"async {n}")
    pp.progress(n)
    return n


def test_reports_of_the_work_have_its_place() -> None:
    """In `def exec`, in its worker thread, and in `async def`: in nested graphs and items too."""
    inner = pp.Graph(sync_work >> async_work, name="inner")
    lines = asyncio.run(all_of(pp.Graph(pp.each(inner, concurrency=1)).stream([7])))
    assert [line for line in lines if line[0] in "!%"] == [
        "% each_inner#1[0]/sync_work#1: 7 of 10",
        "! each_inner#1[0]/sync_work#1: sync 7 False",
        "! each_inner#1[0]/async_work#1: async 7",
        "% each_inner#1[0]/async_work#1: 7 of None",
    ]


def test_reports_of_concurrent_items_have_their_positions() -> None:
    """Ten items in ten threads at the same time."""
    barrier = threading.Barrier(10)

    @pp.node
    def report(n: int) -> int:
        barrier.wait(30)
        pp.emit(n)
        return n

    async def main() -> None:
        events = [event async for event in pp.Graph(pp.each(report, concurrency=10)).stream(range(10))]
        emitted = [(event.item, event.value) for event in events if isinstance(event, pp.Emitted)]
        assert sorted(emitted) == [(n, n) for n in range(10)]

    asyncio.run(main())


def test_without_a_reader_reports_do_nothing() -> None:
    """Outside of runs, in a run without a stream, and in a run that the reader of a stream starts."""

    async def main() -> None:
        await pp.emit(1)
        pp.progress(1, 2)
        assert await pp.Graph(async_work >> sync_work).run(1) == 1
        async for _ in pp.Graph(async_work).stream(1):
            await pp.emit("from the reader")
            assert await pp.Graph(async_work).run(99) == 99

    asyncio.run(main())


def test_a_run_within_a_node_reports_for_that_node() -> None:
    """A run that a node starts is part of the node's work."""

    @pp.node
    async def outer(n: int) -> int:
        return await pp.Graph(async_work).run(n)

    assert "! outer#1: async 1" in asyncio.run(all_of(pp.Graph(outer).stream(1)))


def test_only_the_newest_progress_is_kept() -> None:
    """At its own place among the other events, one for each node or item; no other event is dropped."""

    @pp.node
    async def work(n: int) -> int:
        for done in range(5):
            pp.progress(done, n)
            if done == 2:
                await pp.emit("half")
        return n

    lines = asyncio.run(all_of(pp.Graph(pp.each(work)).stream([4, 4])))
    assert [line for line in lines if line[0] in "!%"] == [
        "! each_work#1[0]: half",
        "% each_work#1[0]: 4 of 4",
        "! each_work#1[1]: half",
        "% each_work#1[1]: 4 of 4",
    ]


def test_a_thread_that_outlives_its_attempt_reports_nothing_any_more() -> None:
    """For example the thread of an attempt that has timed out: later events of that node are the node's own."""
    threads: list[threading.Thread] = []
    go_on = threading.Event()

    def outlive() -> None:
        go_on.wait(30)
        pp.emit("too late")
        pp.progress(1)

    class Work(pp.Node[int, int], retry=pp.Retry(attempts=2, delay=0)):
        def exec(self, n: int) -> int:
            if not threads:
                threads.append(threading.Thread(target=contextvars.copy_context().run, args=(outlive,)))
                threads[0].start()
                raise OSError
            go_on.set()
            threads[0].join()
            pp.emit("in time")
            return n

    lines = asyncio.run(all_of(pp.Graph(Work()).stream(1)))
    assert lines[2:] == ["! work#1: in time", "< work#1: 1", "= 1"]


# ---------------------------------------------------------------- back-pressure
@pytest.mark.parametrize("buffer", [1, 3, 20])
def test_the_run_is_only_buffer_events_ahead_of_its_reader(buffer: int) -> None:
    """It is at most `buffer` events ahead, plus those of its current node."""
    ahead: list[int] = []
    entered = 0

    class Loop(pp.Node[int, int]):
        again = pp.Action[int]()

        def post(self, store: pp.SyncWriter, n: int, prepared: int, result: int) -> int | pp.Next[int]:
            nonlocal entered
            entered += 1
            return self.again(n - 1) if n else n

    loop = Loop()

    async def main() -> None:
        left = 0
        async for event in pp.Graph(loop, loop.again >> loop).stream(100, buffer=buffer):
            left += isinstance(event, pp.NodeLeft)
            for _ in range(5):
                await asyncio.sleep(0)  # the run could continue
            ahead.append(2 * (entered - left))

    asyncio.run(main())
    assert entered == 101
    assert buffer - 2 <= max(ahead) <= buffer + 3


def test_a_fan_out_waits_between_its_items() -> None:
    """Ten thousand items, of which a few are ahead of the reader."""
    begun = 0

    @pp.node
    async def work(n: int) -> int:
        nonlocal begun
        begun += 1
        return n

    async def main() -> None:
        async with pp.Graph(pp.each(work)).stream(range(10_000), buffer=5) as events:
            async for event in events:
                await asyncio.sleep(0)
                if isinstance(event, pp.ItemDone) and event.item == 20:
                    break
        # concurrent items too: the other nine may not have started yet
        assert 20 - 9 < begun <= 20 + 5 + 10 + 1

    asyncio.run(main())


def test_a_waiting_reader_delays_no_item() -> None:
    """Items run at the same time, as many as their fan-out allows, however small the buffer is."""

    async def main() -> None:
        begun = asyncio.Barrier(10)

        @pp.node
        async def meet(n: int) -> int:
            await begun.wait()
            return n

        told = 0
        async for _ in pp.Graph(count >> pp.each(meet, concurrency=10)).stream(10, buffer=1):
            told += 1
            for _ in range(30):
                await asyncio.sleep(0)  # all others start to wait for this reader
        assert told == 15

    asyncio.run(asyncio.wait_for(main(), 30))


def test_items_that_wait_for_the_reader_keep_their_order() -> None:
    """No item is overtaken by newer ones."""

    async def main() -> None:
        done: list[int] = []
        async for event in pp.Graph(pp.each(add, concurrency=10)).stream(range(1000), buffer=5):
            await asyncio.sleep(0)
            if isinstance(event, pp.ItemDone) and event.item is not None:
                done.append(event.item)
        assert max(place - item for place, item in enumerate(done)) <= 10

    asyncio.run(main())


def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    """Neither a reader nor a node whose time was over."""

    async def main() -> None:
        given_up = 0

        @pp.node
        async def work(n: int) -> int:
            nonlocal given_up
            for value in range(n):
                room = pp.emit(value)
                try:
                    async with asyncio.timeout(1):
                        await room
                except TimeoutError:
                    given_up += 1
            await asyncio.sleep(10)
            return n

        async with pp.Graph(work).stream(5, buffer=2) as stream:
            await asyncio.sleep(10)
            feed = stream._feed
            assert (given_up, len(feed._writers)) == (5, 0)
            told = [said(await anext(stream)) for _ in range(6)]
            assert told == ["> work#1", *(f"! work#1: {value}" for value in range(5))]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 1)
            assert len(feed._readers) == 0

    run_virtual(main())


def test_a_failure_to_make_an_event_is_logged_and_changes_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in the code that makes events isn't silent, and the run continues."""
    monkeypatch.setattr(streaming, "NodeLeft", None)
    with caplog.at_level(logging.ERROR, "pocket_plug"):
        assert asyncio.run(all_of(pp.Graph(add).stream(1))) == ["> add#1", "= 2"]
    (record,) = caplog.records
    assert "the stream of a run (pocket_observe (exit)) failed" in record.message


def test_a_reader_of_many_events_yields_to_other_tasks() -> None:
    """Even if there is always one more event to read, other tasks run."""
    turns = 0

    @pp.node
    async def work(n: int) -> int:
        for value in range(n):
            pp.emit(value)
        return n

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        beside = asyncio.create_task(others())
        seen = [turns async for event in pp.Graph(work).stream(160) if isinstance(event, pp.Emitted)]
        assert seen[-1] - seen[0] >= 9
        beside.cancel()

    asyncio.run(main())


def test_a_worker_thread_waits_in_emit_until_there_is_room() -> None:
    """It continues when the reader reads: all values come, in order."""
    emitted = 0

    @pp.node
    def work(n: int) -> int:
        nonlocal emitted
        for emitted in range(n):
            pp.emit(emitted)
        return n

    async def main() -> None:
        values: list[object] = []
        async for event in pp.Graph(work).stream(1000, buffer=10):
            if isinstance(event, pp.Emitted):
                values.append(event.value)
                assert emitted <= len(values) + 11
        assert values == list(range(1000))

    asyncio.run(main())


@pytest.mark.parametrize("waits", [True, False], ids=["awaited", "not awaited"])
def test_an_async_node_waits_if_it_awaits_emit(waits: bool) -> None:
    """Without the await it doesn't wait, and the emitted value is kept all the same."""
    most = 0

    @pp.node
    async def work(n: int) -> int:
        nonlocal most
        for value in range(n):
            room = pp.emit(value)
            most = max(most, value - seen)
            if waits:
                await room
        return n

    seen = 0

    async def main() -> None:
        nonlocal seen
        values: list[object] = []
        async for event in pp.Graph(work).stream(200, buffer=10):
            if isinstance(event, pp.Emitted):
                values.append(event.value)
                seen = len(values)
        assert values == list(range(200))

    asyncio.run(main())
    assert most <= 11 if waits else most == 199


HITS = pp.Key("hits", int)


class Contended(pp.Node[int, int]):
    """Conflicts at its commit five times, so that it gets the gate of its key."""

    def __init__(self, store: pp.Store) -> None:
        self.store, self.lost = store, 0

    async def prep(self, reader: pp.StoreReader, n: int) -> int:
        return await reader.get(HITS, 0)

    async def exec(self, hits: int) -> int:
        for value in range(10):
            await pp.emit(value)
        if self.lost < 5:
            self.lost += 1
            await self.store.set(HITS, 100 * self.lost)
        return hits

    async def post(self, writer: pp.StoreWriter, n: int, hits: int, result: int) -> int:
        await writer.set(HITS, hits + 1)
        return hits


@pp.node.post
async def hit(writer: pp.StoreWriter, n: int) -> int:
    return await writer.update(HITS, lambda hits: hits + 1, default=0)


def test_the_run_never_waits_for_a_reader_that_waits_for_it() -> None:
    """A node that is retried holds gates. Its reader wants the same key, so the node emits beyond the buffer and doesn't wait."""

    async def main() -> None:
        store = pp.Store()
        emitted = 0
        async for event in pp.Graph(Contended(store), store=store).stream(1, buffer=1):
            if isinstance(event, pp.Emitted):
                emitted += 1
                await pp.Graph(hit, store=store).run(1)
        assert emitted >= 60

    asyncio.run(asyncio.wait_for(main(), 30))


def test_nor_does_a_graph_within_it_wait() -> None:
    """The nodes of a nested graph with a `post` of its own are within its tries."""

    class Total(pp.Graph[int, int]):
        async def prep(self, reader: pp.StoreReader, n: int) -> int:
            return await reader.get(HITS, 0)

        async def post(self, writer: pp.StoreWriter, n: int, hits: int, result: int) -> int:
            await writer.set(HITS, hits + 1)
            return hits

    async def main() -> None:
        store = pp.Store()
        lost = 0

        @pp.node
        async def lose(n: int) -> int:
            nonlocal lost
            if lost < 5:
                lost += 1
                await store.set(HITS, 100 * lost)
            return n

        async for event in pp.Graph(Total(lose >> add), store=store).stream(1, buffer=1):
            if isinstance(event, pp.NodeEntered):
                await pp.Graph(hit, store=store).run(1)

    asyncio.run(asyncio.wait_for(main(), 30))


# ---------------------------------------------------------------- leaving
class Work(pp.Node[int, int]):
    """Runs without end; records the calls of its hooks."""

    def __init__(self) -> None:
        self.hooks: list[str] = []
        self.over = asyncio.Event()

    async def exec(self, n: int) -> int:
        await pp.emit("at it")
        await asyncio.Event().wait()
        return n

    async def on_failure(self, store: pp.StoreWriter, error: BaseException) -> None:
        await asyncio.sleep(1)
        self.hooks.append(f"on_failure {type(error).__name__}")

    async def on_complete(self, store: pp.StoreWriter) -> None:
        self.hooks.append("on_complete")
        self.over.set()


HOOKS = ["on_failure CancelledError", "on_complete"]


def tasks() -> set[Any]:
    return asyncio.all_tasks() - {asyncio.current_task()}


def test_leaving_the_loop_cancels_the_run() -> None:
    """Its hooks run, and no task is left."""

    async def main() -> None:
        work = Work()
        async for event in pp.Graph(work).stream(1):
            if isinstance(event, pp.Emitted):
                break
        await work.over.wait()
        assert work.hooks == HOOKS
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert tasks() == set()

    run_virtual(main())


def test_the_end_of_async_with_is_the_end_of_the_run() -> None:
    """By `break`, by the reader's own error, and at the end of the block: the exception is the reader's."""

    async def main() -> None:
        for way in ("break", "raise", "end"):
            work = Work()
            try:
                async with pp.Graph(work).stream(1) as events:
                    async for event in events:
                        if isinstance(event, pp.Emitted):
                            if way == "raise":
                                raise KeyError("the reader's")
                            break
            except KeyError:
                assert way == "raise"
            assert work.hooks == HOOKS
            assert tasks() == set()
            assert [event async for event in events] == []

    run_virtual(main())


def test_an_error_in_the_loop_cancels_the_run() -> None:
    """As `break` does."""

    async def main() -> None:
        work = Work()
        with pytest.raises(KeyError):
            async for event in pp.Graph(work).stream(1):
                if isinstance(event, pp.Emitted):
                    raise KeyError
        await work.over.wait()
        assert work.hooks == HOOKS

    run_virtual(main())


def test_a_dropped_stream_cancels_its_run_whichever_thread_collects_it() -> None:
    """Also in a reference cycle."""

    async def main() -> None:
        work = Work()
        box: list[Any] = [pp.Graph(work).stream(1)]
        box.append(box)
        while not isinstance(await anext(box[0]), pp.Emitted):
            pass
        del box
        collecting = threading.Thread(target=gc.collect)
        collecting.start()
        collecting.join()
        await work.over.wait()
        assert work.hooks == HOOKS

    run_virtual(main())


def test_a_time_limit_of_the_reader_ends_the_run() -> None:
    """`asyncio.timeout` around the loop, with and without `async with`."""

    async def main() -> None:
        work = Work()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5), pp.Graph(work).stream(1) as events:
                async for _ in events:
                    pass
        assert work.hooks == HOOKS
        other = Work()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                async for _ in pp.Graph(other).stream(1):
                    pass
        await other.over.wait()
        assert other.hooks == HOOKS

    run_virtual(main())


def test_a_wait_that_is_cancelled_loses_no_event() -> None:
    """`wait_for(anext(stream))`, for example to detect silence, leaves the stream unchanged."""

    async def main() -> None:
        @pp.node
        async def slow(n: int) -> int:
            await asyncio.sleep(10)
            return n

        lines: list[str] = []
        waits = 0
        stream = pp.Graph(slow).stream(1)
        while True:
            try:
                lines.append(said(await asyncio.wait_for(anext(stream), 3)))
            except TimeoutError:
                waits += 1
            except StopAsyncIteration:
                break
        assert (lines, waits) == (["> slow#1", "< slow#1: 1", "= 1"], 3)

    run_virtual(main())


def test_cancelling_the_task_of_a_run_ends_its_stream() -> None:
    """Even before its first step: a reader elsewhere doesn't wait without end."""

    async def main() -> None:
        for steps in (0, 5):
            stream = pp.Graph(Work()).stream(1)
            async with stream:
                (task,) = tasks()
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    async with asyncio.timeout(60):
                        while True:
                            await anext(stream)

    run_virtual(main())


def test_a_worker_that_waits_for_room_goes_on_when_the_reader_leaves() -> None:
    """No thread waits without end for a reader that has left."""
    over = threading.Event()

    @pp.node
    def work(n: int) -> int:
        for value in range(n):
            pp.emit(value)
        over.set()
        return n

    async def main() -> None:
        async with pp.Graph(work).stream(1000, buffer=1) as events:
            async for event in events:
                if isinstance(event, pp.Emitted):
                    break
            while not events._feed._writers:
                await asyncio.sleep(0)

    asyncio.run(main())
    assert over.wait(30)


def test_a_closed_stream_returns_nothing_more() -> None:
    """Not even earlier events."""

    async def main() -> None:
        stream = pp.Graph(add >> double).stream(1)
        assert said(await anext(stream)) == "> add#1"
        while tasks():
            await asyncio.sleep(0)
        await stream.aclose()
        await stream.aclose()
        assert await all_of(stream) == []

    asyncio.run(main())


def test_errors_of_a_run_after_its_reader_has_left_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """There is no caller to which it could be raised. The log has no values."""

    @pp.node
    async def stubborn(n: int) -> int:
        try:
            await pp.emit("at it")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("secret") from None
        return n

    async def main() -> None:
        async with pp.Graph(stubborn).stream(1) as events:
            async for event in events:
                if isinstance(event, pp.Emitted):
                    break

    with caplog.at_level(logging.ERROR, "pocket_plug"):
        asyncio.run(main())
    (record,) = [record for record in caplog.records if not record.message.startswith("pocket_plug.node.exception ")]
    assert "a run failed, and its stream has no reader any more" in record.message
    assert "ValueError" in record.message
    assert "secret" not in record.message


def test_an_error_that_was_not_read_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The run had failed, and the reader left before it got the error."""

    async def main() -> None:
        async with pp.Graph(add >> fail).stream(1) as events:
            async for _ in events:
                while tasks():
                    await asyncio.sleep(0)
                break

    with caplog.at_level(logging.ERROR, "pocket_plug"):
        asyncio.run(main())
    assert [record.message.partition(". ")[0].split(" run_id=")[0] for record in caplog.records] == [
        "pocket_plug.node.exception",
        "a run failed, and its stream has no reader any more",
    ]


# ---------------------------------------------------------------- two streams, context variables and plugins
def test_two_streams_at_once_are_separate() -> None:
    """Each has the events of its own run, also if one's reader or one's node starts the other."""

    @pp.node
    async def follow(n: int) -> int:
        lines = await all_of(pp.Graph(async_work, name="own").stream(n))
        assert lines[0] == "> async_work#1"
        return n

    async def main() -> None:
        graph = pp.Graph(pp.each(async_work, concurrency=2) >> pp.node(sum_of))
        one, two = await asyncio.gather(all_of(graph.stream([1, 2])), all_of(graph.stream([3])))
        assert {line for line in one if "!" in line} == {
            "! each_async_work#1[0]: async 1",
            "! each_async_work#1[1]: async 2",
        }
        assert [line for line in two if "!" in line] == ["! each_async_work#1[0]: async 3"]
        assert (one[-1], two[-1]) == ("= 3", "= 3")
        async for event in pp.Graph(follow).stream(5):
            assert not isinstance(event, pp.Emitted)
            assert "! async_work#1: async 6" in await all_of(pp.Graph(async_work).stream(6))

    asyncio.run(main())


async def sum_of(numbers: list[int]) -> int:
    return sum(numbers)


def test_context_variables_reach_the_run_but_not_the_reader() -> None:
    """The run sees the variables of the caller that starts it; the caller sees nothing that nodes set."""
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")

    @pp.node
    async def greet(n: int) -> str:
        seen = name.get()
        name.set("a node's")
        return seen

    async def main() -> None:
        name.set("the reader's")
        async for event in pp.Graph(greet).stream(1):
            assert name.get() == "the reader's"
            if isinstance(event, pp.Finished):
                assert event.output == "the reader's"

    asyncio.run(main())


def test_plugins_watch_a_followed_run_as_any_other() -> None:
    """Plugins of the given Pocket, or of the default one."""
    seen: list[str] = []

    class Plugin:
        @hookimpl
        def pocket_observe(self) -> Observer:
            return Observer(
                event=lambda name, call, details: seen.append(name), node=lambda call: seen.append(call.name)
            )

    with pp.Pocket(plugins=[Plugin()], autoload=False) as pocket:
        asyncio.run(all_of(pp.Graph(add >> double).stream(1, pocket=pocket)))
    assert seen == ["add", "double"]


def test_a_plugin_may_set_the_pace_and_a_failing_one_changes_nothing() -> None:
    """`pace` is awaited before each node and item, if there is an event loop; its errors are failures of its plugin."""
    told: list[str] = []

    class Slow:
        @hookimpl
        def pocket_observe(self) -> Observer:
            return Observer(pace=self.pace)

        async def pace(self) -> None:
            told.append("asked")
            await asyncio.sleep(0)
            if len(told) > 1:
                raise OSError

    with pp.Pocket(plugins=[Slow()], autoload=False) as pocket:
        assert pp.Graph(double).run_sync(1, pocket=pocket) == 2
        assert told == []
        graph = pp.Graph(count >> pp.each(add))
        assert asyncio.run(graph.run(2, pocket=pocket)) == [1, 2]
        assert told == ["asked"] * 4
        (record,) = [each for each in pocket.plugins if each.name == "slow"]
        assert record.failures == {"pocket_observe (pace)": 3}


def test_no_value_of_an_event_gets_into_telemetry(caplog: pytest.LogCaptureFixture, file: str) -> None:
    """Neither emitted values, nor progress, nor a question: spans and logs have none of them."""

    @pp.node
    async def tell(n: int) -> int:
        await pp.emit("hunter2")
        pp.progress(271828, 314159)
        return n

    ask = pp.Ask[int, bool](bool, question="hunter2?", name="ok")

    async def main() -> list[str]:
        async with pp.Store(file, layers=["tracing"]) as store:
            return await all_of(pp.Graph(tell >> ask, store=store).stream(1, run_id="r"))

    with SpanCapture() as spans, caplog.at_level(logging.DEBUG):
        lines = asyncio.run(main())
    assert "? ok#1: hunter2?" in lines
    assert [span.name for span in spans.spans if span.name == "node tell"]
    exported = "".join(span.to_json() for span in spans.spans) + caplog.text
    assert "hunter2" not in exported
    assert "271828" not in exported


def test_nothing_of_a_stream_is_left() -> None:
    """However it ends: read to the end, left, dropped, failed, timed out, never read, or after its loop has ended."""

    async def leave(work: pp.Graph[int, int], way: str) -> object:
        stream = work.stream(1, buffer=2)
        if way == "unread":
            return None
        if way == "outlives its loop":
            await anext(stream)
            return stream
        async with asyncio.timeout(0 if way == "out of time" else None):
            async for event in stream:
                if way == "break" and isinstance(event, pp.Emitted):
                    break
                if way == "raise":
                    raise KeyError
        if way == "closed":
            await stream.aclose()
        return None

    @pp.node
    async def work(n: int) -> int:
        for value in range(10):
            await pp.emit(value)
        return n

    def left() -> dict[int, object]:
        gc.collect()
        return {id(each): each for each in gc.get_objects() if isinstance(each, Feed | Execution | pp.RunStream)}

    before = left()  # those of earlier tests, which stay: a new one can't have the same id
    for way in ("read", "unread", "break", "raise", "closed", "out of time", "outlives its loop", "fails"):
        with suppress(KeyError, TimeoutError, ValueError):
            asyncio.run(leave(pp.Graph(work >> fail if way == "fails" else work >> sync_work), way))
    assert left().keys() == before.keys()
    assert streaming._tasks == set()
