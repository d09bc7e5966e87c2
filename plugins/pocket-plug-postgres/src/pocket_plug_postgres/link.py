"""A connection, `Link`, which runs one statement at a time.

psycopg connects; after that this module calls libpq directly, through `psycopg.pq`. So no statement is parsed or adapted
here, the socket may be closed at any moment, and a message of the server (that it is shut down, say) is read when it
arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import AsyncConnection
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, Format, PipelineStatus, TransactionStatus

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

Row = list[bytes | None]

_FAILED = (ExecStatus.FATAL_ERROR, ExecStatus.BAD_RESPONSE)


class ConnectionLostError(Exception):
    """The connection was lost or can't be made, or the server's error passes by itself. `Retrying` tries again."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement, prepared on each connection that runs it."""

    name: bytes
    sql: bytes
    formats: list[Format]

    @classmethod
    def of(cls, name: str, sql: str) -> Statement:
        """A statement with parameters $1 to $n, all in the binary format."""
        count = next(n for n in range(100) if f"${n + 1}" not in sql)
        return cls(f"pocket_plug_{name}".encode(), sql.encode(), [Format.BINARY] * count)


class Link:
    """One connection, on one event loop."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection  # kept, since psycopg warns when an open one is collected
        self.pgconn = connection.pgconn
        self._socket = self.pgconn.socket
        self._loop = asyncio.get_running_loop()
        self._prepared: set[bytes] = set()
        self._answer: asyncio.Future[list[PGresult]] | None = None
        self._results: list[PGresult] = []
        self.is_open = True
        self.pgconn.nonblocking = 1
        self._loop.add_reader(self._socket, self._ready)

    @property
    def is_idle(self) -> bool:
        """Can another statement be run on it, in a transaction of its own?"""
        return self.is_open and self._answer is None and self.pgconn.transaction_status == TransactionStatus.IDLE

    @property
    def is_new(self) -> bool:
        """Has it prepared no statement yet?"""
        return not self._prepared

    async def run(self, statement: Statement, parameters: list[bytes | None], *, commits: bool = False) -> list[Row]:
        """Run a statement, and prepare it first if it is new here. If `commits`, send a COMMIT after it in the same round trip.

        Raises psycopg's errors. If it is interrupted, the connection can't be used any more.
        """
        pgconn = self.pgconn
        name, formats = statement.name, statement.formats
        if name not in self._prepared:
            await self._sent(lambda: pgconn.send_prepare(name, statement.sql))
            self._prepared.add(name)

        def send() -> None:
            if commits:
                pgconn.enter_pipeline_mode()
            pgconn.send_query_prepared(name, parameters, formats, result_format=Format.BINARY)
            if commits:
                pgconn.send_query_params(b"COMMIT", None)
                pgconn.pipeline_sync()

        result, *_ = await self._sent(send)
        if commits:
            pgconn.exit_pipeline_mode()
        get = result.get_value
        columns = range(result.nfields)
        return [[get(row, column) for column in columns] for row in range(result.ntuples)]

    async def script(self, sql: str) -> list[list[str]]:
        """Run statements without parameters in one round trip, as one transaction unless they contain BEGIN or COMMIT. Returns
        the rows of the last query among them, as text."""
        results = await self._sent(lambda: self.pgconn.send_query(sql.encode()))
        *_, last = [result for result in results if result.nfields] or results
        return [
            [(last.get_value(row, column) or b"").decode() for column in range(last.nfields)]
            for row in range(last.ntuples)
        ]

    async def _sent(self, send: Callable[[], None]) -> list[PGresult]:
        answer: asyncio.Future[list[PGresult]] = self._loop.create_future()
        self._answer = answer
        self._results = []
        send()
        self._flush()
        results = await answer
        self._answer = None
        failure = _failure(results)
        if failure is not None:
            raise failure
        return results

    def _flush(self) -> None:
        if not self.is_open:
            return
        try:
            if self.pgconn.flush():
                self._loop.add_writer(self._socket, self._flush)
            else:
                self._loop.remove_writer(self._socket)
        except psycopg.Error as error:
            self._lose(error)

    def _ready(self) -> None:
        """Read from the socket. Called when it is readable."""
        pgconn = self.pgconn
        try:
            pgconn.consume_input()
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is not None and result.status != ExecStatus.PIPELINE_SYNC:
                    self._results.append(result)
                elif result is not None or pgconn.pipeline_status == PipelineStatus.OFF:
                    break
            else:
                return
            while pgconn.notifies():
                pass
            if pgconn.status != ConnStatus.OK:
                raise psycopg.OperationalError(pgconn.get_error_message())
        except psycopg.Error as error:
            self._lose(error)
            return
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(self._results)

    def _lose(self, error: psycopg.Error) -> None:
        """Close a lost connection. The server's last error, if there is one, says more than that the connection was lost."""
        error = _failure(self._results) or error
        answer = self._answer
        self.close()
        if answer is not None and not answer.done():
            answer.set_exception(error)

    def close(self) -> None:
        """Close the socket at once; a caller that waits for an answer is not woken. Can be called again."""
        if not self.is_open:
            return
        self.is_open = False
        self._loop.remove_writer(self._socket)
        self._loop.remove_reader(self._socket)
        self.pgconn.finish()


def _failure(results: Iterable[PGresult]) -> psycopg.Error | None:
    """The server's error for the last statement that failed."""
    failed = [result for result in results if result.status in _FAILED]
    return error_from_result(failed[-1]) if failed else None


async def connected(conninfo: str) -> Link:
    """A new connection. Raises psycopg's errors."""
    return Link(await AsyncConnection.connect(conninfo, autocommit=True))
