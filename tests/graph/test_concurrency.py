"""Many items through one node: order, limits, errors, and the end of a fan-out that stops early."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pocket_plug import END, Action, Next, Node, Retry, node
from pocket_plug.errors import InputError
from pocket_plug.graph.fan_out import fan_out
from pocket_plug.graph.gather import gather
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.kinds.each import CONCURRENCY, each
from pocket_plug.graph.running import execution
from pocket_plug.graph.running.protocols import STEPS_PER_LOOK
from pocket_plug.store.backend import Backend
from pocket_plug.store.memory import Memory
from pocket_plug.store.store import Store, StoreReader, StoreWriter
from pocket_plug.store.sync import SyncReader, SyncStore, SyncWriter
from pocket_plug.testing.clock import FakeClock, run_virtual
from pocket_plug.testing.layer_contract import FaultyMemory


@node
def double(n: int) -> int:
    return 2 * n


@node
async def double_async(n: int) -> int:
    await asyncio.sleep(0)
    return 2 * n


class Gauge(Node[int, int]):
    """Takes some seconds for an item, and knows how many items it had at the same time."""

    def __init__(self, seconds: float = 1) -> None:
        self.seconds = seconds
        self.inside = self.most = 0
        self.begun: list[int] = []
        self.ended: list[int] = []

    async def exec(self, n: int) -> int:
        self.begun.append(n)
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await asyncio.sleep(self.seconds)
            if n < 0:
                raise ValueError(n)
        finally:
            self.inside -= 1
            self.ended.append(n)
        return n


# ---------------------------------------------------------------- results
@pytest.mark.parametrize("item", [double, double_async], ids=["def", "async"])
@pytest.mark.parametrize("how", ["run", "run_sync", "fan_out"])
@pytest.mark.parametrize("items", [[], [1], [3, 1, 2], range(50)], ids=["empty", "one", "some", "many"])
def test_results_are_in_the_items_order(item: Any, how: str, items: Iterable[int]) -> None:
    """Whether the node is async or not, and however it is run; no items give an empty list."""
    graph = Graph(each(item))
    if how == "run_sync":
        results = graph.run_sync(items)
    else:
        results = asyncio.run(fan_out(item, items) if how == "fan_out" else graph.run(items))
    assert results == [2 * n for n in items]


def test_results_keep_the_order_though_items_end_in_another() -> None:
    """The last item to start may be the first to end."""

    @node
    async def slow(n: int) -> int:
        await asyncio.sleep(100 - n)
        return n

    assert run_virtual(fan_out(slow, range(100), concurrency=100)) == list(range(100))


@pytest.mark.parametrize("concurrency", [1, 2, 7, CONCURRENCY, 500])
def test_the_limit_is_reached_and_never_exceeded(concurrency: int) -> None:
    """Exactly this many at a time while there are items, in as many rounds as needed."""
    gauge, clock = Gauge(), FakeClock()
    assert run_virtual(fan_out(gauge, range(100), concurrency=concurrency), clock) == list(range(100))
    assert gauge.most == min(concurrency, 100)
    assert clock.elapsed == pytest.approx(-(-100 // concurrency))


def test_no_more_workers_start_than_there_are_items() -> None:
    """A wide fan-out with few items starts few tasks."""

    made = 0

    def count(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        nonlocal made
        made += 1
        return asyncio.Task(coroutine, loop=loop, **options)

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(count)
        await fan_out(double_async, range(3), concurrency=10_000)

    asyncio.run(main())
    assert made < 10


def test_run_sync_takes_as_many_items_at_a_time_as_run_does() -> None:
    """Where the items await. Their `def` phases run in the caller's thread, so one after the other."""
    inside: list[int] = []
    most, threads = 0, set[int]()

    @node
    async def turns(n: int) -> int:
        nonlocal most
        inside.append(n)
        most = max(most, len(inside))
        for _ in range(20):
            await asyncio.sleep(0)
        inside.remove(n)
        return n

    @node
    def here(n: int) -> int:
        threads.add(threading.get_ident())
        return n

    assert Graph(each(turns, concurrency=5) >> each(here)).run_sync(range(9)) == list(range(9))
    assert most == 5
    assert threads == {threading.get_ident()}


# ---------------------------------------------------------------- input
@pytest.mark.parametrize("concurrency", [1, 4])
def test_items_are_read_as_workers_become_free(concurrency: int) -> None:
    """A generator is never further ahead than the number of workers, so its length doesn't matter."""
    gauge, drawn = Gauge(), 0

    def endless() -> Iterator[int]:
        nonlocal drawn
        while drawn < 30:
            drawn += 1
            assert drawn - len(gauge.ended) <= concurrency
            yield drawn

    assert len(run_virtual(fan_out(gauge, endless(), concurrency=concurrency))) == 30


@pytest.mark.parametrize("errors", ["raise", "collect"])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_error_of_the_items_iterator_is_never_collected(errors: Any, concurrency: int) -> None:
    """It is raised unchanged, never collected; items that have started are cancelled and awaited."""
    gauge = Gauge()

    def broken() -> Iterator[int]:
        yield from range(6)
        raise OSError("lost the list")

    with pytest.raises(OSError, match="lost the list"):
        run_virtual(fan_out(gauge, broken(), concurrency=concurrency, errors=errors))
    assert gauge.inside == 0
    assert gauge.begun == list(range(6))


def test_any_iterable_is_accepted() -> None:
    """Sets, dicts, strings, generators; anything else is an InputError that names the node."""
    assert asyncio.run(fan_out(double, {3})) == [6]
    assert asyncio.run(fan_out(double, {1: "a", 2: "b"})) == [2, 4]
    assert asyncio.run(fan_out(node(str.upper), "ab")) == ["A", "B"]  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"node 'each_double' of graph 'each_double' takes Iterable\[int\], not int"):
        asyncio.run(fan_out(double, 3))  # type: ignore[call-overload]


def test_a_hundred_thousand_items_are_not_kept() -> None:
    """Each input is released once its item is done: there are never more than a few of them."""
    living = 0

    class Item:
        def __init__(self) -> None:
            nonlocal living
            living += 1
            assert living < 50

        def __del__(self) -> None:
            nonlocal living
            living -= 1

    @node
    async def drop(item: Any) -> None:
        return None

    results = asyncio.run(fan_out(drop, (Item() for _ in range(100_000)), concurrency=8))
    assert len(results) == 100_000
    assert living == 0


class Surviving(Memory):
    survives = True


@pytest.mark.parametrize("run_id", [None, "r"], ids=["plain", "durable"])
def test_all_workers_of_a_fan_out_share_one_turn_of_the_event_loop(
    run_id: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one turn each: other tasks of the loop would wait ten times as long, for example if the items write in place."""
    now, longest = 0.0, execution.TURN
    step = longest / 4
    monkeypatch.setattr(execution, "time", SimpleNamespace(perf_counter=lambda: now))
    gaps: list[float] = []

    @node
    async def works(n: int) -> int:
        nonlocal now
        now += step
        return n

    async def beat() -> None:
        while True:
            last = now
            await asyncio.sleep(0)
            gaps.append(now - last)

    async def main() -> None:
        beating = asyncio.create_task(beat())
        await Graph(each(works), store=Store(Surviving()), name="many").run(range(2_000), run_id=run_id)
        beating.cancel()

    asyncio.run(main())
    assert sum(gaps) > 1_900 * step
    assert max(gaps) <= longest + (2 * STEPS_PER_LOOK + CONCURRENCY) * step


def test_a_fan_out_that_never_suspends_yields_to_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tasks run meanwhile, and a deadline around it is kept."""
    monkeypatch.setattr("pocket_plug.graph.running.execution.TURN", 0.0)

    @node
    async def quick(n: int) -> int:
        return n

    def endless() -> Iterator[int]:
        while True:
            yield 1

    async def main(concurrency: int) -> None:
        task = asyncio.create_task(fan_out(quick, endless(), concurrency=concurrency))
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for concurrency in (1, 3):
        asyncio.run(main(concurrency))


# ---------------------------------------------------------------- errors
@pytest.mark.parametrize("concurrency", [1, 3, 100])
def test_the_first_error_cancels_the_rest_and_is_raised_itself(concurrency: int) -> None:
    """Not in an exception group; no further item starts, and the started ones have ended when it is raised."""
    gauge = Gauge()
    with pytest.raises(ValueError, match="-1") as caught:
        run_virtual(fan_out(gauge, [1, 2, -1, *range(3, 100)], concurrency=concurrency))
    assert type(caught.value) is ValueError
    assert gauge.inside == 0
    assert len(gauge.begun) < 3 + concurrency
    assert sorted(gauge.begun) == sorted(gauge.ended)


@pytest.mark.parametrize("way", ["each", "gather"])
def test_an_error_leaves_no_cancellation_in_the_callers_task(way: str) -> None:
    """With one, `asyncio.timeout` around the caller would raise CancelledError in place of TimeoutError."""

    @node
    async def fail(n: int) -> int:
        await asyncio.sleep(0.1)
        raise ValueError(n)

    graph: Graph[Any, Any] = Graph(each(fail)) if way == "each" else Graph(gather(fail, double))

    async def main() -> int:
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(ValueError, match="7"):
            await graph.run([7] if way == "each" else 7)
        return task.cancelling()

    assert run_virtual(main()) == 0


def test_an_error_at_once_and_an_error_of_an_item_that_is_a_group() -> None:
    """An error before other workers have started; and a group that an item has raised stays that group."""

    @node
    async def fails(n: int) -> int:
        raise ExceptionGroup("the item's own", [ValueError(n), OSError(n)])

    for concurrency in (1, 8):
        with pytest.raises(ExceptionGroup, match="the item's own") as caught:
            asyncio.run(fan_out(fails, range(100), concurrency=concurrency))
        assert [type(error) for error in caught.value.exceptions] == [ValueError, OSError]


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_cause_and_context_of_an_items_error_are_kept(concurrency: int) -> None:
    """`raise … from …` and the exception that was being handled are unchanged."""

    @node
    async def fails(n: int) -> int:
        try:
            return 1 // n
        except ZeroDivisionError as error:
            raise ValueError(n) from error

    with pytest.raises(ValueError, match="0") as caught:
        asyncio.run(fan_out(fails, [1, 0], concurrency=concurrency))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_errors_can_be_collected() -> None:
    """They are in the list of results, in order; the other results are unchanged."""
    gauge = Gauge()
    results = run_virtual(fan_out(gauge, [1, -2, 3, -4], errors="collect", concurrency=2))
    assert (results[0], results[2]) == (1, 3)
    assert [repr(results[1]), repr(results[3])] == ["ValueError(-2)", "ValueError(-4)"]
    assert [type(result) for result in Graph(each(Gauge(0), errors="collect")).run_sync([-1])] == [ValueError]


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(2)])
def test_interrupts_are_never_collected(error: BaseException, concurrency: int) -> None:
    """Neither with `errors="collect"` nor into a group."""

    @node
    async def interrupted(n: int) -> int:
        raise error

    with pytest.raises(type(error)):
        asyncio.run(fan_out(interrupted, range(3), concurrency=concurrency, errors="collect"))


@pytest.mark.parametrize("how", ["run", "fan_out"])
@pytest.mark.parametrize("stop", ["SystemExit(3)", "KeyboardInterrupt()"])
def test_an_item_that_ends_the_program_leaves_no_unretrieved_exception(how: str, stop: str) -> None:
    """Its exit code is the program's, and asyncio doesn't report an exception that nobody retrieved."""
    script = f"""
import asyncio, pocket_plug as pp
@pp.node
async def stops(n: int) -> int:
    await asyncio.sleep(0)
    raise {stop}
async def main():
    if {how == "fan_out"}:
        return await pp.fan_out(stops, range(9), errors="collect")
    return await pp.Graph(pp.each(stops) >> pp.each(stops, name="more")).run(range(9))
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (3 if "3" in stop else -signal.SIGINT)
    assert "never retrieved" not in done.stderr
    assert "pocket_plug" not in done.stderr if "3" in stop else "KeyboardInterrupt" in done.stderr


@pytest.mark.parametrize("errors", ["raise", "collect"])
def test_an_item_cancelled_by_what_it_awaits_cancels_the_fan_out(errors: Any) -> None:
    """It awaited a task that was cancelled: the fan-out is cancelled as any node is, and no result is missing."""

    @node
    async def awaits(n: int) -> int:
        task = asyncio.get_running_loop().create_task(asyncio.sleep(1))
        if n == 1:
            task.cancel()
        await task
        return n

    with pytest.raises(asyncio.CancelledError):
        run_virtual(fan_out(awaits, range(3), errors=errors))


def test_an_items_retry_and_fallback_are_its_own() -> None:
    """Each item has all its attempts, whatever other items need."""
    attempts: dict[int, int] = {}

    class Flaky(Node[int, int], retry=Retry(attempts=3, delay=1)):
        async def exec(self, n: int) -> int:
            attempts[n] = attempts.get(n, 0) + 1
            if attempts[n] < n:
                raise OSError
            return n

        async def fallback(self, n: int, error: Exception) -> int:
            return -n

    assert run_virtual(fan_out(Flaky(), [1, 2, 3, 4])) == [1, 2, 3, -4]
    assert attempts == {1: 1, 2: 2, 3: 3, 4: 3}


@pytest.mark.parametrize("concurrency", [1, 4])
def test_cancelling_a_fan_out_waits_for_its_workers(concurrency: int) -> None:
    """When the cancellation is raised, no worker runs, and none is left."""
    gauge = Gauge(5)

    async def main() -> None:
        task = asyncio.create_task(fan_out(gauge, range(100), concurrency=concurrency))
        await asyncio.sleep(12)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gauge.inside == 0
        assert sorted(gauge.begun) == sorted(gauge.ended) == list(range(3 * concurrency))
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())


# ---------------------------------------------------------------- as part of graphs
def test_each_within_each_over_a_graph_and_between_nodes() -> None:
    """It is a node like any other: it nests, accepts a graph for its items, and passes its list on."""

    @node
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    class Odd(Node[int, int]):
        even = Action[int]()

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int | Next[int]:
            return n if n % 2 else self.even(n)

    odd = Odd()
    route = Graph(odd, odd.even >> double, name="route")
    for run in (lambda g, x: g.run_sync(x), lambda g, x: asyncio.run(g.run(x))):
        assert run(Graph(each(each(double))), [[1, 2], [], [3]]) == [[2, 4], [], [6]]
        assert run(Graph(each(route) >> total), range(6)) == 1 + 3 + 5 + 2 * (2 + 4)
        assert run(Graph(each(Graph(each(double) >> total, name="inner"), concurrency=2)), [[1, 2], [3]]) == [6, 6]


def test_an_item_may_end_early() -> None:
    """END is the item's result and ends nothing else."""

    @node.post
    def first(store: SyncWriter, n: int) -> Any:
        return END(n) if n > 1 else n

    assert Graph(each(Graph(first >> double)) >> node(len)).run_sync([1, 2, 3]) == 3
    assert Graph(each(Graph(first >> double, name="g"))).run_sync([1, 2, 3]) == [2, 2, 3]


def test_two_fan_outs_of_one_node_are_in_one_graph_with_different_names() -> None:
    """Their names come from the node's; with_options gives another."""
    other = each(double).with_options(name="again")
    assert Graph(each(double) >> other).run_sync([1]) == [4]


@pytest.mark.parametrize("backend", [Memory, FaultyMemory], ids=["memory", "suspending"])
@pytest.mark.parametrize("colour", ["async", "def"])
def test_items_update_shared_totals_without_loss(backend: type[Backend], colour: str) -> None:
    """Each item's writes are a transaction of their own; a hundred at once lose none."""

    class Add(Node[int, int]):
        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            await store.update("total", lambda total: total + n, default=0)
            await store.set(f"item:{n}", n)
            return n

    class AddDef(Node[int, int]):
        def prep(self, store: SyncReader, n: int) -> int:
            return n

        def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int:
            store.update("total", lambda total: total + n, default=0)
            store.set(f"item:{n}", n)
            return n

    async def main() -> None:
        store = Store(backend())
        item = Add() if colour == "async" else AddDef()
        await fan_out(item, range(100), concurrency=25, store=store)
        assert await store.get("total") == sum(range(100))
        assert len([key async for key in store.keys("item:")]) == 100

    asyncio.run(main())


def test_committed_items_stay_if_a_later_one_fails() -> None:
    """A fan-out is no transaction: an item's commit stays."""
    store = SyncStore()

    class Keep(Node[int, int]):
        async def prep(self, store: StoreReader, n: int) -> int:
            return n

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            await store.set(f"item:{n}", n)
            if n == 3:
                raise ValueError(n)
            return n

    with pytest.raises(ValueError, match="3"):
        asyncio.run(Graph(each(Keep(), concurrency=1), store=store).run(range(10)))
    assert list(store.keys()) == ["item:0", "item:1", "item:2"]


def test_deep_fan_outs_keep_to_the_recursion_limit() -> None:
    """Thirty levels of `each` within `each` stay far below Python's recursion limit."""
    nested: Any = double
    value: Any = 1
    for _ in range(30):
        nested, value = each(nested, concurrency=2).with_options(name="each"), [value]
    result = asyncio.run(Graph(nested).run(value))
    while isinstance(result, list):
        (result,) = result
    assert result == 2
    assert sys.getrecursionlimit() >= 1_000
