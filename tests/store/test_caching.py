"""Cached functions: computed once while all other callers wait; errors and abandoned computations are not stored."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import (
    Change,
    ConfigError,
    Entry,
    Key,
    KeyNameError,
    Memory,
    Store,
    StoreError,
    StoreUnreachableError,
    SyncError,
    SyncStore,
    ValueTypeError,
    node,
)
from pocket_plug.testing.clock import FakeClock

SQUARE = Key("square:{n}", int)


class SlowMemory(Memory):
    """A store whose operations suspend, as a server's do."""

    inline_read = inline_write = False
    needs_loop = True

    async def read(self, key: str) -> Entry | None:
        await asyncio.sleep(0)
        return await super().read(key)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        await asyncio.sleep(0)
        return await super().write(changes, expect)


class Counter:
    """How often a function was called, and gates that it waits for."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.began, self.may_end = threading.Event(), threading.Event()

    def square(self, n: int) -> int:
        self.calls.append(n)
        return n * n

    def slow_square(self, n: int) -> int:
        """Starts, and waits until it may end."""
        self.calls.append(n)
        self.began.set()
        assert self.may_end.wait(30)
        return n * n


def waiting(function: Any) -> int:
    """How many callers wait for a cached function's computation."""
    cells = inspect.getclosurevars(function).nonlocals
    return sum(len(flight.waiters) for flight in cells["cache"]._flights._by_name.values())


async def until(condition: Callable[[], object]) -> None:
    """Run the loop until the condition holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def threads_of(count: int, work: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


@pytest.fixture(params=["memory", "sqlite", "slow"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SyncStore]:
    given = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/state.db", "slow": SlowMemory()}
    with SyncStore(given[request.param]) as store:
        yield store


# ---------------------------------------------------------------- results
def test_a_function_is_called_once(store: SyncStore) -> None:
    """Later its result comes from the store, until it is invalidated."""
    counter = Counter()
    square = store.cached(SQUARE)(lambda n: counter.square(n))
    assert (square(3), square(n=3), square(4), store.get(SQUARE(3))) == (9, 9, 16, 9)
    assert counter.calls == [3, 4]
    assert (square.invalidate(3), square.invalidate(n=3), store.has(SQUARE(3))) == (True, False, False)
    assert (square(3), counter.calls) == (9, [3, 4, 3])


def test_an_async_function_is_called_once() -> None:
    """The same with `await`, on an async store, on a scope of it, and on a sync one."""

    async def main() -> None:
        async with Store() as store:
            for view in (store, store.scope("a"), store.sync.scope("b")):
                counter = Counter()

                @view.cached(SQUARE, ignore=["counter"])
                async def square(n: int, counter: Counter = counter) -> int:
                    await asyncio.sleep(0)
                    return counter.square(n)

                assert [await square(3), await square(n=3)] == [9, 9]
                assert counter.calls == [3]
                assert [await square.invalidate(3), await square.invalidate(3)] == [True, False]
            assert await store.count() == 0

    asyncio.run(main())


def test_none_is_a_value(store: SyncStore) -> None:
    """It is stored like any other."""
    calls = []

    @store.cached("nothing")
    def nothing() -> None:
        calls.append(1)

    assert (nothing(), nothing(), calls) == (None, None, [1])  # type: ignore[func-returns-value]


def test_a_result_expires() -> None:
    """After its ttl it is computed again; an invalid ttl is refused when it is written."""
    clock, counter = FakeClock(), Counter()
    store = SyncStore(clock=clock)
    square = store.cached(SQUARE, ttl="5m")(counter.square)
    square(3)
    clock.advance(299)
    square(3)
    clock.advance(1)
    square(3)
    assert (counter.calls, store.ttl(SQUARE(3))) == ([3, 3], 300)
    with pytest.raises(ConfigError):
        store.cached(SQUARE, ttl=0)


def test_values_are_checked(store: SyncStore) -> None:
    """A result of another type is refused, and a stored value of another type is an error, not a miss."""
    wrong: Any = store.cached(SQUARE)(lambda n: str(n))  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueTypeError, match="square:3"):
        wrong(3)
    assert not store.has(SQUARE(3))
    store.set("square:3", "nine")
    with pytest.raises(ValueTypeError, match="square:3"):
        wrong(3)
    typed: Any = store.scope("t").typed(int).cached("square:{n}")(lambda n: str(n))  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueTypeError, match="is declared as int, the value is str"):
        typed(3)
    square = store.scope("t").typed(int).cached("square:{n}")(lambda n: n * n)
    assert (square(3), store.get("t:square:3")) == (9, 9)
    coroutine: Any = store.cached("later")(lambda: asyncio.sleep(0))
    with pytest.raises(ValueTypeError, match="returned a coroutine"):
        asyncio.run(_called(coroutine))


async def _called(function: Callable[[], Any]) -> None:
    await asyncio.to_thread(function)


# ---------------------------------------------------------------- its key
def test_arguments_fill_the_key_by_name() -> None:
    """However they are passed, defaults too; a {} is filled by the next argument that no other placeholder names."""
    store = SyncStore()

    @store.cached(Key("report:{day}:{}:{}", str))
    def report(region: str, day: int, kind: str = "short") -> str:
        return f"{region}/{day}/{kind}"

    assert report("a:b", 7) == report(day=7, region="a:b") == report("a:b", kind="short", day=7) == "a:b/7/short"
    assert list(store.keys()) == ["report:7:a%3Ab:short"]
    assert (report.__name__, report.__wrapped__("x", 1)) == ("report", "x/1/short")  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="missing a required argument: 'day'"):
        report("a")  # type: ignore[call-arg]
    with pytest.raises(KeyNameError, match="can't be filled with"):
        report(None, 7)  # type: ignore[arg-type]


def test_a_method_is_cached_too() -> None:
    """Its `self` is ignored, or is a part of the key by another argument."""
    store = SyncStore()

    class Shop:
        @store.cached("price:{item}", ignore=("self",))
        def price(self, item: str) -> int:
            return len(item)

    shop = Shop()
    assert (shop.price("shoe"), store.get("price:shoe"), Shop.price.invalidate(shop, "shoe")) == (4, 4, True)


def test_a_nodes_function_may_be_cached() -> None:
    """For all other purposes it is the original function."""
    store = SyncStore()
    square = node(store.cached(SQUARE)(Counter().square))
    assert square(3) == 9

    async def later(n: int) -> int:
        return n

    assert inspect.iscoroutinefunction(store.cached(SQUARE)(later))
    assert store.cached("power:{exp}", ignore=("mod",))(functools.partial(pow, 2))(3) == 8


async def agen(n: int) -> AsyncIterator[int]:
    yield n


def gen(n: int) -> Iterator[int]:
    yield n


@pytest.mark.parametrize(
    ("key", "function", "ignore", "message"),
    [
        (SQUARE, lambda m: m, (), r"no parameter fills \{n\} of Key\('square:\{n\}', int\); its parameters are: m"),
        (Key("a:{}:{}"), lambda m: m, (), r"no parameter fills \{\} of"),
        (Key("a"), lambda m: m, (), r"'m' not in Key\('a'\).*add a placeholder, \{m\}, or set ignore=\('m',\)"),
        (SQUARE, lambda n: n, ("x",), r"ignore has 'x'; its parameters are: n"),
        ("all:{}", lambda *n: n, (), r"\*n takes any number of arguments.*ignore=\('n',\)"),
        (SQUARE, lambda n, **more: n, (), r"\*\*more takes any number of arguments"),
        (SQUARE, 5, (), "functions that return a value, not for a int"),
        (SQUARE, min, (), "Python doesn't know its parameters"),
        (SQUARE, gen, (), "functions that return a value"),
        (SQUARE, agen, (), "functions that return a value"),
    ],
)
def test_a_key_that_does_not_fit_the_arguments_is_refused(key: Any, function: Any, ignore: Any, message: str) -> None:
    """At the decorator: two different calls must never share a value by mistake."""
    with pytest.raises(ConfigError, match=message):
        SyncStore().cached(key, ignore=ignore)(function)


def test_invalid_braces_are_refused() -> None:
    """As in any Key."""
    with pytest.raises(KeyNameError, match="brace"):
        SyncStore().cached("a:{n!r}")


# ---------------------------------------------------------------- concurrent calls
def test_concurrent_threads_compute_once(store: SyncStore) -> None:
    """A hundred threads, one computation, the same result for all."""
    counter, results = Counter(), list[int]()
    square = store.cached(SQUARE)(counter.slow_square)
    threads = threads_of(20, lambda: results.append(square(3)))
    assert counter.began.wait(30)
    asyncio.run(until(lambda: waiting(square) == 19))
    counter.may_end.set()
    for thread in threads:
        thread.join(30)
    assert (results, counter.calls) == ([9] * 20, [3])


def test_concurrent_tasks_of_several_loops_compute_once() -> None:
    """Tasks of any loop; a loop that waits runs its other tasks meanwhile."""
    store, calls, results = Store(), list[int](), list[int]()
    door = threading.Event()

    @store.cached(SQUARE)
    async def square(n: int) -> int:
        calls.append(n)
        await until(door.is_set)
        return n * n

    async def main() -> None:
        results.extend(await asyncio.gather(*(square(3) for _ in range(10))))

    threads = threads_of(3, lambda: asyncio.run(main()))
    asyncio.run(until(lambda: waiting(square) == 29))
    door.set()
    for thread in threads:
        thread.join(30)
    assert (results, calls) == ([9] * 30, [3])


def test_different_arguments_do_not_wait(store: SyncStore) -> None:
    """Only callers with the same key wait for each other."""
    counter = Counter()
    slow = store.cached(SQUARE)(lambda n: counter.slow_square(n) if n == 3 else n * n)
    [thread] = threads_of(1, lambda: slow(3))
    assert counter.began.wait(30)
    assert slow(4) == 16
    counter.may_end.set()
    thread.join(30)
    assert counter.calls == [3]


def test_an_error_is_raised_to_all_callers_and_not_stored(store: SyncStore) -> None:
    """All waiting callers get it: a server that is down is called once, not by each in turn. The next call tries again."""
    counter, errors = Counter(), list[str]()

    @store.cached(SQUARE)
    def square(n: int) -> int:
        if counter.slow_square(n) and len(counter.calls) == 1:
            raise ConnectionError("down")
        return n * n

    def call() -> None:
        try:
            square(3)
        except ConnectionError as error:
            errors.append(str(error))

    threads = threads_of(5, call)
    assert counter.began.wait(30)
    asyncio.run(until(lambda: waiting(square) == 4))
    counter.may_end.set()
    for thread in threads:
        thread.join(30)
    assert (errors, counter.calls) == (["down"] * 5, [3])
    assert (square(3), counter.calls) == (9, [3, 3])


def test_if_the_computing_caller_is_cancelled_another_computes() -> None:
    """From the beginning; other callers are neither cancelled nor left waiting. A cancelled waiter cancels no other."""
    store, calls = Store(), list[int]()

    @store.cached(SQUARE)
    async def square(n: int) -> int:
        calls.append(n)
        if len(calls) == 1:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        return n * n

    async def main() -> None:
        first, second, *others = [asyncio.ensure_future(square(3)) for _ in range(5)]
        await until(lambda: waiting(square) == 4)
        second.cancel()
        first.cancel()
        assert await asyncio.gather(*others) == [9, 9, 9]
        assert first.cancelled()
        assert second.cancelled()
        assert waiting(square) == 0

    asyncio.run(main())
    assert calls == [3, 3]


def test_an_interrupt_ends_only_its_own_caller() -> None:
    """Ctrl-C in the computing caller: another one computes it."""
    store, counter, results = SyncStore(), Counter(), list[object]()

    @store.cached(SQUARE)
    def square(n: int) -> int:
        counter.slow_square(n)
        if len(counter.calls) == 1:
            raise KeyboardInterrupt
        return n * n

    def call() -> None:
        try:
            results.append(square(3))
        except KeyboardInterrupt:
            results.append("interrupted")

    threads = threads_of(3, call)
    assert counter.began.wait(30)
    asyncio.run(until(lambda: waiting(square) == 2))
    counter.may_end.set()
    for thread in threads:
        thread.join(30)
    assert sorted(map(str, results)) == ["9", "9", "interrupted"]
    assert counter.calls == [3, 3]


def test_a_loop_that_has_stopped_blocks_no_caller() -> None:
    """The next caller computes its value, and wakes the waiting callers too."""
    store, calls = Store(), list[int]()

    @store.cached(SQUARE)
    async def square(n: int) -> int:
        calls.append(n)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return n * n

    stopped = asyncio.new_event_loop()
    task = stopped.create_task(square(3))
    stopped.run_until_complete(until(lambda: calls))

    async def main() -> None:
        thread = threading.Thread(target=lambda: stopped.run_until_complete(until(lambda: waiting(square) == 1)))
        thread.start()
        await until(stopped.is_running)
        waits = asyncio.ensure_future(square(3))
        await asyncio.to_thread(thread.join)
        assert not waits.done()
        assert [await square(3), await waits] == [9, 9]

    asyncio.run(main())
    task.cancel()
    stopped.run_until_complete(asyncio.gather(task, return_exceptions=True))
    stopped.close()
    assert calls == [3, 3]


# ---------------------------------------------------------------- a store that is away
class AwayMemory(SlowMemory):
    """Raises the error for reads, or for writes, as a server that can't be reached."""

    failing: str = ""
    error: StoreError = StoreUnreachableError("away")
    tries = 0

    async def read(self, key: str) -> Entry | None:
        if self.failing == "read":
            self.tries += 1
            raise self.error
        return await super().read(key)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        if self.failing == "write":
            raise self.error
        return await super().write(changes, expect)


@pytest.mark.parametrize("failing", ["read", "write"])
def test_a_store_that_is_away_fails_no_cached_function(failing: str, caplog: pytest.LogCaptureFixture) -> None:
    """It computes, still once for all that wait, and waits for the store once; a warning comes once, until the store is back."""

    async def main() -> None:
        memory, calls = AwayMemory(), list[int]()
        async with Store(memory) as store:

            @store.cached(SQUARE)
            async def square(n: int) -> int:
                calls.append(n)
                await asyncio.sleep(0)
                return n * n

            memory.failing = failing
            assert await square(2) == 4
            assert memory.tries == (failing == "read")
            assert await asyncio.gather(*[square(3) for _ in range(5)]) == [9] * 5
            assert calls == [2, 3]
            assert failing == "write" or len(caplog.records) == 1
            memory.failing = ""
            assert [await square(3), await square(3), len(calls)] == [9, 9, 3]
            memory.failing = failing
            memory.error = StoreError("damaged")
            with pytest.raises(StoreError, match="damaged"):
                await square(4)

    asyncio.run(main())
    assert "a store is away: its cached functions compute each call until it is back" in caplog.text


def test_a_value_is_not_invalidated_silently_while_the_store_is_away() -> None:
    """The error is raised: otherwise the old value would come back with the store."""
    memory = AwayMemory()
    with SyncStore(memory) as store:

        @store.cached(SQUARE)
        def square(n: int) -> int:
            return n * n

        assert square(3) == 9
        memory.failing = "read"
        assert square(3) == 9
        with pytest.raises(StoreUnreachableError):
            square.invalidate(3)


# ---------------------------------------------------------------- invalidation
def test_a_result_that_is_invalidated_during_its_computation_is_not_stored() -> None:
    """Earlier callers get it; later callers don't wait for it, and it is never stored."""
    store, versions = Store(), ["old"]
    doors: dict[str, asyncio.Event] = {}

    @store.cached("page")
    async def page() -> str:
        version = versions[0]
        doors[version] = asyncio.Event()
        await doors[version].wait()
        return version

    async def main() -> None:
        before = asyncio.ensure_future(page())
        await until(lambda: "old" in doors)
        versions[0] = "new"
        assert not await page.invalidate()
        after = asyncio.ensure_future(page())
        await until(lambda: "new" in doors)
        doors["new"].set()
        assert await after == "new"
        doors["old"].set()
        assert await before == "old"
        assert await store.get("page") == await page() == "new"

    asyncio.run(main())


def test_a_result_that_is_invalidated_while_it_is_stored_is_removed() -> None:
    """Also if the invalidation finds nothing, and the value is stored after it."""

    class Late(SlowMemory):
        before: Any = None

        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
            before, self.before = self.before, None
            if before is not None:
                assert not await before()
            return await super().write(changes, expect)

    async def main() -> None:
        memory = Late()
        async with Store(memory) as store:

            @store.cached("page")
            async def page() -> str:
                return "old"

            memory.before = page.invalidate
            assert await page() == "old"
            assert not await store.has("page")

    asyncio.run(main())


@pytest.mark.parametrize("sets_first", [True, False])
def test_a_value_set_after_an_invalidation_stays(sets_first: bool) -> None:
    """The computation that was invalidated while its result was stored removes that result, and nothing else."""

    class Beside(SlowMemory):
        before: Any = None
        after: Any = None

        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
            before, after, self.before, self.after = self.before, self.after, None, None
            if before is not None:
                await before()
            try:
                return await super().write(changes, expect)
            finally:
                if after is not None:
                    await after()

    async def main() -> None:
        memory = Beside()
        async with Store(memory) as store:

            @store.cached("page")
            async def page() -> str:
                return "old"

            async def invalidate_and_set() -> None:
                await page.invalidate()
                await store.set("page", "new")

            if sets_first:
                memory.before = invalidate_and_set
            else:
                memory.after = invalidate_and_set
            assert await page() == "old"
            assert await store.get("page") == "new"

    asyncio.run(main())


def test_a_value_set_meanwhile_stays(store: SyncStore) -> None:
    """The computation does not overwrite a newer value."""

    @store.cached(SQUARE)
    def square(n: int) -> int:
        store.set(SQUARE(n), 1_000)
        return n * n

    assert (square(3), square(3)) == (9, 1_000)


# ---------------------------------------------------------------- recursive functions
def test_a_function_may_call_itself_with_other_arguments(store: SyncStore) -> None:
    """As a recursive function does; each value is computed once."""
    calls = []

    @store.cached("fib:{n}")
    def fib(n: int) -> int:
        calls.append(n)
        result: int = n if n < 2 else fib(n - 1) + fib(n - 2)
        return result

    assert fib(20) == 6765
    assert sorted(calls) == list(range(21))


def test_a_value_that_needs_itself_is_an_error() -> None:
    """In a task, in a thread, through another function, and in a circle of two callers: never an endless wait."""
    store = Store()

    @store.cached("a:{n}")
    async def even(n: int) -> int:
        await asyncio.sleep(0)
        return await odd(n)

    @store.cached("b:{n}")
    async def odd(n: int) -> int:
        await asyncio.sleep(0)
        return await even(n)

    @store.cached("c")
    def own() -> int:
        result: int = own()
        return result

    async def main() -> None:
        with pytest.raises(
            SyncError, match="'a:1' can't be computed: the cached function that computes it needs 'a:1' itself"
        ):
            await even(1)
        found = await asyncio.gather(even(2), odd(2), return_exceptions=True)
        assert [type(each) for each in found] == [SyncError, SyncError]

    asyncio.run(asyncio.wait_for(main(), 30))
    with pytest.raises(SyncError, match="'c' can't be computed"):
        own()


# ---------------------------------------------------------------- processes
@pytest.mark.crash
def test_a_cancelled_wait_hides_no_other_one() -> None:
    """Two calls within a computation wait for the same value, and one is cancelled: the circle is still found."""
    store = Store()

    async def main() -> None:
        needs_a, waits = asyncio.Event(), asyncio.Event()

        @store.cached("a")
        async def a() -> str:
            first, second = asyncio.ensure_future(b()), asyncio.ensure_future(b())
            for _ in range(10):
                await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait([first])
            waits.set()
            return await second

        @store.cached("b")
        async def b() -> str:
            await needs_a.wait()
            return await a()

        computing = [asyncio.ensure_future(b())]
        await asyncio.sleep(0)
        computing.append(asyncio.ensure_future(a()))
        await waits.wait()
        needs_a.set()
        found = await asyncio.gather(*computing, return_exceptions=True)
        assert [type(each) for each in found] == [SyncError, SyncError]

    asyncio.run(asyncio.wait_for(main(), 30))


def test_the_search_for_circles_is_fast() -> None:
    """Even if one value needs another in very many ways: 60 values that each need the previous two have 10 to the 12th."""
    store = Store()

    async def main() -> None:
        may_end = asyncio.Event()
        began: list[int] = []

        @store.cached("fib:{n}")
        async def fib(n: int) -> int:
            began.append(n)
            if n > 1:
                return sum(await asyncio.gather(fib(n - 1), fib(n - 2)))
            await may_end.wait()
            return n

        @store.cached("next:{n}")
        async def following(n: int) -> int:
            began.append(-n)
            return await fib(n) + 1

        first = asyncio.ensure_future(fib(60))
        await until(lambda: 0 in began and 1 in began)
        second = asyncio.ensure_future(following(60))
        await until(lambda: -60 in began)
        may_end.set()
        assert await asyncio.gather(first, second) == [1_548_008_755_920, 1_548_008_755_921]

    asyncio.run(main())


def test_a_forked_child_computes_for_itself() -> None:
    """The result of another thread of the parent is stored in the parent only."""
    counter = Counter()
    square = SyncStore().cached(SQUARE)(lambda n: counter.slow_square(n))
    [thread] = threads_of(1, lambda: square(3))
    assert counter.began.wait(30)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            counter.may_end.set()
            code = 0 if square(3) == 9 else 2
        finally:
            os._exit(code)
    counter.may_end.set()
    thread.join(30)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_processes_share_results(tmp_path: Path) -> None:
    """Another process that opens the file finds it."""
    url = f"sqlite:///{tmp_path}/state.db"
    counter = Counter()
    for _ in range(2):
        with SyncStore(url) as store:
            assert store.cached(SQUARE)(counter.square)(3) == 9
    assert counter.calls == [3]
