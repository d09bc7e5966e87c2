"""The timeout layer: no operation takes longer than its limit, and no error claims that a write was not done."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pocket_plug import (
    AnswerLostError,
    ConfigError,
    Entry,
    Graph,
    Memory,
    Put,
    Store,
    StoreError,
    StoreTimeoutError,
    SyncStore,
    node,
)
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.layers import Persistence, Timeout
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change
from pocket_plug.store.layer import Layer
from pocket_plug.testing.clock import FakeClock, run_virtual
from pocket_plug.testing.layer_contract import FaultyMemory, LayerContract


class TestTimeout(LayerContract):
    def recipe(self) -> Layer:
        return Timeout(read_within="1h", write_within="1h", page_within="1h")


class Slow(Memory):
    """Takes some seconds before each operation, and some after each write, which is then done."""

    inline_read = inline_write = False
    needs_loop = True

    def __init__(self, before: float = 10, after: float = 0, shields: bool = False) -> None:
        super().__init__()
        self.before, self.after, self.shields = before, after, shields
        self.said: list[str] = []

    async def _wait(self, what: str) -> None:
        try:
            await asyncio.sleep(self.before)
        except asyncio.CancelledError:
            self.said.append(f"{what} cancelled")
            raise

    async def read(self, key: str) -> Entry | None:
        await self._wait("read")
        return await super().read(key)

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        await self._wait("read")
        return await super().read_many(keys)

    async def version(self) -> int:
        await self._wait("read")
        return await super().version()

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        await self._wait("write")
        version = await super().write(changes, expect)
        waiting = asyncio.ensure_future(asyncio.sleep(self.after))
        cancelled: asyncio.CancelledError | None = None
        while not waiting.done():  # done, so its outcome is awaited, as `Backend.write` requires
            try:
                await asyncio.shield(waiting)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        return version

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        async for key in super().scan(prefix, after=after, reverse=reverse, limit=limit):
            await self._wait("scan")
            yield key


def built(inner: Backend, **limits: Any) -> Backend:
    return Timeout(**limits).build(inner)


def elapsed(main: Coroutine[Any, Any, object]) -> float:
    """Run it in virtual time; returns the seconds that it took."""
    clock = FakeClock()
    run_virtual(main, clock)
    return clock.elapsed


# ---------------------------------------------------------------- reads
@pytest.mark.parametrize(
    ("read", "what"),
    [
        (lambda layer: layer.read("a"), "reading 'a'"),
        (lambda layer: layer.read_many("abcde"), "reading 'a', 'b', 'c' and 2 more"),
        (lambda layer: layer.version(), "reading the last version"),
    ],
    ids=["read", "read_many", "version"],
)
def test_a_read_that_takes_too_long_is_cancelled(
    read: Callable[[Backend], Coroutine[Any, Any, object]], what: str
) -> None:
    """An error that says what, how long and what to do: never an answer that looks like a missing entry."""
    inner = Slow(10)

    async def main() -> None:
        with pytest.raises(StoreTimeoutError, match=rf"{what} took longer than 2.5 s.*read_within.*over memory"):
            await read(built(inner, read_within=2.5))

    assert elapsed(main()) == pytest.approx(2.5)
    assert inner.said == ["read cancelled"]


def test_what_is_within_the_limit_is_unchanged() -> None:
    """A read has its entry; the inner one's own timeouts are raised, also by writes and by checks of versions."""

    class Own(Slow):
        async def read(self, key: str) -> Entry | None:
            raise TimeoutError("of the socket")

        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
            raise TimeoutError("of the socket")

    async def main() -> None:
        inner = Slow(2)
        layer = built(inner, read_within=3)
        await layer.write([Put("a", 1)])
        assert await layer.read("a") == Entry(1, 1)
        own = built(Own(), read_within=3, write_within=3)
        for operation in (own.read("a"), own.write([Put("a", 1)]), own.write((), {"a": 0})):
            with pytest.raises(TimeoutError, match="of the socket") as caught:
                await operation
            assert not isinstance(caught.value, StoreError)

    run_virtual(main())


def test_a_cancelled_read_raises_only_the_cancellation() -> None:
    """The layer's error is for its own limit only."""

    async def main() -> None:
        reading = asyncio.ensure_future(built(Slow(10), read_within=5).read("a"))
        await asyncio.sleep(1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    assert elapsed(main()) == pytest.approx(1)


def test_the_limit_of_a_scan_is_for_each_entry() -> None:
    """A long scan may take longer in total; its reader may take any time."""

    async def main() -> None:
        inner = Slow(0)
        await inner.write([Put(key, 1) for key in "abc"])
        inner.before = 2
        found = []
        async for key in built(inner, page_within=3).scan():
            found.append(key)
            await asyncio.sleep(100)
        assert found == ["a", "b", "c"]
        inner.before = 4
        with pytest.raises(StoreTimeoutError, match=r"scanning 'a' took longer than 3 s.*page_within"):
            [key async for key in built(inner, page_within=3).scan("a")]

    assert elapsed(main()) == pytest.approx(2 * 3 + 300 + 3)


# ---------------------------------------------------------------- writes
@pytest.mark.parametrize(("before", "after", "lands"), [(10, 0, False), (0, 10, True), (1, 10, True)])
def test_a_write_that_takes_too_long_has_an_unknown_outcome(before: float, after: float, lands: bool) -> None:
    """The error says so, whether the write was withdrawn or done; and it doesn't wait if the write can't be withdrawn."""
    inner = Slow(before, after)

    async def main() -> None:
        layer = built(inner, write_within=3)
        with pytest.raises(
            AnswerLostError, match=r"writing 'a' took longer than 3 s.*may have been stored, or may still be. Read"
        ):
            await layer.write([Put("a", 1)])
        assert asyncio.get_running_loop().time() == pytest.approx(3)
        await asyncio.sleep(20)
        assert (await Memory.read(inner, "a") is not None) is lands

    run_virtual(main())


def test_the_error_of_a_late_write_is_not_reported_by_asyncio() -> None:
    """Its outcome was reported as unknown; asyncio doesn't complain about it."""

    class Fails(Slow):
        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
            waiting = asyncio.ensure_future(asyncio.sleep(10))
            while not waiting.done():
                try:
                    await asyncio.shield(waiting)
                except asyncio.CancelledError:
                    continue
            raise StoreError("too late")

    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        layer = built(Fails(), write_within=3)
        with pytest.raises(AnswerLostError):
            await layer.write([Put("a", 1)])
        await asyncio.sleep(20)

    run_virtual(main())
    assert complaints == []


def test_a_check_of_versions_is_no_write() -> None:
    """Nothing can have been written, so the error is that of a read."""

    async def main() -> None:
        with pytest.raises(StoreTimeoutError, match="checking the version of 'a' took longer than 3 s"):
            await built(Slow(10), write_within=3).write((), {"a": 0})

    run_virtual(main())


@pytest.mark.parametrize(("before", "after", "seconds"), [(10, 0, 1), (0, 10, 10)])
def test_a_write_that_its_caller_cancels_is_awaited_to_its_outcome(before: float, after: float, seconds: float) -> None:
    """Withdrawn at once if nothing was done; otherwise it is never done after the caller got the cancellation."""
    inner = Slow(before, after)

    async def main() -> None:
        writing = asyncio.ensure_future(built(inner, write_within=5).write([Put("a", 1)]))
        await asyncio.sleep(1)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing

    assert elapsed(main()) == pytest.approx(seconds)


def test_the_error_of_a_cancelled_write_is_not_reported_by_asyncio(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio would log it as never retrieved."""

    class Failing(Slow):
        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
            try:
                return await super().write(changes, expect)
            except asyncio.CancelledError:
                raise StoreError("the connection was lost while it was withdrawn") from None

    async def main() -> None:
        writing = asyncio.ensure_future(built(Failing(10, 0), write_within=5).write([Put("a", 1)]))
        await asyncio.sleep(1)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        del writing
        gc.collect()

    run_virtual(main())
    assert caplog.messages == []


@node
async def count(number: int) -> int:
    return number + 1


def test_a_durable_run_finds_out_the_outcome_of_a_slow_write(tmp_path: Path) -> None:
    """The run's write is done, but its answer comes too late: the run reads the store, and continues."""

    class Late(Layer):
        """Once, the answer to a write comes too late."""

        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
            version = await self.inner.write(changes, expect)
            written.append(version)
            if len(written) == 2:  # the first one is the run's start
                await asyncio.sleep(100)
            return version

    written: list[int] = []

    async def main() -> None:
        url = f"sqlite:///{tmp_path}/state.db?durability=process"  # it writes in place: no thread that virtual time overtakes
        async with Store(url, layers=[Timeout(write_within=5), Late()]) as store:
            assert await Graph(count >> count.with_options(name="again"), store=store, name="g").run(1, run_id="r") == 3
        assert len(written) > 2

    assert elapsed(main()) == pytest.approx(5)


# ---------------------------------------------------------------- operations that can't be interrupted
def test_over_memory_it_costs_nothing() -> None:
    """Memory waits for nothing, so a configuration may use the layer there too: operations go straight through."""
    inner = Memory()
    layer = built(inner, read_within=1, write_within=1, page_within=1)
    assert (layer.inline_read, layer.inline_write, layer.needs_loop) == (True, True, False)
    for operation in ("read", "read_many", "write", "scan", "version"):
        assert getattr(layer, operation) == getattr(inner, operation)


def test_over_a_file_a_limit_that_can_not_be_kept_is_refused(tmp_path: Path) -> None:
    """SQLite reads in place; only a write that another thread commits can be abandoned."""
    for limit in ({"read_within": 1}, {"page_within": 1}):
        with pytest.raises(
            ConfigError, match=f"{next(iter(limit))} over SQLite.*can't be enforced.*nothing can interrupt it"
        ):
            built(SQLite(tmp_path / "state.db"), **limit)
    assert built(SQLite(tmp_path / "state.db"), write_within=1).inline_read
    with pytest.raises(ConfigError, match="timeout has no limit"):
        built(Memory())
    with pytest.raises(ConfigError, match="timeout: read_within can't be 0"):
        built(Memory(), read_within=0)


def test_sync_callers_are_limited_too(tmp_path: Path) -> None:
    """Over a backend that suspends, and over SQLite's writer thread."""
    with SyncStore(FaultyMemory(), layers=[Timeout(read_within=30, write_within=30, page_within=30)]) as store:
        store.set("a", 1)
        assert (store.get("a"), list(store.keys())) == (1, ["a"])
    with SyncStore(f"sqlite:///{tmp_path}/state.db", layers=[Timeout(write_within=30)]) as store:
        assert store.update("a", lambda value: value + 1, default=0) == 1
    with SyncStore(Slow(3600), layers=[Timeout(read_within="1ms")]) as store, pytest.raises(StoreTimeoutError):
        store.get("a")


def test_around_persistence_the_durable_tier_is_limited() -> None:
    """The cache inside is inline, the durable tier isn't."""

    async def main() -> None:
        store = Store(layers=[Timeout(read_within=3), Persistence(to=Slow(10))])
        with pytest.raises(StoreTimeoutError):
            await store.get("a")

    run_virtual(main())
