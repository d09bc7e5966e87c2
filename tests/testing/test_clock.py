"""Virtual time: exact, with one clock, and compatible with threads."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pocket_plug import Store
from pocket_plug.testing.clock import FakeClock, run_virtual


def test_a_clock_moves_only_when_told() -> None:
    """And never backwards."""
    clock = FakeClock(start=100)
    assert (clock(), clock.elapsed) == (100, 0)
    clock.advance(2.5)
    clock.advance(0)
    assert (clock(), clock.elapsed) == (102.5, 2.5)
    with pytest.raises(ValueError, match="-1"):
        clock.advance(-1)
    assert clock() == 102.5


def test_sleeping_takes_no_time_and_is_exact() -> None:
    """Timers fire in their order, each at its exact time, from microseconds to years."""
    clock = FakeClock()
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append(clock.elapsed)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for seconds in (86_400 * 400, 0.1, 3, 1e-6, 0.3):
                group.create_task(sleeper(seconds))

    run_virtual(main(), clock)
    assert woken == pytest.approx([1e-6, 0.1, 0.3, 3, 86_400 * 400])


def test_deadlines_are_kept_in_virtual_time() -> None:
    """`asyncio.timeout` and `wait_for` end at their time; work that is done before is not interrupted."""
    clock = FakeClock()

    async def main() -> None:
        async with asyncio.timeout(10):
            await asyncio.sleep(9)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(100), 7)
        assert clock.elapsed == pytest.approx(16)

    run_virtual(main(), clock)


def test_a_store_and_the_loop_share_the_time() -> None:
    """A ttl expires while a task sleeps, and `advance` during a run wakes sleepers whose time has come."""
    clock = FakeClock()

    async def main() -> None:
        store = Store(clock=clock)
        await store.set("short", 1, ttl=60)
        await asyncio.sleep(59)
        assert await store.has("short")
        await asyncio.sleep(1)
        assert not await store.has("short")
        sleeping = asyncio.create_task(asyncio.sleep(1_000, "woken"))
        await asyncio.sleep(0)
        clock.advance(1_000)
        assert await sleeping == "woken"
        assert clock.elapsed == pytest.approx(1_060)

    run_virtual(main(), clock)


def test_without_a_timer_a_thread_is_waited_for() -> None:
    """If there is no timer to jump to, the loop waits as usual, and the time doesn't move."""
    clock = FakeClock()

    async def main() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        threading.Thread(target=loop.call_soon_threadsafe, args=(done.set,)).start()
        await done.wait()

    run_virtual(main(), clock)
    assert clock.elapsed == 0


def test_errors_and_results_come_out() -> None:
    """As with `asyncio.run`."""

    async def fails() -> None:
        raise ValueError("inside")

    assert run_virtual(asyncio.sleep(1, "result")) == "result"
    with pytest.raises(ValueError, match="inside"):
        run_virtual(fails())
