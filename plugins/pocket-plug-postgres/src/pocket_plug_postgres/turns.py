"""A turn: a transaction that holds the locks of some keys for one caller, from before it reads until it has written.

Other callers that want a turn, and other writes of these keys, wait for the locks in the server's queue, in the order in
which they came; reads don't wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import TracebackType

import psycopg

from pocket_plug.backends.network import Attempt, Retrying
from pocket_plug.backends.pool import Pool

from .link import Link

LONGEST_TURN = 1.0
"""Seconds from the start of a turn until its write has to begin. After that the server ends the connection."""

_BEGIN = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = {milliseconds}; {locks}"
_SHARED, _EXCLUSIVE = "SELECT pg_advisory_xact_lock_shared({lock})", "SELECT pg_advisory_xact_lock({lock})"


class Turn:
    """A context for `async with`. The next write to the data set in its block is part of the turn's transaction, and ends it."""

    def __init__(
        self,
        pool: Callable[[], Pool[Link]],
        locks: Iterable[int],
        retrying: Retrying,
        explaining: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """`locks` are in the order that all callers use; odd ones are exclusive. `explaining` translates psycopg's errors."""
        self._find_pool, self._retrying, self._explaining = pool, retrying, explaining
        each = "; ".join((_EXCLUSIVE if lock & 1 else _SHARED).format(lock=lock & ~1) for lock in locks)
        self._begin_sql = _BEGIN.format(milliseconds=int(1000 * LONGEST_TURN), locks=each)
        self._pool: Pool[Link] | None = None
        self._link: Link | None = None
        self._before = had.get()

    async def __aenter__(self) -> None:
        try:
            self._link = await self._retrying(self._begin)
            had.set(self)
        except BaseException:
            self._leave()
            raise

    async def _begin(self, attempt: Attempt) -> Link:
        pool = self._pool = self._find_pool()
        try:
            with self._explaining():
                link = await pool.take(self)
                attempt.cut = link.close
                await link.script(self._begin_sql)
                return link
        except BaseException:
            pool.leave(self)
            raise

    def use(self, pool: Pool[Link]) -> Link | None:
        """The turn's connection, for a write on the pool's loop. None if it was used already, or was lost."""
        if pool is not self._pool:
            return None
        link, self._link = self._link, None
        return link if link is not None and link.is_open else None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._link is not None and self._link.is_open:
                await self._link.script("ROLLBACK")
        except psycopg.Error:
            pass  # the connection is lost, and the turn with it
        finally:
            try:
                self._leave()
            except BaseException:  # interrupted
                self._leave()
                raise

    def _leave(self) -> None:
        """Give the connection back to the pool, which closes it if it isn't idle. Can be called again."""
        had.set(self._before)
        if self._pool is not None:
            self._pool.leave(self)


had: ContextVar[Turn | None] = ContextVar("pocket_plug_postgres.turn", default=None)
"""The turn that the current call is in."""
