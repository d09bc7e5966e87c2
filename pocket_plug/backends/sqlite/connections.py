"""The connections to one file: any number that read, and the one that writes, opened when needed and closed before a fork.

SQLite's locks belong to a process, and in a forked child its library believes that it holds its parent's. So no connection may be
open at a fork.
"""

from __future__ import annotations

import atexit
import os
import sqlite3
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from random import uniform
from time import monotonic
from typing import Any

from pocket_plug.codec import default_codec
from pocket_plug.primitives.forking import Rested, Taken, is_under_way, new_rlock, release, take, wait_for_fork
from pocket_plug.primitives.locks import RLock, in_the_middle, is_held_here

from .opened import OpenedFile
from .refusals import REFUSALS, explained, is_busy
from .schema import open_logs, prepare

LONGEST_PAUSE = 0.01
"""The most seconds between two tries to lock a file that another process has locked: random, so that no process is preferred.
The pauses of SQLite's own busy handler grow to 100 ms: a process that writes without a break has locked it again by then."""

_left_alone: list[_Connection] = []
"""In a forked child: connections that the parent used at the fork. Closing them here could release the parent's locks."""


class _Connection(sqlite3.Connection):
    """A connection that can be referred to weakly and knows whether it is open.

    It is made by its class, here and elsewhere in pocket_plug, and not by `sqlite3.connect`. OpenTelemetry's instrumentation of
    sqlite3 replaces that function: each statement of the writer thread would be a trace of its own, beside the span of the
    store's operation, and `backup` refuses the objects that it returns.
    """

    is_open = True
    """Until the file's locks are released. sqlite3 itself calls a connection closed while another thread is still closing it."""

    is_closing = False
    """True from the beginning of its close: SQLite may be removing the log with it."""

    def close(self) -> None:
        self.is_closing = True
        try:
            sqlite3.Connection.close(self)  # after the call of `super()`, an interrupt might come before the close
        finally:  # also if an interrupt comes just after it
            self.is_open = False


class Connections:
    """The connections of one backend. `timeout`: how many seconds a write waits for another process that is writing."""

    def __init__(self, file: OpenedFile, timeout: float) -> None:
        self.file = file
        self.timeout = timeout
        self.writer: sqlite3.Cursor | None = None
        """The cursor that writes, to be used with `writing` held; None after a fork too, until it is needed (`begun`)."""
        self._readers: list[sqlite3.Cursor] = []  # not in use now, each with a connection of its own
        self._all: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._begin_locks()

    def _begin_locks(self) -> None:
        self.writing = RLock()
        """Held while the writer is used. Reentrant only so that a thread can ask whether it holds it: see `refuse_in_between`."""
        self.lock = new_rlock()
        """Held while a connection is opened, so that no fork comes in between. Reentrant: garbage collection may withdraw one."""

    def refuse_in_between(self) -> None:
        """Raise StoreError if this interrupts an operation of its own thread: it would wait for itself, or join in a write."""
        if is_held_here(self.writing) or is_held_here(self.lock):
            raise in_the_middle(f"an operation of {self.file.path}", "write there or close it")

    def explained(self, error: Exception) -> Exception:
        """An error of SQLite, as our own exception that names the file and the way out."""
        return explained(error, self.file.path, self.timeout)

    # ------------------------------------------------------------ opening and closing
    def open(self) -> None:
        """Open the writer, and with it the file. Raises StoreError for a file that we can't use."""
        deadline = monotonic() + self.timeout
        while True:
            connection = self.connected()
            try:
                prepare(connection, self.file.path, self.file.power)
                break
            except REFUSALS as error:
                abandon(connection)
                # Of two processes that turn on WAL at once, SQLite refuses one without waiting.
                if not is_busy(error) or monotonic() >= deadline:
                    raise self.explained(error) from error
                time.sleep(0.005)  # some milliseconds, once in a file's life
            except BaseException:
                abandon(connection)
                raise
        try:
            self.file.know()
            self.writer = connection.cursor()
            self.file.is_open = True
        except BaseException:
            abandon(connection)
            raise
        _opened[self] = os.getpid()

    def connected(self) -> sqlite3.Connection:
        """A new connection; waits for a fork that is under way. The caller must hold no lock."""
        while True:
            with self.lock:
                if not is_under_way():
                    return self._connect()
            wait_for_fork()

    def _connect(self) -> sqlite3.Connection:
        """The same for a caller that holds the lock and has checked that no fork is under way."""
        self.file.check_connectable()
        # With its last connection SQLite removes the log: if an error closes the only reader since a fork, for example.
        if all(connection.is_closing for connection in self._all):
            self.file.drop_logs()
        try:
            connection = _Connection(
                f"{self.file.absolute.as_uri()}?mode=rw",
                uri=True,
                timeout=self.timeout,
                isolation_level=None,
                check_same_thread=False,  # used by one thread at a time, but not always by the same
            )
        except REFUSALS as error:
            raise self.explained(error) from error
        self._all.add(connection)
        # rows as large as the codec allows, with some room for the key
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, default_codec.max_bytes + 1024 * 1024)
        return connection

    def close(self) -> None:
        """Close all connections, and unlock the file. Can be called again if it was interrupted."""
        self._close_readers()
        with self.writing:
            self._close_writer()
            self.file.drop_logs()
            self.file.disown()

    def _close_readers(self) -> None:
        while self._readers:
            try:
                cursor = self._readers.pop()
            except IndexError:  # another thread has just taken the last one, and will close it
                return
            try:
                _close(cursor)
            except BaseException:  # interrupted: its traceback would keep the connection open
                _close(cursor)
                raise

    def _close_writer(self) -> None:
        if self.writer is None:
            return
        try:
            _close(self.writer)
        except BaseException:  # interrupted: another thread must not find it half closed
            _close(self.writer)
            raise
        finally:
            self.writer = None

    # ------------------------------------------------------------ forks of this process
    def rest(self) -> Rested:
        """Before a fork: close every connection that is not in use. Returns True if none was in use, and "never" if only the
        writer is, by the thread that forks: a signal's handler forks in the middle of a write.
        """
        held: Taken = []
        try:
            take((self.lock,), held)
            if not held:
                return False
            self._close_readers()
            is_interrupted = is_held_here(self.writing)
            if not is_interrupted:
                take((self.writing,), held)
            if len(held) == 2:
                self._close_writer()
            in_use = self._in_use()
            if not in_use:
                self.file.drop_logs()
                return True
            own = self.writer.connection if is_interrupted and self.writer is not None else None
            # any other thread that is within SQLite may hold a lock of its library
            return "never" if in_use == [own] else False
        finally:
            try:
                release(held)
            except BaseException:  # interrupted
                release(held)
                raise

    def _in_use(self) -> list[_Connection]:
        return [connection for connection in self._all if connection.is_open]

    def begin_anew(self) -> None:
        """After a fork, in the child: new locks, no connections. Connections that were in use are never used here."""
        if in_use := self._in_use():
            _left_alone.extend(in_use)
            self.file.forbid()
        self._begin_locks()
        self._readers, self.writer = [], None
        self.file.leave()

    # ------------------------------------------------------------ reading
    def rows(self, statement: str, parameters: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """The rows of a statement for each of its parameters in turn, all as of one moment."""
        file = self.file
        if monotonic() >= file.look_next:
            file.look()
        cursor: sqlite3.Cursor | None
        try:
            cursor = self._readers.pop()
        except IndexError:
            cursor = None
        if cursor is None:  # outside of `except`: an error there would show the IndexError as its context
            cursor = self._reader()
        try:
            if len(parameters) == 1:
                rows = cursor.execute(statement, parameters[0]).fetchall()
            else:
                cursor.execute("BEGIN")
                rows = [row for each in parameters for row in cursor.execute(statement, each).fetchall()]
                roll_back(cursor)
        except BaseException as error:
            _close(cursor)  # an interrupted one might show the file as of that moment for ever
            if isinstance(error, REFUSALS):
                raise self.explained(error) from error
            raise
        self._readers.append(cursor)
        if not file.is_open or is_under_way():  # a fork waits for it, and this thread might use it again at once
            self._close_readers()
        return rows

    def _reader(self) -> sqlite3.Cursor:
        if not self.file.is_open:
            raise self.file.not_open()
        connection = self.connected()
        try:
            connection.execute("PRAGMA query_only = 1")
            open_logs(connection)
            self.file.know_logs()
        except BaseException as error:
            connection.close()
            if isinstance(error, REFUSALS):
                raise self.explained(error) from error
            raise
        return connection.cursor()

    # ------------------------------------------------------------ writing
    def begun(self) -> sqlite3.Cursor | None:
        """The writer, in a transaction; None if this process is about to be forked: a fork doesn't wait for other processes.

        For the writer thread, which holds `writing`: it waits `timeout` for other processes. Raises sqlite3.Error or StoreError.
        """
        writer = self.writer
        if writer is None:  # since a fork
            with self.lock:
                if is_under_way():
                    return None
                connection = self._connect()
            try:
                prepare(connection, self.file.path, self.file.power)
                self.file.know_logs()
            except BaseException:
                connection.close()
                raise
            writer = self.writer = connection.cursor()
        deadline = monotonic() + self.timeout
        while True:
            is_last = monotonic() >= deadline
            try:
                begin(writer)
            except REFUSALS as error:
                if not is_busy(error) or is_last:
                    raise
            else:
                return writer
            if is_under_way():
                return None
            time.sleep(uniform(0, LONGEST_PAUSE))  # noqa: S311 - no secret


def begin(cursor: sqlite3.Cursor) -> None:
    """Begin a transaction that writes, without waiting for others."""
    roll_back(cursor)  # an interrupt may have come between an error and its rollback
    cursor.execute("BEGIN IMMEDIATE")


def roll_back(cursor: sqlite3.Cursor) -> None:
    """Roll the transaction back, if there is one."""
    if cursor.connection.in_transaction:  # after some errors, such as a full disk, SQLite has done it already
        with suppress(sqlite3.Error):
            cursor.execute("ROLLBACK")


def abandon(connection: sqlite3.Connection) -> None:
    """Close a connection in whatever state it is."""
    with suppress(sqlite3.Error):
        connection.rollback()  # else it would keep its locks as long as an error's traceback refers to a statement
    connection.close()


def _close(cursor: sqlite3.Cursor) -> None:
    """Close its connection. A statement that has failed would keep the file open until the cursor is gone."""
    connection = cursor.connection
    try:
        with suppress(sqlite3.ProgrammingError):  # closed already, by a close that was interrupted
            cursor.close()
    finally:
        connection.close()


_opened: weakref.WeakKeyDictionary[Connections, int] = weakref.WeakKeyDictionary()
"""With the process that has opened each."""


@atexit.register
def _rest_at_exit() -> None:
    """Close what the program has left open, as a run leaves its graph's store: SQLite merges the log into the file with its last
    connection. Else who copies the file alone, to hand it over, would lose what is in the log.
    """
    for connections, process in [*_opened.items()]:
        if process == os.getpid():  # those of a parent that a library in C has forked are the parent's
            connections.rest()
