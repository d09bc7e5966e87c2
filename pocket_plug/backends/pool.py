"""A pool of connections, for backends over a network."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from pocket_plug.errors import StoreClosedError

C = TypeVar("C")


def closed() -> StoreClosedError:
    """The error that operations raise after `close`."""
    return StoreClosedError("the store is closed; open it again: with SyncStore(…), async with Store(…)")


class Pool(Generic[C]):
    """The connections of one event loop: at most `size`, each used by one operation at a time. The last used one is taken first.

    `connect` makes a connection, `is_usable` says whether the next operation may use it, and `end` closes it at once.

    A signal handler may raise between any two steps. So an operation that calls `take` calls `leave` in any case, and may call it
    again.
    """

    def __init__(
        self,
        size: int,
        connect: Callable[[], Awaitable[C]],
        is_usable: Callable[[C], bool],
        end: Callable[[C], object],
    ) -> None:
        self._size, self._connect, self._is_usable, self._end = size, connect, is_usable, end
        self._is_closed = False
        self._idle: list[C] = []
        self._used: dict[object, C | None] = {}  # by their users
        self._waiting: dict[object, asyncio.Future[None]] = {}
        self._left: asyncio.Future[None] | None = None  # done once no connection is in use
        self.losses = 0
        """Counts lost connections: after each of them the server may be another one, or have other settings."""

    @property
    def is_full(self) -> bool:
        """Does a new user have to wait?"""
        return bool(self._waiting) or len(self._used) >= self._size

    async def take(self, user: object) -> C:
        """A connection for `user`, until it calls `leave`. Those who wait for one get it in the order in which they came."""
        if self.is_full and not self._is_closed:
            turn = self._waiting[user] = asyncio.get_running_loop().create_future()
            await turn
        if self._is_closed:
            raise closed()
        self._used[user] = None
        while self._idle:
            connection = self._used[user] = self._idle[-1]
            self._idle.pop()
            if self._is_usable(connection):
                return connection
            self.losses += 1
            self._end(connection)
        connection = self._used[user] = await self._connect()
        return connection

    def leave(self, user: object, *, is_whole: bool = True) -> None:
        """Give the user's connection back, or end its wait for one. Unless it `is_whole` and usable, the connection is closed.

        `is_whole`: the server has answered all that was sent.
        """
        connection = self._used.get(user)
        if connection is not None and connection not in self._idle:
            if is_whole and not self._is_closed and self._is_usable(connection):
                self._idle.append(connection)
            else:
                self._end(connection)
        self._used.pop(user, None)
        self._waiting.pop(user, None)
        while self._waiting and len(self._used) < self._size:
            first = next(iter(self._waiting))
            turn = self._waiting.pop(first)
            if not turn.done():
                self._used[first] = None
                turn.set_result(None)
        if self._left is not None and not self._used and not self._left.done():
            self._left.set_result(None)

    def forget(self) -> None:
        """Close the connections that nobody uses: their server may be gone, or no longer the right one."""
        self.losses += 1
        while self._idle:
            self._end(self._idle.pop())

    async def close(self, patience: float) -> None:
        """Refuse those who wait, let running operations end for `patience` seconds at most, and close all connections."""
        self._is_closed = True
        while self._waiting:
            _, turn = self._waiting.popitem()
            if not turn.done():
                turn.set_exception(closed())
        if self._used:
            self._left = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._left}, timeout=patience)
        while self._used:
            _, connection = self._used.popitem()
            if connection is not None:
                self._end(connection)
        self.forget()
