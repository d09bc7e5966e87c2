"""The pool of connections that backends over a network share: who gets one, when it is closed, and what an interrupt leaves."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pocket_plug.backends.pool import Pool
from pocket_plug.errors import StoreClosedError


class Line:
    """A connection."""

    def __init__(self) -> None:
        self.is_usable = True
        self.ends = 0

    def end(self) -> None:
        self.ends += 1
        self.is_usable = False


def run(use: Callable[[Pool[Line], list[Line]], Awaitable[object]], size: int = 1) -> None:
    """Call `use` with a pool, and the list of all connections that it makes."""
    made: list[Line] = []

    async def connect() -> Line:
        made.append(Line())
        return made[-1]

    async def main() -> None:
        await use(Pool(size, connect, lambda line: line.is_usable, Line.end), made)

    asyncio.run(main())


def test_a_connection_is_used_again_unless_it_is_half_read_or_lost() -> None:
    """The one that was used last comes first; losses are counted."""

    async def use(pool: Pool[Line], made: list[Line]) -> None:
        one, other = await pool.take("one"), await pool.take("other")
        pool.leave("one")
        pool.leave("other")
        assert await pool.take("again") is other
        pool.leave("again", is_whole=False)
        assert (other.ends, pool.losses) == (1, 0)
        one.is_usable = False
        assert await pool.take("new") not in (one, other)
        assert (one.ends, pool.losses, len(made)) == (1, 1, 3)

    run(use, 2)


def test_those_who_wait_are_admitted_in_order_and_nobody_overtakes_them() -> None:
    """Also if one of them gives up, or is interrupted without being cancelled."""

    async def use(pool: Pool[Line], made: list[Line]) -> None:
        came: list[str] = []

        async def wait(user: str) -> None:
            try:
                await pool.take(user)
                came.append(user)
                await asyncio.sleep(0)
            finally:
                pool.leave(user)

        await pool.take("first")
        waiting = [asyncio.ensure_future(wait(user)) for user in "abc"]
        await asyncio.sleep(0)
        waiting[1].cancel()
        interrupted = pool.take("interrupted")
        interrupted.send(None)  # it waits
        with pytest.raises(KeyboardInterrupt):
            interrupted.throw(KeyboardInterrupt)
        pool.leave("interrupted")
        pool.leave("first")
        assert pool.is_full
        await asyncio.gather(*waiting, wait("late"), return_exceptions=True)
        assert came == ["a", "c", "late"]
        assert not pool.is_full
        assert len(made) == 1

    run(use)


def test_after_an_interrupt_a_connection_is_neither_lost_nor_used_twice() -> None:
    """`leave` can be called again, and before its connection was removed from the idle ones."""

    async def use(pool: Pool[Line], made: list[Line]) -> None:
        line = await pool.take("one")
        pool.leave("one")
        pool.leave("one")
        pool._used["interrupted"] = line  # just before it is removed from the idle ones
        pool.leave("interrupted")
        assert await pool.take("one") is line
        assert await pool.take("other") is not line
        assert [each.ends for each in made] == [0, 0]

    run(use, 2)


def test_a_closed_pool_keeps_no_connection() -> None:
    """Those who wait are refused, a user who takes long loses its connection, and who leaves later changes nothing."""

    async def use(pool: Pool[Line], made: list[Line]) -> None:
        await pool.take("soon")
        await pool.take("long")
        waiting = asyncio.ensure_future(pool.take("waiting"))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(pool.close(0.01))
        await asyncio.sleep(0)
        pool.leave("soon")
        await closing
        pool.leave("long")
        for refused in (waiting, pool.take("late")):
            with pytest.raises(StoreClosedError, match="open it again"):
                await refused
        assert [each.ends for each in made] == [1, 1]

    run(use, 2)
